"""Options of ``tiny-audio transcribe``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tiny_audio.config import UserError
from tiny_audio.model.prompt import Context

Format = Literal["text", "json", "srt", "vtt", "tsv"]
_NO_IDENTITY = ("format", "output_dir", "overwrite")
SUFFIXES: dict[str, str] = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt", "tsv": ".tsv"}


@dataclass(frozen=True)
class Options:
    """Options for transcribing and for writing transcripts."""

    format: str = "text"
    output_dir: Path | None = None
    """Folder for the files, one for each recording. If None, the transcripts are written to standard output."""
    words: bool = False
    """Include the time of each word. JSON lists the words of each segment. Tables and subtitles have one row or cue per
    word."""
    filter_hallucinations: bool = True
    """See :class:`tiny_audio.inference.transcriber.Transcriber`."""
    search_cuts: bool = True
    """See :class:`tiny_audio.inference.transcriber.Transcriber`."""
    overwrite: bool = False
    """Transcribe a recording even if its transcript already exists in ``output_dir``."""
    track: int | None = None
    """The audio track, counted from 1. If None, each file's default track is used. If a file has no default track, its
    first track is used."""
    channel: int | None = None
    """The channel, counted from 1. If None, the channels are averaged. Where channels cancel each other, the strongest
    channel is used instead."""

    context: Context | None = None
    """The context of all recordings, such as hotwords."""

    def identity(self) -> dict[str, Any]:
        """Return the options that affect a transcript, as JSON values. The context is left out if it is None."""
        options = {key: value for key, value in asdict(self).items() if key not in _NO_IDENTITY}
        context = options.pop("context")
        return options if context is None else options | {"context": context | {"hotwords": [*context["hotwords"]]}}

    def __post_init__(self) -> None:
        if self.format not in get_args(Format):
            raise UserError(f"--format {self.format!r} is unknown; choose one of {', '.join(get_args(Format))}")
        if self.words and self.format == "text":
            raise UserError("--words has no effect in plain text; add --format json, srt, vtt or tsv")
        if self.overwrite and self.output_dir is None:
            raise UserError("--overwrite has no effect without --output-dir; add --output-dir, or remove --overwrite")
