"""Golden vectors of LoRA, DyLoRA, MultiLoRA, DoRA and VeRA, from nothing but their definitions.

``python tests/golden/make.py`` writes ``golden.json`` again. Forward passes are sums over indices, element by element,
in decimal numbers of 60 digits. No gradient is derived: each is a central difference in these numbers, exact to 30 digits.
"""

import json
import math
import re
from functools import partial
from pathlib import Path

from mpmath import mp, mpf, sqrt

FILE = Path(__file__).with_name("golden.json")

DIGITS = 60
STEP = mpf(10) ** -20
LEARNING_RATE = mpf(1) / 16
STEPS = 10
ROWS, IN, OUT, RANK, ALPHA = 3, 4, 3, 2, 3


def numbers(seed, *shape):
    """Eighths between -1 and 1, which binary and decimal fractions both hold exactly, from a small random generator."""
    values = []
    for _ in range(math.prod(shape)):
        seed = (seed * 1103515245 + 12345) % 2**31
        values.append(mpf((seed >> 16) % 17 - 8) / 8)
    return shaped(values, shape)


def shaped(values, shape):
    if len(shape) == 1:
        return list(values)
    size = len(values) // shape[0]
    return [shaped(values[i * size : (i + 1) * size], shape[1:]) for i in range(shape[0])]


# ---------------------------------------------------------------- definitions


def base(p, x):
    return [sum(x[i] * p["W"][i][j] for i in range(IN)) + p["b"][j] for j in range(OUT)]


def branch(A, B, s, rank, x):
    return [s * sum(x[i] * A[i][k] * B[k][j] for i in range(IN) for k in range(rank)) for j in range(OUT)]


def lora(p, x, row, scaling, rank):
    return [y + z for y, z in zip(base(p, x), branch(p["A"], p["B"], scaling, rank, x), strict=True)]


def multilora(p, x, row, tasks):
    task = tasks[row]
    if task is None:
        return base(p, x)
    rank = len(p[f"{task}.B"])
    s = mpf(ALPHA) / rank
    return [y + z for y, z in zip(base(p, x), branch(p[f"{task}.A"], p[f"{task}.B"], s, rank, x), strict=True)]


def dora(p, x, row):
    y = []
    for j in range(OUT):
        column = [
            p["W"][i][j] + mpf(ALPHA) / RANK * sum(p["A"][i][k] * p["B"][k][j] for k in range(RANK)) for i in range(IN)
        ]
        norm = sqrt(sum(value * value for value in column))
        y.append(p["m"][j] * sum(x[i] * column[i] for i in range(IN)) / norm + p["b"][j])
    return y


def vera(p, x, row):
    s = mpf(ALPHA) / RANK
    return [
        y + s * sum(x[i] * p["A"][i][k] * p["d"][k] * p["B"][k][j] for i in range(IN) for k in range(RANK)) * p["v"][j]
        for j, y in enumerate(base(p, x))
    ]


def outputs(function, p, **options):
    return [function(p, x, row, **options) for row, x in enumerate(p["x"])]


# ---------------------------------------------------------------- differences instead of derivatives


def gradient(objective, p, name):
    """Central differences of an objective by each element of one array."""

    def differences(array):
        if isinstance(array[0], list):
            return [differences(row) for row in array]
        found = []
        for i, kept in enumerate(array):
            array[i] = kept + STEP
            above = objective()
            array[i] = kept - STEP
            found.append((above - objective()) / (2 * STEP))
            array[i] = kept
        return found

    return differences(p[name])


def total(y, weights):
    return sum(a * b for row, other in zip(y, weights, strict=True) for a, b in zip(row, other, strict=True))


def one_pass(function, p, names, **options):
    """The output, and the gradients of Σ G·y."""

    def objective():
        return total(outputs(function, p, **options), p["G"])

    return {"y": outputs(function, p, **options)} | {f"d{name}": gradient(objective, p, name) for name in names}


def mean_squared_error(function, p, options):
    pairs = zip(outputs(function, p, **options), p["t"], strict=True)
    return sum((a - b) ** 2 for row, other in pairs for a, b in zip(row, other, strict=True)) / (ROWS * OUT)


def descend(array, slopes):
    for i, item in enumerate(array):
        if isinstance(item, list):
            descend(item, slopes[i])
        else:
            array[i] = item - LEARNING_RATE * slopes[i]


def training(function, p, names, schedule, trained=None):
    """Ten steps of gradient descent on the mean squared error: the losses, and the arrays afterwards.

    `schedule` gives the function's options for each step; `trained` the components that each step moves.
    """
    losses = []
    for step in range(STEPS):
        loss = partial(mean_squared_error, function, p, schedule(step))
        losses.append(loss())
        slopes = {name: gradient(loss, p, name) for name in names}
        if trained:
            block = trained(step)
            slopes["A"] = [[slope if k in block else 0 for k, slope in enumerate(row)] for row in slopes["A"]]
            slopes["B"] = [row if k in block else [0] * OUT for k, row in enumerate(slopes["B"])]
        for name in names:
            descend(p[name], slopes[name])
    return {"losses": losses, "after": {name: p[name] for name in names}}


# ---------------------------------------------------------------- the cases


def arrays():
    return {
        "x": numbers(1, ROWS, IN),
        "G": numbers(2, ROWS, OUT),
        "t": numbers(3, ROWS, OUT),
        "W": numbers(4, IN, OUT),
        "b": numbers(5, OUT),
        "A": numbers(6, IN, RANK),
        "B": numbers(7, RANK, OUT),
        "m": numbers(8, OUT),
        "d": numbers(9, RANK),
        "v": numbers(10, OUT),
        "first.A": numbers(11, IN, 1),
        "first.B": numbers(12, 1, OUT),
        "second.A": numbers(13, IN, 2),
        "second.B": numbers(14, 2, OUT),
    }


BRANCH = ["A", "B"]
SCALINGS = {"max": lambda r: mpf(ALPHA) / RANK, "paper": lambda r: mpf(ALPHA) / r, "rslora": lambda r: ALPHA / sqrt(r)}
RANKS = [2, 1, 1, 2, 2, 1, 2, 1, 2, 2]
BLOCKS = {1: range(1), 2: range(1, 2)}
MIXED = ["second", None, "first"]
TASKS = ["first.A", "first.B", "second.A", "second.B"]


def dylora_case(scaling, rank):
    return {"scaling": SCALINGS[scaling](rank), "rank": rank}


def golden():
    """All golden vectors, as floats in lists by name."""
    with mp.workdps(DIGITS):
        cases = {"lora": one_pass(lora, arrays(), ["x", "W", "b", *BRANCH], scaling=mpf(ALPHA) / RANK, rank=RANK)}
        for scaling in SCALINGS:
            for rank in (1, 2):
                names = ["x", *BRANCH]
                cases[f"dylora-{scaling}-{rank}"] = one_pass(lora, arrays(), names, **dylora_case(scaling, rank))
        for task in ("first", "second"):
            names = ["x", f"{task}.A", f"{task}.B"]
            cases[f"multilora-{task}"] = one_pass(multilora, arrays(), names, tasks=[task] * ROWS)
        cases["multilora-mixed"] = one_pass(multilora, arrays(), ["x", "W", "b", *TASKS], tasks=MIXED)
        cases["dora"] = one_pass(dora, arrays(), ["x", "W", "b", "m", *BRANCH])
        cases["vera"] = one_pass(vera, arrays(), ["x", "W", "b", "d", "v"])
        curves = {
            "lora": training(lora, arrays(), BRANCH, lambda step: dylora_case("max", 2)),
            "lora-trained-base": training(lora, arrays(), ["W", "b", *BRANCH], lambda step: dylora_case("max", 2)),
            "dylora-full": training(
                lora, arrays(), BRANCH, lambda step: dylora_case("paper", RANKS[step]), lambda step: range(RANKS[step])
            ),
            "dylora-frozen": training(
                lora, arrays(), BRANCH, lambda step: dylora_case("paper", RANKS[step]), lambda step: BLOCKS[RANKS[step]]
            ),
            "multilora-mixed": training(multilora, arrays(), TASKS, lambda step: {"tasks": MIXED}),
        }
        settings = {"alpha": ALPHA, "learning_rate": LEARNING_RATE, "ranks": RANKS, "tasks": MIXED}
        return floats({"settings": settings, "arrays": arrays(), "passes": cases, "training": curves})


def floats(value):
    if isinstance(value, dict):
        return {name: floats(item) for name, item in value.items()}
    if isinstance(value, list):
        return [floats(item) for item in value]
    return float(value) if isinstance(value, mpf) else value


def text():
    """What stands in the file: JSON, each row of numbers on one line."""
    lines = json.dumps(golden(), indent=1)
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda match: "[" + re.sub(r",\s+", ", ", match[1]) + "]", lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    print(f"{FILE}: {FILE.stat().st_size:,} bytes")
