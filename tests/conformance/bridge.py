"""A bridge for programs that cannot read JSON: cases and results are exchanged as plain words and numbers.

``python tests/conformance/bridge.py ./consumer`` is a command for ``lora-np vectors --check``. The text of a case::

    NAME LAYOUT ACTIVATION ROWS IN OUT LEARNING_RATE STEPS MERGE BRANCHES      (MERGE: 1 if the merged weight is expected)
    x G W b                                                                    (their elements, row by row)
    RANK ALPHA SCALING A B                                                     (for each branch)
    TRAIN_BASE
    FROM UP_TO BRANCH ... BRANCH                                               (for each step)

A step runs at rank UP_TO (0: the full rank of the branch) and trains the components from FROM on; each row passes through
the branch with the given number (-1: none). The bridge only translates tasks to branch numbers and looks up the preceding
active rank; the program does everything else. Each line of its output is ``NAME PREFIX BRANCH ARRAY``, followed by the
elements of the array.
"""

import json
import subprocess
import sys

import numpy as np

KINDS = ("dense", "lora", "dylora", "multilora")
ACTIVATIONS = ("identity", "relu", "tanh")


def unsupported(case):
    """Why the program may skip a case; empty if it must answer."""
    if case["kind"] not in KINDS:
        return f"no {case['kind']}"
    activation = case["settings"]["activation"]
    return "" if activation in ACTIVATIONS else f"no {activation}"


def flat(array):
    return [repr(float(value)) for value in np.ravel(array)]


def branch_prefixes(case):
    """The prefix of the names of each branch's factors."""
    if case["kind"] == "multilora":
        return [f"{task}." for task in case["settings"]["alphas"]]
    return [] if case["kind"] == "dense" else [""]


def step_words(case, choice, rows):
    kind, settings = case["kind"], case["settings"]
    if kind == "multilora":
        tasks = choice if isinstance(choice, list) else [choice] * rows
        return [0, 0, *(-1 if task is None else list(settings["alphas"]).index(task) for task in tasks)]
    if kind == "dylora":
        ranks = [0, *settings["active_ranks"]]
        previous = ranks[ranks.index(choice) - 1]
        return [previous if settings["mode"] == "frozen" else 0, choice, *[0] * rows]
    return [0, 0, *[-1 if kind == "dense" else 0] * rows]


def to_text(case):
    """The text of one case."""
    kind, settings, arrays = case["kind"], case["settings"], case["arrays"]
    rows, inputs = np.shape(arrays["x"])
    schedule, prefixes = settings["schedule"], branch_prefixes(case)
    merge = kind != "dense" and settings["activation"] == "identity" and not isinstance(schedule[0], list)
    words = [case["name"], settings["layout"], settings["activation"], rows, inputs, len(arrays["b"])]
    words += [settings["learning_rate"], len(schedule), int(merge), len(prefixes)]
    words += [number for name in ("x", "G", "W", "b") for number in flat(arrays[name])]
    for prefix in prefixes:
        alpha = settings["alphas"][prefix[:-1]] if prefix else settings["alpha"]
        words += [len(arrays[f"{prefix}B"]), alpha, settings.get("scaling", "max")]
        words += flat(arrays[f"{prefix}A"]) + flat(arrays[f"{prefix}B"])
    words.append(int("W" in settings["trained"]))
    for choice in schedule:
        words += step_words(case, choice, rows)
    return " ".join(map(str, words)) + "\n"


def from_text(case, lines):
    """The arrays that the program returned for a case, with the names and shapes of the vectors."""
    prefixes, found = branch_prefixes(case), {}
    for prefix, branch, array, *numbers in lines:
        name = (prefixes[int(branch)] if int(branch) >= 0 else "") + array
        shape = np.shape(case["arrays"]["G" if name == "y" else name])
        key = {"y": "y", "merged": "merged"}.get(prefix, f"{prefix}.{name}")
        found[key] = np.array(numbers, float).reshape(shape).tolist()
    return found


def main(command):
    cases = [json.loads(line) for line in sys.stdin]
    given = "".join(to_text(case) for case in cases if not unsupported(case))
    result = subprocess.run(command, input=given, capture_output=True, text=True)
    lines = [line.split() for line in result.stdout.splitlines()]
    for case in cases:
        answers = [words for name, *words in lines if name == case["name"]]
        reason = unsupported(case)
        print(json.dumps({"name": case["name"]} | ({"skip": reason} if reason else {"arrays": from_text(case, answers)})))
    sys.stderr.write(result.stderr)
    return result.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
