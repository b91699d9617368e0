"""The answers of lora_np itself: a consumer of the vectors, and an example of one."""

import json
import sys
from functools import partial

import numpy as np

import lora_np
from lora_np import (
    DenseLayer,
    DoRAAdapter,
    DyLoRAAdapter,
    FullyConnectedLayer,
    LayerNorm,
    MultiLoRAAdapter,
    RMSNorm,
    StandardLoRAAdapter,
    VeRAAdapter,
)
from lora_np.layers.attention import Attention
from lora_np.layers.rotary import Rotary
from lora_np.models.bert import BertBlock
from lora_np.models.gpt2 import GPT2Block
from lora_np.models.llama import LlamaBlock
from lora_np.run import TRAINING
from lora_np.sequences import Spans

FACTORS = {"A": "lora.matrix_a", "B": "lora.matrix_b"}
NAMES = {
    "dense": {"W": "weight", "b": "bias"},
    "lora": FACTORS,
    "dylora": FACTORS,
    "dora": FACTORS | {"m": "magnitude"},
    "vera": {"A": "lora.projection_a", "B": "lora.projection_b", "d": "lora.vector_d", "v": "lora.vector_b"},
}
LOSSES = {
    "mean_squared_error": lora_np.MeanSquaredError,
    "mean_absolute_error": lora_np.MeanAbsoluteError,
    "huber": lora_np.Huber,
    "softmax_cross_entropy": lora_np.SoftmaxCrossEntropy,
    "binary_cross_entropy": lora_np.BinaryCrossEntropy,
}


def build(case, arrays):
    """The layer of a case; its parameters are not set yet."""
    kind, settings = case["kind"], case["settings"]
    inputs, outputs = arrays["x"].shape[1], arrays["b"].shape[0]
    layout = DenseLayer if settings["layout"] == "dense" else FullyConnectedLayer
    base = layout(inputs, outputs, getattr(lora_np, settings["activation"]))
    frozen = "W" not in settings["trained"]
    if kind == "dense":
        return base
    if kind == "multilora":
        (first, alpha), *others = settings["alphas"].items()
        layer = MultiLoRAAdapter(base, first, arrays[f"{first}.A"].shape[1], alpha, frozen)
        for task, alpha in others:
            layer.add_task(task, arrays[f"{task}.A"].shape[1], alpha)
        return layer
    rank, alpha = arrays["A"].shape[1], settings["alpha"]
    if kind == "vera":
        return VeRAAdapter(base, rank, alpha, frozen)
    scaling = settings["scaling"]
    if kind == "dylora":
        return DyLoRAAdapter(base, rank, settings["active_ranks"], alpha, frozen, mode=settings["mode"], scaling=scaling)
    if kind == "dora":
        return DoRAAdapter(base, rank, alpha, frozen, norm_gradient=settings["norm_gradient"], scaling=scaling)
    return StandardLoRAAdapter(base, rank, alpha, frozen, scaling=scaling)


def library_names(case):
    """The names of the arrays in the library."""
    if case["kind"] == "multilora":
        names = {f"{t}.{f}": f"tasks.{t}.matrix_{f.lower()}" for t in case["settings"]["alphas"] for f in "AB"}
    else:
        names = NAMES[case["kind"]]
    return {"W": "base.weight", "b": "base.bias"} | names


def forward(layer, x, choice):
    """The forward pass of one entry of the schedule."""
    if isinstance(choice, list):
        return layer.forward(x, tasks=choice)
    if isinstance(choice, str):
        layer.current_task = choice
    if isinstance(choice, int):
        layer.current_deployment_rank = choice  # for merging
        return layer.forward(x, rank=choice)
    return layer.forward(x)


def of_layer(case, arrays):
    settings, names = case["settings"], library_names(case)
    layer = build(case, arrays)
    for name in arrays.keys() - {"x", "G"}:
        layer.set_parameter(names[name], arrays[name])
    first, *_ = settings["schedule"]
    found = {"y": forward(layer, arrays["x"], first), "grad.x": layer.backward(arrays["G"])}
    found |= {f"grad.{name}": layer.gradients[full] for name, full in names.items() if full in layer.gradients}
    if case["kind"] != "dense" and settings["activation"] == "identity" and not isinstance(first, list):
        found["merged"] = layer.merge_to_original_layer().weight
    for choice in settings["schedule"]:
        forward(layer, arrays["x"], choice)
        layer.backward(arrays["G"])
        layer.update_parameters(settings["learning_rate"])
    return found | {f"after.{name}": layer.try_get_parameter(names[name]) for name in settings["trained"]}


def activation(settings, arrays):
    function = getattr(lora_np, settings["function"])
    return function(arrays["z"]), {"z": function.vjp(arrays["G"], arrays["z"])}


def layer_norm(settings, arrays):
    layer = LayerNorm(arrays["x"].shape[1], settings["epsilon"])
    layer.weight, layer.bias = arrays["g"], arrays["b"]
    y, dx = layer.forward(arrays["x"]), layer.backward(arrays["G"])
    return y, {"x": dx, "g": layer.gradients["weight"], "b": layer.gradients["bias"]}


def rms_norm(settings, arrays):
    layer = RMSNorm(arrays["x"].shape[1], settings["epsilon"])
    layer.weight = arrays["g"]
    y, dx = layer.forward(arrays["x"]), layer.backward(arrays["G"])
    return y, {"x": dx, "g": layer.gradients["weight"]}


def rotary(settings, arrays):
    x, positions = arrays["x"], arrays["positions"]
    layer = Rotary(x.shape[1] // settings["heads"], settings["rotary_base"])
    return layer.apply(x, positions), {"x": layer.vjp(arrays["G"], positions)}


def attention(settings, arrays):
    heads, base = settings["heads"], settings["rotary_base"]
    turn = None if base is None else Rotary(arrays["q"].shape[1] // heads, base)
    layer = Attention(heads, settings["key_value_heads"], causal=settings["causal"], rotary=turn)
    y, cache = layer.apply(arrays["q"], arrays["k"], arrays["v"], Spans.of(np.array(settings["lengths"])))
    return y, dict(zip("qkv", layer.vjp(arrays["G"], cache), strict=True))


def layers_of(arrays, dense, norm):
    """The layers of a block, by name, each made of its arrays."""
    children = {}
    for name in dict.fromkeys(name.rpartition(".")[0] for name in arrays if "." in name):
        weight, bias = arrays[f"{name}.weight"], arrays.get(f"{name}.bias")
        if weight.ndim == 2:
            children[name] = dense.from_arrays(weight, bias)
        else:
            children[name] = norm(len(weight))
            for parameter in children[name].parameter_names:
                setattr(children[name], parameter, arrays[f"{name}.{parameter}"])
    return children


def pass_through(block, settings, arrays):
    y, cache = block.apply(arrays["x"], TRAINING.over(Spans.of(np.array(settings["lengths"]))))
    dx, gradients = block.vjp(arrays["G"], cache)
    return y, {"x": dx} | gradients


def bert_block(settings, arrays):
    layers = layers_of(arrays, FullyConnectedLayer, partial(LayerNorm, epsilon=settings["epsilon"]))
    return pass_through(BertBlock(layers, settings["heads"]), settings, arrays)


def gpt2_block(settings, arrays):
    layers = layers_of(arrays, DenseLayer, partial(LayerNorm, epsilon=settings["epsilon"]))
    return pass_through(GPT2Block(layers, settings["heads"]), settings, arrays)


def llama_block(settings, arrays):
    layers = layers_of(arrays, FullyConnectedLayer, partial(RMSNorm, epsilon=settings["epsilon"]))
    block = LlamaBlock(layers, settings["heads"], settings["key_value_heads"], settings["rotary_base"])
    return pass_through(block, settings, arrays)


# The kinds that are functions of their arrays alone: the output, and the gradients by name.
FUNCTIONS = {
    "activation": activation,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "rotary": rotary,
    "attention": attention,
    "bert_block": bert_block,
    "gpt2_block": gpt2_block,
    "llama_block": llama_block,
}


def answer(case):
    """The arrays that a case expects, by name."""
    kind, settings = case["kind"], case["settings"]
    arrays = {name: np.array(values) for name, values in case["arrays"].items()}
    if kind in FUNCTIONS:
        y, slopes = FUNCTIONS[kind](settings, arrays)
        return {"y": y} | {f"grad.{name}": slope for name, slope in slopes.items()}
    if kind == "loss":
        options = {"delta": settings["delta"]} if "delta" in settings else {}
        value, slope = LOSSES[settings["function"]](**options).value_and_gradient(arrays["predictions"], arrays["targets"])
        return {"value": np.array(value), "grad.predictions": slope}
    return of_layer(case, arrays)


if __name__ == "__main__":
    for line in sys.stdin:
        case = json.loads(line)
        found = {name: array.tolist() for name, array in answer(case).items()}
        print(json.dumps({"name": case["name"], "arrays": found}))
