"""Functions that write audio files and tables of clips, and that build sources from these files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.sources import SOURCES, Index, Source, SourceContext


def write_clip(path: Path, seconds: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.sin(np.arange(round(seconds * SAMPLE_RATE)) / 5), SAMPLE_RATE)
    return path


def write(path: Path, *lines: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines) + b"\n")
    return path


def build(kind: str, path: Path, cache: Path | None = None, **fields: Any) -> Source:
    config = SOURCES.parse({"name": kind, "path": str(path), **fields})
    return SOURCES.build(config, SourceContext(cache or path.parent / "cache"))


def dropped(index: Index) -> dict[str, str]:
    return {drop.id: drop.reason for drop in index.dropped}
