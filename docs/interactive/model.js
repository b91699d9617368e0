/* The models of the page on the held-out digits: from data.js by lora.js, independent of the page. */
"use strict";

const HIDDEN = DATA.hidden.b.length, MAX_RANK = DATA.dylora.B.length;
const decoded = ({ images, labels }) => images.map((letters, i) => ({
  pixels: [...letters].map((letter) => (letter.charCodeAt(0) - 97) / 16), label: labels[i],
}));
const DIGITS = decoded(DATA.heldOut), TRAINING_DIGITS = decoded(DATA.training);

/** Move pixels: pixel (row, column) of the result is pixel `from(row, column)` of the 8 x 8 image. */
const moved = (from) => (pixels) => pixels.map((_, i) => {
  const [row, column] = from(Math.floor(i / 8), i % 8);
  return pixels[8 * row + column];
});

const VIEWS = {
  "upright": (pixels) => pixels,
  "rotated": moved((row, column) => [column, 7 - row]),
  "mirrored": moved((row, column) => [row, 7 - column]),
  "upside down": moved((row, column) => [7 - row, column]),
  "rotated and inverted": (pixels) => VIEWS.rotated(pixels).map((value) => 1 - value),
};
const TASKS = ["upright", ...Object.keys(DATA.multilora.tasks)];

const logits = (z) => Lora.dense(z.map(Lora.activations.relu.f), DATA.output)[0];
const first = { W: DATA.hidden.W, b: DATA.hidden.b };  // its activation follows the adapter

/** The scaling of an adapter's first `rank` components. */
const scalingOf = ({ alpha, B }, rank = B.length) => Lora.scaling("max", alpha, B.length, rank);

/** The logits of images, one per row, with the first `rank` components of an adapter; 0 is the base alone. */
function adaptedLogits(images, adapter, rank) {
  if (rank === 0) return logits(Lora.dense(images, first)[0]);
  const { A, B } = adapter;
  return logits(Lora.beside(images, first, { A, B, s: scalingOf(adapter, rank), rank })[0]);
}

/** The weight W + s A B of the hidden layer with the first `rank` components added. */
function mergedWeight({ A, B, alpha }, rank) {
  if (rank === 0) return first.W;
  const change = Lora.product(Lora.columns(A, 0, rank), B.slice(0, rank));
  return Lora.add(first.W, Lora.scale(change, scalingOf({ alpha, B }, rank)));
}

/** What component k adds for an image x: its terms x_i a_ik, their sum h, and h s b_k for the hidden units. */
function insideComponent(pixels, adapter, k) {
  const terms = pixels.map((value, i) => value * adapter.A[i][k]), h = terms.reduce((sum, term) => sum + term, 0);
  return { terms, h, added: adapter.B[k].map((value) => h * scalingOf(adapter) * value) };
}

/** An adapter whose first components are those of the singular value decomposition of A B. */
const byValues = ({ A, B, alpha }) => ({ ...Lora.canonical(A, B), alpha });

/** The logits of images, one per row, with a task for each; "upright" is the base alone. */
function taskLogits(images, tasks) {
  const branches = {};
  for (const [task, { A, B }] of Object.entries(DATA.multilora.tasks)) {
    branches[task] = { A, B, s: Lora.scaling("max", DATA.multilora.alpha, B.length) };
  }
  return logits(Lora.multilora(images, first, branches, tasks.map((task) => (task === "upright" ? null : task)))[0]);
}

function accuracy(rows) {
  const right = rows.filter((row, i) => row.indexOf(Math.max(...row)) === DIGITS[i].label);
  return right.length / DIGITS.length;
}

const seen = (view) => DIGITS.map(({ pixels }) => VIEWS[view](pixels));
const SHIFTED = seen(DATA.dylora.view);

/** The accuracy of an adapter on the held-out digits at every rank from 0. */
const accuracies = (adapter) => Array.from({ length: MAX_RANK + 1 }, (_, rank) => accuracy(adaptedLogits(SHIFTED, adapter, rank)));

const ACCURACY_OF_TASK = Object.fromEntries(TASKS.map((view) => [
  view, Object.fromEntries(TASKS.map((task) => [task, accuracy(taskLogits(seen(view), DIGITS.map(() => task)))])),
]));
