"""Locks between processes: files locked by ``flock``, which the system frees when their process ends."""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(path: Path, waiting: str | None = None, *, wait: bool = True) -> Iterator[BinaryIO]:
    """Hold the lock of a file, which is made where it is not there and never deleted, and give the file.

    Args:
        waiting: logged where another holds it.
        wait: for another that holds it.

    Raises:
        BlockingIOError: another holds it, and it is not to be waited for.
        OSError: the folder cannot be written, or its file system knows no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            if waiting is not None:
                _LOG.info(waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield file
        finally:
            # A process forked meanwhile has the file open too: closed here alone, it would stay locked.
            fcntl.flock(file, fcntl.LOCK_UN)
