"use strict";
// What is asked for, as the page's address has it: digits.html#seed=7&image=3&label=5&steps=4.

const STOPS = [1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100, 200, 500, 1000]; // of steps
const BENCHES = ["train", "break", "fork", "ideal"]; // which an address can open
const EACH = "each", NONE = "none"; // labels: image k's is k mod classes, as in Python; no label

// What to draw where the address says nothing: as the checkpoint advises.
function defaults({ draw, classes, T }) {
  const sampler = Object.hasOwn(SAMPLERS, draw.sampler) ? draw.sampler : "ddim";
  const steps = Math.min(draw.steps ?? 20, T), eta = Math.min(1, draw.eta ?? 0);
  const hold = Math.ceil(0.5 * T); // most futures show one digit, in many shapes
  const wish = { seed: 0, image: draw.image ?? 0, steps, sampler, eta, hold };
  return classes ? { ...wish, label: EACH, guidance: draw.guide ? 1 : draw.guidance ?? 1 } : wish;
}

// The wish in an address; what cannot be is left at its default.
function readAddress(hash, facts) {
  const wish = defaults(facts), asked = new URLSearchParams(hash.replace(/^#/, ""));
  const number = (name, least, most, whole = true) => {
    const text = asked.get(name), value = Number(text);
    const right = value >= least && value <= most && (!whole || Number.isInteger(value));
    if (name in wish && text?.trim() && right) wish[name] = value;
  };
  number("seed", 0, 2 ** 32 - 1);
  number("image", 0, 1e6);
  number("steps", 1, facts.T);
  number("eta", 0, 1, false);
  number("guidance", 0, 100, false);
  number("label", 0, facts.classes - 1);
  if (asked.get("label") === NONE && facts.classes) wish.label = NONE;
  number("hold", 1, facts.T);
  if (BENCHES.includes(asked.get("bench"))) wish.bench = asked.get("bench");
  const bugs = asked.get("bugs")?.split(",").filter((name) => Object.hasOwn(BUGS, name));
  if (bugs) wish.bugs = [...new Set(bugs)];
  const sampler = asked.get("sampler"), able = sampler !== "shortcut" || wish.sampler === sampler;
  if (Object.hasOwn(SAMPLERS, sampler) && able) wish.sampler = sampler;
  return wish;
}

function writeAddress(wish) {
  const { seed, image, label, steps, sampler, eta, guidance, bench, bugs, hold } = wish;
  const parts = { seed, image, label: label === EACH ? undefined : label, steps, sampler };
  if (WITH_ETA.includes(sampler)) parts.eta = eta;
  if (label !== undefined && label !== NONE) parts.guidance = guidance;
  if (bench) parts.bench = bench;
  if (bench === "break") parts.bugs = bugs?.join(",");
  if (bench === "fork") parts.hold = hold;
  const said = Object.entries(parts).filter(([, value]) => value !== undefined);
  return `#${said.map(([name, value]) => `${name}=${value}`).join("&")}`;
}

// The labels of images, or null where the network is told none.
function labelsOf({ label }, images, classes) {
  if (!classes || label === NONE) return null;
  return images.map((k) => label === EACH ? k % classes : label);
}

// The same image in Python: the last one that this draws.
function pythonCommand({ seed, image, label, steps, sampler, eta, guidance }, { name, draw }) {
  const words = [`python -m mnist_ddpm sample --checkpoint ${name}`];
  words.push(`--seed ${seed} --n ${image + 1} --sampler ${sampler} --steps ${steps}`);
  if (sampler === draw.sampler && "spacing" in draw) words.push(`--spacing ${draw.spacing}`);
  if (sampler === "ddpm") words.push("--variance posterior");
  if (WITH_ETA.includes(sampler)) words.push(`--eta ${eta}`);
  if (typeof label === "number") words.push(`--label ${label}`);
  if (label !== undefined) words.push(`--guidance ${label === NONE ? 0 : guidance}`);
  return words.join(" ");
}
