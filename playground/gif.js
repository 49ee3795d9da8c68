"use strict";
// A film of grey levels as an animated GIF (GIF89a), compressed by LZW.

const LEVELS = 32; // of grey: noise compresses badly

// frames: {pixels: Uint8 grey levels, hundredths: how long it stays}, each width x height, shown
// `scale` times as large. Returns a Blob.
function gifOf(frames, width, height, scale) {
  const bytes = [], word = (value) => bytes.push(value & 255, value >> 8);
  const text = (letters) => bytes.push(...[...letters].map((letter) => letter.charCodeAt(0)));
  text("GIF89a");
  word(width * scale);
  word(height * scale);
  bytes.push(0xf4, 0, 0); // a palette of 2^5 colours for all frames
  for (let k = 0; k < LEVELS; k++) bytes.push(...Array(3).fill(Math.round(255 * k / (LEVELS - 1))));
  bytes.push(0x21, 0xff, 11);
  text("NETSCAPE2.0");
  bytes.push(3, 1, 0, 0, 0); // again and again
  for (const { pixels, hundredths } of frames) {
    bytes.push(0x21, 0xf9, 4, 0);
    word(hundredths);
    bytes.push(0, 0, 0x2c, 0, 0, 0, 0);
    word(width * scale);
    word(height * scale);
    bytes.push(0, 5);
    const data = compressed(enlarged(pixels, width, height, scale), 5);
    for (let k = 0; k < data.length; k += 255) {
      const part = data.slice(k, k + 255);
      bytes.push(part.length, ...part);
    }
    bytes.push(0);
  }
  bytes.push(0x3b);
  return new Blob([Uint8Array.from(bytes)], { type: "image/gif" });
}

// The palette's numbers of an image, each pixel `scale` times as wide and high.
function enlarged(pixels, width, height, scale) {
  const result = new Uint8Array(width * height * scale * scale);
  for (let k = 0; k < result.length; k++) {
    const x = Math.floor(k % (width * scale) / scale), y = Math.floor(k / (width * scale) / scale);
    result[k] = Math.round(pixels[y * width + x] / 255 * (LEVELS - 1));
  }
  return result;
}

// GIF's LZW: codes of growing width for ever longer runs that came before, lowest bits first.
function compressed(values, bits) {
  const clear = 1 << bits, end = clear + 1, bytes = [];
  let table, width, held = 0, count = 0;
  const emit = (code) => {
    held |= code << count;
    for (count += width; count >= 8; count -= 8, held >>>= 8) bytes.push(held & 255);
  };
  const restart = () => {
    table = new Map();
    width = bits + 1;
  };
  restart();
  emit(clear);
  let run = values[0];
  for (const value of values.subarray(1)) {
    const key = (run << 8) | value, known = table.get(key);
    if (known !== undefined) {
      run = known;
      continue;
    }
    emit(run);
    const next = end + 1 + table.size;
    if (next < 4096) {
      table.set(key, next);
      if (next === 1 << width) width++;
    } else {
      emit(clear);
      restart();
    }
    run = value;
  }
  emit(run);
  emit(end);
  if (count > 0) bytes.push(held & 255);
  return bytes;
}
