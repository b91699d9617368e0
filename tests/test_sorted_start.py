"""A sorted start: what sorting keeps and what it orders, and the steps of a training run before and after it."""

import copy
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
    AdamW,
    ArgumentError,
    ArgumentOutOfRangeError,
    DenseLayer,
    DyLoRAAdapter,
    InvalidOperationError,
    LoRALayer,
    MeanSquaredError,
    Momentum,
    MultiLoRAAdapter,
    Sequential,
    StandardLoRAAdapter,
    apply_lora,
    fit,
)
from lora_np.distributed import fit_shards
from lora_np.training import SortedStart, rank_per_row, shared_rank, sort_components
from tests.kinds import batch, bits, randomised
from tests.strategies import dylora_adapters, seeds

RANKS = [1, 2, 4]
X, T = batch(12, 6, seed=0), batch(12, 5, seed=1)


def network(**options):
    """Two DyLoRA adapters around layers without activations."""
    base = Sequential({"up": DenseLayer(6, 7, rng=0), "down": DenseLayer(7, 5, rng=1)})
    return apply_lora(base, DyLoRAAdapter, max_rank=4, active_ranks=RANKS, rng=2, **options)


def adapters(model):
    return [layer for layer in model.walk().values() if isinstance(layer, DyLoRAAdapter)]


def train(model, schedule, optimizer=None, epochs=4, **options):
    """Twelve steps of four rows."""
    optimizer = Adam(0.05) if optimizer is None else optimizer
    return fit(model, (X, T), MeanSquaredError(), optimizer, epochs, 4, rng=3, rank_schedule=schedule, **options)


# ---------------------------------------------------------------- sorting


@given(dylora_adapters(mode="full"), seeds, st.sampled_from([np.float64, np.float32]))
def test_the_function_at_the_highest_rank_stays_and_components_beyond_it_keep_their_bits(adapter, seed, dtype):
    highest = adapter.active_ranks[-1]
    lora = adapter.lora_layer
    before, A, B = lora.merge_weights(rank=highest), lora.get_matrix_a(), lora.get_matrix_b()
    names = adapter.named_parameters()
    assert sort_components(adapter) == 1
    scale = np.linalg.norm(lora.scaling_at(highest) * A[:, :highest]) * np.linalg.norm(B[:highest])
    assert_allclose(lora.merge_weights(rank=highest), before, rtol=0, atol=1e-14 * scale + 1e-300)
    assert_array_equal(lora.matrix_a[:, highest:], A[:, highest:])
    assert_array_equal(lora.matrix_b[highest:], B[highest:])
    assert all(adapter.named_parameters()[name] is array for name, array in names.items())


def test_float32_factors_are_sorted_in_float64():
    base = DenseLayer(40, 30, dtype=np.float32, rng=0)
    adapter = randomised(DyLoRAAdapter(base, 8, [1, 8], rng=1))
    before = adapter.lora_layer.merge_weights()
    sort_components(adapter)
    assert adapter.lora_layer.matrix_a.dtype == np.float32
    assert_allclose(adapter.lora_layer.merge_weights(), before, rtol=0, atol=1e-6 * np.abs(before).max())


@given(seeds, st.sampled_from([1, 2, 4]))
def test_each_slice_is_the_best_approximation_of_its_rank(seed, rank):
    adapter = randomised(DyLoRAAdapter(DenseLayer(6, 5, rng=0), 4, RANKS, alpha=3.0), seed)
    dense = adapter.lora_layer.merge_weights()
    sort_components(adapter)
    error = np.linalg.norm(dense - adapter.lora_layer.merge_weights(rank=rank))
    best = np.linalg.norm(np.linalg.svd(dense, compute_uv=False)[rank:])
    assert error == pytest.approx(best, abs=1e-12)


@given(seeds)
def test_the_columns_of_a_are_orthogonal_and_share_its_norm(seed):
    adapter = randomised(DyLoRAAdapter(DenseLayer(6, 5, rng=0), 4, RANKS), seed)
    norm = np.linalg.norm(adapter.lora_layer.matrix_a)
    sort_components(adapter)
    A = adapter.lora_layer.matrix_a
    assert_allclose(A.T @ A, norm**2 / 4 * np.eye(4), atol=1e-10 * norm**2)


def test_a_worked_example():
    adapter = DyLoRAAdapter(DenseLayer(2, 2, rng=0), 2, [1, 2])
    adapter.set_parameters([1, 0, 0, 7, 0, 2, 3, 0])  # A = [[1, 0], [0, 7]], B = [[0, 2], [3, 0]]
    sort_components(adapter)
    A, B = adapter.lora_layer.matrix_a, adapter.lora_layer.matrix_b
    assert_allclose(np.abs(A), [[0, 5], [5, 0]], atol=1e-14)  # 5² = (1² + 7²) / 2
    assert_allclose(np.abs(B), [[21 / 5, 0], [0, 2 / 5]], atol=1e-14)
    assert_allclose(A @ B, [[0, 2], [21, 0]], atol=1e-14)


def test_every_component_learns_after_a_warm_up_that_moved_only_some():
    # Two rows move B within two dimensions. If A and B shared each singular value equally, those of about 1e-17 would leave
    # both factors at about 1e-9, where gradient descent never moves them again.
    adapter, target = DyLoRAAdapter(DenseLayer(6, 5, rng=0), 4, [4], rng=1), X @ batch(6, 5, seed=4)
    options = {"rng": 0, "rank_schedule": SortedStart(1, shared_rank), "shuffle": False}
    fit(adapter, (X[:2], target[:2]), MeanSquaredError(), SGD(0.05), 2, 2, **options)
    assert (np.linalg.svd(adapter.lora_layer.merge_weights(), compute_uv=False)[2:4] < 1e-12).all()
    fit(adapter, (X, target), MeanSquaredError(), SGD(0.1), 100, 4, rng=0)
    assert np.linalg.svd(adapter.lora_layer.merge_weights(), compute_uv=False)[3] > 0.1


@pytest.mark.parametrize("factor", ["matrix_a", "matrix_b"])
def test_a_factor_of_zeros_can_still_be_trained(factor):
    adapter = randomised(DyLoRAAdapter(DenseLayer(6, 5, rng=0), 4, RANKS))
    adapter.set_parameter(f"lora.{factor}", np.zeros_like(getattr(adapter.lora_layer, factor)))
    sort_components(adapter)
    assert_array_equal(adapter.lora_layer.merge_weights(), 0)
    assert (np.linalg.norm(adapter.lora_layer.matrix_a, axis=0) > 0.5).all()


def test_a_rank_above_the_sizes_leaves_components_without_effect():
    wide = LoRALayer.from_factors(batch(3, 5, seed=0), batch(5, 4, seed=1))
    adapter = DyLoRAAdapter.around(DenseLayer(3, 4, rng=0), wide, active_ranks=[1, 5])
    before = wide.merge_weights()
    sort_components(adapter)
    assert_allclose(wide.merge_weights(), before, atol=1e-13)
    assert_array_equal(wide.matrix_b[3:], 0)


def test_only_ranks_that_are_drawn_count():
    adapter = randomised(DyLoRAAdapter(DenseLayer(6, 5, rng=0), 4, RANKS, rank_distribution=[1, 1, 0]))
    last = adapter.lora_layer.matrix_b[2:].copy()
    sort_components(adapter)
    assert_array_equal(adapter.lora_layer.matrix_b[2:], last)


def test_factors_that_do_not_train_are_left_alone():
    model = randomised(network())
    model["up"].frozen |= {"lora"}
    before = bits(model["up"].named_parameters(frozen=True))
    assert sort_components(model) == 1
    assert bits(model["up"].named_parameters(frozen=True)) == before


@pytest.mark.parametrize("name", ["matrix_a", "matrix_b"])
def test_a_branch_with_one_frozen_factor_is_left_alone(name):
    adapter = randomised(DyLoRAAdapter(DenseLayer(6, 5, rng=0), 4, RANKS))
    adapter.lora_layer.frozen |= {name}
    assert sort_components(adapter) == 0


def test_a_run_without_tasks_sorts_those_of_the_current_task():
    model = MultiLoRAAdapter(DenseLayer(6, 5, rng=0), "a", 4, active_ranks=RANKS, rng=1)
    model.add_task("b", 4, active_ranks=RANKS)
    model.set_current_task("b")
    before = bits(randomised(model).named_parameters(frozen=True))
    train(model, SortedStart(2, shared_rank))
    changed = {name for name, value in bits(model.named_parameters(frozen=True)).items() if value != before[name]}
    assert changed == {"tasks.b.matrix_a", "tasks.b.matrix_b"}


@pytest.mark.parametrize("optimizer", [Adam, AdamW, partial(Momentum, momentum=0.9)])
def test_the_optimizer_forgets_the_sorted_factors_and_nothing_else(optimizer):
    optimizer, model = optimizer(0.05), network(freeze_base_layer=False)
    train(model, shared_rank, optimizer)
    before = optimizer.get_state()
    assert sort_components(model, optimizer) == 2
    kept = {name: array for name, array in before.items() if ".lora." not in name}
    assert 0 < len(kept) < len(before)
    assert bits(optimizer.get_state()) == bits(kept)


@pytest.mark.parametrize("names", ["up.lora.matrix_a", 3, None])
def test_an_optimizer_forgets_sequences_of_names(names):
    optimizer, model = Adam(0.05), network()
    train(model, shared_rank, optimizer)
    if names is None:
        optimizer.reset(names)
        assert optimizer.get_state() == {}
    else:
        before = bits(optimizer.get_state())
        with pytest.raises(ArgumentError, match=r"names must be a sequence of names of parameters, got"):
            optimizer.reset(names)
        assert bits(optimizer.get_state()) == before


def test_what_cannot_be_sorted_is_refused_before_anything_changes():
    model, optimizer = randomised(network()), Adam(0.05)
    train(model, shared_rank, optimizer)
    state = bits(optimizer.get_state())
    model["down"].lora_layer.matrix_b[0, 0] = np.inf
    before = bits(model.named_parameters())
    with pytest.raises(ArgumentError, match="the factors must be finite"):
        sort_components(model, optimizer)
    assert (bits(model.named_parameters()), bits(optimizer.get_state())) == (before, state)
    with pytest.raises(InvalidOperationError, match="mode must be 'full' to sort components, got 'frozen'"):
        sort_components(network(mode="frozen"))
    with pytest.raises(ArgumentError, match="model must be a layer"):
        sort_components("model")
    with pytest.raises(ArgumentError, match="optimizer must be an optimizer"):
        sort_components(model, 0.1)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize(("warmup", "steps"), [(1, 1), (5, 5), (0.25, 3), (0.001, 1), (np.int64(4), 4), (11, 11)])
def test_a_run_is_a_warm_up_then_sorting_then_the_other_schedule(warmup, steps):
    found, expected = network(freeze_base_layer=False), network(freeze_base_layer=False)
    history = train(found, SortedStart(warmup, shared_rank), optimizer := Adam(0.05))
    assert history.ranks[:steps] == [(4, 4)] * steps

    by_hand = Adam(0.05)

    def schedule(layers, rng, rows):
        return 4 if next(numbers) <= steps else shared_rank(layers, rng, rows)

    def sort(progress):
        if progress.step == steps:
            sort_components(progress.model, by_hand)

    numbers = iter(range(1, 13))
    same = train(expected, schedule, by_hand, callbacks=[sort])
    assert history.step_losses == same.step_losses
    assert history.ranks == same.ranks
    assert bits(found.named_parameters()) == bits(expected.named_parameters())
    assert bits(optimizer.get_state()) == bits(by_hand.get_state())


def test_rows_have_separate_ranks_after_the_warm_up_by_default():
    assert [len(ranks) for ranks in train(network(), SortedStart(2)).ranks] == [2, 2] + [0] * 10


def test_a_step_of_several_passes_equals_one_on_all_rows():
    models = network(), network()
    for model, batch_size in zip(models, (4, 2), strict=True):
        options = {"accumulate": 4 // batch_size, "rng": 3, "rank_schedule": SortedStart(3)}
        fit(model, (X, T), MeanSquaredError(), SGD(0.05), 3, batch_size, **options)
    assert_allclose(models[1].get_parameters(), models[0].get_parameters(), rtol=0, atol=1e-11)


def test_the_loss_falls_at_every_rank():
    model, target = network(), X @ batch(6, 5, seed=4)
    before = [MeanSquaredError()(model.predict(X, rank=rank), target) for rank in RANKS]
    fit(model, (X, target), MeanSquaredError(), Adam(0.03), 60, 4, rng=3, rank_schedule=SortedStart())
    after = [MeanSquaredError()(model.predict(X, rank=rank), target) for rank in RANKS]
    assert all(new < old for new, old in zip(after, before, strict=True))
    assert sorted(after, reverse=True) == after


@pytest.mark.parametrize("per", ["pass", "row"])
def test_nested_dropout_has_a_warm_up(per):
    def adapter():
        return DyLoRAAdapter(DenseLayer(6, 5, rng=0), 4, RANKS, rng=1)

    found, expected = adapter(), adapter()
    inputs, targets = [*X.reshape(3, 4, 6)], [*T.reshape(3, 4, 5)]
    losses = found.train_with_nested_dropout(inputs, targets, 2, 0.02, MeanSquaredError(), rank_per=per, warmup=1 / 3)
    fit(expected, (X[:8], T[:8]), MeanSquaredError(), SGD(0.02), 1, 4, shuffle=False, rank_schedule=lambda *_: 4)
    sort_components(expected)
    expected.train_with_nested_dropout(inputs[2:], targets[2:], 1, 0.02, MeanSquaredError(), rank_per=per)
    expected.train_with_nested_dropout(inputs, targets, 1, 0.02, MeanSquaredError(), rank_per=per)
    assert len(losses) == 2
    assert bits(found.named_parameters()) == bits(expected.named_parameters())


# ---------------------------------------------------------------- shards


def shard(half):
    return X[half::2], T[half::2]


def by_shards(model, schedule=None, loaders=None, optimizer=None, **options):
    loaders = [partial(shard, 0), partial(shard, 1)] if loaders is None else loaders
    schedule = SortedStart(3) if schedule is None else schedule
    optimizer = AdamW(0.05) if optimizer is None else optimizer
    return fit_shards(model, loaders, MeanSquaredError(), optimizer, 4, 2, rng=3, rank_schedule=schedule, **options)


def test_one_shard_is_fit_to_the_bit():
    found, expected = network(), network()
    history = by_shards(found, loaders=[lambda: (X, T)])
    same = fit(expected, (X, T), MeanSquaredError(), AdamW(0.05), 4, 2, rng=3, rank_schedule=SortedStart(3))
    assert (history.step_losses, history.ranks) == (same.step_losses, same.ranks)
    assert bits(found.named_parameters()) == bits(expected.named_parameters())


class StopError(Exception):
    """Ends a training run."""


@pytest.mark.parametrize("step", [1, 2, 3, 4, 8])
def test_a_resumed_run_ends_with_the_same_bits(step, tmp_path):
    def stop(progress):
        if progress.step == step + 1:  # the last checkpoint is that of `step`
            raise StopError

    whole, model, optimizer, path = network(), network(), AdamW(0.05), tmp_path / "run.npz"
    expected = by_shards(whole, optimizer=optimizer)
    with pytest.raises(StopError):
        by_shards(network(), checkpoint=path, checkpoint_every=1, callbacks=[stop])
    resumed = AdamW(9.0)
    history = by_shards(model, checkpoint=path, resume=True, optimizer=resumed)
    assert (history.step_losses, history.ranks) == (expected.step_losses, expected.ranks)
    assert bits(model.named_parameters()) == bits(whole.named_parameters())
    assert bits(resumed.get_state()) == bits(optimizer.get_state())


@pytest.mark.parametrize(
    ("schedule", "difference"),
    [
        (SortedStart(4), "sorted_start is 3"),
        (SortedStart(3, shared_rank), "rank_schedule is"),
        (rank_per_row, "sorted_start is 3"),
    ],
)
def test_a_run_resumes_only_with_the_same_start(schedule, difference, tmp_path):
    path = tmp_path / "run.npz"
    by_shards(network(), checkpoint=path)
    with pytest.raises(ArgumentError, match=f"belongs to a different training run: {difference}"):
        by_shards(network(), schedule, checkpoint=path, resume=True)


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"warmup": 0}, ArgumentOutOfRangeError, "warmup must be at least 1, got 0"),
        ({"warmup": -3}, ArgumentOutOfRangeError, "warmup must be at least 1, got -3"),
        ({"warmup": 0.0}, ArgumentOutOfRangeError, r"warmup must be a fraction in \(0, 1\) or a number of steps, got 0.0"),
        ({"warmup": 1.0}, ArgumentOutOfRangeError, r"got 1.0"),
        ({"warmup": float("nan")}, ArgumentError, "warmup"),
        ({"warmup": "a tenth"}, ArgumentError, "warmup must be a real number, got 'a tenth'"),
        ({"warmup": True}, ArgumentError, "warmup must be an integer, got True"),
        ({"then": 4}, ArgumentError, "then must be callable, got 4"),
        ({"then": SortedStart()}, ArgumentError, "then must be a rank schedule without a sorted start"),
    ],
)
def test_invalid_starts_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        SortedStart(**arguments)


@pytest.mark.parametrize("start", [train, by_shards], ids=["fit", "fit_shards"])
@pytest.mark.parametrize(
    ("model", "schedule", "error", "words"),
    [
        (
            network,
            SortedStart(12),
            ArgumentOutOfRangeError,
            "warmup must be shorter than the training, which has 12 steps, got 12",
        ),
        (network, SortedStart(0.99), ArgumentOutOfRangeError, "shorter than the training"),
        (partial(network, mode="frozen"), SortedStart(2), InvalidOperationError, "mode must be 'full' to sort"),
        (partial(StandardLoRAAdapter, DenseLayer(6, 5, rng=0), 2), SortedStart(2), ArgumentError, "has no DyLoRA adapters"),
    ],
)
def test_a_start_that_does_not_fit_is_refused_before_the_first_step(start, model, schedule, error, words):
    model = model()
    before = bits(model.named_parameters())
    with pytest.raises(error, match=words):
        start(model, schedule)
    assert bits(model.named_parameters()) == before


@pytest.mark.parametrize(
    ("mode", "warmup", "error"),
    [("full", 2, ArgumentOutOfRangeError), ("full", 0, ArgumentOutOfRangeError), ("frozen", 1, InvalidOperationError)],
)
def test_a_warm_up_that_does_not_fit_is_refused_before_the_first_step(mode, warmup, error):
    adapter = DyLoRAAdapter(DenseLayer(6, 5, rng=0), 4, RANKS, mode=mode, rng=1)
    before = bits(adapter.named_parameters())
    with pytest.raises(error):
        adapter.train_with_nested_dropout([X, X], [T, T], 1, 0.1, MeanSquaredError(), warmup=warmup)
    assert bits(adapter.named_parameters()) == before


def test_a_start_is_a_value():
    assert SortedStart() == SortedStart(1 / 24, rank_per_row)
    start = SortedStart(0.1, shared_rank)
    assert start == pickle.loads(pickle.dumps(start)) == copy.deepcopy(start)
    assert start != SortedStart(0.1)
    with pytest.raises(AttributeError):
        start.warmup = 0.2
