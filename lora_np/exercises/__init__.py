"""Exercises that mark themselves: write the backward pass of each layer.

``lora-np exercises`` writes them into a folder and marks what is there. Each module is one exercise with its solution.
"""

from .marking import EXERCISES, Mark, marked, write_exercises

__all__ = ["EXERCISES", "Mark", "marked", "write_exercises"]
