"""Call ``tiny-audio transcribe`` on a tiny model, whose texts are often truncated."""

from __future__ import annotations

import pytest

from tiny_audio.cli import main

CUT = ": a text was truncated at max_new_tokens; words may be missing"


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["transcribe", *map(str, arguments), "--no-filters"])
    out, err = capsys.readouterr()
    # The tiny model rarely writes an end token.
    return code, out, "".join(line for line in err.splitlines(keepends=True) if CUT not in line)
