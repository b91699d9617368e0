"""Adapters of experts, several weights in one parameter: read, merged, written, combined; what does not fit is named."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np import ArgumentError, DenseLayer, FormatError, LoRALayer, NotSupportedError, Sequential
from lora_np.factors.weights import AdapterWeights
from lora_np.io import _merging, merge
from lora_np.io._applying import applied
from lora_np.io._changes import added_products
from lora_np.io._experts import joined, split, wrapped
from lora_np.io.base_names import renamed
from lora_np.io.kohya import save_kohya
from lora_np.io.merge import merge_checkpoint, verify_checkpoint
from lora_np.io.peft import CONFIG, WEIGHTS, load_peft, save_peft
from lora_np.io.safetensors import load_safetensors, save_safetensors
from lora_np.surgery import combine, truncate
from tests.io.kinds import FOLDER, same
from tests.kinds import batch

UP, DOWN = "body.mlp.up", "body.mlp.down"
COUNT = 3
SIZES = {UP: (4, 6), DOWN: (3, 4)}
"""The inputs and outputs of an expert: as for a gated MLP, there are twice as many outputs as the inputs of the other."""


def layer(inputs, outputs, rank=2, seed=0, **more):
    return LoRALayer.from_factors(batch(inputs, rank, seed=seed), batch(rank, outputs, seed=seed + 50), 3.0, **more)


def experts(*names, count=COUNT, sizes=None, **more):
    """The layers of the experts in some parameters."""
    return {
        f"{name}.{number}": layer(*(sizes or SIZES.get(name, (4, 6))), seed=10 * i + number, **more)
        for i, name in enumerate(names)
        for number in range(count)
    }


def adapter(*names, **more):
    return AdapterWeights(experts(*names, **more), experts=dict.fromkeys(names, more.get("count", COUNT)))


def tensors(transposed=False):
    """Parameters (experts, out, in) or (experts, in, out)."""
    return {name: batch(COUNT, *(SIZES[name] if transposed else SIZES[name][::-1]), seed=i) for i, name in enumerate(SIZES)}


def wanted(weights, base, name, transposed=False, sign=1):
    """``W_e + s A_e B_e`` for each expert."""
    deltas = [weights.delta(f"{name}.{number}") for number in range(len(base[name]))]
    return base[name] + sign * np.stack([delta if transposed else delta.T for delta in deltas])


@pytest.mark.parametrize("window", [1, 7, 60, merge.WINDOW])
@pytest.mark.parametrize("transposed", [False, True])
def test_each_expert_is_merged(tmp_path, monkeypatch, window, transposed):
    for module, name in ((merge, "WINDOW"), (merge, "PIECE"), (_merging, "WINDOW")):
        monkeypatch.setattr(module, name, window)
    weights, base = adapter(UP, DOWN), tensors(transposed)
    save_safetensors(tmp_path / "base", base)
    changed = merge_checkpoint(tmp_path / "base", weights, tmp_path / "merged")
    assert [(tensor.key, tensor.change, tensor.rank) for tensor in changed] == [
        (DOWN, "low-rank", 2),
        (UP, "low-rank", 2),
    ]
    merged = load_safetensors(tmp_path / "merged")
    for name in (UP, DOWN):
        np.testing.assert_allclose(merged[name], wanted(weights, base, name, transposed), rtol=0, atol=1e-14)
    assert all(tensor.error <= 1e-15 for tensor in verify_checkpoint(tmp_path / "base", weights, tmp_path / "merged"))
    merge_checkpoint(tmp_path / "merged", weights, tmp_path / "back", subtract=True)
    back = load_safetensors(tmp_path / "back")
    assert all(np.abs(back[name] - base[name]).max() < 1e-14 for name in base)


def test_any_rows_of_stacked_experts_change_as_in_the_whole():
    pairs = [(batch(3, 2, seed=i), batch(2, 4, seed=9 + i)) for i in range(3)]
    old, change = batch(9, 4), added_products(pairs)
    whole = old + np.concatenate([left @ right for left, right in pairs])
    for first in range(9):
        for stop in range(first + 1, 10):
            np.testing.assert_allclose(change(old[first:stop], first), whole[first:stop], rtol=0, atol=1e-14)


def test_each_module_is_matched_alone(tmp_path):
    names = [f"layers.{number}.{name}" for number in range(2) for name in ("up", "down")]
    sizes = dict(zip(names, [(4, 6), (3, 4)] * 2, strict=True))
    layers = {path: found for name in names for path, found in experts(name, sizes=sizes[name]).items()}
    weights, base = AdapterWeights(layers, experts=dict.fromkeys(names, COUNT)), {}
    for seed, name in enumerate(names):
        base[name] = batch(COUNT, *sizes[name][::-1], seed=seed)
    save_safetensors(tmp_path / "base", base)
    merge_checkpoint(tmp_path / "base", weights, tmp_path / "merged")
    merged = load_safetensors(tmp_path / "merged")
    assert all(np.allclose(merged[name], wanted(weights, base, name)) for name in names)


def test_names_of_a_module_go_by_the_shapes_of_the_base(tmp_path):
    weights = adapter(UP, DOWN)
    swapped = AdapterWeights(
        {f"{ {UP: DOWN, DOWN: UP}[path[:-2]] }{path[-2:]}": found for path, found in weights.layers.items()},
        experts={DOWN: COUNT, UP: COUNT},
    )
    save_safetensors(tmp_path / "base", base := tensors())
    merge_checkpoint(tmp_path / "base", swapped, tmp_path / "merged")
    merged = load_safetensors(tmp_path / "merged")
    assert all(np.allclose(merged[name], wanted(weights, base, name)) for name in base)


@pytest.mark.parametrize("shape", [(6, 4), (1, 6, 4), (1, 4, 6)])
def test_one_expert_may_be_a_matrix(tmp_path, shape):
    weights, old = adapter(UP, count=1), batch(*shape)
    save_safetensors(tmp_path / "base", {UP: old})
    merge_checkpoint(tmp_path / "base", weights, tmp_path / "merged")
    delta = weights.delta(f"{UP}.0")
    expected = old + (delta if shape[-1] == 6 else delta.T)
    np.testing.assert_allclose(load_safetensors(tmp_path / "merged")[UP], expected, rtol=1e-14)


def test_the_base_may_have_a_prefix_less(tmp_path):
    weights = AdapterWeights({"body.q": layer(4, 4), **experts(UP)}, experts={UP: COUNT})
    base = {"mlp.up": batch(COUNT, 6, 4), "q.weight": np.zeros((4, 4))}
    save_safetensors(tmp_path / "base", base)
    changed = merge_checkpoint(tmp_path / "base", weights, tmp_path / "merged")
    assert {tensor.key for tensor in changed} == {"mlp.up", "q.weight"}
    merged = load_safetensors(tmp_path / "merged")
    np.testing.assert_allclose(merged["mlp.up"], wanted(weights, {UP: base["mlp.up"]}, UP), rtol=1e-14)


UNFIT = {
    "missing": ({}, FormatError, "missing tensor 'body.mlp.up', which the adapter changes"),
    "another number of experts": ({UP: np.zeros((2, 6, 4))}, FormatError, r"have the shapes \[\(3, 6, 4\)\], also"),
    "a matrix": ({UP: np.zeros((6, 4))}, FormatError, "have the shapes"),
    "integers": ({UP: np.zeros((3, 6, 4), int)}, FormatError, "dtype must be one of"),
}


@pytest.mark.parametrize("reason", UNFIT)
def test_what_does_not_fit_is_named(tmp_path, reason):
    base, error, message = UNFIT[reason]
    save_safetensors(tmp_path / "base", {"x": np.zeros(1), **base})
    with pytest.raises(error, match=f"{tmp_path / 'base'}: .*{message}"):
        merge_checkpoint(tmp_path / "base", adapter(UP), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_pair_that_mirrors_each_other_is_ambiguous(tmp_path):
    weights = AdapterWeights(experts(UP) | experts("body.mlp.c", sizes=(6, 4)), experts={UP: COUNT, "body.mlp.c": COUNT})
    save_safetensors(tmp_path / "base", {UP: np.zeros((COUNT, 6, 4)), "body.mlp.c": np.zeros((COUNT, 4, 6))})
    with pytest.raises(NotSupportedError, match="do not tell which of"):
        merge_checkpoint(tmp_path / "base", weights, tmp_path / "merged")


@pytest.mark.parametrize("names", [(UP,), (UP, DOWN)])
def test_square_experts_do_not_tell_whether_they_are_transposed(tmp_path, names):
    save_safetensors(tmp_path / "base", {name: np.zeros((COUNT, 4, 4)) for name in names})
    with pytest.raises(NotSupportedError, match=r"do not tell which of 'body\.mlp\.up'.*or whether they are transposed"):
        merge_checkpoint(tmp_path / "base", adapter(*names, sizes=(4, 4)), tmp_path / "merged")


def test_an_oblong_parameter_tells_it_for_a_square_one(tmp_path):
    weights = AdapterWeights(experts(UP) | experts("body.mlp.c", sizes=(4, 4)), experts={UP: COUNT, "body.mlp.c": COUNT})
    base = {UP: batch(COUNT, 4, 6), "body.mlp.c": batch(COUNT, 4, 4)}
    save_safetensors(tmp_path / "base", base)
    merge_checkpoint(tmp_path / "base", weights, tmp_path / "merged")
    merged = load_safetensors(tmp_path / "merged")
    assert all(np.allclose(merged[name], wanted(weights, base, name, transposed=True)) for name in base)


# ---------------------------------------------------------------- files


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
def test_splitting_undoes_joining(count, rank, inputs, outputs):
    layers = [layer(inputs, outputs, rank, seed=number) for number in range(count)]
    A, B = joined(layers)
    assert A.shape == (count * rank, inputs)
    assert B.shape == (outputs, rank * count)
    for (one, two), found in zip(split(A.T, B.T, count), layers, strict=True):
        assert np.array_equal(one, found.matrix_a)
        assert np.array_equal(two, found.matrix_b)


@pytest.mark.parametrize(("scaling", "rank"), [("max", 2), ("rslora", 2), ("max", 1)])
@pytest.mark.parametrize("names", [(UP,), (UP, DOWN), (DOWN, UP, "body.router")])
def test_write_then_read_is_the_identity(tmp_path, names, scaling, rank):
    found = experts(*names, scaling=scaling, rank=rank)
    others = {path: layer(4, 4, 3, scaling=scaling) for path in "qkvo"}  # more than there are experts
    weights = AdapterWeights(others | found, experts=dict.fromkeys(names, COUNT))
    save_peft(tmp_path / "peft", weights)
    read = load_peft(tmp_path / "peft")
    assert same(read, weights)
    assert wrapped(read) == wrapped(weights)
    config = json.loads((tmp_path / "peft" / CONFIG).read_text())
    assert config["target_modules"] == ["k", "o", "q", "v"]
    assert config["target_parameters"] == list(names)


def test_the_order_of_parameters_belongs_to_the_weights(tmp_path):
    save_peft(tmp_path / "peft", adapter(UP, DOWN))
    config = json.loads((tmp_path / "peft" / CONFIG).read_text())
    (tmp_path / "peft" / CONFIG).write_text(json.dumps(config | {"target_parameters": [DOWN, UP]}))
    with pytest.raises(FormatError, match=r"is not the one that adapter_model\.safetensors was written with"):
        load_peft(tmp_path / "peft")


def test_wrappers_are_nested_the_first_parameter_innermost():
    assert wrapped(adapter(UP, "other.x", DOWN)) == {
        DOWN: "body.mlp",
        "other.x": "other",
        UP: "body.mlp.base_layer",
    }


def edited(folder, **entries):
    """A folder that PEFT wrote, with other entries of its configuration."""
    folder.mkdir()
    source = FOLDER / "peft-experts"
    (folder / WEIGHTS).write_bytes((source / WEIGHTS).read_bytes())
    (folder / CONFIG).write_text(json.dumps(json.loads((source / CONFIG).read_text()) | entries))
    return folder


NAMES = ["layers.0.down_proj", "layers.0.gate_up_proj", "layers.1.down_proj", "layers.1.gate_up_proj", "router.scores"]
DAMAGED = {
    "a parameter that is not named": ({"target_parameters": NAMES[1:]}, FormatError, "target_modules of .* does not name"),
    "a parameter too much": ({"target_parameters": [*NAMES, "router.x"]}, FormatError, "names router.*the file has 1"),
    "another rank": ({"r": 3, "rank_pattern": {"up": 2}}, FormatError, "factors of experts must be"),
    "two ranks": (
        {"rank_pattern": {"layers.0.down_proj": 1}},
        NotSupportedError,
        "which of layers.0.down_proj, layers.0.gate_up_proj has which rank and alpha cannot be told",
    ),
}


@pytest.mark.parametrize("reason", DAMAGED)
def test_damaged_files_are_refused(tmp_path, reason):
    entries, error, message = DAMAGED[reason]
    if reason == "a parameter that is not named":
        entries = {"target_parameters": NAMES[:-1]}
    with pytest.raises(error, match=message):
        load_peft(edited(tmp_path / "a", **entries))


def test_other_factors_of_experts_are_refused(tmp_path):
    folder = edited(tmp_path / "a", lora_bias=True)
    stored = load_safetensors(folder / WEIGHTS)
    save_safetensors(folder / WEIGHTS, stored | {"base_model.model.router.lora_B.bias": np.zeros(2, np.float32)})
    with pytest.raises(NotSupportedError, match=r"router\.lora_B\.bias is not supported for experts"):
        load_peft(folder)


def with_one(**more):
    """Experts of which the last differs."""
    return AdapterWeights(experts(UP) | {f"{UP}.2": layer(*more.pop("sizes", (4, 6)), **more)}, experts={UP: COUNT})


UNWRITABLE = {
    "ranks": (with_one(rank=1), "one rank for all experts, got"),
    "scalings": (with_one(scaling="rslora"), "one scaling for all experts"),
    "sizes": (with_one(sizes=(5, 6)), "one input_size for all experts"),
    "dropout": (with_one(dropout=0.5, rng=0), "dropout"),
    "dropout of all": (adapter(UP, dropout=0.5, rng=0), "PEFT has no dropout for experts"),
    "a magnitude": (
        AdapterWeights(experts(UP), {f"{UP}.{number}": np.ones(6) for number in range(COUNT)}, experts={UP: COUNT}),
        "no adapters with a DoRA magnitude and with experts",
    ),
    "a bias": (AdapterWeights(experts(UP), biases={f"{UP}.0": np.ones(6)}, experts={UP: COUNT}), "a lora_bias and with"),
    "no module": (AdapterWeights(experts("up"), experts={"up": COUNT}), "'up': PEFT adapts parameters only of modules"),
}


@pytest.mark.parametrize("reason", UNWRITABLE)
def test_what_peft_cannot_have_is_named(tmp_path, reason):
    weights, message = UNWRITABLE[reason]
    with pytest.raises(NotSupportedError, match=message):
        save_peft(tmp_path / "peft", weights)
    assert not (tmp_path / "peft").exists()


# ---------------------------------------------------------------- everything else


def test_other_formats_and_models_name_them(tmp_path):
    with pytest.raises(NotSupportedError, match=r"the kohya format cannot hold the experts of 'body\.mlp\.up'$"):
        save_kohya(tmp_path / "x", adapter(UP))
    with pytest.raises(NotSupportedError, match=r"the experts of 'body\.mlp\.down' and 1 more$"):
        save_kohya(tmp_path / "x", adapter(UP, DOWN))
    with pytest.raises(ArgumentError, match="weights must be AdapterWeights"):
        save_kohya(tmp_path / "x", adapter(UP).layers)
    with pytest.raises(NotSupportedError, match=r"'body\.mlp\.up' has experts, which can be merged"):
        applied(Sequential({"q": DenseLayer(4, 4, rng=0)}), adapter(UP))
    with pytest.raises(NotSupportedError, match=r"'body\.mlp\.up', which the adapter changes, is not a layer"):
        renamed(adapter(UP), {})


def test_each_expert_needs_a_layer():
    for count in (0, COUNT + 1):
        with pytest.raises(ArgumentError, match=rf"layers must have a path body\.mlp\.up\.<number>.*there are {count}"):
            AdapterWeights(experts(UP), experts={UP: count})


def test_surgery_keeps_them(tmp_path):
    one, two = adapter(UP), adapter(UP)
    both = combine([one, two], [0.5, 1.0]).result
    assert both.experts == {UP: COUNT}
    np.testing.assert_allclose(both.delta(f"{UP}.1"), 1.5 * one.delta(f"{UP}.1"), rtol=1e-12)
    assert truncate(one, rank=1).experts == {UP: COUNT}
    with pytest.raises(NotSupportedError, match=r"'body\.mlp\.up' has 3 experts in one adapter, and 2 in another"):
        combine([one, adapter(UP, count=2)])
