"""Plant bugs one at a time and check that the tests catch each of them.

    python tests/mutants.py [--list] [-k NAME] [--jobs N]

Each mutant is one textual change in the library. The library and its tests are copied to a temporary folder, the change is
made there, and some of the tests run until the first failure. The exit code is 1 if a bug survives, if the text to replace
does not occur exactly once, or if the tests fail without a bug.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from planted import MUTANTS

ROOT = Path(__file__).resolve().parents[1]


def copied(folder):
    """Copy the library and its tests to a folder."""
    ignore = shutil.ignore_patterns("__pycache__", ".hypothesis")
    for name in ("lora_np", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)


def outcome(folder, tests):
    """Run tests in a folder and return the exit code of pytest and its output."""
    environment = os.environ | {
        "HYPOTHESIS_PROFILE": "mutants",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=line", *tests],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stdout + run.stderr


def judged(mutant):
    """Test a mutant: the outcome, whether it is as it should be, the time in seconds, and the test that caught the bug."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copied(folder)
        file = folder / "lora_np" / mutant.file
        source = file.read_text(encoding="utf-8")
        if source.count(mutant.old) != 1:
            return f"found {source.count(mutant.old)} times", False, 0.0, mutant.file
        file.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
        code, output = outcome(folder, mutant.tests)
    word = {0: "SURVIVED", 1: "caught"}.get(code, "BROKEN")
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    by = failed[0].split("::")[-1].partition(" - ")[0] if failed else output[-300:] if code > 1 else ""
    return word, code == 1, time.monotonic() - begin, by


def unchanged(mutants):
    """An error message if the tests fail on an unchanged copy, or import another one; otherwise an empty string."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copied(folder)
        where = subprocess.run(
            [sys.executable, "-c", "import lora_np; print(lora_np.__file__)"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        if not Path(where.stdout.strip()).resolve().is_relative_to(folder.resolve()):
            return f"the tests of the copy would import {where.stdout.strip()}"
        code, output = outcome(folder, sorted({test for mutant in mutants for test in mutant.tests}))
    return "" if code == 0 else f"the tests do not pass without a bug:\n{output[-3000:]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="list the bugs and exit")
    parser.add_argument("-k", default="", metavar="NAME", help="only bugs whose names contain NAME")
    parser.add_argument(
        "--jobs", type=int, default=2, metavar="N", help="the number of bugs to test in parallel (default: 2)"
    )
    options = parser.parse_args()
    mutants = [mutant for mutant in MUTANTS if options.k in mutant.name]
    if options.list or not mutants:
        print("\n".join(f"{mutant.file:28} {mutant.name}" for mutant in mutants) or "no such bug")
        return int(not mutants)
    begin = time.monotonic()
    right = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        problem = pool.submit(unchanged, mutants)
        for mutant, (word, good, seconds, by) in zip(mutants, pool.map(judged, mutants), strict=True):
            right += good
            print(f"{word:16} {seconds:5.1f} s  {mutant.name:70} {by}", flush=True)
    if problem.result():
        print(problem.result())
    print(f"{right} of {len(mutants)} caught, {time.monotonic() - begin:.0f} s")
    return int(right < len(mutants) or bool(problem.result()))


if __name__ == "__main__":
    sys.exit(main())
