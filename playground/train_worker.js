"use strict";
// A second thread of the same source, which trains. It is told
//   {kind: "train", wasm, digits, settings, seed}  begins anew, and answers {kind: "began"}
//   {kind: "go"}, {kind: "pause"}                  and answers {kind: "trained", …} now and then
// and {kind: "drawn", images, found, step} every few seconds: sixteen digits, and what they show.

const TOLD_EVERY = 200, DRAWN_EVERY = 3000; // milliseconds
let training; // {trainer, take, noises, source, data, drawnAt}
let isGoing = false, isRunning = false;

async function beginTraining({ wasm, digits, settings, seed }) {
  const kernels = await loadKernels(wasm), memory = new Memory(kernels);
  const data = readTinyDigits(digits), trainer = new Trainer(kernels, memory, data, settings);
  const source = new Noise(kernels, memory), random = randomOf(seed);
  trainer.unet.setRandomWeights(random);
  const take = () => {
    const count = settings.batch, whole = (below) => Math.floor(below * random());
    const chosen = Array.from({ length: count }, () => whole(data.labels.length));
    const times = chosen.map(() => 1 + whole(settings.T));
    return { chosen, times };
  };
  const noises = source.source(seed, [0], settings.batch * TINY_SIZE);
  training = { trainer, take, noises, source, data, drawnAt: -Infinity };
  postMessage({ kind: "began" });
}

// One step with random digits, times and noise: {losses, times}.
function trainOnce() {
  const { trainer, take, noises } = training, { chosen, times } = take();
  return { losses: trainer.learn(chosen, times, noises()), times };
}

// The same sixteen noises each time, with the labels 0, 1, 2, …
function drawSixteen(labels = Array.from({ length: SHOWN }, (_, k) => k % 10)) {
  const { trainer, source, data } = training, numbers = labels.map((_, k) => k);
  const draw = source.source(1, numbers, TINY_SIZE);
  const images = trainer.draw(draw(), draw, labels);
  return { images, found: judged(images, data), step: trainer.unet.step };
}

async function train() {
  if (isRunning) return;
  isRunning = true;
  let toldAt = performance.now(), count = 0, spent = 0, points = [];
  while (isGoing) {
    const began = performance.now();
    const { losses, times } = trainOnce(), now = performance.now();
    losses.forEach((loss, k) => points.push([times[k], loss]));
    count++;
    spent += now - began;
    if (now - toldAt > TOLD_EVERY) {
      postMessage({ kind: "trained", step: training.trainer.unet.step, points, each: spent / count });
      [toldAt, count, spent, points] = [now, 0, 0, []];
    }
    if (now - training.drawnAt > DRAWN_EVERY) {
      postMessage({ kind: "drawn", ...drawSixteen() });
      training.drawnAt = performance.now();
    }
    await newMessages();
  }
  isRunning = false;
}

const TRAINING = { // by kind
  train: (message) => {
    isGoing = false;
    return beginTraining(message);
  },
  go: () => {
    isGoing = true;
    return train();
  },
  pause: () => {
    isGoing = false;
  },
};
