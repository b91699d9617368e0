"""The network of tests/io/data in lora_np, and helpers shared by the tests of the adapter formats."""

from pathlib import Path

import numpy as np

from lora_np import (
    ActivationLayer,
    AffineLayer,
    DoRAAdapter,
    DyLoRAAdapter,
    Embedding,
    FullyConnectedLayer,
    LayerNorm,
    MultiLoRAAdapter,
    Sequential,
    StandardLoRAAdapter,
    tanh,
)
from lora_np.factors.weights import in_torch_layout
from lora_np.io.safetensors import load_safetensors
from lora_np.models.adapting import apply_adapters
from tests.kinds import randomised

DATA = Path(__file__).parent / "data"
BASE = DATA / "base.safetensors"
CASES = ["lora", "rslora", "patterns", "dora", "bfloat16", "float16", "tasks/french", "tasks/german"]
"""All adapters written by PEFT."""

TEXT_BASE = DATA / "text_base.safetensors"
TEXT_CASES = sorted(folder.name for folder in (DATA / "text").iterdir())
"""The adapters written by PEFT that train more than the factors of dense layers."""

IDS = np.array([[1, 5, 2], [8, 0, 5]])

GIVEN = load_safetensors(DATA / "pass.safetensors")
X, DY = GIVEN["input"], GIVEN["output_gradient"]


def expected(case):
    """The results of PEFT for an adapter."""
    return load_safetensors(DATA / case / "expected.safetensors")


def network(layer=FullyConnectedLayer, dtype=np.float64):
    """The base network, with the same weights as in PEFT."""
    body = Sequential({"up": layer(6, 5, dtype=dtype), "tanh": ActivationLayer(5, tanh, dtype=dtype)})
    net = Sequential({"body": body, "head": layer(5, 4, dtype=dtype)})
    stored = load_safetensors(BASE)
    for path, inner in net.walk().items():
        if isinstance(inner, AffineLayer):
            inner.set_parameter("weight", inner.in_layout(stored[f"{path}.weight"].T))
            inner.set_parameter("bias", stored[f"{path}.bias"])
    return net


def text_network(layer=FullyConnectedLayer, dtype=np.float64):
    """The base network of the text adapters, with the same weights as in PEFT."""
    net = network(layer, dtype)
    net = Sequential({"table": Embedding(9, 6, dtype=dtype), "norm": LayerNorm(6, dtype=dtype), **net.children()})
    for name, array in load_safetensors(TEXT_BASE).items():
        path, _, kind = name.rpartition(".")
        net.walk()[path].set_parameter(kind, in_torch_layout(net.walk()[path], kind, array))
    return net


def dylora(linear, **options):
    adapter = DyLoRAAdapter(linear, 4, [1, 2, 4], 3.0, rng=0, rank_distribution=[0.5, 0.2, 0.3], **options)
    adapter.current_deployment_rank = 2
    return adapter


def multilora(linear):
    adapter = MultiLoRAAdapter(linear, "french", 2, 3.0, rng=0)
    adapter.add_task("german", 3)
    return adapter


FACTORIES = {
    "standard": lambda linear: StandardLoRAAdapter(linear, 2, 3.0, rng=0),
    "alpha-0": lambda linear: StandardLoRAAdapter(linear, 2, 0.0, rng=0),
    "rslora": lambda linear: StandardLoRAAdapter(linear, 3, 5.0, scaling="rslora", rng=0),
    "dora": lambda linear: DoRAAdapter(linear, 2, 3.0, rng=0),
    "dylora": dylora,
    "dylora-paper": lambda linear: dylora(linear, scaling="paper", mode="frozen"),
    "dylora-rslora": lambda linear: dylora(linear, scaling="rslora"),
}


def adapted(head, up=None, dtype=np.float64, seed=1):
    """The network with adapters of random values, built by `head` and `up`, or by `head` alone."""
    model = apply_adapters(network(dtype=dtype), {"body.up": up or head, "head": head})
    for path in ("body.up", "head"):
        adapter = model.walk()[path]
        base = adapter.base_layer.clone()
        randomised(adapter, seed)
        adapter.base_layer.load_weights(base.named_parameters())
        for name, array in adapter.named_parameters().items():
            if "matrix" in name:
                array *= 0.3  # larger values saturate the tanh, whose gradient then is rounding error
    return model


def assert_close(actual, wanted, tolerance=1e-6):
    """Assert equality up to a fraction of the largest element."""
    actual, wanted = np.asarray(actual), np.asarray(wanted)
    assert actual.shape == wanted.shape
    assert np.abs(actual - wanted).max(initial=0) <= tolerance * np.abs(wanted).max(initial=0)
