"use strict";
// Reads the weights: one safetensors file (8 bytes: length of the header; JSON; the numbers).

const HALF = new Float32Array(65536); // every half-precision number
for (let bits = 0; bits < 65536; bits++) {
  const exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  const size = exponent ? 2 ** (exponent - 15) * (1 + mantissa / 1024) : 2 ** -24 * mantissa;
  HALF[bits] = bits >> 15 ? -size : size;
}

// {metadata, tensors: name -> {shape, values}}. Values are floats, those of 8 bits
// times their scales.
function readSafetensors(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const { __metadata__: metadata, ...entries } = header, tensors = {};
  const numbers = (name) => {
    const [start, end] = entries[name].data_offsets;
    return new ARRAYS[entries[name].dtype](buffer.slice(8 + length + start, 8 + length + end));
  };
  for (const [name, { dtype, shape }] of Object.entries(entries)) {
    if (name.endsWith(".scale")) continue;
    let values = numbers(name);
    if (dtype === "F16") values = widened(values);
    if (dtype === "I8") values = scaled(values, numbers(`${name}.scale`));
    tensors[name] = { shape, values };
  }
  return { metadata, tensors };
}

const ARRAYS = { F64: Float64Array, F32: Float32Array, F16: Uint16Array, I8: Int8Array };

// Plain loops: Float32Array.from takes ten times as long.
function widened(bits) {
  const result = new Float32Array(bits.length);
  for (let k = 0; k < bits.length; k++) result[k] = HALF[bits[k]];
  return result;
}

// Whole numbers -127 … 127 times the scale of their row: one for each output of a layer.
function scaled(whole, scales) {
  const result = new Float32Array(whole.length), each = whole.length / scales.length;
  for (let k = 0; k < whole.length; k++) result[k] = whole[k] * scales[Math.floor(k / each)];
  return result;
}
