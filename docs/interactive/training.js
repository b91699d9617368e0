/* Training an adapter of the hidden layer with Adam: a LoRA at its full rank, and a DyLoRA at one random rank per step.
   The base is frozen, so its part of the hidden layer is computed once. */
"use strict";

const Training = (() => {
  /** Uniform numbers in [0, 1) that depend on the seed alone (mulberry32, T. Ettinger). */
  function uniform(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), state | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
    };
  }

  /** A normally distributed number (Box and Muller 1958). */
  const normal = (random) => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());

  /** The numbers 0 to n - 1 in random order (Fisher and Yates; Durstenfeld 1964). */
  function permutation(n, random) {
    const order = Array.from({ length: n }, (_, i) => i);
    for (let i = n - 1; i > 0; i--) {
      const j = Math.floor(random() * (i + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  }

  /** Factors that leave the function of the base unchanged: A is drawn from N(0, 1/r), and B is zero. */
  function newAdapter(inputs, outputs, rank, random) {
    const A = Array.from({ length: inputs }, () => Array.from({ length: rank }, () => normal(random) / Math.sqrt(rank)));
    return { A, B: A[0].map(() => new Array(outputs).fill(0)), alpha: rank };
  }

  /** Adam (Kingma and Ba 2015) for a matrix whose row k is component k. A component that was not trained in a step keeps
      its values, its moments and its number of steps. */
  function adam(components) {
    const zeros = () => components.map((row) => row.map(() => 0));
    const m = zeros(), v = zeros(), count = components.map(() => 0), beta1 = 0.9, beta2 = 0.999;
    return (gradient, rank, rate) => {
      for (let k = 0; k < rank; k++) {
        const t = (count[k] += 1), root1 = 1 - beta1 ** t, root2 = 1 - beta2 ** t;
        gradient[k].forEach((g, i) => {
          m[k][i] = beta1 * m[k][i] + (1 - beta1) * g;
          v[k][i] = beta2 * v[k][i] + (1 - beta2) * g * g;
          components[k][i] -= (rate * (m[k][i] / root1)) / (Math.sqrt(v[k][i] / root2) + 1e-8);
        });
      }
    };
  }

  /** A trainer of one adapter: `step(batch, rank, rate)` trains the first `rank` components, and returns the loss. */
  function trainer(adapter, { inputs, labels, hidden, output }) {
    const base = Lora.dense(inputs, { W: hidden.W, b: hidden.b })[0], upwards = Lora.transpose(output.W);
    const columnsOfA = Lora.transpose(adapter.A), moveA = adam(columnsOfA), moveB = adam(adapter.B);
    return {
      adapter,
      step(batch, rank, rate) {
        const rows = (M) => batch.map((i) => M[i]);
        const s = Lora.scaling("max", adapter.alpha, adapter.B.length, rank);
        const [change, back] = Lora.branch(rows(inputs), { A: adapter.A, B: adapter.B, s, rank });
        const [h, throughRelu] = Lora.activation("relu", Lora.add(rows(base), change));
        const [loss, G] = Lora.losses.softmax_cross_entropy(Lora.dense(h, output)[0], rows(labels));
        const gradient = back(throughRelu(Lora.product(G, upwards)).z);
        moveA(Lora.transpose(gradient.A), rank, rate);
        moveB(gradient.B, rank, rate);
        adapter.A = Lora.transpose(columnsOfA);
        return loss;
      },
    };
  }

  /** Train a LoRA and a DyLoRA from the same start on the same batches; the learning rate falls linearly to zero.

      `advance()` takes one step of each and returns their losses; `done` is the number of steps taken, of `steps`. */
  function run(problem, { rank, epochs, batch, rate, seed }) {
    const random = uniform(seed), rows = problem.inputs.length, perEpoch = Math.ceil(rows / batch);
    const start = newAdapter(problem.inputs[0].length, problem.hidden.b.length, rank, random);
    const copy = () => ({ ...start, A: start.A.map((row) => row.slice()), B: start.B.map((row) => row.slice()) });
    const lora = trainer(copy(), problem), dylora = trainer(copy(), problem);
    let order = [];
    return {
      lora: lora.adapter, dylora: dylora.adapter, done: 0, steps: epochs * perEpoch, perEpoch,
      advance() {
        const number = this.done % perEpoch, now = rate * (1 - this.done / this.steps);
        if (number === 0) order = permutation(rows, random);
        const indices = order.slice(number * batch, (number + 1) * batch);
        this.done += 1;
        return {
          lora: lora.step(indices, rank, now),
          dylora: dylora.step(indices, 1 + Math.floor(rank * random()), now),
        };
      },
    };
  }

  return { uniform, normal, permutation, newAdapter, trainer, run };
})();

if (typeof module !== "undefined") module.exports = Training;
