"""Checks of the values in a message, but not of its prose."""

from __future__ import annotations


def assert_names(error: BaseException, *values: str) -> None:
    """Check that the message contains every word of ``values``, in this order."""
    message, start = str(error), 0
    for word in " ".join(values).split():
        found = message.find(word, start)
        assert found >= 0, f"{word!r} is not in {message[start:]!r}"
        start = found + len(word)
