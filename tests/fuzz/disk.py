"""A disk that fails: it counts the operations that change it, and ends the process, or raises an error, at one of them."""

import contextlib
import io
import os
from unittest import mock

CHANGES = ("fsync", "replace", "rename", "remove", "unlink", "chmod", "mkdir", "rmdir", "copy_file_range", "link")


class Killed(BaseException):
    """The process ends here: whatever it still tries to do with the disk fails as well."""


class Disk:
    """The disk during a `with` block.

    Parameters
    ----------
    at : int or None
        The operation that fails, counted from 0; None for a disk that works.
    error : OSError, optional
        Raised by that operation alone, as on a full disk. By default, the process is killed: this operation and all later
        ones raise `Killed`, and a write leaves half of its bytes.

    Attributes
    ----------
    done : list of str
        The operations so far.
    """

    def __init__(self, at=None, error=None):
        self.at, self.error, self.done = at, error, []

    def operation(self, name):
        """Count an operation; raises if it is to fail."""
        position = len(self.done)
        self.done.append(name)
        if self.error is not None and position == self.at:
            raise self.error
        if self.error is None and self.at is not None and position >= self.at:
            raise Killed(f"at operation {position}, {name}")

    def __enter__(self):
        self._patches = contextlib.ExitStack()
        really = {name: getattr(os, name) for name in (*CHANGES, "open") if hasattr(os, name)}
        really["fsync"] = _do_nothing

        def patched(name):
            def call(*arguments, **keywords):
                self.operation(name)
                return really[name](*arguments, **keywords)

            return call

        def opened(path, flags, *arguments, **keywords):
            if flags & os.O_CREAT:
                self.operation("open")
            return really["open"](path, flags, *arguments, **keywords)

        for name in really:
            self._patches.enter_context(mock.patch.object(os, name, opened if name == "open" else patched(name)))
        self._patches.enter_context(mock.patch.object(os, "fdopen", self._file))
        return self

    def __exit__(self, *exception):
        self._patches.close()

    def _file(self, descriptor, mode, *arguments, **keywords):
        assert mode == "wb"
        return io.BufferedWriter(_Raw(descriptor, self))


def _do_nothing(descriptor):
    """Instead of `os.fsync`, which takes long, and matters only if the power fails."""


MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""A folder that is in memory, for the many files of fuzzers; None if there is none."""


def without_fsync():
    """Context manager: nothing waits for the disk."""
    return mock.patch.object(os, "fsync", _do_nothing)


class _Raw(io.FileIO):
    def __init__(self, descriptor, disk):
        super().__init__(descriptor, "wb")
        self.disk = disk

    def write(self, data):
        try:
            self.disk.operation("write")
        except Killed:
            if len(self.disk.done) - 1 == self.disk.at:
                super().write(bytes(data)[: len(data) // 2])
            raise
        return super().write(data)


def interrupted(write, error=None):
    """Call `write()` once for each of its operations, which fails; yields after each attempt whether it was completed."""
    at, completed = 0, False
    while not completed:
        failure = None if error is None else OSError(*error)
        with Disk(at, failure):
            try:
                write()
                completed = True
            except (Killed, OSError):
                pass
        yield completed
        at += 1
