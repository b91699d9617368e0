"""The fuzzers, for a few seconds each: see ``python -m tests.fuzz`` for more."""

from tests.fuzz import calls


def test_bad_arguments_are_refused_clearly_and_change_nothing():
    done, falls = calls.attack(2_300, seed=0)  # two calls for each target
    assert falls == []
    assert done == 2_300
