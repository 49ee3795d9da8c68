"use strict";
// Unpacks what the page contains, starts the worker, and says what went wrong.

const $ = (id) => document.getElementById(id);
const TROUBLE = {
  incomplete: "This file ends too early, as after an interrupted download. Download it again.",
  damaged: "This file is damaged. Download it again.",
  memory: "There is too little memory to draw. Close other tabs, then reload this page.",
  browser: "This browser cannot draw here. Use a current Chrome, Edge, Firefox or Safari.",
  task: "This image could not be drawn. Try other settings.",
};

let worker;

async function start() {
  if (!$("end")) return trouble("incomplete");
  worker = newWorker();
  worker.onmessage = ({ data }) => ANSWERS[data.kind](data);
  const [wasm, weights] = await Promise.all(["wasm", "weights"].map(unpacked));
  worker.postMessage({ kind: "load", wasm, weights }, [wasm, weights]);
}

function newWorker() {
  const source = new Blob([$("worker-source").textContent], { type: "text/javascript" });
  const made = new Worker(URL.createObjectURL(source));
  made.onerror = (event) => trouble("browser", event.message);
  return made;
}

// The bytes that stand in the page as compressed text, which contains their checksum.
async function unpacked(id) {
  try {
    const text = atob($(id).textContent), bytes = new Uint8Array(text.length);
    for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return await new Response(stream).arrayBuffer();
  } catch (error) {
    throw Object.assign(error, { damaged: !["RangeError", "ReferenceError"].includes(error.name) });
  }
}

// What an error of the worker or of `start` means to whoever sees the page.
function failed({ name, message, text = `${name}: ${message}`, damaged = false, lane = null }) {
  if (name === "RangeError") return trouble("memory", text); // how engines refuse memory
  if (damaged) return trouble("damaged", text);
  trouble(lane ? "task" : "browser", text);
}

function trouble(kind, text = "") {
  $("trouble").hidden = false;
  $("trouble").textContent = text ? `${TROUBLE[kind]} (${text})` : TROUBLE[kind];
}
