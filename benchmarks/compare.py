"""python -m benchmarks.compare BEFORE [AFTER]: the times of one commit divided by those of another, case by case.

Without AFTER, the working tree is compared with BEFORE. Each version runs in a process that stays alive, and the two take
turns, so the ratios hold on a shared machine. The cases are those of this checkout; a version that lacks one is reported.
"""

import argparse
import io
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from . import machine
from .processes import ROOT

ROUNDS = 11
NANOSECONDS = 20_000_000
"""The time of a sample: as many calls as fit, but at least one."""


def cases() -> dict[str, Callable[[], Callable[[], object]]]:
    """What is compared: for each case, a function that prepares a call."""
    from . import ours
    from .cases.step import AXES, SIZES, label
    from .cases.training import BATCHES, RANK, SAMPLES
    from .cases.training import SIZES as NETWORK
    from .problem import FitProblem, MixedProblem, Problem

    made: dict[str, Callable[[], Callable[[], object]]] = {}
    for batch, width, rank in SIZES:
        problem = Problem.random(batch, width, width, rank).slowly()
        made[f"step, {label(batch, width, rank)}"] = lambda problem=problem: ours.LoRA(problem).step
        made[f"predict, {label(batch, width, rank)}"] = lambda problem=problem: ours.LoRA(problem).forward
    for axes in AXES:
        problem = Problem.random(axes[0] * axes[1], 1024, 1024, 8).slowly().with_axes(*axes)
        made[f"step, batch {axes[0]} × {axes[1]}"] = lambda problem=problem: ours.LoRA(problem).step
    for batch in BATCHES:
        network = FitProblem.random(NETWORK, RANK, SAMPLES, batch).slowly()
        made[f"fit, batch {batch}"] = lambda network=network: ours.Fit(network).epoch
    for width in (64, 1024):
        mixed = MixedProblem.random(256, width, width, 64).slowly()
        made[f"mixed step, 64 tasks, width {width}"] = lambda mixed=mixed: ours.MixedLoRA(mixed).step
    return made


def serve(requests: IO[str], answers: IO[str]) -> None:
    """Time the requested case, a line of JSON for a line of JSON."""
    from .harness import CLOCKS

    prepared: dict[str, Callable[[], object]] = {}
    clock, known = CLOCKS["cpu"], cases()
    for line in requests:
        name = json.loads(line)
        try:
            run = prepared[name] if name in prepared else prepared.setdefault(name, known[name]())
            run(), run()
            calls, start = 0, clock()
            while calls == 0 or clock() - start < NANOSECONDS:
                run()
                calls += 1
            answer: dict[str, Any] = {"seconds": (clock() - start) / calls / 1e9}
        except Exception as error:  # an earlier version may lack what the case needs
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


class Version:
    """A process that times the cases with the library in a folder."""

    def __init__(self, folder: Path) -> None:
        program = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(ROOT)!r}]; "
        program += "from benchmarks.compare import serve; serve(sys.stdin, sys.stdout)"
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True, cwd=folder)

    def time(self, name: str) -> float | str:
        """The seconds of one call, or the error."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(name), file=self.process.stdin, flush=True)
        answer: Mapping[str, Any] = json.loads(self.process.stdout.readline())
        return answer["error"] if "error" in answer else float(answer["seconds"])

    def __enter__(self) -> "Version":
        return self

    def __exit__(self, *exception: object) -> None:
        with self.process:  # closes the pipes and waits
            pass


def unpacked(commit: str, folder: Path) -> Path:
    """The library as it was at a commit."""
    command = ["git", "archive", commit, "lora_np"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True)
    if done.returncode:
        raise SystemExit(f"no such commit: {commit}: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def compare(before: Version, after: Version, names: list[str], rounds: int) -> Iterator[str]:
    """A line for each case: the median of the ratios within a round, half their interquartile range, and the time after."""
    for name in names:
        pairs = []
        for turn in range(rounds + 1):  # the first one warms up
            order = (before, after) if turn % 2 else (after, before)
            found = {version: version.time(name) for version in order}
            errors = [answer for answer in found.values() if isinstance(answer, str)]
            if errors:
                yield f"{name:45} {errors[0]}"
                break
            pairs.append((found[before], found[after]))
        else:
            ratios = sorted(float(after) / float(before) for before, after in pairs[1:])
            spread = (ratios[-1 - len(ratios) // 4] - ratios[len(ratios) // 4]) / 2
            seconds = statistics.median(float(after) for _, after in pairs[1:])
            yield f"{name:45} {statistics.median(ratios):.3f} ±{spread:.3f}   {1e6 * seconds:10.1f} µs"


def main() -> None:
    machine.pin(as_avx2="--avx2" in sys.argv)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description="Compare the speed of two commits.")
    parser.add_argument("before", help="a commit")
    parser.add_argument("after", nargs="?", help="a commit (default: the working tree)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--avx2", action="store_true", help="as on a processor without AVX-512")
    arguments = parser.parse_args()
    names = [name for name in cases() if arguments.only in name]
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2)]
        before = unpacked(arguments.before, folders[0])
        after = ROOT if arguments.after is None else unpacked(arguments.after, folders[1])
        versions = [stack.enter_context(Version(folder)) for folder in (before, after)]
        print(f"{'case':45} after / before        after")
        for line in compare(versions[0], versions[1], names, arguments.rounds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
