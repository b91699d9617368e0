/* The parts of a transformer, forward and backward, from the equations of docs/conformance.md. As in lora.js, a function
   returns [y, backward], and backward(G) returns the gradients of sum(G * y) by name. */
"use strict";
const { activation, add, byColumn, columns, dense, softmax, transpose } = require("../../docs/interactive/lora.js");

const zeros = (M) => M.map((row) => row.map(() => 0));
const sum = (values) => values.reduce((a, b) => a + b, 0);
const mean = (values) => sum(values) / values.length;
const dot = (a, b) => sum(a.map((value, j) => value * b[j]));
const sumRows = (M) => transpose(M).map(sum);
const times = (M, N) => M.map((row, i) => row.map((value, j) => value * N[i][j]));

// ---------------------------------------------------------------- norms of each row

/** y = n g with n = x u, u = 1 / sqrt(mean(x x) + epsilon). */
function rmsNorm(x, { g, epsilon }) {
  const u = x.map((row) => 1 / Math.sqrt(dot(row, row) / row.length + epsilon));
  const n = x.map((row, i) => row.map((value) => value * u[i]));
  return [byColumn(n, g), (G) => {
    const dx = byColumn(G, g).map((dn, i) => {
      const along = dot(dn, n[i]) / dn.length;
      return dn.map((value, j) => u[i] * (value - n[i][j] * along));
    });
    return { x: dx, g: sumRows(times(G, n)) };
  }];
}

/** y = n g + b: the same of x - mean(x), plus b. */
function layerNorm(x, { g, b, epsilon }) {
  const centred = (M) => M.map((row) => row.map((value) => value - mean(row)));
  const [y, back] = rmsNorm(centred(x), { g, epsilon });
  return [y.map((row) => row.map((value, j) => value + b[j])), (G) => {
    const found = back(G);
    return { ...found, x: centred(found.x), b: sumRows(G) };
  }];
}

// ---------------------------------------------------------------- attention

// Every head of every row, with its coordinates j and j + d/2 turned by sign * position * base^(-2j/d).
function turned(x, heads, positions, base, sign) {
  const d = x[0].length / heads, half = d / 2, y = zeros(x);
  x.forEach((row, n) => row.forEach((value, i) => {
    const j = i % d, first = j < half, angle = sign * positions[n] * base ** (-2 * (j % half) / d);
    y[n][i] += value * Math.cos(angle);
    y[n][first ? i + half : i - half] += value * (first ? Math.sin(angle) : -Math.sin(angle));
  }));
  return y;
}

/** Rotary positions; the transpose of a rotation is the rotation back. */
const rotary = (x, { positions, heads, rotary_base: base }) =>
  [turned(x, heads, positions, base, 1), (G) => ({ x: turned(G, heads, positions, base, -1) })];

/** One head: c = P v with P = softmax(q k' / sqrt(d)) over the rows that each query sees. */
function head(q, k, v, sees) {
  const d = q[0].length, scale = 1 / Math.sqrt(d), all = k.map((_, m) => m);
  const seen = q.map((_, n) => all.filter((m) => sees(n, m)));
  const P = q.map((row, n) => softmax(seen[n].map((m) => scale * dot(row, k[m]))));
  const c = q.map((row, n) => row.map((_, j) => sum(seen[n].map((m, i) => P[n][i] * v[m][j]))));
  return [c, (G) => {
    const dq = zeros(q), dk = zeros(k), dv = zeros(v);
    G.forEach((g, n) => {
      const dP = seen[n].map((m) => dot(g, v[m])), average = dot(P[n], dP);
      seen[n].forEach((m, i) => {
        const ds = scale * P[n][i] * (dP[i] - average);
        for (let j = 0; j < d; j++) {
          dv[m][j] += P[n][i] * g[j];
          dq[n][j] += ds * k[m][j];
          dk[m][j] += ds * q[n][j];
        }
      });
    });
    return { q: dq, k: dk, v: dv };
  }];
}

const beside = (parts) => parts[0].map((_, n) => parts.flatMap((part) => part[n]));

/** Query head h reads the key-value head floor(h groups / heads); rows see the rows of their own sequence. */
function attention({ q, k, v }, { lengths, heads, key_value_heads: groups, causal, rotary_base: base }) {
  const positions = lengths.flatMap((length) => Array.from({ length }, (_, t) => t));
  const sentence = lengths.flatMap((length, b) => new Array(length).fill(b));
  const sees = (n, m) => sentence[m] === sentence[n] && (!causal || m <= n);
  const turn = (x, count, sign) => (base === null ? x : turned(x, count, positions, base, sign));
  const d = q[0].length / heads, part = (x, h) => columns(x, h * d, (h + 1) * d);
  const Q = turn(q, heads, 1), K = turn(k, groups, 1);
  const group = (h) => Math.floor((h * groups) / heads), each = (count) => Array.from({ length: count }, (_, h) => h);
  const passes = each(heads).map((h) => head(part(Q, h), part(K, group(h)), part(v, group(h)), sees));
  return [beside(passes.map(([c]) => c)), (G) => {
    const slopes = passes.map(([, back], h) => back(part(G, h)));
    const ofGroup = (name, g) => slopes.filter((_, h) => group(h) === g).map((slope) => slope[name]).reduce(add);
    const shared = (name) => beside(each(groups).map((g) => ofGroup(name, g)));
    const dq = beside(slopes.map((slope) => slope.q));
    return { q: turn(dq, heads, -1), k: turn(shared("k"), groups, -1), v: shared("v") };
  }];
}

// ---------------------------------------------------------------- a block of BERT

/** a = norm(x + O attend(Q x, K x, V x)), y = norm(a + D gelu(U a)); arrays have the names of a checkpoint. */
function bertBlock(p, { lengths, heads, epsilon }) {
  const backward = {};
  const through = (name, [y, back]) => { backward[name] = back; return y; };
  const linear = (name, x) => through(name, dense(x, { W: transpose(p[`${name}.weight`]), b: p[`${name}.bias`] }));
  const norm = (name, x) => through(name, layerNorm(x, { g: p[`${name}.weight`], b: p[`${name}.bias`], epsilon }));
  const [Q, K, V] = ["query", "key", "value"].map((name) => `attention.self.${name}`);
  const [O, LN1] = ["attention.output.dense", "attention.output.LayerNorm"];
  const [U, D, LN2] = ["intermediate.dense", "output.dense", "output.LayerNorm"];

  const settings = { lengths, heads, key_value_heads: heads, causal: false, rotary_base: null };
  const c = through("attention", attention({ q: linear(Q, p.x), k: linear(K, p.x), v: linear(V, p.x) }, settings));
  const a = norm(LN1, add(p.x, linear(O, c)));
  const h = through("gelu", activation("gelu_exact", linear(U, a)));
  const y = norm(LN2, add(a, linear(D, h)));

  return [y, (G) => {
    const found = {};
    const back = (name, dy) => {
      const { x, W, g, b } = backward[name](dy);
      found[`${name}.weight`] = W ? transpose(W) : g;
      found[`${name}.bias`] = b;
      return x;
    };
    const dr2 = back(LN2, G);
    const da = add(dr2, back(U, backward.gelu(back(D, dr2)).z));
    const dr1 = back(LN1, da);
    const { q, k, v } = backward.attention(back(O, dr1));
    const x = [dr1, back(Q, q), back(K, k), back(V, v)].reduce(add);
    return { ...found, x };
  }];
}

// ---------------------------------------------------------------- blocks of decoders

/** The parts of a block, whose backward passes are kept by name; gradients of weights and biases are collected. */
function partsOf(p, outFirst, norm, epsilon) {
  const backward = {}, found = {};
  const layout = (W) => (outFirst ? transpose(W) : W);
  const through = (name, [y, back]) => { backward[name] = back; return y; };
  const array = (name, kind) => p[`${name}.${kind}`];
  const bias = (name, size) => array(name, "bias") ?? new Array(size).fill(0);
  const back = (name, dy) => {
    const { x, W, g, b } = backward[name](dy);
    found[`${name}.weight`] = W ? layout(W) : g;
    if (array(name, "bias")) found[`${name}.bias`] = b;
    return x;
  };
  return {
    through, back, backward, found,
    linear: (name, x) => {
      const W = layout(array(name, "weight"));
      return through(name, dense(x, { W, b: bias(name, W[0].length) }));
    },
    normed: (name, x) => through(name, norm(x, { g: array(name, "weight"), b: array(name, "bias"), epsilon })),
  };
}

/** a = x + O attend(split(A norm(x))), y = a + D gelu(U norm(a)); weights are (in, out). */
function gpt2Block(p, { lengths, heads, epsilon }) {
  const { through, back, backward, found, linear, normed } = partsOf(p, false, layerNorm, epsilon);
  const size = p.x[0].length, third = (x, i) => columns(x, i * size, (i + 1) * size);
  const qkv = linear("attn.c_attn", normed("ln_1", p.x));
  const settings = { lengths, heads, key_value_heads: heads, causal: true, rotary_base: null };
  const c = through("attention", attention({ q: third(qkv, 0), k: third(qkv, 1), v: third(qkv, 2) }, settings));
  const a = add(p.x, linear("attn.c_proj", c));
  const h = through("gelu", activation("gelu", linear("mlp.c_fc", normed("ln_2", a))));
  const y = add(a, linear("mlp.c_proj", h));

  return [y, (G) => {
    const dz = backward.gelu(back("mlp.c_proj", G)).z;
    const da = add(G, back("ln_2", back("mlp.c_fc", dz)));
    const { q, k, v } = backward.attention(back("attn.c_proj", da));
    const x = add(da, back("ln_1", back("attn.c_attn", beside([q, k, v]))));
    return { ...found, x };
  }];
}

/** n = norm(x), a = x + O attend(Q n, K n, V n), m = norm(a), y = a + D (swish(Z m) * U m); there are no biases. */
function llamaBlock(p, { lengths, heads, key_value_heads, rotary_base, epsilon }) {
  const { through, back, backward, found, linear, normed } = partsOf(p, true, rmsNorm, epsilon);
  const [Q, K, V, O] = ["q", "k", "v", "o"].map((letter) => `self_attn.${letter}_proj`);
  const [Z, U, D] = ["gate", "up", "down"].map((name) => `mlp.${name}_proj`);
  const n = normed("input_layernorm", p.x);
  const settings = { lengths, heads, key_value_heads, causal: true, rotary_base };
  const c = through("attention", attention({ q: linear(Q, n), k: linear(K, n), v: linear(V, n) }, settings));
  const a = add(p.x, linear(O, c));
  const m = normed("post_attention_layernorm", a);
  const g = through("swish", activation("swish", linear(Z, m))), u = linear(U, m);
  const y = add(a, linear(D, times(g, u)));

  return [y, (G) => {
    const dh = back(D, G);
    const dm = add(back(U, times(dh, g)), back(Z, backward.swish(times(dh, u)).z));
    const da = add(G, back("post_attention_layernorm", dm));
    const { q, k, v } = backward.attention(back(O, da));
    const x = add(da, back("input_layernorm", [back(Q, q), back(K, k), back(V, v)].reduce(add)));
    return { ...found, x };
  }];
}

module.exports = { layerNorm, rmsNorm, rotary, attention, bertBlock, gpt2Block, llamaBlock };
