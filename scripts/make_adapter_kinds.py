"""Make tests/io/kinds: one small adapter of every kind of file, and the weights that its own tool merges.

The kinds of PEFT are made, and merged, by PEFT itself. Those of other tools follow the conventions of their source code
(kohya's sd-scripts, LyCORIS, diffusers, mlx-lm): `merged` below is the only formula. All numbers are random, from a fixed
seed; none belong to trained models. Two runs make identical files if the hash seed is fixed.

    python -m pip install torch==2.13.0 peft==0.21.2 transformers==5.24.0 attrs
    PYTHONHASHSEED=0 python scripts/make_adapter_kinds.py
"""

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

try:
    import peft
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda
    from safetensors.torch import save_file
    from torch import nn
    from transformers.pytorch_utils import Conv1D
except ModuleNotFoundError as error:
    sys.exit(f"This script requires torch, peft, transformers and attrs ({error})")

TARGET = Path(__file__).parents[1] / "tests" / "io" / "kinds"
Tensors = dict[str, torch.Tensor]


class Block(nn.Module):
    """One linear layer, to be found by the number of the block."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(4, 4, bias=False)


class Experts(nn.Module):
    """Weights of experts in one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(2, 3, 4))


class Mixture(nn.Module):
    """Experts with two layers, whose weights are stacked as in transformers: (experts, out, in), or transposed."""

    def __init__(self, is_transposed: bool) -> None:
        super().__init__()
        self.is_transposed = is_transposed
        self.gate_up_proj = nn.Parameter(torch.randn(2, 4, 6) if is_transposed else torch.randn(2, 6, 4))
        self.down_proj = nn.Parameter(torch.randn(2, 3, 4) if is_transposed else torch.randn(2, 4, 3))


class Mixtures(nn.Module):
    """Both kinds of experts, and a matrix that is not called weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Mixture(False), Mixture(True)])
        self.router = nn.Module()
        self.router.scores = nn.Parameter(torch.randn(2, 4))
        self.up = nn.Linear(6, 5)


class Net(nn.Module):
    """A layer of each kind that PEFT adapts."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 4)
        self.up = nn.Linear(6, 5)
        self.narrow = Conv1D(5, 6)
        self.conv = nn.Conv2d(3, 4, (3, 2))
        self.point = nn.Conv2d(4, 3, 1)
        self.wave = nn.Conv1d(2, 3, 3)
        self.cube = nn.Conv3d(2, 2, 2)
        self.groups = nn.Conv2d(4, 4, 2, groups=2)
        self.layers = nn.ModuleList([Block(), Block()])
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, 4)
        self.experts = Experts()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(torch.tanh(self.up(x))))


def base() -> Net:
    """The base of every adapter that PEFT makes: the same numbers each time."""
    torch.manual_seed(1)
    return Net()


# ---------------------------------------------------------------- made by PEFT

LAYERS = ["up", "head"]
PLAIN = {"r": 2, "lora_alpha": 3, "target_modules": LAYERS}

LORA = {
    "peft-lora": {},
    "peft-rslora": {"use_rslora": True},
    "peft-patterns": {"rank_pattern": {"up": 3}, "alpha_pattern": {"head": 5}},
    "peft-dora": {"use_dora": True},
    "peft-bf16": {},
    "peft-f16": {},
    "peft-target-regex": {"target_modules": r".*\.(q)"},
    "peft-all-linear": {"target_modules": "all-linear", "exclude_modules": ["narrow"]},
    "peft-exclude": {"target_modules": ["up", "head", "q"], "exclude_modules": ["layers.1.q"]},
    "peft-one-layer": {"target_modules": ["q"], "layers_to_transform": [1], "layers_pattern": "layers"},
    "peft-conv2d": {"target_modules": ["conv"]},
    "peft-conv2d-1x1": {"target_modules": ["point"]},
    "peft-conv1d": {"target_modules": ["wave"]},
    "peft-conv3d": {"target_modules": ["cube"]},
    "peft-conv2d-dora": {"target_modules": ["conv", "point"], "use_dora": True},
    "peft-conv2d-rslora": {"target_modules": ["conv"], "use_rslora": True},
    "peft-conv2d-groups": {"target_modules": ["groups"]},
    "peft-linear-and-conv": {"target_modules": ["up", "conv", "wave"], "rank_pattern": {"conv": 3}},
    "peft-fan-in-fan-out": {"target_modules": ["narrow"], "fan_in_fan_out": True},
    "peft-embedding": {"target_modules": ["tokens", "up"]},
    "peft-trainable-tokens": {"target_modules": ["up"], "trainable_token_indices": {"tokens": [1, 4]}},
    "peft-lora-bias": {"lora_bias": True},
    "peft-bias-lora-only": {"bias": "lora_only"},
    "peft-bias-all": {"bias": "all"},
    "peft-modules-to-save": {"target_modules": ["up"], "modules_to_save": ["head"]},
    "peft-saved-norm": {"target_modules": ["up"], "modules_to_save": ["norm", "head"]},
    "peft-target-parameters": {"target_modules": [], "target_parameters": ["experts.weights"]},
    "peft-pissa": {"init_lora_weights": "pissa"},
    "peft-pissa-fast": {"init_lora_weights": "pissa_niter_4"},
    "peft-olora": {"init_lora_weights": "olora"},
    "peft-pissa-converted": {"init_lora_weights": "pissa"},
    "peft-gaussian": {"init_lora_weights": "gaussian"},
    "peft-corda": {"init_lora_weights": "corda", "corda_config": CordaConfig(corda_method="kpm")},
    "peft-embedding-dora": {"target_modules": ["tokens", "up"], "use_dora": True},
    "peft-fan-in-fan-out-dora": {"target_modules": ["narrow"], "fan_in_fan_out": True, "use_dora": True},
}
DTYPES = {"peft-bf16": torch.bfloat16, "peft-f16": torch.float16}
CHANGED_BASE = ("peft-pissa", "peft-pissa-fast", "peft-olora", "peft-corda")

OTHERS = {
    "peft-vera": (peft.VeraConfig, {"r": 3, "target_modules": LAYERS}),
    "peft-vera-without-projections": (peft.VeraConfig, {"r": 3, "target_modules": LAYERS, "save_projection": False}),
    "peft-adalora": (
        peft.AdaLoraConfig,
        {"init_r": 3, "target_r": 2, "lora_alpha": 5, "target_modules": LAYERS, "total_step": 9},
    ),
    "peft-loha": (peft.LoHaConfig, {"r": 2, "target_modules": LAYERS}),
    "peft-lokr": (peft.LoKrConfig, {"r": 2, "target_modules": LAYERS}),
    "peft-ia3": (peft.IA3Config, {"target_modules": LAYERS, "feedforward_modules": ["head"]}),
    "peft-oft": (peft.OFTConfig, {"oft_block_size": 2, "r": 0, "target_modules": ["q"]}),
    "peft-boft": (peft.BOFTConfig, {"boft_block_size": 2, "target_modules": ["q"]}),
    "peft-hra": (peft.HRAConfig, {"r": 2, "target_modules": LAYERS}),
    "peft-fourierft": (peft.FourierFTConfig, {"n_frequency": 4, "target_modules": LAYERS}),
    "peft-layernorm": (peft.LNTuningConfig, {"target_modules": ["norm"]}),
}


def randomise(model: PeftModel, dtype: torch.dtype = torch.float32) -> None:
    """Random values for everything that trains: most new adapters have no effect."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad or "ranknum" in name:
                continue
            if "magnitude" in name:
                parameter.mul_(torch.rand(parameter.shape) + 0.5)
            else:
                parameter.copy_(torch.randn(parameter.shape) / 2)
                parameter.data = parameter.data.to(dtype)


def save(model: PeftModel, folder: Path, **options: object) -> None:
    """Save in PEFT's format, without the model card."""
    model.save_pretrained(folder, **options)
    for card in folder.rglob("README.md"):
        card.unlink()


def write_expected(folder: Path, before: Tensors, after: Tensors) -> None:
    """Write the tensors that a merge changes or adds."""
    changed = {
        name: tensor.detach().float().contiguous()
        for name, tensor in after.items()
        if name not in before or not torch.equal(before[name], tensor)
    }
    assert changed, folder
    save_file(changed, folder / "expected.safetensors")


def merge_by_peft(folder: Path, net: Net) -> None:
    """Load the adapter into a base with PEFT, merge it, and write the result."""
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    after = PeftModel.from_pretrained(net, folder).merge_and_unload().state_dict()
    write_expected(folder, before, after)


def make_lora(name: str, options: dict[str, object]) -> None:
    """One adapter of PEFT's LoRA."""
    folder = TARGET / name
    net, config = base(), LoraConfig(**PLAIN | options)
    if config.init_lora_weights == "corda":  # its directions are those of inputs of the model
        preprocess_corda(net, config, run_model=lambda: net(torch.randn(64, 6)))
    model = get_peft_model(net, config)
    residual = {key.replace(".base_layer", ""): value.clone() for key, value in model.get_base_model().state_dict().items()}
    if name == "peft-pissa-converted":
        model.peft_config["default"].init_lora_weights = True
        save(model, folder / "start")
        model.peft_config["default"].init_lora_weights = "pissa"
    randomise(model, DTYPES.get(name, torch.float32))
    if name == "peft-pissa-converted":
        save(model, folder, path_initial_model_for_weight_conversion=str(folder / "start"))
        shutil.rmtree(folder / "start")
    else:
        save(model, folder)
    if name in CHANGED_BASE:
        kept = {key: residual[key].contiguous() for key in ("up.weight", "head.weight")}
        save_file(kept, folder / "base.safetensors")
        after = model.merge_and_unload().state_dict()
        write_expected(folder, kept, {key: after[key] for key in kept})
    elif name != "peft-conv2d-groups":  # PEFT itself does not merge it
        merge_by_peft(folder, base())


def make_peft() -> None:
    """The kinds that PEFT makes."""
    save_file(base().state_dict(), TARGET / "bases" / "net.safetensors")
    for number, (name, options) in enumerate(LORA.items()):
        torch.manual_seed(100 + number)
        make_lora(name, options)
    for number, (name, (config, options)) in enumerate(OTHERS.items()):
        torch.manual_seed(200 + number)
        model = get_peft_model(base(), config(**options))
        randomise(model)
        save(model, TARGET / name)
        if name in ("peft-vera", "peft-adalora"):
            merge_by_peft(TARGET / name, base())
    make_pruned_adalora()
    make_named()
    make_experts()
    shutil.copytree(TARGET / "peft-pissa", TARGET / "peft-loftq")
    config = TARGET / "peft-loftq" / "adapter_config.json"  # PEFT needs bitsandbytes and a GPU to make it
    config.write_text(config.read_text().replace('"pissa"', '"loftq"'))
    shutil.copytree(TARGET / "peft-lora", TARGET / "peft-pickle", ignore=shutil.ignore_patterns("*.safetensors"))
    (TARGET / "peft-pickle" / "adapter_model.bin").write_bytes(b"\x80\x04N.")
    (TARGET / "peft-bare").mkdir()
    shutil.copy(TARGET / "peft-lora" / "expected.safetensors", TARGET / "peft-bare")
    shutil.copy(TARGET / "peft-lora" / "adapter_model.safetensors", TARGET / "peft-bare" / "lora.safetensors")


def make_pruned_adalora() -> None:
    """An AdaLoRA adapter after its allocator has chosen a rank for each layer."""
    torch.manual_seed(300)
    model = get_peft_model(base(), peft.AdaLoraConfig(**OTHERS["peft-adalora"][1]))
    randomise(model)
    keep = {"up.lora_E": [True, False, True], "head.lora_E": [False, True, False]}
    with torch.no_grad():
        for key, mask in keep.items():
            model.get_submodule(f"base_model.model.{key}")["default"][~torch.tensor(mask)] = 0
    model.peft_config["default"].rank_pattern = keep
    save(model, TARGET / "peft-adalora-ranks")
    before = {name: tensor.clone() for name, tensor in base().state_dict().items()}
    write_expected(TARGET / "peft-adalora-ranks", before, model.merge_and_unload().state_dict())


def make_named() -> None:
    """Two named adapters in one folder."""
    torch.manual_seed(301)
    model = get_peft_model(base(), LoraConfig(**PLAIN), adapter_name="french")
    model.add_adapter("german", LoraConfig(r=1, lora_alpha=4, target_modules=["head"]))
    randomise(model)
    save(model, TARGET / "peft-named")
    merge_by_peft(TARGET / "peft-named" / "french", base())


def make_experts() -> None:
    """Two parameters of each module, whose wrappers PEFT nests, and a matrix."""
    torch.manual_seed(302)
    net = Mixtures()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    (TARGET / "peft-experts").mkdir()
    save_file(before, TARGET / "peft-experts" / "base.safetensors")
    parameters = ["down_proj", "gate_up_proj", "router.scores"]
    names = [f"layers.{number}.{name}" for number in (0, 1) for name in parameters[:2]] + parameters[2:]
    model = get_peft_model(net, LoraConfig(r=2, lora_alpha=3, target_modules=["up"], target_parameters=names))
    randomise(model)
    save(model, TARGET / "peft-experts")
    write_expected(TARGET / "peft-experts", before, model.merge_and_unload().state_dict())


# ---------------------------------------------------------------- made by the conventions of other tools


def linear(out: int, inputs: int) -> torch.Tensor:
    return torch.randn(out, inputs)


ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"

UNET = {  # the names of diffusers
    "conv_in": (3, 2, 3, 3),
    "down_blocks.0.attentions.0.proj_in": (4, 4, 1, 1),
    f"{ATTENTION}.to_q": (4, 4),
    f"{ATTENTION}.to_out.0": (4, 4),
    "down_blocks.0.resnets.0.conv1": (3, 2, 3, 3),
    "mid_block.resnets.1.time_emb_proj": (4, 6),
    "up_blocks.1.attentions.2.transformer_blocks.0.ff.net.0.proj": (8, 4),
}
PIPELINE = {f"unet.{path}": shape for path, shape in UNET.items()} | {
    f"text_encoder.{TEXT}": (5, 5),
    f"text_encoder_2.{TEXT}": (5, 5),
}
LDM = {  # a single file, the names of the first implementation
    "model.diffusion_model.input_blocks.0.0": (3, 2, 3, 3),
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q": (4, 4),
    "model.diffusion_model.input_blocks.1.0.in_layers.2": (3, 2, 3, 3),
    f"cond_stage_model.transformer.{TEXT}": (5, 5),
}
SDXL = {
    "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k": (4, 4),
    "model.diffusion_model.input_blocks.4.1.proj_in": (4, 4),
    "model.diffusion_model.middle_block.1.transformer_blocks.0.ff.net.0.proj": (8, 4),
    f"conditioner.embedders.0.transformer.{TEXT}": (5, 5),
}
FLUX = {"double_blocks.0.img_attn.qkv": (12, 4), "single_blocks.0.linear1": (8, 4)}
TRANSFORMER = {"transformer_blocks.0.attn.to_q": (4, 4), "single_transformer_blocks.0.attn.to_k": (4, 4)}
LLAMA = {"model.layers.0.self_attn.q_proj": (4, 4), "model.layers.0.mlp.down_proj": (4, 6)}
SIZES = {
    "unet": UNET,
    "pipeline": PIPELINE,
    "ldm": LDM,
    "sdxl": SDXL,
    "flux": FLUX,
    "transformer": TRANSFORMER,
    "llama": LLAMA,
}
SEPARATE = {  # Flux in diffusers, where queries, keys and values are separate modules
    **{f"transformer_blocks.0.attn.to_{name}": (4, 4) for name in "qkv"},
    **{f"single_transformer_blocks.0.attn.to_{name}": (4, 4) for name in "qkv"},
    "single_transformer_blocks.0.proj_mlp": (6, 4),
    "transformer_blocks.0.ff.net.0.proj": (6, 4),
}
FUSED = {  # the modules of the first Flux, and those whose rows they stack
    "double_blocks.0.img_attn.qkv": [f"transformer_blocks.0.attn.to_{name}" for name in "qkv"],
    "single_blocks.0.linear1": [
        *(f"single_transformer_blocks.0.attn.to_{name}" for name in "qkv"),
        "single_transformer_blocks.0.proj_mlp",
    ],
    "double_blocks.0.img_mlp.0": ["transformer_blocks.0.ff.net.0.proj"],
}
BASES: dict[str, Tensors] = {}

Pair = tuple[torch.Tensor, torch.Tensor, float]


def pair(shape: tuple[int, ...], rank: int = 2, alpha: float = 3.0) -> Pair:
    """Factors (r, in, ...) and (out, r, 1, ...) for a weight (out, in, ...), and alpha."""
    ones = (1,) * (len(shape) - 2)
    return torch.randn(rank, *shape[1:]) / 2, torch.randn(shape[0], rank, *ones) / 2, alpha


def merged(weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
    """W + s B A, with the factors of a convolution as matrices."""
    return weight + scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)


def file_kind(name: str, base: str, tensors: Tensors, after: Tensors, metadata: dict[str, str] | None = None) -> None:
    """Write a kind that is one file, and the tensors that it changes in a base."""
    folder = TARGET / name
    folder.mkdir()
    weights = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(weights, folder / "lora.safetensors", metadata)
    if after:
        write_expected(folder, {}, after)
    (folder / "base.txt").write_text(f"{base}\n")


def lora_kind(
    name: str,
    base: str,
    keys: Callable[[str], tuple[str, str, str | None]],
    *,
    module: str = "",
    alpha: float = 3.0,
    metadata: dict[str, str] | None = None,
    only: tuple[str, ...] = (),
) -> None:
    """Plain factors for every layer of a base, under the names of a format."""
    tensors, after = {}, {}
    for path, shape in SIZES[base].items():
        if only and path not in only:
            continue
        down, up, value = pair(shape, alpha=alpha)
        down_key, up_key, alpha_key = keys(path)
        tensors |= {down_key: down, up_key: up}
        if alpha_key:
            tensors[alpha_key] = torch.tensor(value)
        weight = f"{module}{path}.weight"
        after[weight] = merged(BASES[base][weight], down, up, value / 2)
    file_kind(name, base, tensors, after, metadata)


def kohya_keys(name: Callable[[str], str], has_alpha: bool = True) -> Callable[[str], tuple[str, str, str | None]]:
    def keys(path: str) -> tuple[str, str, str | None]:
        module = name(path)
        return f"{module}.lora_down.weight", f"{module}.lora_up.weight", f"{module}.alpha" if has_alpha else None

    return keys


def flat(prefix: str, strip: str = "") -> Callable[[str], str]:
    """The names of kohya: a prefix, and underscores for dots."""
    return lambda path: prefix + path.removeprefix(strip).replace(".", "_")


def kohya_sd15(path: str) -> str:
    if path.startswith("text_encoder"):
        number = "2" if path.startswith("text_encoder_2") else "1"
        return flat(f"lora_te{number}_")(path.partition(".")[2])
    return flat("lora_unet_")(path.removeprefix("unet."))


def kohya_ldm(path: str) -> str:
    """The names of SD 1.5 in kohya's files are those of diffusers, whatever the checkpoint."""
    diffusers = {
        "model.diffusion_model.input_blocks.0.0": "conv_in",
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q": f"{ATTENTION}.to_q",
        "model.diffusion_model.input_blocks.1.0.in_layers.2": "down_blocks.0.resnets.0.conv1",
    }
    return flat("lora_unet_")(diffusers[path]) if path in diffusers else flat("lora_te_")(TEXT)


def kohya_sdxl(path: str) -> str:
    """The names of SDXL in kohya's files are those of the single file."""
    if path.startswith("conditioner"):
        return flat("lora_te1_")(TEXT)
    return flat("lora_unet_")(path.removeprefix("model.diffusion_model."))


def diffusers_keys(path: str) -> tuple[str, str, str | None]:
    return f"{path}.lora_A.weight", f"{path}.lora_B.weight", None


def old_names(path: str) -> tuple[str, str, str | None]:
    """Before diffusers 0.17: factors in the attention processors."""
    if path.startswith("text_encoder"):
        stem = path.removesuffix("q_proj") + "to_q_lora"
    else:
        head, _, last = path.rpartition(".attn1.")
        stem = f"{head}.attn1.processor.{last.removesuffix('.0')}_lora"
    return f"{stem}.down.weight", f"{stem}.up.weight", None


def make_kohya() -> None:
    """The kinds of kohya's sd-scripts and of LyCORIS."""
    unet = flat("lora_unet_")
    lora_kind("kohya-unet", "unet", kohya_keys(unet))
    lora_kind("kohya-no-alpha", "unet", kohya_keys(unet, has_alpha=False), alpha=2.0)
    lora_kind("kohya-pipeline", "pipeline", kohya_keys(kohya_sd15))
    lora_kind("kohya-sd15-single-file", "ldm", kohya_keys(kohya_ldm))
    lora_kind("kohya-sdxl-single-file", "sdxl", kohya_keys(kohya_sdxl))
    lora_kind("kohya-flux", "flux", kohya_keys(unet))
    lora_kind("kohya-transformer", "transformer", kohya_keys(flat("lora_transformer_")))
    make_locon_tucker()
    make_kohya_dora()
    make_refused_lycoris()


def make_flux_separate() -> None:
    """kohya's Flux file, merged into the separate modules of diffusers: the rows of the fused change."""
    torch.manual_seed(500)
    BASES["flux-diffusers"] = {f"{path}.weight": torch.randn(shape) for path, shape in SEPARATE.items()}
    save_file(BASES["flux-diffusers"], TARGET / "bases" / "flux-diffusers.safetensors")
    tensors, after = {}, {}
    for path, parts in FUSED.items():
        weights = [BASES["flux-diffusers"][f"{part}.weight"] for part in parts]
        down, up, alpha = pair((sum(map(len, weights)), 4))
        name = flat("lora_unet_")(path)
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(alpha)}
        new = merged(torch.cat(weights), down, up, alpha / 2).split([len(weight) for weight in weights])
        after |= {f"{part}.weight": tensor for part, tensor in zip(parts, new, strict=True)}
    file_kind("kohya-flux-diffusers", "flux-diffusers", tensors, after)


def make_open_clip() -> None:
    """kohya's file of SDXL's second text encoder, merged into a single-file checkpoint: its rows of the fused weight."""
    torch.manual_seed(600)
    block = "conditioner.embedders.1.model.transformer.resblocks.0"
    shapes = {
        "attn.in_proj_weight": (12, 4),
        "attn.out_proj.weight": (4, 4),
        "mlp.c_fc.weight": (8, 4),
        "mlp.c_proj.weight": (4, 8),
    }
    BASES["open-clip"] = {f"{block}.{name}": torch.randn(shape) for name, shape in shapes.items()}
    BASES["open-clip"][f"{block}.attn.in_proj_bias"] = torch.randn(12)
    save_file(BASES["open-clip"], TARGET / "bases" / "open-clip.safetensors")
    modules = {
        **{f"self_attn.{name}_proj": ("attn.in_proj_weight", slice(4 * i, 4 * i + 4)) for i, name in enumerate("qkv")},
        "self_attn.out_proj": ("attn.out_proj.weight", slice(None)),
        "mlp.fc1": ("mlp.c_fc.weight", slice(None)),
        "mlp.fc2": ("mlp.c_proj.weight", slice(None)),
    }
    tensors, after = {}, {f"{block}.{name}": BASES["open-clip"][f"{block}.{name}"].clone() for name in shapes}
    for number, (module, (weight, rows)) in enumerate(modules.items()):
        part = after[f"{block}.{weight}"][rows]
        down, up, alpha = pair(tuple(part.shape), rank=1 + number % 3)
        name = flat("lora_te2_")(f"text_model.encoder.layers.0.{module}")
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(alpha)}
        after[f"{block}.{weight}"][rows] = merged(part, down, up, alpha / len(down))
    file_kind("kohya-sdxl-open-clip", "open-clip", tensors, after)


def make_locon_tucker() -> None:
    """LoCon with lora_mid: a Tucker decomposition, 1x1 down, k x k in between, 1x1 up."""
    shape, weight = UNET["conv_in"], "conv_in.weight"
    down, mid, up = torch.randn(2, 2, 1, 1), torch.randn(2, 2, 3, 3) / 2, torch.randn(3, 2, 1, 1)
    tensors = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(3.0)}
    change = torch.einsum("ijkl,pi,jr->prkl", mid, up.flatten(1), down.flatten(1))
    assert change.shape == shape
    after = {weight: BASES["unet"][weight] + 1.5 * change}
    file_kind("kohya-locon-mid", "unet", {f"lora_unet_conv_in.{key}": value for key, value in tensors.items()}, after)


def make_kohya_dora() -> None:
    """LyCORIS with weight decomposition along the output."""
    tensors, after = {}, {}
    for path in ("conv_in", f"{ATTENTION}.to_q"):
        weight, name = f"{path}.weight", flat("lora_unet_")(path)
        down, up, alpha = pair(UNET[path])
        magnitude = (torch.rand(len(up)) + 0.5).reshape(-1, *[1] * (len(UNET[path]) - 1))
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(alpha)}
        tensors[f"{name}.dora_scale"] = magnitude
        new = merged(BASES["unet"][weight], down, up, alpha / 2)
        after[weight] = new * magnitude / new.flatten(1).norm(dim=1).reshape(magnitude.shape)
    file_kind("kohya-dora", "unet", tensors, after)
    make_dora_by_input(tensors)


def make_dora_by_input(tensors: Tensors) -> None:
    """The same factors, with weight decomposition along the input."""
    tensors, after = dict(tensors), {}
    for path in ("conv_in", f"{ATTENTION}.to_q"):
        weight, name = f"{path}.weight", flat("lora_unet_")(path)
        magnitude = torch.linspace(0.5, 1.5, UNET[path][1]).reshape(1, -1, *[1] * (len(UNET[path]) - 2))
        down, up = (tensors[f"{name}.lora_{way}.weight"] for way in ("down", "up"))
        new = merged(BASES["unet"][weight], down, up, tensors[f"{name}.alpha"].item() / 2)
        after[weight] = new * magnitude / new.transpose(0, 1).flatten(1).norm(dim=1).reshape(magnitude.shape)
        tensors[f"{name}.dora_scale"] = magnitude
    file_kind("lycoris-dora-by-input", "unet", tensors, after)


def make_refused_lycoris() -> None:
    """Kinds of LyCORIS that are not a pair of factors."""
    name = "lora_unet_" + f"{ATTENTION}.to_q".replace(".", "_")
    kinds = {
        "lycoris-loha": {f"hada_w{i}_{c}": linear(4, 2) if c == "a" else linear(2, 4) for i in (1, 2) for c in "ab"},
        "lycoris-lokr": {"lokr_w1": linear(2, 2), "lokr_w2": linear(2, 2)},
        "lycoris-ia3": {"weight": torch.randn(4, 1), "on_input": torch.tensor(False)},
        "lycoris-oft": {"oft_blocks": torch.randn(2, 2, 2)},
        "lycoris-glora": {f"{c}{i}.weight": linear(4, 2) if i == 1 else linear(2, 4) for c in "ab" for i in (1, 2)},
        "lycoris-full": {"diff": linear(4, 4), "diff_b": torch.randn(4)},
        "lycoris-norm": {"w_norm": torch.randn(4), "b_norm": torch.randn(4)},
    }
    for kind, tensors in kinds.items():
        file_kind(kind, "unet", {f"{name}.{key}": value for key, value in tensors.items()}, {})


def make_diffusers() -> None:
    """The kinds of diffusers."""
    lora_kind("diffusers-unet", "unet", lambda path: diffusers_keys(f"unet.{path}"), alpha=2.0)
    lora_kind("diffusers-pipeline", "pipeline", diffusers_keys, alpha=2.0)
    lora_kind("diffusers-flux", "transformer", lambda path: diffusers_keys(f"transformer.{path}"), alpha=2.0)
    config = {"unet.r": 2, "unet.lora_alpha": 3, "unet.target_modules": ["to_q"], "unet.use_rslora": False}
    metadata = {"lora_adapter_metadata": json.dumps(config, indent=2, sort_keys=True)}
    lora_kind("diffusers-metadata", "unet", lambda path: diffusers_keys(f"unet.{path}"), metadata=metadata)
    with_alpha = lambda path: (*diffusers_keys(f"unet.{path}")[:2], f"unet.{path}.alpha")  # noqa: E731
    lora_kind("diffusers-alpha", "unet", with_alpha)
    attention = (f"unet.{ATTENTION}.to_q", f"unet.{ATTENTION}.to_out.0", f"text_encoder.{TEXT}")
    lora_kind("diffusers-processor", "pipeline", old_names, alpha=2.0, only=attention)
    layers = lambda path: (f"{path}.lora.down.weight", f"{path}.lora.up.weight", None)  # noqa: E731
    lora_kind("diffusers-lora-down", "pipeline", layers, alpha=2.0)
    ways = ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight")
    linear_layers = lambda path: (f"{path}.{ways[0]}", f"{path}.{ways[1]}", None)  # noqa: E731
    lora_kind("diffusers-lora-linear-layer", "pipeline", linear_layers, alpha=2.0, only=(f"text_encoder.{TEXT}",))


def make_mlx() -> None:
    """The kinds of mlx-lm: factors the other way round, and the scale itself."""
    for name, kind in {"mlx-lora": "lora", "mlx-dora": "dora", "mlx-full": "full"}.items():
        tensors, after = {}, {}
        for path, shape in LLAMA.items():
            (down, up, _), weight = pair(shape), f"{path}.weight"
            new = merged(BASES["llama"][weight], down, up, 20.0 / 4)
            tensors |= {f"{path}.lora_a": down.T.contiguous(), f"{path}.lora_b": up.T.contiguous()}
            if kind == "dora":
                tensors[f"{path}.m"] = torch.rand(shape[0]) + 0.5
                new = new * (tensors[f"{path}.m"] / new.norm(dim=1))[:, None]
            if kind == "full":
                tensors = {key: value for key, value in tensors.items() if "lora" not in key} | {weight: up @ down}
            after[weight] = new
        folder = TARGET / name
        folder.mkdir()
        save_file(tensors, folder / "adapters.safetensors")
        parameters = {"rank": 2, "scale": 5.0, "dropout": 0.0}
        config = {"fine_tune_type": kind, "num_layers": 1, "lora_parameters": parameters}
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        (folder / "base.txt").write_text("llama\n")
        if kind != "full":
            write_expected(folder, {}, after)


def main() -> None:
    warnings.filterwarnings("ignore")
    shutil.rmtree(TARGET, ignore_errors=True)
    (TARGET / "bases").mkdir(parents=True)
    make_peft()
    torch.manual_seed(400)
    for name, sizes in SIZES.items():
        BASES[name] = {f"{path}.weight": torch.randn(shape) for path, shape in sizes.items()}
        save_file(BASES[name], TARGET / "bases" / f"{name}.safetensors")
    make_kohya()
    make_diffusers()
    make_mlx()
    make_flux_separate()
    make_open_clip()
    for config in TARGET.rglob("adapter_config.json"):  # as it is, but on one line and without the entries that are null
        entries = {name: value for name, value in json.loads(config.read_text()).items() if value is not None}
        config.write_text(json.dumps(entries, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
