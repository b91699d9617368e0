/* A program for the conformance vectors in JavaScript, without dependencies: one JSON case per line in, one JSON result per
   line out. The mathematics is in docs/interactive/lora.js, which the interactive page runs in the browser, and in
   transformer.js. */
"use strict";
const Lora = require("../../docs/interactive/lora.js");
const Transformer = require("./transformer.js");
const { add, byColumn, product, scale, transpose } = Lora;

const scalingOf = (settings, p, rank) => Lora.scaling(settings.scaling || "max", settings.alpha, p.B.length, rank);

// W as (in, out), and back: the only difference between the two layouts.
const turned = (settings, M) => (settings.layout === "dense" ? M : transpose(M));

function branches(settings, p) {
  const entry = ([task, alpha]) => {
    const B = p[`${task}.B`];
    return [task, { A: p[`${task}.A`], B, s: Lora.scaling("max", alpha, B.length) }];
  };
  return Object.fromEntries(Object.entries(settings.alphas).map(entry));
}

function pass({ kind, settings }, p, choice) {
  const base = { W: turned(settings, p.W), b: p.b, activation: settings.activation };
  if (kind === "dense") return Lora.dense(p.x, base);
  if (kind === "multilora") {
    const tasks = Array.isArray(choice) ? choice : p.x.map(() => choice);
    return Lora.multilora(p.x, base, branches(settings, p), tasks);
  }
  const s = scalingOf(settings, p, kind === "dylora" ? choice : p.B.length);
  if (kind === "dora") return Lora.dora(p.x, { ...base, A: p.A, B: p.B, m: p.m, s, normGradient: settings.norm_gradient });
  if (kind === "vera") return Lora.beside(p.x, base, { A: p.A, B: p.B, d: p.d, v: p.v, s }, Lora.veraBranch);
  if (kind === "lora") return Lora.beside(p.x, base, { A: p.A, B: p.B, s });
  const ranks = [0, ...settings.active_ranks];
  const trainedFrom = settings.mode === "frozen" ? ranks[ranks.indexOf(choice) - 1] : 0;
  return Lora.beside(p.x, base, { A: p.A, B: p.B, s, rank: choice, trainedFrom });
}

function merged({ kind, settings }, p, choice) {
  const W = turned(settings, p.W);
  if (kind === "multilora") {
    const { A, B, s } = branches(settings, p)[choice];
    return turned(settings, add(W, scale(product(A, B), s)));
  }
  const rank = kind === "dylora" ? choice : p.B.length, s = scalingOf(settings, p, rank);
  if (kind === "dora") return turned(settings, Lora.doraWeight({ ...p, W, s }));
  const A = kind === "vera" ? byColumn(p.A, p.d) : Lora.columns(p.A, 0, rank);
  const B = kind === "vera" ? byColumn(p.B, p.v) : p.B.slice(0, rank);
  return turned(settings, add(W, scale(product(A, B), s)));
}

const descend = (array, slope, rate) =>
  array.map((item, i) => (Array.isArray(item) ? descend(item, slope[i], rate) : item - rate * slope[i]));

function gradients(test, p, choice) {
  const [y, backward] = pass(test, p, choice);
  const found = backward(p.G);
  found.W = turned(test.settings, found.W);
  return [y, found];
}

function ofLayer(test) {
  const { kind, settings, arrays } = test, [first] = settings.schedule;
  const [y, slopes] = gradients(test, arrays, first);
  const found = { y };
  for (const [name, slope] of Object.entries(slopes)) found[`grad.${name}`] = slope;
  const one = kind !== "dense" && !Array.isArray(first) && settings.activation === "identity";
  if (one) found.merged = merged(test, arrays, first);
  const p = { ...arrays };
  for (const choice of settings.schedule) {
    const slope = gradients(test, p, choice)[1];
    for (const name of settings.trained) if (name in slope) p[name] = descend(p[name], slope[name], settings.learning_rate);
  }
  for (const name of settings.trained) found[`after.${name}`] = p[name];
  return found;
}

// The kinds that are functions of their arrays alone: [y, backward] of each.
const functions = {
  activation: (p, { function: name }) => Lora.activation(name, p.z),
  layer_norm: (p, settings) => Transformer.layerNorm(p.x, { ...p, ...settings }),
  rms_norm: (p, settings) => Transformer.rmsNorm(p.x, { ...p, ...settings }),
  rotary: (p, settings) => Transformer.rotary(p.x, { ...p, ...settings }),
  attention: Transformer.attention,
  bert_block: Transformer.bertBlock,
  gpt2_block: Transformer.gpt2Block,
  llama_block: Transformer.llamaBlock,
};

function ofFunction({ kind, settings, arrays }) {
  const [y, backward] = functions[kind](arrays, settings);
  const slopes = Object.entries(backward(arrays.G)).map(([name, slope]) => [`grad.${name}`, slope]);
  return { y, ...Object.fromEntries(slopes) };
}

function answer(test) {
  const { kind, settings, arrays } = test;
  if (kind === "loss") {
    const [value, slope] = Lora.losses[settings.function](arrays.predictions, arrays.targets, settings);
    return { value, "grad.predictions": slope };
  }
  return kind in functions ? ofFunction(test) : ofLayer(test);
}

for (const line of require("fs").readFileSync(0, "utf8").trim().split("\n")) {
  const test = JSON.parse(line);
  console.log(JSON.stringify({ name: test.name, arrays: answer(test) }));
}
