"""Fuzzers of files, of calls and of kills.

`test_fuzz.py` runs each for a few seconds; ``python -m tests.fuzz`` runs them for as long as one likes, and prints how many
inputs were tried and which of them broke a promise.
"""
