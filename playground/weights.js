"use strict";
// Reads the weights: one safetensors file (8 bytes: length of the header; JSON; the numbers).

const HALF = new Float32Array(65536); // every half-precision number
for (let bits = 0; bits < 65536; bits++) {
  const exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  const size = exponent ? 2 ** (exponent - 15) * (1 + mantissa / 1024) : 2 ** -24 * mantissa;
  HALF[bits] = bits >> 15 ? -size : size;
}

// {metadata, tensors: name -> {shape, values}}; values are floats, 8-bit weights times their scales
function readSafetensors(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const { __metadata__: metadata, ...entries } = header;
  const raw = (name) => buffer.slice(...entries[name].data_offsets.map((at) => 8 + length + at));
  const tensors = {};
  for (const [name, { dtype, shape }] of Object.entries(entries)) {
    if (name.endsWith(".scale")) continue;
    let values;
    if (dtype === "F64") values = new Float64Array(raw(name));
    else if (dtype === "F32") values = new Float32Array(raw(name));
    else if (dtype === "F16") values = Float32Array.from(new Uint16Array(raw(name)), (bits) => HALF[bits]);
    else values = scaled(new Int8Array(raw(name)), new Float32Array(raw(`${name}.scale`)));
    tensors[name] = { shape, values };
  }
  return { metadata, tensors };
}

// Whole numbers -127 … 127 times the scale of their row: one for each output of a layer.
function scaled(whole, scales) {
  const each = whole.length / scales.length;
  return Float32Array.from(whole, (value, k) => value * scales[Math.floor(k / each)]);
}
