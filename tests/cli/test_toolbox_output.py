"""What the verbs share: help, standard output, and one-line errors."""

import io
import os
import re
import subprocess
import sys

import pytest

from lora_np.cli import _streams, main
from lora_np.cli._text import counted, natural, plain, printable, share
from tests.cli.toolbox import first_numbers, weights, write_base, write_kohya, write_peft, write_shards

VERBS = ["inspect", "merge", "unmerge", "truncate", "combine", "convert", "extract", "diff"]


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_examples(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert out.isascii()
    assert re.search(rf"^examples:\n  lora-np {verb} ", out, re.MULTILINE)


@pytest.mark.parametrize("verb", VERBS)
def test_arguments_are_required(verb, misuse):
    assert f"lora-np {verb}: error: the following arguments are required: " in misuse(verb)


def non_ascii(folder):
    from lora_np.factors.weights import AdapterWeights

    return write_kohya(folder / "a.safetensors", AdapterWeights({"größe": weights().layers["first"]}))


@pytest.mark.parametrize(("encoding", "name"), [("utf-8", "größe"), ("ascii", r"gr\xf6\xdfe")])
def test_standard_output_in_any_encoding(tmp_path, encoding, name, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    assert main(["inspect", non_ascii(tmp_path)]) == 0
    assert f"\n{name} " in raw.getvalue().decode(encoding)
    assert sys.stdout.errors == "strict"


def test_standard_output_that_is_not_a_file(tmp_path, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["inspect", write_peft(tmp_path / "a")]) == 0
    assert "2 layers" in stream.getvalue()


def test_a_closed_pipe_is_not_reported(tmp_path, monkeypatch, capfd):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["inspect", write_peft(tmp_path / "a")]) == 1
    assert capfd.readouterr() == ("", "")


def test_a_closed_pipe_of_a_process(tmp_path):
    command = [sys.executable, "-m", "lora_np", "inspect", write_peft(tmp_path / "a")]
    read, write = os.pipe()
    os.close(read)
    try:
        process = subprocess.run(command, stdout=write, stderr=subprocess.PIPE)
    finally:
        os.close(write)
    assert (process.returncode, process.stderr) == (1, b"")


def test_output_that_cannot_be_written_is_an_error(tmp_path, monkeypatch, capsys):
    class Full(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            raise OSError(28, "No space left on device")

    stream = io.TextIOWrapper(io.BufferedWriter(Full()))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert main(["inspect", write_peft(tmp_path / "a")]) == 1
    assert capsys.readouterr().err == "lora-np: error: [Errno 28] No space left on device\n"
    stream.detach = None


def test_the_stream_is_restored_after_an_error(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(ZeroDivisionError), _streams.any_text():
        raise ZeroDivisionError
    assert stream.errors == "strict"


def test_an_error_is_one_line(tmp_path, fail):
    assert fail("inspect", f"{tmp_path}/a\nb\x1b[2J") == rf"{tmp_path}/a\nb\x1b[2J: no such file or folder"


FIRST_NUMBER = {
    "inspect a": "in",
    "inspect a --by-module": "layers",
    "inspect base": "shape",
    "inspect a base": "layers",
    "merge base a -o merged": "rounding",
    "merge one.safetensors a -o merged.safetensors": "rounding",
    "merge base a -o verified --verify": "rounding",
    "merge base a -o reported --report": "|change|",
    "truncate a -o small --rank 1": "rank before",
    "combine a a -o sum": "rank",
    "convert a -o b": "in",
    "extract base tuned -o found --rank 10": "rank",
    "diff a a": "|dW| of A",
    "exercises folder": None,
}


@pytest.mark.parametrize("words", FIRST_NUMBER)
def test_names_are_flush_left_and_numbers_are_flush_right(words, tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    write_peft(tmp_path / "a")
    write_base(tmp_path / "one.safetensors")
    write_shards(tmp_path / "base")
    run("merge", "base", "a", "-o", "tuned")
    assert first_numbers(run(*words.split()))[-1] == FIRST_NUMBER[words]


def test_text():
    assert printable("größe\t\x00") == r"größe\t\x00"
    assert counted(1, "layer") == "1 layer"
    assert counted(1234, "byte") == "1,234 bytes"
    assert plain({"a": [1.0, float("nan")], "b": (float("inf"), "c", None)}) == {"a": [1.0, None], "b": [None, "c", None]}
    assert sorted(["b10", "b9", "a", "b", "b09", "10", "b0x"], key=natural) == ["10", "a", "b", "b0x", "b09", "b9", "b10"]
    assert natural("9" * 5000)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.00 %"), (1e-9, "< 0.01 %"), (0.5, "50.00 %"), (1 - 1e-9, "> 99.99 %"), (1, "100.00 %"), (0.00006, "0.01 %")],
)
def test_a_percentage_is_0_or_100_only_if_it_is_exact(value, text):
    assert share(value) == text
