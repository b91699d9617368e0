"""A type checker sees what users see: an ordinary program passes mypy --strict, and mistakes are found."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import lora_np
import lora_np.io

ROOT = Path(__file__).parents[1]
PROGRAM, MISTAKES = ROOT / "tests/typing/program.py", ROOT / "tests/typing/mistakes.py"


@pytest.fixture
def mypy(request):
    pytest.importorskip("mypy")

    def run(file):
        """What mypy says of one file, with no configuration but --strict."""
        options = [
            "--strict",
            "--config-file=",
            "--follow-imports=silent",
            f"--cache-dir={request.config.cache.mkdir('mypy')}",
        ]
        result = subprocess.run([sys.executable, "-m", "mypy", *options, file], cwd=ROOT, capture_output=True, text=True)
        return result.stdout + result.stderr

    return run


@pytest.mark.parametrize("file", [PROGRAM, MISTAKES], ids=lambda file: file.stem)
def test_types(mypy, file):
    assert mypy(file) == "Success: no issues found in 1 source file\n"


def test_types_of_every_name(mypy, tmp_path):
    paths = [f"{package.__name__}.{name}" for package in (lora_np, lora_np.io) for name in dir(package)]
    (tmp_path / "names.py").write_text("import lora_np\n" + "\n".join(paths))
    assert mypy(tmp_path / "names.py") == "Success: no issues found in 1 source file\n"


def test_the_program_runs(capsys):
    runpy.run_path(str(PROGRAM), run_name="__main__")
    assert capsys.readouterr().out.splitlines() == ["epoch 1"] * 2 + ["epoch 2"] * 2
