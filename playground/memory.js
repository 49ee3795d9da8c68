"use strict";
// The kernels' memory: floats are laid one after another, and forgotten all at once.

class Memory {
  constructor(wasm) {
    this.buffer = wasm.memory; // views of it are made anew, since growing it detaches them
    this.next = Math.ceil(wasm.__heap_base.value / 16) * 16;
  }

  // The address of room for so many floats, where anything may stand.
  take(count) {
    const address = this.next;
    this.next += Math.ceil(count / 4) * 16;
    const missing = this.next - this.bytes;
    if (missing > 0) this.buffer.grow(Math.ceil(missing / 65536));
    return address;
  }

  put(floats) {
    const address = this.take(floats.length);
    this.floats(address, floats.length).set(floats);
    return address;
  }

  get bytes() {
    return this.buffer.buffer.byteLength;
  }

  floats(address, count) {
    return new Float32Array(this.buffer.buffer, address, count);
  }
}

async function loadKernels(bytes) {
  const imports = { env: { exp: Math.exp, log1p: Math.log1p } };
  const { instance } = await WebAssembly.instantiate(bytes, imports);
  return instance.exports;
}
