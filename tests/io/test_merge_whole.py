"""Merging what an adapter has besides factors: replaced, added, tied and untied tensors, rows, biases. Nothing is lost."""

import json

import numpy as np
import pytest

from lora_np import FormatError, LoRALayer, NotSupportedError
from lora_np.factors.weights import AdapterWeights, Rows
from lora_np.io import _verification, merge
from lora_np.io._checkpoint import Checkpoint
from lora_np.io.merge import INDEX, SINGLE, merge_checkpoint, verify_checkpoint
from lora_np.io.safetensors import SafetensorsFile, load_safetensors, save_safetensors
from tests.kinds import batch, randomised

TENSORS = {
    "model.embed_tokens.weight": batch(9, 4),
    "model.q.weight": batch(6, 4, seed=1),
    "model.q.bias": batch(6, seed=2),
    "model.norm.weight": batch(4, seed=3),
    "steps": np.array([3, 4]),
}
FLOATS = [name for name in TENSORS if name != "steps"]
LAYER = randomised(LoRALayer(4, 6, 2, 3.0))
Q = {"model.q": LAYER}
DTYPES = list(merge.PRECISIONS)
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.fixture(params=["file", "shards"])
def form(request):
    return request.param


@pytest.fixture
def base(tmp_path, form):
    return write(tmp_path / "base", form)


def write(folder, form, dtype="F64", tensors=TENSORS):
    folder.mkdir()
    dtypes = {name: dtype for name in tensors if tensors[name].dtype.kind == "f"}
    if form == "file":
        save_safetensors(folder / SINGLE, tensors, dtypes=dtypes)
        return folder / SINGLE
    places = {name: SHARDS[position % 2] for position, name in enumerate(tensors)}
    for file in SHARDS:
        part = {name: array for name, array in tensors.items() if places[name] == file}
        save_safetensors(folder / file, part, dtypes={name: dtypes[name] for name in part if name in dtypes})
    size = sum(array.nbytes for array in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": places}))
    return folder


def merged(base, weights, **options):
    """The tensors of the verified result, and what changed."""
    output = base.parent / "merged.safetensors" if base.name == SINGLE else base.parent / "merged"
    changed = {tensor.key: tensor for tensor in merge_checkpoint(base, weights, output, **options)}
    verified = {tensor.key: tensor for tensor in verify_checkpoint(base, weights, output, **options)}
    assert set(verified) == set(changed)
    for tensor in verified.values():
        assert tensor.error <= 4 * tensor.precision + (tensor.rank > 0) * 1e-6
    files = [output] if base.name == SINGLE else [output / name for name in SHARDS]
    tensors = {}
    for file in files:
        tensors |= load_safetensors(file)
    if base.name != SINGLE:
        index = json.loads((output / INDEX).read_text())
        assert index["weight_map"].keys() == tensors.keys()
        assert all(name in load_safetensors(output / place) for name, place in index["weight_map"].items())
        assert index["metadata"]["total_size"] == sum(array.nbytes for array in tensors.values())
    unchanged = [name for name in TENSORS if name not in changed]
    assert all(np.array_equal(tensors[name], TENSORS[name]) for name in unchanged)
    return tensors, changed


def test_a_whole_tensor_replaces_that_of_the_base(base):
    norm = batch(4, seed=9)
    tensors, changed = merged(base, AdapterWeights(Q, whole={"model.norm.weight": norm}))
    assert np.array_equal(tensors["model.norm.weight"], norm)
    assert {key: tensor.change for key, tensor in changed.items()} == {
        "model.q.weight": "low-rank",
        "model.norm.weight": "replaced",
    }


def test_integers_are_replaced_by_integers(base):
    tensors, changed = merged(base, AdapterWeights(Q, whole={"steps": np.array([7, 8])}))
    assert tensors["steps"].tolist() == [7, 8]
    assert changed["steps"].precision == 0


def test_only_factors_have_a_rank(base):
    weights = AdapterWeights(Q, whole={"steps": np.array([7, 8])}, biases={"model.q": batch(6)})
    ranks = {key: tensor.rank for key, tensor in merged(base, weights)[1].items()}
    assert ranks == {"model.q.weight": 2, "model.q.bias": 0, "steps": 0}


def test_the_only_row_of_a_table_is_replaced(tmp_path):
    base, rows = write(tmp_path / "base", "file", tensors=TENSORS | {"table": batch(1, 4)}), batch(1, 4, seed=9)
    assert np.array_equal(merged(base, AdapterWeights(Q, rows={"table": Rows.of([0], rows)}))[0]["table"], rows)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_whole_tensor_takes_the_dtype_of_the_base(tmp_path, dtype):
    base, norm, output = write(tmp_path / "base", "file", dtype), batch(4, seed=9), tmp_path / "merged.safetensors"
    merge_checkpoint(base, AdapterWeights(Q, whole={"model.norm.weight": norm}), output)
    with SafetensorsFile(output) as file:
        assert file.info("model.norm.weight").dtype == dtype
        assert np.abs(file["model.norm.weight"] - norm).max() <= merge.PRECISIONS[dtype] * np.abs(norm).max()


def test_a_change_is_added_to_a_whole_tensor(base):
    whole = batch(6, 4, seed=9)
    tensors, changed = merged(base, AdapterWeights(Q, whole={"model.q.weight": whole}))
    assert np.allclose(tensors["model.q.weight"], whole + LAYER.merge_weights().T, rtol=0, atol=1e-14)
    assert changed["model.q.weight"].change == "replaced + low-rank"


def test_a_change_is_added_to_a_new_tensor(base):
    whole, layer = batch(3, 4), randomised(LoRALayer(4, 3, 2))
    weights = AdapterWeights(Q | {"head": layer}, whole={"head.weight": whole}, config={"modules_to_save": ["head"]})
    tensors, changed = merged(base, weights)
    np.testing.assert_allclose(tensors["head.weight"], whole + layer.merge_weights().T, rtol=0, atol=1e-14)
    assert (changed["head.weight"].change, changed["head.weight"].rank) == ("added + low-rank", 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_head_that_the_base_lacks_is_added(base, dtype):
    head = {"classifier.weight": batch(3, 4).astype(dtype), "classifier.bias": batch(3).astype(dtype)}
    tensors, changed = merged(base, AdapterWeights(Q, whole=head))
    for name, array in head.items():
        assert tensors[name].dtype == dtype
        assert np.array_equal(tensors[name], array)
        assert changed[name].change == "added"
        assert changed[name].error is None


def test_a_table_may_grow(base):
    table = batch(12, 4, seed=9)
    tensors, _ = merged(base, AdapterWeights(Q, whole={"model.embed_tokens.weight": table}))
    assert np.array_equal(tensors["model.embed_tokens.weight"], table)


@pytest.mark.parametrize("window", [1, 9, 1000])
def test_rows_are_replaced(base, monkeypatch, window):
    monkeypatch.setattr(merge, "WINDOW", window)
    monkeypatch.setattr(merge, "PIECE", window)
    monkeypatch.setattr(_verification, "PIECE", window)
    rows = Rows.of([8, 0, 3], batch(3, 4, seed=9))
    tensors, changed = merged(base, AdapterWeights(Q, rows={"model.embed_tokens.weight": rows}))
    table = TENSORS["model.embed_tokens.weight"].copy()
    table[rows.indices] = rows.values
    assert np.array_equal(tensors["model.embed_tokens.weight"], table)
    assert changed["model.embed_tokens.weight"].change == "rows"


def test_a_bias_is_added_to_that_of_the_base(base):
    change = batch(6, seed=9)
    tensors, changed = merged(base, AdapterWeights(Q, biases={"model.q": change}))
    assert np.allclose(tensors["model.q.bias"], TENSORS["model.q.bias"] + 1.5 * change, rtol=0, atol=1e-14)
    assert changed["model.q.bias"].change == "bias"


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
def test_an_embedding_is_a_table(base, fan_in_fan_out):
    layer = randomised(LoRALayer(9, 4, 2))
    weights = AdapterWeights({"model.embed_tokens": layer}, embeddings=frozenset({"model.embed_tokens"}))
    tensors, _ = merged(base, weights, fan_in_fan_out=fan_in_fan_out)
    wanted = TENSORS["model.embed_tokens.weight"] + layer.merge_weights()
    assert np.allclose(tensors["model.embed_tokens.weight"], wanted, rtol=0, atol=1e-14)


def test_subtracting_undoes_changes_of_weights_and_biases(base):
    weights = AdapterWeights(
        Q | {"model.embed_tokens": randomised(LoRALayer(9, 4, 2))},
        biases={"model.q": batch(6)},
        embeddings=frozenset({"model.embed_tokens"}),
    )
    output, undone = base.parent / "merged", base.parent / "undone"
    merge_checkpoint(base, weights, output)
    merge_checkpoint(output, weights, undone, subtract=True)
    for file in [undone] if base.name == SINGLE else [undone / name for name in SHARDS]:
        for name, array in load_safetensors(file).items():
            assert np.allclose(array, TENSORS[name], rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", ["whole", "rows"])
def test_what_was_replaced_cannot_be_subtracted(tmp_path, base, kind):
    parts = {"whole": batch(9, 4), "rows": Rows.of([1], batch(1, 4))}
    weights = AdapterWeights(Q, **{kind: {"model.embed_tokens.weight": parts[kind]}})
    with pytest.raises(NotSupportedError, match=r"model\.embed_tokens\.weight cannot be subtracted: .* drop="):
        merge_checkpoint(base, weights, tmp_path / "undone", subtract=True)
    assert not (tmp_path / "undone").exists()


# ---------------------------------------------------------------- tied heads

HEAD = randomised(LoRALayer(4, 9, 2))


@pytest.mark.parametrize(
    "weights", [AdapterWeights({"lm_head": HEAD}), AdapterWeights(Q, whole={"lm_head.weight": batch(9, 4)})]
)
def test_a_change_of_a_tied_head_is_refused(tmp_path, base, weights):
    with pytest.raises(FormatError, match=r"the base ties lm_head\.weight to model\.embed_tokens\.weight, .* untie=True"):
        merge_checkpoint(base, weights, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    with pytest.raises(FormatError, match=r"the base ties lm_head\.weight"):
        verify_checkpoint(base, weights, base)


def test_an_untied_head_starts_from_the_embedding(base):
    rows = Rows.of([0], batch(1, 4))
    weights = AdapterWeights({"lm_head": HEAD}, rows={"model.embed_tokens.weight": rows})
    tensors, changed = merged(base, weights, untie=True)
    wanted = TENSORS["model.embed_tokens.weight"] + HEAD.merge_weights().T
    assert np.allclose(tensors["lm_head.weight"], wanted, rtol=0, atol=1e-14)
    assert set(changed) == {"lm_head.weight", "model.embed_tokens.weight"}


def test_a_whole_untied_head(base):
    head = batch(9, 4, seed=9)
    tensors, _ = merged(base, AdapterWeights(Q, whole={"lm_head.weight": head}), untie=True)
    assert np.array_equal(tensors["lm_head.weight"], head)


def test_a_tied_pair_stays_one(base):
    table = batch(9, 4, seed=9)
    whole = {"lm_head.weight": table, "model.embed_tokens.weight": table.copy()}
    tensors, _ = merged(base, AdapterWeights(Q, whole=whole))
    assert np.array_equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    with pytest.raises(FormatError, match="the base ties"):
        merged(base, AdapterWeights(Q, whole=whole | {"lm_head.weight": table + 1}))


TABLE = "model.embed_tokens.weight"
CAUSAL = {"task_type": "CAUSAL_LM"}
CHANGES_OF_THE_TABLE = {
    "whole": {"layers": Q, "whole": {TABLE: batch(9, 4, seed=9)}},
    "low-rank": {"layers": {TABLE[:-7]: randomised(LoRALayer(9, 4, 2))}, "embeddings": frozenset({TABLE[:-7]})},
}


@pytest.mark.parametrize("kind", CHANGES_OF_THE_TABLE)
def test_the_head_does_not_follow_a_change_of_the_embedding(base, kind):
    weights = AdapterWeights(**CHANGES_OF_THE_TABLE[kind], config=CAUSAL)
    with pytest.raises(FormatError, match=r"the base uses model\.embed_tokens\.weight as its output head too.* untie=True"):
        merged(base, weights)
    tensors, changed = merged(base, weights, untie=True)
    assert np.array_equal(tensors["lm_head.weight"], TENSORS[TABLE])
    assert not np.array_equal(tensors[TABLE], TENSORS[TABLE])
    assert changed["lm_head.weight"].change == "untied"


ARCHITECTURES = {"LlamaForCausalLM": True, "GPT2LMHeadModel": True, "LlamaForSequenceClassification": False}


@pytest.mark.parametrize(("architecture", "is_tied"), ARCHITECTURES.items())
def test_the_base_says_whether_it_has_a_head(base, architecture, is_tied):
    folder = base if base.is_dir() else base.parent
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    weights = AdapterWeights(**CHANGES_OF_THE_TABLE["whole"])
    if is_tied:
        with pytest.raises(FormatError, match="as its output head too"):
            merged(base, weights)
    else:
        assert TABLE in merged(base, weights)[1]


def test_rows_of_tokens_change_a_tied_head_too(base):
    rows = {TABLE: Rows.of([1], batch(1, 4))}
    _, changed = merged(base, AdapterWeights(Q, rows=rows, config=CAUSAL))
    assert set(changed) == {TABLE, "model.q.weight"}


# ---------------------------------------------------------------- prefixes


def named(key):
    """The name in a classifier of a tensor of the base, which is a body without a prefix."""
    return f"bert.{key}"


@pytest.mark.parametrize("more", [True, False])
def test_the_base_may_have_a_prefix_more_or_less(tmp_path, more):
    body = {key.removeprefix("model."): array for key, array in TENSORS.items()}
    inside = {named(key): array for key, array in body.items()}
    parts = {
        "whole": {"norm.weight": batch(4, seed=9), "classifier.bias": batch(3)},
        "rows": {"embed_tokens.weight": Rows.of([1], batch(1, 4))},
    }
    if more:
        base, paths = write(tmp_path / "base", "file", tensors=inside), ("q",)
    else:
        base, paths = write(tmp_path / "base", "file", tensors=body), ("bert.q",)
        parts = {
            kind: {key if key.startswith("classifier") else named(key): value for key, value in tensors.items()}
            for kind, tensors in parts.items()
        }
    weights = AdapterWeights({paths[0]: LAYER}, biases={paths[0]: batch(6)}, **parts)
    output = tmp_path / "merged.safetensors"
    changed = {tensor.key for tensor in merge_checkpoint(base, weights, output)}
    names = {"q.weight", "q.bias", "norm.weight", "embed_tokens.weight"}
    assert changed == {named(key) if more else key for key in names} | {"classifier.bias"}
    assert {tensor.key for tensor in verify_checkpoint(base, weights, output)} == changed
    before = inside if more else body
    q = named("q.weight") if more else "q.weight"
    assert np.allclose(load_safetensors(output)[q], before[q] + LAYER.merge_weights().T, rtol=0, atol=1e-14)


def test_names_of_the_base_need_no_prefix(tmp_path):
    base = write(tmp_path / "base", "file", tensors={"x.q.weight": batch(6, 4), "x.x.q.weight": batch(6, 4)})
    changed = merge_checkpoint(base, AdapterWeights({"x.q": LAYER}), tmp_path / "merged")
    assert [tensor.key for tensor in changed] == ["x.q.weight"]


def test_a_prefix_counts_only_if_all_layers_are_there(tmp_path, base):
    weights = AdapterWeights({"x.model.q": LAYER, "x.model.none": LAYER})
    with pytest.raises(FormatError, match=r"missing tensor 'x\.model\.q\.weight'"):
        merge_checkpoint(base, weights, tmp_path / "merged")


# ---------------------------------------------------------------- what does not fit

REJECTED = {
    "no bias": (
        AdapterWeights({"model.norm": LAYER}, biases={"model.norm": batch(6)}),
        r"norm\.weight must have shape \(6, 4\)",
    ),
    "a bias that the base lacks": (
        AdapterWeights({"model.embed_tokens": LoRALayer(4, 9, 1)}, biases={"model.embed_tokens": batch(9)}),
        r"missing tensor 'model\.embed_tokens\.bias'",
    ),
    "a bias of another size": (
        AdapterWeights(Q, biases={"model.q": batch(5)}),
        r"q\.bias must have shape \(5,\).* got \(6,\)",
    ),
    "rows that the base lacks": (AdapterWeights(Q, rows={"table": Rows.of([0], batch(1, 4))}), "missing tensor 'table'"),
    "rows beyond the table": (
        AdapterWeights(Q, rows={"model.embed_tokens.weight": Rows.of([9], batch(1, 4))}),
        r"embed_tokens\.weight has no row 9 of 4 elements",
    ),
    "rows of another width": (
        AdapterWeights(Q, rows={"model.embed_tokens.weight": Rows.of([0], batch(1, 5))}),
        r"embed_tokens\.weight has no row 0 of 5 elements",
    ),
    "rows of a vector": (
        AdapterWeights(Q, rows={"model.norm.weight": Rows.of([0], batch(1, 4))}),
        r"norm\.weight has no row 0 of 4",
    ),
    "a whole integer for floats": (
        AdapterWeights(Q, whole={"model.norm.weight": np.arange(4)}),
        r"norm\.weight is F64 .* int64",
    ),
    "whole floats for an integer": (AdapterWeights(Q, whole={"steps": batch(2)}), r"steps is I64 .* float64"),
    "another number of axes": (AdapterWeights(Q, whole={"model.norm.weight": batch(4, 1)}), r"norm\.weight is .* \(4, 1\)"),
    "a whole weight of another shape": (
        AdapterWeights(Q, whole={"model.q.weight": batch(5, 4)}),
        r"q\.weight must have shape",
    ),
    "a stranger": (
        AdapterWeights(Q, config={"modules_to_save": ["head"]}, whole={"heads.weight": batch(3)}),
        r"missing tensor 'heads\.weight', .* modules_to_save does not name; drop=",
    ),
}


@pytest.mark.parametrize("reason", REJECTED)
def test_what_does_not_fit_is_named(tmp_path, base, reason):
    weights, message = REJECTED[reason]
    with pytest.raises(FormatError, match=message):
        merge_checkpoint(base, weights, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


ALL = AdapterWeights(
    Q,
    whole={"model.norm.weight": batch(4, seed=9), "head.weight": batch(3)},
    rows={"model.embed_tokens.weight": Rows.of([2], batch(1, 4))},
    biases={"model.q": batch(6)},
)


@pytest.mark.parametrize("key", ["model.norm.weight", "head.weight", "model.embed_tokens.weight", "model.q.bias"])
def test_verification_compares_every_tensor(tmp_path, key):
    base, output = write(tmp_path / "base", "file"), tmp_path / "merged.safetensors"
    merge_checkpoint(base, ALL, output)
    tensors = load_safetensors(output)
    save_safetensors(output, tensors | {key: tensors[key] + 1e-3})
    errors = {tensor.key: tensor.error for tensor in verify_checkpoint(base, ALL, output)}
    assert {name for name, error in errors.items() if error > 1e-9} == {key}


def test_verification_misses_an_added_tensor(tmp_path):
    base, output = write(tmp_path / "base", "file"), tmp_path / "merged.safetensors"
    merge_checkpoint(base, ALL, output)
    tensors = load_safetensors(output)
    save_safetensors(output, {name: array for name, array in tensors.items() if name != "head.weight"})
    with pytest.raises(FormatError, match=r"head\.weight is missing"):
        verify_checkpoint(base, ALL, output)


def test_verification_reads_the_index(tmp_path):
    base, output = write(tmp_path / "base", "shards"), tmp_path / "merged"
    merge_checkpoint(base, ALL, output)
    (output / INDEX).write_bytes((base / INDEX).read_bytes())
    with pytest.raises(FormatError, match=r"does not name the file of head\.weight"):
        verify_checkpoint(base, ALL, output)


def test_two_shards_with_the_same_tensor_are_refused(tmp_path):
    base = write(tmp_path / "base", "shards")
    for name in SHARDS:
        save_safetensors(base / name, load_safetensors(base / name) | {"twice": np.ones(1)})
    with pytest.raises(FormatError, match="the tensor 'twice' occurs twice"):
        merge_checkpoint(base, ALL, tmp_path / "merged")


def test_a_low_rank_change_is_added_to_replaced_rows(base):
    rows = Rows.of([2, 5], batch(2, 4, seed=9))
    table, change = TENSORS["model.embed_tokens.weight"].copy(), randomised(LoRALayer(9, 4, 2, 3.0))
    weights = AdapterWeights(
        {"model.embed_tokens": change},
        rows={"model.embed_tokens.weight": rows},
        embeddings=frozenset({"model.embed_tokens"}),
    )
    tensors, changed = merged(base, weights)
    table[[2, 5]] = rows.values
    np.testing.assert_allclose(tensors["model.embed_tokens.weight"], table + change.merge_weights(), rtol=1e-14)
    assert set(changed) == {"model.embed_tokens.weight"}


def test_an_index_without_a_total_size_gets_none(tmp_path):
    base = write(tmp_path / "base", "shards")
    index = json.loads((base / INDEX).read_text())
    (base / INDEX).write_text(json.dumps({"weight_map": index["weight_map"]}))
    head = AdapterWeights({}, config={"modules_to_save": ["tête"]}, whole={"tête.weight": batch(3, 4)})
    merge_checkpoint(base, head, tmp_path / "merged")
    written = (tmp_path / "merged" / INDEX).read_text(encoding="utf-8")
    assert set(json.loads(written)) == {"weight_map"}
    assert written == json.dumps(json.loads(written), indent=2, ensure_ascii=False) + "\n"


def test_a_checkpoint_is_a_mapping(base):
    with Checkpoint(base) as checkpoint:
        assert len(checkpoint) == len(TENSORS)
        assert set(checkpoint) == set(TENSORS)
