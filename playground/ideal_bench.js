"use strict";
// "The ideal denoiser": the exact one of the stored digits beside the network, from the same noise.

const COMPARED = 6; // digits of each
// The first 1,000 test digits, measured with ddpm.load_mnist
const UNSEEN = "Handwritten digits that neither has seen are 49 away, on average.";
const SIDES = ["network", "ideal"]; // lanes

const story = { network: [], ideal: [] }; // the states of each
let sending; // the stored digits to the worker, once

function setUpIdeal() {
  $("stored").textContent = facts.digits;
  tell("ideal-moment", 0);
  $("ideal-moment").oninput = showMoment;
  $("other-noise").onclick = () => advance("ideal", COMPARED);
}

async function sendDigits() {
  const digits = await unpacked("digits");
  worker.postMessage({ kind: "digits", digits }, [digits]);
}

function drawIdeal() {
  for (const side of SIDES) {
    story[side] = [];
    fillRow($(side), COMPARED);
    fillRow($(`${side}-nearest`), COMPARED);
  }
  const images = imagesOf("ideal", COMPARED);
  const steps = Math.min(wish.steps, SLOW); // of the page's sampler; all of its states are kept
  const task = { steps, labels: null, guidance: 1, isCompared: true };
  sending ??= sendDigits();
  sending.then(() => {
    if (!$("bench-ideal").open) return;
    for (const side of SIDES) ask(side, images, { ...task, isIdeal: side === "ideal" });
  }).catch(failed);
}

// Both sides at the slider's moment, as far as they have come.
function showMoment() {
  const k = Number($("ideal-moment").value);
  for (const side of SIDES) showSide(side, story[side][k]);
  tell("ideal-moment", story.network[k]?.t ?? 0);
}

function showSide(side, state) {
  if (!state) return;
  const { t, x0, nearest } = state;
  paintRow($(side), x0, 0);
  paintRow($(`${side}-nearest`), nearest.images, 0);
  $(side).dataset.t = t;
  $(`${side}-distances`).replaceChildren(...nearest.distances.map((distance) => {
    const number = document.createElement("span");
    number.textContent = Math.round(distance);
    return number;
  }));
}

function addState(side, state) {
  story[side].push(state);
  const { t } = state, last = story[side].length - 1;
  if (t > 0) {
    if (isShown(t)) showSide(side, state);
    return;
  }
  [$("ideal-moment").max, $("ideal-moment").value] = [last, last];
  showSide(side, state);
  if (side === "ideal") compareSides();
}

function compareSides() {
  const [drawn, copied] = SIDES.map((side) => story[side].at(-1).nearest.distances.map(Math.round));
  const [copies, near, far] = [Math.max(...copied), Math.min(...drawn), Math.max(...drawn)];
  $("copying").textContent = `Distances to the nearest stored digit, in grey levels (root mean square): ${copies}${copies ? "" : " (copies)"} for the ideal denoiser, ${near} to ${far} for the network. ${UNSEEN}`;
}

const IDEAL_BENCH = {
  setUp: setUpIdeal,
  draw: drawIdeal,
  close() {},
  dependsOn: () => [wish.sampler, wish.steps, wish.eta],
  show: Object.fromEntries(SIDES.map((side) => [side, (state) => addState(side, state)])),
};
