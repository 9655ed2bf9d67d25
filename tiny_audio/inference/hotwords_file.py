"""Read a file of hotwords."""

from __future__ import annotations

from pathlib import Path

from tiny_audio.config import UserError
from tiny_audio.model.prompt import hotwords_in
from tiny_audio.runtime.text_files import decoded

_MAX_BYTES = 1_000_000


def read_hotwords(path: Path) -> tuple[str, ...]:
    """Return the hotwords of a file. :func:`tiny_audio.model.prompt.hotwords_in` describes the separators.

    Raises:
        UserError: the file cannot be read, is not text, is too large, or has no hotword.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"hotwords: {path} cannot be read: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise UserError(f"hotwords: {path} has more than {_MAX_BYTES:,} bytes; give a list of a few hundred words")
    try:
        text = decoded(content)
    except UnicodeDecodeError as error:
        raise UserError(f"hotwords: {path} is not text; give a file with a word or a name on each line") from error
    words = hotwords_in(text)
    if not words:
        raise UserError(f"hotwords: {path} has no hotword; write a word or a name on each line")
    return words
