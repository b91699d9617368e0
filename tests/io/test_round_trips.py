"""For a random adapter: write then read is the identity in every format that can hold it; otherwise an error names why."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_np import LoRALayer, NotSupportedError
from lora_np.factors.settings import DyLoRASettings
from lora_np.factors.weights import AdapterWeights, Rows
from tests.io.kinds import FORMATS, same, write_and_read

NAMES = st.lists(st.sampled_from(["a", "b_c", "0", "to_q", "proj_in", "layers", "ä"]), min_size=1, max_size=3).map(".".join)
PATHS = st.tuples(st.sampled_from(["unet", "text_encoder", "text_encoder_2", "transformer"]), NAMES).map(".".join)
NUMBERS = st.sampled_from([0.0, 0.1, 1.0, 3.0, 1e-3, 1 / 3])


@st.composite
def layers(draw, dtype, shape):
    """A layer with random factors, in the precision that files keep, and its kernel."""
    channels, outputs, rank, kernel = shape
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    A = rng.normal(size=(channels * int(np.prod(kernel)), rank)).astype(dtype)
    B = rng.normal(size=(rank, outputs)).astype(dtype)
    return LoRALayer.from_factors(A, B, draw(NUMBERS), scaling=draw(st.sampled_from(["max", "rslora"]))), kernel


@st.composite
def adapters(draw):
    """An adapter with convolutions and DoRA on all, none or some of its layers."""
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    paths = draw(st.lists(PATHS, min_size=1, max_size=4, unique_by=lambda path: path.replace(".", "_")))
    sizes = st.integers(1, 4)
    kernels = st.sampled_from([(), (), (1,), (3, 2), (1, 1), (2, 1, 2)])
    found = {path: draw(layers(dtype, draw(st.tuples(sizes, sizes, sizes, kernels)))) for path in paths}
    dora = draw(st.sampled_from([[], [], paths, paths[:1]]))
    weights = AdapterWeights(
        {path: layer for path, (layer, _) in found.items()},
        {path: np.linspace(1, 2, found[path][0].output_size, dtype=dtype) for path in dora},
        kernels={path: kernel for path, (_, kernel) in found.items() if kernel},
    )
    return weights if dora else with_more(weights, draw(st.sampled_from([*MORE, *[None] * len(MORE)])), dtype)


MORE = ("whole", "rows", "biases", "embeddings", "nested", "experts")
"""What only PEFT's folders hold."""

EXTRA = "unet.more"


def with_more(weights, kind, dtype):
    """The adapter with something that most formats cannot hold; its name is `EXTRA`."""
    if kind is None:
        return weights
    if kind in ("whole", "rows"):
        tensor = np.arange(6, dtype=dtype).reshape(2, 3)
        return replace(weights, **{kind: {f"{EXTRA}.weight": tensor if kind == "whole" else Rows.of([4, 1], tensor)}})
    layer = LoRALayer.from_factors(np.ones((3, 2), dtype), np.ones((2, 3), dtype), 1.0)
    layers = {**weights.layers, **dict.fromkeys([f"{EXTRA}.0"] if kind == "experts" else [EXTRA], layer)}
    values = {
        "biases": {path: np.ones(layer.output_size, dtype) for path, layer in layers.items()},
        "embeddings": frozenset({EXTRA}),
        "nested": {EXTRA: DyLoRASettings((1, 2), 1.0, "full", "max", (0.5, 0.5), 2)},
        "experts": {EXTRA: 1},
    }
    return replace(weights, layers=layers, **{kind: values[kind]})


def refusal(target, weights):
    """Part of the message with which a format must refuse an adapter; None if it holds it."""
    dora = weights.magnitudes and len(weights.magnitudes) < len(weights.layers)
    if target == "PEFT":
        return "DoRA on all of its layers or on none" if dora else None
    if any(getattr(weights, kind) for kind in MORE):
        return "is not a layer whose name could be changed|cannot hold"
    if target != "mlx-lm":
        return None
    if weights.kernels:
        return "cannot hold the convolution"
    if len({(layer.rank, layer.scaling) for layer in weights.layers.values()}) > 1:
        return "has one (rank|scaling), but"
    return "DoRA on all of its layers or on none" if dora else None


@pytest.mark.parametrize("target", FORMATS)
@given(weights=adapters())
@settings(max_examples=60, deadline=None)
def test_write_then_read_is_the_identity(tmp_path_factory, target, weights):
    folder = tmp_path_factory.mktemp("adapter")
    message = refusal(target, weights)
    if message is None:
        assert same(write_and_read(target, weights, folder), weights)
        return
    with pytest.raises(NotSupportedError, match=message):
        write_and_read(target, weights, folder)
    assert not list(folder.iterdir())
