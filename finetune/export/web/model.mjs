// The model in the browser: ONNX Runtime on the pixels of a file.

import * as ort from "./vendor/ort.wasm.bundle.min.mjs";
import { canvasIsExact, readImage } from "./pixels.mjs";

export { Refused } from "./pixels.mjs";

// one thread: more need headers that a plain file server does not send
ort.env.wasm.numThreads = 1;

let model, session;

export async function load() {
  if (!canvasIsExact()) {
    throw new Error("This browser alters the pixels that a page reads, against tracking. Allow this page to read them (canvas).");
  }
  model = await (await fetch("model.json")).json();
  session = await ort.InferenceSession.create("model.onnx", { executionProviders: ["wasm"] });
}

export async function classify(file) {
  const { data, width, height, notes } = await readImage(file, model);
  const images = new ort.Tensor("uint8", data, [1, height, width, model.channels]);
  const { probabilities, unknown_score } = await session.run({ images });
  const shares = Array.from(probabilities.data);
  const order = shares.map((_, at) => at).sort((a, b) => shares[b] - shares[a] || a - b);
  const ranked = order.map((at) => [model.classes[at], shares[at]]);
  // of a model for several labels
  const labels = model.thresholds && model.classes.filter((_, at) => shares[at] > model.thresholds[at]);
  // only a model that tells images unlike the training images has this output
  return { ranked, shares, notes, ...(labels && { labels }), ...(unknown_score && { unknownScore: unknown_score.data[0] }) };
}
