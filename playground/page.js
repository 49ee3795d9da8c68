"use strict";
// What is seen and touched. The worker computes; here its states are kept, shown and played.

const $ = (id) => document.getElementById(id);
const GRID = 16, PLAY = 1200; // images; milliseconds from T to 0
const SAYS = {
  ddpm: "Algorithm 2: every step brings fresh noise.",
  ddim: "Goes straight for the predicted image. With η = 0 no noise is added.",
  dpmpp: "As DDIM, and uses the prediction before: good in few steps.",
};
const still = matchMedia("(prefers-reduced-motion: reduce)");

let facts, wish, stops, film = [], expected = 1, playing = null, task = 0, worker;

async function start() {
  const source = $("worker-source").textContent;
  worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  worker.onmessage = ({ data }) => ({ ready, state, error: ({ text }) => trouble(text) })[data.kind](data);
  worker.onerror = (event) => trouble(event.message);
  const [wasm, weights] = await Promise.all(["wasm", "weights"].map(unpacked));
  worker.postMessage({ kind: "load", wasm, weights }, [wasm, weights]);
}

// The bytes that stand in the page as compressed text.
function unpacked(id) {
  const text = atob($(id).textContent), bytes = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

function trouble(text) {
  $("trouble").hidden = false;
  $("trouble").textContent = `This browser cannot draw here (${text}). Take a current Chromium, Firefox or Safari.`;
}

function ready(message) {
  facts = message.facts;
  const count = facts.parameters.toLocaleString("en");
  $("lead").textContent = `A network of ${count} weights inside this page draws the digits, from pure noise. Nothing is fetched or sent.`;
  $("T").textContent = facts.T;
  $("labels").hidden = $("guiding").hidden = !facts.classes;
  for (const label of facts.classes ? [EACH, ...Array(facts.classes).keys(), NONE] : []) addLabel(label);
  for (let k = 0; k < GRID; k++) addTile(k);
  for (const canvas of document.querySelectorAll("canvas")) [, canvas.height, canvas.width] = facts.shape;
  follow();
  readyToDraw();
}

function addLabel(label) {
  const choice = document.createElement("label"), input = document.createElement("input");
  Object.assign(input, { type: "radio", name: "label", value: label });
  input.onchange = () => change({ label });
  choice.append(input, String(label));
  $("label").append(choice);
}

function addTile(k) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(document.createElement("canvas"));
  button.onclick = () => change({ image: firstOfGrid() + k });
  $("grid").append(button);
}

function firstOfGrid() {
  return Math.floor(wish.image / GRID) * GRID;
}

// Draws what the address asks for.
function follow() {
  const old = wish;
  wish = readAddress(location.hash, facts);
  showControls();
  drawLarge();
  const same = old && Object.keys(wish).every((name) => name === "image" || wish[name] === old[name]);
  if (!same || firstOfGrid() !== Math.floor(old.image / GRID) * GRID) drawGrid();
}

function change(part) {
  history.replaceState(null, "", writeAddress({ ...wish, ...part }));
  follow();
}

function ask(lane, images) {
  const { seed, sampler, steps, eta, guidance = 1 } = wish, labels = labelsOf(wish, images, facts.classes);
  worker.postMessage({ kind: "draw", lane, id: ++task, seed, images, sampler, steps, eta, guidance, labels });
  return task;
}

function drawLarge() {
  film = [];
  expected = wish.steps + 1;
  $("moment").max = wish.steps;
  drawLarge.id = ask("large", [wish.image]);
  play();
}

function drawGrid() {
  const images = Array.from({ length: GRID }, (_, k) => firstOfGrid() + k);
  drawGrid.id = ask("grid", images);
}

function state({ lane, id, t, x, x0 }) {
  if (lane === "large" && id === drawLarge.id) {
    film.push({ t, x, x0 });
    if (t === 0) $("status").textContent = `Image ${wish.image} of seed ${wish.seed} is drawn.`;
  }
  if (lane === "drawn" && id === redraw.id) {
    paint($("drawn"), x0);
    $("drawn").dataset.t = t;
  }
  if (lane === "grid" && id === drawGrid.id) {
    const size = x.length / GRID;
    document.querySelectorAll("#grid canvas").forEach((canvas, k) => paint(canvas, x.subarray(k * size, (k + 1) * size)));
    $("grid").dataset.t = t;
  }
}

// Shows the film from its start, as far as there is one, over PLAY milliseconds.
function play() {
  stop();
  const began = performance.now(), last = expected - 1;
  const frame = (now) => {
    const due = still.matches ? last : Math.min(last, Math.floor((now - began) / PLAY * last));
    if (film.length) show(Math.min(due, film.length - 1));
    playing = due < last || film.length < expected ? requestAnimationFrame(frame) : null;
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
}

// Floats in [-1, 1] as grey levels, or as colours.
function paint(canvas, x) {
  const context = canvas.getContext("2d"), { width, height } = canvas;
  const picture = context.createImageData(width, height), levels = toUint8(x), size = width * height;
  for (let k = 0; k < size; k++) {
    for (let c = 0; c < 3; c++) picture.data[4 * k + c] = levels[facts.shape[0] === 3 ? c * size + k : k];
    picture.data[4 * k + 3] = 255;
  }
  context.putImageData(picture, 0, 0);
}

function showControls() {
  stops = [...new Set([...STOPS.filter((steps) => steps <= facts.T), wish.steps])].sort((a, b) => a - b);
  $("steps").max = stops.length - 1;
  $("steps").value = stops.indexOf(wish.steps);
  $("steps").setAttribute("aria-valuetext", `${wish.steps} steps`);
  $("eta").value = wish.eta;
  $("eta").disabled = wish.sampler === "ddpm";
  $("guidance").value = wish.guidance ?? 1;
  $("guidance").disabled = wish.label === NONE;
  $("sampler").value = wish.sampler;
  $("sampler-says").textContent = SAYS[wish.sampler];
  for (const name of ["steps", "eta", "guidance"]) {
    document.querySelector(`output[for="${name}"]`).textContent = wish[name] ?? "";
  }
  for (const input of document.querySelectorAll("#label input")) input.checked = input.value === String(wish.label);
  document.querySelectorAll("#grid button").forEach((button, k) => {
    const image = firstOfGrid() + k;
    button.setAttribute("aria-label", `image ${image}`);
    button.setAttribute("aria-pressed", image === wish.image);
  });
  $("command").textContent = pythonCommand(wish, facts.name);
}

function save() {
  const link = document.createElement("a"), large = document.createElement("canvas"), scale = 16;
  [large.width, large.height] = [$("xt").width * scale, $("xt").height * scale];
  const context = large.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage($("xt"), 0, 0, large.width, large.height);
  link.href = large.toDataURL("image/png");
  link.download = `seed-${wish.seed}-image-${wish.image}-t-${$("t").textContent}.png`;
  link.click();
}

$("moment").oninput = (event) => {
  stop();
  if (film.length) show(Math.min(Number(event.target.value), film.length - 1));
};
$("fresh").onclick = () => change({ seed: 1 + Math.floor(9999 * Math.random()) });
$("again").onclick = play;
$("save").onclick = save;
$("sampler").onchange = (event) => change({ sampler: event.target.value });
$("steps").oninput = (event) => change({ steps: stops[event.target.value] });
$("eta").oninput = (event) => change({ eta: Number(event.target.value) });
$("guidance").oninput = (event) => change({ guidance: Number(event.target.value) });
onhashchange = follow;
start().catch((error) => trouble(String(error)));
