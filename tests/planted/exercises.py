"""Bugs planted in lora_np/exercises."""

from planted.mutant import Mutant

MUTANTS = [
    Mutant(
        "exercises: a gradient of another shape passes",
        "exercises/marking.py",
        "if np.shape(gradient) != truth.shape:",
        "if False:",
        ("tests/test_exercises.py",),
    ),
    Mutant(
        "exercises: NaN is right",
        "exercises/marking.py",
        "if not error <= TOLERANCE:",
        "if error > TOLERANCE:",
        ("tests/test_exercises.py",),
    ),
    Mutant(
        "exercises: the solution is in the text",
        "exercises/marking.py",
        "last = node.body[0].end_lineno",
        "pass",
        ("tests/test_exercises.py",),
    ),
    Mutant(
        "exercises: files are replaced",
        "exercises/marking.py",
        'if not (folder / f"{name}.py").exists()]',
        "if True]",
        ("tests/test_exercises.py",),
    ),
    Mutant(
        "exercises: the arguments are not copied",
        "exercises/marking.py",
        "value.copy() if isinstance(value, np.ndarray) else value",
        "value",
        ("tests/test_exercises.py",),
    ),
]
