"use strict";
// The U-Net, layer by layer as in the notebook (class UNet), on the kernels of kernels.c.
//
// What lies between layers is {at, height, width, channels}: its address, positions x channels,
// for each of n images. Which layers there are, and how wide, is read off the weights' names.

class Network {
  constructor(wasm, memory, { metadata, tensors }) {
    Object.assign(this, { wasm, memory });
    this.patch = Number(metadata.patch_size);
    this.shape = JSON.parse(metadata.shape); // channels, height, width
    this.groups = Number(metadata.norm_groups); // 0: by the notebook's rule
    const labels = tensors["label.weight"];
    this.embedded = labels?.values; // a row for each label, the last for "unknown"
    this.classes = labels ? labels.shape[0] - 1 : 0;
    this.layers = {};
    for (const [name, { shape, values }] of Object.entries(tensors)) {
      if (!name.endsWith(".weight") || name === "label.weight") continue;
      const layer = name.slice(0, -".weight".length);
      const bias = tensors[`${layer}.bias`].values;
      if (shape.length === 1) {
        this.layers[layer] = { gamma: memory.put(values), beta: memory.put(bias) };
      } else {
        const [weight, filled] = [memory.put(packed(shape, values)), memory.put(inBlocks(bias))];
        this.layers[layer] = { c_out: shape[0], side: shape[2] ?? 1, weight, bias: filled };
      }
    }
    this.scratch = memory.next; // above the weights, each evaluation begins anew
  }

  has(name) {
    return name in this.layers;
  }

  // x_t (n images), one time t, labels (n), `classes` for "unknown", and where a step goes from t,
  // for a network that is told (mnist_ddpm/methods/shortcuts.py): the network's raw output.
  forward(images, t, labels = null, s = t) {
    const { memory, wasm, patch } = this, [channels, height, width] = this.shape;
    memory.next = this.scratch;
    this.n = images.length / (channels * height * width);
    const time = this.timeVectors(t, labels, s);
    let x = this.room(height / patch, width / patch, channels * patch * patch);
    wasm.shuffle(memory.put(images), x.at, this.n, channels, height, width, patch, 0);
    x = this.convolution("conv_in", x);
    const results = [x];
    for (let k = 0; this.has(`down.${k}.conv`) || this.has(`down.${k}.residual.conv1`); k++) {
      x = this.has(`down.${k}.conv`)
        ? this.convolution(`down.${k}.conv`, x, { stride: 2, before: 0 })
        : this.block(`down.${k}`, x, time);
      results.push(x);
    }
    for (const k of [0, 1]) x = this.block(`middle.${k}`, x, time);
    for (let k = 0; this.has(`up.${k}.conv`) || this.has(`up.${k}.residual.conv1`); k++) {
      x = this.has(`up.${k}.conv`)
        ? this.convolution(`up.${k}.conv`, this.upsampled(x))
        : this.block(`up.${k}`, this.joined(x, results.pop()), time);
    }
    x = this.convolution("conv_out", this.norm("norm_out", x, true));
    const outputs = x.channels / (patch * patch), size = this.n * outputs * height * width;
    const y = memory.take(size);
    wasm.shuffle(x.at, y, this.n, outputs, height, width, patch, 1);
    return memory.floats(y, size).slice();
  }

  room(height, width, channels) {
    return { at: this.memory.take(this.n * height * width * channels), height, width, channels };
  }

  // One vector for each image, of its time and its label, as each block takes it: after a SiLU.
  timeVectors(t, labels, s) {
    const { memory, classes, embedded } = this;
    let one = this.embedding("time", t);
    if (this.has("span.0")) one = sum(1, one, 1, this.embedding("span", 1 + t - s));
    const channels = one.length, all = new Float32Array(this.n * channels);
    for (let k = 0; k < this.n; k++) {
      const row = (labels?.[k] ?? classes) * channels;
      for (let c = 0; c < channels; c++) {
        all[k * channels + c] = one[c] + (classes ? embedded[row + c] : 0);
      }
    }
    return this.silu({ at: memory.put(all), height: 1, width: this.n, channels });
  }

  // The two layers of that name, of a time's sines and cosines.
  embedding(name, t) {
    const { memory } = this, { c_out } = this.layers.conv_in;
    const sines = { at: memory.put(timeEmbedding(t, c_out)), height: 1, width: 1, channels: c_out };
    const h = this.silu(this.linear(`${name}.0`, sines, 1));
    const { at, channels } = this.linear(`${name}.2`, h, 1);
    return memory.floats(at, channels).slice();
  }

  // A residual block, then self-attention where there is one.
  block(name, x, time) {
    const { wasm } = this, residual = `${name}.residual`;
    const h = this.convolution(`${residual}.conv1`, this.norm(`${residual}.norm1`, x, true));
    const vectors = this.linear(`${residual}.time`, time, this.n);
    wasm.add_to_channels(h.at, vectors.at, this.n, h.height * h.width, h.channels);
    const y = this.convolution(`${residual}.conv2`, this.norm(`${residual}.norm2`, h, true));
    const skip = this.has(`${residual}.skip`) ? this.convolution(`${residual}.skip`, x) : x;
    wasm.add(y.at, skip.at, this.n * y.height * y.width * y.channels);
    return this.has(`${name}.attention.qkv`) ? this.attention(`${name}.attention`, y) : y;
  }

  attention(name, x) {
    const positions = x.height * x.width, { wasm, memory } = this;
    const qkv = this.convolution(`${name}.qkv`, this.norm(`${name}.norm`, x, false));
    const h = this.room(x.height, x.width, x.channels);
    wasm.attend(qkv.at, h.at, memory.take(positions), this.n, positions, x.channels);
    const y = this.convolution(`${name}.out`, h);
    wasm.add(y.at, x.at, this.n * positions * x.channels);
    return y;
  }

  // 3 x 3 with a border of zeros (with stride 2 below and right alone), or 1 x 1.
  convolution(name, x, { stride = 1, before = 1 } = {}) {
    const { c_out, side, weight, bias } = this.layers[name], { wasm, memory, n } = this;
    let { at, height, width, channels } = x;
    if (side === 3) {
      const wide = width + before + 1, high = height + before + 1;
      const padded = memory.take(n * high * wide * channels);
      wasm.pad(at, padded, n, height, width, channels, before, 1);
      [at, height, width] = [padded, high, wide];
    }
    const y = this.room(x.height / stride, x.width / stride, c_out), row = width * channels;
    wasm.product(at, weight, bias, y.at, n, y.height, y.width, height * row, stride * row,
      stride * channels, row, side, side * channels, c_out);
    return y;
  }

  // On `count` vectors that lie one after another.
  linear(name, x, count) {
    const { c_out, weight, bias } = this.layers[name], y = this.memory.take(count * c_out);
    const c = x.channels;
    this.wasm.product(x.at, weight, bias, y, 1, 1, count, 0, 0, c, 0, 1, c, c_out);
    return { at: y, height: 1, width: count, channels: c_out };
  }

  norm(name, x, thenSilu) {
    const { gamma, beta } = this.layers[name], { channels } = x;
    const y = this.room(x.height, x.width, channels), scratch = this.memory.take(2 * channels);
    const groups = this.groups || gcd(gcd(32, channels), Math.max(1, channels >> 2));
    const positions = x.height * x.width, last = thenSilu ? 1 : 0;
    this.wasm.group_norm(x.at, gamma, beta, y.at, scratch, this.n, positions, channels, groups,
      last);
    return y;
  }

  silu(x) {
    const size = x.height * x.width * x.channels, y = this.memory.take(size);
    this.wasm.silu(x.at, y, size);
    return { ...x, at: y };
  }

  upsampled(x) {
    const y = this.room(2 * x.height, 2 * x.width, x.channels);
    this.wasm.upsample(x.at, y.at, this.n * x.height, x.width, x.channels);
    return y;
  }

  joined(a, b) {
    const y = this.room(a.height, a.width, a.channels + b.channels);
    this.wasm.concatenate(a.at, b.at, y.at, this.n * a.height * a.width, a.channels, b.channels);
    return y;
  }
}

// Sines and cosines of t - 1, in float32 where the notebook's time_embedding is.
function timeEmbedding(t, dim) {
  const half = Math.floor(dim / 2), result = new Float32Array(dim), { fround } = Math;
  for (let k = 0; k < half; k++) {
    const exponent = fround(fround(fround(-Math.log(10000)) * k) / Math.max(1, half - 1));
    const angle = fround((t - 1) * fround(Math.exp(exponent)));
    result[k] = Math.sin(angle);
    result[half + k] = Math.cos(angle);
  }
  return result;
}

// (c_out, c_in, side, side) as the kernel reads it: blocks of 8 outputs, each rows x columns x c_in
// x 8.
function packed([c_out, c_in, side = 1], values) {
  const taps = side * side;
  const result = new Float32Array(Math.ceil(c_out / 8) * taps * c_in * 8);
  let from = 0;
  for (let out = 0; out < c_out; out++) {
    const block = (out >> 3) * taps * c_in * 8 + (out & 7);
    for (let c = 0; c < c_in; c++) {
      for (let tap = 0; tap < taps; tap++) result[block + (tap * c_in + c) * 8] = values[from++];
    }
  }
  return result;
}

// The same with zeros behind, up to a multiple of 8.
function inBlocks(bias) {
  const result = new Float32Array(Math.ceil(bias.length / 8) * 8);
  result.set(bias);
  return result;
}

function gcd(a, b) {
  return b ? gcd(b, a % b) : a;
}
