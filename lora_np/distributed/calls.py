"""Calls on an executor: results in the order of the calls, and a bounded number of retries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future
from typing import Any, NamedTuple, final

from ..errors import ArgumentError, InvalidOperationError


@final
class InProcessExecutor(Executor):
    """An executor that runs each call immediately, in the thread that submits it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call; the future returned is already done."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Call(NamedTuple):
    """A function with its arguments, and its name in error messages."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def results(executor: Executor, calls: Sequence[Call], retries: int) -> Iterator[Any]:
    """The results of concurrent calls, in the order of the calls, whichever ends first.

    Parameters
    ----------
    executor : Executor
    calls : sequence of Call
    retries : int
        How often to retry a call that raises.

    Raises
    ------
    ArgumentError
        If a call raises one; it is not retried, because it would fail again.
    InvalidOperationError
        If a call still fails after the last retry, or is cancelled by the executor.
    """
    futures = [_submit(executor, call) for call in calls]
    try:
        for call, future in zip(calls, futures, strict=True):
            yield _result(executor, call, future, retries)
    finally:
        for future in futures:
            future.cancel()


def _submit(executor: Executor, call: Call) -> Future[Any]:
    """The future of a call; if the executor rejects the call, a future that has failed."""
    try:
        return executor.submit(call.function, *call.arguments)
    except Exception as error:
        failed: Future[Any] = Future()
        failed.set_exception(error)
        return failed


def _result(executor: Executor, call: Call, future: Future[Any], retries: int) -> Any:
    attempts = retries + 1
    for left in range(retries, -1, -1):
        try:
            return future.result()
        except ArgumentError as error:
            raise ArgumentError(f"{call.name} was rejected: {error}") from error
        except CancelledError as error:
            # `results` cancels nothing before it ends: the executor has shut down, or lost its worker.
            raise InvalidOperationError(f"{call.name} was cancelled by the executor {executor!r}") from error
        except Exception as error:
            failure = error
        if left:
            future = _submit(executor, call)
    raise InvalidOperationError(f"{call.name} failed on attempt {attempts} of {attempts}: {failure!r}") from failure
