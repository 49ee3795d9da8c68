"use strict";
// A small network that learns in the page, as in the first training of the notebook: a U-Net of
// two levels for digits of 16 x 16 pixels, forward and backward, Adam, an average of the weights.

const TINY = 16; // pixels of a side
const TINY_SIZE = TINY * TINY;
const GROUPS = 8; // of each normalisation
const AVERAGE = 0.01; // what each step counts in the average
const PLANES = 12; // of the input: the picture, its time, ten labels; all else is a multiple of 8
const CONVOLUTIONS = [ // name in PyTorch, of inputs, of outputs, side, its normalisation
  ["down.0.0", PLANES, 16, 16, "down.0.1"],
  ["down.0.3", 16, 16, 16, "down.0.4"],
  ["down.1.0", 16, 32, 8, "down.1.1"],
  ["down.1.3", 32, 32, 8, "down.1.4"],
  ["middle.0", 32, 64, 4, "middle.1"],
  ["middle.3", 64, 64, 4, "middle.4"],
  ["up.0.0", 96, 32, 8, "up.0.1"],
  ["up.0.3", 32, 32, 8, "up.0.4"],
  ["up.1.0", 48, 16, 16, "up.1.1"],
  ["up.1.3", 16, 16, 16, "up.1.4"],
  ["out", 16, 1, 16, null],
];

// Room for a network's weights, their gradients, and all that lies between layers, for so many
// images at most.
class TinyUNet {
  constructor(wasm, memory, most) {
    Object.assign(this, { wasm, memory, most });
    this.layers = {};
    this.tensors = {}; // PyTorch's name -> {place, shape}: where it lies in each of the arrays
    this.size = 0;
    for (const each of CONVOLUTIONS) this.addConvolution(...each);
    const arrays = ["weights", "gradients", "means", "squares", "average"];
    for (const name of arrays) {
      this[name] = memory.take(this.size);
      this.floats(name).fill(0);
    }
    this.zeros = memory.put(new Float32Array(PLANES * GROUPS));
    this.scratch = memory.take(2 * 96);
    this.turned = memory.take(9 * 96 * 64);
    this.padded = this.room(18, 48); // of a gradient: the largest
    for (const [name, side, channels] of [
      ["input", 16, PLANES], ["fine", 16, 16], ["coarse", 8, 32], ["deep", 4, 64],
      ["fineHalf", 8, 16], ["coarseHalf", 4, 32], ["deepTwice", 8, 64], ["wideTwice", 16, 32],
      ["wide", 8, 32], ["joinedCoarse", 8, 96], ["joinedFine", 16, 48], ["last", 16, 16],
      ["a", 16, 48], ["b", 16, 48], ["skipFine", 16, 16], ["skipCoarse", 8, 32],
    ]) this[name] = this.room(side, channels);
    this.step = 0;
  }

  room(side, channels) {
    return this.memory.take(this.most * side * side * channels);
  }

  addConvolution(name, inputs, outputs, side, norm) {
    const filled = Math.ceil(outputs / 8) * 8;
    const place = (text, shape, size) => {
      this.tensors[text] = { place: this.size, shape, size };
      this.size += size;
      return this.tensors[text].place;
    };
    const layer = { name, inputs, outputs: filled, side };
    layer.weight = place(`${name}.weight`, [outputs, inputs, 3, 3], filled * inputs * 9);
    layer.bias = place(`${name}.bias`, [outputs], filled);
    if (norm) {
      layer.gamma = place(`${norm}.weight`, [outputs], outputs);
      layer.beta = place(`${norm}.bias`, [outputs], outputs);
      layer.stats = this.memory.take(this.most * 2 * outputs);
      layer.after = this.room(side, outputs);
    }
    layer.padded = this.room(side + 2, inputs);
    layer.before = this.room(side, filled);
    this.layers[name] = layer;
  }

  floats(array) {
    return this.memory.floats(this[array], this.size);
  }

  // {name: floats}, as in PyTorch, into the weights and their average.
  setWeights(values) {
    for (const [name, { place, shape }] of Object.entries(this.tensors)) {
      const laid = shape.length > 1 ? packed(shape, values[name]) : values[name];
      for (const array of ["weights", "average"]) this.floats(array).set(laid, place);
    }
  }

  // The other way: of any of the arrays.
  read(array) {
    return Object.fromEntries(Object.entries(this.tensors).map(([name, { place, shape, size }]) => {
      const laid = this.floats(array).slice(place, place + size);
      return [name, shape.length > 1 ? unpackedWeights(shape, laid) : laid.slice(0, shape[0])];
    }));
  }

  // As PyTorch begins, from random numbers 0 … 1.
  setRandomWeights(random) {
    const values = {};
    for (const [name, { shape }] of Object.entries(this.tensors)) {
      const inputs = this.layers[name.replace(/\.\w+$/, "")]?.inputs;
      const bound = inputs && 1 / Math.sqrt(9 * inputs);
      const one = name.endsWith("weight") ? 1 : 0;
      values[name] = Float32Array.from(
        { length: shape.reduce((a, b) => a * b) }, () => bound ? bound * (2 * random() - 1) : one,
      );
    }
    this.setWeights(values);
  }

  // The output for n images of 12 planes (floats), in `array`'s weights: n x 256 floats.
  forward(planes, array = "weights") {
    const { wasm, memory } = this, n = planes.length / TINY_SIZE / PLANES;
    Object.assign(this, { n, used: this[array] });
    memory.floats(this.input, planes.length).set(planes);
    this.fineOut = this.pair("down.0", this.input);
    wasm.pool(this.fineOut, this.fineHalf, 0.25, n * 8, 8, 16);
    this.coarseOut = this.pair("down.1", this.fineHalf);
    wasm.pool(this.coarseOut, this.coarseHalf, 0.25, n * 4, 4, 32);
    wasm.upsample(this.pair("middle", this.coarseHalf), this.deepTwice, n * 4, 4, 64);
    wasm.concatenate(this.deepTwice, this.coarseOut, this.joinedCoarse, n * 64, 64, 32);
    wasm.upsample(this.pair("up.0", this.joinedCoarse), this.wideTwice, n * 8, 8, 32);
    wasm.concatenate(this.wideTwice, this.fineOut, this.joinedFine, n * 256, 32, 16);
    const y = this.convolution(this.layers.out, this.pair("up.1", this.joinedFine));
    const all = memory.floats(y, n * TINY_SIZE * 8), result = new Float32Array(n * TINY_SIZE);
    for (let k = 0; k < result.length; k++) result[k] = all[8 * k];
    return result;
  }

  // Two convolutions, each with its normalisation.
  pair(name, x) {
    return this.block(this.layers[`${name}.3`], this.block(this.layers[`${name}.0`], x));
  }

  convolution(layer, x) {
    const { inputs, outputs, side, padded, before, weight, bias } = layer, { wasm, n, used } = this;
    wasm.pad(x, padded, n, side, side, inputs, 1, 1);
    this.product(padded, used + 4 * weight, used + 4 * bias, before, side, inputs, outputs);
    return before;
  }

  product(padded, weight, bias, to, side, inputs, outputs) {
    const row = (side + 2) * inputs;
    this.wasm.product(padded, weight, bias, to, this.n, side, side, (side + 2) * row, row, inputs,
      row, 3, 3 * inputs, outputs);
  }

  block(layer, x) {
    const { gamma, beta, after, stats, side, outputs } = layer, { used } = this;
    this.wasm.norm_silu(this.convolution(layer, x), used + 4 * gamma, used + 4 * beta, after, stats,
      this.n, side * side, outputs, GROUPS);
    return after;
  }

  // From the gradient of forward's result, n x 256 floats, that of each weight.
  backward(gradient) {
    const { wasm, memory, n, a, b } = this;
    this.floats("gradients").fill(0);
    const wide = memory.floats(a, n * TINY_SIZE * 8).fill(0);
    for (let k = 0; k < gradient.length; k++) wide[8 * k] = gradient[k];
    this.convolutionBack(this.layers.out, a, b);
    this.pairBack("up.1", b, a);
    wasm.separate(a, b, this.skipFine, n * 256, 32, 16);
    wasm.pool(b, a, 1, n * 8, 8, 32);
    this.pairBack("up.0", a, b);
    wasm.separate(b, a, this.skipCoarse, n * 64, 64, 32);
    wasm.pool(a, b, 1, n * 4, 4, 64);
    this.pairBack("middle", b, a);
    this.joinBack(a, b, this.skipCoarse, 4, 32);
    this.pairBack("down.1", b, a);
    this.joinBack(a, b, this.skipFine, 8, 16);
    this.pairBack("down.0", b, null);
  }

  // The gradient before halving, to b, from that behind it, in a, and that of the skip.
  joinBack(a, b, skip, side, channels) {
    const { wasm, n } = this, size = n * 4 * side * side * channels;
    wasm.upsample(a, b, n * side, side, channels);
    wasm.add_times(skip, b, 0.25, size);
    this.memory.floats(b, size).set(this.memory.floats(skip, size));
  }

  // From `at` to `to`; both are used in between.
  pairBack(name, at, to) {
    const first = this.layers[`${name}.0`], second = this.layers[`${name}.3`];
    this.normBack(second, at);
    this.convolutionBack(second, at, at);
    this.normBack(first, at);
    this.convolutionBack(first, at, to);
  }

  normBack(layer, at) {
    const { gamma, beta, before, stats, side, outputs } = layer, { weights, gradients } = this;
    this.wasm.norm_silu_gradient(before, weights + 4 * gamma, weights + 4 * beta, stats, at, at,
      gradients + 4 * gamma, gradients + 4 * beta, this.scratch, this.n, side * side, outputs,
      GROUPS);
  }

  // Of weight and bias, and to `to`, unless it is null, that of the input.
  convolutionBack(layer, at, to) {
    const { weight, bias, inputs, outputs, side, padded } = layer;
    const { wasm, n, weights, gradients, turned } = this;
    wasm.weight_gradient(padded, at, gradients + 4 * weight, n, side, side, inputs, outputs);
    wasm.add_sums(at, gradients + 4 * bias, n, side * side, outputs);
    if (to === null) return;
    wasm.turn(weights + 4 * weight, turned, inputs, outputs);
    wasm.pad(at, this.padded, n, side, side, outputs, 1, 1);
    this.product(this.padded, turned, this.zeros, to, side, outputs, inputs);
  }

  // One step of Adam; the first one's weights begin the average.
  update(rate) {
    const step = ++this.step, { wasm, weights, gradients, means, squares, average, size } = this;
    const root = Math.sqrt(1 - 0.999 ** step), share = step === 1 ? 1 : AVERAGE;
    wasm.adam(weights, gradients, means, squares, average, rate / (1 - 0.9 ** step), root, share,
      size);
  }
}

function unpackedWeights([outputs, inputs], laid) {
  const values = new Float32Array(outputs * inputs * 9);
  for (let k = 0; k < values.length; k++) {
    const tap = k % 9, c = Math.floor(k / 9) % inputs, out = Math.floor(k / 9 / inputs);
    values[k] = laid[(((out >> 3) * 9 + tap) * inputs + c) * 8 + (out & 7)];
  }
  return values;
}

// What samplers.js reads of a schedule: linear beta, from 1e-4 to beta_T.
function linearSchedule(T, last, prediction) {
  const signal = new Float64Array(T + 1).fill(1);
  for (let t = 1, power = 1; t <= T; t++) {
    power *= 1 - (1e-4 + (last - 1e-4) * (T > 1 ? (t - 1) / (T - 1) : 0));
    signal[t] = Math.sqrt(power);
  }
  const noise = signal.map((a) => Math.sqrt(1 - a * a)), isNoise = prediction === "noise";
  return new Schedule({ tensors: {
    "schedule.signal": { values: signal },
    "schedule.noise": { values: noise },
    "schedule.input": { values: signal.map(() => 1) },
    "schedule.from_x": { values: signal.map((a) => isNoise ? 1 / a : 0) },
    "schedule.from_value": { values: signal.map((a, t) => isNoise ? -noise[t] / a : 1) },
  } });
}

// A training: {digits, labels} of which it learns, and {rate, T, betaT, prediction, batch,
// isLabelled}.
class Trainer {
  constructor(wasm, memory, { digits, labels }, settings) {
    Object.assign(this, { wasm, digits, labels, settings });
    const { T, betaT, prediction, batch } = settings;
    this.schedule = linearSchedule(T, betaT, prediction);
    this.unet = new TinyUNet(wasm, memory, Math.max(batch, SHOWN));
  }

  planes(x, times, labels) {
    const n = times.length, result = new Float32Array(n * TINY_SIZE * PLANES);
    for (let k = 0, to = 0; k < n * TINY_SIZE; k++, to += PLANES) {
      const image = Math.floor(k / TINY_SIZE);
      result[to] = x[k];
      result[to + 1] = times[image] / this.settings.T;
      if (this.settings.isLabelled) result[to + 2 + labels[image]] = 1;
    }
    return result;
  }

  // One step with the digits of these numbers, at these times, with this noise: each one's loss.
  learn(chosen, times, noise) {
    const { digits, schedule, unet, settings } = this, size = chosen.length * TINY_SIZE;
    const x0 = new Float32Array(size), xt = new Float32Array(size);
    chosen.forEach((digit, k) => {
      x0.set(digits.subarray(digit * TINY_SIZE, (digit + 1) * TINY_SIZE), k * TINY_SIZE);
    });
    for (let k = 0; k < size; k++) {
      const t = times[Math.floor(k / TINY_SIZE)];
      xt[k] = schedule.signal[t] * x0[k] + schedule.noise[t] * noise[k];
    }
    const labels = chosen.map((digit) => this.labels[digit]);
    const output = unet.forward(this.planes(xt, times, labels));
    const target = settings.prediction === "noise" ? noise : x0;
    const losses = new Float64Array(chosen.length), gradient = new Float32Array(size);
    for (let k = 0; k < size; k++) {
      const difference = output[k] - target[k];
      gradient[k] = 2 * difference / size;
      losses[Math.floor(k / TINY_SIZE)] += difference ** 2 / TINY_SIZE;
    }
    unet.backward(gradient);
    unet.update(settings.rate);
    return losses;
  }

  // What the average of the weights draws from these noises, in few steps of ancestral sampling.
  draw(noises, draw, labels) {
    const network = {
      shape: [1, TINY, TINY],
      classes: 0,
      forward: (x, t) => {
        return this.unet.forward(this.planes(x, labels.map(() => t), labels), "average");
      },
    };
    const { T } = this.settings, times = timesteps(T, Math.min(DRAWN_IN, T));
    let last;
    const walk = ddpm(denoiser(network, this.schedule), this.schedule, times, noises, draw);
    for (const state of walk) last = state.x;
    return last;
  }
}

const SHOWN = 16, DRAWN_IN = 25; // digits, steps

// Two pixels a byte, 16 grey levels, then the labels, as many bytes as there are digits.
function readTinyDigits(buffer) {
  const bytes = new Uint8Array(buffer), each = TINY_SIZE / 2;
  const count = bytes.length / (each + 1), digits = new Float32Array(count * TINY_SIZE);
  for (let k = 0; k < digits.length; k++) {
    digits[k] = (k % 2 ? bytes[k >> 1] & 15 : bytes[k >> 1] >> 4) / 7.5 - 1;
  }
  return { digits, labels: bytes.slice(count * each) };
}

// The label that most of the five nearest training digits have, for each image.
function judged(images, { digits, labels }) {
  return Array.from({ length: images.length / TINY_SIZE }, (_, k) => {
    const image = images.subarray(k * TINY_SIZE, (k + 1) * TINY_SIZE);
    const squares = squaredDistances(image, digits, 1);
    const votes = new Array(10).fill(0);
    for (let place = 0; place < 5; place++) {
      const nearest = squares.reduce((best, square, at) => square < squares[best] ? at : best, 0);
      votes[labels[nearest]] += 1 - place / 100; // the nearer decides a tie
      squares[nearest] = Infinity;
    }
    return votes.indexOf(Math.max(...votes));
  });
}

// Random numbers 0 … 1 of a seed (mulberry32).
function randomOf(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let x = Math.imul(state ^ (state >>> 15), 1 | state);
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}
