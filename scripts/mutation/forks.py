"""Calls in a copy of this process."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

CRASHED = 70
"""The exit code of a copy whose call raised an exception."""


def forked(action: Callable[[], int], seconds: float) -> int | None:
    """The result of a call in a copy of this process; None if it takes too long: then it is killed with its children."""
    child = os.fork()
    if child == 0:
        code = CRASHED
        with suppress(BaseException):
            os.setpgid(0, 0)
            code = action()
        os._exit(code)
    with suppress(OSError):  # the copy may have done it already
        os.setpgid(child, child)
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                child = 0
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        return None
    finally:
        if child:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
