"use strict";
// Settings for the network that learns: those of the notebook, and six from which it learns worse.

const NOTEBOOK = {
  rate: 1.3e-3, T: 1000, betaT: 0.02, prediction: "image", batch: 32, isLabelled: true,
};
const PRESETS = { // name -> {change, why}
  "As in the notebook": { change: {}, why: "Strokes come within seconds, digits within minutes." },
  "Rate too high": {
    change: { rate: 0.3 },
    why: "Each step overshoots: the loss jumps up at the start and stays high, and no digits come.",
  },
  "Rate too low": {
    change: { rate: 1e-5 },
    why: "Each step changes almost nothing: the loss falls, but so slowly that no digits come.",
  },
  "One digit a step": {
    change: { batch: 1 },
    why: "One digit says little about all of them: the loss jumps from step to step.",
  },
  "Too little noise": {
    change: { betaT: 0.001 },
    why: "Even at T half of the digit is left. Drawing starts from pure noise, which the network has never seen.",
  },
  "Too much noise": {
    change: { betaT: 0.5 },
    why: "At nearly every t the digit is already gone. There is nothing to learn there, so the loss stays high.",
  },
  "No labels": {
    change: { isLabelled: false },
    why: "The network is not told which digit to draw, so what it draws is not what is asked for.",
  },
};
