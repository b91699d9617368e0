"""Adapters, checkpoints and fixtures for the tests of the verbs that work on files."""

import itertools
import json
import re

import numpy as np
import pytest

from lora_np import (
    DenseLayer,
    DoRAAdapter,
    DyLoRAAdapter,
    LoRALayer,
    MultiLoRAAdapter,
    Sequential,
    StandardLoRAAdapter,
    apply_lora,
)
from lora_np.cli import main
from lora_np.factors.weights import AdapterWeights
from lora_np.io.peft import save_peft
from lora_np.io.safetensors import save_safetensors

SIZES = {"first": (6, 5), "second": (5, 4)}


def base():
    return Sequential({name: DenseLayer(*sizes, rng=0) for name, sizes in SIZES.items()})


def randomised(model, seed):
    rng = np.random.default_rng(seed)
    model.set_parameters(rng.normal(size=model.parameter_count))
    return model


def standard(rank=3, alpha=6.0, seed=1, names=None):
    return randomised(apply_lora(base(), lambda layer: StandardLoRAAdapter(layer, rank, alpha, rng=0), names), seed)


def dora(seed=1):
    return randomised(apply_lora(base(), lambda layer: DoRAAdapter(layer, 2, rng=0)), seed)


def dylora(seed=1, deployed=2, **options):
    model = randomised(apply_lora(base(), lambda layer: DyLoRAAdapter(layer, 4, [1, 2, 4], rng=0, **options)), seed)
    for name in SIZES:
        model[name].set_deployment_rank(deployed)
    return model


def multilora(tasks=("french", "german")):
    def adapter(layer):
        adapter = MultiLoRAAdapter(layer, tasks[0], 2, rng=0)
        for rank, task in enumerate(tasks[1:], 3):
            adapter.add_task(task, rank)
        return adapter

    return randomised(apply_lora(base(), adapter), 1)


def weights(seed=1, rank=3, paths=("first", "second"), alpha=6.0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return AdapterWeights(
        {
            path: LoRALayer.from_factors(
                rng.normal(size=(SIZES[path][0], rank)).astype(dtype),
                rng.normal(size=(rank, SIZES[path][1])).astype(dtype),
                alpha,
            )
            for path in paths
        }
    )


def write_peft(place, source=None, **config):
    save_peft(place, weights() if source is None else source, config=config)
    return str(place)


def write_kohya(file, source=None, **more):
    tensors = dict(more)
    for path, layer in (source or weights()).layers.items():
        tensors[f"{path}.lora_down.weight"] = layer.matrix_a.T
        tensors[f"{path}.lora_up.weight"] = layer.matrix_b.T
        tensors[f"{path}.alpha"] = np.array(layer.alpha)
    save_safetensors(file, tensors)
    return str(file)


def write_mlx(folder, source=None):
    tensors, scalings = {}, set()
    for path, layer in (source or weights()).layers.items():
        tensors |= {f"{path}.lora_a": layer.matrix_a, f"{path}.lora_b": layer.matrix_b}
        scalings.add(layer.scaling)
    folder.mkdir()
    save_safetensors(folder / "adapters.safetensors", tensors)
    (folder / "adapter_config.json").write_text(json.dumps({"lora_parameters": {"scale": scalings.pop()}}))
    return str(folder)


def checkpoint(seed=7, dtype=np.float32):
    """The tensors of a base, in the layout of PyTorch."""
    rng = np.random.default_rng(seed)
    tensors = {f"{name}.weight": rng.normal(size=sizes[::-1]).astype(dtype) for name, sizes in SIZES.items()}
    return tensors | {"norm.weight": np.ones(3, dtype), "step": np.array(5)}


def write_base(file, dtype=None):
    tensors = checkpoint()
    save_safetensors(file, tensors, dtypes={name: dtype for name in tensors if name != "step"} if dtype else None)
    return str(file)


def write_shards(folder):
    tensors = checkpoint()
    folder.mkdir()
    shards = {"model-00001-of-00002.safetensors": ["first.weight", "norm.weight"]}
    shards["model-00002-of-00002.safetensors"] = ["second.weight", "step"]
    for shard, names in shards.items():
        save_safetensors(folder / shard, {name: tensors[name] for name in names})
    index = {"metadata": {}, "weight_map": {name: shard for shard, names in shards.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return str(folder)


def tree(folder):
    """The bytes of every file in a folder, by path."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def first_numbers(text):
    """The header of the first column that is flush right, for each table; all columns before it are flush left."""
    lines, found = text.splitlines(), []
    for rule in (i for i, line in enumerate(lines) if line and set(line) <= {"-", " "}):
        rows = [lines[rule - 1], *itertools.takewhile(str.strip, lines[rule + 1 :])]
        columns = [[row.ljust(c.end())[c.start() : c.end()] for row in rows] for c in re.finditer("-+", lines[rule])]
        is_left = [all(cell.lstrip() == cell for cell in column if cell.strip()) for column in columns]
        is_right = [all(cell.rstrip() == cell for cell in column if cell.strip()) for column in columns]
        first = is_left.index(False) if not all(is_left) else len(columns)
        assert all(is_right[first:])
        found.append(columns[first][0].strip() if first < len(columns) else None)
    return found


@pytest.fixture
def run(capsys):
    """Run a verb that must print nothing on standard error, and return its standard output."""

    def run(*arguments, code=0):
        assert main([str(argument) for argument in arguments]) == code
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out

    return run


@pytest.fixture
def run_json(run):
    return lambda *arguments, code=0: json.loads(run(*arguments, "--json", code=code))


@pytest.fixture
def fail(capsys):
    """Run a verb that must fail with one line on standard error and no output, and return the message."""

    def fail(*arguments):
        # As in diff(1), the exit code 1 of diff means that there are differences.
        assert main([str(argument) for argument in arguments]) == (2 if arguments[0] == "diff" else 1)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("lora-np: error: ")
        assert captured.err.count("\n") == 1
        return captured.err.removeprefix("lora-np: error: ").rstrip("\n")

    return fail


@pytest.fixture
def misuse(capsys):
    """Run a verb with invalid arguments, which must exit with code 2, and return the last line of standard error."""

    def misuse(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        assert stop.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("usage: ")
        return captured.err.splitlines()[-1]

    return misuse
