"""Training on shards: it equals `fit` on all of them, wherever they are differentiated, and survives failures."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np import (
    SGD,
    ActivationLayer,
    Adam,
    ArgumentError,
    ArgumentNullError,
    ArgumentOutOfRangeError,
    DenseLayer,
    DyLoRAAdapter,
    FormatError,
    FunctionLoss,
    Huber,
    InvalidOperationError,
    Layer,
    Loss,
    MeanSquaredError,
    Momentum,
    NonFiniteError,
    NotSupportedError,
    Regularization,
    SoftmaxCrossEntropy,
    _archive,
    fit,
    save_layer,
    tanh,
)
from lora_np.distributed import InProcessExecutor, dask_executor, fit_shards, predict
from lora_np.distributed._cache import Recent
from lora_np.distributed.replicas import Replicas
from lora_np.training import LinearDecay, rank_per_row, shared_rank
from lora_np.training.moment import Moment, fingerprint
from tests import distributed_shards as data
from tests.kinds import KINDS, bits, randomised, snapshot
from tests.strategies import seeds

ROOT = Path(__file__).parents[1]
GENERATORS = [np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64]


def shards(count=3, rows=6):
    """Shards of different sizes."""
    return [partial(data.samples, seed, rows + seed) for seed in range(count)]


def concatenated(loaders):
    """The data of all shards, one after the other."""
    return tuple(np.concatenate(arrays) for arrays in zip(*(loader() for loader in loaders), strict=True))


def train(model, loaders=None, optimizer=None, epochs=2, batch_size=None, loss=None, **options):
    options = {"rng": 0} | options
    loaders = shards() if loaders is None else loaders
    return fit_shards(model, loaders, loss or MeanSquaredError(), optimizer or Adam(0.05), epochs, batch_size, **options)


def adapter(kind, seed=0):
    return randomised(KINDS[kind](DenseLayer(data.IN, data.OUT, rng=0), 2, rng=0), seed)


def outcome(model, history, optimizer=None):
    """All bits that a training run leaves behind."""
    return bits(model.named_parameters(frozen=True)), history, None if optimizer is None else bits(optimizer.get_state())


class EarlyStopError(Exception):
    pass


def stop_after(step):
    def callback(progress):
        if progress.step == step:
            raise EarlyStopError

    return callback


# ---------------------------------------------------------------- it is fit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shuffle", [True, False])
def test_one_shard_is_fit_to_the_bit(kind, shuffle):
    loader = partial(data.samples, 0, 11)
    found, expected, optimizers = adapter(kind), adapter(kind), (Adam(0.05), Adam(0.05))
    history = train(found, [loader], optimizers[0], 3, 4, shuffle=shuffle)
    other = fit(expected, loader(), MeanSquaredError(), optimizers[1], 3, 4, shuffle=shuffle, rng=0)
    assert outcome(found, history, optimizers[0]) == outcome(expected, other, optimizers[1])


@given(st.sampled_from(list(KINDS)), st.lists(st.integers(1, 7), min_size=1, max_size=5), seeds)
def test_any_split_of_the_data_is_fit_on_all_of_it(kind, rows, seed):
    loaders = [partial(data.samples, [seed, number], count) for number, count in enumerate(rows)]
    found, expected = adapter(kind, seed), adapter(kind, seed)
    history = train(found, loaders, SGD(0.02), 3, shuffle=False)
    other = fit(expected, concatenated(loaders), MeanSquaredError(), SGD(0.02), 3, sum(rows), rng=0, shuffle=False)
    np.testing.assert_allclose(found.get_parameters(), expected.get_parameters(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(history.step_losses, other.step_losses, rtol=1e-12)
    np.testing.assert_allclose(history.epoch_losses, other.epoch_losses, rtol=1e-12)


def labelled(seed, rows):
    inputs, targets = data.samples(seed, rows)
    return inputs, targets.argmax(axis=-1)


def test_labels_are_weighted_by_rows_too():
    loaders = [partial(labelled, 0, 2), partial(labelled, 1, 9)]
    found, expected = data.network(), data.network()
    train(found, loaders, SGD(0.1), 2, loss=SoftmaxCrossEntropy(), shuffle=False)
    fit(expected, concatenated(loaders), SoftmaxCrossEntropy(), SGD(0.1), 2, 11, rng=0, shuffle=False)
    np.testing.assert_allclose(found.get_parameters(), expected.get_parameters(), rtol=1e-12, atol=1e-14)


def test_shards_of_sequences_of_different_length_count_by_their_rows():
    loaders = [partial(data.samples, 0, 2, (3,)), partial(data.samples, 1, 4, (5,))]
    found, expected = data.network(), data.network()
    history = train(found, loaders, SGD(0.1), 1, shuffle=False)
    flat = tuple(
        np.concatenate([arrays.reshape(-1, arrays.shape[-1]) for arrays in pair])
        for pair in zip(*(loader() for loader in loaders), strict=True)
    )
    other = fit(expected, flat, MeanSquaredError(), SGD(0.1), 1, 26, rng=0, shuffle=False)
    np.testing.assert_allclose(found.get_parameters(), expected.get_parameters(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(history.epoch_losses, other.epoch_losses, rtol=1e-12)


def test_a_step_takes_samples_of_every_shard_that_has_some_left():
    found, expected = data.network(), data.network()
    loaders = [partial(data.samples, 0, 5), partial(data.samples, 1, 2)]
    history = train(found, loaders, SGD(0.1), 1, 2, shuffle=False)
    (x0, t0), (x1, t1) = (loader() for loader in loaders)
    order = np.concatenate([x0[:2], x1[:2], x0[2:4], x0[4:]]), np.concatenate([t0[:2], t1[:2], t0[2:4], t0[4:]])
    losses = []
    ranks = iter(history.ranks)

    def same_ranks(adapters, rng, rows):
        return next(ranks)[0]

    for start, end in [(0, 4), (4, 6), (6, 7)]:
        batch = order[0][start:end], order[1][start:end]
        losses += fit(
            expected, batch, MeanSquaredError(), SGD(0.1), 1, 4, shuffle=False, rank_schedule=same_ranks
        ).step_losses
    np.testing.assert_allclose(history.step_losses, losses, rtol=1e-12)
    np.testing.assert_allclose(history.epoch_losses, [np.dot(losses, [4, 2, 1]) / 7], rtol=1e-12)
    np.testing.assert_allclose(found.get_parameters(), expected.get_parameters(), rtol=1e-12, atol=1e-14)


def test_penalties_count_once():
    def build():
        return DenseLayer(data.IN, data.OUT, tanh, regularization=Regularization(0.1, 0.2), rng=0)

    found, expected = build(), build()
    history = train(found, optimizer=SGD(0.1), shuffle=False)
    other = fit(expected, concatenated(shards()), MeanSquaredError(), SGD(0.1), 2, 99, shuffle=False)
    np.testing.assert_allclose(found.get_parameters(), expected.get_parameters(), rtol=1e-12)
    np.testing.assert_allclose(history.step_losses, other.step_losses, rtol=1e-12)


def test_float32_stays_float32():
    model = DenseLayer(data.IN, data.OUT, dtype=np.float32, rng=0)
    optimizer = Momentum(0.1)
    train(model, optimizer=optimizer)
    assert {array.dtype for array in optimizer.get_state().values()} == {model.weight.dtype} == {np.dtype(np.float32)}


def test_memory_order_of_a_shard_does_not_matter():
    def fortran():
        return tuple(np.asfortranarray(array) for array in data.samples(0))

    found, expected = data.network(), data.network()
    assert outcome(found, train(found, [fortran])) == outcome(expected, train(expected, [partial(data.samples, 0)]))


# ---------------------------------------------------------------- ranks and tasks


def test_every_shard_trains_at_the_rank_of_the_step():
    seen = []

    class Watching(Executor):
        def submit(self, function, *arguments):
            seen.append(arguments[-1])
            return InProcessExecutor().submit(function, *arguments)

    history = train(data.network(), epochs=8, executor=Watching())
    assert len(set(history.ranks)) == 2
    assert [list(ranks) for ranks in seen[3:]] == [list(ranks) for ranks in history.ranks for _ in range(3)]


def test_each_row_of_a_shard_has_the_rank_that_fit_gives_it():
    found, expected = data.network(), data.network()
    loader = partial(data.samples, 0, 9)
    train(found, [loader], SGD(0.1), 3, 4, rank_schedule=rank_per_row)
    fit(expected, loader(), MeanSquaredError(), SGD(0.1), 3, 4, rng=0, rank_schedule=rank_per_row)
    assert found.get_parameters().tobytes() == expected.get_parameters().tobytes()


def test_a_component_trains_although_the_last_shard_does_not_use_it():
    model = DyLoRAAdapter(DenseLayer(data.IN, data.OUT, rng=0), 2, [1, 2], rng=1)
    loaders = [partial(data.samples, 0, 4), partial(data.samples, 1, 1)]
    assert rank_per_row([], np.random.default_rng(2), 1)(model).tolist() == [1]  # that of the single row
    train(model, loaders, Adam(0.1), epochs=1, shuffle=False, rng=2, rank_schedule=rank_per_row)
    assert model.lora_layer.matrix_b.all()


def test_a_schedule_that_returns_no_rank_is_refused():
    model = data.network()
    before = model.get_parameters()
    with pytest.raises(ArgumentError, match="rank_schedule must return a rank, got None"):
        train(model, rank_schedule=lambda adapters, rng, rows: None)
    np.testing.assert_array_equal(model.get_parameters(), before)


def test_a_model_without_ranks_needs_none_from_the_schedule():
    rows = []
    model = DenseLayer(data.IN, data.OUT, rng=0)
    train(model, rank_schedule=lambda adapters, rng, number: rows.append(number))
    assert rows == [0, 0]  # called once for each step


def test_shards_of_different_tasks_train_as_one_mixed_batch():
    loaders = [partial(data.routed, 0, ["a", None, "a"]), partial(data.routed, 1, ["b", "a"])]
    found, expected = data.many_tasks(), data.many_tasks()
    train(found, loaders, AdamLike(), 3)
    inputs, targets, tasks = concatenated(loaders)
    fit(expected, (inputs, targets), MeanSquaredError(), AdamLike(), 3, 5, tasks=tasks, shuffle=False)
    np.testing.assert_allclose(found.get_parameters(), expected.get_parameters(), rtol=1e-12, atol=1e-14)


def AdamLike():  # noqa: N802
    """A rule that, from its second step on, would move an array whose gradient is zero or missing."""
    return Momentum(0.05, 0.5)


@given(st.lists(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_task_absent_from_every_shard_keeps_its_bits(tasks):
    model = data.many_tasks()
    before = bits(model.named_parameters())
    train(model, [partial(data.routed, number, names) for number, names in enumerate(tasks)])
    after = bits(model.named_parameters())
    changed = {name.split(".")[1] for name in before if before[name] != after[name]}
    assert changed == {name for names in tasks for name in names} - {None}


def test_without_tasks_the_current_one_trains():
    model, replica = data.many_tasks(), data.many_tasks()
    model.current_task = "b"
    before = bits(model.named_parameters())
    train(model, replica=replica.clone)
    after = bits(model.named_parameters())
    assert {name for name in before if before[name] != after[name]} == {"tasks.b.matrix_a", "tasks.b.matrix_b"}


# ---------------------------------------------------------------- anywhere, with the same bits


def spawned(workers):
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


@pytest.fixture(scope="module")
def processes():
    with spawned(2) as executor:
        yield executor


@pytest.fixture(scope="module")
def expected():
    """The outcome in one process."""
    model, optimizer = data.network(), Adam(0.05)
    return outcome(model, train(model, optimizer=optimizer, batch_size=4), optimizer)


@pytest.mark.parametrize("replica", [None, data.network], ids=["model", "function"])
@pytest.mark.parametrize("workers", [1, 4])
def test_threads_give_the_same_bits(workers, replica, expected):
    model, optimizer = data.network(), Adam(0.05)
    with ThreadPoolExecutor(workers) as executor:
        history = train(model, optimizer=optimizer, batch_size=4, executor=executor, replica=replica)
    assert outcome(model, history, optimizer) == expected


@pytest.mark.parametrize("replica", [None, data.network], ids=["model", "function"])
def test_processes_give_the_same_bits(replica, expected, processes):
    model, optimizer = data.network(), Adam(0.05)
    history = train(model, optimizer=optimizer, batch_size=4, executor=processes, replica=replica)
    assert outcome(model, history, optimizer) == expected


def test_a_file_is_a_replica(tmp_path, expected, processes):
    save_layer(data.network(seed=5), tmp_path / "base.npz")  # trainable parameters may differ
    model, optimizer = data.network(), Adam(0.05)
    path = tmp_path / "base.npz"
    history = train(model, optimizer=optimizer, batch_size=4, executor=processes, replica=path)
    assert outcome(model, history, optimizer) == expected


SENTENCES = [partial(data.sentences, seed, rows, width) for seed, rows, width in [(0, 5, 4), (1, 8, 9), (2, 3, 6)]]


def train_on_sentences(loaders, **options):
    model, optimizer = data.sentence_classifier(), Adam(0.05)
    history = train(model, loaders, optimizer, batch_size=3, loss=SoftmaxCrossEntropy(), **options)
    return outcome(model, history, optimizer)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_sentences_padded_to_different_lengths_give_the_same_bits_on_any_workers(count, processes):
    loaders = SENTENCES[:count]
    expected = train_on_sentences(loaders)
    for workers in (1, 2):
        with ThreadPoolExecutor(workers) as executor:
            assert train_on_sentences(loaders, executor=executor) == expected
    assert train_on_sentences(loaders, executor=processes, replica=data.sentence_classifier) == expected


def test_sentences_of_one_shard_are_fit_to_the_bit():
    model, optimizer = data.sentence_classifier(), Adam(0.05)
    history = fit(model, SENTENCES[1](), SoftmaxCrossEntropy(), optimizer, 2, 3, rng=0)
    assert train_on_sentences(SENTENCES[1:2]) == outcome(model, history, optimizer)


def test_sentences_of_several_shards_are_fit_on_all_of_them():
    found, expected = data.sentence_classifier(), data.sentence_classifier()
    train(found, SENTENCES, SGD(0.1), 2, loss=SoftmaxCrossEntropy(), shuffle=False)
    pairs = [loader() for loader in SENTENCES]
    ids = np.concatenate([np.pad(ids, ((0, 0), (0, 9 - ids.shape[1])), constant_values=-1) for ids, _ in pairs])
    labels = np.concatenate([labels for _, labels in pairs])
    fit(expected, (ids, labels), SoftmaxCrossEntropy(), SGD(0.1), 2, 16, rng=0, shuffle=False)
    np.testing.assert_allclose(found.get_parameters(), expected.get_parameters(), rtol=1e-11, atol=1e-13)


def test_the_order_in_which_shards_end_does_not_matter():
    def run(*seconds):
        loaders = [partial(data.slow, seed, wait) for seed, wait in enumerate(seconds)]
        model = data.network()
        with ThreadPoolExecutor(3) as executor:
            return outcome(model, train(model, loaders, epochs=3, executor=executor, keep_shards=False))

    assert run(0, 0.01, 0.02) == run(0.02, 0.01, 0)


def test_the_order_of_the_shards_does():
    first, second = data.network(), data.network()
    train(first, shards(6), shuffle=False)
    train(second, shards(6)[::-1], shuffle=False)
    assert (first.get_parameters() != second.get_parameters()).any()


def test_many_threads_work_on_replicas_of_their_own():
    found, expected = data.network(), data.network()
    loaders = [partial(data.samples, seed, 40) for seed in range(16)]
    with ThreadPoolExecutor(8) as executor:
        history = train(found, loaders, epochs=10, executor=executor)
    assert outcome(found, history) == outcome(expected, train(expected, loaders, epochs=10))


def test_replicas_share_what_does_not_train():
    model = data.network()
    replicas = Replicas(model.clone, fingerprint(model))
    with replicas.at(Moment.of(model)) as first, replicas.at(Moment.of(model)) as second:
        assert first is not second
        for name, array in first.named_parameters(frozen=True).items():
            shared = np.shares_memory(array, second.named_parameters(frozen=True)[name])
            assert shared == (name not in first.named_parameters())
    with replicas.at(Moment.of(model)) as third:
        assert third in (first, second)
        third.backward(third.forward(data.samples(0)[0]))
    assert not third.gradients  # idle replicas keep neither a pass nor its gradients


def test_the_base_is_loaded_once_and_shards_are_read_once(tmp_path):
    (tmp_path / "shard").mkdir()
    bases = []

    def load():
        bases.append(1)
        return data.network()

    train(data.network(), [partial(data.counted, 0, tmp_path / "shard")], epochs=4, replica=load)
    assert len(bases) == 1
    assert len(list((tmp_path / "shard").iterdir())) == 1


def test_shards_are_read_for_each_step_on_demand(tmp_path):
    train(data.network(), [partial(data.counted, 0, tmp_path)], epochs=4, keep_shards=False)
    assert len(list(tmp_path.iterdir())) == 5  # once more, to measure it


def test_this_process_keeps_nothing_after_the_end(tmp_path):
    for run in range(2):
        train(data.network(), [partial(data.counted, 0, tmp_path)])
        assert len(list(tmp_path.iterdir())) == run + 1
    model = data.network()
    train(model)
    model.named_parameters(frozen=True)["first.base.weight"][...] = 0.0  # a cached replica would miss this
    twin = data.network()
    twin.load_weights(model.named_parameters(frozen=True))
    assert outcome(model, train(model)) == outcome(twin, train(twin))


def test_the_model_gets_modes_and_ranks_back():
    model, seen = data.network().eval(), []
    train(model, callbacks=[lambda progress: seen.append(progress.model.is_training)])
    assert seen == [True, True]
    assert not model.is_training


def test_callbacks_learn_what_fit_tells_them():
    found, expected = [], []
    loader = partial(data.samples, 0, 7)
    train(data.network(), [loader], batch_size=3, callbacks=[found.append])
    fit(data.network(), loader(), MeanSquaredError(), Adam(0.05), 2, 3, rng=0, callbacks=[expected.append])
    assert [vars(p) | {"model": 0} for p in found] == [vars(p) | {"model": 0} for p in expected]
    assert [p.is_epoch_end for p in found] == [False, False, True] * 2


# ---------------------------------------------------------------- replicas


@pytest.mark.parametrize("executor", [None, ThreadPoolExecutor], ids=["in this process", "threads"])
def test_a_replica_of_another_base_is_refused(executor):
    model = data.network()
    before = snapshot(model)
    with pytest.raises(
        ArgumentError, match=r"shard 0, .*replica must provide the model that is trained, got one whose structure"
    ):
        train(model, replica=data.other_base, executor=executor and executor(2))
    assert snapshot(model) == before


def test_a_replica_must_be_a_layer():
    with pytest.raises(ArgumentError, match="replica must provide a layer, got 3"):
        train(data.network(), replica=lambda: 3)


def test_the_fingerprint_tells_what_matters():
    def dense(activation=None, dtype=np.float64, seed=0):
        return adapted(DenseLayer(3, 2, activation, dtype=dtype, rng=seed))

    def adapted(base, alpha=2.0):
        return KINDS["standard"](base, 1, alpha, rng=7)

    same = dense()
    same.set_parameters(np.ones(same.parameter_count))
    assert fingerprint(same) == fingerprint(dense())
    others = [
        dense(tanh),
        dense(dtype=np.float32),
        dense(seed=1),
        adapted(DenseLayer(3, 2, rng=0), 1.0),
        dense().base_layer,
    ]
    assert len({fingerprint(model) for model in [same, *others]}) == 6


class Doubled(Layer):
    """A user-defined layer without a config."""

    parameter_names = ("factor", "shift")
    frozen = frozenset({"shift"})

    def __init__(self, shift=0.0):
        super().__init__(data.IN, data.IN)
        self.factor, self.shift = np.full(1, 2.0), np.full(1, shift)

    def apply(self, x, run):
        return self.factor * x + self.shift, x

    def vjp(self, dy, cache, *, parameters=True, inputs=True):
        return self.factor * dy, {"factor": np.array([np.sum(cache * dy)])}

    def estimate_flops(self):
        return 2 * data.IN


def identities():
    inputs, _ = data.samples(0)
    return inputs, inputs


def test_layers_that_cannot_be_saved_are_told_apart_by_their_arrays():
    assert fingerprint(Doubled()) == fingerprint(Doubled()) != fingerprint(Doubled(1.0))
    model = Doubled()
    train(model, [identities], SGD(0.1), 50)
    np.testing.assert_allclose(model.factor, 1.0, atol=1e-3)


# ---------------------------------------------------------------- failures


def test_a_shard_that_fails_for_a_while_changes_no_bit(tmp_path):
    model, expected = data.network(), data.network()
    history = train(model, [partial(data.unreliable, 0, tmp_path, 2), *shards(2)[1:]], keep_shards=False)
    assert len(list(tmp_path.iterdir())) == 2
    assert outcome(model, history) == outcome(expected, train(expected, shards(1) + shards(2)[1:]))


@pytest.mark.parametrize("retries", [0, 3])
def test_a_shard_that_fails_too_often_is_named(retries, tmp_path):
    model = data.network()
    before = snapshot(model)
    words = (
        rf"shard 1, functools.partial.*unreliable.* failed on attempt {retries + 1} of {retries + 1}: .*the disk is away"
    )
    with pytest.raises(InvalidOperationError, match=words) as failure:
        train(model, [*shards(1), partial(data.unreliable, 0, tmp_path, 99)], retries=retries)
    assert isinstance(failure.value.__cause__, OSError)
    assert len(list(tmp_path.iterdir())) == retries + 1
    assert snapshot(model) == before


class Failing(Executor):
    """Runs calls immediately, but rejects all calls from a given one on."""

    def __init__(self, from_call):
        self.calls, self.from_call = 0, from_call

    def submit(self, function, *arguments):
        self.calls += 1
        if self.calls >= self.from_call:
            raise OSError("the cluster is away")
        return InProcessExecutor().submit(function, *arguments)


def test_a_step_that_fails_leaves_the_parameters_before_it():
    model, expected = data.network(), data.network()
    with pytest.raises(
        InvalidOperationError, match=r"step 2: shard 1, .* failed on attempt 3 of 3: .*the parameters are those before"
    ):
        train(model, executor=Failing(8), epochs=3)
    with pytest.raises(EarlyStopError):
        train(expected, epochs=3, callbacks=[stop_after(1)])
    assert bits(model.named_parameters()) == bits(expected.named_parameters())


def test_calls_that_wait_are_cancelled_when_one_fails():
    futures = []

    class Waiting(Executor):
        """Fails the first call, and never starts the others."""

        def submit(self, function, *arguments):
            futures.append(Future())
            if len(futures) == 1:
                futures[0].set_exception(OSError("away"))
            return futures[-1]

    with pytest.raises(InvalidOperationError, match="failed on attempt 1 of 1"):
        train(data.network(), executor=Waiting(), retries=0)
    assert [future.cancelled() for future in futures] == [False, True, True]


def test_a_call_that_the_executor_gives_up_is_not_repeated():
    calls = []

    class Gone(Executor):
        def submit(self, function, *arguments):
            calls.append(Future())
            calls[-1].cancel()
            return calls[-1]

    with pytest.raises(InvalidOperationError, match=r"shard 0, .* was cancelled by the executor"):
        train(data.network(), executor=Gone())
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "a loader must return"),
        ((1,), "a loader must return"),
        (np.ones(2), "inputs must have shape"),
        ((np.ones((2, 4)), np.ones((2, 3))), r"inputs must have shape \(..., 5\)"),
        ((np.ones((2, 5)), np.ones((3, 3))), "the same, non-zero number of rows"),
        ((np.ones((0, 5)), np.ones((0, 3))), "the same, non-zero number of rows"),
        ((np.ones((2, 5)), np.ones((2, 2))), "targets must have shape"),
        ((np.ones((2, 5)), np.ones((2, 3)), ["a", "b"]), "no layer in"),
    ],
)
def test_data_that_do_not_fit_are_refused_at_once(answer, words):
    model = data.network()
    before = snapshot(model)
    loads = []

    def load():
        loads.append(1)
        return answer

    with pytest.raises(ArgumentError, match=rf"shard 1, .*load.* was rejected: .*{words}"):
        train(model, [*shards(1), load])
    assert len(loads) == 1
    assert snapshot(model) == before


def explosive(seed):
    inputs, targets = data.samples(seed)
    return inputs, 1e200 * targets


@pytest.mark.parametrize("loader", [partial(data.samples, 0), partial(explosive, 0)], ids=["late", "at once"])
def test_a_loss_that_is_not_finite_ends_it_as_fit(loader):
    found, expected = data.network(), data.network()
    with pytest.raises(NonFiniteError) as other:
        fit(expected, loader(), MeanSquaredError(), SGD(1e60), 5, 6, rng=0)
    with ThreadPoolExecutor(1) as executor, pytest.raises(NonFiniteError) as error:
        train(found, [loader], SGD(1e60), 5, executor=executor)
    assert str(error.value) == str(other.value)
    assert bits(found.named_parameters()) == bits(expected.named_parameters())


def test_a_broken_process_pool_ends_it_with_an_error_and_a_new_one_goes_on(tmp_path, expected):
    model, checkpoint = data.network(), tmp_path / "run.npz"
    loaders = [partial(data.deadly, 0, tmp_path), *[partial(data.samples, seed, 6 + seed) for seed in (1, 2)]]

    def kill_in_step_2(progress):
        if progress.step == 1:
            (tmp_path / "armed").touch()
            threading.Thread(target=kill_when_it_waits, args=(tmp_path,)).start()

    options = {"batch_size": 4, "keep_shards": False, "checkpoint": checkpoint, "checkpoint_every": 1}
    with spawned(1) as executor, pytest.raises(InvalidOperationError, match=r"step 2: shard 0, .*BrokenProcessPool"):
        train(model, loaders, callbacks=[kill_in_step_2], executor=executor, **options)
    model, optimizer = data.network(seed=3), Adam(1.0)
    history = train(model, loaders, optimizer, executor=None, resume=True, **options)
    assert outcome(model, history, optimizer) == expected


def test_a_driver_that_is_killed_in_a_step_is_resumed(tmp_path, expected):
    loaders = [shards()[0], partial(data.fatal, 1, tmp_path, 7), shards()[2]]
    driver = multiprocessing.get_context("spawn").Process(target=data.drive, args=(loaders, tmp_path))
    driver.start()
    driver.join()
    assert driver.exitcode == -signal.SIGKILL
    assert len(np.load(tmp_path / "run.npz")["history/step_losses"]) == 2
    model, optimizer = data.network(seed=3), Adam(1.0)
    history = train(model, loaders, optimizer, batch_size=4, checkpoint=tmp_path / "run.npz", resume=True)
    assert outcome(model, history, optimizer) == expected


def kill_when_it_waits(folder, pid=None):
    """Kill the process that hangs in the shard `deadly`, or another process, while it hangs."""
    while not (folder / "pid").exists():
        time.sleep(0.01)
    os.kill(pid or int((folder / "pid").read_text()), signal.SIGKILL)


# ---------------------------------------------------------------- checkpoints


def interrupted(path, step, model=None, optimizer=None, **options):
    """A training run that stops after a step, with a checkpoint every two steps."""
    with pytest.raises(EarlyStopError):
        train(
            model or data.network(),
            optimizer=optimizer,
            checkpoint=path,
            checkpoint_every=2,
            **{"callbacks": [stop_after(step)]} | options,
        )


@pytest.mark.parametrize("step", range(3, 9))
@pytest.mark.parametrize("optimizer", [SGD, Momentum, Adam])
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_resumed_training_ends_with_the_same_bits(step, optimizer, shuffle, tmp_path):
    """Two epochs of four steps: checkpoints fall both inside an epoch and between two."""
    options = {"batch_size": 2, "shuffle": shuffle}
    whole, model = optimizer(0.05), data.network()
    expected = outcome(model, train(model, optimizer=whole, **options), whole)
    assert len(expected[1].step_losses) == 8
    interrupted(tmp_path / "run.npz", step, optimizer=optimizer(0.05), **options)
    second, model = optimizer(9.0), data.network(seed=9)
    history = train(model, optimizer=second, rng=77, checkpoint=tmp_path / "run.npz", resume=True, **options)
    assert outcome(model, history, second) == expected
    assert second.learning_rate == 0.05


SCHEDULED = {"schedule": LinearDecay(warmup=0.3), "groups": {"*.matrix_b": 3.0}, "clip_norm": 0.1}


@pytest.mark.parametrize("step", [2, 5])
def test_schedule_groups_and_clipping_equal_those_of_fit_and_resume(step, tmp_path):
    loaders, options = [partial(data.samples, 0)], SCHEDULED | {"batch_size": 2}
    by_fit, expected, found = data.network(), data.network(), data.network()
    history = fit(by_fit, concatenated(loaders), MeanSquaredError(), Adam(0.05), 2, rng=0, **options)
    optimizer = Adam(0.05)
    whole = outcome(expected, train(expected, loaders, optimizer, **options))
    optimizer.reset()
    assert whole == outcome(by_fit, history)
    assert optimizer.learning_rate == 0.05
    path = tmp_path / "run.npz"
    stopping = options | {"checkpoint": path, "checkpoint_every": 1, "callbacks": [stop_after(step)]}
    with pytest.raises(EarlyStopError):
        train(data.network(), loaders, optimizer, **stopping)
    assert optimizer.learning_rate == 0.05
    resumed = train(found, loaders, Adam(0.05), checkpoint=path, resume=True, **options)
    assert outcome(found, resumed) == whole
    changed = {"schedule": LinearDecay(), "groups": {"*.matrix_b": 2.0}, "clip_norm": None}
    for name, value in changed.items():
        with pytest.raises(ArgumentError, match=f"different training run: {name} is .* in the file"):
            train(data.network(), loaders, Adam(0.05), checkpoint=path, resume=True, **options | {name: value})
    with pytest.raises(ArgumentError, match="different training run: schedule is"):
        train(data.network(), loaders, Adam(0.01), checkpoint=path, resume=True, **options)


@pytest.mark.parametrize("options", [{"clip_norm": 0}, {"groups": {"none": 1.0}}, {"schedule": "linear"}])
def test_rates_and_norms_are_refused_before_the_first_step(options):
    model = data.network()
    before = model.get_parameters()
    with pytest.raises(ArgumentError, match=next(iter(options))):
        train(model, **options)
    np.testing.assert_array_equal(model.get_parameters(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_resumes(kind, tmp_path):
    whole = adapter(kind)
    expected = outcome(whole, train(whole, batch_size=2))
    interrupted(tmp_path / "run.npz", 3, adapter(kind), batch_size=2)
    model = adapter(kind)
    model.set_parameters(np.zeros(model.parameter_count))
    assert outcome(model, train(model, batch_size=2, checkpoint=tmp_path / "run.npz", resume=True)) == expected


@pytest.mark.parametrize("bit_generator", GENERATORS, ids=lambda bit_generator: bit_generator.__name__)
def test_every_random_generator_resumes(bit_generator, tmp_path):
    whole = data.network()
    random = np.random.Generator(bit_generator(5))
    random.integers(9, dtype=np.uint8)  # some generators keep the unused bits
    expected = outcome(whole, train(whole, batch_size=2, rng=random))
    random = np.random.Generator(bit_generator(5))
    random.integers(9, dtype=np.uint8)
    interrupted(tmp_path / "run.npz", 5, batch_size=2, rng=random)
    model, other = data.network(), np.random.Generator(bit_generator(6))
    history = train(model, batch_size=2, rng=other, checkpoint=tmp_path / "run.npz", resume=True)
    assert outcome(model, history) == expected


def test_where_there_is_no_checkpoint_the_training_begins(tmp_path):
    found, expected = data.network(), data.network()
    history = train(found, checkpoint=tmp_path / "run.npz", resume=True)
    assert outcome(found, history) == outcome(expected, train(expected))
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]


def test_without_resume_it_begins_anew(tmp_path):
    found, expected = data.network(), data.network()
    interrupted(tmp_path / "run.npz", 3, batch_size=2)
    history = train(found, checkpoint=tmp_path / "run.npz")
    assert outcome(found, history) == outcome(expected, train(expected))


def test_a_finished_training_is_not_repeated_and_may_be_prolonged(tmp_path):
    model, calls = data.network(), []
    options = {"batch_size": 4, "checkpoint": tmp_path / "run.npz", "checkpoint_every": 100, "resume": True}
    history = train(model, **options)
    again = data.network(seed=1)
    assert outcome(again, train(again, callbacks=[calls.append], **options)) == outcome(model, history)
    assert calls == []
    longer, expected = data.network(seed=1), data.network()
    history = train(longer, epochs=5, **options)
    assert outcome(longer, history) == outcome(expected, train(expected, epochs=5, batch_size=4))


def test_checkpoints_are_written_every_few_steps_and_in_the_end(tmp_path):
    path, steps = tmp_path / "run.npz", []

    def look(progress):
        steps.append(len(np.load(path)["history/step_losses"]) if path.exists() else 0)

    train(data.network(), epochs=7, checkpoint=path, checkpoint_every=3, callbacks=[look])
    assert steps == [0, 0, 0, 3, 3, 3, 6]
    assert len(np.load(path)["history/step_losses"]) == 7


def test_a_checkpoint_holds_what_callbacks_have_set(tmp_path):
    """After each step, the callback sets the learning rate and the current task of the next one."""

    def build():
        return data.many_tasks(), SGD(0.05)

    def callback(progress, optimizer):
        progress.model.current_task = "abc"[progress.step % 3]
        optimizer.learning_rate *= 0.9

    whole, optimizer = build()
    expected = outcome(
        whole, train(whole, optimizer=optimizer, epochs=6, callbacks=[partial(callback, optimizer=optimizer)])
    )
    first, optimizer = build()
    callbacks = [partial(callback, optimizer=optimizer), stop_after(5)]
    interrupted(tmp_path / "run.npz", 5, first, optimizer, epochs=6, callbacks=callbacks)
    model, optimizer = build()
    callbacks = [partial(callback, optimizer=optimizer)]
    history = train(model, optimizer=optimizer, epochs=6, callbacks=callbacks, checkpoint=tmp_path / "run.npz", resume=True)
    assert outcome(model, history) == expected


def spoilt(seed, path):
    """A shard whose loss is not finite while a file exists."""
    inputs, targets = data.samples(seed)
    return inputs, targets * (1e200 if path.exists() else 1.0)


def test_a_loss_that_is_not_finite_right_after_the_checkpoint_undoes_the_step_before_it(tmp_path):
    poison = tmp_path / "poison"
    options = {"loaders": [partial(spoilt, 0, poison)], "keep_shards": False, "epochs": 6}

    def spoil(progress):
        if progress.step == 4:
            poison.touch()

    whole = data.network()
    with pytest.raises(NonFiniteError, match="step 5"):
        train(whole, callbacks=[spoil], **options)
    poison.unlink()
    interrupted(tmp_path / "run.npz", 5, **options)

    class Spoiling(ThreadPoolExecutor):
        """Spoils the data after they have been compared with those of the checkpoint."""

        def submit(self, function, *arguments):
            if function.__name__ == "differentiate":
                poison.touch()
            return super().submit(function, *arguments)

    model = data.network()
    with Spoiling(1) as executor, pytest.raises(NonFiniteError, match="step 5"):
        train(model, checkpoint=tmp_path / "run.npz", resume=True, executor=executor, **options)
    assert poison.exists()
    assert bits(model.named_parameters()) == bits(whole.named_parameters())


def test_a_checkpoint_needs_no_pickle(tmp_path):
    train(data.network(), checkpoint=tmp_path / "run.npz")
    with np.load(tmp_path / "run.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files if name != "lora_np.json"}
    assert {array.dtype.kind for array in arrays.values()} == {"f", "i"}


EQUAL = [partial(data.samples, seed, 8) for seed in (1, 2)]
"""Two shards of equal sizes."""
OTHER = partial(data.samples, 3, 8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 3}, "batch_size is 4 in the file, 3 here"),
        ({"loaders": shards(2)}, "shards is"),
        ({"shuffle": False}, "shuffle is True in the file, False here"),
        ({"optimizer": Momentum(0.05)}, "optimizer is"),
        ({"optimizer": Adam(0.05, beta1=0.8)}, "optimizer is"),
        (
            {"loss": FunctionLoss(lambda p, t: float(((p - t) ** 2).mean()))},
            "loss is {'type': 'lora_np.functions.losses.MeanSquaredError'}",
        ),
        ({"loss": Huber(0.5)}, "loss is"),
        ({"loaders": shards()[::-1]}, "(shards|data) is"),
        ({"loaders": EQUAL[::-1], "first": EQUAL}, "data is"),
        ({"loaders": [EQUAL[0], OTHER], "first": EQUAL}, "data is"),
        ({"rank_schedule": rank_per_row}, "rank_schedule is 'lora_np.training.nested_dropout.shared_rank' in the file"),
        ({"rank_schedule": partial(shared_rank)}, "rank_schedule is"),
        ({"rng": np.random.Generator(np.random.Philox(0))}, "rng is 'PCG64' in the file, 'Philox' here"),
        ({"model": data.other_base()}, "model is"),
    ],
)
def test_the_checkpoint_of_another_training_is_refused(changes, words, tmp_path):
    options = {"model": data.network(), "batch_size": 4} | changes
    train(data.network(), options.pop("first", None), batch_size=4, checkpoint=tmp_path / "run.npz")
    before = snapshot(options["model"])
    with pytest.raises(ArgumentError, match=rf"run.npz belongs to a different training run: {words}"):
        train(checkpoint=tmp_path / "run.npz", resume=True, **options)
    assert snapshot(options["model"]) == before


def test_equal_data_from_other_functions_fit_a_checkpoint(tmp_path):
    train(data.network(), EQUAL, checkpoint=tmp_path / "run.npz", epochs=1)
    same = [partial(dict.get, {0: loader()}, 0) for loader in EQUAL]
    model, resumed = data.network(), data.network()
    history = train(resumed, same, checkpoint=tmp_path / "run.npz", epochs=2, resume=True)
    assert outcome(model, train(model, EQUAL, epochs=2)) == outcome(resumed, history)


class Weighted(Loss):
    """A loss of a user, whose settings have no repr."""

    def __init__(self, weight):
        self.weight, self.note = weight, object()

    def compute(self, predictions, targets):
        value, slope = MeanSquaredError().compute(predictions, targets)
        return self.weight * value, self.weight * slope


def test_the_loss_of_a_user_is_told_apart_by_its_settings(tmp_path):
    train(data.network(), checkpoint=tmp_path / "run.npz", loss=Weighted(2.0))
    train(data.network(), checkpoint=tmp_path / "run.npz", loss=Weighted(2.0), resume=True)
    with pytest.raises(ArgumentError, match="loss is"):
        train(data.network(), checkpoint=tmp_path / "run.npz", loss=Weighted(3.0), resume=True)


def rewritten(path, change):
    """Change the header and the arrays of a file."""
    header, arrays = _archive.read(path)
    change(header, arrays)
    _archive.write(path, header, arrays)


@pytest.mark.parametrize(
    "change",
    [
        lambda header, arrays: header.pop("training"),
        lambda header, arrays: header["training"].pop("plan"),
        lambda header, arrays: arrays.pop("parameters"),
        lambda header, arrays: arrays.pop("history/ranks"),
        lambda header, arrays: header["training"].update(learning_rate="much"),
        lambda header, arrays: header["training"].update(settings={"nowhere": {"rank": 1}}),
        lambda header, arrays: header["training"].update(settings={"second": {"current_deployment_rank": 99}}),
        lambda header, arrays: header["training"].update(settings=3),
        lambda header, arrays: header["training"].update(random={"bit_generator": "PCG64"}),
        lambda header, arrays: header["training"].update(epoch_random=3),
        lambda header, arrays: arrays.update(parameters=np.ones(3)),
        lambda header, arrays: header["training"]["random"].update(state={"state": -1, "inc": 1}),
        lambda header, arrays: header["training"]["random"].update(state={"state": 2**200, "inc": 1}),
        lambda header, arrays: header["training"].update(random=[]),
        lambda header, arrays: header["training"].update(learning_rate=True),
        lambda header, arrays: header["training"].update(epoch_total="1e999"),
        lambda header, arrays: arrays.update({"before/second.lora.matrix_a": np.ones((2, 2))}),
        lambda header, arrays: arrays.update({"before/nowhere": np.ones((2, 2))}),
        lambda header, arrays: arrays.update({"optimizer/second.lora.matrix_a:first": np.ones((2, 2))}),
        lambda header, arrays: arrays.update({"history/step_losses": np.ones((2, 2))}),
        lambda header, arrays: arrays.update({"history/ranks": np.ones((1, 1), int)}),
        lambda header, arrays: arrays.update({"optimizer/second.lora.matrix_a:third": np.ones(3)}),
    ],
)
def test_a_damaged_checkpoint_is_refused_before_anything_changes(change, tmp_path):
    train(data.network(), checkpoint=tmp_path / "run.npz")
    rewritten(tmp_path / "run.npz", change)
    model, optimizer, random = data.network(seed=4), Adam(0.05), np.random.default_rng(3)
    before = snapshot(model), random.bit_generator.state
    with pytest.raises(FormatError, match=r"run.npz is (damaged|not a training checkpoint)"):
        train(model, optimizer=optimizer, rng=random, checkpoint=tmp_path / "run.npz", resume=True)
    assert (snapshot(model), random.bit_generator.state) == before
    assert optimizer.get_state() == {}


def test_another_file_is_no_checkpoint(tmp_path):
    save_layer(data.network(), tmp_path / "layer.npz")
    with pytest.raises(FormatError, match="is not a training checkpoint"):
        train(data.network(), checkpoint=tmp_path / "layer.npz", resume=True)


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"loaders": 3}, ArgumentError, "shards must be a sequence"),
        (
            {"loaders": [(np.ones((2, 5)), np.ones((2, 3)))]},
            ArgumentError,
            "shards must be functions that read data, not the data themselves",
        ),
        ({"loaders": []}, ArgumentError, "shards must contain at least one function"),
        ({"loss": "mse"}, ArgumentError, "loss must be a Loss"),
        ({"optimizer": "adam"}, ArgumentError, "optimizer must be an Optimizer"),
        ({"epochs": 0}, ArgumentOutOfRangeError, "epochs must be at least 1"),
        ({"batch_size": 0}, ArgumentOutOfRangeError, "batch_size must be at least 1"),
        ({"executor": 2}, ArgumentError, "executor must be a concurrent.futures.Executor, got 2"),
        ({"retries": -1}, ArgumentOutOfRangeError, "retries must be at least 0, got -1"),
        ({"retries": 1.5}, ArgumentError, "retries must be an integer"),
        ({"callbacks": [3]}, ArgumentError, "callbacks must be callable"),
        ({"checkpoint_every": 0}, ArgumentOutOfRangeError, "checkpoint_every must be at least 1"),
        ({"resume": True}, ArgumentNullError, "checkpoint must not be None"),
        ({"rng": "seed"}, ArgumentError, "rng must be"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, words):
    model = data.network()
    before = snapshot(model)
    with pytest.raises(error, match=words):
        train(model, **arguments)
    assert snapshot(model) == before


def test_a_model_without_anything_to_train_is_refused():
    with pytest.raises(InvalidOperationError, match="nothing to train"):
        train(ActivationLayer(5, tanh))


# ---------------------------------------------------------------- what a process keeps


def test_a_value_is_built_once_for_many_threads():
    built, recent = [], Recent()

    def build():
        built.append(1)
        time.sleep(0.02)
        return object()

    with ThreadPoolExecutor(4) as executor:
        values = set(executor.map(lambda _: recent.get("key", build), range(8)))
    assert len(built) == len(values) == 1


def test_the_least_recent_value_is_dropped():
    recent, built = Recent(2), []
    for key in "abacab":
        recent.get(key, lambda key=key: built.append(key) or key)
    assert built == ["a", "b", "c", "b"]


def test_what_could_not_be_built_is_built_again():
    recent = Recent()
    with pytest.raises(ZeroDivisionError):
        recent.get("key", lambda: 1 // 0)
    assert recent.get("key", lambda: 5) == 5
    recent.drop("key")
    recent.drop("key")
    assert recent.get("key", lambda: 6) == 6


# ---------------------------------------------------------------- dependencies


@pytest.mark.parametrize("module", ["lora_np", "lora_np.distributed"])
def test_importing_loads_no_dask(module):
    code = f"import {module}, sys; print(*(name for name in sys.modules if 'dask' in name or 'distributed' in name))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    names = set(result.stdout.split())
    assert {name.split(".")[0] for name in names} <= {"lora_np"}
    assert bool(names) == (module != "lora_np")


@pytest.mark.parametrize("call", [lambda: dask_executor().__enter__(), lambda: predict(data.network(), np.ones((2, 5)))])
def test_the_extra_is_named_where_it_is_missing(call, monkeypatch):
    for name in ("dask", "distributed"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(NotSupportedError, match=r'pip install "lora_np\[dask\]"'):
        call()


def test_the_path_of_a_checkpoint_may_be_bytes(tmp_path):
    path = tmp_path / "run.npz"
    train(data.network(), epochs=1, checkpoint=str(path).encode())
    assert path.exists()
