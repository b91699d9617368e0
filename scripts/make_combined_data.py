"""Make tests/io/combined: three adapters, and what PEFT's `add_weighted_adapter` makes of them by each of its methods.

The files are part of the repository; this script documents their origin. It requires torch and peft, which lora_np does not
depend on. The weights are random numbers from a fixed seed and contain no third-party weights.

    python -m pip install torch==2.13.0 peft==0.21.2
    PYTHONHASHSEED=0 python scripts/make_combined_data.py
"""

import shutil
import sys
import warnings
from pathlib import Path

try:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors.torch import save_file
except ModuleNotFoundError as error:
    sys.exit(f"This script requires torch and peft ({error}): python -m pip install torch==2.13.0 peft==0.21.2")

from make_peft_data import LAYERS, base, randomise, save

TARGET = Path(__file__).parents[1] / "tests" / "io" / "combined"

ADAPTERS = {
    "one": {"r": 3, "lora_alpha": 3, "target_modules": LAYERS},
    "two": {"r": 3, "lora_alpha": 7, "target_modules": LAYERS},
    "part": {"r": 3, "lora_alpha": 2, "target_modules": ["head"]},
}
WEIGHTS = {"positive": [0.7, 1.2, 0.4], "negative": [0.7, -1.2, 0.4]}
SIGNS = {"total": ["ties", "ties_svd"], "frequency": ["ties", "ties_svd"]}
DENSITY = 0.6
RANDOM = ["dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"]
RUNS = 3000


def combined(
    model: PeftModel, weights: list[float], method: str, signs: str, rank: int | None = None
) -> list[torch.Tensor]:
    """The updates of all layers."""
    model.add_weighted_adapter(
        list(ADAPTERS), weights, "sum", method, svd_rank=rank, density=DENSITY, majority_sign_method=signs
    )
    updates = [model.base_model.model.get_submodule(name).get_delta_weight("sum") for name in ("body.up", "head")]
    model.delete_adapter("sum")
    return [update.detach().clone().contiguous() for update in updates]


def exact(model: PeftModel) -> dict[str, torch.Tensor]:
    """The results of the methods without random numbers."""
    results = {}
    for label, weights in WEIGHTS.items():
        for method in ("cat", "linear", "svd", "magnitude_prune", "magnitude_prune_svd"):
            results[f"{label}.{method}.total"] = combined(model, weights, method, "total")
        for signs, methods in SIGNS.items():
            for method in methods:
                results[f"{label}.{method}.{signs}"] = combined(model, weights, method, signs)
    return {
        f"{name}.{layer}": update
        for name, updates in results.items()
        for layer, update in zip(LAYERS, updates, strict=True)
    }


def random(model: PeftModel) -> dict[str, torch.Tensor]:
    """The mean and the standard deviation of the results of methods with random numbers."""
    results = {}
    for method in RANDOM:
        runs = [combined(model, WEIGHTS["negative"], method, "total", rank=4) for _ in range(RUNS)]
        for layer, updates in zip(LAYERS, zip(*runs, strict=True), strict=True):
            values = torch.stack(updates).double()
            results[f"{method}.{layer}.mean"] = values.mean(0).float()
            results[f"{method}.{layer}.deviation"] = values.std(0).float()
    return results


def main() -> None:
    torch.manual_seed(20240301)
    warnings.simplefilter("ignore")
    shutil.rmtree(TARGET, ignore_errors=True)
    (first, arguments), *others = ADAPTERS.items()
    model = get_peft_model(base(), LoraConfig(**arguments), adapter_name=first)
    for name, more in others:
        model.add_adapter(name, LoraConfig(**more))
    randomise(model, torch.float32)
    save(model, TARGET)
    save_file(exact(model) | random(model), TARGET / "expected.safetensors")


if __name__ == "__main__":
    main()
