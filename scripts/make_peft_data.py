"""Make tests/io/data: adapters written by PEFT itself, and the results that PEFT computes with them.

The files are part of the repository; this script documents their origin. It requires torch and peft, which lora_np does not
depend on. The weights are random numbers from a fixed seed and contain no third-party weights. Two runs produce identical
files if the hash seed is fixed, because PEFT writes sets of names in the order of their hashes.

    python -m pip install torch==2.13.0 peft==0.21.2
    PYTHONHASHSEED=0 python scripts/make_peft_data.py
"""

import shutil
import sys
from pathlib import Path

try:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors.torch import load_file, save_file
except ModuleNotFoundError as error:
    sys.exit(f"This script requires torch and peft ({error}): python -m pip install torch==2.13.0 peft==0.21.2")

TARGET = Path(__file__).parents[1] / "tests" / "io" / "data"
LAYERS = ["up", "head"]

CONFIGS = {
    "lora": {"r": 2, "lora_alpha": 3},
    "rslora": {"r": 2, "lora_alpha": 3, "use_rslora": True},
    "patterns": {"r": 2, "lora_alpha": 3, "rank_pattern": {"up": 3}, "alpha_pattern": {"head": 5}},
    "dora": {"r": 2, "lora_alpha": 3, "use_dora": True},
    "bfloat16": {"r": 2, "lora_alpha": 3},
    "float16": {"r": 2, "lora_alpha": 3},
}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
TASKS = {
    "french": {"r": 2, "lora_alpha": 3, "target_modules": LAYERS},
    "german": {"r": 1, "lora_alpha": 4, "target_modules": ["head"]},
}


class Net(torch.nn.Module):
    """A network 6 -> 5 -> 4 with tanh in between."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential()
        self.body.add_module("up", torch.nn.Linear(6, 5))
        self.body.add_module("tanh", torch.nn.Tanh())
        self.head = torch.nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def base() -> Net:
    """The base network of every adapter."""
    net = Net()
    net.load_state_dict(load_file(TARGET / "base.safetensors"))
    return net


def randomise(model: PeftModel, dtype: torch.dtype) -> None:
    """Set random values: new PEFT adapters have no effect, because B is zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(torch.rand(parameter.shape) + 0.5)
            elif "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape) / 2)
                parameter.data = parameter.data.to(dtype)


def save(model: PeftModel, folder: Path) -> None:
    """Save in PEFT's format, without the model cards."""
    model.save_pretrained(folder)
    for card in folder.rglob("README.md"):
        card.unlink()


def write_expected(folder: Path) -> None:
    """Write the output, gradients and merged weights that PEFT computes in float64 with the adapter in a folder."""
    given = {name: tensor.double() for name, tensor in load_file(TARGET / "pass.safetensors").items()}
    model = PeftModel.from_pretrained(base(), folder, is_trainable=True).double()
    x = given["input"].requires_grad_()
    output = model(x)
    output.backward(given["output_gradient"])
    expected = {"output": output, "input_gradient": x.grad}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            key = name.removesuffix(".weight").replace(".default", "")
            expected[f"gradient.{key.removeprefix('base_model.model.')}"] = parameter.grad
    merged = PeftModel.from_pretrained(base(), folder).double().merge_and_unload()
    expected |= {f"merged.{name}": tensor for name, tensor in merged.state_dict().items()}
    tensors = {name: tensor.detach().float().contiguous() for name, tensor in expected.items()}
    save_file(tensors, folder / "expected.safetensors")


def main() -> None:
    torch.manual_seed(20240229)
    for old in TARGET.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
    save_file(Net().state_dict(), TARGET / "base.safetensors")
    given = {"input": torch.randn(3, 6), "output_gradient": torch.randn(3, 4)}
    save_file(given, TARGET / "pass.safetensors")
    for name, arguments in CONFIGS.items():
        model = get_peft_model(base(), LoraConfig(target_modules=LAYERS, **arguments))
        randomise(model, DTYPES.get(name, torch.float32))
        save(model, TARGET / name)
        write_expected(TARGET / name)
    (first, arguments), *others = TASKS.items()
    model = get_peft_model(base(), LoraConfig(**arguments), adapter_name=first)
    for name, more in others:
        model.add_adapter(name, LoraConfig(**more))
    randomise(model, torch.float32)
    save(model, TARGET / "tasks")
    for name in TASKS:
        write_expected(TARGET / "tasks" / name)


if __name__ == "__main__":
    main()
