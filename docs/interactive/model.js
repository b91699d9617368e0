/* The exported models on the held-out digits: from data.js by lora.js, independent of the page. */
"use strict";

const HIDDEN = DATA.hidden.b.length, MAX_RANK = DATA.dylora.B.length;
const DIGITS = DATA.images.map((letters, i) => ({
  pixels: [...letters].map((letter) => (letter.charCodeAt(0) - 97) / 16), label: DATA.labels[i],
}));

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

/** The logits of images, one per row, with the first `rank` components of the DyLoRA; 0 is the base alone. */
function dyloraLogits(images, rank) {
  const { A, B, alpha } = DATA.dylora;
  if (rank === 0) return logits(Lora.dense(images, first)[0]);
  return logits(Lora.beside(images, first, { A, B, s: Lora.scaling("max", alpha, MAX_RANK, rank), rank })[0]);
}

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
const ACCURACY_AT_RANK = Array.from({ length: MAX_RANK + 1 }, (_, rank) => accuracy(dyloraLogits(seen(DATA.dylora.view), rank)));
const ACCURACY_OF_TASK = Object.fromEntries(TASKS.map((view) => [
  view, Object.fromEntries(TASKS.map((task) => [task, accuracy(taskLogits(seen(view), DIGITS.map(() => task)))])),
]));
