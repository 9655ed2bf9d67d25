"""Run ``tiny-audio transcribe``, and ignore warnings about truncated texts."""

from __future__ import annotations

import pytest

from tiny_audio.cli import main

CUT = ": a text was truncated at max_new_tokens; words may be missing"
"""The end of the warning about a truncated text."""


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Return the exit code, standard output and standard error of ``transcribe --no-filters``."""
    capsys.readouterr()
    code = main(["transcribe", *map(str, arguments), "--no-filters"])
    out, err = capsys.readouterr()
    # Ignore truncated texts, because the tiny model rarely generates an end token.
    return code, out, "".join(line for line in err.splitlines(keepends=True) if CUT not in line)
