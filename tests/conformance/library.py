"""The answers of lora_np itself: a consumer of the vectors, and an example of one."""

import json
import sys

import numpy as np

import lora_np
from lora_np import (
    DenseLayer,
    DoRAAdapter,
    DyLoRAAdapter,
    FullyConnectedLayer,
    MultiLoRAAdapter,
    StandardLoRAAdapter,
    VeRAAdapter,
)

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


def answer(case):
    """The arrays that a case expects, by name."""
    kind, settings = case["kind"], case["settings"]
    arrays = {name: np.array(values) for name, values in case["arrays"].items()}
    if kind == "loss":
        options = {"delta": settings["delta"]} if "delta" in settings else {}
        value, slope = LOSSES[settings["function"]](**options).value_and_gradient(arrays["predictions"], arrays["targets"])
        return {"value": np.array(value), "grad.predictions": slope}
    if kind == "activation":
        function = getattr(lora_np, settings["function"])
        return {"y": function(arrays["z"]), "grad.z": function.vjp(arrays["G"], arrays["z"])}
    return of_layer(case, arrays)


if __name__ == "__main__":
    for line in sys.stdin:
        case = json.loads(line)
        found = {name: array.tolist() for name, array in answer(case).items()}
        print(json.dumps({"name": case["name"], "arrays": found}))
