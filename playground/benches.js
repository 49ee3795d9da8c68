"use strict";
// The four benches. Each is closed at first, and nothing of it is computed until it is opened.

const BENCH = { train: TRAIN_BENCH, break: BUG_BENCH, fork: FORK_BENCH, ideal: IDEAL_BENCH }; // as in the address
const advanced = { break: 0, ideal: 0 }; // how many images beyond the page's own
const shown = {}; // bench -> what it was drawn for

let isSetUp = false;

// Only once the worker draws the first digit, which so comes no later.
function setUpBenches() {
  isSetUp = true;
  for (const name of BENCHES) {
    $(`bench-${name}`).ontoggle = () => toggled(name);
    BENCH[name].setUp();
  }
}

// Opens the bench that the address names.
function openBench() {
  const bench = wish.bench && $(`bench-${wish.bench}`);
  if (!bench || bench.open || bench.hidden) return;
  bench.open = true;
  bench.scrollIntoView();
}

function toggled(name) {
  if ($(`bench-${name}`).open) {
    wish.bench = name;
    drawBench(name);
  } else {
    BENCH[name].close();
    Object.keys(BENCH[name].show).forEach(cancel);
    delete shown[name];
    if (wish.bench === name) delete wish.bench;
  }
  writeSoon();
}

// Draws what a bench shows, if it is open and shows something else.
function drawBench(name) {
  const { draw, dependsOn } = BENCH[name];
  const wanted = JSON.stringify([wish.seed, wish.image, advanced[name], dependsOn()]);
  if (!isReady || !$(`bench-${name}`).open || shown[name] === wanted) return;
  shown[name] = wanted;
  draw();
}

function drawBenches() {
  if (!isSetUp) setUpBenches();
  openBench();
  BENCHES.forEach(drawBench);
}

// The numbers of a bench's images.
function imagesOf(name, count) {
  return Array.from({ length: count }, (_, k) => wish.image + advanced[name] + k);
}

function advance(name, count) {
  advanced[name] += count;
  drawBench(name);
}

function cancel(lane) {
  worker?.postMessage({ kind: "cancel", lane });
  latest[lane] = null;
  showProgress(lane, 1, 1);
}

// So many black pictures in a row that has none yet.
function fillRow(row, count) {
  if (row.children.length) return;
  for (let k = 0; k < count; k++) {
    const canvas = document.createElement("canvas");
    [, canvas.height, canvas.width] = facts.shape;
    row.append(canvas);
  }
}
