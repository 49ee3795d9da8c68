"use strict";
// The large digit's states, one after another: kept, played, saved, and passed on.

const QUICK = 8; // steps: with fewer, each of them takes its part of a second
const SLOW = 50; // steps: with more, a digit takes five seconds
const still = matchMedia("(prefers-reduced-motion: reduce)");

let film = [], expected = 1, playing;

// Shows the film from its start, as far as there is one. Where motion is unwelcome, its end alone.
function play() {
  stop();
  const began = performance.now(), last = expected - 1;
  const each = (last < SLOW ? 1000 : 5000) / Math.max(QUICK, last);
  const frame = (now) => {
    const complete = film.length === expected;
    const due = still.matches ? last : Math.min(last, Math.floor((now - began) / each));
    if (still.matches ? complete : film.length) show(Math.min(due, film.length - 1));
    playing = due < last || !complete ? requestAnimationFrame(frame) : null;
  };
  playing = requestAnimationFrame(frame);
}

function stop() {
  cancelAnimationFrame(playing);
  playing = null;
}

// One moment of the film.
function show(k) {
  const { t, x, x0 } = film[k];
  paint($("xt"), x);
  paint($("x0"), x0);
  $("t").textContent = t;
  $("moment").value = k;
  $("moment").setAttribute("aria-valuetext", `t = ${t}`);
  if (t === 0 && !performance.getEntriesByName("digit").length) performance.mark("digit");
}

// Floats in [-1, 1] as grey levels, or as colours.
function paint(canvas, x) {
  const context = canvas.getContext("2d"), { width, height } = canvas, size = width * height;
  const picture = context.createImageData(width, height), levels = toUint8(x);
  const plane = x.length > size ? size : 0; // from red to green, and on to blue
  for (let k = 0; k < size; k++) {
    for (let c = 0; c < 3; c++) picture.data[4 * k + c] = levels[c * plane + k];
    picture.data[4 * k + 3] = 255;
  }
  context.putImageData(picture, 0, 0);
}

function download(url, ending) {
  const link = document.createElement("a");
  link.href = url;
  link.download = `seed-${wish.seed}-image-${wish.image}${ending}`;
  link.click();
}

function savePicture() {
  const large = document.createElement("canvas"), scale = 16;
  [large.width, large.height] = [$("xt").width * scale, $("xt").height * scale];
  const context = large.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage($("xt"), 0, 0, large.width, large.height);
  download(large.toDataURL("image/png"), `-t-${$("t").textContent}.png`);
}

// The film of x_t, of 50 moments at most: 4 seconds, then 2 of rest, as the notebook's.
function saveFilm() {
  const [, height, width] = facts.shape, count = Math.min(50, film.length);
  if (count < 2) return;
  const frames = Array.from({ length: count }, (_, k) => {
    const { t, x } = film[Math.round(k / (count - 1) * (film.length - 1))];
    return { pixels: toUint8(x), hundredths: t === 0 ? 200 : Math.round(400 / count) };
  });
  const url = URL.createObjectURL(gifOf(frames, width, height, 4));
  download(url, ".gif");
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

// Puts text on the clipboard, and says so.
async function copy(text, name) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // not allowed, or not there: by a field that is selected
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  $("status").textContent = `The ${name} is copied.`;
  $(`copy-${name}`).textContent = "Copied";
  setTimeout(() => $(`copy-${name}`).textContent = `Copy ${name}`, 2000);
}
