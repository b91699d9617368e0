/* The page: its input, and the predictions of the DyLoRA and of the tasks. It shows what model.js computes. */
"use strict";

const $ = (id) => document.getElementById(id);
const element = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
};
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;

// One of each digit at a time: the first held-out 0, 1, ..., then the second of each, and so on.
const OF_LABEL = Array.from({ length: 10 }, (_, label) => DIGITS.flatMap((digit, i) => (digit.label === label ? [i] : [])));
const START = OF_LABEL[5][0];
const state = {
  ...DIGITS[START], digit: START, page: 0, cursor: 27, rank: 3, component: 0, view: "rotated", task: "rotated",
};

/** What is compared: a DyLoRA, a LoRA, the same LoRA by its SVD, and their accuracies at every rank. */
let compared = comparison(DATA.dylora, DATA.lora);

function comparison(dylora, lora) {
  const adapters = { dylora, svd: byValues(lora), slice: lora };
  return { ...adapters, accuracies: Object.fromEntries(Object.entries(adapters).map(([name, each]) => [name, accuracies(each)])) };
}

// ---------------------------------------------------------------- pictures

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Paint values in [-1, 1]: shades of ink for digits, two colours for weights. */
function paint(canvas, values, width, { signed = false } = {}) {
  const context = canvas.getContext("2d"), size = canvas.width / width, height = canvas.height / (values.length / width);
  const [ink, plus, minus] = ["--pixel", "--plus", "--minus"].map(colour);
  context.clearRect(0, 0, canvas.width, canvas.height);
  values.forEach((value, i) => {
    const hue = signed ? (value < 0 ? minus : plus) : ink;
    context.fillStyle = `rgba(${hue}, ${Math.min(1, Math.abs(value))})`;
    context.fillRect((i % width) * size, Math.floor(i / width) * height, size, height);
  });
}

function paintPad() {
  const pad = $("pad");
  paint(pad, state.pixels, 8);
  if (document.activeElement === pad) {
    const context = pad.getContext("2d"), size = pad.width / 8;
    context.strokeStyle = `rgb(${colour("--plus")})`;
    context.lineWidth = 3;
    context.strokeRect((state.cursor % 8) * size + 2, Math.floor(state.cursor / 8) * size + 2, size - 4, size - 4);
  }
}

// ---------------------------------------------------------------- predictions

function showBars(id, probabilities) {
  const best = probabilities.indexOf(Math.max(...probabilities));
  $(id).replaceChildren(...probabilities.map((p, digit) => {
    const bar = element("i");
    bar.style.width = percent(p, 3).replace(" ", "");
    return element("div", { className: digit === best ? "bar top" : "bar" }, element("b", {}, `${digit}`),
      element("div", {}, bar), element("span", {}, percent(p)));
  }));
}

function showVerdict(id, probabilities) {
  const best = probabilities.indexOf(Math.max(...probabilities)), known = state.label !== null;
  const right = best === state.label;
  const words = known ? (right ? "right" : `wrong: it is a ${state.label}`) : "of your drawing";
  $(id).replaceChildren(element("b", {}, `${best}`),
    element("span", { className: known ? (right ? "good" : "bad") : "" }, `${known ? (right ? "✓ " : "✗ ") : ""}${words}`));
}

/** The digit as the DyLoRA sees it. */
const shiftedPixels = () => VIEWS[DATA.dylora.view](state.pixels);

function showDyLoRA() {
  const { rank } = state, pixels = shiftedPixels(), accuracy = percent(compared.accuracies.dylora[rank]);
  const probabilities = Lora.softmax(adaptedLogits([pixels], compared.dylora, rank)[0]);
  $("rank").value = rank;
  const words = rank === 0 ? "0, the base alone" : `${rank} of ${MAX_RANK}`;
  $("rank-value").textContent = `${words}: ${accuracy}`;
  $("rank").setAttribute("aria-valuetext", words);
  paint($("dylora-seen"), pixels, 8);
  showBars("dylora-bars", probabilities);
  showVerdict("dylora-verdict", probabilities);
  $("dylora-accuracy").textContent = accuracy;
  [...$("curve").children].forEach((bar, r) => bar.setAttribute("aria-pressed", r === rank));
  document.querySelectorAll(".component").forEach((row, k) => row.classList.toggle("on", k < rank));
  const numbers = rank * (64 + HIDDEN);
  $("cost").textContent = rank === 0
    ? "Without the adapter, the network fails."
    : `The slices A[:, :${rank}] and B[:${rank}, :] have ${numbers} elements, ${percent(numbers / (64 * HIDDEN), 0)} of the layer's weight.`;
}

function showMultiLoRA() {
  const { view, task } = state, pixels = VIEWS[view](state.pixels);
  const probabilities = Lora.softmax(taskLogits([pixels], [task])[0]);
  paint($("multilora-seen"), pixels, 8);
  showBars("multilora-bars", probabilities);
  showVerdict("multilora-verdict", probabilities);
  $("multilora-accuracy").textContent = percent(ACCURACY_OF_TASK[view][task]);
  document.querySelectorAll("#matrix td").forEach((cell) => {
    cell.classList.toggle("now", cell.dataset.view === view && cell.dataset.task === task);
  });
  for (const [group, value] of [["view", view], ["task", task]]) {
    document.querySelectorAll(`input[name=${group}]`).forEach((input) => { input.checked = input.value === value; });
  }
}

function show() {
  const { label } = state;
  $("input-name").textContent = label === null ? "Your drawing" : `A held-out ${label}`;
  document.querySelectorAll("#picker button").forEach((button) => {
    button.setAttribute("aria-pressed", label !== null && Number(button.dataset.digit) === state.digit);
  });
  paintPad();
  showDyLoRA();
  showInside();
  showMerged();
  showMultiLoRA();
}

const set = (changes) => { Object.assign(state, changes); show(); };

// ---------------------------------------------------------------- the input

function draw(cell, amount = 1) {
  const pixels = state.pixels.slice();
  pixels[cell] = Math.max(0, Math.min(1, pixels[cell] + amount));
  set({ pixels, label: null, cursor: cell });
}

/** A soft brush as wide as a pen stroke in the data. */
function brush(x, y) {
  const pixels = state.pixels.map((value, i) => {
    const distance = Math.hypot((i % 8) + 0.5 - x, Math.floor(i / 8) + 0.5 - y);
    return Math.max(value, Math.round(16 * Math.max(0, Math.min(1, 1.3 - distance))) / 16);
  });
  set({ pixels, label: null });
}

function connectPad() {
  const pad = $("pad");
  const stroke = (event) => {
    const box = pad.getBoundingClientRect();
    brush(((event.clientX - box.left) / box.width) * 8, ((event.clientY - box.top) / box.height) * 8);
  };
  pad.addEventListener("pointerdown", (event) => {
    if (state.label !== null) Object.assign(state, { pixels: new Array(64).fill(0), label: null });
    pad.setPointerCapture(event.pointerId);
    stroke(event);
  });
  pad.addEventListener("pointermove", (event) => { if (event.buttons) stroke(event); });
  pad.addEventListener("keydown", (event) => {
    const { cursor } = state, row = Math.floor(cursor / 8), column = cursor % 8;
    const moves = {
      ArrowLeft: [row, Math.max(0, column - 1)], ArrowRight: [row, Math.min(7, column + 1)],
      ArrowUp: [Math.max(0, row - 1), column], ArrowDown: [Math.min(7, row + 1), column],
    };
    if (event.key in moves) set({ cursor: 8 * moves[event.key][0] + moves[event.key][1] });
    else if (event.key === " ") draw(cursor);
    else if (event.key === "Delete" || event.key === "Backspace") draw(cursor, -1);
    else return;
    event.preventDefault();
  });
  pad.addEventListener("focus", paintPad);
  pad.addEventListener("blur", paintPad);
  $("clear").addEventListener("click", () => set({ pixels: new Array(64).fill(0), label: null }));
}

function fillPicker() {
  const buttons = OF_LABEL.map((indices) => indices[state.page % indices.length]).map((i) => {
    const canvas = element("canvas", { width: 48, height: 48 });
    paint(canvas, DIGITS[i].pixels, 8);
    const button = element("button", { type: "button", "aria-label": `Held-out digit ${i + 1}: a ${DIGITS[i].label}` }, canvas);
    button.dataset.digit = i;
    button.addEventListener("click", () => set({ ...DIGITS[i], digit: i }));
    return button;
  });
  $("picker").replaceChildren(...buttons);
}

// ---------------------------------------------------------------- built once

function buildCurve() {
  const names = { dylora: "DyLoRA", svd: "LoRA truncated by the SVD", slice: "first components of LoRA" };
  $("curve").replaceChildren(...compared.accuracies.dylora.map((accuracy, rank) => {
    const bars = Object.keys(names).map((name) => {
      const bar = element("i", { className: name });
      bar.style.height = percent(compared.accuracies[name][rank]).replace(" ", "");
      return bar;
    });
    const words = Object.entries(names).map(([name, text]) => `${text} ${percent(compared.accuracies[name][rank])}`);
    const label = `Rank ${rank}: ${words.join(", ")}`;
    const button = element("button", { type: "button", "aria-label": label, title: label },
      element("span", {}, (100 * accuracy).toFixed(0)), element("div", {}, ...bars), element("small", {}, `${rank}`));
    button.addEventListener("click", () => set({ rank }));
    return button;
  }));
}

function paintComponents() {
  const { A, B } = compared.dylora;
  const largest = (values) => Math.max(...values.map(Math.abs), 1e-12);
  const head = element("div", { className: "component-head" }, ...["", "A", "B"].map((name) => element("span", {}, name)));
  const rows = B.map((row, k) => {
    const column = A.map((values) => values[k]);
    const a = element("canvas", { width: 64, height: 64, className: "a" });
    const b = element("canvas", { width: 640, height: 20, className: "b" });
    paint(a, column.map((value) => value / largest(column)), 8, { signed: true });
    paint(b, row.map((value) => value / largest(row)), HIDDEN, { signed: true });
    const button = element("button", { type: "button", className: "component", "aria-label": `Component ${k + 1}` },
      element("span", {}, `${k + 1}`), a, b);
    button.addEventListener("click", () => set({ component: k }));
    return button;
  });
  $("components").replaceChildren(head, ...rows);
}

function buildChoices(id, name, values) {
  for (const [value, words] of values) {
    const key = `${name}-${value.replace(" ", "-")}`;
    const input = element("input", { type: "radio", name, value, id: key });
    input.addEventListener("change", () => set({ [name]: value }));
    $(id).append(element("div", { className: "choice" }, input, element("label", { htmlFor: key }, words)));
  }
}

function buildMatrix() {
  const head = TASKS.map((task) => element("th", { scope: "col" }, task === "upright" ? "no adapter" : task));
  const rows = TASKS.map((view) => element("tr", {}, element("th", { scope: "row" }, view), ...TASKS.map((task) => {
    const accuracy = ACCURACY_OF_TASK[view][task], cell = element("td", {}, percent(accuracy, 0));
    cell.style.background = `rgba(${colour("--plus")}, ${0.45 * accuracy})`;
    Object.assign(cell.dataset, { view, task });
    return cell;
  })));
  $("matrix").replaceChildren(element("caption", {}, "Rows: how the digits are shown. Columns: the active adapter."),
    element("thead", {}, element("tr", {}, element("td"), ...head)), element("tbody", {}, ...rows));
}

function redraw() {
  fillPicker();
  buildCurve();
  paintComponents();
  buildMatrix();
  show();
}

/** Show other adapters, such as those that the page has trained. */
function compare(dylora, lora) {
  compared = comparison(dylora, lora);
  buildCurve();
  paintComponents();
  show();
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("span.count").forEach((node) => { node.textContent = DIGITS.length; });
  $("rank").max = MAX_RANK;
  $("rank").addEventListener("input", () => set({ rank: Number($("rank").value) }));
  $("more").addEventListener("click", () => { state.page += 1; fillPicker(); show(); });
  document.querySelector(".ticks").replaceChildren(...compared.accuracies.dylora.map((_, rank) => element("span", {}, `${rank}`)));
  buildChoices("views", "view", TASKS.map((task) => [task, task]));
  buildChoices("tasks", "task", TASKS.map((task) => [task, task === "upright" ? "none: the base alone" : task]));
  connectPad();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  redraw();
});
