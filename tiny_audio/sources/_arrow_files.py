"""Read and write Arrow files in the cache folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tiny_audio.config import UserError
from tiny_audio.runtime.files import new_file

if TYPE_CHECKING:
    import pyarrow as pa


def read_arrow(path: Path) -> pa.Table | None:
    """Return the table of an Arrow file, memory-mapped. Return None if the file is missing or damaged."""
    import pyarrow as pa

    try:
        return mapped_table(path)
    except (OSError, pa.ArrowException):
        return None


def mapped_table(path: Path) -> pa.Table:
    """Return the table of an Arrow file, memory-mapped.

    Raises:
        OSError, pyarrow.ArrowException: the file is missing or damaged.
    """
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def write_arrow(path: Path, table: pa.Table) -> None:
    """Write a table to a file atomically. An existing file is replaced.

    Raises:
        UserError: the folder cannot be written.
    """
    import pyarrow as pa

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            new_file(path) as aside,
            aside.open("wb") as file,
            pa.ipc.new_file(file, table.schema) as writer,
        ):
            writer.write_table(table)
    except OSError as error:
        raise UserError(f"the cache folder {path.parent} cannot be written: {error}") from error
