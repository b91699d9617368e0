"""The kinds of adapter files in tests/io/kinds, and what lora_np does with each: inspect, merge, convert, write again."""

import shutil
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lora_np.cli._adapters import require_adapters
from lora_np.cli.inspect import inspected
from lora_np.errors import ArgumentError, NotSupportedError
from lora_np.io.base_names import renamed
from lora_np.io.diffusers import load_diffusers, save_diffusers
from lora_np.io.kohya import load_kohya, save_kohya
from lora_np.io.merge import merge_checkpoint
from lora_np.io.mlx import load_mlx, save_mlx
from lora_np.io.peft import load_peft, save_peft
from lora_np.io.safetensors import load_safetensors

FOLDER = Path(__file__).parent / "kinds"
PAGE = Path(__file__).parents[2] / "docs" / "files.md"


class Kind(NamedTuple):
    """A kind of file, and the options that it needs."""

    what: str
    base: str = "net"
    task: str | None = None
    alpha: float | None = None
    base_is_residual: bool = False
    again: str = "identical"


PEFT = {
    "peft-lora": Kind("plain"),
    "peft-rslora": Kind("`use_rslora`"),
    "peft-patterns": Kind("`rank_pattern`, `alpha_pattern`"),
    "peft-dora": Kind("`use_dora`"),
    "peft-bf16": Kind("factors in BF16"),
    "peft-f16": Kind("factors in F16"),
    "peft-named": Kind("named adapters in subfolders", task="french"),
    "peft-gaussian": Kind('`init_lora_weights="gaussian"`'),
    "peft-target-regex": Kind("`target_modules` a regular expression"),
    "peft-all-linear": Kind('`target_modules="all-linear"`'),
    "peft-exclude": Kind("`exclude_modules`"),
    "peft-one-layer": Kind("`layers_to_transform`"),
    "peft-fan-in-fan-out": Kind("`Conv1D` of GPT-2, `fan_in_fan_out`"),
    "peft-fan-in-fan-out-dora": Kind("`Conv1D` of GPT-2 with `use_dora`"),
    "peft-conv1d": Kind("`Conv1d`"),
    "peft-conv2d": Kind("`Conv2d`, kernel 3 x 2"),
    "peft-conv2d-1x1": Kind("`Conv2d`, kernel 1 x 1"),
    "peft-conv2d-rslora": Kind("`Conv2d` with `use_rslora`"),
    "peft-conv2d-dora": Kind("`Conv2d` with `use_dora`"),
    "peft-conv3d": Kind("`Conv3d`"),
    "peft-conv2d-groups": Kind("`Conv2d` in groups"),
    "peft-linear-and-conv": Kind("`Linear`, `Conv1d` and `Conv2d` of different ranks"),
    "peft-embedding": Kind("low-rank embedding"),
    "peft-embedding-dora": Kind("low-rank embedding with `use_dora`"),
    "peft-trainable-tokens": Kind("`trainable_token_indices`"),
    "peft-lora-bias": Kind("`lora_bias`"),
    "peft-bias-lora-only": Kind('`bias="lora_only"`'),
    "peft-bias-all": Kind('`bias="all"`'),
    "peft-modules-to-save": Kind("`modules_to_save`: a head"),
    "peft-saved-norm": Kind("`modules_to_save`: a norm and a head"),
    "peft-target-parameters": Kind("`target_parameters`: experts in one parameter"),
    "peft-experts": Kind("`target_parameters`: several parameters of a module"),
    "peft-pissa": Kind("PiSSA, with its residual base", base_is_residual=True),
    "peft-pissa-fast": Kind("PiSSA by fast SVD, with its residual base", base_is_residual=True),
    "peft-olora": Kind("OLoRA, with its residual base", base_is_residual=True),
    "peft-corda": Kind("CorDA, with its residual base", base_is_residual=True),
    "peft-loftq": Kind(
        "LoftQ, with its residual base: PiSSA's file, for PEFT makes it only on a GPU", base_is_residual=True
    ),
    "peft-pissa-converted": Kind("PiSSA converted by PEFT's `save_pretrained`"),
    "peft-adalora": Kind("AdaLoRA", again="as LoRA"),
    "peft-adalora-ranks": Kind("AdaLoRA after its allocation of ranks", again="as LoRA"),
    "peft-vera": Kind("VeRA", again="as LoRA; a model's as VeRA"),
    "peft-vera-without-projections": Kind("VeRA, `save_projection=False`"),
    "peft-bare": Kind("weights without adapter_config.json", alpha=3.0),
    "peft-pickle": Kind("adapter_model.bin"),
    "peft-loha": Kind("LoHa"),
    "peft-lokr": Kind("LoKr"),
    "peft-ia3": Kind("IA3"),
    "peft-oft": Kind("OFT"),
    "peft-boft": Kind("BOFT"),
    "peft-hra": Kind("HRA"),
    "peft-fourierft": Kind("FourierFT"),
    "peft-layernorm": Kind("LN tuning"),
}
KOHYA = {
    "kohya-unet": Kind("U-Net, LoRA and LoCon layers", "unet"),
    "kohya-no-alpha": Kind("without alpha", "unet"),
    "kohya-locon-mid": Kind("LoCon with `lora_mid` (Tucker)", "unet", again="two factors"),
    "kohya-dora": Kind("`dora_scale` by output", "unet"),
    "kohya-pipeline": Kind("U-Net and two text encoders (`lora_te1_`, `lora_te2_`)", "pipeline"),
    "kohya-sd15-single-file": Kind("SD 1.5, names of diffusers, for a single-file base", "ldm"),
    "kohya-sdxl-single-file": Kind("SDXL, names of the single file", "sdxl"),
    "kohya-sdxl-open-clip": Kind("SDXL's second text encoder, for a single-file base with fused weights", "open-clip"),
    "kohya-flux": Kind("Flux (`lora_unet_double_blocks_`)", "flux"),
    "kohya-flux-diffusers": Kind("Flux, for a base of diffusers with separate modules", "flux-diffusers", again="separate"),
    "kohya-transformer": Kind("`lora_transformer_`", "transformer"),
}
LYCORIS = {
    "lycoris-dora-by-input": Kind("`dora_scale` by input", "unet"),
    "lycoris-loha": Kind("LoHa", "unet"),
    "lycoris-lokr": Kind("LoKr", "unet"),
    "lycoris-ia3": Kind("IA3", "unet"),
    "lycoris-oft": Kind("diag-OFT", "unet"),
    "lycoris-glora": Kind("GLoRA", "unet"),
    "lycoris-full": Kind("full difference", "unet"),
    "lycoris-norm": Kind("norm layers", "unet"),
}
DIFFUSERS = {
    "diffusers-unet": Kind("`unet.`", "unet"),
    "diffusers-pipeline": Kind("`unet.`, `text_encoder.`, `text_encoder_2.`", "pipeline"),
    "diffusers-flux": Kind("`transformer.` (Flux, SD 3)", "transformer"),
    "diffusers-alpha": Kind("with `.alpha`", "unet"),
    "diffusers-metadata": Kind("alpha in the metadata", "unet"),
    "diffusers-processor": Kind("`processor.to_q_lora.down`", "pipeline"),
    "diffusers-lora-down": Kind("`lora.down`", "pipeline"),
    "diffusers-lora-linear-layer": Kind("`lora_linear_layer.down`", "pipeline"),
}
MLX = {
    "mlx-lora": Kind("LoRA", "llama"),
    "mlx-dora": Kind("DoRA", "llama"),
    "mlx-full": Kind("`fine_tune_type: full`", "llama"),
}
TOOLS = {"PEFT": PEFT, "kohya": KOHYA, "LyCORIS": LYCORIS, "diffusers": DIFFUSERS, "mlx-lm": MLX}
KINDS = {name: kind for kinds in TOOLS.values() for name, kind in kinds.items()}

FORMATS = ("PEFT", "kohya", "diffusers", "mlx-lm")


def place(name):
    """The adapter of a kind: a file, or a folder."""
    file = FOLDER / name / "lora.safetensors"
    return file if file.exists() else FOLDER / name


def base_of(name):
    """The checkpoint that the adapter of a kind belongs to."""
    own = FOLDER / name / "base.safetensors"
    return own if own.exists() else FOLDER / "bases" / f"{KINDS[name].base}.safetensors"


def loaded(name, *, for_base=True):
    """The weights of a kind, with the names and sizes of its base."""
    kind = KINDS[name]
    found = require_adapters(str(place(name)), alpha=kind.alpha, base_is_residual=kind.base_is_residual)
    weights = found.read(found.choose(kind.task))
    return found.by_base(weights, str(base_of(name))) if for_base and found.by_base else weights


def merge_difference(name, output):
    """The largest difference between the merged tensors and those that the tool of the kind computes."""
    weights = loaded(name)
    merge_checkpoint(base_of(name), weights, output, fan_in_fan_out=bool(weights.config.get("fan_in_fan_out")))
    merged = load_safetensors(output)
    before = load_safetensors(base_of(name))
    folder = FOLDER / name / (KINDS[name].task or "")
    expected = load_safetensors(folder / "expected.safetensors")
    assert merged.keys() == before.keys() | expected.keys()
    for key in before.keys() - expected.keys():
        assert np.array_equal(merged[key], before[key]), key
    return max(float(np.abs(merged[key].astype(float) - tensor).max()) for key, tensor in expected.items())


def write_and_read(target, weights, folder):
    """The weights after writing them in a format and reading them again."""
    file = folder / "lora.safetensors"
    if target == "PEFT":
        save_peft(folder / "peft", weights)
        return load_peft(folder / "peft", base_is_residual=True)
    if target == "mlx-lm":
        save_mlx(folder / "mlx", weights)
        return load_mlx(folder / "mlx")
    names = {
        path: path if path.startswith(("unet.", "text_encoder", "transformer.")) else f"unet.{path}"
        for path in weights.layers
    }
    back = {name: path for path, name in names.items()}
    if target == "diffusers":
        save_diffusers(file, renamed(weights, names))
        return renamed(load_diffusers(file), back)
    save_kohya(file, renamed(weights, names))
    read = load_kohya(file)
    return renamed(read, {name: back[dotted(name, names.values())] for name in read.layers})


def dotted(name, paths):
    """The path that a name of kohya's means."""
    prefixes = {"lora_te1": "text_encoder", "lora_te2": "text_encoder_2", "lora_te": "text_encoder", "lora": ""}
    old, new = next((old, new) for old, new in prefixes.items() if name.startswith(f"{old}_"))
    flat = f"{new}_{name.removeprefix(old + '_')}".removeprefix("_")
    (path,) = [path for path in paths if path.replace(".", "_") == flat]
    return path


def same(one, other):
    """Whether two adapters are equal to the bit, apart from configurations and the order of layers."""
    if one.layers.keys() != other.layers.keys():
        return False
    for path, layer in one.layers.items():
        twin = other.layers[path]
        if not (np.array_equal(layer.matrix_a, twin.matrix_a) and np.array_equal(layer.matrix_b, twin.matrix_b)):
            return False
        if not np.isclose(layer.scaling, twin.scaling, rtol=1e-15, atol=0) or layer.dtype != twin.dtype:
            return False
    fields = ("magnitudes", "whole", "biases")
    if any(getattr(one, name).keys() != getattr(other, name).keys() for name in fields):
        return False
    arrays = [(getattr(one, name)[key], getattr(other, name)[key]) for name in fields for key in getattr(one, name)]
    rows = [(one.rows[key], other.rows.get(key)) for key in one.rows]
    return (
        all(np.array_equal(*pair) for pair in arrays)
        and all(b is not None and all(map(np.array_equal, a, b)) for a, b in rows)
        and dict(one.kernels) == dict(other.kernels)
        and dict(one.nested) == dict(other.nested)
        and one.embeddings == other.embeddings
        and one.by_input == other.by_input
        and dict(one.experts) == dict(other.experts)
    )


def results(name):
    """The row of the table for a kind."""
    folder = Path(tempfile.mkdtemp())
    try:
        return _results(name, folder)
    finally:
        shutil.rmtree(folder)


def _results(name, folder):
    tool = next(tool for tool, kinds in TOOLS.items() if name in kinds)
    kind = KINDS[name]
    row = {"tool": tool, "what": kind.what}
    options = Namespace(drop=(), alpha=None, base_is_residual=True, by_module=False, plot=None)
    try:
        row["inspect"] = "tensors" if "tensors" in inspected(str(place(name)), options) else "layers"
    except (ArgumentError, NotSupportedError):
        row["inspect"] = "refused"
    try:
        row["merge"] = merge_difference(name, folder / "merged.safetensors")
    except (ArgumentError, NotSupportedError) as error:
        return row | {"merge": reason(error), "convert": "", "round trip": ""}
    weights, held = loaded(name), {}
    for target in FORMATS:
        inner = folder / target
        inner.mkdir()
        try:
            held[target] = same(write_and_read(target, weights, inner), weights)
        except (ArgumentError, NotSupportedError):
            continue
        assert held[target], (name, target)
    own = "kohya" if tool == "LyCORIS" else tool
    row["convert"] = ", ".join(target for target in held if target != own)
    row["round trip"] = kind.again if own in held else ""
    return row


def reason(error):
    """The end of a message up to the first semicolon: what is refused, without the file."""
    text = str(error).rsplit(".safetensors: ", 1)[-1].rsplit(".json: ", 1)[-1]
    return text.removeprefix(f"{FOLDER}/").split("; ")[0]


# ---------------------------------------------------------------- the table on the page

HEADER = ("tool", "kind", "inspect", "merge", "convert", "round trip")


def cells(row):
    """A row as it is printed."""
    merge = f"{row['merge']:.1e}" if isinstance(row["merge"], float) else f"refused: {row['merge']}"
    return [row["tool"], row["what"], row["inspect"], merge, row["convert"], row["round trip"]]


def markdown(rows):
    """The table of all kinds."""
    lines = [HEADER, ["---"] * len(HEADER), *map(cells, rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def printed():
    """The rows of the table on the page."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    start = next(i for i, line in enumerate(lines) if line == "| " + " | ".join(HEADER) + " |")
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[start + 2 :]]
    return [row for row in rows if len(row) == len(HEADER)]
