"""What the scripts share: commands that must succeed, temporary environments, and files from Python packages."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable


def run(*command: str | Path, **variables: str) -> None:
    """Run a command in the root of the repository, with additional variables; if it fails, exit with its code."""
    sys.stdout.flush()
    code = subprocess.call([str(part) for part in command], cwd=ROOT, env=os.environ | variables)
    if code:
        sys.exit(code)


def program(name: str, advice: str) -> str:
    """The path of a program, wherever it is installed; without it, exit with the advice."""
    found = shutil.which(name, path=os.pathsep.join((str(Path(PYTHON).parent), os.environ.get("PATH", ""))))
    return found or sys.exit(f"{Path(sys.argv[0]).name} requires {name}: {advice}")


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is deleted afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def environment(*installations: tuple[str, ...]) -> Iterator[Path]:
    """The interpreter of a new virtual environment, each tuple of requirements installed by one call of pip."""
    with temporary_folder() as folder:
        run(PYTHON, "-m", "venv", folder)
        python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        for requirements in installations:
            run(python, "-m", "pip", "install", "--quiet", *requirements)
        yield python


@contextmanager
def downloaded(requirement: str) -> Iterator[tuple[Path, Path]]:
    """The wheel of a package, downloaded without its dependencies, and a folder with its contents."""
    with temporary_folder() as folder:
        run(PYTHON, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "contents")
        yield wheel, folder / "contents"


def target() -> Path:
    """The only argument of the script: a folder that does not exist yet, absolute."""
    name = Path(sys.argv[0]).name
    if len(sys.argv) != 2:
        sys.exit(f"usage: {name} FOLDER")
    folder = Path(sys.argv[1]).absolute()
    return sys.exit(f"{name}: {folder} already exists") if folder.exists() else folder
