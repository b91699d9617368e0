"""Every kind of layer and of adapter, and what their tests share.

The contract suites run over these tables: a new adapter is one row in `KINDS`, a new layer one row in `PLAIN`.
"""

from functools import partial

import numpy as np

from lora_np import (
    ActivationLayer,
    DenseLayer,
    DoRAAdapter,
    DyLoRAAdapter,
    FullyConnectedLayer,
    LayerNorm,
    LoRALayer,
    MultiLoRAAdapter,
    Regularization,
    RMSNorm,
    Sequential,
    StandardLoRAAdapter,
    VeRAAdapter,
    VeRALayer,
    identity,
    relu,
    softmax,
    tanh,
)

IN, OUT, RANK = 5, 3, 2
ALPHA = 3.0

BASES = {"dense": DenseLayer, "fully-connected": FullyConnectedLayer}
"""Both layouts of the weight."""


def dylora(base, rank, alpha=-1.0, frozen=True, *, rng=None, **options):
    """DyLoRA with the active ranks 1, half and all."""
    return DyLoRAAdapter(base, rank, sorted({1, (rank + 1) // 2, rank}), alpha, frozen, rng=rng, **options)


def multilora(base, rank, alpha=-1.0, frozen=True, *, rng=None):
    """Three tasks of different ranks, the one in the middle current."""
    adapter = MultiLoRAAdapter(base, "first", 1, alpha, frozen, rng=rng)
    adapter.add_task("second", rank, alpha)
    adapter.add_task("third", max(rank - 1, 1))
    adapter.current_task = "second"
    return adapter


def ranked_tasks(base, rank, alpha=-1.0, frozen=True, *, rng=None, **options):
    """A plain task, and two whose active ranks are 1, half and all; the last is current."""
    ranks = sorted({1, (rank + 1) // 2, rank})
    adapter = MultiLoRAAdapter(base, "plain", rank, alpha, frozen, rng=rng)
    adapter.add_task("other", rank, alpha, ranks)
    adapter.add_task("ranked", rank, alpha, ranks, **options)
    adapter.current_task = "ranked"
    return adapter


KINDS = {
    "standard": StandardLoRAAdapter,
    "standard-rslora": partial(StandardLoRAAdapter, scaling="rslora"),
    "dylora": dylora,
    "dylora-paper": partial(dylora, scaling="paper"),
    "dylora-rslora": partial(dylora, scaling="rslora"),
    "dylora-frozen-mode": partial(dylora, mode="frozen"),
    "multilora": multilora,
    "multilora-ranks": ranked_tasks,
    "multilora-ranks-paper": partial(ranked_tasks, scaling="paper"),
    "multilora-ranks-frozen-mode": partial(ranked_tasks, mode="frozen"),
    "dora": DoRAAdapter,
    "vera": VeRAAdapter,
}
"""Adapters by name: each is called as ``(base_layer, rank, alpha, freeze_base_layer, rng=seed)``."""

PLAIN = {
    "dense": lambda dtype: DenseLayer(IN, OUT, dtype=dtype),
    "dense-tanh": lambda dtype: DenseLayer(IN, OUT, tanh, dtype=dtype),
    "dense-softmax": lambda dtype: DenseLayer(IN, OUT, softmax, dtype=dtype),
    "dense-penalty": lambda dtype: DenseLayer(IN, OUT, regularization=Regularization(0.5, 0.25), dtype=dtype),
    "fully-connected": lambda dtype: FullyConnectedLayer(IN, OUT, dtype=dtype),
    "fully-connected-relu": lambda dtype: FullyConnectedLayer(IN, OUT, relu, dtype=dtype),
    "activation-identity": lambda dtype: ActivationLayer(IN, identity, dtype=dtype),
    "activation-softmax": lambda dtype: ActivationLayer(IN, softmax, dtype=dtype),
    "layer-norm": lambda dtype: LayerNorm(IN, dtype=dtype),
    "rms-norm": lambda dtype: RMSNorm(IN, dtype=dtype),
    "lora": lambda dtype: LoRALayer(IN, OUT, RANK, ALPHA, dtype=dtype),
    "vera-layer": lambda dtype: VeRALayer(IN, OUT, RANK, ALPHA, dtype=dtype),
    "sequential": lambda dtype: Sequential(
        [DenseLayer(IN, 4, tanh, dtype=dtype), FullyConnectedLayer(4, OUT, dtype=dtype)]
    ),
    "sequential-partly-frozen": lambda dtype: Sequential(
        {"first": FullyConnectedLayer(IN, 4, dtype=dtype), "last": DenseLayer(4, OUT, tanh, dtype=dtype)}, frozen=["first"]
    ),
    "sequential-of-identities": lambda dtype: Sequential(
        {"first": ActivationLayer(IN, identity, dtype=dtype), "last": ActivationLayer(IN, identity, dtype=dtype)}
    ),
    "sequential-of-adapters": lambda dtype: Sequential(
        [
            dylora(DenseLayer(IN, 4, dtype=dtype), RANK, rng=0),
            ActivationLayer(4, tanh, dtype=dtype),
            multilora(DenseLayer(4, OUT, dtype=dtype), RANK, frozen=False, rng=0),
        ]
    ),
    "adapter-of-an-adapter": lambda dtype: StandardLoRAAdapter(
        dylora(DenseLayer(IN, OUT, tanh, dtype=dtype), RANK, rng=0), 1, freeze_base_layer=False, rng=0
    ),
}
"""Layers by name, each built for a dtype."""


def adapter_builder(kind, base, frozen):
    def build(dtype):
        return KINDS[kind](BASES[base](IN, OUT, dtype=dtype), RANK, ALPHA, frozen, rng=0)

    return build


LAYERS = PLAIN | {
    f"{kind}-on-{base}": adapter_builder(kind, base, frozen)
    for kind in KINDS
    for base, frozen in [("dense", True), ("fully-connected", False)]
}
"""All of them: what the contract of every layer is tested with."""


def build(name, dtype=np.float64, seed=0):
    """A layer of the table, with random values in every array."""
    return randomised(LAYERS[name](dtype), seed)


def randomised(layer, seed=0):
    """Fill every array, frozen ones too, with values between 1/2 and 3/2 of either sign: none is near zero."""
    rng = np.random.default_rng(seed)
    for array in layer.named_parameters(frozen=True).values():
        array[...] = rng.uniform(0.5, 1.5, array.shape) * rng.choice([-1.0, 1.0], array.shape)
    return layer


def batch(*shape, seed=1):
    """Random numbers of a shape."""
    return np.random.default_rng(seed).normal(size=shape)


def bits(arrays):
    """Named arrays in a form that is equal only where every bit is."""
    return {name: (array.dtype.str, array.shape, np.asarray(array).tobytes()) for name, array in arrays.items()}


def snapshot(layer):
    """All that a refused call must leave alone, to the bit: arrays, gradients, modes, settings, random generators."""
    inner = {
        path: (
            layer.is_training,
            {name: getattr(layer, name) for name in layer.settings},
            [value.bit_generator.state for value in vars(layer).values() if isinstance(value, np.random.Generator)],
        )
        for path, layer in layer.walk().items()
    }
    return bits(layer.named_parameters(frozen=True)), bits(layer.gradients), inner
