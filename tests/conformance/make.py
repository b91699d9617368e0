"""The conformance cases: given arrays of numbers with few digits, and the expected arrays of `oracle.py`.

``python -m tests.conformance.make`` generates ``lora_np/conformance/vectors.json`` (requires mpmath).
"""

import json
import math
from itertools import product
from pathlib import Path

from tests.conformance import oracle

FILE = Path(__file__).parents[2] / "lora_np" / "conformance" / "vectors.json"
LEARNING_RATE = 0.0625

# ---------------------------------------------------------------- given numbers


class Numbers:
    """Multiples of 1/8 in [-1, 1], exact in binary and in decimal, from a linear congruential generator.

    The initial state is a name, its bytes read as the digits of a number in base 31, modulo 2³¹.
    """

    def __init__(self, name):
        self.state = 0
        for letter in name.encode():
            self.state = (self.state * 31 + letter) % 2**31

    def __call__(self, *shape):
        if not shape:
            self.state = (self.state * 1103515245 + 12345) % 2**31
            return ((self.state >> 16) % 17 - 8) / 8
        return [self(*shape[1:]) for _ in range(shape[0])]


def base(numbers, rows, inputs, outputs, layout="dense"):
    """The arrays of a dense layer and of a pass through it."""
    return {
        "x": numbers(rows, inputs),
        "G": numbers(rows, outputs),
        "W": numbers(inputs, outputs) if layout == "dense" else numbers(outputs, inputs),
        "b": numbers(outputs),
    }


# ---------------------------------------------------------------- layers

TALL, WIDE, ONE_ROW, SINGLE = (2, 5, 2), (2, 2, 5), (1, 4, 3), (1, 1, 1)
PLAIN = {"layout": "dense", "activation": "identity", "learning_rate": LEARNING_RATE}


def dense(name, sizes, layout="dense", activation="identity", steps=2):
    settings = PLAIN | {"layout": layout, "activation": activation, "trained": ["W", "b"], "schedule": [None] * steps}
    return {"name": name, "kind": "dense", "settings": settings, "arrays": base(Numbers(name), *sizes, layout)}


def adapter(kind, name, sizes, rank, *, trained=("A", "B"), with_base=False, schedule=(None, None), **settings):
    """An adapter with one pair of factors."""
    settings = PLAIN | {"alpha": -1} | ({} if kind == "vera" else {"scaling": "max"}) | settings
    settings |= {"trained": ["W", "b"] * with_base + list(trained), "schedule": list(schedule)}
    numbers = Numbers(name)
    rows, inputs, outputs = sizes
    arrays = base(numbers, rows, inputs, outputs, settings["layout"])
    arrays |= {"A": numbers(inputs, rank), "B": numbers(rank, outputs)}
    arrays |= {"m": numbers(outputs)} if kind == "dora" else {}
    arrays |= {"d": numbers(rank), "v": numbers(outputs)} if kind == "vera" else {}
    return {"name": name, "kind": kind, "settings": settings, "arrays": arrays}


def lora(name, sizes, rank, **settings):
    return adapter("lora", name, sizes, rank, **settings)


def dora(name, sizes, rank, *, norm_gradient=True, **settings):
    return adapter("dora", name, sizes, rank, trained=("m", "A", "B"), norm_gradient=norm_gradient, **settings)


def vera(name, sizes, rank, **settings):
    return adapter("vera", name, sizes, rank, trained=("d", "v"), **settings)


def dylora(name, sizes, max_rank, active_ranks, schedule, **settings):
    settings = {"active_ranks": active_ranks, "mode": "full"} | settings
    return adapter("dylora", name, sizes, max_rank, schedule=schedule, **settings)


def multilora(name, sizes, ranks, alphas, schedule, *, with_base=False, **settings):
    numbers = Numbers(name)
    settings = PLAIN | {"alphas": alphas} | settings
    rows, inputs, outputs = sizes
    arrays = base(numbers, rows, inputs, outputs, settings["layout"])
    for task, rank in ranks.items():
        arrays |= {f"{task}.A": numbers(inputs, rank), f"{task}.B": numbers(rank, outputs)}
    trained = ["W", "b"] * with_base + [f"{task}.{factor}" for task in ranks for factor in "AB"]
    settings |= {"trained": trained, "schedule": schedule}
    return {"name": name, "kind": "multilora", "settings": settings, "arrays": arrays}


def dense_layers():
    yield dense("dense-tall", TALL)
    yield dense("dense-wide", WIDE)
    yield dense("dense-one-row", ONE_ROW, steps=3)
    yield dense("dense-single", SINGLE)
    yield dense("fully-connected-tall", TALL, "fully_connected")
    yield dense("fully-connected-wide", WIDE, "fully_connected", steps=1)
    for activation in ("relu", "tanh", "gelu_exact", "softmax"):
        yield dense(f"dense-{activation}", (2, 3, 4), activation=activation)
        yield dense(f"fully-connected-{activation}", (2, 4, 3), "fully_connected", activation)


def lora_adapters():
    yield lora("lora-rank-1", ONE_ROW, 1)
    yield lora("lora-single", SINGLE, 1, alpha=3, schedule=[None] * 3)
    yield lora("lora-full-rank-tall", TALL, 2, alpha=3)
    yield lora("lora-full-rank-wide", WIDE, 2, alpha=0.5, schedule=[None] * 3)
    yield lora("lora-alpha-zero", (3, 4, 3), 2, alpha=0)
    yield lora("lora-alpha-minus-one", (3, 4, 3), 2, alpha=-1)
    yield lora("lora-alpha-16", (2, 3, 4), 3, alpha=16, schedule=[None])
    yield lora("lora-rslora", (2, 4, 3), 3, alpha=4, scaling="rslora")
    yield lora("lora-trained-base", (2, 4, 3), 2, alpha=3, with_base=True)
    yield lora("lora-fully-connected", (2, 3, 4), 2, alpha=3, layout="fully_connected", with_base=True)
    yield lora("lora-relu", (2, 4, 3), 2, alpha=3, activation="relu", with_base=True)
    yield lora("lora-swish", (2, 3, 4), 2, alpha=3, activation="swish", layout="fully_connected")


def dylora_adapters():
    ranks = [1, 2, 4]
    for mode, scaling, (i, rank) in product(("full", "frozen"), ("max", "paper", "rslora"), enumerate(ranks)):
        schedule = [rank, ranks[i - 1]]
        yield dylora(f"dylora-{mode}-{scaling}-{rank}", (2, 4, 5), 4, ranks, schedule, mode=mode, scaling=scaling, alpha=3)
    yield dylora("dylora-some-ranks", ONE_ROW, 3, [1, 2], [1, 2, 1], mode="frozen", scaling="paper", with_base=True)
    yield dylora("dylora-one-rank", TALL, 2, [2], [2, 2], mode="frozen", alpha=0.5, layout="fully_connected")
    yield dylora("dylora-tanh", (2, 3, 4), 3, [1, 3], [3, 1], scaling="rslora", activation="tanh", with_base=True)


def multilora_adapters():
    ranks, alphas = {"en": 1, "de": 2}, {"en": -1, "de": 3}
    mixed = ["de", None, "en", "de"]
    yield multilora("multilora-first", (2, 4, 3), ranks, alphas, ["en", "en"])
    yield multilora("multilora-switched", (2, 4, 3), ranks, alphas, ["de", "en", "de"])
    yield multilora("multilora-mixed", (4, 4, 3), ranks, alphas, [mixed, mixed])
    yield multilora("multilora-mixed-then-switched", (4, 2, 5), ranks, alphas, [mixed, "en"], with_base=True)
    yield multilora("multilora-no-task", (2, 3, 2), ranks, alphas, [[None, None], ["en", None]], with_base=True)
    yield multilora("multilora-one-row", ONE_ROW, ranks | {"fr": 3}, alphas | {"fr": 0}, [["fr"], "de"])
    yield multilora("multilora-tanh", (4, 3, 4), ranks, alphas, [mixed], layout="fully_connected", activation="tanh")


def dora_adapters():
    yield dora("dora", (2, 4, 3), 2, alpha=3)
    yield dora("dora-constant-norm", (2, 4, 3), 2, alpha=3, norm_gradient=False)
    yield dora("dora-trained-base", (2, 4, 3), 2, with_base=True)
    yield dora("dora-trained-base-constant-norm", (2, 3, 4), 2, with_base=True, norm_gradient=False)
    yield dora("dora-fully-connected", WIDE, 2, alpha=0.5, layout="fully_connected", with_base=True)
    yield dora("dora-rslora", TALL, 2, alpha=4, scaling="rslora")
    yield dora("dora-alpha-zero", ONE_ROW, 1, alpha=0)


def vera_adapters():
    yield vera("vera", (2, 4, 3), 2)
    yield vera("vera-rank-above-sizes", WIDE, 6, alpha=3)
    yield vera("vera-trained-base", TALL, 1, alpha=0.5, with_base=True)
    yield vera("vera-fully-connected", ONE_ROW, 3, layout="fully_connected", activation="tanh", with_base=True)
    yield vera("vera-alpha-zero", (2, 3, 4), 2, alpha=0)


# ---------------------------------------------------------------- activations and losses

MODERATE = [[-2.5, -0.75, -0.125, 0.25], [1.5, 3.0, -1.0, 0.5]]
LARGE = [[-800.0, -40.0, 40.0, 800.0]]


def activations():
    for function, (size, z) in product(oracle.ACTIVATIONS, (("moderate", MODERATE), ("large", LARGE))):
        name = f"activation-{function}-{size}"
        arrays = {"z": z, "G": Numbers(name)(len(z), len(z[0]))}
        yield {"name": name, "kind": "activation", "settings": {"function": function}, "arrays": arrays}


def loss(name, function, predictions, targets, **settings):
    arrays = {"predictions": predictions, "targets": targets}
    return {"name": f"loss-{name}", "kind": "loss", "settings": {"function": function} | settings, "arrays": arrays}


def losses():
    p, t = [[0.5, -1.25, 2.0], [0.0, 3.5, -0.75]], [[0.25, 1.0, 2.0], [-0.5, -1.0, -0.5]]
    yield loss("mean-squared-error", "mean_squared_error", p, t)
    yield loss("mean-absolute-error", "mean_absolute_error", p, t)
    yield loss("huber", "huber", p, t, delta=1)
    yield loss("huber-delta", "huber", p, t, delta=0.3125)
    yield loss("softmax-labels", "softmax_cross_entropy", p, [2, 0])
    yield loss("softmax-one-hot", "softmax_cross_entropy", p, [[0, 0, 1], [1, 0, 0]])
    yield loss("softmax-weights", "softmax_cross_entropy", p, [[0.5, 0.25, 0], [0, 2, 0.125]])
    yield loss("softmax-large", "softmax_cross_entropy", [[800.0, -800.0, 799.0]], [1])
    yield loss("binary", "binary_cross_entropy", p, [[0, 1, 0.5], [1, 0.25, 0]])
    yield loss("binary-large", "binary_cross_entropy", LARGE, [[1, 0, 1, 0.5]])
    yield loss("one-number", "mean_squared_error", [[1.5]], [[-0.25]])


# ---------------------------------------------------------------- parts of transformers


def norm(kind, name, rows, size, epsilon, x=None):
    numbers = Numbers(name)
    arrays = {"x": x or numbers(rows, size), "G": numbers(rows, size), "g": numbers(size)}
    arrays |= {"b": numbers(size)} if kind == "layer_norm" else {}
    return {"name": name, "kind": kind, "settings": {"epsilon": epsilon}, "arrays": arrays}


def norms():
    yield norm("layer_norm", "layer-norm", 3, 4, 1e-5)
    yield norm("layer_norm", "layer-norm-large-epsilon", 2, 3, 0.25)
    yield norm("layer_norm", "layer-norm-constant-row", 2, 3, 0.125, [[0.5, 0.5, 0.5], [0.25, -1.0, 0.5]])
    yield norm("layer_norm", "layer-norm-large-mean", 1, 4, 1e-5, [[800.5, 800.0, 799.25, 800.25]])
    yield norm("rms_norm", "rms-norm", 3, 4, 1e-5)
    yield norm("rms_norm", "rms-norm-large-epsilon", 2, 3, 0.25)
    yield norm("rms_norm", "rms-norm-zero-row", 2, 3, 0.125, [[0.0, 0.0, 0.0], [0.25, -1.0, 0.5]])


def rotary(name, heads, size, base, positions):
    numbers, rows = Numbers(name), len(positions)
    arrays = {"x": numbers(rows, heads * size), "G": numbers(rows, heads * size), "positions": positions}
    return {"name": name, "kind": "rotary", "settings": {"heads": heads, "rotary_base": base}, "arrays": arrays}


def rotations():
    yield rotary("rotary", 1, 4, 10000, [0, 1, 2])
    yield rotary("rotary-heads", 3, 2, 10000, [7, 0, 30])
    yield rotary("rotary-small-base", 1, 6, 10, [5, 3])


def attention(name, lengths, size, heads, groups=None, *, causal=False, base=None, large=None):
    groups = groups or heads
    numbers, rows = Numbers(name), sum(lengths)
    q, k, v = (numbers(rows, count * size) for count in (heads, groups, groups))
    if large is not None:
        q, k = ([[large, *row[1:]] for row in array] for array in (q, k))
    settings = {"lengths": lengths, "heads": heads, "key_value_heads": groups, "causal": causal, "rotary_base": base}
    arrays = {"q": q, "k": k, "v": v, "G": numbers(rows, heads * size)}
    return {"name": name, "kind": "attention", "settings": settings, "arrays": arrays}


def attentions():
    yield attention("attention", [3, 3], 2, 2)
    yield attention("attention-single", [1], 2, 1)
    yield attention("attention-ragged", [1, 3, 2], 2, 2)
    yield attention("attention-causal", [4], 3, 1, causal=True)
    yield attention("attention-causal-ragged", [2, 1, 3], 2, 2, causal=True)
    yield attention("attention-grouped", [3], 2, 4, 2)
    yield attention("attention-one-key-value-head", [1, 2], 3, 2, 1)
    yield attention("attention-rotary", [3, 1, 2], 4, 2, 1, causal=True, base=10000)
    yield attention("attention-large", [3], 4, 1, large=40.0)  # 40 · 40 / √4 = 800


def bert_block(name, lengths, size, inner, heads, epsilon):
    numbers, rows = Numbers(name), sum(lengths)
    arrays = {"x": numbers(rows, size), "G": numbers(rows, size)}
    square = [f"attention.{part}" for part in ("self.query", "self.key", "self.value", "output.dense")]
    sizes = dict.fromkeys(square, (size, size)) | {"attention.output.LayerNorm": (size,)}
    sizes |= {"intermediate.dense": (inner, size), "output.dense": (size, inner), "output.LayerNorm": (size,)}
    for layer, shape in sizes.items():
        arrays |= {f"{layer}.weight": numbers(*shape), f"{layer}.bias": numbers(shape[0])}
    settings = {"lengths": lengths, "heads": heads, "epsilon": epsilon}
    return {"name": name, "kind": "bert_block", "settings": settings, "arrays": arrays}


def bert_blocks():
    yield bert_block("bert-block", [3], 4, 6, 2, 1e-12)
    yield bert_block("bert-block-ragged", [1, 3, 2], 4, 3, 2, 1e-5)
    yield bert_block("bert-block-one-row", [1], 3, 4, 1, 0.125)


def gpt2_block(name, lengths, size, inner, heads, epsilon):
    numbers, rows = Numbers(name), sum(lengths)
    arrays = {"x": numbers(rows, size), "G": numbers(rows, size)}
    sizes = {"ln_1": (size,), "attn.c_attn": (size, 3 * size), "attn.c_proj": (size, size)}
    sizes |= {"ln_2": (size,), "mlp.c_fc": (size, inner), "mlp.c_proj": (inner, size)}
    for layer, shape in sizes.items():
        arrays |= {f"{layer}.weight": numbers(*shape), f"{layer}.bias": numbers(shape[-1])}
    settings = {"lengths": lengths, "heads": heads, "epsilon": epsilon}
    return {"name": name, "kind": "gpt2_block", "settings": settings, "arrays": arrays}


def gpt2_blocks():
    yield gpt2_block("gpt2-block", [3], 4, 5, 2, 1e-5)
    yield gpt2_block("gpt2-block-ragged", [1, 3, 2], 2, 3, 1, 0.125)


def llama_block(name, lengths, size, inner, heads, groups, head, base, epsilon):
    numbers, rows = Numbers(name), sum(lengths)
    arrays = {"x": numbers(rows, size), "G": numbers(rows, size)}
    sizes = {"input_layernorm": (size,), "self_attn.q_proj": (heads * head, size)}
    sizes |= dict.fromkeys(("self_attn.k_proj", "self_attn.v_proj"), (groups * head, size))
    sizes |= {"self_attn.o_proj": (size, heads * head), "post_attention_layernorm": (size,)}
    sizes |= {"mlp.gate_proj": (inner, size), "mlp.up_proj": (inner, size), "mlp.down_proj": (size, inner)}
    arrays |= {f"{layer}.weight": numbers(*shape) for layer, shape in sizes.items()}
    settings = {"lengths": lengths, "heads": heads, "key_value_heads": groups, "rotary_base": base, "epsilon": epsilon}
    return {"name": name, "kind": "llama_block", "settings": settings, "arrays": arrays}


def llama_blocks():
    yield llama_block("llama-block", [3], 4, 5, 2, 2, 2, 10000, 1e-5)
    yield llama_block("llama-block-grouped", [1, 3], 4, 3, 4, 2, 2, 100, 1e-5)
    yield llama_block("llama-block-large-heads", [2, 1], 3, 4, 2, 1, 4, 10, 0.125)


# ---------------------------------------------------------------- the file


def cases():
    """Every case with its expected arrays."""
    adapters = (lora_adapters, dylora_adapters, multilora_adapters, dora_adapters, vera_adapters)
    transformers = (norms, rotations, attentions, bert_blocks, gpt2_blocks, llama_blocks)
    given = [case for kind in (dense_layers, *adapters, activations, *transformers, losses) for case in kind()]
    assert len({case["name"] for case in given}) == len(given)
    return [case | {"expected": oracle.expected(case)} for case in given]


def all_finite(value):
    return all(map(all_finite, value)) if isinstance(value, list) else math.isfinite(value)


def text():
    """The content of the file: JSON with one case per line."""
    lines = []
    for case in cases():
        assert all(all_finite(array) for array in case["expected"].values()), case["name"]
        lines.append(json.dumps(case, separators=(",", ":"), allow_nan=False))
    return '{"format":"lora_np conformance","version":1,"cases":[\n' + ",\n".join(lines) + "\n]}\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    print(f"{FILE.name}: {FILE.stat().st_size:,} bytes")
