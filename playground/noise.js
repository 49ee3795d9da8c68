"use strict";
// Noise equal to Python's: image k of seed s draws from numpy's default_rng((s, k)), as does
// ddpm.noise_source. noise.c draws; here are its tables, and the place in each image's stream.

class Noise {
  constructor(wasm, memory) {
    Object.assign(this, { wasm, memory });
    this.layers = memory.put(ziggurat());
    this.stream = memory.take(STREAM); // the one that draws
  }

  // A function that draws noise for the images of these numbers, `size` floats each.
  source(seed, images, size) {
    const { wasm, memory, stream } = this;
    const places = images.map((k) => {
      wasm.seed_stream(stream, seed, k);
      return memory.floats(stream, STREAM).slice();
    });
    return () => {
      const result = new Float32Array(images.length * size), next = memory.next;
      const drawn = memory.take(size);
      places.forEach((place, k) => {
        memory.floats(stream, STREAM).set(place);
        wasm.draw_normal(stream, this.layers, drawn, size);
        place.set(memory.floats(stream, STREAM));
        result.set(memory.floats(drawn, size), k * size);
      });
      memory.next = next;
      return result;
    };
  }
}

const STREAM = 10; // 40 bytes, in units of a float: noise.c's struct stream

// noise.c's struct layers: 256 layers of equal area under exp(-x^2 / 2), one upon the other, the
// lowest with the curve's tail from `end` on.
function ziggurat() {
  const end = 3.6541528853610088, tail = 0.00032339576466332173, unit = 2 ** 23;
  const height = (x) => Math.exp(-0.5 * x * x), area = end * height(end) + tail;
  const result = new Float32Array(3 * 256);
  const inside = new Uint32Array(result.buffer, 0, 256), widths = result.subarray(256, 512);
  const heights = result.subarray(512);
  inside[0] = (end * height(end) / area) * unit;
  widths[0] = area / height(end) / unit;
  heights[0] = 1;
  for (let layer = 255, x = end; layer > 0; layer--) {
    const narrower = Math.sqrt(-2 * Math.log(area / x + height(x)));
    inside[layer] = layer > 1 ? (narrower / x) * unit : 0;
    widths[layer] = x / unit;
    heights[layer] = height(x);
    x = narrower;
  }
  return result;
}
