"use strict";
// What is seen and touched. The worker computes; here it is asked, and its answers are shown.

const GRID = 16, BETWEEN = 8; // images
const SAYS = {
  ddpm: "The original way: each step removes some noise, and adds a little fresh noise.",
  ddim: "Removes noise only, as long as η is 0.",
  dpmpp: "As DDIM, and looks back one step: good in few steps.",
  consistency: "A consistency model guesses the finished digit from any noise at once. The sampler then adds some noise to the guess, and guesses again.",
  shortcut: "As DDIM, but the network knows how far each step goes: 1, 2 or 4 are enough.",
};
const SEEN = {
  consistency: "Trained for few steps, the network decides for one digit. Most networks would show a blur.",
  mean: "The more noise, the more digits it could be: the network shows their mean, a blur.",
};
const FILM = { sampler: "ddpm", steps: SLOW }; // what diffusion looks like
const facts = JSON.parse($("facts").textContent);
const latest = {}; // lane -> the number of its last task
const awaited = {}; // lane -> {done, count}: states that have come, of how many
const seeing = follower(see);

let wish = readAddress(location.hash, facts), stops, writing, task = 0, isReady = false;

// All that needs no network, so that nothing moves when it comes, and strokes count from the start.
function setUp() {
  $("T").textContent = facts.T;
  $("film").hidden = facts.shape[0] > 1; // GIFs here are grey
  $("bench-ideal").hidden = !facts.digits; // nor are there digits for other shapes
  const recommended = facts.draw.sampler;
  for (const name of OWN) if (name !== recommended) $(name).remove(); // of use in no other network
  $("quick").hidden = !OWN.includes(recommended);
  $("seen-says").textContent = SEEN[recommended] ?? SEEN.mean;
  const { astray } = facts.draw;
  $("astray").textContent = astray ? `As the page begins, one in ${astray} comes out as another.` : "";
  [$("level").max, $("level").value] = [facts.T, Math.ceil(facts.T / 2)];
  tell("level", $("level").value);
  $("labels").hidden = $("guiding").hidden = !facts.classes;
  const labels = facts.classes ? [EACH, ...Array(facts.classes).keys(), NONE] : [];
  labels.forEach(addLabel);
  for (let k = 0; k < GRID; k++) addTile(k);
  for (let k = 0; k < BETWEEN; k++) $("between").append(document.createElement("canvas"));
  for (const canvas of document.querySelectorAll("canvas")) {
    [, canvas.height, canvas.width] = facts.shape;
  }
  showControls();
  readyToDraw();
  openBench();
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
  button.onclick = () => visit({ image: firstOfGrid() + k });
  $("grid").append(button);
}

function firstOfGrid() {
  return Math.floor(wish.image / GRID) * GRID;
}

const ANSWERS = { // by kind
  ready() {
    isReady = true;
    drawAll();
  },
  state({ lane, id, ...found }) {
    if (id !== latest[lane]) return;
    $("trouble").hidden = true;
    showProgress(lane, ++awaited[lane].done, awaited[lane].count);
    SHOW[lane](found);
  },
  error(problem) {
    const { lane, id } = problem;
    if (lane && id !== latest[lane]) return;
    failed(problem);
    showProgress(lane, 1, 1);
    if (lane === "drawn") drawing.came();
    if (lane === "seen") seeing.came();
  },
};

// Draws what the address asks for.
function follow() {
  clearTimeout(writing);
  draw(readAddress(location.hash, facts));
}

function draw(asked) {
  const others = ({ image, bench, bugs, hold, ...rest }) => JSON.stringify([Math.floor(image / GRID), rest]);
  const isOtherGrid = others(wish) !== others(asked);
  wish = asked;
  showControls();
  if (isReady) drawAll(isOtherGrid);
}

function drawAll(grid = true) {
  drawLarge();
  drawing.now();
  ask("few", [wish.image], { counts: [1, 2, 4].filter((count) => count <= facts.T) });
  if (grid) drawGrid();
  drawBetween();
  drawBenches();
}

// The address follows a little later: browsers refuse too many changes, as of a slider that moves.
function change(part) {
  draw({ ...wish, ...part });
  writeSoon();
}

function writeSoon() {
  clearTimeout(writing);
  writing = setTimeout(write, 200);
}

// Another digit, from which the browser's Back leads back.
function visit(part) {
  clearTimeout(writing);
  write();
  draw({ ...wish, ...part });
  write("pushState");
}

function write(how = "replaceState") {
  try {
    history[how](null, "", writeAddress(wish));
  } catch { // too many changes: the next one writes it
  }
}

function ask(lane, images, more = {}) {
  const { seed, sampler, steps, eta, guidance = 1 } = wish;
  const labels = labelsOf(wish, images, facts.classes), id = ++task;
  const message = { kind: "draw", lane, id, seed, images, sampler, steps, eta, guidance, labels };
  worker.postMessage({ ...message, ...more });
  latest[lane] = id;
  awaited[lane] = { done: 0, count: (more.steps ?? steps) + 1 };
  showProgress(lane, 0, awaited[lane].count);
}

// How much of a lane's task is done: to be seen where it takes long.
function showProgress(lane, done, count) {
  const bar = document.querySelector(`progress[data-lane="${lane}"]`);
  if (!bar) return;
  [bar.max, bar.value] = [count, done];
  bar.classList.toggle("busy", done < count);
}

// Follows what moves, such as a slider: `soon` asks at once, or when the answer that is awaited has
// come. `asks` says whether there is anything to ask.
function follower(asks) {
  let isAwaited = false, isStale = false;
  const now = () => {
    isStale = false;
    isAwaited = asks();
  };
  const soon = () => isAwaited ? isStale = true : now();
  const came = () => {
    isAwaited = false;
    if (isStale) now();
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

// Without fresh noise and with one label, so that neighbours differ little.
function drawBetween() {
  const images = [wish.image, wish.image + 1];
  const sampler = ["dpmpp", "shortcut"].includes(wish.sampler) ? wish.sampler : "ddim";
  const between = Array.from({ length: BETWEEN }, (_, k) => k / (BETWEEN - 1));
  const own = labelsOf(wish, images, facts.classes), labels = own && between.map(() => own[0]);
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

// Whether a state is to be painted: where motion is unwelcome, the last alone.
function isShown(t) {
  return t === 0 || !still.matches;
}

const SHOW = { // what comes of each lane
  large({ bytes, ...moment }) {
    film.push(moment);
    if (moment.t > 0 && wish.steps >= SLOW) {
      $("pace").textContent = `Step ${film.length} of ${wish.steps} …`;
    }
    if (moment.t > 0) return;
    finished(bytes);
    seeing.now();
  },
  drawn({ t, x0 }) {
    if (t === 0 || (wish.steps > QUICK && isShown(t))) paint($("drawn"), x0); // few: no flicker
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
    if (isShown(t)) paint(canvasOf(count), x0);
    canvasOf(count).dataset.t = t;
  },
  grid: ({ t, x }) => paintRow($("grid"), x, t),
  between: ({ t, x }) => paintRow($("between"), x, t),
  ...BUG_BENCH.show, ...FORK_BENCH.show, ...IDEAL_BENCH.show,
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
  row.dataset.t = t;
  if (!isShown(t)) return;
  canvases.forEach((canvas, k) => paint(canvas, x.subarray(k * size, (k + 1) * size)));
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
    const { steps, sampler } = quick(button);
    const isChosen = steps === wish.steps && sampler === wish.sampler;
    button.setAttribute("aria-pressed", isChosen);
    button.hidden = steps > facts.T;
  }
  $("eta").value = wish.eta;
  $("anew").hidden = !WITH_ETA.includes(wish.sampler);
  $("guidance").value = wish.guidance ?? 1;
  $("guidance").disabled = wish.label === NONE;
  for (const name of ["sampler", "seed", "image"]) $(name).value = wish[name];
  $("sampler-says").textContent = `${SAYS[wish.sampler]} ${madeFor()}`;
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

// Which sampler suits this network.
function madeFor() {
  const { sampler } = facts.draw, option = document.querySelector(`#sampler [value="${sampler}"]`);
  if (!option) return "";
  const name = wish.sampler === sampler ? "it" : option.text;
  if (!OWN.includes(sampler)) return `Best here: ${name}.`;
  const made = `This network was made for ${name}`;
  return wish.steps > QUICK ? `${made} and few steps: in many, some digits fail.` : `${made}.`;
}

// What a button of few steps, or of the slow film, asks for.
function quick({ value }) {
  return Number(value) === SLOW ? FILM : { sampler: facts.draw.sampler, steps: Number(value) };
}

// Words that no line parts, and a space.
function unbroken(words) {
  const span = document.createElement("span");
  span.textContent = words;
  return [span, " "];
}

// Draws what a field's number asks for; where that is none, the old number returns.
function typed({ target: { id, validity, valueAsNumber } }) {
  if (validity.valid) visit({ [id]: valueAsNumber });
  else showControls();
}

$("moment").oninput = (event) => {
  stop();
  if (film.length) show(Math.min(Number(event.target.value), film.length - 1));
};
$("level").oninput = () => film.at(-1)?.t === 0 && seeing.soon();
$("fresh").onclick = () => {
  const [seed, image] = [9999, GRID].map((count) => Math.floor(count * Math.random()));
  visit({ seed: 1 + seed, image });
};
$("seed").onchange = $("image").onchange = typed;
$("controls").onsubmit = (event) => event.preventDefault();
$("again").onclick = play;
$("save").onclick = savePicture;
$("film").onclick = saveFilm;
$("copy-address").onclick = () => {
  write();
  copy(location.href, "address");
};
$("copy-command").onclick = () => copy($("command").innerText.trim(), "command");
$("sampler").onchange = (event) => change({ sampler: event.target.value });
$("steps").oninput = (event) => change({ steps: stops[event.target.value] });
for (const button of document.querySelectorAll("#quick button")) {
  button.onclick = () => change(quick(button));
}
$("eta").oninput = (event) => change({ eta: Number(event.target.value) });
$("guidance").oninput = (event) => change({ guidance: Number(event.target.value) });
onhashchange = follow;
setUp();
addEventListener("DOMContentLoaded", () => start().catch(failed));
