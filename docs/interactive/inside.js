/* The formula with the numbers of one component, and the merge: what happens inside the adapted layer. */
"use strict";

const MINUS = "−";
const number = (value, digits = 2) => value.toFixed(digits).replace("-", MINUS);
/** A number as a term of a sum: with its sign in front. */
const term = (value) => `${value < 0 ? MINUS : "+"} ${number(Math.abs(value))}`;

/** The words of the formula for component k of an adapter at a rank: pairs of a name and its value. */
function formulaOf(pixels, adapter, k, rank) {
  const { terms, h, added } = insideComponent(pixels, adapter, k), s = scalingOf(adapter), name = k + 1;
  const bySize = pixels.map((_, i) => i).sort((i, j) => Math.abs(terms[j]) - Math.abs(terms[i])).slice(0, 3);
  const rest = h - bySize.reduce((sum, i) => sum + terms[i], 0);
  const unit = added.reduce((best, value, j) => (Math.abs(value) > Math.abs(added[best]) ? j : best), 0);
  const base = Lora.dense([pixels], first)[0][0][unit];
  const parts = Array.from({ length: rank }, (_, j) => insideComponent(pixels, adapter, j).added[unit]);
  const z = parts.reduce((sum, value) => sum + value, base);
  const shown = bySize.map((i) => `${number(pixels[i])} · ${number(adapter.A[i][k])}`).join(" + ");
  return [
    [`h = x · a${name}, over 64 pixels`, `${shown} ${term(rest)} for the others = ${number(h)}`],
    [`s h b${name}, for 32 units`, `most for unit ${unit + 1}: ${number(s)} · ${number(h)} · ${number(adapter.B[k][unit])} = ${number(added[unit])}`],
    [`unit ${unit + 1} at rank ${rank}`, `x w + b = ${number(base)} from the base, ${parts.map(term).join(" ") || "+ nothing"} = ${number(z)}`],
    [`relu(${number(z)})`, `${number(Math.max(z, 0))}${k < rank ? "" : `; at rank ${rank}, component ${name} is not in use`}`],
  ];
}

function showInside() {
  const { component, rank } = state;
  document.querySelectorAll(".chosen").forEach((node) => { node.textContent = component + 1; });
  document.querySelectorAll(".component").forEach((row, k) => row.setAttribute("aria-pressed", k === component));
  $("formula").replaceChildren(...formulaOf(shiftedPixels(), compared.dylora, component, rank)
    .flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

// ---------------------------------------------------------------- merging

function weightPicture(name, W, largest) {
  const canvas = element("canvas", { width: 4 * HIDDEN, height: 256, role: "img", "aria-label": `The 64 by 32 elements of ${name}` });
  paint(canvas, W.flat().map((value) => value / largest), HIDDEN, { signed: true });
  return element("figure", {}, canvas, element("figcaption", {}, name));
}

function showMerged() {
  const { rank } = state, pixels = shiftedPixels(), merged = mergedWeight(compared.dylora, rank);
  const change = Lora.add(merged, Lora.scale(first.W, -1)), largest = Math.max(...merged.flat().map(Math.abs));
  const sign = (text) => element("span", { className: "sign" }, text);
  $("weights").replaceChildren(weightPicture("W", first.W, largest), sign("+"), weightPicture("s A B", change, largest), sign("="),
    weightPicture("W′", merged, largest));

  const before = adaptedLogits([pixels], compared.dylora, rank)[0];
  const after = logits(Lora.dense([pixels], { W: merged, b: first.b })[0])[0];
  const row = (name, values) => element("tr", {}, element("th", { scope: "row" }, name),
    ...values.map((value) => element("td", {}, number(value))));
  $("merged").replaceChildren(
    element("caption", {}, `The ten outputs for this digit at rank ${rank}`),
    element("thead", {}, element("tr", {}, element("td"), ...before.map((_, digit) => element("th", { scope: "col" }, `${digit}`)))),
    element("tbody", {}, row("before", before), row("merged", after)),
  );
  const difference = Math.max(...before.map((value, i) => Math.abs(value - after[i])));
  const extra = rank * (64 + HIDDEN);
  $("merged-words").textContent = `Largest difference: ${difference === 0 ? "0" : difference.toExponential(1).replace("-", MINUS)}. `
    + `Before: ${64 * HIDDEN} + ${extra} multiplications in this layer; merged: ${64 * HIDDEN}.`;
}
