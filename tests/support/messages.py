"""Checks of messages by the values that they name, not by their prose."""

from __future__ import annotations


def assert_names(error: BaseException, *values: str) -> None:
    """The message names every word of ``values``, in this order."""
    message, start = str(error), 0
    for word in " ".join(values).split():
        found = message.find(word, start)
        assert found >= 0, f"{word!r} is not in {message[start:]!r}"
        start = found + len(word)
