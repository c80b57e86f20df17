// The page: takes files, has the model answer one after another, shows the answers.

import { Refused, classify, load } from "./model.mjs";

const SHOWN = 5;
const [drop, files, status, results, clear] = ["drop", "files", "status", "results", "clear"].map((id) => document.getElementById(id));

const answers = []; // for whoever drives the page: {name, classes: {name: probability}} or {name, refused}
globalThis.answers = answers;

let ready = false;
let queue = Promise.resolve();
let waiting = 0;

function element(tag, { text, ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

async function start() {
  await load();
  ready = true;
  files.disabled = false;
  status.textContent = "Ready.";
  document.body.dataset.ready = "yes";
}

function bar(name, share, first) {
  const part = (100 * share).toFixed(1);
  const inner = element("div");
  inner.style.width = `${part}%`;
  const track = element("div", { className: "track" }, inner);
  track.setAttribute("aria-hidden", "true");
  return element("li", { className: first ? "first" : "" }, element("span", { text: name }), element("span", { text: `${part} %` }), track);
}

async function show(file) {
  const told = element("div", { className: "told" }, element("h2", { text: file.name }));
  const picture = element("img", { alt: "", src: URL.createObjectURL(file) });
  picture.addEventListener("error", () => picture.replaceWith(element("div", { className: "none" })), { once: true });
  results.append(element("li", {}, picture, told));
  try {
    const { ranked, notes, ...answer } = await classify(file);
    told.append(element("ul", {}, ...ranked.slice(0, SHOWN).map(([name, share], rank) => bar(name, share, rank === 0))));
    told.append(...notes.map((text) => element("p", { className: "note", text })));
    answers.push({ name: file.name, predicted: ranked[0][0], notes, ...answer });
  } catch (error) {
    const why = error instanceof Refused ? error.message : `The model could not be run on it: ${error.message ?? error}`;
    told.append(element("p", { className: "wrong", text: why }));
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
      // lets the browser draw before the model takes the thread
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
