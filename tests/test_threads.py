"""Threads: what may run beside `predict` and saving, with every interleaving of one thread's lines with another's call.

A tracer stops a call before one of its lines, and there another call runs from beginning to end, as a thread could that the
interpreter switches to at this point. One test for each line, so nothing is left to chance.
"""

import contextlib
import io
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import lora_np
from lora_np import (
    ArgumentError,
    DenseLayer,
    DyLoRAAdapter,
    InvalidOperationError,
    LoRALayer,
    MultiLoRAAdapter,
    Sequential,
    load_layer,
    save_layer,
    tanh,
)
from tests.kinds import KINDS, LAYERS, batch, build, randomised, snapshot

ROOT = str(Path(lora_np.__file__).parent)
X = batch(4, 5, seed=0)
MIXED = ["first", "second", None, "first"]


def adapter():
    """Three tasks, of which the second is current."""
    return randomised(KINDS["multilora"](DenseLayer(5, 3, rng=0), 2, 3.0, rng=0))


def model():
    return Sequential({"up": adapter(), "down": DenseLayer(3, 2, tanh, rng=1)})


def inner(layer):
    return layer["up"] if isinstance(layer, Sequential) else layer


CHANGES = {
    "add": lambda layer: inner(layer).add_task("new", 1),
    "remove the current task": lambda layer: inner(layer).remove_task("second"),
    "remove another task": lambda layer: inner(layer).remove_task("first"),
    "replace": lambda layer: inner(layer).replace_task("first", randomised(LoRALayer(5, 3, 3, rng=5), 5)),
    "select": lambda layer: inner(layer).set_current_task("third"),
}


def saved(layer):
    stream = io.BytesIO()
    save_layer(layer, stream)
    stream.seek(0)
    return load_layer(stream)


READS = {
    "predict": lambda layer: layer.predict(X),
    "predict one task": lambda layer: layer.predict(X, tasks=["first"] * 4),
    "predict tasks": lambda layer: layer.predict(X, tasks=MIXED),
    "save": lambda layer: saved(layer).predict(X),
    "repr": lambda layer: np.array(len(repr(layer)) > 0),
    "list": lambda layer: np.array(len(layer.named_parameters(frozen=True)) > 3),
    "diagnose": lambda layer: np.array(len(layer.get_diagnostics()) > 0),
    "merge": lambda layer: inner(layer).merge_to_original_layer().weight,
}


def stopped_at(number, call, other):
    """Run `call()`, and `other()` before its given line; returns the result or the error, and the lines seen."""
    seen = 0

    def watch(frame, event, argument):
        nonlocal seen
        if not frame.f_code.co_filename.startswith(ROOT):
            return None
        if event == "line":
            seen += 1
            if seen == number:
                thread = threading.Thread(target=other)
                thread.start()
                thread.join()
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        return call(), seen
    except (ArgumentError, InvalidOperationError) as error:
        return error, seen
    finally:
        sys.settrace(before)


def answers(read, change, build):
    """What a read may return: what it returns before the change, or after it, or the error after it."""
    found = [read(build())]
    layer = build()
    change(layer)
    with contextlib.suppress(ArgumentError, InvalidOperationError):
        found.append(read(layer))
    return found


@pytest.mark.parametrize("build", [adapter, model], ids=["adapter", "model"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_a_change_between_any_two_lines_of_a_read(read, change, build):
    _, lines = stopped_at(None, partial(read, build()), None)
    allowed = answers(read, change, build)
    for number in range(1, lines + 1, 1 + lines // 60):
        layer = build()
        result, _ = stopped_at(number, partial(read, layer), partial(change, layer))
        if isinstance(result, Exception):
            assert "removed" in str(result) or "must be known" in str(result) or "changed by another thread" in str(result)
        else:
            assert any(np.array_equal(result, answer) for answer in allowed), number


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_a_read_between_any_two_lines_of_a_change(read, change):
    _, lines = stopped_at(None, partial(change, adapter()), None)
    allowed = answers(read, change, adapter)
    for number in range(1, lines + 1):
        layer, results = adapter(), []

        def look(layer=layer, results=results):
            try:
                results.append(read(layer))
            except (ArgumentError, InvalidOperationError) as error:
                results.append(error)

        stopped_at(number, partial(change, layer), look)
        (result,) = results
        if isinstance(result, Exception):
            assert "must be known" in str(result)
        else:
            assert any(np.array_equal(result, answer) for answer in allowed), number


@pytest.mark.parametrize("rank", [1, 4])
def test_the_deployment_rank_may_change_beside_predict(rank):
    def nested():
        return randomised(DyLoRAAdapter(DenseLayer(5, 4, rng=0), 4, [1, 2, 4], rng=0))

    def change(layer):
        layer.current_deployment_rank = rank

    layer = nested()
    layer.current_deployment_rank = 2
    _, lines = stopped_at(None, partial(layer.predict, X), None)
    allowed = [nested().predict(X, rank=2), nested().predict(X, rank=rank)]
    for number in range(1, lines + 1):
        layer.current_deployment_rank = 2
        result, _ = stopped_at(number, partial(layer.predict, X), partial(change, layer))
        assert any(np.array_equal(result, answer) for answer in allowed)


def test_an_unfinished_save_writes_nothing(tmp_path):
    path = tmp_path / "layer.npz"
    layer = adapter()
    save_layer(layer, path)
    old, refused = path.read_bytes(), 0
    _, lines = stopped_at(None, partial(save_layer, adapter(), path), None)
    path.write_bytes(old)
    for number in range(1, lines + 1, 11):
        layer = adapter()
        result, _ = stopped_at(number, partial(save_layer, layer, path), partial(CHANGES["add"], layer))
        if isinstance(result, InvalidOperationError):
            refused += 1
            assert path.read_bytes() == old
        else:
            load_layer(path)
            path.write_bytes(old)
    assert refused > 3


def test_a_task_added_between_the_structure_and_the_arrays_of_a_save_is_an_error(monkeypatch, tmp_path):
    layer, arrays = adapter(), MultiLoRAAdapter.named_parameters

    def after_a_change(self, *, frozen=False):
        monkeypatch.undo()
        CHANGES["add"](layer)
        return arrays(self, frozen=frozen)

    monkeypatch.setattr(MultiLoRAAdapter, "named_parameters", after_a_change)
    with pytest.raises(InvalidOperationError, match="changed by another thread while it was saved; save it again"):
        save_layer(layer, tmp_path / "layer.npz")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- many threads at once


@pytest.mark.parametrize("name", LAYERS)
def test_any_number_of_threads_predict_and_save(name):
    layer = build(name)
    x = batch(6, layer.input_size, seed=1)
    expected, before = layer.predict(x), snapshot(layer)
    start = threading.Barrier(4)

    def work(number):
        start.wait()
        return [layer.predict(x) if number else saved(layer).predict(x) for _ in range(4)]

    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(work, range(4)):
            assert all(np.array_equal(result, expected) for result in results)
    assert snapshot(layer) == before


def test_tasks_come_and_go_while_threads_predict_and_save():
    layer, done = adapter(), threading.Event()
    expected = {task: layer.predict(X, tasks=[task] * 4) for task in ("second", "third")}
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def read():
        count = 0
        while not done.is_set() or count < 20:
            for task, y in expected.items():
                assert np.array_equal(layer.predict(X, tasks=[task] * 4), y)
            with contextlib.suppress(InvalidOperationError):
                assert set(saved(layer).task_adapters) >= set(expected)
            repr(layer)
            count += 1
        return count

    try:
        with ThreadPoolExecutor(3) as pool:
            readers = [pool.submit(read) for _ in range(2)]
            for number in range(60):
                layer.add_task(f"task {number}", 1)
                layer.current_task = f"task {number}"
                layer.remove_task(f"task {number}")
            done.set()
            assert all(reader.result() >= 20 for reader in readers)
    finally:
        sys.setswitchinterval(switch)
    assert list(layer.task_adapters) == ["first", "second", "third"]


def test_a_task_removed_after_the_check_is_named():
    layer = adapter()
    run = layer.new_run(X, tasks=MIXED)
    layer.remove_task("first")
    with pytest.raises(InvalidOperationError, match="the task 'first' was removed during the pass"):
        layer.apply(X, run)


def test_multilora_is_the_adapter_that_is_tested():
    assert type(adapter()) is MultiLoRAAdapter
