"""`Workers`: the executor that differentiates the shards of a training run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from typing import final

from .._validation import integer, sequence
from ..base import Layer
from ..errors import ArgumentError, ArgumentOutOfRangeError, InvalidOperationError
from ..training.moment import Moment
from .batches import Piece
from .calls import Call, InProcessExecutor, results
from .worker import Job, Loader, Ranks, Shard, ShardGradient, Size, differentiate, forget, measure


@final
class Workers:
    """The executor, and what all of its tasks have in common."""

    def __init__(self, executor: Executor | None, job: Job, shards: Iterable[Loader], retries: int) -> None:
        executor = InProcessExecutor() if executor is None else executor
        if not isinstance(executor, Executor):
            raise ArgumentError(f"executor must be a concurrent.futures.Executor, got {executor!r}")
        if integer("retries", retries) < 0:
            raise ArgumentOutOfRangeError(f"retries must be at least 0, got {retries}")
        self.job = job
        self._executor = executor
        self._shards = [Shard(*pair) for pair in enumerate(_checked_loaders(shards))]
        self._retries = retries

    def close(self) -> None:
        """Drop what this process keeps for the tasks that ran in it."""
        forget(self.job)

    def measure(self, model: Layer) -> list[Size]:
        """The sizes of the shards, which are read, and checked against the model and the loss."""
        moment = Moment.of(model)
        calls = [Call(str(shard), measure, (self.job, shard, moment)) for shard in self._shards]
        return list(results(self._executor, calls, self._retries))

    def differentiate(
        self, model: Layer, pieces: Sequence[Piece], ranks: Sequence[Ranks], step: int
    ) -> Iterator[tuple[float, ShardGradient]]:
        """The weight and the gradient of each piece of a step, in order."""
        moments = Moment.of(model).each(model, len(pieces))
        calls = [
            Call(
                str(self._shards[piece.shard]),
                differentiate,
                (self.job, self._shards[piece.shard], moment, piece.samples, piece.task_weights, own),
            )
            for moment, piece, own in zip(moments, pieces, ranks, strict=True)
        ]
        try:
            for piece, gradient in zip(pieces, results(self._executor, calls, self._retries), strict=True):
                yield piece.weight, gradient
        except InvalidOperationError as error:
            raise InvalidOperationError(f"step {step}: {error}; the parameters are those before this step") from error


def _checked_loaders(shards: Iterable[Loader]) -> tuple[Loader, ...]:
    loaders: tuple[Loader, ...] = sequence("shards", shards, "functions that read data")
    for loader in loaders:
        if not callable(loader):
            raise ArgumentError(f"shards must be functions that read data, not the data themselves, got {loader!r}")
    if not loaders:
        raise ArgumentError("shards must contain at least one function, got none")
    return loaders
