"""The children of a MultiLoRA adapter as a mapping: the base, and the branch of every task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..base import Layer


class TaskChildren(Mapping[str, Layer]):
    """A live view of the base and the branches by name; creating it takes constant time, however many tasks there are."""

    def __init__(self, base: Layer, tasks: Mapping[str, Layer]) -> None:
        self._base, self._tasks = base, tasks

    def __getitem__(self, name: str) -> Layer:
        if name == "base":
            return self._base
        kind, _, task = name.partition(".")
        if kind != "tasks":
            raise KeyError(name)
        return self._tasks[task]

    def __iter__(self) -> Iterator[str]:
        yield "base"
        for task in self._tasks:
            yield f"tasks.{task}"

    def __len__(self) -> int:
        return 1 + len(self._tasks)
