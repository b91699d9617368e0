"""Training runs, each in a separate process that reports its memory: python -m benchmarks.trainings JSON

The memory is the peak of the resident memory, minus the resident memory after the imports and a step on a tiny model.
Libraries are imported inside functions, because each candidate must import only what it needs.
"""

import json
import sys
from collections.abc import Callable

STEPS = 3


def ours(mode: str, width: int, depth: int, batch: int, rank: int) -> tuple[Callable[[], None], int]:
    import numpy as np

    from lora_np import Adam, DenseLayer, MeanSquaredError, Sequential, StandardLoRAAdapter, apply_lora, relu

    rng = np.random.default_rng(0)
    model = Sequential([DenseLayer(width, width, relu, dtype=np.float32, rng=rng) for _ in range(depth)])
    if mode != "full":
        model = apply_lora(model, StandardLoRAAdapter, rank=rank, rng=rng)
    if mode in ("fast", "max"):
        model.pack(memory=mode)
    x, target = (rng.standard_normal((batch, width), dtype=np.float32) for _ in range(2))
    optimizer, loss = Adam(1e-4), MeanSquaredError()

    def step() -> None:
        _, dy = loss.value_and_gradient(model.forward(x), target)
        model.backward(dy)
        model.apply_updates(optimizer.updates(model))

    return step, model.parameter_count


def torchs(mode: str, width: int, depth: int, batch: int, rank: int) -> tuple[Callable[[], None], int]:
    import torch
    from torch import nn

    torch.set_num_threads(1)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    model: nn.Module = nn.Sequential(*layers)
    if mode != "full":
        from peft import LoraConfig, get_peft_model

        names = [str(2 * number) for number in range(depth)]
        model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=names))
    x, target = torch.randn(batch, width), torch.randn(batch, width)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, loss = torch.optim.Adam(trained, 1e-4), nn.MSELoss()

    def step() -> None:
        optimizer.zero_grad()
        loss(model(x), target).backward()
        optimizer.step()

    return step, sum(parameter.numel() for parameter in trained)


MAKERS = {"lora_np": ours, "torch": torchs}


def main() -> None:
    from .processes import forget_peak, status

    library, mode, width, depth, batch, rank = json.loads(sys.argv[1])
    make = MAKERS[library]
    tiny, _ = make(mode, 16, 1, 2, 2)
    tiny()
    before = status("VmRSS")
    forget_peak()
    step, trained = make(mode, width, depth, batch, rank)
    for _ in range(STEPS):
        step()
    print(json.dumps({"bytes": status("VmHWM") - before, "trained": trained}))


if __name__ == "__main__":
    main()
