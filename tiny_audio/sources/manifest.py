"""Source ``manifest``: audio files listed in a JSON-lines file, as in the manifests of NeMo."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from tiny_audio.config import NO_IDENTITY, LocalPath
from tiny_audio.sources import SOURCES, Source, SourceConfig, SourceContext
from tiny_audio.sources._manifest import Columns, ManifestSource
from tiny_audio.sources._shared import NonEmpty


class ManifestConfig(SourceConfig):
    """Audio files listed in a JSON-lines manifest."""

    name: Literal["manifest"] = "manifest"
    path: LocalPath = Field(json_schema_extra=NO_IDENTITY)
    """The manifest: one JSON object per line. `~` is your home folder."""
    audio_column: NonEmpty = "audio_filepath"
    """The path of the audio file. A relative path starts from the manifest's folder."""
    duration_column: NonEmpty = "duration"
    """The duration in seconds. A missing duration is read from the header of the audio file."""
    text_column: NonEmpty = "text"
    """The transcript."""

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        if len({self.audio_column, self.duration_column, self.text_column}) < 3:
            raise ValueError(
                "audio_column, duration_column and text_column must name three different columns, not "
                f"{self.audio_column!r}, {self.duration_column!r} and {self.text_column!r}"
            )
        return self

    @classmethod
    def tiny(cls) -> Self:
        """Return a config for tests. The tests write a `manifest.jsonl` to the current folder."""
        return cls(path="manifest.jsonl")


@SOURCES.register
def build_manifest(config: ManifestConfig, context: SourceContext) -> Source:
    """Return the source of a manifest."""
    columns = Columns(config.audio_column, config.duration_column, config.text_column)
    return ManifestSource(Path(config.path).absolute(), columns)
