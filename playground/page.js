"use strict";
// What is seen and touched. The worker computes; here its states are kept, shown and played.

const $ = (id) => document.getElementById(id);
const GRID = 16, BETWEEN = 8; // images
const PLAY = 1000; // milliseconds from T to 0
const SAYS = {
  ddpm: "Algorithm 2: every step brings fresh noise.",
  ddim: "Goes straight for the predicted image. With η = 0 no noise is added.",
  dpmpp: "As DDIM, and uses the prediction before: good in few steps.",
  consistency: "Takes the prediction at T, adds noise anew up to the next t, and so on.",
  shortcut: "As DDIM, but the network is told how far each step goes: 1, 2 or 4 will do.",
};
const SEEN = {
  consistency: "Trained for few steps, the network says one digit, where others predict a blur.",
  mean: "The more noise, the more digits it could be. The network predicts their mean, a blur.",
};
const still = matchMedia("(prefers-reduced-motion: reduce)");

const QUICK = 8; // steps: with fewer, each of them takes its part of PLAY
const latest = {}; // lane -> the number of its last task
const seeing = follower(see);

let facts, wish, stops, film = [], expected = 1, playing, writing, task = 0, worker;

async function start() {
  const source = $("worker-source").textContent;
  worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  const answers = { ready, state, error: ({ text }) => trouble(text) };
  worker.onmessage = ({ data }) => answers[data.kind](data);
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
  const advice = "Take a current Chromium, Firefox or Safari.";
  $("trouble").textContent = `This browser cannot draw here (${text}). ${advice}`;
}

function ready(message) {
  facts = message.facts;
  $("count").textContent = ` of ${facts.parameters.toLocaleString("en")} weights`;
  $("T").textContent = facts.T;
  $("film").hidden = facts.shape[0] > 1; // GIFs here are grey
  const trained = facts.draw.sampler; // in no other network is it of use
  for (const name of OWN) if (name !== trained) $(name).remove();
  $("quick").hidden = !OWN.includes(trained);
  $("seen-says").textContent = SEEN[trained] ?? SEEN.mean;
  [$("level").max, $("level").value] = [facts.T, Math.ceil(facts.T / 2)];
  $("labels").hidden = $("guiding").hidden = !facts.classes;
  const labels = facts.classes ? [EACH, ...Array(facts.classes).keys(), NONE] : [];
  labels.forEach(addLabel);
  for (let k = 0; k < GRID; k++) addTile(k);
  for (let k = 0; k < BETWEEN; k++) $("between").append(document.createElement("canvas"));
  for (const canvas of document.querySelectorAll("canvas")) {
    [, canvas.height, canvas.width] = facts.shape;
  }
  readyToDraw();
  follow();
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
  draw(readAddress(location.hash, facts));
}

function draw(asked) {
  const others = ({ image, ...rest }) => JSON.stringify([Math.floor(image / GRID), rest]);
  const old = wish;
  wish = asked;
  showControls();
  drawLarge();
  drawing.now();
  ask("few", [wish.image], { counts: [1, 2, 4].filter((count) => count <= facts.T) });
  if (!old || others(wish) !== others(old)) drawGrid();
  drawBetween();
}

// The address follows a little later: browsers refuse too many changes, as of a slider that moves.
function change(part) {
  draw({ ...wish, ...part });
  clearTimeout(writing);
  writing = setTimeout(() => history.replaceState(null, "", writeAddress(wish)), 200);
}

function ask(lane, images, more = {}) {
  const { seed, sampler, steps, eta, guidance = 1 } = wish;
  const labels = labelsOf(wish, images, facts.classes), id = ++task;
  const message = { kind: "draw", lane, id, seed, images, sampler, steps, eta, guidance, labels };
  worker.postMessage({ ...message, ...more });
  latest[lane] = id;
}

// Follows what moves, such as a slider: `soon` asks at once, or when the answer that is awaited has
// come. `asks` says whether there is anything to ask.
function follower(asks) {
  let awaited = false, again = false;
  const now = () => {
    again = false;
    awaited = asks();
  };
  const soon = () => awaited ? again = true : now();
  const came = () => {
    awaited = false;
    if (again) now();
  };
  return { now, soon, came };
}

function drawLarge() {
  film = [];
  expected = wish.steps + 1;
  $("moment").max = wish.steps;
  ask("large", [wish.image]);
  play();
}

function drawGrid() {
  ask("grid", Array.from({ length: GRID }, (_, k) => firstOfGrid() + k));
}

// Without fresh noise: the way there is then the same for neighbours.
function drawBetween() {
  const images = [wish.image, wish.image + 1];
  const sampler = ["dpmpp", "shortcut"].includes(wish.sampler) ? wish.sampler : "ddim";
  const between = Array.from({ length: BETWEEN }, (_, k) => k / (BETWEEN - 1));
  const two = labelsOf(wish, images, facts.classes);
  const labels = two && between.map((weight) => two[weight < 0.5 ? 0 : 1]);
  [$("from").textContent, $("to").textContent] = images;
  ask("between", images, { sampler, eta: 0, between, labels });
}

// The large digit, with the noise of its x_T, at the time of a slider.
function see() {
  const { x } = film.at(-1), t = Number($("level").value);
  tell("level", t);
  ask("seen", [wish.image], { picture: x, strength: t / facts.T, steps: 1 });
  return true;
}

function state({ lane, id, ...found }) {
  if (id === latest[lane]) SHOW[lane](found);
}

const SHOW = { // what comes of each lane
  large({ bytes, ...moment }) {
    film.push(moment);
    if (moment.t > 0) return;
    finished(bytes);
    seeing.now();
  },
  drawn({ t, x0 }) {
    if (t === 0 || wish.steps > QUICK) paint($("drawn"), x0); // few steps: no flicker
    $("drawn").dataset.t = t;
    if (t === 0) drawing.came();
  },
  seen({ t, x, x0 }) {
    if (t === 0) return seeing.came();
    paint($("noised"), x);
    paint($("guess"), x0);
    $("guess").dataset.t = t;
  },
  few({ t, x, x0, count }) {
    if (t === facts.T) paint(canvasOf(0), x);
    paint(canvasOf(count), x0);
    canvasOf(count).dataset.t = t;
  },
  grid: ({ t, x }) => paintRow($("grid"), x, t),
  between: ({ t, x }) => paintRow($("between"), x, t),
};

function canvasOf(count) {
  return document.querySelector(`#few [data-count="${count}"]`);
}

// Says what it took: the median, since other programs interrupt now and then.
function finished(bytes) {
  const { steps, image, seed } = wish, times = steps === 1 ? "once" : `${steps} times`;
  const each = film.slice(0, steps).map(({ ms }) => ms).sort((a, b) => a - b)[steps >> 1];
  const cost = `${each.toFixed(1)} ms each, in ${Math.round(bytes / 1e6)} MB of memory`;
  $("pace").textContent = `The network was asked ${times}, ${cost}.`;
  $("status").textContent = `Image ${image} of seed ${seed} is drawn.`;
}

function paintRow(row, x, t) {
  const canvases = row.querySelectorAll("canvas"), size = x.length / canvases.length;
  canvases.forEach((canvas, k) => paint(canvas, x.subarray(k * size, (k + 1) * size)));
  row.dataset.t = t;
}

// Shows the film from its start, as far as there is one, over PLAY milliseconds at most.
function play() {
  stop();
  const began = performance.now(), last = expected - 1, each = PLAY / Math.max(QUICK, last);
  const frame = (now) => {
    const due = still.matches ? last : Math.min(last, Math.floor((now - began) / each));
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
  if (t === 0 && !performance.getEntriesByName("digit").length) performance.mark("digit");
}

// Floats in [-1, 1] as grey levels, or as colours.
function paint(canvas, x) {
  const context = canvas.getContext("2d"), { width, height } = canvas, size = width * height;
  const picture = context.createImageData(width, height), levels = toUint8(x);
  const plane = facts.shape[0] === 3 ? size : 0; // from red to green, and on to blue
  for (let k = 0; k < size; k++) {
    for (let c = 0; c < 3; c++) picture.data[4 * k + c] = levels[c * plane + k];
    picture.data[4 * k + 3] = 255;
  }
  context.putImageData(picture, 0, 0);
}

// The t of a slider, which counts otherwise.
function tell(slider, t) {
  document.querySelector(`output[for="${slider}"] .value`).textContent = t;
  $(slider).setAttribute("aria-valuetext", `t = ${t}`);
}

function showControls() {
  const within = STOPS.filter((steps) => steps <= facts.T);
  stops = [...new Set([...within, wish.steps])].sort((a, b) => a - b);
  $("steps").max = stops.length - 1;
  $("steps").value = stops.indexOf(wish.steps);
  $("steps").setAttribute("aria-valuetext", `${wish.steps} steps`);
  for (const button of document.querySelectorAll("#quick button")) {
    button.setAttribute("aria-pressed", button.value === String(wish.steps));
  }
  $("eta").value = wish.eta;
  $("anew").hidden = !WITH_ETA.includes(wish.sampler);
  $("guidance").value = wish.guidance ?? 1;
  $("guidance").disabled = wish.label === NONE;
  $("sampler").value = wish.sampler;
  $("sampler-says").textContent = SAYS[wish.sampler];
  for (const name of ["steps", "eta", "guidance"]) {
    document.querySelector(`output[for="${name}"]`).textContent = wish[name] ?? "";
  }
  for (const input of document.querySelectorAll("#label input")) {
    input.checked = input.value === String(wish.label);
  }
  document.querySelectorAll("#grid button").forEach((button, k) => {
    const image = firstOfGrid() + k;
    button.setAttribute("aria-label", `image ${image}`);
    button.setAttribute("aria-pressed", image === wish.image);
  });
  $("command").replaceChildren(...pythonCommand(wish, facts).split(/ (?=-)/).flatMap(unbroken));
}

// Words that no line parts, and a space.
function unbroken(words) {
  const span = document.createElement("span");
  span.textContent = words;
  return [span, " "];
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

$("moment").oninput = (event) => {
  stop();
  if (film.length) show(Math.min(Number(event.target.value), film.length - 1));
};
$("level").oninput = () => film.at(-1)?.t === 0 && seeing.soon();
$("fresh").onclick = () => change({ seed: 1 + Math.floor(9999 * Math.random()) });
$("again").onclick = play;
$("save").onclick = savePicture;
$("film").onclick = saveFilm;
$("sampler").onchange = (event) => change({ sampler: event.target.value });
$("steps").oninput = (event) => change({ steps: stops[event.target.value] });
for (const button of document.querySelectorAll("#quick button")) {
  button.onclick = () => change({ steps: Number(button.value) });
}
$("eta").oninput = (event) => change({ eta: Number(event.target.value) });
$("guidance").oninput = (event) => change({ guidance: Number(event.target.value) });
onhashchange = follow;
start().catch((error) => trouble(String(error)));
