"use strict";
// From noise to images, as in the notebook and mnist_ddpm/methods: x_t and eps are arrays of floats
// of all images together. The schedule's tables and the way from the network's value to x0_hat are
// Python's own, in float64: the network sees input[t] x_t, and its value says that
// x0_hat = from_x[t] x_t + from_value[t] value.

class Schedule {
  constructor({ tensors }) {
    const table = (name) => tensors[`schedule.${name}`].values;
    this.signal = table("signal");
    this.noise = table("noise");
    this.input = table("input");
    this.fromX = table("from_x");
    this.fromValue = table("from_value");
    this.T = this.signal.length - 1;
  }

  // Variance of q(x_t | x_s), s < t: beta_t where s = t - 1.
  stepVariance(t, s) {
    return this.noise[t] ** 2 - (this.signal[t] / this.signal[s] * this.noise[s]) ** 2;
  }

  // Variance of q(x_s | x_t, x_0), s < t: Eq. 7.
  posteriorVariance(t, s) {
    return this.stepVariance(t, s) * (this.noise[s] / this.noise[t]) ** 2;
  }

  // Mean of q(x_s | x_t, x_0), s < t: Eq. 7.
  posteriorMean(x0, xt, t, s) {
    const { signal, noise } = this;
    const ofX = signal[t] / signal[s] * noise[s] ** 2 / noise[t] ** 2;
    return sum(ofX, xt, signal[s] * this.stepVariance(t, s) / noise[t] ** 2, x0);
  }

  // x_t from x_0 and noise: Eq. 4.
  qSample(x0, t, eps) {
    return sum(this.signal[t], x0, this.noise[t], eps);
  }
}

// a x + b y
function sum(a, x, b, y) {
  const result = new Float32Array(x.length);
  for (let k = 0; k < x.length; k++) result[k] = a * x[k] + b * y[k];
  return result;
}

// n falling times, evenly spaced from T; 0 would follow. Python rounds halves to even numbers.
function timesteps(T, n) {
  return Array.from({ length: n }, (_, k) => roundEven(T * (n - k) / n));
}

// n falling times from the last, between which the signal rises evenly up to 1, from 0 at T
// (mnist_ddpm/methods/schedules.py) or from what there is of a picture at an earlier time.
function evenSignal(signal, last, n) {
  const times = [last], least = last < signal.length - 1 ? signal[last] : 0;
  for (let k = 1, t = last; k < n; k++) {
    while (signal[t] < least + (1 - least) * k / n) t--;
    times.push(Math.min(t, times[k - 1] - 1));
  }
  return times.map((t, k) => Math.max(t, n - k));
}

// The time up to which a picture is noised: strength from 0, not, to 1, beyond recognition.
function furthest(strength, T) {
  return Math.max(1, roundEven(strength * T));
}

function roundEven(x) {
  const low = Math.floor(x), over = x - low;
  return over > 0.5 || (over === 0.5 && low % 2 !== 0) ? low + 1 : low;
}

// x_t and t to {x0, eps}, predicted and, unless told otherwise, clipped to [-1, 1]; s: where the step
// goes, for a network that is told. labels: one for each image, or null.
// guidance g other than 1: x0 unlabelled + g (x0 labelled - x0 unlabelled), classifier-free.
function denoiser(network, schedule, { labels = null, guidance = 1, isClipped = true } = {}) {
  const [channels, height, width] = network.shape, size = channels * height * width;
  const both = labels && guidance !== 0 && guidance !== 1;
  const unknown = labels && labels.map(() => network.classes);
  const predict = (xt, t, told, s) => {
    const seen = xt.map((x) => schedule.input[t] * x), output = network.forward(seen, t, told, s);
    const each = output.length / (xt.length / size);
    return xt.map((x, k) => { // of more outputs, such as a variance, the first ones
      const value = output[Math.floor(k / size) * each + k % size];
      return schedule.fromX[t] * x + schedule.fromValue[t] * value;
    });
  };
  return (xt, t, s = t) => {
    let x0;
    if (both) {
      const all = new Float32Array(2 * xt.length);
      all.set(xt);
      all.set(xt, xt.length);
      const two = predict(all, t, [...labels, ...unknown], s);
      x0 = sum(guidance, two.subarray(0, xt.length), 1 - guidance, two.subarray(xt.length));
    } else {
      x0 = predict(xt, t, guidance === 0 ? unknown : labels, s);
    }
    if (isClipped) x0 = x0.map((value) => Math.min(1, Math.max(-1, value)));
    return { x0, eps: sum(1 / schedule.noise[t], xt, -schedule.signal[t] / schedule.noise[t], x0) };
  };
}

// Pairs of each time and its successor, the last with 0.
function transitions(times) {
  return times.map((t, k) => [t, times[k + 1] ?? 0]);
}

// Each sampler yields {t, x, x0}, last with t = 0. noise() draws.

// Ancestral sampling (Algorithm 2).
function* ddpm(denoise, schedule, times, x, noise) {
  for (const [t, s] of transitions(times)) {
    const { x0 } = denoise(x, t);
    yield { t, x, x0 };
    x = schedule.posteriorMean(x0, x, t, s);
    if (s > 0) x = sum(1, x, Math.sqrt(schedule.posteriorVariance(t, s)), noise());
  }
  yield { t: 0, x, x0: x };
}

// DDIM (Eq. 12 and 16): eta from 0, no noise, to 1, as much as DDPM.
function* ddim(denoise, schedule, times, x, noise, eta = 0) {
  for (const [t, s] of transitions(times)) {
    const { x0, eps } = denoise(x, t);
    yield { t, x, x0 };
    const sigma = eta * Math.sqrt(schedule.posteriorVariance(t, s));
    const left = Math.sqrt(Math.max(0, schedule.noise[s] ** 2 - sigma ** 2));
    x = sum(schedule.signal[s], x0, left, eps);
    if (sigma > 0) x = sum(1, x, sigma, noise());
  }
  yield { t: 0, x, x0: x };
}

// DPM-Solver++(2M), with eta as in mnist_ddpm/methods/solvers.py.
function* dpmpp(denoise, schedule, times, x, noise, eta = 0) {
  const { signal, noise: left } = schedule;
  const lambda = (t) => Math.log(signal[t] / left[t]);
  let older = x, lastStep = 0;
  for (const [t, s] of transitions(times)) {
    const { x0 } = denoise(x, t), step = lambda(s) - lambda(t); // infinite at s = 0
    yield { t, x, x0 };
    const rise = step / (2 * lastStep), second = s > 0 && step <= 2 * lastStep;
    const direction = second ? sum(1 + rise, x0, -rise, older) : x0;
    const kept = eta > 0 ? Math.exp(-eta * step) : 1;
    x = sum(left[s] / left[t] * kept, x, -signal[s] * Math.expm1(-(1 + eta) * step), direction);
    if (eta > 0 && s > 0) x = sum(1, x, left[s] * Math.sqrt(1 - kept ** 2), noise());
    older = x0;
    lastStep = step;
  }
  yield { t: 0, x, x0: x };
}

// RePaint: fills in what the mask hides (0) of `known`, as mnist_ddpm/methods/inpainting.py.
function* repaint(denoise, schedule, times, x, noise, known, mask, resamples = 10) {
  const steps = transitions(times), jump = Math.max(1, roundEven(steps.length / 25));
  for (let first = 0; first < steps.length; first += jump) {
    const walk = steps.slice(first, first + jump), start = walk[0][0], end = walk.at(-1)[1];
    for (let repeat = resamples - 1; repeat >= 0; repeat--) {
      for (const [t, s] of walk) {
        const { x0 } = denoise(x, t);
        if (repeat === 0) yield { t, x, x0 };
        x = schedule.posteriorMean(x0, x, t, s);
        if (s > 0) x = sum(1, x, Math.sqrt(schedule.posteriorVariance(t, s)), noise());
        const seen = s > 0 ? schedule.qSample(known, s, noise()) : known;
        x = x.map((value, k) => mask[k] ? seen[k] : value);
      }
      if (repeat > 0) { // from the walk's end back up to its start
        const spread = Math.sqrt(schedule.stepVariance(start, end));
        x = sum(schedule.signal[start] / schedule.signal[end], x, spread, noise());
      }
    }
  }
  yield { t: 0, x, x0: x };
}

// x0_hat at T, noised anew to the next time, and so on: mnist_ddpm/methods/consistency.py.
function* consistency(denoise, schedule, times, x, noise) {
  for (const [t, s] of transitions(times)) {
    const { x0 } = denoise(x, t);
    yield { t, x, x0 };
    x = s > 0 ? schedule.qSample(x0, s, noise()) : x0;
  }
  yield { t: 0, x, x0: x };
}

// DDIM without noise, by a network that is told where each step goes.
function* shortcut(denoise, schedule, times, x) {
  for (const [t, s] of transitions(times)) {
    const { x0, eps } = denoise(x, t, s);
    yield { t, x, x0 };
    x = sum(schedule.signal[s], x0, schedule.noise[s], eps);
  }
  yield { t: 0, x, x0: x };
}

const SAMPLERS = { ddpm, ddim, dpmpp, consistency, shortcut };
const WITH_ETA = ["ddim", "dpmpp"];
const OWN = ["consistency", "shortcut"]; // of networks that were trained for them

// Between two noises along a great circle, weight 0 … 1: mnist_ddpm/methods/interpolation.py.
function slerp(a, b, weight) {
  const dot = (x, y) => x.reduce((total, value, k) => total + value * y[k], 0);
  const cosine = dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
  const angle = Math.acos(Math.min(1, Math.max(-1, cosine))), sine = Math.sin(angle);
  if (sine < 1e-6) return sum(1 - weight, a, weight, b);
  return sum(Math.sin((1 - weight) * angle) / sine, a, Math.sin(weight * angle) / sine, b);
}

// Grey levels 0 … 255, rounded as ddpm.to_uint8 does.
function toUint8(x) {
  return Uint8ClampedArray.from(x, (value) => {
    const shifted = Math.fround(Math.min(1, Math.max(-1, value)) + 1);
    return roundEven(Math.fround(shifted * 127.5));
  });
}
