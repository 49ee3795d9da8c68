// Stands after the page's own scripts in one program, which test_playground.py runs in node:
//   node - JOB FOLDER    reads FOLDER/kernels.wasm and other files, writes FOLDER/out.json
const { readFileSync, writeFileSync } = require("fs");
const [job, folder] = process.argv.slice(2);

function read(name) {
  const bytes = readFileSync(`${folder}/${name}`);
  return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
}

const asked = () => JSON.parse(readFileSync(`${folder}/asked.json`, "utf8"));

const JOBS = {
  // [seed, images, size, times] to the numbers that so many draws of one source bring
  async noise() {
    const kernels = await loadKernels(read("kernels.wasm"));
    const noise = new Noise(kernels, new Memory(kernels));
    return asked().map(([seed, images, size, times]) => {
      const draw = noise.source(seed, images, size);
      return Array.from({ length: times }, () => [...draw()]);
    });
  },

  // two images x (2, height, width, channels), through each layer alone
  async kernels() {
    const kernels = await loadKernels(read("kernels.wasm")), memory = new Memory(kernels);
    const file = readSafetensors(read("weights.safetensors"));
    const net = new Network(kernels, memory, file);
    const { shape: [n, height, width, channels], values } = file.tensors.x;
    const x = { at: memory.put(values), height, width, channels }, results = {};
    net.n = n;
    const keep = (name, y) => {
      results[name] = [...memory.floats(y.at, n * y.height * y.width * y.channels)];
    };
    keep("conv3x3", net.convolution("three", x));
    keep("downsample", net.convolution("three", x, { stride: 2, before: 0 }));
    keep("conv1x1", net.convolution("one", x));
    keep("upsample", net.upsampled(x));
    keep("concatenate", net.joined(x, net.convolution("one", x)));
    keep("group norm", net.norm("norm", x, false));
    keep("group norm, SiLU", net.norm("norm", x, true));
    keep("attention", net.attention("attention", x));
    const vector = { at: x.at, height: 1, width: 1, channels }; // the first position of each image
    results.linear = [...memory.floats(net.linear("linear", vector, 3).at, 3 * 13)];
    results.SiLU = [...memory.floats(net.silu({ ...x, height: n * height }).at, values.length)];
    results["time embedding"] = asked().flatMap((t) => [...timeEmbedding(t, 15)]);
    return results;
  },

  // the network's output for files x, at the times and with the labels asked for
  async network() {
    const kernels = await loadKernels(read("kernels.wasm")), memory = new Memory(kernels);
    const file = readSafetensors(read("weights.safetensors"));
    const net = new Network(kernels, memory, file);
    const images = new Float32Array(read("x"));
    return asked().map(({ t, labels }) => [...net.forward(images, t, labels)]);
  },

  // what the worker answers to the page's own messages, for addresses and more: the last image
  async worker() {
    const last = [], facts = JSON.parse(readFileSync(`${folder}/facts.json`, "utf8"));
    let ready, done;
    globalThis.postMessage = (answer) => {
      if (answer.kind === "error") throw Error(answer.text);
      if (answer.kind === "ready") ready = true;
      else if (answer.t === 0) done([...toUint8(answer.x)]);
    };
    const tell = (data) => self.onmessage({ data });
    tell({ kind: "load", wasm: read("kernels.wasm"), weights: read("weights.safetensors") });
    while (!ready) await new Promise(setImmediate);
    for (const { address, more = {} } of asked()) {
      const wish = readAddress(address, facts), images = [wish.image];
      for (const name of ["picture", "mask"].filter((name) => more[name])) {
        more[name] = Float32Array.from(more[name]);
      }
      const labels = labelsOf(wish, images, facts.classes);
      last.push(await new Promise((resolve) => {
        done = resolve;
        tell({ kind: "draw", lane: "large", id: last.length, ...wish, images, labels, ...more });
      }));
    }
    return last;
  },

  // how the worker reads the stored digits, and what their ideal denoiser makes of files x at the
  // times asked for; and each image's nearest digit
  async ideal() {
    const file = readSafetensors(read("weights.safetensors")), schedule = new Schedule(file);
    const [channels, height, width] = JSON.parse(file.metadata.shape);
    const points = readDigits(read("digits"), height, width), size = channels * height * width;
    const images = new Float32Array(read("x")), denoise = idealDenoiser(schedule, points, size);
    const nearest = nearestPoints(images, points, size);
    return {
      points: [...toUint8(points)],
      states: asked().map((t) => ({ x0: [...denoise(images, t).x0], eps: [...denoise(images, t).eps] })),
      nearest: { images: [...toUint8(nearest.images)], distances: nearest.distances },
    };
  },

  // for each address what the page reads, and writes
  async addresses() {
    const facts = JSON.parse(readFileSync(`${folder}/facts.json`, "utf8"));
    return asked().map((address) => {
      const { bench, bugs, hold } = readAddress(address, facts);
      return { bench, bugs, hold, written: writeAddress(readAddress(address, facts)) };
    });
  },

  // the times of the states that arrive of a task that is cancelled after the second, and of one
  // after it
  async cancelled() {
    const times = { futures: [], ideal: [] };
    const tell = (data) => self.onmessage({ data });
    globalThis.postMessage = ({ kind, lane, t }) => {
      if (kind !== "state") return;
      times[lane].push(t);
      if (times.futures.length === 2) tell({ kind: "cancel", lane: "futures" });
    };
    await tell({ kind: "load", wasm: read("kernels.wasm"), weights: read("weights.safetensors") });
    await tell({ kind: "digits", digits: read("digits") });
    const task = { kind: "draw", seed: 0, images: [0], steps: 5, sampler: "ddpm", labels: null };
    await tell({ ...task, lane: "futures", id: 1 });
    await tell({ ...task, lane: "ideal", id: 2, isIdeal: true, isCompared: true });
    return times;
  },

  // the network that learns: from files weights and requests {chosen, times, noise}, the gradients
  // of the first step and each step's loss
  async training() {
    const { settings, steps } = asked();
    const kernels = await loadKernels(read("kernels.wasm")), memory = new Memory(kernels);
    const { tensors } = readSafetensors(read("weights.safetensors"));
    const trainer = new Trainer(kernels, memory, readTinyDigits(read("learned")), settings);
    trainer.unet.setWeights(Object.fromEntries(
      Object.entries(tensors).map(([name, { values }]) => [name, values]),
    ));
    const noise = new Float32Array(read("noise")), size = settings.batch * TINY_SIZE, losses = [];
    let gradients;
    steps.forEach(({ chosen, times }, k) => {
      const each = trainer.learn(chosen, times, noise.subarray(k * size, (k + 1) * size));
      losses.push(each.reduce((a, b) => a + b) / each.length);
      gradients ??= trainer.unet.read("gradients");
    });
    const lists = (found) => Object.fromEntries(
      Object.entries(found).map(([name, values]) => [name, [...values]]),
    );
    return { losses, gradients: lists(gradients), average: lists(trainer.unet.read("average")) };
  },

  // for each of some settings: losses [t, loss] of so many steps, and what is drawn after them
  async learning() {
    const answers = [];
    globalThis.postMessage = (answer) => answers.push(answer);
    const results = [];
    for (const { settings, seed, count, labels = [] } of asked()) {
      await TRAINING.train({ wasm: read("kernels.wasm"), digits: read("learned"), settings, seed });
      const began = performance.now();
      const losses = Array.from({ length: count }, () => {
        const { losses, times } = trainOnce();
        return [...losses].map((loss, k) => [times[k], loss]);
      });
      const seconds = (performance.now() - began) / 1000;
      const { images, found } = drawSixteen();
      const withLabels = labels.map((each) => [...drawSixteen(each).images]);
      results.push({ losses, images: [...images], found, seconds, withLabels });
    }
    return results;
  },

  // what the worker answers to a task with an unknown sampler, to one that is refused memory, and
  // to one after them
  async failures() {
    const answers = [];
    globalThis.postMessage = (answer) => answers.push(answer);
    const tell = (data) => self.onmessage({ data });
    await tell({ kind: "load", wasm: read("kernels.wasm"), weights: read("weights.safetensors") });
    const task = { kind: "draw", seed: 0, images: [0], steps: 1, labels: null, guidance: 1 };
    await tell({ ...task, lane: "grid", id: 1, sampler: "unheard" });
    const { take } = network.memory;
    network.memory.take = () => {
      throw RangeError("WebAssembly.Memory.grow(): Maximum memory size exceeded");
    };
    await tell({ ...task, lane: "large", id: 2, sampler: "ddim" });
    network.memory.take = take;
    await tell({ ...task, lane: "large", id: 3, sampler: "ddim" });
    return answers.filter(({ kind, t }) => kind === "error" || t === 0)
      .map(({ kind, lane, id, name, t }) => ({ kind, lane, id, name, t }));
  },
};

JOBS[job]().then((result) => {
  writeFileSync(`${folder}/out.json`, JSON.stringify(result));
  process.exit();
});
