"""`ProgressBar`: one line on a terminal, and nothing elsewhere."""

import io
import os
import shutil
import sys
import time

import numpy as np
import pytest

from lora_np import SGD, ArgumentError, DenseLayer, MeanSquaredError, fit
from lora_np.training import Progress, ProgressBar

MODEL = DenseLayer(2, 1, rng=0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets, and a terminal of 100 columns."""
    now = [50.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((100, 24)))
    return now


def progress(step, validation=None, steps=100):
    return Progress(MODEL, 1 + (step - 1) // 10, 10, step, steps, 0.123456, validation)


def shown(bar, clock, *moments):
    """The lines after steps at some times, without the padding."""
    for step, seconds in moments:
        clock[0] = 50 + seconds
        bar(progress(step))
    lines = bar.file.getvalue().split("\r")
    assert {len(line) for line in lines} <= {0, 99}
    return [line.rstrip() for line in lines[1::2]]


def test_the_line_shows_epoch_step_loss_and_the_time_left(clock):
    lines = shown(ProgressBar("base", Terminal()), clock, (1, 0), (31, 60))
    assert lines == [
        "base .................... epoch 1/10, step 1/100, loss 0.1235",
        "base ######.............. epoch 4/10, step 31/100, loss 0.1235, 2:18 left",
    ]


def test_the_validation_loss_is_shown_when_it_is_measured(clock):
    bar = ProgressBar(file=Terminal())
    bar(progress(50, 0.5))
    assert bar.file.getvalue().strip() == "##########.......... epoch 5/10, step 50/100, loss 0.1235, validation loss 0.5"


def test_it_is_updated_at_most_ten_times_a_second_and_cleared_at_the_end(clock):
    lines = shown(ProgressBar(file=Terminal()), clock, *((step, step / 32) for step in range(1, 101)))
    assert [line.partition("step ")[2].partition("/")[0] for line in lines[:3]] == ["1", "5", "9"]
    assert len(lines) == 26
    assert lines[-1] == ""


def test_a_second_run_is_timed_from_its_start(clock):
    lines = shown(ProgressBar(file=Terminal()), clock, (1, 0), (50, 10), (20, 100), (30, 105))
    assert lines[2].endswith("step 20/100, loss 0.1235")
    assert lines[3].endswith("0:35 left")


def test_a_narrow_terminal_cuts_the_line(clock, monkeypatch):
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((12, 24)))
    bar = ProgressBar("base", Terminal())
    bar(progress(50))
    assert bar.file.getvalue() == "\rbase ######\r"


def test_nothing_is_written_to_a_file():
    file = io.StringIO()
    ProgressBar(file=file)(progress(1))
    assert file.getvalue() == ""


def test_fit_shows_it_on_standard_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Terminal())
    data = np.ones((6, 2)), np.ones((6, 1))
    fit(DenseLayer(2, 1, rng=0), data, MeanSquaredError(), SGD(0.1), 2, 3, callbacks=[ProgressBar("base")])
    assert "base #####" in sys.stderr.getvalue()
    assert sys.stderr.getvalue().endswith(" \r")
    assert capsys.readouterr().out == ""


def test_a_label_is_a_string():
    with pytest.raises(ArgumentError, match="label must be a string, got 3"):
        ProgressBar(3)
