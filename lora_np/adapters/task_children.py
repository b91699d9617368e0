"""The children of a MultiLoRA adapter as a mapping: the base, and the branch of every task."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, ValuesView

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
        return iter(self._copied())

    def items(self) -> ItemsView[str, Layer]:
        """The names and layers, as they are now: another thread may add or remove tasks while the caller iterates."""
        return self._copied().items()

    def values(self) -> ValuesView[Layer]:
        """The layers, as they are now."""
        return self._copied().values()

    def _copied(self) -> dict[str, Layer]:
        return {"base": self._base} | {f"tasks.{task}": branch for task, branch in list(self._tasks.items())}

    def __len__(self) -> int:
        return 1 + len(self._tasks)
