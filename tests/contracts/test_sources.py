"""The Source contract, for all registered sources."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from tests.support.hub_server import Hub, Repo, running_hub, use_hub
from tests.support.parquet_shards import (
    GIGASPEECH,
    LIBRISPEECH,
    LOQUACIOUS,
    encoded_clip,
    gigaspeech_row,
    librispeech_row,
    loquacious_row,
    parquet_bytes,
    write_parquet,
)
from tests.support.registered_parts import check_config, names, parts
from tiny_audio.registry import Entry
from tiny_audio.sources import SOURCES, Index, Source, SourceConfig, SourceContext, Utterance
from tiny_audio.testing import SOURCE_CHECKS, check_source

PARTS = parts(SOURCES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write three clips for each source that reads files, with the table that the source needs. Return the folder."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "folder").mkdir()
    (folder / "common_voice" / "clips").mkdir(parents=True)
    numbers, rows = np.random.default_rng(0), []
    cells, lines = ["file_name,transcription"], ["client_id\tpath\tsentence"]
    for index, text in enumerate(("one two", "three", "four five six")):
        audio = numbers.normal(0, 0.1, 8_000 + 1_000 * index)
        soundfile.write(folder / f"{index}.flac", audio, 16_000)
        rows.append({"audio_filepath": f"{index}.flac", "duration": len(audio) / 16_000, "text": text})
        soundfile.write(folder / "folder" / f"{index}.wav", audio, 16_000)
        cells.append(f"{index}.wav,{text}")
        soundfile.write(folder / "common_voice" / "clips" / f"{index}.mp3", audio, 16_000)
        lines.append(f"someone\t{index}.mp3\t{text}")
    (folder / "folder" / "metadata.csv").write_text("\n".join(cells))
    (folder / "common_voice" / "dev.tsv").write_text("\n".join(lines))
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_parquet(folder / "clips.parquet", _table())
    return folder


def _table() -> list[dict[str, object]]:
    return [{"audio": encoded_clip(number, 0.5), "text": "yes", "duration": 0.5} for number in range(3)]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """Start a local hub with the repositories that the sources' tiny configs name."""
    with running_hub() as hub:
        hub.repos["tiny/clips"] = Repo({"data/test-00000-of-00001.parquet": parquet_bytes(_table())})
        dev = parquet_bytes([loquacious_row(number) for number in range(3)], LOQUACIOUS)
        splits = [{"split": "dev", "path": "dev/dev-*"}]
        hub.repos["speechbrain/LoquaciousSet"] = Repo(
            {"dev/dev-00000-of-00001.parquet": dev}, {"configs": [{"config_name": "small", "data_files": splits}]}
        )
        validation = parquet_bytes([librispeech_row(number) for number in range(3)], LIBRISPEECH)
        splits = [{"split": "validation.clean", "path": "all/validation.clean-*"}]
        hub.repos["openslr/librispeech_asr"] = Repo(
            {"all/validation.clean-00000-of-00001.parquet": validation},
            {"configs": [{"config_name": "all", "data_files": splits}]},
        )
        validation = parquet_bytes([gigaspeech_row(number) for number in range(3)], GIGASPEECH)
        splits = [{"split": "validation", "path": "dev/validation-*"}]
        hub.repos["speechcolab/gigaspeech"] = Repo(
            {"dev/validation-00000-of-00001.parquet": validation},
            {"configs": [{"config_name": "dev", "data_files": splits}]},
        )
        yield hub


@pytest.mark.parametrize("entry", PARTS, ids=names(PARTS))
def test_config(entry: Entry[SourceConfig, Source]) -> None:
    check_config(entry)


@pytest.mark.parametrize("check", SOURCE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("entry", PARTS, ids=names(PARTS))
def test_contract(
    entry: Entry[SourceConfig, Source],
    check: Callable[[SourceConfig, SourceContext], None],
    folder: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if entry.name == "synthetic" and find_spec("espeakng_loader") is None:
        pytest.skip("needs espeak-ng: pip install 'tiny-audio[synthetic]'")
    use_hub(monkeypatch, hub.endpoint)
    monkeypatch.chdir(folder)
    check(entry.config.tiny(), SourceContext(folder / "cache"))


@pytest.mark.parametrize(
    ("text", "is_empty", "message"),
    [("yes", True, "has a text, but Index.without_text"), ("", False, "has no text")],
)
def test_an_index_that_contradicts_its_texts_is_found(
    text: str, is_empty: bool, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Index([Utterance("clip", 1.0, text, None)], [], "fingerprint", empty=np.array([is_empty]))
    monkeypatch.setattr(SOURCES, "build", lambda config, context: SimpleNamespace(index=lambda: index))
    with pytest.raises(AssertionError, match=message):
        check_source(SOURCES.parse({"name": "manifest", "path": "clips.jsonl"}), SourceContext(tmp_path))
