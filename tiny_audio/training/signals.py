"""SIGTERM and SIGINT: finish the step, save, leave."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from tiny_audio.config import Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_CONTINUE = "what was done is saved, the same command continues"
_ONE_WISH_S = 3.0
"""Signals so close together mean one stop: torchrun passes on what the terminal or the scheduler sent to all."""


class StopAsked(BaseException):
    """Breaks off a wait; no mistake, so that nothing on the way takes it for one."""


class StopSignal:
    """Catches the signals for as long as it is entered.

    Outside :meth:`deferred` a signal raises :class:`Stopped` at once; inside, it sets :attr:`requested` and breaks off
    a wait, and one that comes later still raises. What was requested and not heeded raises at its end.

    Args:
        clock: seconds that only go up.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.requested = False
        self._clock, self._requested_at = clock, 0.0
        self._lost: Callable[[], str] | None = None
        self._waits = False

    def __enter__(self) -> StopSignal:
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self, lost: Callable[[], str]) -> Iterator[None]:
        """While inside, whoever runs checks :attr:`requested` between steps.

        Args:
            lost: says what leaving at once would lose.
        """
        self._lost = lost
        try:
            yield
        finally:
            self._lost = None
        if self.requested:
            raise Stopped(f"stopped by a signal; {_CONTINUE}")

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While inside, a stop that was asked for, or is, raises at once: breaking off loses nothing.

        Raises:
            StopAsked: that.
        """
        self._waits = True
        try:
            if self.requested:
                raise StopAsked
            yield
        finally:
            self._waits = False

    def ask(self) -> None:
        """Ask for a stop."""
        self.requested, self._requested_at = True, self._clock()
        if self._waits:
            self._waits = False
            raise StopAsked

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._lost is None:
            raise Stopped(f"stopped by {name}; {_CONTINUE}")
        if not self.requested:
            self.ask()
        elif self._clock() - self._requested_at > _ONE_WISH_S:
            raise Stopped(f"stopped at once by a second signal, {name}: {self._lost()}")
