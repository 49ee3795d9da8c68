"use strict";
// "Fork": one moment of a drawing, and sixteen ways in which it goes on.

const FORK_STEPS = 20, FUTURES = 16;
const FIRST_FUTURE = 2_000_000; // image numbers of futures, whose noise no other image has
const WHITE = 127.5; // grey levels of 1

let moments = []; // states of the drawing that is held
let firstFuture = FIRST_FUTURE;
let forking; // a timer: the slider may move on

function setUpFork() {
  tell("hold", wish.hold);
  $("hold").oninput = () => {
    if (!isComplete()) return;
    holdMoment();
    cancelFutures();
    forking = setTimeout(askFutures, 200);
    writeSoon();
  };
  $("other-futures").onclick = () => {
    firstFuture += FUTURES;
    if (isComplete()) askFutures();
  };
  $("cancel-futures").onclick = () => {
    cancelFutures();
    $("spread").textContent = "Cancelled. Move the slider to go on.";
  };
}

function drawFork() {
  fillRow($("futures"), FUTURES);
  cancelFutures();
  moments = [];
  $("spreads").replaceChildren();
  $("spread").textContent = "Drawing …";
  ask("held", [wish.image], forkTask());
}

// With fresh noise in each step, and without a label, so that it is open which digit it becomes.
function forkTask() {
  return { sampler: "ddpm", steps: Math.min(FORK_STEPS, facts.T), eta: 0, labels: null, guidance: 1 };
}

function isComplete() {
  return moments.at(-1)?.t === 0;
}

// Its moments are the slider's, but for the last, which has no future.
function readyToFork() {
  const times = moments.slice(0, -1).map(({ t }) => t);
  const distances = times.map((t) => Math.abs(t - wish.hold));
  $("hold").max = times.length - 1;
  $("hold").value = distances.indexOf(Math.min(...distances));
  for (const t of times) {
    const bar = document.createElement("span");
    bar.title = `t = ${t}`;
    $("spreads").append(bar);
  }
  holdMoment();
  askFutures();
}

function addMoment(moment) {
  moments.push(moment);
  if (isShown(moment.t)) {
    paint($("held-xt"), moment.x);
    paint($("held-x0"), moment.x0);
  }
  if (isComplete()) readyToFork();
}

function heldMoment() {
  return moments[Number($("hold").value)];
}

function holdMoment() {
  const { t, x, x0 } = heldMoment();
  paint($("held-xt"), x);
  paint($("held-x0"), x0);
  wish.hold = t;
  tell("hold", t);
}

function askFutures() {
  const { t, x } = heldMoment();
  const images = Array.from({ length: FUTURES }, (_, k) => firstFuture + k);
  ask("futures", images, { ...forkTask(), held: { t, x } });
  awaited.futures.count = moments.length - Number($("hold").value);
  $("cancel-futures").disabled = false;
  $("spread").textContent = "Drawing …";
}

function cancelFutures() {
  clearTimeout(forking);
  cancel("futures");
  $("cancel-futures").disabled = true;
}

// The mean of equally large pictures, and how far they differ: the standard deviation of a pixel,
// on average over the pixels.
function meanAndSpread(pictures, size) {
  const count = pictures.length / size, mean = new Float32Array(size);
  pictures.forEach((value, k) => mean[k % size] += value / count);
  const variances = new Float64Array(size);
  pictures.forEach((value, k) => variances[k % size] += (value - mean[k % size]) ** 2 / count);
  return { mean, spread: variances.reduce((total, variance) => total + Math.sqrt(variance), 0) / size };
}

function showFutures({ t, x0 }) {
  const { mean, spread } = meanAndSpread(x0, x0.length / FUTURES);
  paintRow($("futures"), x0, t);
  if (isShown(t)) paint($("mean"), mean);
  if (t > 0) return;
  $("cancel-futures").disabled = true;
  showSpread(spread);
}

function showSpread(spread) {
  const levels = Math.round(WHITE * spread), { t } = heldMoment();
  $("spread").textContent = `Held at t = ${t}, the sixteen differ by ${levels} grey levels: the standard deviation of a pixel, on average.`;
  const bar = $("spreads").children[Number($("hold").value)];
  bar.style.height = `${Math.min(100, 100 * levels / 50)}%`;
  bar.title = `t = ${t}: ${levels}`;
}

const FORK_BENCH = {
  setUp: setUpFork,
  draw: drawFork,
  close: cancelFutures,
  dependsOn: () => null,
  show: { held: addMoment, futures: showFutures },
};
