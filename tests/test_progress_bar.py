"""`ProgressBar`: one line on a terminal, and nothing elsewhere."""

import io
import sys

import numpy as np
import pytest

from lora_np import SGD, ArgumentError, DenseLayer, MeanSquaredError, fit
from lora_np.training import Progress, ProgressBar

tqdm = pytest.importorskip("tqdm")
MODEL = DenseLayer(2, 1, rng=0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def every_update(monkeypatch):
    """Show each step, however fast."""
    monkeypatch.setattr(tqdm.tqdm, "__init__", wrapped(tqdm.tqdm.__init__))


def wrapped(init):
    return lambda self, *arguments, **options: init(self, *arguments, **options, mininterval=0, miniters=1, ncols=100)


def progress(step, validation=None, steps=8):
    return Progress(MODEL, 1 + (step - 1) // 4, 2, step, steps, 0.123456, validation)


def lines(bar):
    return [line.rstrip() for line in bar.file.getvalue().split("\r") if line.strip()]


def test_the_line_shows_the_label_steps_and_losses():
    bar = ProgressBar("base", Terminal())
    bar(progress(1))
    bar(progress(4, 0.5))
    assert lines(bar)[-2].startswith("base:  12%|")
    assert "1/8" in lines(bar)[-2]
    assert "loss=0.1235" in lines(bar)[-2]
    assert "validation" not in lines(bar)[-2]
    assert lines(bar)[-1].startswith("base:  50%|")
    assert "4/8" in lines(bar)[-1]
    assert "validation=0.5" in lines(bar)[-1]


def test_it_disappears_at_the_end_and_a_second_run_starts_anew():
    bar = ProgressBar(file=Terminal())
    for _ in range(2):
        for step in range(1, 9):
            bar(progress(step))
        assert bar.file.getvalue().rpartition("8/8")[2].endswith("\r" + " " * 99 + "\r") or bar.file.getvalue().endswith(
            "\r"
        )
        assert bar.file.getvalue().split("\r")[-2].strip() == ""
    assert [line.split("/8")[0].split()[-1] for line in lines(bar) if " 0/8" in line] == ["0", "0"]


def test_a_run_that_was_cut_off_is_followed_by_another():
    bar = ProgressBar(file=Terminal())
    bar(progress(5))
    bar(progress(1))
    assert "1/8" in lines(bar)[-1]


def test_runs_of_one_step_have_a_line_each():
    bar = ProgressBar("base", Terminal())
    for runs in (1, 2):
        bar(progress(1, steps=1))
        assert sum("1/1" in line for line in lines(bar)) == runs


def test_a_resumed_run_starts_where_it_was():
    bar = ProgressBar(file=Terminal())
    bar(progress(6))
    assert "6/8" in lines(bar)[-1]


def test_nothing_is_written_to_a_file():
    file = io.StringIO()
    ProgressBar(file=file)(progress(1))
    assert file.getvalue() == ""


def test_fit_shows_it_on_standard_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Terminal())
    data = np.ones((6, 2)), np.ones((6, 1))
    fit(DenseLayer(2, 1, rng=0), data, MeanSquaredError(), SGD(0.1), 2, 3, callbacks=[ProgressBar("base")])
    assert "base: 100%|" in sys.stderr.getvalue()
    assert capsys.readouterr().out == ""


def test_without_tqdm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=r'ProgressBar needs tqdm: pip install "lora_np\[progress\]"'):
        ProgressBar()


def test_a_label_is_a_string():
    with pytest.raises(ArgumentError, match="label must be a string, got 3"):
        ProgressBar(3)
