"""How much the rows of shards count: weights and ignored labels, as in `fit` on all shards together."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np import (
    SGD,
    Adam,
    ArgumentError,
    DenseLayer,
    Huber,
    MeanSquaredError,
    MultiLoRAAdapter,
    SoftmaxCrossEntropy,
    fit,
)
from lora_np.distributed import fit_shards

LOSSES = {"labels": SoftmaxCrossEntropy(), "values": Huber(0.5)}


def model_of():
    adapter = MultiLoRAAdapter(DenseLayer(4, 3, rng=1), "a", 2, rng=2)
    adapter.add_task("b", 3)
    adapter.set_parameters(np.random.default_rng(3).normal(size=adapter.parameter_count))
    return adapter


def shard(kind, seed, rows, inner=2, scale=1.0, weighted=True):
    """Sentences whose tokens have labels, some of them to ignore, or values; with a task and a weight for each sentence."""
    random = np.random.default_rng(seed)
    x, tasks, weights = random.normal(size=(rows, inner, 4)), random.choice(["a", "b"], rows), random.uniform(0, 1, rows)
    labels, values = random.choice([-100, -1, 0, 1, 2], (rows, inner)), random.normal(size=(rows, inner, 3))
    weights[0], weights[1:][weights[1:] < 0.3], labels[0, 0] = 0.7, 0, 1
    return x, labels if kind == "labels" else values, tasks.tolist(), scale * weights if weighted else None


def trained(function, *arguments, epochs=2, batch_size=99, rule=SGD, **options):
    model = model_of()
    history = function(model, *arguments, rule(0.05), epochs, batch_size, **options)
    return model.get_parameters(), history


@pytest.mark.parametrize("average", ["batch", "task"])
@pytest.mark.parametrize("kind", LOSSES)
@given(
    rows=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    scales=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
    seed=st.integers(0, 2**16),
)
def test_any_split_is_fit_on_all_rows(average, kind, rows, scales, seed):
    settings = [([seed, number], *pair) for number, pair in enumerate(zip(rows, scales, strict=False))]
    loaders = [partial(shard, kind, seed, count, scale=scale) for seed, count, scale in settings]
    found, history = trained(fit_shards, loaders, LOSSES[kind], average=average, shuffle=False)
    x, t, tasks, weights = (np.concatenate(column) for column in zip(*(loader() for loader in loaders), strict=True))
    options = {"tasks": tasks.tolist(), "weights": weights, "average": average, "shuffle": False}
    expected, other = trained(fit, (x, t), LOSSES[kind], **options)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(history.step_losses, other.step_losses, rtol=1e-11)
    np.testing.assert_allclose(history.epoch_losses, other.epoch_losses, rtol=1e-11)


@pytest.mark.parametrize("average", ["batch", "task"])
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("weighted", [True, False])
def test_one_shard_is_fit_to_the_bit(average, kind, weighted):
    loader = partial(shard, kind, 0, 20, weighted=weighted)
    options = {"average": average, "rng": 5, "batch_size": 3, "rule": Adam}
    found, history = trained(fit_shards, [loader], LOSSES[kind], **options)
    x, t, tasks, weights = loader()
    expected, other = trained(fit, (x, t), LOSSES[kind], tasks=tasks, weights=weights, **options)
    assert history == other
    assert found.tobytes() == expected.tobytes()


def test_labels_count_in_sentences_of_different_lengths():
    loaders = [
        partial(shard, "labels", 0, 5, inner=2, weighted=False),
        partial(shard, "labels", 1, 3, inner=7, weighted=False),
    ]
    found, _ = trained(fit_shards, loaders, LOSSES["labels"], shuffle=False)
    (x, t, tasks, _), (longer, labels, more, _) = (loader() for loader in loaders)
    padded = np.pad(x, ((0, 0), (0, 5), (0, 0))), np.pad(t, ((0, 0), (0, 5)), constant_values=-1)
    data = np.concatenate([padded[0], longer]), np.concatenate([padded[1], labels])
    expected, _ = trained(fit, data, LOSSES["labels"], tasks=tasks + more, shuffle=False)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


def test_labels_of_one_shard_and_probabilities_of_another_count_alike():
    def probabilities(rows):
        x, t, _, _ = shard("labels", 0, rows, weighted=False)
        return x, np.eye(3)[abs(t) % 3], None, None

    def labels(rows):
        x, t, _, _ = probabilities(rows)
        return x, t.argmax(axis=-1), None, None

    found, _ = trained(fit_shards, [partial(probabilities, 5), partial(labels, 3)], LOSSES["labels"], shuffle=False)
    expected, _ = trained(fit_shards, [partial(labels, 5), partial(labels, 3)], LOSSES["labels"], shuffle=False)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_a_shard_without_weights_has_weights_of_1():
    loaders = [partial(shard, "values", 0, 5, weighted=False), partial(shard, "values", 1, 4, scale=4.0)]
    found, _ = trained(fit_shards, loaders, LOSSES["values"], shuffle=False)
    loaded = [loader() for loader in loaders]
    x, t = (np.concatenate([each[column] for each in loaded]) for column in (0, 1))
    options = {"tasks": loaded[0][2] + loaded[1][2], "weights": np.append(np.ones(5), loaded[1][3])}
    expected, _ = trained(fit, (x, t), LOSSES["values"], shuffle=False, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


def test_weights_without_tasks():
    def loader():
        x, t, _, weights = shard("values", 0, 9)
        return x, t, None, weights

    found, _ = trained(fit_shards, [loader], LOSSES["values"], rng=0)
    x, t, _, weights = loader()
    expected, _ = trained(fit, (x, t), LOSSES["values"], weights=weights, rng=0)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1.0], r"shard 1, .* weights must have shape \(3,\)"),
        ([1, -1, 1], r"shard 1, .* weights must be finite and not negative, got -1"),
        ([0, 0, 0], r"shard 1, .* weights must contain a number greater than 0"),
    ],
)
def test_bad_weights_are_refused_before_the_first_step(weights, words):
    def loader():
        return np.ones((3, 4)), np.ones((3, 3)), None, weights

    model = model_of()
    before = model.get_parameters()
    with pytest.raises(ArgumentError, match=words):
        fit_shards(model, [partial(shard, "values", 0, 3, inner=1), loader], MeanSquaredError(), SGD(0.1), 1)
    np.testing.assert_array_equal(model.get_parameters(), before)


def test_a_loader_that_returns_five_arrays_is_refused():
    with pytest.raises(
        ArgumentError, match=r"a loader must return \(inputs, targets\), .* or \(inputs, targets, tasks, weights\)"
    ):
        trained(fit_shards, [lambda: (1, 2, 3, 4, 5)], MeanSquaredError())


def test_a_run_resumes_only_with_the_same_relative_weights(tmp_path):
    def train(scale, **options):
        loaders = [partial(shard, "values", 0, 5, scale=scale), partial(shard, "values", 1, 5)]
        return trained(fit_shards, loaders, LOSSES["values"], rng=0, checkpoint=tmp_path / "run.npz", **options)

    expected, _ = train(2.0)
    found, _ = train(2.0, resume=True)
    assert found.tobytes() == expected.tobytes()
    with pytest.raises(ArgumentError, match="belongs to a different training run: shards is"):
        train(3.0, resume=True)
