"""Worker threads, for parts of a product that write to disjoint slices; `np.matmul` releases the GIL."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import Executor

_pool: tuple[int, Executor] | None = None
"""A number of workers and their pool, created for the first product that needs it."""


def run(parts: Sequence[Callable[[], None]]) -> None:
    """Run the parts at the same time, the last one in the calling thread, and wait for all of them."""
    *others, own = parts
    futures = []
    for part in others:
        try:
            futures.append(_workers(len(others)).submit(part))
        except RuntimeError:  # an interpreter that is shutting down starts no threads
            part()
    own()
    for future in futures:
        future.result()


def _workers(count: int) -> Executor:
    """A pool of at least this many workers."""
    global _pool
    if _pool is None or _pool[0] < count:
        from concurrent.futures import ThreadPoolExecutor  # imported here to keep `import lora_np` fast

        _pool = count, ThreadPoolExecutor(count, thread_name_prefix="lora_np")
    return _pool[1]


def _forget_pool() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_pool)  # a forked process has none of its parent's threads
