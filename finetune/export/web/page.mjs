// The page: takes image files, runs the model on one after another, and shows the predictions.

import { Refused, classify, load } from "./model.mjs";

const SHOWN = 5;
const [drop, files, status, results, clear] = ["drop", "files", "status", "results", "clear"].map((id) => document.getElementById(id));

// for scripts that drive the page: {name, predicted, notes, ...} or {name, refused}
const answers = [];
globalThis.answers = answers;

let ready = false;
let queue = Promise.resolve();
let waiting = 0;

function element(tag, { text, ...properties } = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) node.textContent = text;
  node.append(...children);
  return node;
}

async function start() {
  await load();
  ready = true;
  files.disabled = false;
  status.textContent = "Ready.";
  document.body.dataset.ready = "yes";
}

function bar(name, probability, first) {
  const percent = (100 * probability).toFixed(1);
  const inner = element("div");
  inner.style.width = `${percent}%`;
  const track = element("div", { className: "track" }, inner);
  track.setAttribute("aria-hidden", "true");
  return element("li", { className: first ? "first" : "" }, element("span", { text: name }), element("span", { text: `${percent} %` }), track);
}

async function show(file) {
  const details = element("div", { className: "details" }, element("h2", { text: file.name }));
  const picture = element("img", { alt: "", src: URL.createObjectURL(file) });
  picture.addEventListener("error", () => picture.replaceWith(element("div", { className: "none" })), { once: true });
  results.append(element("li", {}, picture, details));
  try {
    const { ranked, labels, notes, ...answer } = await classify(file);
    const unknown = answer.unknownScore > 1;
    if (unknown) details.append(element("p", { className: "unknown", text: "Unlike the images that the model was trained on." }));
    if (labels) details.append(element("p", { className: "labels", text: `Shows: ${labels.join(", ") || "none of the classes"}` }));
    const strong = (name, rank) => (labels ? labels.includes(name) : rank === 0);
    details.append(element("ul", {}, ...ranked.slice(0, SHOWN).map(([name, probability], rank) => bar(name, probability, strong(name, rank)))));
    details.append(...notes.map((text) => element("p", { className: "note", text })));
    answers.push({ name: file.name, predicted: labels ?? ranked[0][0], known: !unknown, notes, ...answer });
  } catch (error) {
    const why = error instanceof Refused ? error.message : `The model could not be run on it: ${error.message ?? error}`;
    details.append(element("p", { className: "wrong", text: why }));
    answers.push({ name: file.name, refused: why });
  }
}

function take(list) {
  const chosen = Array.from(list);
  waiting += chosen.length;
  clear.hidden = false;
  for (const file of chosen) {
    queue = queue.then(async () => {
      status.textContent = `${waiting} to go: ${file.name}`;
      // let the browser draw before the model blocks the thread
      await new Promise((done) => setTimeout(done, 0));
      await show(file);
      waiting -= 1;
      status.textContent = waiting ? `${waiting} to go` : `Done: ${answers.length} images.`;
    });
  }
}

files.addEventListener("change", () => {
  take(files.files);
  files.value = "";
});
for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());
drop.addEventListener("dragover", () => drop.classList.add("over"));
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
document.addEventListener("drop", (event) => {
  drop.classList.remove("over");
  if (ready && event.dataTransfer.files.length) take(event.dataTransfer.files);
});
clear.addEventListener("click", () => {
  for (const picture of results.querySelectorAll("img")) URL.revokeObjectURL(picture.src);
  results.replaceChildren();
  answers.length = 0;
  clear.hidden = true;
  status.textContent = "Ready.";
  files.focus();
});

start().catch((error) => {
  status.textContent = `The model could not be loaded: ${error.message ?? error}`;
  status.classList.add("wrong");
});
