"""Retry network requests, and read the waiting time that servers ask for."""

from __future__ import annotations

import email.utils
import logging
import math
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import tenacity

ResultT = TypeVar("ResultT")

_LOG = logging.getLogger(__name__)
_TRANSIENT_STATUSES = frozenset({408, 409, 425, 429})
_GO_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+)s)?(?:(\d+)ms)?")
_RATE_LIMIT = re.compile(r";\s*r=0\s*;\s*t=(\d+)")


def is_transient(status: int) -> bool:
    """Whether a request that failed with this HTTP status may succeed later."""
    return status in _TRANSIENT_STATUSES or status >= 500


class TransientError(Exception):
    """A temporary failure; a retry may succeed.

    Args:
        reason: what failed, for logs and messages.
        asked_wait_s: how long the server asks to wait; None if it does not ask.
        max_retries: maximum number of retries after a failure of this kind. The policy's maximum also applies.
    """

    def __init__(self, reason: str, asked_wait_s: float | None = None, max_retries: int | None = None) -> None:
        super().__init__(reason)
        self.asked_wait_s = asked_wait_s
        self.max_retries = max_retries


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The number of retries and the waits before them.

    The wait doubles with each retry, up to a maximum. Then a random part is subtracted. If the server asks for a longer
    wait, its wait is used, plus a random time. The random times prevent many clients from retrying at once.
    """

    max_retries: int
    base_wait_s: float
    """First wait, without the random part."""
    max_wait_s: float
    """Longest wait if the server does not ask for a wait."""
    max_asked_wait_s: float = math.inf
    """Longest wait that a server may ask for. If it asks for a longer wait, the request fails."""
    log_level: int = logging.INFO
    """Logging level of the message before each wait."""

    def call(self, attempt: Callable[[], ResultT]) -> ResultT:
        """Return the result of ``attempt``, which is called again if it raises a :class:`TransientError`.

        Raises:
            TransientError: no attempt succeeded, or the server asks for too long a wait.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransientError),
            stop=self._stop,
            wait=self._wait_s,
            sleep=_sleep,
            before_sleep=self._log,
            reraise=True,
        )
        return retrying(attempt)

    def _stop(self, state: tenacity.RetryCallState) -> bool:
        error = _error(state)
        limit = self.max_retries if error.max_retries is None else min(self.max_retries, error.max_retries)
        return state.attempt_number > limit or (error.asked_wait_s or 0.0) > self.max_asked_wait_s

    def _wait_s(self, state: tenacity.RetryCallState) -> float:
        wait_s = min(self.max_wait_s, self.base_wait_s * 2.0 ** (state.attempt_number - 1)) * random.uniform(0.5, 1)
        asked_s = _error(state).asked_wait_s
        if asked_s is None:
            return wait_s
        # Some servers always ask for 0 s, so wait at least `wait_s`.
        return max(wait_s, asked_s + random.uniform(0, min(asked_s, self.base_wait_s)))

    def _log(self, state: tenacity.RetryCallState) -> None:
        _LOG.log(self.log_level, "%s; trying again in %.1f s", _error(state), state.upcoming_sleep)


def _error(state: tenacity.RetryCallState) -> TransientError:
    assert state.outcome is not None
    error = state.outcome.exception()
    assert isinstance(error, TransientError)
    return error


def _sleep(seconds: float) -> None:
    time.sleep(seconds)  # `time.sleep` is looked up at each call, so that tests can replace it


def asked_wait_s(headers: Mapping[str, str], now: float) -> float | None:
    """Return how many seconds a server asks to wait; None if it does not ask.

    The headers are tried in this order: ``Retry-After-Ms``, ``Retry-After``, the Hugging Face hub's ``RateLimit``,
    ``X-RateLimit-Reset``, and OpenAI's ``X-RateLimit-Reset-Requests`` and ``X-RateLimit-Reset-Tokens``.

    Args:
        headers: the response's headers by lower-case name.
        now: the current Unix time in seconds.
    """
    candidates = [
        _number(headers.get("retry-after-ms"), 1e-3),
        _number(headers.get("retry-after"), 1.0),
        _until(headers.get("retry-after"), now),
        _rate_limit(headers.get("ratelimit")),
        _reset(headers.get("x-ratelimit-reset"), now),
        *(
            _duration(headers.get(f"x-ratelimit-reset-{kind}"))
            for kind in ("requests", "tokens")
            if headers.get(f"x-ratelimit-remaining-{kind}") == "0"
        ),
    ]
    return next((seconds for seconds in candidates if seconds is not None), None)


def _number(text: str | None, unit: float) -> float | None:
    try:
        seconds = float(text or "") * unit
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _until(text: str | None, now: float) -> float | None:
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text or "").timestamp() - now)
    except (ValueError, OverflowError):
        return None


def _rate_limit(text: str | None) -> float | None:
    """Parse ``"resolvers";r=0;t=30``: no requests remain, and the limit resets in 30 s.

    Servers round the time down, so 1 s is added.
    """
    found = _RATE_LIMIT.search(text or "")
    return int(found[1]) + 1.0 if found else None


def _reset(text: str | None, now: float) -> float | None:
    """Return the seconds until the limit resets. The text is this number, or a Unix time if the number is large."""
    seconds = _number(text, 1.0)
    return max(0.0, seconds - now) if seconds is not None and seconds > now / 2 else seconds


def _duration(text: str | None) -> float | None:
    """Parse a duration in Go's format, such as ``1s``, ``6m0s`` or ``20ms``."""
    found = _GO_DURATION.fullmatch(text or "")
    if not text or found is None:
        return None
    hours, minutes, seconds, milliseconds = (_number(part, 1.0) or 0.0 for part in found.groups())
    return 3600 * hours + 60 * minutes + seconds + milliseconds / 1000
