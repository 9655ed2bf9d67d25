"""The Source contract, over all that are registered."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile

from contracts._registered import check_config, names, parts
from tiny_audio.registry import Entry
from tiny_audio.sources import SOURCES, Source, SourceConfig, SourceContext
from tiny_audio.testing import SOURCE_CHECKS

PARTS = parts(SOURCES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips and their ``manifest.jsonl``, for the sources that read files."""
    folder = tmp_path_factory.mktemp("sources")
    numbers, rows = np.random.default_rng(0), []
    for index, text in enumerate(("one two", "three", "four five six")):
        audio = numbers.normal(0, 0.1, 8_000 + 1_000 * index)
        soundfile.write(folder / f"{index}.flac", audio, 16_000)
        rows.append({"audio_filepath": f"{index}.flac", "duration": len(audio) / 16_000, "text": text})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("entry", PARTS, ids=names(PARTS))
def test_config(entry: Entry[SourceConfig, Source]) -> None:
    check_config(entry)


@pytest.mark.parametrize("check", SOURCE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("entry", PARTS, ids=names(PARTS))
def test_contract(
    entry: Entry[SourceConfig, Source],
    check: Callable[[SourceConfig, SourceContext], None],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if entry.name == "synthetic" and find_spec("espeakng_loader") is None:
        pytest.skip("needs espeak-ng: pip install 'tiny-audio[synthetic]'")
    monkeypatch.chdir(folder)
    check(entry.config.tiny(), SourceContext(folder / "cache"))
