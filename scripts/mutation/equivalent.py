"""Mutants that compute what the code computes: tests/equivalent_mutants.toml lists them with the reason.

An entry without `after` means every change of a statement, such as one of arbitrary numbers.
"""

import sys
import tomllib

from mutation.areas import PACKAGE, ROOT
from mutation.changes import Mutant


def without_equivalent(mutants: list[Mutant]) -> list[Mutant]:
    """Leave out the mutants in the list; print its entries for these files that match none any more."""
    text = (ROOT / "tests" / "equivalent_mutants.toml").read_text(encoding="utf-8")
    listed = {(each["file"], each["before"], each.get("after")) for each in tomllib.loads(text).get("mutant", [])}
    found = {(mutant.file, mutant.before, after) for mutant in mutants for after in (mutant.after, None)}
    files = {mutant.file for mutant in mutants}
    old = {entry for entry in listed - found if entry[0] in files or not (PACKAGE / entry[0]).exists()}
    for entry in sorted(old, key=str):
        print("tests/equivalent_mutants.toml lists what is not a mutant any more:", *entry, file=sys.stderr)
    return [
        mutant for mutant in mutants if not listed & {(mutant.file, mutant.before, after) for after in (mutant.after, None)}
    ]
