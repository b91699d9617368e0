"""Training and predicting on Dask: the same bits as in one process, even if workers or the scheduler die."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("distributed")

import dask
import dask.array

from lora_np import Adam, ArgumentError, DenseLayer, InvalidOperationError, StandardLoRAAdapter, save_layer
from lora_np.distributed import dask_executor, predict
from lora_np.distributed.cluster import _transfer
from tests import distributed_shards as data
from tests.kinds import bits
from tests.test_distributed import SENTENCES, kill_when_it_waits, outcome, shards, train, train_on_sentences


@pytest.fixture(scope="module")
def cluster():
    with dask_executor(workers=2) as executor:
        yield executor


@pytest.fixture(scope="module")
def expected():
    """The outcome in one process."""
    model, optimizer = data.network(), Adam(0.05)
    return outcome(model, train(model, optimizer=optimizer, batch_size=4), optimizer)


# ---------------------------------------------------------------- training


def test_a_cluster_gives_the_same_bits(cluster, expected):
    model, optimizer = data.network(), Adam(0.05)
    history = train(model, optimizer=optimizer, batch_size=4, executor=cluster, replica=data.network)
    assert outcome(model, history, optimizer) == expected


def test_a_cluster_trains_an_encoder_with_the_same_bits(cluster):
    found = train_on_sentences(SENTENCES, executor=cluster, replica=data.sentence_classifier)
    assert found == train_on_sentences(SENTENCES)


def threads(names):
    import os

    return {name: os.environ.get(name) for name in names}


def test_workers_have_one_blas_thread_unless_the_environment_says_otherwise(cluster):
    names = ["OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"]
    assert cluster.submit(threads, names).result() == {name: os.environ.get(name, "1") for name in names}


def test_a_worker_that_is_killed_in_a_step_changes_no_bit(cluster, expected, tmp_path):
    model, optimizer = data.network(), Adam(0.05)
    killers = []

    def kill_in_step_2(progress):
        if progress.step == 1:
            (tmp_path / "armed").touch()
            killers.append(threading.Thread(target=kill_when_it_waits, args=(tmp_path,)))
            killers[0].start()

    loaders = [shards()[0], partial(data.deadly, 1, tmp_path, 7), shards()[2]]
    history = train(
        model,
        loaders,
        optimizer,
        batch_size=4,
        callbacks=[kill_in_step_2],
        executor=cluster,
        replica=data.network,
        keep_shards=False,
        retries=0,
    )
    killers[0].join()
    assert (tmp_path / "pid").exists()
    assert outcome(model, history, optimizer) == expected


@contextmanager
def other_processes(folder):
    """A scheduler and a worker in separate processes: the scheduler's process and its address."""
    file = folder / "scheduler.json"
    common = ["--no-dashboard", "--scheduler-file", str(file)]
    commands = [
        ["dask_scheduler", "--port", "0"],
        ["dask_worker", "--nthreads", "1", "--no-nanny", "--death-timeout", "20"],
    ]
    processes = []
    try:
        for name, *options in commands:
            command = [sys.executable, "-m", f"distributed.cli.{name}", *common, *options]
            processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
            while not (file.exists() and file.read_text().endswith("}")):
                time.sleep(0.01)
        yield processes[0], json.loads(file.read_text())["address"]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_scheduler_that_is_killed_in_a_step_ends_it_with_an_error_and_the_checkpoint_goes_on(
    expected, tmp_path, monkeypatch
):
    monkeypatch.setattr("lora_np.distributed.cluster.PATIENCE", 1.0)
    loaders = [shards()[0], partial(data.deadly, 1, tmp_path, 7), shards()[2]]
    options = {"batch_size": 4, "keep_shards": False, "checkpoint": tmp_path / "run.npz", "checkpoint_every": 1}
    first, killers = data.network(), []
    words = r"step 3: shard \d, .* (was cancelled by the executor|failed on attempt 3 of 3)"
    impatient = dask.config.set({"distributed.comm.timeouts.connect": "2s"})
    with impatient, other_processes(tmp_path) as (scheduler, address):

        def kill_in_step_3(progress):
            if progress.step == 2:
                (tmp_path / "armed").touch()
                killers.append(threading.Thread(target=kill_when_it_waits, args=(tmp_path, scheduler.pid)))
                killers[0].start()

        with dask_executor(address) as executor, pytest.raises(InvalidOperationError, match=words):
            train(first, loaders, callbacks=[kill_in_step_3], executor=executor, replica=data.network, **options)
        killers[0].join()
    with pytest.raises(InvalidOperationError, match=r"shard 0, .*the connection to the Dask scheduler is closed"):
        train(data.network(), executor=executor)
    with np.load(tmp_path / "run.npz") as file:
        np.testing.assert_array_equal(file["parameters"], first.get_parameters())
    model, optimizer = data.network(seed=3), Adam(0.05)
    history = train(model, loaders, optimizer, resume=True, **options)
    assert outcome(model, history, optimizer) == expected


class Task:
    """A finished Dask task whose result takes several attempts to fetch."""

    def __init__(self, attempts, status="finished"):
        self.attempts, self.status = attempts, status

    def result(self, timeout):
        self.attempts -= 1
        if self.attempts:
            raise TimeoutError("too slow")
        return "fetched"


@pytest.mark.parametrize(
    ("task", "connection", "outcome"),
    [
        (Task(1), "running", "fetched"),
        (Task(3), "running", "fetched"),
        (Task(3), "closing", "too slow"),
        (Task(3, "error"), "running", "too slow"),
    ],
)
def test_a_result_is_waited_for_as_long_as_there_is_a_scheduler(task, connection, outcome):
    future = Future()
    _transfer(SimpleNamespace(status=connection), future, task)
    assert str(future.exception() or future.result()) == outcome


def test_a_call_that_was_cancelled_gets_no_result():
    future, task = Future(), Task(1)
    future.cancel()
    _transfer(SimpleNamespace(status="running"), future, task)
    assert task.attempts == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"workers": 0}, "workers must be at least 1"),
        (
            {"address": "tcp://127.0.0.1:1", "workers": 1},
            "workers must be None if an address is given: that cluster has its own, got 1",
        ),
    ],
)
def test_bad_arguments_of_the_cluster_are_refused(arguments, words):
    with pytest.raises(ArgumentError, match=words):
        dask_executor(**arguments).__enter__()


# ---------------------------------------------------------------- predicting


@pytest.mark.parametrize("chunks", [(7, 5), (3, 5), (3, 2), ((1, 0, 6), 5)], ids=str)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_blocks_give_what_the_model_gives(chunks, dtype):
    model = StandardLoRAAdapter(DenseLayer(data.IN, data.OUT, dtype=dtype, rng=0), 2, rng=0)
    inputs = data.samples(0, 7)[0]
    blocks = dask.array.from_array(inputs, chunks=chunks)
    result = predict(model, blocks)
    assert result.shape == (7, data.OUT)
    assert result.chunks == (blocks.chunks[0], (data.OUT,))
    assert result.dtype == result._meta.dtype == model.dtype
    computed = result.compute(scheduler="synchronous")
    assert computed.dtype == model.dtype
    np.testing.assert_allclose(computed, model.predict(inputs), rtol=1e-5 if dtype == np.float32 else 1e-13)


@pytest.mark.parametrize("inner", [(), (2,), (2, 3)])
def test_arrays_with_any_leading_axes_are_predicted(inner):
    model, inputs = data.network(), data.samples(0, 4, inner)[0]
    result = predict(model, dask.array.from_array(inputs, chunks=2))
    assert result.chunks[:-1] == dask.array.from_array(inputs, chunks=2).chunks[:-1]
    np.testing.assert_allclose(result.compute(scheduler="threads"), model.predict(inputs), rtol=1e-13)
    np.testing.assert_allclose(
        predict(model, dask.array.from_array(inputs[0].ravel()[:5])), model.predict(inputs[0].ravel()[:5])
    )


def test_blocks_of_unknown_length_are_predicted():
    inputs = data.samples(0, 8)[0]
    blocks = dask.array.from_array(inputs, chunks=(3, 5))
    positive = blocks[blocks[:, 0] > 0]
    result = predict(data.network(), positive).compute(scheduler="synchronous")
    np.testing.assert_allclose(result, data.network().predict(inputs[inputs[:, 0] > 0]), rtol=1e-13)


def test_nothing_is_computed_before_it_is_asked_for():
    computed = []

    def block(block_info=None):
        computed.append(1)
        return np.ones((2, data.IN))

    blocks = dask.array.map_blocks(block, chunks=((2, 2), (data.IN,)), dtype=float, meta=np.empty((0, 0)))
    result = predict(data.network(), blocks)
    assert computed == []
    assert result.compute(scheduler="synchronous").shape == (4, data.OUT)
    assert len(computed) == 2


def test_later_training_does_not_change_the_prediction():
    model, inputs = data.network(), data.samples(0)[0]
    before = model.predict(inputs)
    result = predict(model, dask.array.from_array(inputs))
    train(model)
    model["second"].current_deployment_rank = 1
    np.testing.assert_allclose(result.compute(scheduler="synchronous"), before, rtol=1e-13)


@pytest.mark.parametrize("replica", ["model", "function", "file"])
def test_the_cluster_predicts(replica, cluster, tmp_path):
    model, inputs = data.network(seed=8), data.samples(0, 9)[0]
    model["second"].current_deployment_rank = 1
    save_layer(data.network(), tmp_path / "base.npz")
    source = {"model": None, "function": data.network, "file": tmp_path / "base.npz"}[replica]
    blocks = dask.array.from_array(inputs, chunks=(2, 5))
    result = predict(model, blocks, replica=source)
    np.testing.assert_allclose(result.compute(scheduler=cluster._client), model.predict(inputs), rtol=1e-13)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: np.ones((2, data.IN)), "input must be a dask.array.Array"),
        (lambda: dask.array.ones((2, data.IN + 1)), r"input must have shape \(..., 5\), got \(2, 6\)"),
        (lambda: dask.array.ones(()), r"input must have shape \(..., 5\), got \(\)"),
    ],
)
def test_input_that_does_not_fit_is_refused(build, words):
    with pytest.raises(ArgumentError, match=words):
        predict(data.network(), build())


def test_a_replica_of_another_base_is_refused():
    result = predict(data.other_base(), dask.array.ones((2, data.IN)), replica=data.network)
    with pytest.raises(ArgumentError, match="replica must provide the model that is trained"):
        result.compute(scheduler="synchronous")


def test_predicting_leaves_the_model_alone():
    model = data.network()
    before = bits(model.named_parameters(frozen=True))
    predict(model, dask.array.ones((2, data.IN))).compute(scheduler="synchronous")
    assert bits(model.named_parameters(frozen=True)) == before
    assert model.is_training
