"""Handle SIGTERM and SIGINT: finish the step, save, and exit."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from tiny_audio.config import Stopped, UserError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_CONTINUE = "all work so far is saved; the same command continues"
_SAME_STOP_S = 3.0
"""Signals within this time count as one signal. Terminals and schedulers signal all processes, and torchrun repeats
the signal."""


class StopAsked(BaseException):
    """Raised to end a :meth:`StopSignal.waiting` block. A BaseException, so ``except Exception`` does not catch it."""


class StopSignal:
    """Handles SIGTERM and SIGINT inside its context.

    Outside :meth:`deferred`, a signal raises :class:`Stopped` at once. Inside :meth:`deferred`, the first signal sets
    :attr:`requested` and ends a :meth:`waiting` block. A signal more than three seconds later raises :class:`Stopped`.
    After a request, :meth:`deferred` raises :class:`Stopped` at the end of its block.

    Args:
        clock: returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.requested = False
        self._clock, self._requested_at = clock, 0.0
        self._lost: Callable[[], str] | None = None
        self._waits = False

    def __enter__(self) -> StopSignal:
        self._before = {signum: signal.signal(signum, self._handle) for signum in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        # Library code that catches every Exception may have caught Stopped and raised another error, for example about
        # a file. Raise the original Stopped instead.
        cause: BaseException | None = error if isinstance(error, UserError) else None
        while cause is not None and not isinstance(cause, Stopped):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from None

    @contextmanager
    def deferred(self, lost: Callable[[], str]) -> Iterator[None]:
        """Defer signals. The caller checks :attr:`requested` between steps.

        Args:
            lost: returns a text for the user about the work that is lost if the process exits at once.
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
        """Interrupt the block inside this context if a stop is requested. The block must be safe to interrupt.

        Raises:
            StopAsked: a stop was requested, before or during the block.
        """
        self._waits = True
        try:
            if self.requested:
                raise StopAsked
            yield
        finally:
            self._waits = False

    def ask(self) -> None:
        """Request a stop."""
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
        elif self._clock() - self._requested_at > _SAME_STOP_S:
            raise Stopped(f"stopped at once by a second signal, {name}: {self._lost()}")
