"use strict";
// The exact denoiser of a few digits, which the page contains: the best that any network could
// learn from them alone, and so it draws nothing but copies.

const STORED_SIDE = 28; // pixels of a stored digit, each half a byte: 16 grey levels

// The digits as floats in [-1, 1], with a black margin up to the network's height and width.
function readDigits(buffer, height, width) {
  const bytes = new Uint8Array(buffer), size = STORED_SIDE ** 2;
  const [top, left] = [height, width].map((length) => Math.floor((length - STORED_SIDE) / 2));
  const digits = new Float32Array(2 * bytes.length / size * height * width).fill(-1);
  for (let k = 0; k < 2 * bytes.length; k++) {
    const level = k % 2 ? bytes[k >> 1] & 15 : bytes[k >> 1] >> 4;
    const digit = Math.floor(k / size), y = Math.floor(k % size / STORED_SIDE);
    const row = (digit * height + top + y) * width;
    digits[row + left + k % STORED_SIDE] = level / 7.5 - 1;
  }
  return digits;
}

// E[x_0 | x_t], if x_0 is one of these points with equal probability: ddpm.ideal_denoiser.
function idealDenoiser(schedule, points, size) {
  return (xt, t) => {
    const a = schedule.signal[t], b = schedule.noise[t], x0 = new Float32Array(xt.length);
    for (let start = 0; start < xt.length; start += size) {
      const image = xt.subarray(start, start + size);
      const logits = squaredDistances(image, points, a).map((square) => -square / (2 * b * b));
      x0.set(mixture(softmax(logits), points, size), start);
    }
    return { x0, eps: sum(1 / b, xt, -a / b, x0) };
  };
}

// From an image to each of the points times a factor.
function squaredDistances(image, points, factor) {
  const size = image.length, squares = new Float64Array(points.length / size);
  for (let point = 0; point < squares.length; point++) {
    let square = 0;
    for (let k = 0; k < size; k++) {
      const difference = image[k] - factor * points[point * size + k];
      square += difference * difference;
    }
    squares[point] = square;
  }
  return squares;
}

function softmax(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const weights = logits.map((logit) => Math.exp(logit - largest));
  const total = weights.reduce((a, b) => a + b);
  return weights.map((weight) => weight / total);
}

// The mean of the points with these weights.
function mixture(weights, points, size) {
  const mean = new Float64Array(size);
  weights.forEach((weight, point) => {
    if (weight < 1e-12) return; // of no effect on a float
    for (let k = 0; k < size; k++) mean[k] += weight * points[point * size + k];
  });
  return mean;
}

// For each image the nearest of the points: {images, distances}, root mean squares in grey levels.
function nearestPoints(images, points, size) {
  const nearest = new Float32Array(images.length), distances = [];
  for (let start = 0; start < images.length; start += size) {
    const squares = squaredDistances(images.subarray(start, start + size), points, 1);
    const least = squares.reduce((a, b) => Math.min(a, b)), point = squares.indexOf(least);
    nearest.set(points.subarray(point * size, (point + 1) * size), start);
    distances.push(127.5 * Math.sqrt(least / size));
  }
  return { images: nearest, distances };
}
