"""Damaged files for every reader: each is read, or refused by a documented error, in little time.

A valid file of each format is damaged in one to four places: bytes are changed, removed, inserted or repeated, or a value
in its JSON is replaced by one of another kind. Files whose only protection is a checksum get a correct one again.
"""

import contextlib
import io
import json
import pathlib
import random
import shutil
import tempfile
import time
import warnings
import zipfile
from typing import NamedTuple

import numpy as np

from lora_np import (
    SGD,
    DenseLayer,
    DyLoRAAdapter,
    MeanSquaredError,
    MultiLoRAAdapter,
    Sequential,
    StandardLoRAAdapter,
    apply_lora,
    errors,
    load_layer,
    load_pretrained,
    save_layer,
    tanh,
)
from lora_np.distributed import fit_shards
from lora_np.io import GGUFFile, load_diffusers, load_kohya, load_mlx
from lora_np.io.base_names import with_tensor_names
from lora_np.io.merge import merge_checkpoint
from lora_np.io.peft import apply_peft, load_peft, save_peft
from lora_np.io.safetensors import load_safetensors, save_safetensors
from tests.fuzz.disk import MEMORY, without_fsync
from tests.io.gguf_files import gguf_bytes
from tests.kinds import batch, randomised

REFUSALS = (errors.ArgumentError, errors.NotSupportedError, errors.InvalidOperationError, OSError)
SECONDS = 5
"""The longest that a reader may take for one of these small files, on a busy machine."""

DATA = pathlib.Path(__file__).parents[1]
KINDS = DATA / "io" / "kinds"


# ---------------------------------------------------------------- valid files


def model():
    return Sequential({"first": DenseLayer(3, 4, tanh, rng=0), "second": DenseLayer(4, 2, rng=1)})


def adapted():
    nested = apply_lora(model(), DyLoRAAdapter, max_rank=2, active_ranks=[1, 2], targets=["first"], rng=0)
    return randomised(
        apply_lora(nested, MultiLoRAAdapter, default_task_name="a", default_rank=1, targets=["second"], rng=0)
    )


def read_gguf(path):
    with GGUFFile(path) as file:
        return dict(file)


def resume(path):
    shards = [lambda: (batch(3, 3, seed=0), batch(3, 2, seed=1))]
    fit_shards(model(), shards, MeanSquaredError(), SGD(0.1), 1, rng=0, checkpoint=path, resume=True)


def gguf():
    """A file with some metadata and a tensor of each type."""
    rng = np.random.default_rng(0)
    shapes = {"F32": (3, 2), "F16": (5,), "BF16": (2, 2), "Q8_0": (1, 32), "Q4_1": (1, 32)}
    tensors = {kind: (rng.normal(size=shape).astype(np.float32), kind) for kind, shape in shapes.items()}
    return gguf_bytes({"general.architecture": "llama", "n": 7, "list": ["x", "y"], "array": np.array([1, 2])}, tensors)


def written(folder):
    """Write a valid file or folder of each format; returns its readers by path."""
    save_layer(adapted(), folder / "layer.npz")
    resume(folder / "checkpoint.npz")
    tensors = {"a": np.ones((2, 3), np.float32), "b": np.arange(4), "c": np.ones(3, np.float16), "d": np.ones(2, bool)}
    save_safetensors(folder / "tensors.safetensors", tensors, {"format": "pt"}, dtypes={"a": "BF16"})
    lora = randomised(apply_lora(model(), StandardLoRAAdapter, rank=2, rng=0))
    save_peft(folder / "peft", lora)
    save_peft(folder / "nested", randomised(apply_lora(model(), DyLoRAAdapter, max_rank=2, active_ranks=[1, 2], rng=0)))
    shutil.copytree(DATA / "io" / "data" / "patterns", folder / "patterns")
    shutil.copytree(DATA / "io" / "data" / "dora", folder / "dora")
    shutil.copytree(KINDS / "peft-experts", folder / "experts")
    shutil.copy(KINDS / "lycoris-dora-by-input" / "lora.safetensors", folder / "lycoris.safetensors")
    factors = {"u.lora_down.weight": np.ones((2, 3)), "u.lora_up.weight": np.ones((4, 2)), "u.alpha": np.array(1.0)}
    save_safetensors(folder / "kohya.safetensors", factors)
    save_safetensors(
        folder / "diffusers.safetensors", {"u.lora_A.weight": np.ones((2, 3)), "u.lora_B.weight": np.ones((4, 2))}
    )
    (folder / "mlx").mkdir()
    save_safetensors(folder / "mlx" / "adapters.safetensors", {"u.lora_a": np.ones((3, 2)), "u.lora_b": np.ones((2, 4))})
    settings = {"fine_tune_type": "lora", "lora_parameters": {"scale": 2.0, "rank": 2, "dropout": 0.0}}
    (folder / "mlx" / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "model.gguf").write_bytes(gguf())
    shutil.copytree(DATA / "models" / "data" / "bert", folder / "bert")
    base = {"first.weight": np.ones((4, 3), np.float32), "second.weight": np.ones((2, 4), np.float32)}
    save_safetensors(folder / "base.safetensors", base)

    def merge(path):
        merge_checkpoint(path, load_peft(folder / "peft"), folder / "merged.safetensors")

    def merge_experts(path):
        merge_checkpoint(KINDS / "peft-experts" / "base.safetensors", load_peft(path), folder / "merged.safetensors")

    def merge_lycoris(path):
        unet = KINDS / "bases" / "unet.safetensors"
        merge_checkpoint(unet, with_tensor_names(load_kohya(path), unet), folder / "merged.safetensors")

    return {
        "layer.npz": load_layer,
        "checkpoint.npz": resume,
        "tensors.safetensors": load_safetensors,
        "peft": lambda path: apply_peft(model(), path),
        "nested": lambda path: apply_peft(model(), path),
        "patterns": load_peft,
        "dora": load_peft,
        "experts": merge_experts,
        "lycoris.safetensors": merge_lycoris,
        "kohya.safetensors": load_kohya,
        "diffusers.safetensors": load_diffusers,
        "mlx": load_mlx,
        "model.gguf": read_gguf,
        "bert": load_pretrained,
        "base.safetensors": merge,
    }


# ---------------------------------------------------------------- damage

WRONG = [None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1.5, 1e308, "", "x", "F32", "lora", "\ud800", "(a+)+$", "a" * 300]
WRONG += [[], [None], [1, 2], {}, {"a": 1}, [[[[[]]]]], float("nan"), float("inf")]


def places(value, path=()):
    """The paths of all values in JSON."""
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def with_wrong_json(text, rng):
    """JSON in which one value is replaced, removed, renamed or repeated."""
    value = json.loads(text)
    *path, last = rng.choice([path for path in places(value) if path] or [("x",)])
    inner = value
    for key in path:
        inner = inner[key]
    action = rng.randrange(4)
    if action == 0 and isinstance(inner, dict):
        inner.pop(last, None)
    elif action == 1 and isinstance(inner, dict):
        inner[rng.choice(["", "x", "\0", "lora_np.type", "__metadata__"])] = inner.get(last)
    else:
        inner[last] = rng.choice(WRONG)
    text = json.dumps(value)
    if action == 3:
        text = text.replace("{", '{"x": 1, "x": 2, ', 1)
    return text.encode("utf-8", "surrogatepass")


def with_wrong_bytes(data, rng):
    """Bytes of which some are changed, removed, inserted or repeated."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at, length = rng.randrange(len(data) + 1), rng.choice([1, 1, 2, 4, 8, 64])
        match rng.randrange(6):
            case 0:
                data[at : at + length] = rng.randbytes(length)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = rng.randbytes(length)
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                data[at : at + 8] = rng.choice([0, 1, 255, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]).to_bytes(8, "little")
            case _:
                if rng.random() < 0.2:
                    del data[at:]
                elif at < len(data):
                    data[at] ^= 1 << rng.randrange(8)
        if not data:
            break
    return bytes(data)


def with_wrong_entry(data, rng):
    """A zip file in which one entry is damaged, with a correct checksum."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        names = old.namelist()
        chosen = rng.choice(names)
        for name in names:
            content = old.read(name)
            if name == chosen:
                is_json = name.endswith(".json") and rng.random() < 0.8
                content = with_wrong_json(content, rng) if is_json else with_wrong_bytes(content, rng)
            new.writestr(name, content)
    return stream.getvalue()


def with_wrong_header(data, rng):
    """A safetensors file whose JSON header is damaged, with its correct length."""
    length = int.from_bytes(data[:8], "little")
    header = with_wrong_json(data[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def damaged(path, rng):
    """The damaged content of a file."""
    data = path.read_bytes()
    if rng.random() < 0.6:
        if path.suffix == ".npz":
            return with_wrong_entry(data, rng)
        if path.suffix == ".safetensors":
            return with_wrong_header(data, rng)
        if path.suffix == ".json":
            return with_wrong_json(data, rng)
    return with_wrong_bytes(data, rng)


# ---------------------------------------------------------------- the attack


class Fall(NamedTuple):
    """A file that broke the promise."""

    name: str
    number: int
    problem: str


def attack(count, seed=0, deadline=None):
    """Read this many damaged files, in turn of every format; returns the number of files and the falls."""
    falls, done = [], 0
    with tempfile.TemporaryDirectory(dir=MEMORY) as name, contextlib.chdir(name), without_fsync():
        folder = pathlib.Path(name)
        readers = written(folder)
        parts = {
            name: [p for p in sorted((folder / name).rglob("*")) if p.is_file()] or [folder / name] for name in readers
        }
        for name, read in readers.items():
            read(folder / name)  # undamaged
        while done < count and not (deadline is not None and deadline()):
            for name, read in readers.items():
                if deadline is not None and deadline():
                    break
                rng = random.Random(f"{seed} {done}")
                fall = attempt(folder, name, read, rng.choice(parts[name]), rng)
                if fall:
                    falls.append(Fall(name, done, fall))
                done += 1
    return done, falls


def attempt(folder, name, read, part, rng):
    """Read one damaged file; returns what is wrong, or None."""
    good = part.read_bytes()
    part.write_bytes(damaged(part, rng))
    begin = time.process_time()
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            read(folder / name)
    except REFUSALS as error:
        if not str(error) or isinstance(error.__cause__, MemoryError):
            return f"{error!r}, because of {error.__cause__!r}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error}"[:300]
    finally:
        part.write_bytes(good)
    if time.process_time() - begin > SECONDS:
        return f"took {time.process_time() - begin:.1f} s"
    return None
