"""Calls in a copy of this process."""

import os
import resource
import signal
from collections.abc import Callable
from contextlib import suppress

CRASHED = 70
"""The exit code of a copy whose call raised an exception."""

MEMORY = 8 << 30
"""Bytes that a copy may take."""

TOO_LONG = -signal.SIGALRM
"""The exit code of a copy that an alarm has ended."""


def set_alarm(seconds: float) -> None:
    """End this process in so many seconds, unless the alarm is set again, even if it never comes back to Python."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def forked(action: Callable[[], int]) -> int:
    """The result of a call in a copy of this process; the processes that the copy has started end with it."""
    child = os.fork()
    if child == 0:
        code = CRASHED
        with suppress(BaseException):
            os.setpgid(0, 0)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            code = action()
        os._exit(code)
    with suppress(OSError):  # the copy may have done it already
        os.setpgid(child, child)
    try:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
