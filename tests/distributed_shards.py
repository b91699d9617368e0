"""Shards and models for the tests of distributed training, in a module that worker processes import quickly."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from lora_np import (
    Adam,
    DenseLayer,
    DyLoRAAdapter,
    MeanSquaredError,
    MultiLoRAAdapter,
    Sequential,
    StandardLoRAAdapter,
    apply_lora,
    tanh,
)
from lora_np.distributed import fit_shards
from lora_np.models.bert import BertModel
from lora_np.models.heads import SequenceClassifier

IN, OUT = 5, 3
BERT = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "vocab_size": 20,
    "max_position_embeddings": 9,
    "type_vocab_size": 2,
}


def samples(seed, rows=6, inner=()):
    """Random inputs and targets."""
    random = np.random.default_rng(seed)
    return random.normal(size=(rows, *inner, IN)), random.normal(size=(rows, *inner, OUT))


def routed(seed, tasks):
    """Random inputs and targets with a task for each row."""
    return (*samples(seed, len(tasks)), tasks)


def sentences(seed, rows, width):
    """Random token ids of sentences of different lengths, the longest of which has `width` tokens, and their classes."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, BERT["vocab_size"], (rows, width))
    ids[1:][np.arange(width) >= random.integers(1, width + 1, (rows - 1, 1))] = -1
    return ids, random.integers(0, OUT, rows)


def slow(seed, seconds):
    """A shard that takes some time to read."""
    time.sleep(seconds)
    return samples(seed)


def counted(seed, folder):
    """A shard that creates a file each time it is read."""
    number = len(list(Path(folder).iterdir()))
    (Path(folder) / f"{number}-{os.getpid()}-{time.monotonic_ns()}").touch()
    return samples(seed)


def unreliable(seed, folder, failures):
    """A shard that fails to read the first few times."""
    number = len(list(Path(folder).iterdir()))
    if number < failures:
        (Path(folder) / str(number)).touch()
        raise OSError("the disk is away")
    return samples(seed)


def deadly(seed, folder, rows=6):
    """A shard that hangs once if the file `armed` exists, after writing its process id to the file `pid`."""
    try:
        os.rename(Path(folder) / "armed", Path(folder) / "taken")
    except FileNotFoundError:
        return samples(seed, rows)
    (Path(folder) / "pid.part").write_text(str(os.getpid()))
    os.rename(Path(folder) / "pid.part", Path(folder) / "pid")
    time.sleep(120)
    raise AssertionError("nobody ended the process")


def fatal(seed, folder, rows):
    """A shard that kills its process once if the file `armed` exists."""
    try:
        os.rename(Path(folder) / "armed", Path(folder) / "taken")
    except FileNotFoundError:
        return samples(seed, rows)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("never reached")


def drive(loaders, folder):
    """Run a driver that is killed in its third step."""

    def arm(progress):
        if progress.step == 2:
            (folder / "armed").touch()

    options = {"keep_shards": False, "checkpoint": folder / "run.npz", "checkpoint_every": 1, "callbacks": [arm]}
    fit_shards(network(), loaders, MeanSquaredError(), Adam(0.05), 2, 4, rng=0, **options)


def network(seed=0):
    """A frozen base of two layers: the first with LoRA, the second with DyLoRA at active ranks below its maximum."""
    base = Sequential({"first": DenseLayer(IN, 4, tanh, rng=1), "second": DenseLayer(4, OUT, rng=2)})
    adapted = apply_lora(base, lambda layer: StandardLoRAAdapter(layer, 2, rng=seed), targets=["first"])
    nested = apply_lora(adapted, lambda layer: DyLoRAAdapter(layer, 3, [1, 2], rng=seed), targets=["second"])
    return filled(nested, seed)


def many_tasks(seed=0):
    """A frozen base with three tasks."""
    adapter = MultiLoRAAdapter(DenseLayer(IN, OUT, rng=1), "a", 2, rng=seed)
    adapter.add_task("b", 1)
    adapter.add_task("c", 3)
    return filled(adapter, seed)


def sentence_classifier(seed=0):
    """A frozen encoder with DyLoRA, and a head."""
    model = SequenceClassifier(BertModel.new(BERT, dtype=np.float64, rng=1), OUT, rng=2)
    options = {"max_rank": 3, "active_ranks": [1, 3], "rng": seed}
    return filled(apply_lora(model, DyLoRAAdapter, ["query", "value"], train=["classifier"], **options), seed)


def filled(model, seed):
    """The model with random, non-zero parameters, so that every gradient matters."""
    model.set_parameters(0.3 * np.random.default_rng(seed).normal(size=model.parameter_count))
    return model


def other_base():
    """The network with one weight of the frozen base changed."""
    model = network()
    model.named_parameters(frozen=True)["first.base.weight"][0, 0] += 1e-9
    return model
