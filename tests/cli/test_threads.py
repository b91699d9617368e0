"""The number of BLAS threads of a command."""

import json
import os
import subprocess
import sys

import pytest

from lora_np.cli import _threads

NAMES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


@pytest.fixture
def fresh(monkeypatch):
    """A process that has not imported NumPy, on 32 processors."""
    monkeypatch.delitem(sys.modules, "numpy")
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that the test's changes are undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(_threads, "_processors", lambda: 32)
    return monkeypatch


def chosen(*words):
    _threads.choose_threads(list(words))
    return [os.environ.get(name) for name in NAMES]


@pytest.mark.parametrize("words", [["demo"], ["demo", "--seed", "1"], ["gradcheck", "--quick"]])
def test_small_commands_use_one_thread(fresh, words):
    assert chosen(*words) == ["1", "1", None]


@pytest.mark.parametrize("words", [["embed", "model"], ["demo", "text"], ["extract"], []])
def test_other_commands_use_at_most_eight(fresh, words):
    assert chosen(*words) == ["8", "8", None]


def test_all_processors_of_a_small_machine_are_used(fresh):
    fresh.setattr(_threads, "_processors", lambda: 2)
    assert chosen("embed") == ["2", "2", None]


@pytest.mark.parametrize("name", NAMES)
def test_the_environment_decides(fresh, name):
    fresh.setenv(name, "5")
    assert chosen("demo") == ["5" if name == each else None for each in NAMES]


def test_nothing_is_set_once_numpy_is_imported(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    assert "numpy" in sys.modules
    assert chosen("demo") == [None] * 3


def test_processors_are_those_of_the_process(monkeypatch):
    if hasattr(os, "sched_getaffinity"):
        assert _threads._processors() == len(os.sched_getaffinity(0))
        monkeypatch.delattr(os, "sched_getaffinity")
    assert _threads._processors() == os.cpu_count()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert _threads._processors() == 1


def test_the_command_line_chooses_before_numpy_is_imported():
    program = (
        "import json, os, sys; from lora_np.cli import main; assert 'numpy' not in sys.modules\n"
        "try: main(['gradcheck', '--help'])\n"
        "except SystemExit: pass\n"
        "print(json.dumps(os.environ['OPENBLAS_NUM_THREADS']))"
    )
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1]) == "1", done.stderr
