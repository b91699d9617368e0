import importlib
import re
import runpy
import subprocess
import sys

import pytest

import lora_np
from lora_np.cli import main


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"lora-np {lora_np.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["gradcheck", "--seed", "-1"], ["gradcheck", "--seed", "x"], ["demo", "--no-such"]]
)
def test_wrong_usage_exits_with_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(r"^lora-np( \w+)?: error: ", captured.err, re.MULTILINE)


@pytest.mark.parametrize("verb", ["demo", "gradcheck"])
def test_help_has_examples(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert re.search(rf"^examples:\n  lora-np {verb} ", capsys.readouterr().out, re.MULTILINE)


def test_the_module_runs_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lora_np", "--version"])
    monkeypatch.delitem(sys.modules, "lora_np.__main__", raising=False)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("lora_np", run_name="__main__")
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("lora-np ")


def test_importing_the_main_module_runs_nothing(capsys):
    assert importlib.import_module("lora_np.__main__").main is main
    assert capsys.readouterr() == ("", "")


def test_the_library_does_not_import_the_command_line():
    code = "import sys, lora_np; print([name for name in sys.modules if name.startswith(('lora_np.cli', 'lora_np.data'))])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
