"use strict";
// Five bugs that people make in samplers. Each changes one part of what the ancestral sampler works
// with: {network, schedule, sampler, times, options}. Several can be there at once.

const BUGS = {
  // The loop has moved on to s when the network is asked.
  time({ network, times }) {
    const next = new Map(transitions(times));
    return { network: withInput(network, (seen, t) => [seen, next.get(t)]) };
  },

  // The network sees [0, 1], where it has learned [-1, 1].
  range: ({ network }) => ({
    network: withInput(network, (seen, t) => [seen.map((value) => (value + 1) / 2), t]),
  }),

  // The step from t to s has the tables' entries of t - 1 instead of those of s.
  neighbour({ schedule }) {
    const posteriorMean = (x0, xt, t) => schedule.posteriorMean(x0, xt, t, t - 1);
    const posteriorVariance = (t) => schedule.posteriorVariance(t, t - 1);
    return { schedule: Object.assign(Object.create(schedule), { posteriorMean, posteriorVariance }) };
  },

  // Noise is added without asking whether the step is the last one.
  last: ({ schedule, sampler, times }) => ({
    sampler: withEnd(sampler, (x, noise) => {
      return sum(1, x, Math.sqrt(schedule.stepVariance(times.at(-1), 0)), noise());
    }),
  }),

  // Nothing is clipped to [-1, 1]: neither x0_hat nor the image, of which bytes are made.
  clipping: ({ sampler, options }) => ({
    sampler: withEnd(sampler, inBytes),
    options: { ...options, isClipped: false },
  }),
};

// The parts with the bugs of these names, in the order above.
function withBugs(names, parts) {
  const present = Object.keys(BUGS).filter((name) => names.includes(name));
  return present.reduce((changed, name) => ({ ...changed, ...BUGS[name](changed) }), parts);
}

// A network that is asked of another x_t and t: change(x_t, t) returns both.
function withInput(network, change) {
  const { shape, classes } = network;
  const forward = (seen, t, labels, s) => {
    const [otherSeen, otherTime] = change(seen, t);
    return network.forward(otherSeen, otherTime, labels, s);
  };
  return { shape, classes, forward };
}

// A sampler whose finished images are changed: change(x_0, noise) returns them.
function withEnd(sampler, change) {
  return function* (denoise, schedule, times, x, noise, eta) {
    for (const state of sampler(denoise, schedule, times, x, noise, eta)) {
      const end = state.t === 0 && change(state.x, noise);
      yield end ? { t: 0, x: end, x0: end } : state;
    }
  };
}

// What remains of values in [-1, 1], and beyond, as bytes: 256 becomes 0, and -1 becomes 255.
function inBytes(x) {
  return x.map((value) => {
    const level = Math.trunc((value + 1) * 127.5) % 256;
    return (level < 0 ? level + 256 : level) / 127.5 - 1;
  });
}
