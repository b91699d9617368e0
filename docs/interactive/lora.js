/* LoRA, DyLoRA, MultiLoRA, DoRA and VeRA, forward and backward, in plain JavaScript.

   A matrix is an array of rows. Every layer is a function that returns [y, backward], and backward(G) returns the gradients
   of sum(G * y) by name; that of the input is `x`. Load it by <script src="lora.js"> (global `Lora`) or require("./lora.js").
   docs/conformance.md has the equations; the tests compare every function with the conformance vectors. */
"use strict";

const Lora = (() => {
  // ---------------------------------------------------------------- matrices

  const zip = (a, b, f) => a.map((value, i) => f(value, b[i]));
  const transpose = (M) => M[0].map((_, j) => M.map((row) => row[j]));
  const map = (M, f) => M.map((row) => row.map(f));
  const add = (M, N) => zip(M, N, (a, b) => zip(a, b, (p, q) => p + q));
  const scale = (M, s) => map(M, (value) => s * value);
  const columns = (M, from, to) => M.map((row) => row.slice(from, to));
  const byColumn = (M, c) => map(M, (value, j) => value * c[j]);
  const times = (M, N) => zip(M, N, (a, b) => zip(a, b, (p, q) => p * q));
  const sumRows = (M) => M.reduce((total, row) => zip(total, row, (p, q) => p + q));
  const rowTimes = (row, M, width) => {
    const total = new Array(width).fill(0);
    row.forEach((value, i) => { for (let j = 0; j < width; j++) total[j] += value * M[i][j]; });
    return total;
  };
  const product = (M, N) => M.map((row) => rowTimes(row, N, N[0].length));

  // ---------------------------------------------------------------- activations of one row z, and dz = J' dy

  const each = (f, slope) => ({ f: (z) => z.map(f), vjp: (dy, z) => zip(dy, z, (d, value) => d * slope(value)) });
  const sigmoid = (z) => (z > 0 ? 1 / (1 + Math.exp(-z)) : Math.exp(z) / (1 + Math.exp(z)));
  const softplus = (z) => Math.max(z, 0) + Math.log1p(Math.exp(-Math.abs(z)));
  const SELU = { alpha: 1.6732632423543772, scale: 1.0507009873554805 };

  // erf(z) = 2/sqrt(pi) exp(-z*z) sum of 2^n z^(2n+1) / (1 3 5 ... (2n+1)): every term has the sign of z, so nothing cancels.
  function erf(z) {
    if (Math.abs(z) > 6) return Math.sign(z);
    let term = z, sum = z;
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) sum += term *= (2 * z * z) / (2 * n + 1);
    return (2 / Math.sqrt(Math.PI)) * Math.exp(-z * z) * sum;
  }

  const GELU = { c: Math.sqrt(2 / Math.PI), d: 0.044715 };
  const geluTanh = (z) => Math.tanh(GELU.c * (z + GELU.d * z ** 3));
  const cumulative = (z) => 0.5 * (1 + erf(z / Math.SQRT2));
  const density = (z) => Math.exp(-0.5 * z * z) / Math.sqrt(2 * Math.PI);

  function softmax(z) {
    const top = Math.max(...z), powers = z.map((value) => Math.exp(value - top));
    const sum = powers.reduce((p, q) => p + q);
    return powers.map((power) => power / sum);
  }

  const activations = {
    identity: each((z) => z, () => 1),
    relu: each((z) => Math.max(z, 0), (z) => (z > 0 ? 1 : 0)),
    leaky_relu: each((z) => (z > 0 ? z : 0.01 * z), (z) => (z > 0 ? 1 : 0.01)),
    elu: each((z) => (z > 0 ? z : Math.expm1(z)), (z) => (z > 0 ? 1 : Math.exp(z))),
    selu: each(
      (z) => SELU.scale * (z > 0 ? z : SELU.alpha * Math.expm1(z)),
      (z) => SELU.scale * (z > 0 ? 1 : SELU.alpha * Math.exp(z)),
    ),
    sigmoid: each(sigmoid, (z) => sigmoid(z) * sigmoid(-z)),
    tanh: each(Math.tanh, (z) => 1 - Math.tanh(z) ** 2),
    softplus: each(softplus, sigmoid),
    softsign: each((z) => z / (1 + Math.abs(z)), (z) => 1 / (1 + Math.abs(z)) ** 2),
    swish: each((z) => z * sigmoid(z), (z) => sigmoid(z) + z * sigmoid(z) * sigmoid(-z)),
    gelu: each(
      (z) => 0.5 * z * (1 + geluTanh(z)),
      (z) => 0.5 * (1 + geluTanh(z)) + 0.5 * z * (1 - geluTanh(z) ** 2) * GELU.c * (1 + 3 * GELU.d * z * z),
    ),
    gelu_exact: each((z) => z * cumulative(z), (z) => cumulative(z) + z * density(z)),
    softmax: {
      f: softmax,
      vjp(dy, z) {
        const y = softmax(z), mean = zip(dy, y, (d, value) => d * value).reduce((p, q) => p + q);
        return zip(dy, y, (d, value) => value * (d - mean));
      },
    },
  };

  function activation(name, z) {
    const { f, vjp } = activations[name];
    return [z.map(f), (G) => ({ z: zip(G, z, vjp) })];
  }

  // ---------------------------------------------------------------- losses: [value, gradient of the predictions]

  // The mean over all elements of a function of prediction and target, with its derivative.
  const mean = (f, slope) => (P, T) => {
    const n = P.length * P[0].length;
    const value = zip(P, T, (p, t) => zip(p, t, f).reduce((a, b) => a + b)).reduce((a, b) => a + b) / n;
    return [value, zip(P, T, (p, t) => zip(p, t, (a, b) => slope(a, b) / n))];
  };

  const losses = {
    mean_squared_error: mean((p, t) => (p - t) ** 2, (p, t) => 2 * (p - t)),
    mean_absolute_error: mean((p, t) => Math.abs(p - t), (p, t) => Math.sign(p - t)),
    huber: (P, T, { delta }) => mean(
      (p, t) => (Math.abs(p - t) <= delta ? (p - t) ** 2 / 2 : delta * (Math.abs(p - t) - delta / 2)),
      (p, t) => Math.max(-delta, Math.min(delta, p - t)),
    )(P, T),
    binary_cross_entropy: mean((z, t) => softplus(z) - t * z, (z, t) => sigmoid(z) - t),
    softmax_cross_entropy(Z, targets) {
      const T = zip(Z, targets, (z, t) => (Array.isArray(t) ? t : z.map((_, k) => (k === t ? 1 : 0))));
      let value = 0;
      const gradient = zip(Z, T, (z, t) => {
        const top = Math.max(...z), sum = z.reduce((a, b) => a + Math.exp(b - top), 0);
        const weight = t.reduce((a, b) => a + b);
        zip(z, t, (logit, w) => { value -= (w * (logit - top - Math.log(sum))) / Z.length; });
        return zip(softmax(z), t, (p, w) => (p * weight - w) / Z.length);
      });
      return [value, gradient];
    },
  };

  // ---------------------------------------------------------------- layers

  /** y = f(x W + b), with W of shape (in, out). */
  function dense(x, { W, b, activation: name = "identity" }) {
    const z = product(x, W).map((row) => zip(row, b, (p, q) => p + q));
    const [y, through] = activation(name, z);
    return [y, (G) => {
      const dz = through(G).z;
      return { x: product(dz, transpose(W)), W: product(transpose(x), dz), b: sumRows(dz) };
    }];
  }

  /** y = s (x A) B with the first `rank` components; components before `trainedFrom` receive no gradient. */
  function branch(x, { A, B, s, rank = B.length, trainedFrom = 0 }) {
    const a = columns(A, 0, rank), b = B.slice(0, rank);
    const h = scale(product(x, a), s);
    return [product(h, b), (G) => {
      const dh = scale(product(G, transpose(b)), s), trains = (k) => k >= trainedFrom && k < rank;
      const dA = product(transpose(x), dh), dB = product(transpose(h), G);
      return {
        x: product(dh, transpose(a)),
        A: A.map((row, i) => row.map((_, k) => (trains(k) ? dA[i][k] : 0))),
        B: B.map((row, k) => (trains(k) ? dB[k] : row.map(() => 0))),
      };
    }];
  }

  /** y = s ((x A) d B) v, where d and v train. */
  function veraBranch(x, { A, B, d, v, s }) {
    const h = product(x, A), t = scale(product(byColumn(h, d), B), s);
    return [byColumn(t, v), (G) => {
      const dq = scale(product(byColumn(G, v), transpose(B)), s);
      return { x: product(byColumn(dq, d), transpose(A)), d: sumRows(times(h, dq)), v: sumRows(times(G, t)) };
    }];
  }

  /** Base and branch in parallel: LoRA and DyLoRA with `branch`, VeRA with `veraBranch`. */
  function beside(x, base, part, apply = branch) {
    const [y, baseBack] = dense(x, base), [change, partBack] = apply(x, part);
    return [add(y, change), (G) => {
      const left = baseBack(G), right = partBack(G);
      return { ...left, ...right, x: add(left.x, right.x) };
    }];
  }

  /** Each row uses the branch of its task; null means the base alone. Gradients are named "task.A", "task.B". */
  function multilora(x, base, branches, tasks) {
    const [z, baseBack] = dense(x, base), y = z.slice(), parts = [];
    for (const task of new Set(tasks.filter((name) => name !== null))) {
      const rows = tasks.flatMap((name, i) => (name === task ? [i] : []));
      const [change, back] = branch(rows.map((i) => x[i]), branches[task]);
      rows.forEach((i, k) => { y[i] = zip(y[i], change[k], (p, q) => p + q); });
      parts.push([task, rows, back]);
    }
    return [y, (G) => {
      const found = baseBack(G);
      for (const [task, rows, back] of parts) {
        const own = back(rows.map((i) => G[i]));
        rows.forEach((i, k) => { found.x[i] = zip(found.x[i], own.x[k], (p, q) => p + q); });
        found[`${task}.A`] = own.A;
        found[`${task}.B`] = own.B;
      }
      return found;
    }];
  }

  const norms = (V) => transpose(V).map((column) => Math.hypot(...column));

  /** The weight of DoRA, V m / |V| by columns, with V = W + s A B. */
  function doraWeight({ W, A, B, m, s }) {
    const V = add(W, scale(product(A, B), s));
    return byColumn(V, zip(m, norms(V), (p, n) => p / n));
  }

  /** y = x (V m / |V|) + b with V = W + s A B; `normGradient: false` treats the norm as a constant. */
  function dora(x, { W, b, A, B, m, s, normGradient = true }) {
    const V = add(W, scale(product(A, B), s)), n = norms(V), c = zip(m, n, (p, q) => p / q), u = product(x, V);
    const y = byColumn(u, c).map((row) => zip(row, b, (p, q) => p + q));
    return [y, (G) => {
      const du = byColumn(G, c), dc = sumRows(times(G, u));
      const through = c.map((value, j) => (normGradient ? (-dc[j] * value) / n[j] ** 2 : 0));
      const dV = add(product(transpose(x), du), byColumn(V, through));
      return {
        x: product(du, transpose(V)), m: zip(dc, n, (p, q) => p / q), W: dV, b: sumRows(G),
        A: scale(product(dV, transpose(B)), s), B: scale(product(transpose(A), dV), s),
      };
    }];
  }

  /** The factor of the first `rank` of `full` components; a negative alpha means `full`. */
  function scaling(rule, alpha, full, rank = full) {
    const a = alpha < 0 ? full : alpha;
    return a / { max: full, paper: rank, rslora: Math.sqrt(rank) }[rule];
  }

  /** The same product A B as orthogonal components in order of size: u_k v_k' of the singular value decomposition, with the
      singular value in u_k. Its first r components are the best approximation of rank r (Eckart and Young 1936).

      One-sided Jacobi (Hestenes 1958): rotations of two columns at a time make the columns of U = A B R orthogonal. */
  function canonical(A, B) {
    const U = transpose(product(A, B)), R = U.map((_, j) => U.map((_, k) => (j === k ? 1 : 0)));
    const dot = (u, v) => u.reduce((sum, value, i) => sum + value * v[i], 0);
    const total = U.reduce((sum, u) => sum + dot(u, u), 0);
    const rotate = (M, p, q, cos, sin) => {
      [M[p], M[q]] = [zip(M[p], M[q], (a, b) => cos * a - sin * b), zip(M[p], M[q], (a, b) => sin * a + cos * b)];
    };
    for (let sweep = 0, rotated = true; rotated && sweep < 60; sweep++) {
      rotated = false;
      for (let p = 0; p < U.length; p++) {
        for (let q = p + 1; q < U.length; q++) {
          const overlap = dot(U[p], U[q]);
          if (Math.abs(overlap) <= 1e-15 * total) continue;
          const zeta = (dot(U[q], U[q]) - dot(U[p], U[p])) / (2 * overlap);
          const tan = (zeta < 0 ? -1 : 1) / (Math.abs(zeta) + Math.hypot(1, zeta)), cos = 1 / Math.hypot(1, tan);
          rotate(U, p, q, cos, cos * tan);
          rotate(R, p, q, cos, cos * tan);
          rotated = true;
        }
      }
    }
    const order = U.map((_, k) => k).sort((p, q) => dot(U[q], U[q]) - dot(U[p], U[p])).slice(0, B.length);
    return { A: transpose(order.map((k) => U[k])), B: order.map((k) => R[k]) };
  }

  return {
    activation, activations, losses, dense, branch, veraBranch, beside, multilora, dora, doraWeight, scaling, softmax,
    canonical, product, transpose, add, scale, columns, byColumn,
  };
})();

if (typeof module !== "undefined") module.exports = Lora;
