"use strict";
// The thread that computes, so that the page never freezes. It is told
//   {kind: "load", wasm, weights}             and answers  {kind: "ready"}
//   {kind: "draw", lane, id, seed, images, …} and answers  {kind: "state", lane, id, t, x, x0, ms, bytes}
// once for each state of the sampler. A lane has one task: a new one takes the old one's place.
// After each step the first lane that has a task goes on, so the large digit does not wait.
// What goes wrong it answers with {kind: "error", name, text}, and with the lane and id of the task
// that failed; it then goes on with the others.

const LANES = ["large", "drawn", "seen", "few", "grid", "between"]; // in the order of service
const tasks = {};
let network, schedule, noise, advice, working = false;

// The states of a task: from noise, from a picture (SDEdit), from a part of one (RePaint), or of
// images whose x_T lie `between` those of two numbers, one for each weight 0 … 1. With `counts`:
// one way after the other, each with so many steps.
function* states(task) {
  for (const count of task.counts ?? []) {
    for (const state of states({ ...task, steps: count, counts: null })) yield { ...state, count };
  }
  if (!task.counts) yield* walked(task);
}

function* walked(task) {
  const { seed, images, sampler, steps, eta, labels, guidance, picture, mask, between } = task;
  const [channels, height, width] = network.shape;
  const draw = noise.source(seed, images, channels * height * width);
  const denoise = denoiser(network, schedule, { labels, guidance });
  const last = picture && !mask ? furthest(task.strength, schedule.T) : schedule.T;
  const n = Math.min(steps, last), xT = draw();
  const even = advice.sampler === sampler && advice.spacing === "signal";
  const times = even ? evenSignal(schedule.signal, last, n) : timesteps(last, n);
  if (mask) {
    yield* repaint(denoise, schedule, times, xT, draw, picture, mask);
  } else {
    let start = xT;
    if (picture) start = schedule.qSample(picture, times[0], xT);
    if (between) start = arc(xT, between);
    yield* SAMPLERS[sampler](denoise, schedule, times, start, draw, eta);
  }
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

async function answer(message) {
  if (message.kind === "load") return load(message);
  tasks[message.lane] = { id: message.id, walk: states(message) };
  if (!working) await work();
}

self.onmessage = ({ data }) => answer(data).catch((error) => fail(error));
