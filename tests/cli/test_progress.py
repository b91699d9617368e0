import io
import sys

import numpy as np
import pytest

from lora_np import SGD, DenseLayer, MeanSquaredError, fit
from lora_np.terminal.progress import bar, silent


class Terminal(io.StringIO):
    def isatty(self):
        return True


def train(callbacks):
    fit(
        DenseLayer(2, 1, rng=0), (np.ones((6, 2)), np.ones((6, 1))), MeanSquaredError(), SGD(0.1), 2, 3, callbacks=callbacks
    )


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    callbacks = bar("base")
    train(callbacks)
    assert "base" in sys.stderr.getvalue()
    assert capsys.readouterr().out == ""


def test_nothing_without_a_terminal():
    assert bar("base") == silent("base") == ()


def test_nothing_without_tqdm(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert bar("base") == ()
    assert sys.stderr.getvalue() == ""
