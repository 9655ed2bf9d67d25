"""The column names of tables that contain audio, and checks of the column types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from tiny_audio.config import UserError
from tiny_audio.sources import SourceConfig
from tiny_audio.sources._shared import NonEmpty

if TYPE_CHECKING:
    import pyarrow as pa

_DURATION = "duration"
"""The default name of the column of durations."""


class ColumnsConfig(SourceConfig):
    """Base of the configs of sources in which users can choose the columns."""

    audio_column: NonEmpty = "audio"
    """The encoded audio: bytes, or a struct of `bytes` and `path`, as in files of the `datasets` library."""
    text_column: NonEmpty = "text"
    """The transcript."""
    duration_column: NonEmpty | None = None
    """The duration in seconds. If None, the column `duration` is used. If the table has no such column, durations are
    read from the headers of the clips. This reads all audio once, because parquet files are read by row group."""
    id_column: NonEmpty | None = None
    """A name for each clip, preferably unique. If None, clips are named by file and row."""
    speaker_column: NonEmpty | None = None
    """The speaker. Stored as the metadata column `speaker`."""
    metadata_columns: Annotated[tuple[NonEmpty, ...], Field(strict=False)] | None = None
    """Further columns to keep as metadata. If None, all columns with text, numbers, booleans or dates are kept. Columns
    with lists or structs are not kept."""

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        named = [self.audio_column, self.text_column, self.duration_column, self.id_column, self.speaker_column]
        named = [name for name in named if name is not None]
        if len(set(named)) < len(named):
            raise ValueError(
                "audio_column, text_column, duration_column, id_column and speaker_column must name different "
                f"columns, not {', '.join(map(repr, named))}"
            )
        return self


@dataclass(frozen=True, slots=True)
class Columns:
    """The column names of a table of clips. The fields correspond to those of :class:`ColumnsConfig`."""

    audio: str
    text: str
    duration: str | None
    id: str | None
    speaker: str | None
    metadata: tuple[str, ...] | None
    begin: str | None = None
    """Column with the start time of a clip within its recording, in seconds. If this is set, ``duration`` names the
    column with the end time."""
    silence: tuple[str, ...] = ()
    """Transcripts that mark a clip without speech, such as ``<NOISE>``. See ``SourceContext.keep_empty``."""

    @classmethod
    def of(cls, config: ColumnsConfig) -> Self:
        """Return the column names in a config."""
        return cls(
            config.audio_column,
            config.text_column,
            config.duration_column,
            config.id_column,
            config.speaker_column,
            config.metadata_columns,
        )

    def check(self, schema: pa.Schema, table: str) -> None:
        """Check that a table has all of these columns, with the right types.

        Args:
            table: name of the table in messages.

        Raises:
            UserError: a column is missing or has the wrong type, or several columns have the same name.
        """
        import pyarrow.types as types

        there = set(schema.names)
        if len(there) < len(schema.names):
            raise UserError(
                f"{table} has several columns with the same name; its columns: {_listed(schema)}; give each column its "
                "own name"
            )
        wanted = {
            "audio_column": self.audio,
            "text_column": self.text,
            "duration_column": self.duration,
            "begin": self.begin,
            "id_column": self.id,
            "speaker_column": self.speaker,
        }
        for field, name in wanted.items():
            if name is not None and name not in there:
                hint = "; if there are no durations, remove duration_column" if field == "duration_column" else ""
                raise UserError(f"{table} has no column {name!r} ({field}); its columns: {_listed(schema)}{hint}")
        missing = [name for name in self.metadata or () if name not in there]
        if missing:
            raise UserError(
                f"{table} has no column {', '.join(map(repr, missing))} (metadata_columns); "
                f"its columns: {_listed(schema)}"
            )
        if not _is_audio(schema.field(self.audio).type):
            raise UserError(
                f"the column {self.audio!r} of {table} holds {schema.field(self.audio).type}; audio_column must hold "
                f"encoded audio, as bytes or as a struct of bytes and path; its columns: {_listed(schema)}"
            )
        if not _is_text(schema.field(self.text).type):
            raise UserError(
                f"the column {self.text!r} of {table} holds {schema.field(self.text).type}; text_column must hold "
                f"strings; its columns: {_listed(schema)}"
            )
        duration = self.stated_duration(schema)
        if duration is not None:
            kind = schema.field(duration).type
            if not (types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)):
                raise UserError(
                    f"the column {duration!r} of {table} holds {kind}; duration_column must hold seconds; "
                    f"its columns: {_listed(schema)}"
                )
        for name in filter(None, (self.id, self.speaker, *(self.metadata or ()))):
            if not _is_scalar(schema.field(name).type):
                raise UserError(
                    f"the column {name!r} of {table} holds {schema.field(name).type}; ids and metadata must be single "
                    f"values; its columns: {_listed(schema)}"
                )

    def stated_duration(self, schema: pa.Schema) -> str | None:
        """Return the name of the column of durations. Return None if a table with this schema has no such column."""
        if self.duration is not None:
            return self.duration
        return _DURATION if _DURATION in schema.names else None

    def kept(self, schema: pa.Schema) -> dict[str, str]:
        """Return the columns of a table with this schema that are kept as metadata: metadata name -> column name."""
        used = {self.audio, self.text, self.stated_duration(schema), self.id, self.speaker}
        names: Sequence[str] = (
            [field.name for field in schema if field.name not in used and _is_scalar(field.type)]
            if self.metadata is None
            else self.metadata
        )
        kept = {name: name for name in names}
        if self.speaker is not None:
            kept["speaker"] = self.speaker
        return kept


def _is_audio(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_audio(kind.field("bytes").type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_scalar(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return _is_scalar(kind.value_type)
    # A column in which every value is missing has the type null.
    checks = (
        types.is_integer,
        types.is_floating,
        types.is_boolean,
        types.is_temporal,
        types.is_decimal,
        types.is_null,
    )
    return _is_text(kind) or any(check(kind) for check in checks)


def _listed(schema: pa.Schema) -> str:
    """Return the names and types of the columns for a message."""
    return ", ".join(f"{field.name} ({'audio' if _is_audio(field.type) else field.type})" for field in schema)
