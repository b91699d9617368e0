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
TEXT_CONFIGS = {
    "head": {"target_modules": ["up"], "modules_to_save": ["head"]},
    "head-bfloat16": {"target_modules": ["up"], "modules_to_save": ["head"]},
    "norm": {"target_modules": LAYERS, "modules_to_save": ["norm"]},
    "bias-lora-only": {"target_modules": ["up"], "bias": "lora_only"},
    "bias-all": {"target_modules": ["up"], "bias": "all"},
    "lora-bias": {"target_modules": LAYERS, "lora_bias": True},
    "embedding": {"target_modules": ["table", "up"]},
    "saved-embedding": {"target_modules": ["up"], "modules_to_save": ["table"]},
    "tokens": {"target_modules": ["up"], "trainable_token_indices": {"table": [5, 2]}},
    "parameters": {"target_modules": ["head"], "target_parameters": ["up.weight"]},
    "excluded": {"target_modules": r"(body\.)?\w+", "exclude_modules": ["head", "tanh", "table", "norm", "body"]},
}
"""Adapters that train more than the factors of linear layers."""


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


class TextNet(Net):
    """The same network after an embedding of 9 tokens, and a normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(9, 6)
        self.norm = torch.nn.LayerNorm(6)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(self.table(ids)))


def base() -> Net:
    """The base network of the adapters of linear layers."""
    net = Net()
    net.load_state_dict(load_file(TARGET / "base.safetensors"))
    return net


def text_base() -> TextNet:
    """The base network of the other adapters."""
    net = TextNet()
    net.load_state_dict(load_file(TARGET / "text_base.safetensors"))
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


def randomise_all(model: PeftModel, dtype: torch.dtype) -> None:
    """Set random values of everything that trains, in a dtype."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape) / 2)
                parameter.data = parameter.data.to(dtype)


def write_text_adapters() -> None:
    """Write adapters that train more than factors, with the output and the merged tensors that PEFT computes in float64."""
    torch.manual_seed(20240301)
    net = TextNet()
    net.load_state_dict(net.state_dict() | {"norm.weight": torch.rand(6) + 0.5, "norm.bias": torch.randn(6) / 2})
    save_file(net.state_dict(), TARGET / "text_base.safetensors")
    ids = torch.tensor([[1, 5, 2], [8, 0, 5]])
    for name, arguments in TEXT_CONFIGS.items():
        folder = TARGET / "text" / name
        model = get_peft_model(text_base(), LoraConfig(r=2, lora_alpha=3, **arguments))
        randomise_all(model, torch.bfloat16 if name.endswith("bfloat16") else torch.float32)
        save(model, folder)
        expected = {"output": PeftModel.from_pretrained(text_base(), folder).double()(ids)}
        merged = PeftModel.from_pretrained(text_base(), folder).double().merge_and_unload()
        expected |= {f"merged.{key}": tensor for key, tensor in merged.state_dict().items()}
        tensors = {key: tensor.detach().float().contiguous() for key, tensor in expected.items()}
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
    write_text_adapters()


if __name__ == "__main__":
    main()
