"""The fuzzers, for a few seconds each, and proof that they find what is planted; ``python -m tests.fuzz`` runs longer."""

import contextlib
import json
import random
import time

import pytest

from lora_np import _archive
from lora_np.io import safetensors
from tests.fuzz import calls, files, kills

SECONDS = 5
"""For each fuzzer; a slow machine tries fewer inputs."""


def within(seconds):
    end = time.process_time() + seconds
    return lambda: time.process_time() > end


def test_damaged_files_are_read_or_refused():
    done, falls = files.attack(1_000, deadline=within(SECONDS))
    assert falls == []
    assert done >= 100


def test_bad_arguments_are_refused_clearly_and_change_nothing():
    done, falls = calls.attack(2_300, deadline=within(SECONDS))
    assert falls == []
    assert done >= 100


def test_killed_writers_leave_the_old_content_or_the_new():
    done, falls = kills.attack(40, deadline=within(SECONDS))
    assert falls == []
    assert done >= 10


# ---------------------------------------------------------------- what the fuzzers would find


@contextlib.contextmanager
def written_directly(path):
    with _archive.os.fdopen(_archive.os.open(path, 577, 0o644), "wb") as file:  # 577: write, create, truncate
        yield file


def test_a_writer_that_is_not_atomic_falls(monkeypatch, tmp_path):
    monkeypatch.setattr(safetensors, "atomic_file", written_directly)
    _, falls = kills.killed("safetensors", kills.WRITERS["safetensors"], tmp_path, random.Random(0))
    assert falls


@pytest.mark.parametrize("error", [KeyError, RecursionError, MemoryError, UnicodeDecodeError, AssertionError])
def test_a_reader_that_raises_something_else_falls(tmp_path, error):
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"a": [1, {"b": "text"}]}))

    def read(path):
        raise error("utf-8", b"", 0, 1, "no") if error is UnicodeDecodeError else error("no")

    assert files.attempt(tmp_path, path.name, read, path, random.Random(0)).startswith(error.__name__)
    assert json.loads(path.read_text()) == {"a": [1, {"b": "text"}]}


def test_damaged_files_differ_and_their_containers_are_valid(tmp_path):
    readers = files.written(tmp_path)
    assert len(readers) >= 13
    for name in ("layer.npz", "tensors.safetensors", "model.gguf"):
        path = tmp_path / name
        good = path.read_bytes()
        found = {files.damaged(path, random.Random(seed)) for seed in range(40)}
        assert len(found - {good}) > 30


def test_a_call_that_changes_something_before_it_is_refused_falls():
    class Layer:
        def __init__(self):
            self.layer = calls.tasks()

        def __call__(self, learning_rate):
            self.layer.current_task = "second"
            raise calls.errors.ArgumentError("no")

    target = Layer()
    call = target.__call__

    class Bound:
        __self__ = target.layer
        __signature__ = calls.inspect.signature(call)

        def __call__(self, learning_rate):
            return call(learning_rate)

    fall = calls.attempt(calls.Target("planted", Bound), None, random.Random(0), pool=[1])
    assert "changed something, then raised" in fall.problem
