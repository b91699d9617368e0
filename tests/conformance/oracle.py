"""The expected arrays of every case, computed from the equations of docs/conformance.md without the package.

Forward passes are sums over indices, element by element, in 80-digit arithmetic. No gradient is derived by hand: each is a
central difference in this arithmetic, accurate to at least 40 digits.
"""

from mpmath import cos, erf, exp, log, mp, mpf, pi, sin, sqrt, tanh

DIGITS = 80
STEP = mpf(10) ** -25
NOISE = mpf(10) ** -40  # a smaller gradient consists of rounding errors

# ---------------------------------------------------------------- activations of one row


def _each(function):
    return lambda row: [function(z) for z in row]


def _beside_zero(function):
    """A function with a kink at zero, where a difference is not a derivative."""

    def checked(z):
        if z == 0:
            raise ValueError("an activation is not differentiable at 0: choose other numbers")
        return function(z)

    return _each(checked)


def _softmax(row):
    powers = [exp(z) for z in row]
    return [power / sum(powers) for power in powers]


def _sigmoid(z):
    return 1 / (1 + exp(-z))


def _selu(z):
    alpha, scale = mpf("1.6732632423543772848170429916717"), mpf("1.0507009873554804934193349852946")
    return scale * (z if z > 0 else alpha * (exp(z) - 1))


ACTIVATIONS = {
    "identity": _each(lambda z: z),
    "relu": _beside_zero(lambda z: max(z, mpf(0))),
    "leaky_relu": _beside_zero(lambda z: z if z > 0 else z / 100),
    "elu": _each(lambda z: z if z > 0 else exp(z) - 1),
    "selu": _beside_zero(_selu),
    "sigmoid": _each(_sigmoid),
    "tanh": _each(tanh),
    "softplus": _each(lambda z: log(1 + exp(z))),
    "softsign": _each(lambda z: z / (1 + abs(z))),
    "swish": _each(lambda z: z * _sigmoid(z)),
    "gelu": _each(lambda z: z / 2 * (1 + tanh(sqrt(2 / pi) * (z + mpf("0.044715") * z**3)))),
    "gelu_exact": _each(lambda z: z / 2 * (1 + erf(z / sqrt(2)))),
    "softmax": _softmax,
}

# ---------------------------------------------------------------- losses


def _mean(function):
    def loss(predictions, targets, settings):
        pairs = [pair for row, other in zip(predictions, targets, strict=True) for pair in zip(row, other, strict=True)]
        return sum(function(p, t, settings) for p, t in pairs) / len(pairs)

    return loss


def _huber(p, t, settings):
    e, delta = abs(p - t), mpf(settings["delta"])
    return e**2 / 2 if e <= delta else delta * (e - delta / 2)


def _softmax_cross_entropy(logits, targets, settings):
    total = mpf(0)
    for row, target in zip(logits, targets, strict=True):
        weights = target if isinstance(target, list) else [int(k == target) for k in range(len(row))]
        total -= sum(t * log(p) for t, p in zip(weights, _softmax(row), strict=True))
    return total / len(logits)


LOSSES = {
    "mean_squared_error": _mean(lambda p, t, settings: (p - t) ** 2),
    "mean_absolute_error": _mean(lambda p, t, settings: abs(p - t)),
    "huber": _mean(_huber),
    "softmax_cross_entropy": _softmax_cross_entropy,
    "binary_cross_entropy": _mean(lambda z, t, settings: log(1 + exp(z)) - t * z),
}

# ---------------------------------------------------------------- layers: the output of one row


def _transposed(matrix):
    return [list(column) for column in zip(*matrix, strict=True)]


def _matrix(settings, p):
    """W as (in, out)."""
    return p["W"] if settings["layout"] == "dense" else _transposed(p["W"])


def _base(settings, p, x):
    W, b = _matrix(settings, p), p["b"]
    z = [sum(x[i] * W[i][j] for i in range(len(x))) + b[j] for j in range(len(b))]
    return ACTIVATIONS[settings["activation"]](z)


def _scaling(rule, alpha, full_rank, rank):
    """The factor s of the first `rank` components."""
    alpha = mpf(full_rank if alpha < 0 else alpha)
    return {"max": alpha / full_rank, "paper": alpha / rank, "rslora": alpha / sqrt(rank)}[rule]


def _product(A, B, s, rank):
    """s A B of the first `rank` components, (in, out)."""
    return [[s * sum(A[i][k] * B[k][j] for k in range(rank)) for j in range(len(B[0]))] for i in range(len(A))]


def _applied(x, W):
    return [sum(x[i] * W[i][j] for i in range(len(x))) for j in range(len(W[0]))]


def _sum(*arrays):
    if isinstance(arrays[0], list):
        return [_sum(*items) for items in zip(*arrays, strict=True)]
    return sum(arrays)


def _change(kind, settings, p, choice):
    """The matrix that an additive adapter adds to W, (in, out); None if it adds nothing."""
    if kind == "dense" or (kind == "multilora" and choice is None):
        return None
    if kind == "multilora":
        A, B = p[f"{choice}.A"], p[f"{choice}.B"]
        return _product(A, B, _scaling("max", settings["alphas"][choice], len(B), len(B)), len(B))
    A, B = p["A"], p["B"]
    if kind == "vera":
        s = _scaling("max", settings["alpha"], len(B), len(B))
        scaled = [[B[k][j] * p["d"][k] * p["v"][j] for j in range(len(B[0]))] for k in range(len(B))]
        return _product(A, scaled, s, len(B))
    rank = choice if kind == "dylora" else len(B)
    return _product(A, B, _scaling(settings["scaling"], settings["alpha"], len(B), rank), rank)


def _direction(settings, p):
    """V = W + s A B of DoRA, (in, out)."""
    return _sum(_matrix(settings, p), _change("lora", settings, p, None))


def _norms(V):
    return [sqrt(sum(value**2 for value in column)) for column in _transposed(V)]


def _dora_weight(settings, p, norms):
    V = _direction(settings, p)
    norms = norms or _norms(V)
    return [[row[j] * p["m"][j] / norms[j] for j in range(len(row))] for row in V]


def _outputs(case, p, choice, norms=None):
    """The output of every row. `norms`, if given, are those of DoRA as constants."""
    kind, settings = case["kind"], case["settings"]
    if kind == "dora":
        W = _dora_weight(settings, p, norms)
        return [_sum(_applied(x, W), p["b"]) for x in p["x"]]
    choices = choice if isinstance(choice, list) else [choice] * len(p["x"])
    changes = {chosen: _change(kind, settings, p, chosen) for chosen in set(choices)}
    rows = []
    for x, chosen in zip(p["x"], choices, strict=True):
        y, change = _base(settings, p, x), changes[chosen]
        rows.append(y if change is None else _sum(y, _applied(x, change)))
    return rows


# ---------------------------------------------------------------- functions of arrays: activations, parts of transformers


def _activation(p, settings):
    return [ACTIVATIONS[settings["function"]](z) for z in p["z"]]


def _divided(x, epsilon):
    """A row, divided by the root of its mean square."""
    root = sqrt(sum(value**2 for value in x) / len(x) + mpf(epsilon))
    return [value / root for value in x]


def _centred(x):
    return [value - sum(x) / len(x) for value in x]


def _layer_norm(p, settings):
    rows = [_divided(_centred(x), settings["epsilon"]) for x in p["x"]]
    return [[n[j] * p["g"][j] + p["b"][j] for j in range(len(n))] for n in rows]


def _rms_norm(p, settings):
    rows = [_divided(x, settings["epsilon"]) for x in p["x"]]
    return [[n[j] * p["g"][j] for j in range(len(n))] for n in rows]


def _heads(row, count):
    size = len(row) // count
    return [row[h * size : (h + 1) * size] for h in range(count)]


def _turned(head, position, base):
    """Coordinates j and j + d/2 of a head as a point in the plane, turned by position / base^(2j/d)."""
    half, turned = len(head) // 2, list(head)
    for j in range(half):
        angle = position / mpf(base) ** (mpf(2 * j) / len(head))
        turned[j] = head[j] * cos(angle) - head[j + half] * sin(angle)
        turned[j + half] = head[j] * sin(angle) + head[j + half] * cos(angle)
    return turned


def _rotary(p, settings):
    rows = zip(p["x"], p["positions"], strict=True)
    heads, base = settings["heads"], settings["rotary_base"]
    return [[value for head in _heads(x, heads) for value in _turned(head, t, base)] for x, t in rows]


def _attention(p, settings):
    """Each head of each row: an average of the values of the rows that it sees."""
    heads, groups, base = settings["heads"], settings["key_value_heads"], settings["rotary_base"]
    places = [(sentence, position) for sentence, length in enumerate(settings["lengths"]) for position in range(length)]
    q, k, v = ([_heads(row, n) for row in p[name]] for name, n in (("q", heads), ("k", groups), ("v", groups)))
    if base is not None:
        q, k = ([[_turned(head, t, base) for head in row] for row, (_, t) in zip(a, places, strict=True)] for a in (q, k))
    rows = []
    for query, (sentence, position) in zip(q, places, strict=True):
        seen = [m for m, (s, t) in enumerate(places) if s == sentence and (t <= position or not settings["causal"])]
        c = []
        for h, head in enumerate(query):
            g = h * groups // heads
            scores = [sum(a * b for a, b in zip(head, k[m][g], strict=True)) / sqrt(len(head)) for m in seen]
            weights = _softmax(scores)
            c += [sum(w * v[m][g][j] for w, m in zip(weights, seen, strict=True)) for j in range(len(head))]
        rows.append(c)
    return rows


def _bert_block(p, settings):
    def dense(name, rows):
        W, b = _transposed(p[f"{name}.weight"]), p[f"{name}.bias"]
        return [_sum(_applied(x, W), b) for x in rows]

    def norm(name, rows):
        return _layer_norm({"x": rows, "g": p[f"{name}.weight"], "b": p[f"{name}.bias"]}, settings)

    qkv = {name[0]: dense(f"attention.self.{name}", p["x"]) for name in ("query", "key", "value")}
    plain = {"key_value_heads": settings["heads"], "causal": False, "rotary_base": None}
    c = _attention(qkv, settings | plain)
    a = norm("attention.output.LayerNorm", _sum(p["x"], dense("attention.output.dense", c)))
    h = [ACTIVATIONS["gelu_exact"](z) for z in dense("intermediate.dense", a)]
    return norm("output.LayerNorm", _sum(a, dense("output.dense", h)))


def _gpt2_block(p, settings):
    def dense(name, rows):
        return [_sum(_applied(x, p[f"{name}.weight"]), p[f"{name}.bias"]) for x in rows]

    def norm(name, rows):
        return _layer_norm({"x": rows, "g": p[f"{name}.weight"], "b": p[f"{name}.bias"]}, settings)

    parts = [_heads(row, 3) for row in dense("attn.c_attn", norm("ln_1", p["x"]))]
    qkv = {name: [row[i] for row in parts] for i, name in enumerate("qkv")}
    plain = {"key_value_heads": settings["heads"], "causal": True, "rotary_base": None}
    a = _sum(p["x"], dense("attn.c_proj", _attention(qkv, settings | plain)))
    h = [ACTIVATIONS["gelu"](z) for z in dense("mlp.c_fc", norm("ln_2", a))]
    return _sum(a, dense("mlp.c_proj", h))


def _llama_block(p, settings):
    def dense(name, rows):
        return [_applied(x, _transposed(p[f"{name}.weight"])) for x in rows]

    def norm(name, rows):
        return _rms_norm({"x": rows, "g": p[f"{name}.weight"]}, settings)

    n = norm("input_layernorm", p["x"])
    qkv = {name: dense(f"self_attn.{name}_proj", n) for name in "qkv"}
    a = _sum(p["x"], dense("self_attn.o_proj", _attention(qkv, settings | {"causal": True})))
    m = norm("post_attention_layernorm", a)
    gates, ups = dense("mlp.gate_proj", m), dense("mlp.up_proj", m)
    gated = [ACTIVATIONS["swish"](gate) for gate in gates]
    h = [[g * u for g, u in zip(row, other, strict=True)] for row, other in zip(gated, ups, strict=True)]
    return _sum(a, dense("mlp.down_proj", h))


FUNCTIONS = {
    "activation": _activation,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "rotary": _rotary,
    "attention": _attention,
    "bert_block": _bert_block,
    "gpt2_block": _gpt2_block,
    "llama_block": _llama_block,
}

# ---------------------------------------------------------------- gradients by central differences


def _gradient(objective, p, name):
    def differences(array):
        if isinstance(array[0], list):
            return [differences(row) for row in array]
        found = []
        for i, kept in enumerate(array):
            array[i] = kept + STEP
            above = objective()
            array[i] = kept - STEP
            slope = (above - objective()) / (2 * STEP)
            found.append(slope if abs(slope) > NOISE else mpf(0))
            array[i] = kept
        return found

    return differences(p[name])


def _weighted(y, G):
    return sum(a * b for row, other in zip(y, G, strict=True) for a, b in zip(row, other, strict=True))


def _trained(case, choice):
    """The names of the arrays that receive a gradient in a pass."""
    if case["kind"] != "multilora":
        return case["settings"]["trained"]
    present = choice if isinstance(choice, list) else [choice]
    return [name for name in case["settings"]["trained"] if "." not in name or name.partition(".")[0] in present]


def _block(case, rank):
    """The components that a pass at this rank trains."""
    ranks = [0, *case["settings"]["active_ranks"]]
    return range(ranks[ranks.index(rank) - 1] if case["settings"]["mode"] == "frozen" else 0, rank)


def _gradients(case, p, choice, names):
    constants = case["kind"] == "dora" and not case["settings"]["norm_gradient"]
    norms = _norms(_direction(case["settings"], p)) if constants else None
    found = {name: _gradient(lambda: _weighted(_outputs(case, p, choice, norms), p["G"]), p, name) for name in names}
    if case["kind"] == "dylora":
        block = _block(case, choice)
        found["A"] = [[slope if k in block else mpf(0) for k, slope in enumerate(row)] for row in found["A"]]
        found["B"] = [row if k in block else [mpf(0)] * len(row) for k, row in enumerate(found["B"])]
    return found


def _descend(array, slopes, rate):
    for i, item in enumerate(array):
        if isinstance(item, list):
            _descend(item, slopes[i], rate)
        else:
            array[i] = item - rate * slopes[i]


def _merged(case, p, choice):
    """The merged weight in the layout of the base; None for cases without one."""
    kind, settings = case["kind"], case["settings"]
    if kind == "dense" or isinstance(choice, list) or settings["activation"] != "identity":
        return None
    if kind == "dora":
        W = _dora_weight(settings, p, None)
    else:
        W = _sum(_matrix(settings, p), _change(kind, settings, p, choice))
    return W if settings["layout"] == "dense" else _transposed(W)


# ---------------------------------------------------------------- one case


def _numbers(value):
    return [_numbers(item) for item in value] if isinstance(value, list) else mpf(value)


def _floats(value):
    return [_floats(item) for item in value] if isinstance(value, list) else float(value)


def _of_loss(case):
    p, targets = _numbers(case["arrays"]["predictions"]), case["arrays"]["targets"]
    targets = targets if isinstance(targets[0], int) else _numbers(targets)
    loss, arrays = LOSSES[case["settings"]["function"]], {"predictions": p}
    value = loss(p, targets, case["settings"])
    slopes = _gradient(lambda: loss(p, targets, case["settings"]), arrays, "predictions")
    return {"value": value, "grad.predictions": slopes}


def _of_layer(case):
    settings = case["settings"]
    p = {name: _numbers(array) for name, array in case["arrays"].items()}
    first, *_ = settings["schedule"]
    found = {"y": _outputs(case, p, first)}
    slopes = _gradients(case, p, first, ["x", *_trained(case, first)])
    found |= {f"grad.{name}": slope for name, slope in slopes.items()}
    merged = _merged(case, p, first)
    found |= {} if merged is None else {"merged": merged}
    for step, choice in enumerate(settings["schedule"]):
        names = _trained(case, choice)
        slopes = _gradients(case, p, choice, names) if step else slopes
        for name in names:
            _descend(p[name], slopes[name], mpf(settings["learning_rate"]))
    return found | {f"after.{name}": p[name] for name in settings["trained"]}


def _of_function(case):
    function, settings = FUNCTIONS[case["kind"]], case["settings"]
    p = {name: _numbers(array) for name, array in case["arrays"].items()}
    names = [name for name in p if name not in ("G", "positions")]
    slopes = {f"grad.{name}": _gradient(lambda: _weighted(function(p, settings), p["G"]), p, name) for name in names}
    return {"y": function(p, settings)} | slopes


def expected(case):
    """Every expected array of a case, as floats in lists by name."""
    kind = case["kind"]
    of_kind = _of_loss if kind == "loss" else _of_function if kind in FUNCTIONS else _of_layer
    with mp.workdps(DIGITS):
        return {name: _floats(value) for name, value in of_kind(case).items()}
