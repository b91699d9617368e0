import sys

import pytest

from lora_np.terminal.progress import bar, silent
from lora_np.training import ProgressBar


def test_a_bar_has_the_label():
    pytest.importorskip("tqdm")
    (callback,) = bar("base")
    assert isinstance(callback, ProgressBar)
    assert callback.label == "base"


def test_nothing_without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert bar("base") == ()


def test_silence_has_no_callbacks():
    assert silent("base") == ()
