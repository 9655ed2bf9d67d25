"""Contexts (hotwords, previous text, language) of the clips in an evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import StringConstraints, model_validator

from tiny_audio.config import Config, LocalPath, UserError
from tiny_audio.data.clips import Clip
from tiny_audio.inference.hotwords_file import read_hotwords
from tiny_audio.model.prompt import Context

_NonEmpty = Annotated[str, StringConstraints(min_length=1)]


class ContextOptions(Config):
    """Options that can follow a model that this package exported, on the command line: ``MODEL:key=value,...``."""

    hotwords: LocalPath | None = None
    """A file of hotwords for all clips."""
    hotwords_column: _NonEmpty | None = None
    """Metadata column with the hotwords of each clip: a text with commas between them, or a list of texts."""
    previous_text_column: _NonEmpty | None = None
    """Metadata column with the text that was spoken before each clip."""
    language: _NonEmpty | None = None
    """Language of all clips. It must be one of the languages that the model was trained with."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hotwords is not None and self.hotwords_column is not None:
            raise ValueError("hotwords and hotwords_column are both given; remove one of them")
        return self


@dataclass(frozen=True)
class ClipContexts:
    """The contexts of all clips that a target transcribes."""

    shared: Context
    """The hotwords and the language of all clips."""
    options: ContextOptions
    encode: Callable[[Context | None], object] = lambda context: None
    """A function that raises a UserError if the model cannot use the context."""

    @classmethod
    def of(cls, options: ContextOptions) -> ClipContexts | None:
        """Read the file of hotwords. Return None if all options are None.

        Raises:
            UserError: the file cannot be used.
        """
        if options == ContextOptions():
            return None
        words = () if options.hotwords is None else read_hotwords(Path(options.hotwords))
        return cls(Context(words, language=options.language), options)

    def identity(self) -> dict[str, Any]:
        """Return the settings that affect the hypotheses, as JSON. Hotwords from a file are represented by a hash."""
        options = self.options.model_dump(exclude_none=True, exclude={"hotwords"})
        words = self.shared.hotwords
        digest = {"hotwords": hashlib.sha256("\n".join(words).encode()).hexdigest()} if words else {}
        return options | digest

    def of_clips(self, clips: Sequence[Clip]) -> list[Context | None]:
        """Return the context of each clip.

        Raises:
            UserError: a clip's list of hotwords contains a value that is not a text, or the model cannot use a context.
        """
        contexts = [self._of_clip(clip) for clip in clips]
        for clip, context in zip(clips, contexts, strict=True):
            try:
                self.encode(context)
            except UserError as error:
                raise UserError(f"{clip.id}: {error}") from error
        return contexts

    def _of_clip(self, clip: Clip) -> Context | None:
        options, metadata = self.options, clip.utterance.metadata
        words: str | Sequence[str] | None = self.shared.hotwords
        if options.hotwords_column is not None:
            words = _words(clip, options.hotwords_column)
        previous = None if options.previous_text_column is None else metadata.get(options.previous_text_column)
        return Context.of(words, previous, options.language)

    def check_columns(self, clips: Sequence[Clip]) -> None:
        """Raise a UserError if all clips lack a metadata column that the options name."""
        for name in (self.options.hotwords_column, self.options.previous_text_column):
            if name is not None and not any(name in clip.utterance.metadata for clip in clips):
                known = ", ".join(sorted({key for clip in clips for key in clip.utterance.metadata})) or "none"
                raise UserError(f"no clip has the metadata column {name!r}; the columns of the clips are: {known}")


def _words(clip: Clip, column: str) -> str | list[str] | None:
    """Return a clip's value of the column with hotwords. Sources store a list from a manifest as JSON."""
    value = clip.utterance.metadata.get(column)
    try:
        found = json.loads(value) if value is not None and value.startswith("[") else None
    except ValueError:
        return value  # a text that only looks like a list
    if found is None:
        return value
    if not all(isinstance(word, str) for word in found):
        raise UserError(
            f"{clip.id}: the metadata column {column!r} has {value}; it must have a text or a list of texts"
        )
    return list(found)
