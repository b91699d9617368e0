import importlib
import re
import runpy
import subprocess
import sys

import pytest

import lora_np
from lora_np.cli import VERBS, load_verb, main


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


@pytest.mark.parametrize(
    ("word", "hint"),
    [("marge", "did you mean merge?"), ("embedd", "did you mean embed?"), ("xyz", f"choose one of {', '.join(VERBS)}")],
)
def test_an_unknown_command_gets_a_hint(word, hint, misuse):
    assert misuse(word) == f"lora-np: error: unknown command {word!r}; {hint}"


@pytest.mark.parametrize("option", ["-h", "--help", "--he"])
def test_help_lists_every_command(option, capsys):
    with pytest.raises(SystemExit) as stop:
        main([option])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert re.findall(r"^    ([a-z]+)", out, re.MULTILINE) == ["demo", *VERBS[1:]]


@pytest.mark.parametrize("name", VERBS)
def test_each_command_is_found_under_its_name(name):
    assert load_verb(name).name == name


LOADED = """
import runpy, sys
sys.argv = ["lora-np", *{words}]
try:
    runpy.run_module("lora_np", run_name="__main__")
except SystemExit:
    print(*(name for name in sys.modules if name.startswith(("lora_np.", "numpy"))), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (["--version"], ("numpy", "lora_np.layers")),
        (["marge"], ("numpy", "lora_np.layers")),
        (["convert", "--help"], ("lora_np.cli.merge", "lora_np.cli.demo", "lora_np.demo", "lora_np.plot")),
    ],
)
def test_only_what_a_command_needs_is_imported(words, absent):
    result = subprocess.run([sys.executable, "-c", LOADED.format(words=words)], capture_output=True, text=True, check=True)
    loaded = result.stderr.splitlines()[-1].split()
    assert "lora_np.cli.verb" in loaded
    assert [name for name in loaded if name.startswith(absent)] == []


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
