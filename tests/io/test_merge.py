"""Merging into checkpoints: the sum to the last place, everything else to the byte, and no half-written files."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest

from lora_np import ArgumentError, FormatError, FullyConnectedLayer, LoRALayer, NotSupportedError, merge_in_place
from lora_np.adapter_weights import AdapterWeights
from lora_np.io import merge
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
"""Tensors that it does not change, in every kind of dtype, some of them of a similar name."""

DTYPES = list(merge.PRECISIONS)
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def adapter(*paths, dora=False, fan_in_fan_out=False):
    """An adapter of the layers at these paths, or of all."""
    layers, magnitudes = {}, {}
    for seed, path in enumerate(paths or SHAPES):
        out, inner = SHAPES[path]
        layers[path] = LoRALayer.from_factors(batch(inner, 2, seed=seed), batch(2, out, seed=seed + 9), 3.0)
        if dora:
            magnitudes[path] = np.abs(batch(out, seed=seed)) + 0.5
    return AdapterWeights(layers, magnitudes)


def contents(dtype="F32", fan_in_fan_out=False):
    """The tensors of a checkpoint, and the dtype of each in the file."""
    weights = {f"{path}.weight": batch(*shape, seed=len(path)) for path, shape in SHAPES.items()}
    if fan_in_fan_out:
        weights = {key: array.T for key, array in weights.items()}
    tensors = weights | {key: array for key, (array, _) in UNTOUCHED.items()}
    return tensors, dict.fromkeys(weights, dtype) | {key: stored for key, (_, stored) in UNTOUCHED.items()}


def save(path, tensors, dtypes, metadata=None):
    path.parent.mkdir(exist_ok=True)
    save_safetensors(path, tensors, {"format": "pt", "note": "é"} if metadata is None else metadata, dtypes=dtypes)
    return path


def single(folder, **options):
    """A checkpoint in one file."""
    return save(folder / "base" / SINGLE, *contents(**options))


def sharded(folder, name=INDEX, dtype="F32"):
    """A checkpoint in two files and their index."""
    tensors, dtypes = contents(dtype)
    shard = {key: SHARDS[position % 2] for position, key in enumerate(sorted(tensors))}
    for file in SHARDS:
        keys = [key for key in tensors if shard[key] == file]
        save(folder / "base" / file, {key: tensors[key] for key in keys}, {key: dtypes[key] for key in keys})
    (folder / "base" / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": shard}, indent=3))
    return folder / "base"


CHECKPOINTS = {
    "a file": lambda folder: (single(folder), folder / "merged.safetensors"),
    "a folder with a file": lambda folder: (single(folder).parent, folder / "merged.safetensors"),
    "shards": lambda folder: (sharded(folder), folder / "merged"),
    "shards, by their index": lambda folder: (sharded(folder) / INDEX, folder / "merged"),
    "an index of another name": lambda folder: (
        sharded(folder, "unet.safetensors.index.json") / "unet.safetensors.index.json",
        folder / "merged",
    ),
}


@pytest.fixture(params=CHECKPOINTS)
def checkpoint(request, tmp_path):
    """A base of every form, and the place for its output."""
    return CHECKPOINTS[request.param](tmp_path)


@pytest.fixture
def small_windows(monkeypatch):
    """Windows and pieces of a few rows, so that every tensor takes many of them."""
    monkeypatch.setattr(merge, "WINDOW", 30)
    monkeypatch.setattr(merge, "PIECE", 11)


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


def wanted(old, weights, path, sign=1.0, fan_in_fan_out=False):
    """The merged weight in float64, from the dense matrix."""
    delta = weights.layers[path].merge_weights().astype(np.float64)
    V = old + sign * (delta if fan_in_fan_out else delta.T)
    if path in weights.magnitudes:
        V *= (weights.magnitudes[path] / np.linalg.norm(V, axis=1))[:, None]
    return V


def assert_last_place(actual, expected, dtype):
    """Equal to within one unit in the last place of the largest elements that are summed."""
    assert np.abs(actual - expected).max() <= 2 * merge.PRECISIONS[dtype] * 2 ** np.ceil(np.log2(np.abs(expected).max()))


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sum_is_that_of_float64_rounded(tmp_path, dtype, dora):
    base, weights, output = single(tmp_path, dtype=dtype), adapter(dora=dora), tmp_path / "merged.safetensors"
    merge_checkpoint(base, weights, output)
    old, new = values(base), values(output)
    for path in SHAPES:
        assert_last_place(new[f"{path}.weight"], wanted(old[f"{path}.weight"], weights, path), dtype)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_elements_of_short_dtypes_are_rounded_each_to_its_own_last_place(tmp_path, dtype):
    base, weights, output = single(tmp_path, dtype=dtype), adapter("b.d"), tmp_path / "merged.safetensors"
    merge_checkpoint(base, weights, output)
    exact = wanted(values(base)["b.d.weight"], weights, "b.d")
    unit = 2 * merge.PRECISIONS[dtype] * 2 ** np.floor(np.log2(np.abs(exact)))
    assert (np.abs(values(output)["b.d.weight"] - exact) <= unit).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_and_shapes_stay(tmp_path, dtype):
    base, output = single(tmp_path, dtype=dtype), tmp_path / "merged.safetensors"
    merge_checkpoint(base, adapter(), output)
    assert {key: info for key, (info, _) in stored(output).items()} == {key: info for key, (info, _) in stored(base).items()}


def test_only_the_tensors_of_the_adapter_change(checkpoint):
    base, output = checkpoint
    merge_checkpoint(base, adapter("a", "b.c"), output)
    before, after = stored(base), stored(output if output.is_file() else output / os.path.basename(merge._index_path(base)))
    assert list(before) == list(after)
    assert {key for key in before if before[key] != after[key]} == {"a.weight", "b.c.weight"}


def test_metadata_and_index_stay(checkpoint):
    base, output = checkpoint
    merge_checkpoint(base, adapter(), output)
    files = checkpoint_files(base)
    for name, file in files.items():
        with SafetensorsFile(file) as old, SafetensorsFile(output / name if output.is_dir() else output) as new:
            assert new.metadata == old.metadata == {"format": "pt", "note": "é"}
    if output.is_dir():
        index = merge._index_path(base)
        assert (output / os.path.basename(index)).read_bytes() == open(index, "rb").read()  # noqa: SIM115
        assert all_files(output) == sorted([*files, os.path.basename(index)])


def test_the_result_names_the_changed_tensors(checkpoint):
    base, output = checkpoint
    changed = merge_checkpoint(base, adapter("a", "b.d"), output)
    assert {tensor.key for tensor in changed} == {"a.weight", "b.d.weight"}
    for tensor in changed:
        with SafetensorsFile(output / tensor.file if output.is_dir() else output) as file:
            assert file.info(tensor.key).dtype == tensor.dtype
        assert tensor.error is None
        assert tensor.precision == 2.0**-24


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("small_windows")
def test_windows_do_not_change_the_result(tmp_path, dtype, dora, monkeypatch):
    base = single(tmp_path, dtype=dtype)
    merge_checkpoint(base, adapter(dora=dora), tmp_path / "windows.safetensors")
    monkeypatch.undo()
    merge_checkpoint(base, adapter(dora=dora), tmp_path / "whole.safetensors")
    small, whole = stored(tmp_path / "windows.safetensors"), stored(tmp_path / "whole.safetensors")
    assert {key: small[key] for key in UNTOUCHED} == {key: whole[key] for key in UNTOUCHED}
    # A product of other shapes may add in another order.
    for key, array in values(tmp_path / "windows.safetensors").items():
        if array.size and key not in UNTOUCHED:
            assert_last_place(array, values(tmp_path / "whole.safetensors")[key], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_stored_as_in_out(tmp_path, dtype):
    base, weights = single(tmp_path, dtype=dtype, fan_in_fan_out=True), adapter()
    output = tmp_path / "merged.safetensors"
    merge_checkpoint(base, weights, output, fan_in_fan_out=True)
    for path in SHAPES:
        exact = wanted(values(base)[f"{path}.weight"], weights, path, fan_in_fan_out=True)
        assert_last_place(values(output)[f"{path}.weight"], exact, dtype)


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_subtracting_undoes_a_merge_up_to_rounding(tmp_path, dtype, fan_in_fan_out):
    base = single(tmp_path, dtype=dtype, fan_in_fan_out=fan_in_fan_out)
    merged, undone = tmp_path / "merged.safetensors", tmp_path / "undone.safetensors"
    merge_checkpoint(base, adapter(), merged, fan_in_fan_out=fan_in_fan_out)
    merge_checkpoint(merged, adapter(), undone, subtract=True, fan_in_fan_out=fan_in_fan_out)
    for path in SHAPES:
        key = f"{path}.weight"
        lost = np.abs(values(undone)[key] - values(base)[key]).max()
        assert lost <= 4 * merge.PRECISIONS[dtype] * np.abs(values(merged)[key]).max()
    assert stored(undone)["tokens"] == stored(base)["tokens"]


@pytest.mark.parametrize("case", CASES)
def test_a_merge_is_what_peft_and_the_adapters_give(tmp_path, case):
    weights, output = load_peft(DATA / case), tmp_path / "merged.safetensors"
    merge_checkpoint(BASE, weights, output)
    model = apply_peft(network(), DATA / case)
    merge_in_place(model)
    for key, array in load_safetensors(output).items():
        path, name = key.rsplit(".", 1)
        layer = model.walk()[path]
        assert isinstance(layer, FullyConnectedLayer)
        assert_close(array, layer.named_parameters()[name])
        assert_close(array, expected(case)[f"merged.{key}"])


def test_equal_merges_give_equal_bytes(tmp_path):
    base = single(tmp_path)
    for name in ("one", "two"):
        merge_checkpoint(base, adapter(), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_an_older_output_is_replaced(tmp_path):
    base, output = single(tmp_path), tmp_path / "merged.safetensors"
    output.write_bytes(b"older")
    merge_checkpoint(base, adapter(), output)
    assert set(stored(output)) == set(stored(base))


@pytest.mark.usefixtures("small_windows")
def test_progress_sums_up_to_the_size_of_the_data(checkpoint):
    base, output = checkpoint
    calls = []
    merge_checkpoint(base, adapter(), output, progress=lambda key, size: calls.append((key, size)))
    sizes = {key: info.nbytes for key, (info, _) in stored(base).items()}
    assert {key: sum(size for name, size in calls if name == key) for key, _ in calls} == sizes
    assert len(calls) > len(sizes)


def test_one_row_is_computed_at_a_time_where_it_is_long(tmp_path, monkeypatch):
    monkeypatch.setattr(merge, "PIECE", 1)
    monkeypatch.setattr(merge, "WINDOW", 1)
    base, weights, output = single(tmp_path), adapter(), tmp_path / "merged.safetensors"
    merge_checkpoint(base, weights, output)
    for path in SHAPES:
        assert_last_place(values(output)[f"{path}.weight"], wanted(values(base)[f"{path}.weight"], weights, path), "F32")


# ---------------------------------------------------------------- what is verified


@pytest.mark.parametrize("options", [{}, {"subtract": True}, {"fan_in_fan_out": True}])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("small_windows")
def test_a_merge_is_verified_to_the_precision_of_its_dtype(tmp_path, dtype, options):
    base = single(tmp_path, dtype=dtype, fan_in_fan_out=options.get("fan_in_fan_out", False))
    output = tmp_path / "merged.safetensors"
    merge_checkpoint(base, adapter(), output, **options)
    verified = verify_checkpoint(base, adapter(), output, **options)
    assert {tensor.key for tensor in verified} == {f"{path}.weight" for path in SHAPES}
    for tensor in verified:
        assert tensor.error <= 2 * tensor.precision


def test_a_dora_merge_is_verified(tmp_path):
    base, output = single(tmp_path), tmp_path / "merged.safetensors"
    merge_checkpoint(base, adapter(dora=True), output)
    assert all(tensor.error <= 4 * tensor.precision for tensor in verify_checkpoint(base, adapter(dora=True), output))


def test_every_form_of_checkpoint_is_verified(checkpoint):
    base, output = checkpoint
    merge_checkpoint(base, adapter(), output)
    verified = verify_checkpoint(base, adapter(), output)
    assert {tensor.key: tensor.file for tensor in verified} == {
        tensor.key: tensor.file for tensor in merge_checkpoint(base, adapter(), output)
    }
    assert all(tensor.error <= 2 * tensor.precision for tensor in verified)


def tampered(checkpoint, key, change):
    """Merge, then change one tensor of the output; None takes it out."""
    base, output = checkpoint
    merge_checkpoint(base, adapter(), output)
    for file in output.glob("*.safetensors") if output.is_dir() else [output]:
        with SafetensorsFile(file) as tensors:
            dtypes = {name: tensors.info(name).dtype for name in tensors}
            metadata = tensors.metadata
        arrays = load_safetensors(file)
        if key in arrays:
            array, dtypes[key] = change(arrays.pop(key), dtypes.pop(key)) or (None, None)
            arrays |= {} if array is None else {key: array}
            save_safetensors(file, arrays, metadata, dtypes={name: dtypes[name] for name in arrays})


def off_by(difference):
    """Change the last element."""

    def change(array, dtype):
        array = array.copy()
        array.flat[-1] += difference
        return array, dtype

    return change


@pytest.mark.parametrize("difference", [1e-3, -0.5, 1e6])
@pytest.mark.usefixtures("small_windows")
def test_the_error_of_a_changed_tensor_is_reported(checkpoint, difference):
    tampered(checkpoint, "b.d.weight", off_by(difference))
    base, output = checkpoint
    errors = {tensor.key: tensor.error for tensor in verify_checkpoint(base, adapter(), output)}
    exact = wanted(values(base)["b.d.weight"], adapter(), "b.d")
    assert errors["b.d.weight"] == pytest.approx(abs(difference) / np.abs(exact).max(), rel=1e-3)
    assert max(errors["a.weight"], errors["b.c.weight"]) < 1e-7


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.usefixtures("small_windows")
def test_numbers_that_are_not_finite_are_an_infinite_error(tmp_path, value):
    checkpoint = CHECKPOINTS["a file"](tmp_path)
    tampered(checkpoint, "a.weight", off_by(value))
    errors = {tensor.key: tensor.error for tensor in verify_checkpoint(checkpoint[0], adapter(), checkpoint[1])}
    assert errors["a.weight"] == np.inf
    assert errors["b.c.weight"] < 1e-7


def test_numbers_that_are_not_finite_in_the_base_are_no_error(tmp_path):
    weight = batch(5, 7)
    weight[0, :3] = np.nan, np.inf, -np.inf
    base, output = save(tmp_path / "base" / SINGLE, {"a.weight": weight}, {"a.weight": "BF16"}), tmp_path / "merged"
    merge_checkpoint(base, adapter("a"), output)
    (tensor,) = verify_checkpoint(base, adapter("a"), output)
    assert tensor.error <= tensor.precision


def test_the_error_of_zeros_is_absolute(tmp_path):
    base = save(tmp_path / "base" / SINGLE, {"a.weight": np.zeros((5, 7))}, {})
    weights = AdapterWeights({"a": LoRALayer(7, 5, 2)})
    save(tmp_path / "out" / SINGLE, {"a.weight": np.full((5, 7), 0.25)}, {})
    (tensor,) = verify_checkpoint(base, weights, tmp_path / "out")
    assert tensor.error == 0.25


TAMPERED = {
    "an untouched tensor is changed": ("norm.weight", off_by(1.0), r"norm\.weight is not the base's"),
    "an untouched integer is changed": ("tokens", off_by(1), "tokens is not the base's"),
    "a tensor is missing": ("tokens", lambda *_: None, "tokens is missing"),
    "a changed tensor is missing": ("a.weight", lambda *_: None, r"a\.weight is missing"),
    "another dtype": ("a.weight", lambda array, dtype: (array, "F64"), r"a\.weight is missing, or has another dtype"),
    "another shape": ("a.weight", lambda array, dtype: (array.T, dtype), r"a\.weight .* another dtype or shape"),
}


@pytest.mark.parametrize("damage", TAMPERED)
@pytest.mark.usefixtures("small_windows")
def test_a_damaged_output_is_refused(checkpoint, damage):
    key, change, message = TAMPERED[damage]
    tampered(checkpoint, key, change)
    with pytest.raises(FormatError, match=message):
        verify_checkpoint(checkpoint[0], adapter(), checkpoint[1])


def test_one_tensor_more_is_refused(tmp_path):
    base, output = single(tmp_path), tmp_path / "merged.safetensors"
    merge_checkpoint(base, adapter(), output)
    save_safetensors(output, load_safetensors(output) | {"b.c.weight.weight": np.ones((4, 3)), "more": np.ones(1)})
    tensors, dtypes = contents()
    save(base, {key: array for key, array in tensors.items() if key in dtypes}, dtypes)
    merge_checkpoint(base, adapter(), output)
    with SafetensorsFile(output) as file:
        kept = {key: file.info(key).dtype for key in file}
    save_safetensors(output, load_safetensors(output) | {"more": np.ones(1)}, dtypes=kept)
    with pytest.raises(FormatError, match="more is not in the base"):
        verify_checkpoint(base, adapter(), output)


def test_a_missing_shard_is_refused(tmp_path):
    base, output = CHECKPOINTS["shards"](tmp_path)
    merge_checkpoint(base, adapter(), output)
    (output / SHARDS[1]).unlink()
    with pytest.raises(FormatError, match=f"there is no file .*{SHARDS[1]}"):
        verify_checkpoint(base, adapter(), output)


def test_a_shard_that_the_index_does_not_name_is_missing(tmp_path):
    base, output = CHECKPOINTS["shards"](tmp_path)
    merge_checkpoint(base, adapter(), output)
    (output / INDEX).write_text(json.dumps({"weight_map": {"a.weight": SHARDS[0], "more": SHARDS[0]}}))
    with pytest.raises(FormatError, match=f"the file {SHARDS[1]} is missing"):
        verify_checkpoint(base, adapter(), output)


# ---------------------------------------------------------------- what is refused


def with_weight(array):
    """A base in which one weight is another array."""

    def build(folder):
        tensors, dtypes = contents()
        dtypes.pop("a.weight")
        return save(folder / "base" / SINGLE, tensors | {"a.weight": array}, dtypes)

    return build


def without_weight(folder):
    return save(folder / "base" / SINGLE, {"a.bias": np.ones(5), "a.weight": np.ones((5, 7))}, {})


def with_index(content):
    """A sharded base with another index."""

    def build(folder):
        base = sharded(folder)
        (base / INDEX).write_text(content if isinstance(content, str) else json.dumps(content))
        return base

    return build


def without_shard(folder):
    base = sharded(folder)
    (base / SHARDS[0]).unlink()
    return base


REFUSED = {
    "no weight": (without_weight, r"it has no tensor 'b\.c\.weight', which the adapter changes"),
    "a transposed weight": (with_weight(np.ones((7, 5))), r"a\.weight must have shape \(5, 7\) for the adapter, got \(7, 5\)"),
    "an integer weight": (with_weight(np.ones((5, 7), np.int8)), r"a\.weight must be one of F64, F32, BF16, F16, got I8"),
    "an empty folder": (lambda folder: folder, "there is neither model.safetensors.index.json nor model.safetensors"),
    "no file": (lambda folder: folder / "none.safetensors", "there is no file .*none.safetensors"),
    "no index": (lambda folder: folder / "none.index.json", "it is not an index of safetensors files"),
    "no shard": (without_shard, f"there is no file .*{SHARDS[0]}"),
    "an index that is no JSON": (with_index("{"), "it is not an index"),
    "an index that is a list": (with_index([]), "it is not an index"),
    "an index without a map": (with_index({}), "it is not an index"),
    "a map that is a list": (with_index({"weight_map": []}), "it is not an index"),
    "a number for a file": (with_index({"weight_map": {"a.weight": 3}}), "files in the same folder"),
    "a file elsewhere": (with_index({"weight_map": {"a.weight": "../x.safetensors"}}), "files in the same folder"),
    "a file at the root": (with_index({"weight_map": {"a.weight": "/x.safetensors"}}), "files in the same folder"),
    "a file on another drive": (with_index({"weight_map": {"a.weight": "c:x.safetensors"}}), "files in the same folder"),
    "a file by backslash": (with_index({"weight_map": {"a.weight": "..\\x.safetensors"}}), "files in the same folder"),
    "a name that no file has": (with_index({"weight_map": {"a.weight": "x\0.safetensors"}}), "files in the same folder"),
    "a pickle": (with_index({"weight_map": {"a.weight": "x.bin"}}), "files in the same folder"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_base_that_does_not_fit_is_refused(tmp_path, reason):
    build, message = REFUSED[reason]
    base = build(tmp_path)
    before = all_files(tmp_path)
    with pytest.raises(FormatError, match=message):
        merge_checkpoint(base, adapter(), tmp_path / "merged")
    assert all_files(tmp_path) == before


@pytest.mark.parametrize("options", [{"subtract": True}, {"fan_in_fan_out": True}])
@pytest.mark.parametrize("act", [merge_checkpoint, verify_checkpoint])
def test_dora_is_merged_in_one_way_only(tmp_path, act, options):
    base = single(tmp_path)
    with pytest.raises(NotSupportedError, match="a DoRA adapter cannot be taken out"):
        act(base, adapter(dora=True), tmp_path / "merged.safetensors", **options)
    assert all_files(tmp_path) == ["base", f"base/{SINGLE}"]


def test_the_base_is_never_overwritten(checkpoint):
    base, output = checkpoint
    target = base if base.is_file() and output.suffix else base.parent if base.is_file() else base
    if target.is_dir() and output.suffix:
        target = base / SINGLE
    before = stored(base)
    with pytest.raises(ArgumentError, match="output must be another place than the base"):
        merge_checkpoint(base, adapter(), target)
    assert stored(base) == before


def test_a_link_to_the_base_is_the_base(tmp_path):
    base, link = single(tmp_path), tmp_path / "link.safetensors"
    try:
        link.symlink_to(base)
    except OSError:
        pytest.skip("this system makes no links")
    with pytest.raises(ArgumentError, match="another place than the base"):
        merge_checkpoint(base, adapter(), link)


def test_the_output_of_one_file_is_not_a_folder(tmp_path):
    base = single(tmp_path)
    (tmp_path / "merged").mkdir()
    with pytest.raises(ArgumentError, match="output must be a file"):
        merge_checkpoint(base, adapter(), tmp_path / "merged")
    assert not all_files(tmp_path / "merged")


class Broken(Exception):
    """What goes wrong in the middle."""


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("place", ["in the writer", "in a thread"])
def test_an_error_in_the_middle_leaves_nothing_behind(tmp_path, monkeypatch, place):
    base, output = single(tmp_path), tmp_path / "merged.safetensors"
    output.write_bytes(b"older")
    left = iter(range(7))

    def broken(*arguments):
        if next(left, None) is None:
            raise Broken
        return original(*arguments)

    if place == "in a thread":
        original = merge.encoded
        monkeypatch.setattr(merge, "encoded", broken)
    else:
        original = SimpleNamespace().__init__
    progress = broken if place == "in the writer" else None
    if progress:
        original = len_of_nothing
    with pytest.raises(Broken):
        merge_checkpoint(base, adapter(), output, progress=progress)
    assert output.read_bytes() == b"older"
    assert all_files(tmp_path) == ["base", f"base/{SINGLE}", "merged.safetensors"]


def len_of_nothing(*_):
    return None


def test_an_error_in_a_later_shard_leaves_whole_files_only(tmp_path):
    base, output = CHECKPOINTS["shards"](tmp_path)
    with SafetensorsFile(base / SHARDS[1]) as second:
        last = list(second)[-1]

    def broken(key, size):
        if key == last:
            raise Broken

    with pytest.raises(Broken):
        merge_checkpoint(base, adapter(), output, progress=broken)
    assert all_files(output) == [SHARDS[0]]
    assert list(stored(output / SHARDS[0])) == list(stored(base / SHARDS[0]))
