"""SIGTERM and SIGINT: finish the step, save, leave."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from tiny_audio.config import Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_CONTINUE = "what was done is saved, the same command continues"


class StopSignal:
    """Catches the signals for as long as it is entered.

    Outside :meth:`deferred` a signal raises :class:`Stopped` at once; inside, it only sets :attr:`requested`, and a
    second one raises. What was requested and not heeded raises at its end.
    """

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False

    def __enter__(self) -> StopSignal:
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While inside, whoever runs checks :attr:`requested` between steps."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.requested:
            raise Stopped(f"stopped by a signal; {_CONTINUE}")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._deferred and not self.requested:
            self.requested = True
            return
        raise Stopped(f"stopped by {signal.Signals(number).name}; {_CONTINUE}")
