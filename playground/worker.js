"use strict";
// The thread that computes, so that the page never freezes. It is told
//   {kind: "load", wasm, weights}             and answers  {kind: "ready"}
//   {kind: "digits", digits}                  those of the ideal denoiser, and answers nothing
//   {kind: "draw", lane, id, seed, images, …} and answers  {kind: "state", lane, id, t, x, x0, ms, bytes}
//   {kind: "cancel", lane}                    and answers nothing more of that lane's task
// "draw" is answered once for each state of the sampler. A lane has one task: a new one takes the
// old one's place. After each step the first lane that has a task goes on, so the large digit does
// not wait.
// What goes wrong it answers with {kind: "error", name, text}, and with the lane and id of the task
// that failed; it then goes on with the others.

const LANES = [ // in the order of service, the benches last
  "large", "drawn", "seen", "few", "grid", "between",
  "healthy", "broken", "question", "answer", "held", "futures", "network", "ideal",
];
const tasks = {};
let network, schedule, noise, advice, points, working = false;

// The states of a task: from noise, from a picture (SDEdit), from a part of one (RePaint), of images
// whose x_T lie `between` those of two numbers, one for each weight 0 … 1, or from a state {t, x} of
// one image that is `held`, once for each image number. With `counts`: one way after the other, each
// with so many steps. `bugs` names what is wrong; `isIdeal` has the ideal denoiser instead of the
// network; `isCompared` adds each state's nearest stored digits.
function* states(task) {
  for (const count of task.counts ?? []) {
    for (const state of states({ ...task, steps: count, counts: null })) yield { ...state, count };
  }
  if (!task.counts) yield* walked(task);
}

function* walked(task) {
  const { seed, images, sampler, eta, labels, guidance, picture, mask, bugs = [] } = task;
  const [channels, height, width] = network.shape, size = channels * height * width;
  const draw = noise.source(seed, images, size), times = timesOf(task);
  const start = startOf(task, times, draw);
  const options = { labels, guidance };
  const parts = withBugs(bugs, { network, schedule, sampler: SAMPLERS[sampler], times, options });
  const denoise = task.isIdeal
    ? idealDenoiser(schedule, points, size)
    : denoiser(parts.network, parts.schedule, parts.options);
  const walk = mask
    ? repaint(denoise, schedule, times, start, draw, picture, mask)
    : parts.sampler(denoise, parts.schedule, times, start, draw, eta);
  for (const state of walk) {
    yield task.isCompared ? { ...state, nearest: nearestPoints(state.x0, points, size) } : state;
  }
}

function timesOf({ sampler, steps, picture, mask, strength, held }) {
  const last = picture && !mask ? furthest(strength, schedule.T) : schedule.T;
  const n = Math.min(steps, last), even = advice.sampler === sampler && advice.spacing === "signal";
  const times = even ? evenSignal(schedule.signal, last, n) : timesteps(last, n);
  return held ? times.filter((t) => t <= held.t) : times;
}

function startOf({ images, picture, mask, between, held }, times, draw) {
  if (held) return repeated(held.x, images.length);
  const xT = draw();
  if (between) return arc(xT, between);
  return picture && !mask ? schedule.qSample(picture, times[0], xT) : xT;
}

function repeated(x, count) {
  const result = new Float32Array(count * x.length);
  for (let k = 0; k < count; k++) result.set(x, k * x.length);
  return result;
}

// From the first of two noises to the second, a noise for each weight.
function arc(two, weights) {
  const size = two.length / 2, result = new Float32Array(weights.length * size);
  const [a, b] = [two.subarray(0, size), two.subarray(size)];
  weights.forEach((weight, k) => result.set(slerp(a, b, weight), k * size));
  return result;
}

async function work() {
  working = true;
  for (let lane; (lane = LANES.find((name) => tasks[name])); ) {
    const { id } = tasks[lane];
    try {
      step(lane);
    } catch (error) {
      delete tasks[lane];
      fail(error, { lane, id });
    }
    await newMessages();
  }
  working = false;
}

// The next state of a lane's task.
function step(lane) {
  const { id, walk } = tasks[lane], began = performance.now(), { value, done } = walk.next();
  const cost = { ms: performance.now() - began, bytes: network.memory.bytes };
  if (done) delete tasks[lane];
  else postMessage({ kind: "state", lane, id, ...cost, ...value });
}

function fail({ name, message }, task = {}) {
  postMessage({ kind: "error", name, text: `${name}: ${message}`, ...task });
}

// Lets messages in that have arrived; a timer would wait longer.
const bell = new MessageChannel();
function newMessages() {
  return new Promise((resolve) => {
    bell.port1.onmessage = resolve;
    bell.port2.postMessage(null);
  });
}

async function load({ wasm, weights }) {
  const kernels = await loadKernels(wasm), memory = new Memory(kernels);
  const file = readSafetensors(weights);
  noise = new Noise(kernels, memory);
  schedule = new Schedule(file);
  network = new Network(kernels, memory, file);
  advice = JSON.parse(file.metadata.draw);
  postMessage({ kind: "ready" });
}

function takeDigits({ digits }) {
  const [, height, width] = network.shape;
  points = readDigits(digits, height, width);
}

async function answer(message) {
  if (Object.hasOwn(TRAINING, message.kind)) return TRAINING[message.kind](message);
  if (message.kind === "load") return load(message);
  if (message.kind === "digits") return takeDigits(message);
  if (message.kind === "cancel") return void delete tasks[message.lane];
  tasks[message.lane] = { id: message.id, walk: states(message) };
  if (!working) await work();
}

self.onmessage = ({ data }) => answer(data).catch((error) => fail(error));
