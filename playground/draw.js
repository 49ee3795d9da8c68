"use strict";
// A canvas to scribble on, of which the network makes a digit: SDEdit, or RePaint for a half.

const FINE = 8; // the drawing has so many pixels for one of the network's, each way
const BRUSH = 2.6; // width of a line, in the network's pixels
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const drawing = follower(redraw);
const KEEPS = { // which pixels are known, by what is chosen
  upper: (x, y, width, height) => y < height / 2,
  left: (x, y, width) => x < width / 2,
};

function readyToDraw() {
  const pad = $("pad"), context = pad.getContext("2d", { willReadFrequently: true });
  [pad.width, pad.height] = [facts.shape[2] * FINE, facts.shape[1] * FINE];
  Object.assign(context, { lineWidth: BRUSH * FINE, lineCap: "round", lineJoin: "round" });
  context.strokeStyle = "#fff";
  byPointer(pad, context);
  byKeys(pad, context);
  $("take").onclick = () => {
    context.imageSmoothingEnabled = true;
    context.drawImage($("xt"), 0, 0, pad.width, pad.height);
    drawing.now();
  };
  $("clear").onclick = () => {
    context.clearRect(0, 0, pad.width, pad.height);
    drawing.now();
  };
  $("strength").oninput = drawing.soon;
  $("keep").onchange = drawing.now;
}

function byPointer(pad, context) {
  const place = (event) => {
    const box = pad.getBoundingClientRect();
    const [across, down] = [event.clientX - box.left, event.clientY - box.top];
    return [across / box.width * pad.width, down / box.height * pad.height];
  };
  let last = null; // where the pointer was
  pad.onpointerdown = (event) => {
    pad.setPointerCapture(event.pointerId);
    last = place(event);
    line(context, last, last);
    drawing.soon();
  };
  pad.onpointermove = (event) => {
    if (!last) return;
    const between = event.getCoalescedEvents?.() ?? []; // not in every browser
    for (const each of [...between, event]) {
      const next = place(each);
      line(context, last, next);
      last = next;
    }
    drawing.soon();
  };
  pad.onpointerup = pad.onpointercancel = () => {
    if (last) drawing.now();
    last = null;
  };
}

function byKeys(pad, context) {
  const step = pad.width / 16, within = (x, most) => Math.min(most, Math.max(0, x));
  let pen = [6 * step, 4 * step];
  const moveTo = (next) => {
    pen = next;
    $("pen").style.left = `${100 * pen[0] / pad.width}%`;
    $("pen").style.top = `${100 * pen[1] / pad.height}%`;
  };
  moveTo(pen);
  pad.onkeydown = (event) => {
    if (!(event.key in ARROWS)) return;
    event.preventDefault(); // else the page would move
    const [across, down] = ARROWS[event.key], before = pen;
    moveTo([within(pen[0] + across * step, pad.width), within(pen[1] + down * step, pad.height)]);
    if (event.shiftKey) return;
    line(context, before, pen);
    drawing.soon();
  };
}

function line(context, from, to) {
  context.beginPath();
  context.moveTo(...from);
  context.lineTo(to[0] + 0.01, to[1]); // a line of no length would leave no dot
  context.stroke();
}

// What is drawn in the network's pixels, each the mean of its own, as floats in [-1, 1].
function drawn() {
  const pad = $("pad"), [channels, height, width] = facts.shape;
  const result = new Float32Array(height * width).fill(-1);
  const { data } = pad.getContext("2d").getImageData(0, 0, pad.width, pad.height);
  for (let k = 0; k < pad.width * pad.height; k++) {
    const place = Math.floor(k / pad.width / FINE) * width + Math.floor(k % pad.width / FINE);
    result[place] += data[4 * k] * data[4 * k + 3] / 255 / 127.5 / FINE ** 2;
  }
  const all = new Float32Array(channels * height * width);
  for (let c = 0; c < channels; c++) all.set(result, c * height * width);
  return all;
}

// Asks for what becomes of the drawing; an empty one becomes nothing.
function redraw() {
  const strength = Number($("strength").value), keep = $("keep").value, picture = drawn();
  const [, height, width] = facts.shape;
  tell("strength", furthest(strength, facts.T));
  $("strength").disabled = keep !== "all";
  const empty = picture.every((value) => value === -1);
  $("hint").hidden = !empty;
  if (empty) {
    latest.drawn = null;
    paint($("drawn"), picture);
    return false;
  }
  const mask = KEEPS[keep] && picture.map((_, k) => {
    const x = k % width, y = Math.floor(k / width) % height;
    return KEEPS[keep](x, y, width, height) ? 1 : 0;
  });
  // unless one label is told, the network sees for itself what it is
  const told = typeof wish.label === "number" ? {} : { labels: null, guidance: 1 };
  ask("drawn", [wish.image], { picture, strength, mask, ...told });
  return true;
}
