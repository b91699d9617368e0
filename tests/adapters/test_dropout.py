"""Dropout on the input of the branch: masks follow from the run, and inference is unaffected."""

import copy
import io
import pickle
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import (
    SGD,
    Adam,
    ArgumentError,
    DenseLayer,
    DoRAAdapter,
    DyLoRAAdapter,
    FormatError,
    InvalidOperationError,
    LoRALayer,
    MeanSquaredError,
    MultiLoRAAdapter,
    NotSupportedError,
    Run,
    Sequential,
    StandardLoRAAdapter,
    VeRAAdapter,
    VeRALayer,
    apply_lora,
    at_rank,
    fit,
    load_layer,
)
from lora_np.distributed import fit_shards
from lora_np.factors.weights import AdapterWeights, extract
from lora_np.io import apply_peft, load_mlx, load_peft, save_mlx, save_peft
from lora_np.run import TRAINING
from lora_np.surgery import truncate
from lora_np.testing import gradient_errors
from tests.kinds import BASES, IN, OUT, batch, bits, randomised, snapshot
from tests.strategies import seeds


def multilora(base, rank, alpha=-1.0, frozen=True, *, dropout=0.0, rng=None):
    """Tasks with dropout, with more of it, and without."""
    adapter = MultiLoRAAdapter(base, "some", rank, alpha, frozen, dropout=dropout, rng=rng)
    adapter.add_task("more", 1, dropout=(1 + dropout) / 2 if dropout else 0.0)
    adapter.add_task("none", rank)
    return adapter


KINDS = {
    "standard": StandardLoRAAdapter,
    "dylora": lambda base, rank, *rest, **options: DyLoRAAdapter(base, rank, list(range(1, rank + 1)), *rest, **options),
    "multilora": multilora,
    "dora": DoRAAdapter,
    "vera": VeRAAdapter,
}
kinds = pytest.mark.parametrize("kind", KINDS)


def adapter(kind, dropout=0.4, frozen=True, base="dense", dtype=np.float64, rng=0):
    return randomised(KINDS[kind](BASES[base](IN, OUT, dtype=dtype, rng=0), 3, 2.0, frozen, dropout=dropout, rng=rng))


@kinds
@given(
    seed=seeds,
    dropout=st.sampled_from([0.1, 0.5, 0.9]),
    leading=st.sampled_from([(), (1,), (4,), (3, 2)]),
    frozen=st.booleans(),
    base=st.sampled_from(list(BASES)),
)
def test_gradients_with_the_mask_held(kind, seed, dropout, leading, frozen, base):
    errors = gradient_errors(
        adapter(kind, dropout, frozen, base), batch(*leading, IN, seed=seed), training=True, method="complex", rng=seed
    )
    assert max(error for error in errors.values() if not np.isnan(error)) < 1e-11


@given(seed=seeds, tasks=st.lists(st.sampled_from(["some", "more", "none", None]), min_size=1, max_size=6))
def test_gradients_of_mixed_batches(seed, tasks):
    layer = adapter("multilora", frozen=False)
    errors = gradient_errors(
        layer, batch(len(tasks), 2, IN, seed=seed), training=True, tasks=tasks, method="complex", rng=seed
    )
    assert max(error for error in errors.values() if not np.isnan(error)) < 1e-11


@kinds
def test_a_pass_is_a_function_of_the_run(kind):
    layer, x = adapter(kind), batch(7, IN)
    run = layer.new_run(x, training=True)
    y, _ = layer.apply(x, run)
    layer.forward(x)  # another pass in between
    for again, same in ((layer, run), (pickle.loads(pickle.dumps(layer)), pickle.loads(pickle.dumps(run)))):
        assert_array_equal(again.apply(x, same)[0], y)
    assert_array_equal(copy.deepcopy(layer).apply(x, run)[0], y)


@kinds
def test_equal_seeds_draw_equal_passes_and_no_two_passes_are_equal(kind):
    x = batch(7, IN)
    rank = {"rank": 3} if kind == "dylora" else {}
    one, other = adapter(kind), adapter(kind)
    outputs = [one.forward(x, **rank) for _ in range(3)]
    assert len({y.tobytes() for y in outputs}) == 3
    for y in outputs:
        assert_array_equal(other.forward(x, **rank), y)


@kinds
def test_inference_is_that_without_dropout(kind):
    layer, plain, x = adapter(kind), adapter(kind, 0.0), batch(7, IN)
    expected = plain.predict(x)
    assert_array_equal(layer.predict(x), expected)
    assert_array_equal(layer.eval().forward(x), expected)
    if kind != "multilora":
        assert_array_equal(layer.merge_to_original_layer().weight, plain.merge_to_original_layer().weight)


@kinds
def test_dropout_leaves_the_initial_factors_alone(kind):
    build = partial(KINDS[kind], DenseLayer(IN, OUT, rng=0), 2)
    assert_array_equal(build(dropout=0.3, rng=5).lora_layer.merge_weights(), build(rng=5).lora_layer.merge_weights())
    first = next(iter(build(rng=5).lora_layer.named_parameters(frozen=True).values()))
    assert_array_equal(next(iter(build(dropout=0.3, rng=5).lora_layer.named_parameters(frozen=True).values())), first)


@kinds
def test_without_dropout_nothing_is_drawn_and_nothing_is_kept(kind):
    layer, x = adapter(kind, 0.0), batch(7, IN)
    assert layer.new_run(x, training=True).seed is None
    assert "dropout" not in repr(layer)
    assert "dropout" not in str(layer.lora_layer.config())
    assert not layer.lora_layer.settings
    if kind in ("standard", "dora", "vera"):
        assert layer.new_run(x, training=True) is TRAINING


def held(layer, x, run):
    """The factor of each element of the input in a pass of a branch, read from the gradient of the input."""
    _, cache = layer.apply(x, run)
    return cache.mask.kept * cache.mask.scale


def test_an_example_worked_by_hand():
    branch = LoRALayer.from_factors([[1.0], [2.0], [0.0]], [[3.0, -1.0]], alpha=2, dropout=0.5, rng=3)
    x, run = np.array([[1.0, 1, 1]]), Run(training=True, seed=(0, 5))
    M = held(branch, x, run)
    assert_array_equal(M, [[2, 0, 2]])  # each kept element is doubled
    y, cache = branch.apply(x, run)
    assert_array_equal(y, [[12, -4]])  # h = 2 (2·1) = 4
    dx, gradients = branch.vjp(np.array([[1.0, 1]]), cache)
    assert_array_equal(dx, [[8, 0, 0]])  # dh Aᵀ = (4, 8, 0), times M
    assert_array_equal(gradients["matrix_a"], [[8], [0], [8]])
    assert_array_equal(gradients["matrix_b"], [[4, 4]])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.75])
def test_elements_are_dropped_with_the_given_probability_and_kept_ones_are_scaled(dropout, dtype):
    branch = LoRALayer(100, 2, 1, dropout=dropout, dtype=dtype, rng=0)
    x = np.ones((1000, 100), dtype)
    (dropped, mask), kept = branch.dropped(x, Run(training=True, seed=(1, 1))), 1 - dropout
    assert dropped.dtype == dtype
    assert_array_equal(np.unique(dropped), np.array([0, 1 / kept], dtype))
    assert abs(mask.kept.mean() - kept) < 5 * np.sqrt(dropout * kept / x.size)
    for axis in (0, 1):  # neither rows nor columns are dropped together
        means = mask.kept.mean(axis=axis)
        assert abs(means.std() - np.sqrt(dropout * kept / x.shape[axis])) < 0.3 * np.sqrt(dropout * kept / x.shape[axis])


def test_layers_of_a_model_have_different_masks():
    branches = [adapter("standard", rng=seed).lora_layer for seed in range(2)]
    model = Sequential([StandardLoRAAdapter.around(DenseLayer(IN, OUT, rng=0), each) for each in branches[:1]])
    x = batch(50, IN)
    run = model.new_run(x, training=True)
    first, second = (held(branch, x, run) for branch in branches)
    assert 0.2 < (first != second).mean() < 0.8


def test_one_seed_serves_a_whole_model_and_is_drawn_by_the_first_layer_with_dropout():
    base = Sequential([DenseLayer(IN, IN, rng=seed) for seed in range(3)])
    model = apply_lora(base, StandardLoRAAdapter, rank=2, dropout=0.5, rng=0)
    states = [layer.lora_layer.dropout_state for layer in model.children().values()]
    run = model.new_run(batch(4, IN), training=True)
    assert run.seed == (states[0][0], 1)
    after = [layer.lora_layer.dropout_state for layer in model.children().values()]
    assert after == [(states[0][0], 1), *states[1:]]
    assert len({key for key, _ in states}) == 3


def test_a_branch_alone_drops_its_input_too():
    branch = randomised(LoRALayer(IN, OUT, 2, dropout=0.5, rng=0))
    x = batch(20, IN)
    assert not np.array_equal(branch.forward(x), branch.predict(x))
    vera = randomised(VeRALayer(IN, OUT, 2, dropout=0.5, rng=0))
    assert not np.array_equal(vera.forward(x), vera.predict(x))


def test_dora_drops_the_input_of_the_change_of_the_weight():
    layer, x = adapter("dora"), batch(6, IN)
    run = layer.new_run(x, training=True)
    y, cache = layer.apply(x, run)
    dropped = x * cache.lora.mask.kept * cache.lora.mask.scale
    W = layer.base_layer.matrix
    assert_allclose(y, layer.base_layer.predict(x) + dropped @ (layer.merge_to_original_layer().matrix - W), rtol=1e-12)


def test_each_row_of_a_mixed_batch_is_masked_with_the_probability_of_its_task():
    layer = MultiLoRAAdapter(DenseLayer(200, 3, rng=0), "some", 1, dropout=0.25, rng=0)
    layer.add_task("more", 1, dropout=0.75)
    layer.add_task("none", 1)
    tasks = ["more", "none", "some", None] * 100
    x = np.ones((len(tasks), 200))
    run = layer.new_run(x, tasks=tasks, training=True)
    mask = layer.apply(x, run)[1].branch_cache.mask
    of_rows = (mask.kept * mask.scale).reshape(100, 4, -1)
    for place, dropout in enumerate((0.75, 0.0, 0.25, 0.0)):
        values = np.unique(of_rows[:, place])
        assert_allclose(values, [0, 1 / (1 - dropout)] if dropout else [1])
        assert abs((of_rows[:, place] == 0).mean() - dropout) < 0.02


def test_tasks_without_dropout_take_no_mask():
    layer, x = adapter("multilora"), batch(4, IN)
    expected = layer.predict(x, tasks=["none", None, "none", None])
    assert_array_equal(layer.forward(x, tasks=["none", None, "none", None]), expected)
    for task in ("some", "more"):
        layer.remove_task(task)
    assert layer.new_run(x, training=True).seed is None


@kinds
def test_files_keep_dropout_and_the_masks_to_come(kind):
    layer, x = adapter(kind), batch(7, IN)
    layer.forward(x, **({"rank": 3} if kind == "dylora" else {}))
    file = io.BytesIO()
    layer.serialize(file)
    twin = adapter(kind, rng=9)
    for restored in (load_layer(io.BytesIO(file.getvalue())), twin):
        if restored is twin:
            twin.deserialize(io.BytesIO(file.getvalue()))
        assert restored.lora_layer.dropout == 0.4
        rank = {"rank": 3} if kind == "dylora" else {}
        same = copy.deepcopy(layer)
        assert_array_equal(restored.forward(x, **rank), same.forward(x, **rank))
    with pytest.raises(FormatError, match="dropout"):
        adapter(kind, 0.0).deserialize(io.BytesIO(file.getvalue()))


@kinds
@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan"), "half", None])
def test_refused_probabilities(kind, dropout):
    with pytest.raises(ArgumentError, match="dropout must"):
        adapter(kind, dropout)


def test_a_refused_task_is_not_added():
    layer = adapter("multilora")
    with pytest.raises(ArgumentError, match=r"dropout must lie in \[0, 1\), got 1"):
        layer.add_task("new", 1, dropout=1)
    assert "new" not in layer


@pytest.mark.parametrize(
    "state", [None, "12", 3, (1,), (1, 2, 3), (1, -1), (-1, 1), (2**62, 0), (0, 2**62), (1.5, 2), (True, 0)]
)
def test_refused_states(state):
    branch = adapter("standard").lora_layer
    before = branch.dropout_state
    with pytest.raises(ArgumentError, match="dropout_state must be "):
        branch.dropout_state = state
    assert branch.dropout_state == before


def test_only_layers_with_dropout_have_a_state():
    branch = adapter("standard", 0.0).lora_layer
    with pytest.raises(ArgumentError, match="requires dropout"):
        branch.dropout_state = 1, 2
    with pytest.raises(AttributeError):
        branch.dropout = 0.5


@kinds
def test_a_training_pass_needs_a_seed(kind):
    layer = adapter(kind)
    run = Run(training=True, rank=2 if kind == "dylora" else None)
    with pytest.raises(InvalidOperationError, match="needs a seed; `new_run` draws one"):
        layer.apply(batch(2, IN), run)


@kinds
def test_a_refused_pass_draws_nothing(kind):
    layer = adapter(kind)
    before = snapshot(layer)
    for options in ({"tasks": ["unknown"]}, {"rank": 9}):
        with pytest.raises(ArgumentError):
            layer.forward(batch(1, IN), **options)
    assert snapshot(layer) == before


def test_smaller_ranks_keep_the_dropout():
    layer = adapter("dylora")
    assert at_rank(layer, 2).dropout == truncate(layer.lora_layer, rank=1).dropout == 0.4
    assert truncate(layer, rank=2).lora_layer.dropout == 0.4


# ---------------------------------------------------------------- files of adapters


def model_of(kind, dropout=0.25):
    base = Sequential({"up": DenseLayer(IN, 4, rng=0), "down": DenseLayer(4, OUT, rng=1)})
    choices = {"max_rank": 3, "active_ranks": [1, 3]} if kind is DyLoRAAdapter else {"rank": 2}
    return base, randomised(apply_lora(base, kind, **choices, dropout=dropout, rng=0))


def dropouts(model):
    return {path: layer.dropout for path, layer in model.walk().items() if path.endswith("lora")}


@pytest.mark.parametrize("kind", [StandardLoRAAdapter, DyLoRAAdapter, DoRAAdapter, VeRAAdapter])
def test_peft_folders_keep_it(tmp_path, kind):
    base, model = model_of(kind)
    if kind is VeRAAdapter:  # the layers of PEFT's share their projections
        first, second = (layer.lora_layer for layer in model.children().values())
        first.projection_a, first.projection_b = batch(IN, 2), batch(2, 4)
        second.projection_a, second.projection_b = first.projection_a[:4], first.projection_b[:, :OUT]
    save_peft(tmp_path, model)
    entry = '"vera_dropout": 0.25' if kind is VeRAAdapter else '"lora_dropout": 0.25'
    assert entry in (tmp_path / "adapter_config.json").read_text()
    one, other = apply_peft(base, tmp_path), apply_peft(base, tmp_path)
    assert dropouts(one) == dropouts(model) == {"up.lora": 0.25, "down.lora": 0.25}
    assert [layer.dropout for layer in load_peft(tmp_path).layers.values()] == [0.25, 0.25]
    x = batch(4, IN)
    assert_array_equal(
        one.forward(x, **({"rank": 3} if kind is DyLoRAAdapter else {})),
        other.forward(x, **({"rank": 3} if kind is DyLoRAAdapter else {})),
    )  # the masks follow from the paths
    states = [layer.dropout_state for path, layer in one.walk().items() if path.endswith("lora")]
    assert states[0][0] != states[1][0]


def test_tasks_of_peft_have_separate_ones(tmp_path):
    base, model = model_of(StandardLoRAAdapter)
    save_peft(tmp_path / "a", model)
    save_peft(tmp_path / "b", model_of(StandardLoRAAdapter, 0.0)[1])
    tasks = apply_peft(base, {"a": tmp_path / "a", "b": tmp_path / "b"}).children()["up"].task_adapters
    assert (tasks["a"].dropout, tasks["b"].dropout) == (0.25, 0.0)


@pytest.mark.parametrize("value", [1.0, -0.5, "0.1", True])
def test_a_folder_with_an_invalid_one_is_refused(tmp_path, value):
    save_peft(tmp_path, model_of(StandardLoRAAdapter)[1], config={"lora_dropout": value})
    with pytest.raises(FormatError, match="lora_dropout must be a number from 0 to below 1"):
        load_peft(tmp_path)


@pytest.mark.parametrize("save", [save_peft, save_mlx])
def test_formats_with_one_dropout_refuse_two(tmp_path, save):
    layers = {"a": LoRALayer(4, 4, 1, dropout=0.1, rng=0), "b": LoRALayer(4, 4, 1, rng=0)}
    with pytest.raises(NotSupportedError, match=r"one dropout.*'a' has 0.1 and 'b' 0"):
        save(tmp_path / "folder", AdapterWeights(layers))
    assert not (tmp_path / "folder").exists()


def test_mlx_folders_keep_it(tmp_path):
    save_mlx(tmp_path, extract(model_of(StandardLoRAAdapter)[1]))
    assert [layer.dropout for layer in load_mlx(tmp_path).layers.values()] == [0.25, 0.25]


# ---------------------------------------------------------------- training


def shard(seed, rows=6):
    random = np.random.default_rng(seed)
    return random.normal(size=(rows, IN)), random.normal(size=(rows, OUT))


@kinds
def test_training_on_a_single_shard_is_fit(kind):
    models = [adapter(kind), adapter(kind)]
    histories = [
        fit(models[0], shard(0), MeanSquaredError(), Adam(0.01), 2, 3, rng=4),
        fit_shards(models[1], [partial(shard, 0)], MeanSquaredError(), Adam(0.01), 2, 3, rng=4),
    ]
    assert histories[0] == histories[1]
    assert bits(models[0].named_parameters()) == bits(models[1].named_parameters())
    assert models[0].lora_layer.dropout_state[1] == models[1].lora_layer.dropout_state[1] == 4


def test_shards_of_a_step_have_different_masks():
    same = [partial(shard, 0)] * 2
    gradients = []
    for shards in (same, same[:1]):
        model = adapter("standard")
        fit_shards(model, shards, MeanSquaredError(), SGD(0.1), 1, shuffle=False)
        gradients.append(model.get_parameters())
    assert not np.allclose(*gradients)  # with equal masks, both would be the mean of equal gradients


def test_resumed_training_on_shards_goes_on_with_the_same_masks(tmp_path):
    file = tmp_path / "run.npz"
    shards = [partial(shard, 0), partial(shard, 1)]
    models = [adapter("standard") for _ in range(3)]
    fit_shards(models[0], shards, MeanSquaredError(), Adam(0.1), 3, 4, rng=0)
    fit_shards(models[1], shards, MeanSquaredError(), Adam(0.1), 1, 4, rng=0, checkpoint=file)
    fit_shards(models[2], shards, MeanSquaredError(), Adam(0.1), 3, 4, rng=0, checkpoint=file, resume=True)
    assert bits(models[2].named_parameters()) == bits(models[0].named_parameters())
