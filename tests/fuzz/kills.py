"""Kills: a process that dies at any change of the disk leaves the old content, the new one, or an error, and no mixture."""

import pathlib
import random
import tempfile
from typing import NamedTuple

import numpy as np

from lora_np import (
    SGD,
    DenseLayer,
    DyLoRAAdapter,
    MeanSquaredError,
    Sequential,
    StandardLoRAAdapter,
    _archive,
    apply_lora,
    errors,
    load_layer,
    save_layer,
    tanh,
)
from lora_np.distributed import fit_shards
from lora_np.io.merge import merge_checkpoint
from lora_np.io.peft import apply_peft, load_peft, save_peft
from lora_np.io.safetensors import load_safetensors, save_safetensors
from tests.fuzz.disk import MEMORY, interrupted, without_fsync
from tests.kinds import batch, bits, randomised

REFUSALS = (errors.ArgumentError, errors.NotSupportedError, errors.InvalidOperationError, OSError)
X, Y = batch(4, 3, seed=0), batch(4, 2, seed=1)


def plain(width):
    return Sequential({"first": DenseLayer(3, width, tanh, rng=0), "second": DenseLayer(width, 2, rng=1)})


def adapted(width, seed, kind=StandardLoRAAdapter, **choices):
    """A model with adapters, whose alpha depends on the seed: a mixture of two of them computes something else."""
    choices = choices or {"rank": 1 + seed % 2, "alpha": 1.0 + seed}
    return randomised(apply_lora(plain(width), kind, rng=seed, **choices), seed)


def nested(width, seed):
    return adapted(width, seed, DyLoRAAdapter, max_rank=2, active_ranks=[1, 2] if seed % 2 else [2], alpha=1.0 + seed)


class Writer(NamedTuple):
    """How to write something that depends on a number, and how to read what there is."""

    write: object
    """``write(path, seed, width)``."""
    read: object
    """``read(path, width)``: something that can be compared."""
    files: int = 1
    """A single file can always be read; of several, an error may say that they do not belong together."""


def layer_bits(layer):
    return bits(layer.named_parameters(frozen=True)), layer.predict(X).tobytes()


def write_merged(path, seed, width):
    folder = path.with_suffix(f".{seed}")
    base = {f"{name}.weight": layer.weight.T for name, layer in plain(width).children().items()}
    if not folder.exists():
        save_peft(folder, adapted(width, seed))
        save_safetensors(path.with_suffix(".base"), base)
    merge_checkpoint(path.with_suffix(".base"), load_peft(folder), path)


def write_checkpoint(path, seed, width):
    shards = [lambda: (X, Y)]
    options = {"rng": 0, "checkpoint": path, "checkpoint_every": 1}
    fit_shards(adapted(width, 0), shards, MeanSquaredError(), SGD(0.1), 1 + seed % 2, **options)


def read_checkpoint(path, width):
    """Where a training ends that resumes from a copy of the checkpoint, and its losses: those from the file among them."""
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    model, options = adapted(width, 0), {"rng": 0, "checkpoint": copy, "resume": True}
    steps = len(_archive.read(path)[1]["history/step_losses"])
    history = fit_shards(model, [lambda: (X, Y)], MeanSquaredError(), SGD(0.1), 3, **options)
    return steps, layer_bits(model), history.step_losses


WRITERS = {
    "layer": Writer(
        lambda path, seed, width: save_layer(adapted(width, seed), path), lambda path, width: layer_bits(load_layer(path))
    ),
    "safetensors": Writer(
        lambda path, seed, width: save_safetensors(path, {"a": np.full(40 * width, seed), "b": np.full(3, seed)}),
        lambda path, width: bits(load_safetensors(path)),
    ),
    "PEFT folder": Writer(
        lambda path, seed, width: save_peft(path, adapted(width, seed)),
        lambda path, width: layer_bits(apply_peft(plain(width), path)),
        files=2,
    ),
    "PEFT folder of DyLoRA": Writer(
        lambda path, seed, width: save_peft(path, nested(width, seed)),
        lambda path, width: layer_bits(apply_peft(plain(width), path)),
        files=2,
    ),
    "merged checkpoint": Writer(write_merged, lambda path, width: bits(load_safetensors(path))),
    "training checkpoint": Writer(write_checkpoint, read_checkpoint),
}
"""Everything that writes one file, or one adapter."""


class Fall(NamedTuple):
    """A kill that broke the promise."""

    writer: str
    number: int
    problem: str


def attack(count, seed=0, deadline=None):
    """Kill this many writers, in turn; returns the number of kills and the falls."""
    rng, falls, done = random.Random(seed), [], 0
    while done < count and not (deadline is not None and deadline()):
        for name, writer in WRITERS.items():
            if deadline is not None and deadline():
                break
            with tempfile.TemporaryDirectory(dir=MEMORY) as folder, without_fsync():
                kills, found = killed(name, writer, pathlib.Path(folder), rng)
            falls += found
            done += kills
    return done, falls


def killed(name, writer, folder, rng):
    """Kill one writer at each of its operations; returns the number of kills and the falls."""
    width, old, new = rng.randint(2, 60), rng.randrange(10), 10 + rng.randrange(10)
    if name == "training checkpoint":
        old, new = 0, 1
    falls, path = [], folder / "target"
    allowed = []
    for seed in (old, new):
        writer.write(path, seed, width)
        allowed.append(writer.read(path, width))
    writer.write(path, old, width)
    error = rng.choice([None, None, (28, "No space left on device")])
    kills = 0
    for completed in interrupted(lambda: writer.write(path, new, width), error):
        kills += 1
        try:
            found = writer.read(path, width)
        except REFUSALS as refusal:
            if completed or writer.files == 1 or not str(refusal):
                falls.append(Fall(name, kills, f"cannot be read: {refusal!r}"))
        else:
            if found not in allowed or (completed and found != allowed[1]):
                falls.append(Fall(name, kills, "is neither the old content nor the new one"))
        if not completed:
            writer.write(path, old, width)
    return kills, falls
