"""An error that one process sends to the others has the same kind, and so the same exit code, in all processes."""

from __future__ import annotations

import pytest

from tiny_audio.config import Failure, RunFailed, Stopped, TinyAudioError, UserError


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UserError("a"), UserError),
        (RunFailed("b"), RunFailed),
        (Stopped("c"), Stopped),
        (OSError(28, "No space left on device", "/run/metrics.jsonl"), UserError),
        (OSError("a library's own"), RunFailed),
        (ZeroDivisionError("d"), RunFailed),
    ],
)
def test_receivers_raise_an_error_of_the_same_kind(error: Exception, kind: type[TinyAudioError]) -> None:
    received = Failure.of(error, "process 0").to_error()
    assert type(received) is kind
    assert received.origin == "process 0"
    assert str(error) in str(received)
