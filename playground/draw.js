"use strict";
// A canvas to scribble on, of which the network makes a digit: SDEdit, or RePaint for a half.

const FINE = 8; // the drawing has so many pixels for one of the network's, each way
const BRUSH = 2.6; // width of a line, in the network's pixels
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const EXAMPLE = [ // a two, as a child might draw it: across and down, 0 … 1
  [0.32, 0.32], [0.37, 0.19], [0.52, 0.14], [0.65, 0.21], [0.65, 0.34], [0.52, 0.5], [0.36, 0.66],
  [0.31, 0.72], [0.46, 0.68], [0.58, 0.74], [0.72, 0.68],
];
const drawing = follower(redraw);
const KEEPS = { // which pixels are known, by what is chosen
  upper: (x, y, width, height) => y < height / 2,
  left: (x, y, width) => x < width / 2,
};

let isExample = false; // which the first stroke replaces

function readyToDraw() {
  const pad = $("pad"), context = pad.getContext("2d", { willReadFrequently: true });
  [pad.width, pad.height] = [facts.shape[2] * FINE, facts.shape[1] * FINE];
  Object.assign(context, { lineWidth: BRUSH * FINE, lineCap: "round", lineJoin: "round" });
  Object.assign(context, { strokeStyle: "#fff", fillStyle: "#000" });
  byPointer(pad, context);
  byKeys(pad, context);
  $("take").onclick = () => {
    isExample = false;
    context.imageSmoothingEnabled = true;
    context.drawImage($("xt"), 0, 0, pad.width, pad.height);
    drawing.now();
  };
  $("clear").onclick = () => {
    wipe(context);
    drawing.now();
  };
  $("example").onclick = () => {
    drawExample(context);
    drawing.now();
  };
  $("strength").oninput = drawing.soon;
  $("keep").onchange = drawing.now;
  addEventListener("pagehide", keepDrawing);
  drawExample(context);
  restoreDrawing(context);
  drawing.now();
}

// What is on the pad outlives a reload.
function keepDrawing() {
  try {
    if (isExample) sessionStorage.removeItem("drawing");
    else sessionStorage.setItem("drawing", $("pad").toDataURL());
  } catch { // a browser that stores nothing
  }
}

function restoreDrawing(context) {
  let address = null;
  try {
    address = sessionStorage.getItem("drawing");
  } catch { // as above
  }
  if (!address) return;
  const picture = new Image();
  picture.onload = () => {
    if (!isExample) return; // there is a stroke already
    wipe(context);
    context.drawImage(picture, 0, 0);
    drawing.now();
  };
  picture.src = address;
}

function wipe(context) {
  isExample = false;
  context.fillRect(0, 0, $("pad").width, $("pad").height);
}

function drawExample(context) {
  const { width, height } = $("pad");
  const points = EXAMPLE.map(([across, down]) => [across * width, down * height]);
  wipe(context);
  points.slice(1).forEach((to, k) => line(context, points[k], to));
  isExample = true;
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
    if (isExample) wipe(context);
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
    if (!Object.hasOwn(ARROWS, event.key)) return;
    event.preventDefault(); // else the page would move
    const [across, down] = ARROWS[event.key], before = pen;
    moveTo([within(pen[0] + across * step, pad.width), within(pen[1] + down * step, pad.height)]);
    if (event.shiftKey) return;
    if (isExample) wipe(context);
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
    result[place] += data[4 * k] / 127.5 / FINE ** 2;
  }
  const all = new Float32Array(channels * height * width);
  for (let c = 0; c < channels; c++) all.set(result, c * height * width);
  return all;
}

// Asks for what becomes of the drawing, once the network is ready; an empty one becomes nothing.
function redraw() {
  const strength = Number($("strength").value), keep = $("keep").value, picture = drawn();
  const [, height, width] = facts.shape;
  tell("strength", furthest(strength, facts.T));
  $("strength").disabled = keep !== "all";
  const empty = picture.every((value) => value === -1);
  $("hint").hidden = !empty && !isExample;
  $("hint").textContent = empty ? "Scribble here" : "example: scribble here";
  $("hint").classList.toggle("below", !empty);
  if (empty) {
    latest.drawn = null;
    showProgress("drawn", 1, 1);
    paint($("drawn"), picture);
  }
  if (empty || !isReady) return false;
  const mask = KEEPS[keep] && picture.map((_, k) => {
    const x = k % width, y = Math.floor(k / width) % height;
    return KEEPS[keep](x, y, width, height) ? 1 : 0;
  });
  // unless one label is told, the network sees for itself what it is
  const told = typeof wish.label === "number" ? {} : { labels: null, guidance: 1 };
  ask("drawn", [wish.image], { picture, strength, mask, ...told });
  return true;
}
