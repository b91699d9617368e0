"""Ctrl-C in a training: at whichever line it arrives, each step has been taken as a whole or not at all."""

import itertools
import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import lora_np
from lora_np import AdamW, DenseLayer, DyLoRAAdapter, MeanSquaredError, Momentum, Sequential, apply_lora, fit, tanh
from lora_np.distributed import fit_shards
from lora_np.training import SortedStart
from lora_np.training.interrupts import Interrupts
from tests.kinds import batch, bits

ROOT = Path(lora_np.__file__).parent
WATCHED = [str(ROOT / part) for part in ("training", "distributed/training.py", "base/parameters.py", "adapters/dylora.py")]
X, Y = batch(6, 4, seed=0), batch(6, 2, seed=1)


@pytest.fixture(autouse=True)
def python_handles_interrupts():
    """A shell may have started the tests in the background, where SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Run:
    """A training run: what it trains, and the state of everything after each step."""

    def __init__(self, optimizer, start):
        base = Sequential([DenseLayer(4, 3, tanh, rng=0), DenseLayer(3, 2, rng=1)])
        self.model = apply_lora(base, DyLoRAAdapter, max_rank=2, active_ranks=[1, 2], rng=0)
        self.optimizer, self.random, self.start = optimizer(0.01), np.random.default_rng(0), start
        self.states = [self.state()]

    def state(self):
        return bits(self.model.named_parameters()), bits(self.optimizer.get_state()), str(self.random.bit_generator.state)

    def __call__(self):
        self.start(self)


def by_fit(run):
    fit(run.model, (X, Y), MeanSquaredError(), run.optimizer, 2, 3, rng=run.random, callbacks=[partial(note, run)])


def by_sorting(run):
    options = {"rng": run.random, "callbacks": [partial(note, run)], "rank_schedule": SortedStart(2)}
    fit(run.model, (X, Y), MeanSquaredError(), run.optimizer, 2, 3, **options)


def by_shards(run):
    shards = [lambda: (X[:3], Y[:3]), lambda: (X[3:], Y[3:])]
    fit_shards(run.model, shards, MeanSquaredError(), run.optimizer, 2, 2, rng=run.random, callbacks=[partial(note, run)])


def note(run, progress):
    run.states.append(run.state())


def interrupted_at(number, action):
    """Call `action()` and send SIGINT at the given watched line; returns the lines seen, and whether it was stopped."""
    seen = 0

    def watch(frame, event, argument):
        nonlocal seen
        if not frame.f_code.co_filename.startswith(tuple(WATCHED)):
            return None
        if event == "line":
            seen += 1
            if seen == number:
                signal.raise_signal(signal.SIGINT)
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        action()
    except KeyboardInterrupt:
        return seen, True
    finally:
        sys.settrace(before)
    return seen, False


@pytest.mark.parametrize(
    ("start", "optimizer", "every"),
    [(by_fit, AdamW, 31), (by_fit, Momentum, 61), (by_sorting, AdamW, 29), (by_shards, AdamW, 83)],
    ids=["fit, AdamW", "fit, Momentum", "a sorted start, AdamW", "fit_shards"],
)
def test_an_interrupt_at_any_line_leaves_the_state_of_a_step(start, optimizer, every):
    whole = Run(optimizer, start)
    lines, stopped = interrupted_at(None, whole)
    assert len(whole.states) == 5
    assert not stopped
    steps = set()
    for number in itertools.chain(range(1, lines, every), [lines]):
        run = Run(optimizer, start)
        _, stopped = interrupted_at(number, run)
        assert stopped, number
        assert run.state() == run.states[-1], number
        assert run.states == whole.states[: len(run.states)], number
        steps.add(len(run.states) - 1)
    assert steps >= {0, 1, 2, 3, 4}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_of_nested_dropout_leaves_the_state_of_a_step():
    def adapter():
        return DyLoRAAdapter(DenseLayer(4, 2, rng=0), 2, [1, 2], rng=1)

    def state(adapter):
        return bits(adapter.named_parameters()), str(adapter._rng.bit_generator.state)

    def train(model, steps):
        pairs = list(X[:2]) * 3, list(Y[:2]) * 3
        model.train_with_nested_dropout(*(each[:steps] for each in pairs), 1, 0.1, MeanSquaredError())

    after = []
    for steps in range(7):
        model = adapter()
        if steps:
            train(model, steps)
        after.append(state(model))
    lines, _ = interrupted_at(None, partial(train, adapter(), 6))
    found = set()
    for number in range(1, lines, 29):
        model = adapter()
        assert interrupted_at(number, partial(train, model, 6))[1]
        found.add(after.index(state(model)))
    assert found == set(range(7))


def test_the_callbacks_of_the_last_step_are_called_before_the_interrupt():
    steps = []

    def callback(progress):
        steps.append(progress.step)
        if progress.step == 2:
            signal.raise_signal(signal.SIGINT)
            steps.append("after the signal")

    with pytest.raises(KeyboardInterrupt):
        fit(
            DenseLayer(4, 2, rng=0),
            (X, Y),
            MeanSquaredError(),
            AdamW(),
            3,
            2,
            callbacks=[callback, lambda p: steps.append("b")],
        )
    assert steps == [1, "b", 2, "after the signal", "b"]


def test_a_second_interrupt_is_immediate():
    reached = []

    def callback(progress):
        for number in range(3):
            reached.append(number)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(DenseLayer(4, 2, rng=0), (X, Y), MeanSquaredError(), AdamW(), 3, 2, callbacks=[callback])
    assert reached == [0, 1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_without_a_check_is_raised_at_the_end_of_the_block():
    done = []

    def block():
        with Interrupts():
            signal.raise_signal(signal.SIGINT)
            done.append("block")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done == ["block"]


def test_the_error_of_a_block_comes_before_the_interrupt():
    def block():
        with Interrupts():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("own")

    with pytest.raises(ValueError, match="own"):
        block()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.fixture
def handler():
    """Sets another handler for the duration of a test."""
    before = signal.getsignal(signal.SIGINT)
    yield partial(signal.signal, signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_a_handler_of_the_program_is_called_at_the_check(handler):
    calls = []
    handler(lambda number, frame: calls.append(number))
    with Interrupts() as interrupts:
        interrupts.check()
        signal.raise_signal(signal.SIGINT)
        assert calls == []
        interrupts.check()
        interrupts.check()
        assert calls == [signal.SIGINT]


def test_a_program_that_ignores_interrupts_still_does(handler):
    handler(signal.SIG_IGN)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        interrupts.check()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_in_other_threads_nothing_changes():
    handlers = []

    def work():
        with Interrupts() as interrupts:
            handlers.append(signal.getsignal(signal.SIGINT))
            interrupts.check()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]
