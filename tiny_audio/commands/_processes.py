"""Connect the processes that work together on one command."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from tiny_audio.config import Stopped
from tiny_audio.runtime.device import device_of
from tiny_audio.runtime.world import World, joined

_TIMEOUT = timedelta(days=30)
"""Timeout of a collective operation. It is long, because a process that has finished waits for the slowest process."""


@contextmanager
def joined_for_inference() -> Iterator[World]:
    """Connect to the other processes, if a launcher started several. See :func:`joined`.

    Raises:
        Stopped: Ctrl-C or SIGTERM ended the command. Only the main process prints this error.
    """
    with joined(device_of("auto"), lambda text: print(text, file=sys.stderr), _TIMEOUT) as world:
        try:
            yield world
        except KeyboardInterrupt as interrupt:
            raise world.printed_by_main(Stopped("stopped")) from interrupt
