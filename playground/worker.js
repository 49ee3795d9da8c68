"use strict";
// The thread that computes, so that the page never freezes. It is told
//   {kind: "load", wasm, weights}                      and answers {kind: "ready", facts}
//   {kind: "draw", lane, id, seed, images, labels, …}  and answers {kind: "state", lane, id, t, x, x0}
// once for each state of the sampler. A lane has one task: a new one takes the old one's place.

const LANES = ["large", "drawn", "grid"]; // what comes first is served first, after each step
const tasks = {};
let network, schedule, noise, working = false;

// The states of a task: from noise, from a picture (SDEdit) or from a part of one (RePaint).
function* states({ seed, images, sampler, steps, eta, labels, guidance, picture, strength, mask }) {
  const [channels, height, width] = network.shape;
  const draw = noise.source(seed, images, channels * height * width);
  const denoise = denoiser(network, schedule, { labels, guidance });
  const last = picture && !mask ? Math.max(1, roundEven(strength * schedule.T)) : schedule.T;
  const times = timesteps(last, Math.min(steps, last)), xT = draw();
  if (mask) {
    yield* repaint(denoise, schedule, times, xT, draw, picture, mask);
  } else {
    const start = picture ? schedule.qSample(picture, times[0], xT) : xT;
    yield* SAMPLERS[sampler](denoise, schedule, times, start, draw, eta);
  }
}

async function work() {
  working = true;
  for (let lane; (lane = LANES.find((name) => tasks[name])); ) {
    const { id, walk } = tasks[lane], { value, done } = walk.next();
    if (done) delete tasks[lane];
    else postMessage({ kind: "state", lane, id, ...value });
    await newMessages();
  }
  working = false;
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
  const file = readSafetensors(weights), { name, parameters, draw } = file.metadata;
  noise = new Noise(kernels, memory);
  schedule = new Schedule(file);
  network = new Network(kernels, memory, file);
  const { shape, classes } = network, { T } = schedule;
  const facts = { name, parameters: Number(parameters), draw: JSON.parse(draw), shape, classes, T };
  postMessage({ kind: "ready", facts });
}

async function answer(message) {
  if (message.kind === "load") return load(message);
  tasks[message.lane] = { id: message.id, walk: states(message) };
  if (!working) await work();
}

self.onmessage = ({ data }) => answer(data).catch((error) => {
  postMessage({ kind: "error", text: String(error) });
});
