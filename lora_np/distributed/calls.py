"""Calls on an executor: their results in order, and a bounded number of retries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future
from typing import Any, NamedTuple, final

from ..errors import ArgumentError, InvalidOperationError


@final
class InProcessExecutor(Executor):
    """Runs each call at once, in the thread that submits it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future that is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Call(NamedTuple):
    """A function with its arguments, and what an error calls it."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def results(executor: Executor, calls: Sequence[Call], retries: int) -> Iterator[Any]:
    """The results of calls that run at the same time, in the order of the calls whatever the order in which they end.

    Parameters
    ----------
    executor : Executor
    calls : sequence of Call
    retries : int
        How often to repeat a call that raised.

    Raises
    ------
    ArgumentError
        A call raised one, which repeating it would not change.
    InvalidOperationError
        A call failed more often than that, or was cancelled by somebody else.
    """
    futures = [_submit(executor, call) for call in calls]
    try:
        for call, future in zip(calls, futures, strict=True):
            yield _result(executor, call, future, retries)
    finally:
        for future in futures:
            future.cancel()


def _submit(executor: Executor, call: Call) -> Future[Any]:
    """The future of a call; one that has failed where the executor does not take it."""
    try:
        return executor.submit(call.function, *call.arguments)
    except Exception as error:
        failed: Future[Any] = Future()
        failed.set_exception(error)
        return failed


def _result(executor: Executor, call: Call, future: Future[Any], retries: int) -> Any:
    for left in range(retries, -1, -1):
        try:
            return future.result()
        except ArgumentError as error:
            raise ArgumentError(f"{call.name} does not fit: {error}") from error
        except CancelledError as error:
            # Nobody here has cancelled it: the executor has gone, or has lost what would run the call.
            raise InvalidOperationError(f"{call.name} was given up by the executor {executor!r}") from error
        except Exception as error:
            failure = error
        if left:
            future = _submit(executor, call)
    raise InvalidOperationError(f"{call.name} failed {retries + 1} times, the last time with {failure!r}") from failure
