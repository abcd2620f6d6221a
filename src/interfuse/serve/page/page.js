// The page of `interfuse serve --demo`: draw, and see what every composition of a base and a modular block answers.

import { BaseBlock, Refusal, Service, fromSafetensors, toSafetensors } from "/page/client.js";

const at = (id) => document.getElementById(id);
const paper = at("paper");
const pen = paper.getContext("2d", { willReadFrequently: true });
const FINE = 8; // strokes are drawn so much finer than the picture that blocks take
const service = new Service();
const sessions = new Map(); // base blocks that run here, by address
let settings, ort, bases, modulars, form, picture;
let asked = 0; // questions so far: an answer to an earlier one is no news
let cursor, lowered = false;

function element(tag, text = "", attributes = {}) {
  const made = Object.assign(document.createElement(tag), { textContent: text });
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

const bytes = (count) => `${count.toLocaleString("en")} bytes`;
const named = (block) => (block.owner.name ? `${block.owner.name} (${block.block})` : block.block);

/** Rows and columns of a picture, which may have a first axis of one channel. */
const sizes = (shape) => shape.slice(-2);

function clear() {
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, paper.width, paper.height);
  picture = null;
  asked += 1;
  show([]);
  at("summary").textContent = "Draw something.";
}

function stroke(from, to) {
  pen.strokeStyle = "#fff";
  pen.lineCap = pen.lineJoin = "round";
  pen.lineWidth = paper.width / 9;
  pen.beginPath();
  pen.moveTo(...from);
  pen.lineTo(to[0] + 0.01, to[1]);
  pen.stroke();
}

/** The drawing as blocks take it: means of squares, from the least to the largest value of training samples. */
function sample() {
  const [rows, columns] = sizes(form.shape);
  const [low, high] = form.range;
  const fine = pen.getImageData(0, 0, paper.width, paper.height).data;
  const data = new (form.dtype === "uint8" ? Uint8Array : Float32Array)(rows * columns);
  for (let place = 0; place < data.length; place++) {
    const [y, x] = [Math.floor(place / columns) * FINE, (place % columns) * FINE];
    let sum = 0;
    for (let i = 0; i < FINE; i++) for (let j = 0; j < FINE; j++) sum += fine[4 * ((y + i) * paper.width + x + j)];
    const value = low + ((high - low) * sum) / (255 * FINE * FINE);
    data[place] = form.dtype === "uint8" ? Math.round(value) : value;
  }
  return { dtype: form.dtype, shape: [1, ...form.shape], data };
}

/** Features of the drawing, and whether it had to leave for that. */
async function features(base, drawn, codec) {
  if (ort && settings.models.includes(base.block)) {
    if (!sessions.has(base.block)) {
      const model = await service.fetch(`/page/models/${base.block}`);
      sessions.set(base.block, await BaseBlock.load(ort, model, base.contract));
    }
    return { file: await sessions.get(base.block).features(drawn, codec), left: 0 };
  }
  const file = toSafetensors(drawn);
  return { file: await service.ask(base.block, file, codec), left: file.length };
}

function softmax(scores) {
  const most = Math.max(...scores);
  const raised = [...scores].map((score) => Math.exp(score - most));
  const sum = raised.reduce((a, b) => a + b);
  return raised.map((one) => one / sum);
}

async function composition(base, modular, made) {
  if (base.contract !== modular.contract) return { text: "–", note: "no fit" };
  try {
    const scores = softmax(fromSafetensors(await service.ask(modular.block, made.file)).data);
    const best = scores.indexOf(Math.max(...scores));
    return { text: modular.answers.classes[best] ?? String(best), note: `${Math.round(100 * scores[best])} %`, good: true };
  } catch (error) {
    return { text: "–", note: error instanceof Refusal ? error.code : "no answer" };
  }
}

function mostly(answers) {
  const counts = new Map();
  for (const { text, good } of answers.flat()) if (good) counts.set(text, (counts.get(text) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1])[0];
}

function heading(block, scope) {
  const made = element("th", block.owner.name || block.block, { scope });
  if (block.owner.name) made.append(element("small", block.block));
  return made;
}

function show(answers) {
  const table = at("table");
  table.replaceChildren(element("caption", "Rows: whose base block. Columns: whose modular block."));
  const head = element("tr");
  head.append(element("th", "base \\ modular", { scope: "col" }), ...modulars.map((one) => heading(one, "col")));
  table.createTHead().append(head);
  const body = table.createTBody();
  const best = mostly(answers)?.[0];
  bases.forEach((base, row) => {
    const line = element("tr");
    line.append(heading(base, "row"));
    modulars.forEach((_, column) => {
      const { text, note } = answers[row]?.[column] ?? { text: "", note: "" };
      const cell = element("td", "", text === best && best ? { class: "most" } : {});
      cell.append(element("b", text), element("small", note));
      line.append(cell);
    });
    body.append(line);
  });
}

async function ask() {
  const mine = (asked += 1);
  const drawn = (picture = sample());
  const codec = at("codec").value;
  const travel = [];
  const answers = await Promise.all(
    bases.map(async (base) => {
      try {
        const made = await features(base, drawn, codec);
        const where = made.left
          ? element("li", `The picture leaves: ${bytes(made.left)} to the service of ${named(base)}, which makes the features.`, { class: "leaves" })
          : element("li", `${named(base)} runs in this browser: the picture stays here.`);
        const count = modulars.filter((one) => one.contract === base.contract).length;
        travel.push([base.block, where, element("li", `Features of ${named(base)}: ${bytes(made.file.length)} to each of ${count} modular blocks.`)]);
        return await Promise.all(modulars.map((modular) => composition(base, modular, made)));
      } catch (error) {
        return modulars.map(() => ({ text: "–", note: error instanceof Refusal ? error.code : "no answer" }));
      }
    }),
  );
  if (mine !== asked) return;
  show(answers);
  const order = bases.map((base) => base.block);
  travel.sort((a, b) => order.indexOf(a[0]) - order.indexOf(b[0]));
  at("travel").replaceChildren(element("li", `Your picture has ${bytes(drawn.data.byteLength)}.`), ...travel.flatMap(([, ...lines]) => lines));
  const all = answers.flat().filter(({ good }) => good).length;
  const [answer, count] = mostly(answers) ?? ["nothing", 0];
  at("summary").textContent = `${count} of ${all} compositions say ${answer}.`;
}

let timer;
function changed() {
  clearTimeout(timer);
  timer = setTimeout(ask, 120);
}

function place(event) {
  const box = paper.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * paper.width, ((event.clientY - box.top) / box.height) * paper.height];
}

function listen() {
  let last = null;
  paper.addEventListener("pointerdown", (event) => {
    paper.setPointerCapture(event.pointerId);
    last = place(event);
    stroke(last, last);
  });
  paper.addEventListener("pointermove", (event) => {
    if (!last) return;
    const next = place(event);
    stroke(last, next);
    last = next;
    changed();
  });
  for (const name of ["pointerup", "pointercancel"])
    paper.addEventListener(name, () => {
      if (last) changed();
      last = null;
    });
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  paper.addEventListener("keydown", (event) => {
    if (event.key === "Delete") clear();
    else if (event.key === " ") lowered = !lowered;
    else if (!(event.key in moves)) return;
    event.preventDefault();
    const before = cursor;
    const step = paper.width / 16;
    const [x, y] = moves[event.key] ?? [0, 0];
    cursor = [Math.min(Math.max(before[0] + x * step, 0), paper.width), Math.min(Math.max(before[1] + y * step, 0), paper.height)];
    if (lowered) {
      stroke(before, cursor);
      changed();
    }
    const [column, row] = cursor.map((one) => Math.round(one / step));
    at("where").textContent = `Pen ${lowered ? "down" : "up"}, column ${column} of 16, row ${row} of 16.`;
  });
  at("clear").addEventListener("click", clear);
  at("codec").addEventListener("change", () => picture && ask());
  at("key").addEventListener("change", () => {
    service.key = at("key").value;
    begin();
  });
}

async function begin() {
  let blocks;
  try {
    blocks = (await service.blocks()).filter((block) => block.withdrawn === null);
  } catch (error) {
    at("locked").hidden = error.code !== "unauthorised";
    at("summary").textContent = `The service does not say what it has: ${error.message}`;
    return;
  }
  const drawable = ({ takes }) => takes?.x && Object.keys(takes).length === 1 && sizes(takes.x.shape).length === 2 && takes.x.shape.slice(0, -2).every((size) => size === 1);
  bases = blocks.filter((block) => block.part === "base" && drawable(block));
  modulars = blocks.filter((block) => block.part === "modular" && block.answers.task === "classification");
  if (!bases.length || !modulars.length) {
    at("summary").textContent = "This service has no base block that takes grey pictures, or no modular block that names classes.";
    return;
  }
  form = { ...bases[0].takes.x, range: bases[0].ranges.x ?? [0, bases[0].takes.x.dtype === "uint8" ? 255 : 1] };
  bases = bases.filter((block) => String(block.takes.x.shape) === String(form.shape) && block.takes.x.dtype === form.dtype);
  const [rows, columns] = sizes(form.shape);
  [paper.width, paper.height] = [columns * FINE, rows * FINE];
  cursor = [paper.width / 2, paper.height / 2];
  settings = JSON.parse(new TextDecoder().decode(await service.fetch("/page/settings.json")));
  if (settings.runtime) {
    ort = await import("/page/ort/ort.wasm.min.mjs");
    ort.env.wasm.wasmPaths = "/page/ort/";
    ort.env.wasm.numThreads = 1;
  }
  const here = bases.filter((base) => ort && settings.models.includes(base.block));
  const notes = [];
  if (!settings.runtime) notes.push("onnxruntime-web is not installed beside this service, so base blocks run at their owners: the picture leaves this browser.");
  else if (here.length < bases.length) notes.push("Base blocks without ONNX run at their owners: the picture leaves this browser for these.");
  at("travel").replaceChildren(...notes.map((note) => element("li", note, { class: "leaves" })), ...here.map((base) => element("li", `${named(base)} will run in this browser.`)));
  at("owner").replaceChildren(...[...bases, ...modulars].map((block) => element("li", `${block.block}, ${block.part} block: ${block.owner.name || "its owner is not named"}${block.owner.licence ? `, ${block.owner.licence}` : ""}`)));
  clear();
  document.body.dataset.ready = "true";
}

listen();
begin();
