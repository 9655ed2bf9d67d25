"""Limit the number of requests and the amount of decoded audio in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.serving.options import Limits


class BusyError(Exception):
    """The limit on requests or on decoded audio is reached. The client may try again later."""


class Ticket:
    """A request that is counted by :class:`Admission`. Created by :meth:`Admission.enter`."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.samples = 0
        """Samples of decoded audio that the request holds."""
        self.is_valid = True
        """Whether the request is still being counted."""

    def add_audio(self, samples: int) -> None:
        """Count more decoded audio. See :meth:`Admission.reserve`."""
        self._admission.reserve(self, samples)


class Admission:
    """Counts requests and their audio."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._lock = limits, threading.Lock()
        self.requests = 0
        """Number of requests that are being received, are waiting, or are running."""
        self._samples = 0

    @property
    def audio_s(self) -> float:
        """Seconds of decoded audio in memory."""
        return self._samples / SAMPLE_RATE

    @contextmanager
    def enter(self) -> Iterator[Ticket]:
        """Count a request inside the ``with`` block.

        Raises:
            BusyError: ``max_requests`` requests are already counted.
        """
        with self._lock:
            if self.requests >= self._limits.max_requests:
                raise BusyError(f"{self.requests} requests are running or waiting, which is the limit")
            self.requests += 1
        ticket = Ticket(self)
        try:
            yield ticket
        finally:
            with self._lock:
                ticket.is_valid = False
                self.requests -= 1
                self._samples -= ticket.samples

    def reserve(self, ticket: Ticket, samples: int) -> None:
        """Count decoded audio of a request.

        Raises:
            BusyError: the total would exceed ``max_audio_s``, or the request has ended.
        """
        with self._lock:
            if not ticket.is_valid:
                raise BusyError("the request has ended")
            if self._samples + samples > self._limits.max_audio_s * SAMPLE_RATE:
                raise BusyError(
                    f"{self.audio_s:.0f} s of audio are waiting, and this request would exceed the limit of "
                    f"{self._limits.max_audio_s:g} s"
                )
            self._samples += samples
            ticket.samples += samples
