"""Merging into checkpoints: sums exact to the last place, all other tensors bitwise equal, no partial files."""

import json
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from lora_np import ArgumentError, FormatError, LoRALayer, NotSupportedError, merge_in_place
from lora_np.factors.weights import AdapterWeights
from lora_np.io import _merging, _pieces, _verification, merge
from lora_np.io._changes import added_column
from lora_np.io.merge import INDEX, SINGLE, checkpoint_files, merge_checkpoint, verify_checkpoint
from lora_np.io.peft import apply_peft, load_peft
from lora_np.io.safetensors import SafetensorsFile, load_safetensors, save_safetensors
from tests.io.networks import BASE, CASES, DATA, assert_close, expected, network
from tests.kinds import batch

SHAPES = {"a": (5, 7), "b.c": (4, 3), "b.d": (40, 6)}
"""(output_size, input_size) of the layers that the adapter changes."""

UNTOUCHED = {
    "a.bias": (batch(5), "F32"),
    "b.weight": (batch(4, 3), "F64"),
    "b.c.weight.weight": (batch(4, 3), "BF16"),
    "norm.weight": (batch(6), "F16"),
    "a": (batch(5, 7), "F32"),
    "empty.weight": (np.empty((0, 3)), "F32"),
    "scalar": (np.array(3), "I64"),
    "mask": (np.array([True, False]), "BOOL"),
    "tokens": (np.arange(12).reshape(3, 4), "I32"),
}
"""Tensors that the adapter does not change, of all kinds of dtype, some with similar names."""

METADATA = {"format": "pt", "note": "é"}
DTYPES = list(merge.PRECISIONS)
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def adapter(*paths, dora=False, rank=2):
    """An adapter of the layers at the given paths, by default all."""
    layers, magnitudes = {}, {}
    for seed, path in enumerate(paths or SHAPES):
        out, inner = SHAPES[path]
        layers[path] = LoRALayer.from_factors(batch(inner, rank, seed=seed), batch(rank, out, seed=seed + 9), 3.0)
        if dora:
            magnitudes[path] = np.abs(batch(out, seed=seed)) + 0.5
    return AdapterWeights(layers, magnitudes)


def contents(dtype="F32", fan_in_fan_out=False):
    """The tensors of a checkpoint, and their dtypes in the file."""
    weights = {f"{path}.weight": batch(*shape, seed=len(path)) for path, shape in SHAPES.items()}
    if fan_in_fan_out:
        weights = {key: array.T for key, array in weights.items()}
    tensors = weights | {key: array for key, (array, _) in UNTOUCHED.items()}
    return tensors, dict.fromkeys(weights, dtype) | {key: stored for key, (_, stored) in UNTOUCHED.items()}


def save(path, tensors, dtypes=None):
    path.parent.mkdir(exist_ok=True)
    save_safetensors(path, tensors, METADATA, dtypes=dtypes)
    return path


def single(folder, **options):
    """A checkpoint in a single file."""
    return save(folder / "base" / SINGLE, *contents(**options))


def sharded(folder, name=INDEX, dtype="F32"):
    """A checkpoint of two files and their index."""
    tensors, dtypes = contents(dtype)
    shard = {key: SHARDS[position % 2] for position, key in enumerate(sorted(tensors))}
    for file in SHARDS:
        keys = [key for key in tensors if shard[key] == file]
        save(folder / "base" / file, {key: tensors[key] for key in keys}, {key: dtypes[key] for key in keys})
    (folder / "base" / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": shard}, indent=3))
    return folder / "base"


class Checkpoint(NamedTuple):
    """A base and the path of its output."""

    base: Path
    output: Path
    index: str | None = None
    """The name of the index, if there are shards."""

    @property
    def written(self):
        """The output in the form that `checkpoint_files` accepts."""
        return self.output / self.index if self.index else self.output

    def merge(self, weights=None, **options):
        return merge_checkpoint(self.base, weights or adapter(), self.output, **options)

    def verify(self, weights=None, **options):
        """The verified tensors by key."""
        return {tensor.key: tensor for tensor in verify_checkpoint(self.base, weights or adapter(), self.output, **options)}


OTHER_INDEX = "unet.safetensors.index.json"

CHECKPOINTS = {
    "a file": lambda folder: Checkpoint(single(folder), folder / "merged.safetensors"),
    "a folder with a file": lambda folder: Checkpoint(single(folder).parent, folder / "merged.safetensors"),
    "shards": lambda folder: Checkpoint(sharded(folder), folder / "merged", INDEX),
    "shards, by their index": lambda folder: Checkpoint(sharded(folder) / INDEX, folder / "merged", INDEX),
    "another index": lambda folder: Checkpoint(sharded(folder, OTHER_INDEX) / OTHER_INDEX, folder / "merged", OTHER_INDEX),
}


@pytest.fixture(params=CHECKPOINTS)
def checkpoint(request, tmp_path):
    """One checkpoint of each form."""
    return CHECKPOINTS[request.param](tmp_path)


@pytest.fixture
def shards(tmp_path):
    return CHECKPOINTS["shards"](tmp_path)


@pytest.fixture
def output(tmp_path):
    """The path for the output of a single file."""
    return tmp_path / "merged.safetensors"


@pytest.fixture
def small_windows(monkeypatch):
    """Windows and pieces of a few rows, so that every tensor needs several."""
    for module in (merge, _verification):
        monkeypatch.setattr(module, "WINDOW", 30)
        monkeypatch.setattr(module, "PIECE", 11)


def all_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def stored(checkpoint):
    """The info and the stored bytes of every tensor of a checkpoint, by key."""
    found = {}
    for file in checkpoint_files(checkpoint).values():
        with SafetensorsFile(file) as tensors:
            found |= {key: (tensors.info(key), tensors.raw(key).tobytes()) for key in tensors}
    return found


def values(checkpoint):
    """Every tensor of a checkpoint as float64."""
    return {
        key: array.astype(np.float64)
        for file in checkpoint_files(checkpoint).values()
        for key, array in load_safetensors(file).items()
    }


def wanted(base, weights, path, fan_in_fan_out=False):
    """The merged weight in float64, computed from the dense matrix."""
    old, delta = values(base)[f"{path}.weight"], weights.layers[path].merge_weights()
    V = old.T + delta if not fan_in_fan_out else old + delta
    if path in weights.magnitudes:
        V *= weights.magnitudes[path] / np.linalg.norm(V, axis=0)
    return V if fan_in_fan_out else V.T


def assert_last_place(checkpoint, key, exact, dtype, units=1):
    """Assert that a tensor is exact to within `units` in the last place of its largest elements."""
    unit = 2 * merge.PRECISIONS[dtype] * 2 ** np.floor(np.log2(np.abs(exact).max()))
    assert np.abs(values(checkpoint)[key] - exact).max() <= units * unit


def test_precisions_are_half_a_unit_in_the_last_place():
    wanted = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
    assert wanted == merge.PRECISIONS
    assert merge.MergedTensor("a", "b", "F32").rank == 0


# ---------------------------------------------------------------- merging


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_result_is_the_float64_sum_rounded(tmp_path, output, dtype, dora):
    base, weights = single(tmp_path, dtype=dtype), adapter(dora=dora)
    merge_checkpoint(base, weights, output)
    units = 4 if dora else 1  # the norm, the quotient and the product are rounded as well
    for path in SHAPES:
        assert_last_place(output, f"{path}.weight", wanted(base, weights, path), dtype, units)


@pytest.mark.parametrize("window", [1, 5, merge.WINDOW])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dora_of_weights_stored_as_in_out_scales_their_columns(tmp_path, output, monkeypatch, dtype, window):
    monkeypatch.setattr(_merging, "WINDOW", window)
    monkeypatch.setattr(merge, "WINDOW", window)
    base, weights = single(tmp_path, dtype=dtype, fan_in_fan_out=True), adapter(dora=True)
    merge_checkpoint(base, weights, output, fan_in_fan_out=True)
    for path in SHAPES:
        assert_last_place(output, f"{path}.weight", wanted(base, weights, path, fan_in_fan_out=True), dtype, 4)
    for tensor in verify_checkpoint(base, weights, output, fan_in_fan_out=True):
        assert tensor.error <= 4 * tensor.precision


def test_dora_leaves_columns_of_zeros(tmp_path, output):
    base = save(tmp_path / "base" / SINGLE, {"a.weight": np.zeros((3, 2))})
    layer = LoRALayer.from_factors(np.ones((3, 1)), np.array([[1.0, 0.0]]))
    merge_checkpoint(base, AdapterWeights({"a": layer}, {"a": np.full(2, 6.0)}), output, fan_in_fan_out=True)
    np.testing.assert_allclose(values(output)["a.weight"], np.array([[1, 0]] * 3) * 6 / 3**0.5, rtol=1e-15)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_each_element_of_a_short_dtype_is_exact_to_its_last_place(tmp_path, output, dtype):
    base, weights = single(tmp_path, dtype=dtype), adapter("b.d")
    merge_checkpoint(base, weights, output)
    exact = wanted(base, weights, "b.d")
    unit = 2 * merge.PRECISIONS[dtype] * 2 ** np.floor(np.log2(np.abs(exact)))
    assert (np.abs(values(output)["b.d.weight"] - exact) <= unit).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_and_shapes_are_preserved(tmp_path, output, dtype):
    base = single(tmp_path, dtype=dtype)
    merge_checkpoint(base, adapter(), output)
    before, after = stored(base), stored(output)
    assert {key: info for key, (info, _) in after.items()} == {key: info for key, (info, _) in before.items()}


def test_each_weight_is_computed_in_its_own_dtype(tmp_path, output):
    chosen, found = {"b.d.weight": "F64", "a.weight": "F32", "b.c.weight": "BF16"}, {}
    for dtype in chosen.values():
        merge_checkpoint(single(tmp_path, dtype=dtype), adapter(), output, threads=1)
        found |= {key: stored(output)[key] for key in chosen if chosen[key] == dtype}
    tensors, dtypes = contents()
    merge_checkpoint(save(tmp_path / "base" / SINGLE, tensors, dtypes | chosen), adapter(), output, threads=1)
    assert {key: stored(output)[key] for key in chosen} == found


def test_a_weight_of_one_element_is_merged(tmp_path, output):
    base = save(tmp_path / "base" / SINGLE, {"a.weight": np.ones((1, 1))})
    merge_checkpoint(base, AdapterWeights({"a": LoRALayer.from_factors(np.ones((1, 1)), np.full((1, 1), 2.0))}), output)
    assert values(output)["a.weight"] == 3


def test_only_the_tensors_of_the_adapter_change(checkpoint):
    checkpoint.merge(adapter("a", "b.c"))
    before, after = stored(checkpoint.base), stored(checkpoint.written)
    assert list(before) == list(after)
    assert {key for key in before if before[key] != after[key]} == {"a.weight", "b.c.weight"}


def test_metadata_is_preserved(checkpoint):
    checkpoint.merge()
    for file in checkpoint_files(checkpoint.written).values():
        with SafetensorsFile(file) as tensors:
            assert tensors.metadata == METADATA


@pytest.mark.parametrize("form", ["shards", "another index"])
def test_shards_keep_their_names_and_their_index(tmp_path, form):
    checkpoint = CHECKPOINTS[form](tmp_path)
    checkpoint.merge()
    assert all_files(checkpoint.output) == all_files(tmp_path / "base") == sorted([*SHARDS, checkpoint.index])
    assert checkpoint.written.read_bytes() == (tmp_path / "base" / checkpoint.index).read_bytes()


def test_the_result_names_the_changed_tensors(checkpoint):
    changed = checkpoint.merge(adapter("a", "b.d"))
    assert {tensor.key for tensor in changed} == {"a.weight", "b.d.weight"}
    for tensor in changed:
        with SafetensorsFile(checkpoint.written.with_name(tensor.file) if checkpoint.index else checkpoint.output) as file:
            assert file.info(tensor.key).dtype == tensor.dtype == "F32"
        assert tensor.error is None
        assert tensor.precision == 2.0**-24


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_windows_do_not_change_the_bytes(tmp_path, output, dtype, dora, monkeypatch):
    # Rank 1, because the order of summation within a product may depend on its sizes.
    base, weights = single(tmp_path, dtype=dtype), adapter(dora=dora, rank=1)
    merge_checkpoint(base, weights, output)
    whole = output.read_bytes()
    for window, piece in [(1, 1), (30, 11), (100, 50), (64, 1000)]:
        monkeypatch.setattr(merge, "WINDOW", window)
        monkeypatch.setattr(merge, "PIECE", piece)
        merge_checkpoint(base, weights, output)
        assert output.read_bytes() == whole


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("small_windows")
def test_sums_in_small_windows_are_exact(tmp_path, output, dtype):
    base, weights = single(tmp_path, dtype=dtype), adapter(rank=4)
    merge_checkpoint(base, weights, output)
    for path in SHAPES:
        assert_last_place(output, f"{path}.weight", wanted(base, weights, path), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_stored_as_in_out(tmp_path, output, dtype):
    base, weights = single(tmp_path, dtype=dtype, fan_in_fan_out=True), adapter()
    merge_checkpoint(base, weights, output, fan_in_fan_out=True)
    for path in SHAPES:
        assert_last_place(output, f"{path}.weight", wanted(base, weights, path, fan_in_fan_out=True), dtype)


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_subtracting_undoes_a_merge_up_to_rounding(tmp_path, output, dtype, fan_in_fan_out):
    base, undone = single(tmp_path, dtype=dtype, fan_in_fan_out=fan_in_fan_out), tmp_path / "undone.safetensors"
    merge_checkpoint(base, adapter(), output, fan_in_fan_out=fan_in_fan_out)
    merge_checkpoint(output, adapter(), undone, subtract=True, fan_in_fan_out=fan_in_fan_out)
    before, merged, after = values(base), values(output), values(undone)
    for path in SHAPES:
        key = f"{path}.weight"
        assert np.abs(after[key] - before[key]).max() <= 4 * merge.PRECISIONS[dtype] * np.abs(merged[key]).max()
    assert {key: stored(undone)[key] for key in UNTOUCHED} == {key: stored(base)[key] for key in UNTOUCHED}


@pytest.mark.parametrize("case", CASES)
def test_a_merge_agrees_with_peft_and_with_merge_in_place(output, case):
    merge_checkpoint(BASE, load_peft(DATA / case), output)
    model, theirs = apply_peft(network(), DATA / case), expected(case)
    merge_in_place(model)
    arrays = model.named_parameters(frozen=True)
    for key, array in load_safetensors(output).items():
        assert_close(array, arrays[key])
        assert_close(array, theirs[f"merged.{key}"])


def test_a_row_of_zeros_stays_zero_under_dora(tmp_path, output):
    layer = LoRALayer(7, 5, 2, rng=0)
    base = save(tmp_path / "base" / SINGLE, {"a.weight": np.diag([1.0, 2, 3, 4, 0]) @ batch(5, 7)})
    merge_checkpoint(base, AdapterWeights({"a": layer}, {"a": np.ones(5)}), output)
    norms = np.linalg.norm(values(output)["a.weight"], axis=1)
    assert norms == pytest.approx([1, 1, 1, 1, 0], rel=1e-14)


def test_equal_merges_produce_identical_bytes(tmp_path):
    base = single(tmp_path)
    for name in ("one", "two"):
        merge_checkpoint(base, adapter(), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_an_older_output_is_replaced(tmp_path, output):
    output.write_bytes(b"older")
    merge_checkpoint(single(tmp_path), adapter(), output)
    assert set(stored(output)) == set(contents()[0])


@pytest.mark.usefixtures("small_windows")
def test_progress_adds_up_to_the_size_of_the_data(checkpoint):
    calls = []
    checkpoint.merge(progress=lambda key, size: calls.append((key, size)))
    sizes = {key: info.nbytes for key, (info, _) in stored(checkpoint.base).items()}
    assert {key: sum(size for name, size in calls if name == key) for key, _ in calls} == sizes
    assert len(calls) > len(sizes)
    assert calls.count(("empty.weight", 0)) == 1


# ---------------------------------------------------------------- verification


@pytest.mark.parametrize("options", [{}, {"subtract": True}, {"fan_in_fan_out": True}])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("small_windows")
def test_a_merge_is_verified_to_the_precision_of_its_dtype(tmp_path, output, dtype, options):
    base = single(tmp_path, dtype=dtype, fan_in_fan_out=options.get("fan_in_fan_out", False))
    checkpoint = Checkpoint(base, output)
    checkpoint.merge(**options)
    verified = checkpoint.verify(**options)
    assert set(verified) == {f"{path}.weight" for path in SHAPES}
    for tensor in verified.values():
        assert tensor.error <= 2 * tensor.precision


def test_a_dora_merge_is_verified(checkpoint):
    checkpoint.merge(adapter(dora=True))
    assert all(tensor.error <= 4 * tensor.precision for tensor in checkpoint.verify(adapter(dora=True)).values())


def test_every_form_of_checkpoint_is_verified(checkpoint):
    merged = {tensor.key: tensor for tensor in checkpoint.merge()}
    verified = checkpoint.verify()
    assert {key: tensor.file for key, tensor in verified.items()} == {key: tensor.file for key, tensor in merged.items()}
    assert all(tensor.error <= 2 * tensor.precision for tensor in verified.values())


def tamper(checkpoint, key, change):
    """Merge, then change an array and its dtype in the output; if `change` returns None, remove it."""
    checkpoint.merge()
    for file in checkpoint_files(checkpoint.written).values():
        arrays = load_safetensors(file)
        with SafetensorsFile(file) as tensors:
            dtypes = {name: tensors.info(name).dtype for name in tensors}
        if key in arrays:
            changed = change(arrays.pop(key), dtypes.pop(key))
            if changed:
                arrays[key], dtypes[key] = changed
            save(Path(file), arrays, dtypes)


def off_by(difference):
    """Change the last element."""

    def change(array, dtype):
        array.flat[-1] += difference
        return array, dtype

    return change


@pytest.mark.parametrize("difference", [1e-3, -0.5, 1e6])
@pytest.mark.usefixtures("small_windows")
def test_the_error_of_a_changed_tensor_is_reported(checkpoint, difference):
    tamper(checkpoint, "b.d.weight", off_by(difference))
    verified = checkpoint.verify()
    largest = np.abs(wanted(checkpoint.base, adapter(), "b.d")).max()
    assert verified["b.d.weight"].error == pytest.approx(abs(difference) / largest, rel=1e-3)
    assert max(verified["a.weight"].error, verified["b.c.weight"].error) < 1e-7


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.usefixtures("small_windows")
def test_non_finite_values_are_an_infinite_error(checkpoint, value):
    tamper(checkpoint, "a.weight", off_by(value))
    verified = checkpoint.verify()
    assert verified["a.weight"].error == np.inf
    assert verified["b.c.weight"].error < 1e-7


def test_non_finite_values_of_the_base_are_not_an_error(tmp_path, output):
    weight = batch(5, 7)
    weight[0, :3] = np.nan, np.inf, -np.inf
    base = save(tmp_path / "base" / SINGLE, {"a.weight": weight}, {"a.weight": "BF16"})
    checkpoint = Checkpoint(base, output)
    checkpoint.merge(adapter("a"))
    (tensor,) = checkpoint.verify(adapter("a")).values()
    assert tensor.error <= tensor.precision


def test_the_error_of_zeros_is_absolute(tmp_path):
    base = save(tmp_path / "base" / SINGLE, {"a.weight": np.zeros((5, 7))})
    output = save(tmp_path / "out" / SINGLE, {"a.weight": np.full((5, 7), 0.25)})
    (tensor,) = verify_checkpoint(base, AdapterWeights({"a": LoRALayer(7, 5, 2)}), output)
    assert tensor.error == 0.25


def test_the_error_is_relative_to_the_largest_element(tmp_path):
    base = save(tmp_path / "base" / SINGLE, {"a.weight": np.full((5, 7), 2.0**-20)})
    output = save(tmp_path / "out" / SINGLE, {"a.weight": np.full((5, 7), 2.0**-21)})
    (tensor,) = verify_checkpoint(base, AdapterWeights({"a": LoRALayer(7, 5, 2)}), output)
    assert tensor.error == 0.5


TAMPERED = {
    "an untouched tensor is changed": (
        "norm.weight",
        off_by(1.0),
        r"norm\.weight differs from the base, but the adapter does not change it",
    ),
    "an untouched integer is changed": (
        "tokens",
        off_by(1),
        "tokens differs from the base, but the adapter does not change it",
    ),
    "a tensor is missing": ("tokens", lambda *_: None, "tokens is missing"),
    "a changed tensor is missing": ("a.weight", lambda *_: None, r"a\.weight is missing"),
    "another dtype": ("a.weight", lambda array, _: (array, "F64"), r"a\.weight is missing, or its dtype or shape differs"),
    "another shape": (
        "a.weight",
        lambda array, dtype: (array.T, dtype),
        r"a\.weight is missing, or its dtype or shape differs",
    ),
}


@pytest.mark.parametrize("damage", TAMPERED)
@pytest.mark.usefixtures("small_windows")
def test_a_damaged_output_is_rejected(checkpoint, damage):
    key, change, message = TAMPERED[damage]
    tamper(checkpoint, key, change)
    with pytest.raises(FormatError, match=message):
        checkpoint.verify()


def test_an_additional_tensor_is_rejected(tmp_path):
    base = save(tmp_path / "base" / SINGLE, {"mask": np.ones(1)})
    output = save(tmp_path / "out" / SINGLE, {"mask": np.ones(1), "more": np.ones(1)})
    with pytest.raises(FormatError, match="more is not in the base"):
        verify_checkpoint(base, AdapterWeights({}), output)


def test_a_missing_shard_is_rejected(shards):
    shards.merge()
    (shards.output / SHARDS[1]).unlink()
    with pytest.raises(FormatError, match=f"file .*{SHARDS[1]} not found"):
        shards.verify()


def test_a_shard_that_the_index_does_not_name_is_missing(shards):
    shards.merge()
    shards.written.write_text(json.dumps({"weight_map": {"a.weight": SHARDS[0]}}))
    with pytest.raises(FormatError, match=f"the file {SHARDS[1]} is missing"):
        shards.verify()
    (shards.output / SHARDS[1]).rename(shards.output / "other.safetensors")
    shards.written.write_text(json.dumps({"weight_map": {"a.weight": SHARDS[0], "b.weight": "other.safetensors"}}))
    with pytest.raises(FormatError, match=f"the file {SHARDS[1]} is missing"):
        shards.verify()


# ---------------------------------------------------------------- errors


def with_weight(array):
    """A base in which one weight is replaced."""

    def build(folder):
        tensors, dtypes = contents()
        del dtypes["a.weight"]
        return save(folder / "base" / SINGLE, tensors | {"a.weight": array}, dtypes)

    return build


def without_weight(folder):
    return save(folder / "base" / SINGLE, {"a.bias": np.ones(5), "a.weight": np.ones((5, 7))})


def with_index(content):
    """A sharded base with the given index."""

    def build(folder):
        base = sharded(folder)
        (base / INDEX).write_text(content if isinstance(content, str) else json.dumps(content))
        return base

    return build


def naming(file):
    """A sharded base whose index names the given file."""
    return with_index({"weight_map": {"a.weight": file}})


def without_shard(folder):
    base = sharded(folder)
    (base / SHARDS[0]).unlink()
    return base


REJECTED = {
    "no weight": (without_weight, r"missing tensor 'b\.c\.weight', which the adapter changes"),
    "a transposed weight": (with_weight(np.ones((7, 5))), r"a\.weight must have shape \(5, 7\) .* got \(7, 5\)"),
    "a weight that is not a matrix": (with_weight(np.ones((5, 7, 1))), r"a\.weight must have shape \(5, 7\)"),
    "an integer weight": (with_weight(np.ones((5, 7), np.int8)), r"a\.weight: dtype must be one of F64, .* got I8"),
    "an empty folder": (lambda folder: folder, r"neither model\.safetensors\.index\.json nor model\.safetensors found"),
    "no file": (lambda folder: folder / "none.safetensors", r"file .*none\.safetensors not found"),
    "no index": (lambda folder: folder / "none.index.json", ": not an index of safetensors files"),
    "no shard": (without_shard, f"file .*{SHARDS[0]} not found"),
    "an index that is not JSON": (with_index("{"), ": not an index of safetensors files"),
    "an index that is a list": (with_index([]), ": not an index of safetensors files"),
    "an index without a map": (with_index({}), ": not an index of safetensors files"),
    "a map that is a list": (with_index({"weight_map": []}), ": not an index of safetensors files"),
    "a number for a file": (naming(3), "files in the same folder"),
    "a file elsewhere": (naming("../x.safetensors"), "files in the same folder"),
    "a file at the root": (naming("/x.safetensors"), "files in the same folder"),
    "a file on another drive": (naming("c:x.safetensors"), "files in the same folder"),
    "a file with a backslash": (naming("..\\x.safetensors"), "files in the same folder"),
    "a file name with a zero byte": (naming("x\0.safetensors"), "files in the same folder"),
    "a pickle": (naming("x.bin"), "files in the same folder"),
}


@pytest.mark.parametrize("reason", REJECTED)
def test_an_invalid_base_is_rejected(tmp_path, reason):
    build, message = REJECTED[reason]
    base = build(tmp_path)
    before = all_files(tmp_path)
    with pytest.raises(FormatError, match=message):
        merge_checkpoint(base, adapter(), tmp_path / "merged")
    assert all_files(tmp_path) == before


@pytest.mark.parametrize("act", [merge_checkpoint, verify_checkpoint])
def test_dora_cannot_be_subtracted(tmp_path, output, act):
    base = single(tmp_path)
    with pytest.raises(NotSupportedError, match="a DoRA adapter cannot be subtracted from weights: the norms before it"):
        act(base, adapter(dora=True), output, subtract=True)
    assert not output.exists()


OWN = {
    "its file": (single, lambda base: base),
    "the file of its folder": (single, lambda base: base.parent / ".." / "base" / SINGLE),
    "its folder of shards": (sharded, lambda base: base),
}


@pytest.mark.parametrize("place", OWN)
def test_the_base_is_never_overwritten(tmp_path, place):
    build, output = OWN[place]
    base = build(tmp_path)
    before = stored(base)
    with pytest.raises(ArgumentError, match="output must differ from the base"):
        merge_checkpoint(base, adapter(), output(base))
    assert stored(base) == before


def test_a_link_to_the_base_counts_as_the_base(tmp_path, output):
    base = single(tmp_path)
    try:
        output.symlink_to(base)
    except OSError:
        pytest.skip("this system does not support links")
    with pytest.raises(ArgumentError, match="output must differ from the base"):
        merge_checkpoint(base, adapter(), output)


def test_the_output_of_a_single_file_cannot_be_a_folder(tmp_path, output):
    output.mkdir()
    with pytest.raises(ArgumentError, match="output must be a file because the base is a file"):
        merge_checkpoint(single(tmp_path), adapter(), output)
    assert not all_files(output)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("small_windows")
def test_any_number_of_threads_writes_the_same_bytes(tmp_path, output, dtype):
    base, weights = single(tmp_path, dtype=dtype), adapter(rank=4, dora=dtype == "F32")
    found = set()
    for threads in (1, 2, 3, 8):
        merge_checkpoint(base, weights, output, threads=threads)
        found.add(output.read_bytes())
    assert len(found) == 1


def test_pieces_have_as_many_rows_as_fit():
    assert [_pieces.rows_within(10, columns) for columns in (0, 1, 2, 3, 5, 6, 10, 11)] == [10, 10, 5, 3, 2, 1, 1, 1]
    assert list(_pieces.windows(7, 3)) == [(0, 3), (3, 6), (6, 7)]
    assert not list(_pieces.windows(0, 3))


def test_threads_end_with_the_merge():
    before = threading.active_count()
    with _pieces.Workers(3) as workers:
        old = np.ones((6, 2), np.float32)
        workers.compute(old, old.copy(), 0, 1, _pieces.Conversion("F32", added_column(np.ones(6)), "F32"), np.float32)
        assert threading.active_count() > before
    assert threading.active_count() == before


def test_the_number_of_threads_is_checked(tmp_path, output):
    with pytest.raises(ArgumentError, match="threads must be at least 1, got 0"):
        merge_checkpoint(single(tmp_path), adapter(), output, threads=0)
    assert 1 <= _pieces.usable_threads() <= 4


def test_the_number_of_threads_is_that_of_the_usable_processors(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", {0: {3, 5}, 1: {0, 1, 2}}.get, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert _pieces.usable_threads() == 2
    monkeypatch.delattr("os.sched_getaffinity")
    assert _pieces.usable_threads() == 4
    assert _pieces.usable_threads(1) == 1


def test_the_number_of_threads_where_the_system_does_not_say(monkeypatch):
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert _pieces.usable_threads() == 1


class BrokenError(Exception):
    """Raised in the middle of a merge."""


def breaking(calls, function=lambda *_: None):
    """A function that raises after the given number of calls."""
    left = iter(range(calls))

    def call(*arguments):
        if next(left, None) is None:
            raise BrokenError
        return function(*arguments)

    return call


@pytest.mark.parametrize("place", ["writer", "thread"])
@pytest.mark.usefixtures("small_windows")
def test_an_error_in_the_middle_leaves_nothing_behind(tmp_path, output, monkeypatch, place):
    base = single(tmp_path)
    output.write_bytes(b"older")
    if place == "thread":
        monkeypatch.setattr(_pieces, "decoded", breaking(7, _pieces.decoded))
    with pytest.raises(BrokenError):
        merge_checkpoint(base, adapter(), output, progress=breaking(7) if place == "writer" else None)
    assert output.read_bytes() == b"older"
    assert all_files(tmp_path) == sorted(["base", str(Path("base", SINGLE)), output.name])


@pytest.mark.parametrize("exists", [False, True])
def test_an_error_in_a_later_shard_leaves_only_complete_files(shards, exists):
    with SafetensorsFile(shards.base / SHARDS[0]) as first:
        pieces = len(first)
    if exists:
        shards.output.mkdir()
    with pytest.raises(BrokenError):
        shards.merge(progress=breaking(pieces + 2))
    if exists:
        assert all_files(shards.output) == [SHARDS[0]]
        assert list(stored(shards.output / SHARDS[0])) == list(stored(shards.base / SHARDS[0]))
    else:
        assert not shards.output.exists()
        assert not list(shards.output.parent.glob(".*.tmp"))
