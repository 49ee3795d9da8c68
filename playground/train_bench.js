"use strict";
// "Train one": a small network learns in the page, in a worker of its own.

const SHOWN_DIGITS = 16;
const TRAINED_SIDE = 16; // pixels
const LEAST = 0.01; // of the loss that is shown
const MOST = 2;
const WORDS = { true: "told", false: "not told", image: "the image", noise: "the noise" };
const TIME_PARTS = 20; // bars of the loss by t
const KEPT = 0.98; // of a bar, when a new loss comes
const SLOW_STEP = 200; // milliseconds: then the page says that this takes longer
const FIELDS = { // of the settings, each a select, with what to choose from
  rate: [1e-5, 3e-4, 1.3e-3, 0.01, 0.3],
  T: [10, 100, 1000],
  betaT: [0.001, 0.02, 0.1, 0.5],
  prediction: ["image", "noise"],
  batch: [1, 8, 32, 64],
  isLabelled: [true, false],
};

const learning = { worker: null, isGoing: false, seed: 1, step: 0, each: 0 };

let settings = { ...NOTEBOOK };
let curve = []; // [step, loss]
let byTime = Array(TIME_PARTS).fill(null); // the loss of each part of the times 1 … T

function setUpTraining() {
  for (const name of Object.keys(PRESETS)) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", value: name, textContent: name });
    button.onclick = () => setUpAgain({ ...NOTEBOOK, ...PRESETS[name].change });
    $("presets").append(button);
  }
  for (const [name, values] of Object.entries(FIELDS)) {
    for (const value of values) $(`train-${name}`).append(optionOf(value));
    $(`train-${name}`).onchange = ({ target }) => {
      setUpAgain({ ...settings, [name]: values[target.selectedIndex] });
    };
  }
  $("train-go").onclick = () => learning.isGoing ? pauseTraining() : goTraining();
  $("train-again").onclick = () => {
    learning.seed++;
    setUpAgain(settings);
  };
  const row = $("learned");
  fillRow(row, SHOWN_DIGITS);
  for (const canvas of row.children) [canvas.width, canvas.height] = [TRAINED_SIDE, TRAINED_SIDE];
  showSettings();
  showTraining();
}

function optionOf(value) {
  const option = document.createElement("option");
  option.textContent = WORDS[value] ?? value;
  return option;
}

function showSettings() {
  for (const [name, values] of Object.entries(FIELDS)) {
    $(`train-${name}`).selectedIndex = values.indexOf(settings[name]);
  }
  const isChosen = ({ change }) => {
    return JSON.stringify({ ...NOTEBOOK, ...change }) === JSON.stringify(settings);
  };
  const chosen = Object.keys(PRESETS).find((name) => isChosen(PRESETS[name]));
  for (const button of $("presets").children) {
    button.setAttribute("aria-pressed", button.value === chosen);
  }
  $("preset-why").textContent = chosen ? PRESETS[chosen].why : "Your own settings.";
}

// New weights, with these settings; it goes on training if it did so before.
function setUpAgain(wanted) {
  settings = Object.fromEntries(Object.keys(NOTEBOOK).map((name) => [name, wanted[name]]));
  const wasGoing = learning.isGoing;
  closeTraining();
  for (const canvas of $("learned").children) canvas.getContext("2d").clearRect(0, 0, 16, 16);
  showSettings();
  showTraining();
  if (wasGoing) goTraining();
}

async function goTraining() {
  learning.isGoing = true;
  showTraining();
  if (learning.worker) return learning.worker.postMessage({ kind: "go" });
  const trainer = learning.worker = newWorker();
  trainer.onmessage = ({ data }) => LEARNING[data.kind](data);
  try {
    const [wasm, digits] = await Promise.all(["wasm", "learned-digits"].map(unpacked));
    const { seed } = learning;
    trainer.postMessage({ kind: "train", wasm, digits, settings, seed }, [wasm, digits]);
  } catch (error) {
    failed(error);
  }
}

function pauseTraining() {
  learning.isGoing = false;
  learning.worker?.postMessage({ kind: "pause" });
  showTraining();
}

// Forgets the network.
function closeTraining() {
  learning.worker?.terminate();
  Object.assign(learning, { worker: null, isGoing: false, step: 0, each: 0 });
  curve = [];
  byTime = Array(TIME_PARTS).fill(null);
  $("learned-says").textContent = "Sixteen noises, the same each time, and what the network makes of them so far.";
  delete $("learned").dataset.step;
}

const LEARNING = { // what the worker answers
  began: () => learning.isGoing && learning.worker.postMessage({ kind: "go" }),
  trained({ step, points, each }) {
    const smooth = learning.each ? 0.9 * learning.each + 0.1 * each : each;
    Object.assign(learning, { step, each: smooth });
    const mean = points.reduce((total, [, loss]) => total + loss, 0) / points.length;
    curve.push([step, mean]);
    for (const [t, loss] of points) {
      const part = Math.min(TIME_PARTS - 1, Math.floor((t - 1) / settings.T * TIME_PARTS));
      byTime[part] = byTime[part] === null ? loss : KEPT * byTime[part] + (1 - KEPT) * loss;
    }
    showTraining();
  },
  drawn({ images, found, step }) {
    const size = TRAINED_SIDE ** 2;
    [...$("learned").children].forEach((canvas, k) => {
      paint(canvas, images.subarray(k * size, (k + 1) * size));
    });
    $("learned").dataset.step = step;
    const right = found.filter((label, k) => label === k % 10).length;
    $("learned").dataset.right = right;
    $("learned-says").textContent = `After ${step} steps, ${right} of ${SHOWN_DIGITS} look like the digit asked for (0 to 9, then 0 to 5), judged by the nearest training digits.`;
  },
  error: failed,
};

function showTraining() {
  const { isGoing, step, each } = learning;
  $("train-go").textContent = isGoing ? "Pause" : step ? "Go on" : "Start training";
  const rate = each ? 1000 / each : 0;
  const pace = each > SLOW_STEP ? " This device is slow at it: the first digits take some minutes." : "";
  $("train-pace").textContent = each
    ? `Step ${step}, ${rate.toFixed(rate < 10 ? 1 : 0)} steps a second.${pace}`
    : isGoing ? "The network starts from random weights …" : "Not trained yet: its weights are random.";
  drawCurve();
  drawBars();
}

// The loss over the steps, on a logarithmic scale.
function drawCurve() {
  const last = curve.at(-1), most = last?.[0] ?? 1, range = Math.log(MOST / LEAST);
  const height = (loss) => 60 - 60 * Math.min(1, Math.max(0, Math.log(loss / LEAST) / range));
  const every = Math.ceil(curve.length / 300);
  const shown = curve.filter((_, k) => k % every === 0);
  const points = shown.map(([step, loss]) => [200 * step / most, height(loss)].join());
  $("curve").setAttribute("points", points.join(" "));
  $("curve-says").textContent = last ? `loss by step: ${last[1].toPrecision(2)} now` : "loss by step";
}

function drawBars() {
  const bars = $("loss-bars");
  if (!bars.children.length) {
    for (let k = 0; k < TIME_PARTS; k++) bars.append(document.createElement("span"));
  }
  const largest = Math.max(1e-9, ...byTime);
  [...bars.children].forEach((bar, k) => bar.style.height = `${100 * (byTime[k] ?? 0) / largest}%`);
}

const TRAIN_BENCH = {
  setUp: setUpTraining,
  draw() {},
  close: pauseTraining,
  dependsOn: () => null,
  show: {},
};
