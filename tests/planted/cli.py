"""Bugs planted in lora_np/cli."""

from planted.mutant import Mutant

GENERATE = "tests/cli/test_generate.py"
INSPECT = "tests/cli/test_toolbox_inspect.py"
MAIN = "tests/cli/test_main.py"
COMPLETION = "tests/cli/test_completion.py"

MUTANTS = [
    # ---------------------------------------------------------------- the command line
    Mutant(
        "every command is imported for any of them",
        "cli/__init__.py",
        "for name in first if named else",
        "for name in VERBS if named else",
        (MAIN,),
    ),
    Mutant(
        "an unknown command gets no hint",
        "cli/__init__.py",
        "close = get_close_matches(first[0], VERBS, n=1)",
        "close = []",
        (MAIN,),
    ),
    Mutant(
        "bash completes options where none was begun",
        "cli/completion.py",
        '[[ "$word" != -* ]] ||',
        "true &&",
        (COMPLETION,),
    ),
    Mutant(
        "brackets in the description of an option for zsh",
        "cli/completion.py",
        'for character in r"\\[]":',
        'for character in "":',
        (COMPLETION,),
    ),
    Mutant(
        "an error in one of several files goes unnoticed",
        "cli/inspect.py",
        'return 1 if any("error" in report for report in reports) else 0',
        "return 0",
        (INSPECT,),
    ),
    Mutant(
        "folders below an adapter are not searched",
        "cli/inspect.py",
        "folders.sort(key=natural)",
        "folders.clear()",
        (INSPECT,),
    ),
    Mutant(
        "modules of different names are one",
        "cli/_reports.py",
        're.sub(r"\\d+", "*", layer["path"])',
        're.sub(r"\\w+", "*", layer["path"])',
        (INSPECT,),
    ),
    Mutant(
        "metadata of any length is shown",
        "cli/_reports.py",
        "if len(text) <= LONGEST else",
        "if True else",
        (INSPECT,),
    ),
    Mutant(
        "the command line overrides the environment",
        "cli/_threads.py",
        'any(name in os.environ for name in (*VARIABLES, "OMP_NUM_THREADS"))',
        "False",
        ("tests/cli/test_threads.py",),
    ),
    Mutant(
        "the demo on texts uses one thread",
        "cli/_threads.py",
        ' and words[1:2] != ["text"]',
        "",
        ("tests/cli/test_threads.py",),
    ),
    Mutant(
        "generate: the seed is ignored",
        "cli/generate.py",
        "rng=arguments.seed",
        "rng=0",
        (GENERATE,),
    ),
    Mutant(
        "generate: the rank is ignored",
        "cli/generate.py",
        "rank=arguments.rank,",
        "",
        (GENERATE,),
    ),
    Mutant(
        "generate: the end of a text is shown",
        "cli/generate.py",
        "        if token == tokenizer.end:\n            return\n",
        "",
        (GENERATE,),
    ),
    Mutant(
        "generate: control characters reach the terminal",
        "cli/generate.py",
        "printable(char) for char in text",
        "char for char in text",
        (GENERATE,),
    ),
    Mutant(
        "generate: the adapter is ignored",
        "cli/_decoders.py",
        "    return adapted, words",
        "    return model, words",
        (GENERATE,),
    ),
    Mutant(
        "diff: whole tensors are not compared",
        "cli/diff.py",
        "    one, other = other_changes(first), other_changes(second)",
        "    one, other = {}, {}",
        ("tests/cli/test_toolbox_whole.py",),
    ),
]
