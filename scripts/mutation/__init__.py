"""Mutation testing: one change of the package at a time, and the tests that reach it."""
