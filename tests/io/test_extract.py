"""Extracting adapters from two checkpoints: against the dense singular value decomposition, and back by merging."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_np import ArgumentError, FormatError
from lora_np.io import extract
from lora_np.io.extract import extract_adapter
from lora_np.io.merge import merge_checkpoint
from lora_np.io.safetensors import load_safetensors, save_safetensors
from tests.kinds import batch


def write(folder, name, tensors, dtypes=None):
    save_safetensors(folder / name, tensors, dtypes=dtypes)
    return folder / name


def pair(folder, change, W=None, **more):
    """A base and a tuned checkpoint that differ by a change of one weight."""
    W = batch(*change.shape, seed=9) if W is None else W
    return write(folder, "base", {"up.weight": W, **more}), write(folder, "tuned", {"up.weight": W + change, **more})


def decaying(rows, columns, seed=0):
    """A matrix whose singular values decay, as those of real changes do."""
    U, _, Vt = np.linalg.svd(batch(rows, columns, seed=seed), full_matrices=False)
    return (U * 0.7 ** np.arange(min(rows, columns))) @ Vt


@settings(max_examples=25)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), true=st.integers(1, 6), more=st.integers(0, 3), data=st.data())
def test_a_low_rank_change_is_found_exactly(tmp_path_factory, rows, columns, true, more, data):
    folder = tmp_path_factory.mktemp("pair")
    true = min(true, rows, columns)
    change = batch(rows, true, seed=1) @ batch(true, columns, seed=2)
    transposed = data.draw(st.booleans())
    found = extract_adapter(*pair(folder, change), rank=true + more, fan_in_fan_out=transposed)
    delta = found.adapter.delta("up")
    np.testing.assert_allclose(delta if transposed else delta.T, change, atol=1e-12 * np.abs(change).max())
    assert found.layers["up"].norm == pytest.approx(np.linalg.norm(change))
    assert found.layers["up"].energy == pytest.approx(1)
    assert found.layers["up"].energy <= 1
    assert found.layers["up"].rank == found.adapter.layers["up"].rank == min(true + more, rows, columns)


@pytest.mark.parametrize("shape", [(60, 90), (90, 60)])
@pytest.mark.parametrize("rank", [1, 4, 30, 59, 60])
def test_the_rank_is_about_as_good_as_that_of_the_dense_decomposition(tmp_path, shape, rank):
    change = decaying(*shape)
    found = extract_adapter(*pair(tmp_path, change), rank=rank)
    sigma = np.linalg.svd(change, compute_uv=False)
    best = float((sigma[:rank] ** 2).sum() / (sigma**2).sum())
    assert best * (1 - 1e-9) <= found.layers["up"].energy <= best * (1 + 1e-12)
    error = np.linalg.norm(found.adapter.delta("up").T - change)
    assert error == pytest.approx(np.sqrt((sigma[rank:] ** 2).sum()), rel=1e-3, abs=1e-12)


@pytest.mark.parametrize("energy", [0.3, 0.9, 0.999, 0.999999, 1.0])
def test_an_energy_selects_the_smallest_rank(tmp_path, energy):
    change = decaying(50, 40)
    rank = extract_adapter(*pair(tmp_path, change), energy=energy).layers["up"].rank
    energies = np.cumsum(np.linalg.svd(change, compute_uv=False) ** 2)
    expected = 40 if energy == 1 else 1 + np.flatnonzero(energies >= energy * energies[-1])[0]
    assert abs(rank - expected) <= (energy > 0.9999)  # there, the rounding of the sum decides


def test_a_rank_beyond_that_of_the_change_is_kept(tmp_path):
    found = extract_adapter(*pair(tmp_path, batch(30, 2, seed=1) @ batch(2, 20, seed=2)), rank=15)
    assert found.layers["up"].rank == found.adapter.layers["up"].rank == 15


def test_an_energy_beyond_the_largest_rank(tmp_path):
    found = extract_adapter(*pair(tmp_path, np.eye(40)), energy=0.99, max_rank=10)
    assert found.layers["up"].rank == 10
    assert found.layers["up"].energy == pytest.approx(0.25)


def test_windows_do_not_change_the_result(tmp_path, monkeypatch):
    checkpoints = pair(tmp_path, decaying(30, 20))
    whole = extract_adapter(*checkpoints, rank=3).adapter.delta("up")
    monkeypatch.setattr(extract, "WINDOW", 47)
    np.testing.assert_allclose(extract_adapter(*checkpoints, rank=3).adapter.delta("up"), whole, atol=1e-12)


def test_a_change_after_the_first_window_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "WINDOW", 4)
    change = np.zeros((4, 3))
    change[3, 2] = 1
    found = extract_adapter(*pair(tmp_path, change), rank=1)
    np.testing.assert_allclose(found.adapter.delta("up").T, change, atol=1e-12)


def test_equal_seeds_give_equal_bits(tmp_path):
    checkpoints = pair(tmp_path, batch(30, 20))
    bits = [
        extract_adapter(*checkpoints, rank=3, **options).adapter.layers["up"].matrix_a.tobytes()
        for options in ({}, {"rng": 0}, {"rng": np.random.default_rng(0)}, {"rng": 1})
    ]
    assert bits[0] == bits[1] == bits[2] != bits[3]


def test_what_is_not_a_matrix_is_stored_whole(tmp_path):
    base = {
        "up.weight": batch(4, 3),
        "same.weight": batch(4, 3),
        "model.embed_tokens.weight": batch(9, 3),
        "wte.weight": batch(9, 3),
        "norm.weight": np.ones(3),
        "up.bias": np.zeros(4),
        "conv.weight": batch(4, 3, 1, 1),
        "grown.weight": batch(4, 3),
        "steps": np.array(3),
        "gone.weight": batch(2, 2),
        "nothing.weight": np.empty((0, 3)),
        "number.weight": np.arange(6).reshape(2, 3),
        "reshaped.weight": batch(2, 6),
        "unknown.weight": np.full((2, 2), np.nan),
    }
    tuned = {key: np.array(value) for key, value in base.items() if key != "gone.weight"}
    unchanged = {"same.weight", "nothing.weight", "unknown.weight"}
    for key in tuned.keys() - unchanged:
        tuned[key] += 1
    tuned["grown.weight"], tuned["reshaped.weight"] = batch(5, 3), base["reshaped.weight"].reshape(3, 4)
    tuned["head.weight"] = batch(2, 3)
    files = write(tmp_path, "base", base), write(tmp_path, "tuned", tuned)
    found = extract_adapter(*files, rank=2)
    assert set(found.adapter.layers) == {"up"}
    assert set(found.adapter.whole) == tuned.keys() - unchanged - {"up.weight"}
    for key, value in found.adapter.whole.items():
        assert value.dtype == tuned[key].dtype
        np.testing.assert_array_equal(value, tuned[key])
    assert found.missing == ("gone.weight",)
    some = extract_adapter(*files, rank=2, targets=["embed_tokens"])
    assert set(some.adapter.layers) == {"model.embed_tokens"}
    np.testing.assert_array_equal(some.adapter.whole["up.weight"], tuned["up.weight"])


def test_changed_tensors_are_dropped_only_by_name(tmp_path):
    tensors = {"up.weight": batch(4, 3), "up.bias": np.zeros(4), "norm.bias": np.zeros(3), "same.bias": np.ones(2)}
    base = write(tmp_path, "base", tensors)
    tuned = write(tmp_path, "tuned", {key: value + ("same" not in key) for key, value in tensors.items()})
    found = extract_adapter(base, tuned, rank=1, drop=["*.bias"])
    assert found.adapter.dropped == ("norm.bias", "up.bias")
    assert not found.adapter.whole
    assert extract_adapter(base, tuned, rank=1, drop=["*"]).adapter.dropped == ("norm.bias", "up.bias", "up.weight")


@pytest.mark.parametrize("dtypes", [("F32", "F32"), ("BF16", "BF16"), ("F16", "F32"), ("BF16", "F64")])
def test_merging_the_adapter_gives_the_tuned_weights(tmp_path, dtypes):
    W, change = batch(30, 20), batch(30, 2, seed=1) @ batch(2, 20, seed=2)
    base = write(tmp_path, "base", {"up.weight": W.astype(np.float32)}, {"up.weight": dtypes[0]})
    tuned = write(tmp_path, "tuned", {"up.weight": W + change}, {"up.weight": dtypes[1]})
    found = extract_adapter(base, tuned, rank=20)
    assert found.adapter.layers["up"].dtype == (np.float64 if "F64" in dtypes else np.float32)
    merge_checkpoint(base, found.adapter, tmp_path / "merged")
    merged, expected = load_safetensors(tmp_path / "merged"), load_safetensors(tuned)
    precision = {"F32": 1e-6, "BF16": 2**-8, "F16": 2**-11}[dtypes[0]]
    np.testing.assert_allclose(merged["up.weight"], expected["up.weight"], rtol=precision, atol=precision)


def test_progress_names_every_tensor(tmp_path):
    seen = []
    extract_adapter(*pair(tmp_path, batch(4, 3), bias=np.ones(2)), rank=1, progress=seen.append)
    assert seen == ["bias", "up.weight"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "exactly one of rank and energy must be given, got rank=None, energy=None"),
        ({"rank": 1, "energy": 0.5}, "exactly one of rank and energy must be given, got rank=1, energy=0.5"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"rank": 1, "max_rank": 2}, "max_rank requires energy instead of rank, got max_rank=2"),
        ({"energy": 0.5, "max_rank": 0}, "max_rank must be at least 1, got 0"),
        ({"energy": 0.0}, "energy must lie in (0, 1], got 0.0"),
        ({"energy": 1.5}, "energy must lie in (0, 1], got 1.5"),
        ({"rank": 1, "targets": ["down"]}, "targets must match"),
        ({"rank": 1, "rng": "x"}, "rng must be"),
    ],
)
def test_invalid_arguments(tmp_path, options, reason):
    with pytest.raises(ArgumentError, match=re.escape(reason)):
        extract_adapter(*pair(tmp_path, np.ones((4, 3))), **options)


def test_checkpoints_that_cannot_be_compared(tmp_path):
    base, _ = pair(tmp_path, np.ones((4, 3)))
    with pytest.raises(ArgumentError, match="tuned must differ from the base"):
        extract_adapter(base, base, rank=1)
    other = write(tmp_path, "other", {"model.up.weight": np.ones((4, 3))})
    with pytest.raises(FormatError, match="other: has no tensor in common with "):
        extract_adapter(base, other, rank=1)
    broken = write(tmp_path, "broken", {"up.weight": np.full((4, 3), np.nan)})
    with pytest.raises(FormatError, match=r"broken: the difference of up.weight from the base must be finite"):
        extract_adapter(base, broken, rank=1)
