"""Addresses of the audio of clips. A file of hypotheses stores each address as text, from which the audio can be read
again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from tests.support.hub_server import Hub, Repo, forget, running_hub, use_hub
from tests.support.parquet_shards import encoded_clip, parquet_bytes, write_parquet
from tiny_audio.config import UserError
from tiny_audio.sources import SOURCES, AudioAddress, HubFile, NotCachedError, ParquetCell, SourceContext

_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)
_PATHS = st.builds("/data/{}.flac".format, _NAMES).map(Path)
_HUB_FILES = st.builds(HubFile, st.just("owner/name"), _NAMES, _NAMES)
_CELLS = st.builds(ParquetCell, st.integers(0, 99), st.integers(0, 99), _NAMES)


@given(st.builds(AudioAddress, _PATHS | _HUB_FILES, st.none() | _CELLS))
def test_the_text_form_contains_the_whole_address(address: AudioAddress) -> None:
    assert AudioAddress.parse(str(address), Path("/elsewhere")) == address


def test_text_forms_are_readable() -> None:
    cell = ParquetCell(0, 3, "audio")
    assert str(AudioAddress(Path("/data/a.flac"))) == "/data/a.flac"
    assert str(AudioAddress(Path("/a.parquet"), cell)) == "/a.parquet#row_group=0&row=3&column=audio"
    hub = AudioAddress(HubFile("owner/name", "4c28e5", "train/0.parquet"), cell)
    assert str(hub) == "hf://datasets/owner/name@4c28e5/train/0.parquet#row_group=0&row=3&column=audio"


def test_relative_paths_and_paths_of_older_hypotheses_can_be_read() -> None:
    assert AudioAddress.parse("a.flac", Path("/data")) == AudioAddress(Path("/data/a.flac"))
    assert AudioAddress.parse("train.parquet:0:3", Path("/data")).file == Path("/data/train.parquet:0:3")
    with pytest.raises(UserError, match="empty"):
        AudioAddress.parse("", Path("/data"))


def test_every_source_gives_addresses_that_read_its_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"audio": encoded_clip(number, 0.5), "text": "yes", "duration": 0.5} for number in range(3)]
    for name in ("folder", "common_voice/clips"):
        (tmp_path / name).mkdir(parents=True)
    write_parquet(tmp_path / "clips.parquet", rows)
    soundfile.write(tmp_path / "folder" / "a.wav", np.zeros(8_000), 16_000)
    soundfile.write(tmp_path / "common_voice" / "clips" / "a.mp3", np.zeros(8_000), 16_000)
    (tmp_path / "folder" / "metadata.csv").write_text("file_name,text\na.wav,yes\n")
    (tmp_path / "common_voice" / "dev.tsv").write_text("client_id\tpath\tsentence\nann\ta.mp3\tyes\n")
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"audio_filepath": "folder/a.wav", "text": "yes"}))
    monkeypatch.chdir(tmp_path)
    configs = [SOURCES.parse({"name": "folder", "path": "folder"})]
    configs += [SOURCES.parse({"name": "common_voice", "path": "common_voice", "split": "dev"})]
    configs += [SOURCES.parse({"name": "manifest", "path": "manifest.jsonl"})]
    configs += [SOURCES.parse({"name": "parquet", "path": "clips.parquet"})]
    configs += [SOURCES.parse({"name": "hub", "repo": "a/b", "split": "test"})]
    configs += [SOURCES.parse({"name": "mix", "sources": {"one": {"source": configs[-1].model_dump()}}})]
    with running_hub() as hub:
        hub.repos["a/b"] = Repo({"data/test-00000-of-00001.parquet": parquet_bytes(rows)})
        use_hub(monkeypatch, hub.endpoint)
        for config in configs:
            source = SOURCES.build(config, SourceContext(tmp_path / "cache"))
            for utterance in source.index().utterances:
                encoded = source.encoded(utterance)
                wanted = encoded.read_bytes() if isinstance(encoded, Path) else encoded
                address = AudioAddress.parse(str(utterance.audio), tmp_path)
                for cache in ("cache", "other"):
                    forget()
                    assert address.read(tmp_path / cache) == wanted
        requests = len(hub.requests)
        forget()
        address.read(tmp_path / "cache")
        assert len(hub.requests) == requests, "the row group is already in the source's cache"
        assert address.read(tmp_path / "cache", offline=True) == wanted
        for file in (address.file, HubFile("none/at all", "main", "a.flac")):
            for cell in (address.cell, None):
                forget()
                with pytest.raises(NotCachedError):
                    AudioAddress(file, cell).read(tmp_path / "empty", offline=True)
        assert len(hub.requests) == requests


@pytest.mark.parametrize("text", ["none.flac", "none.parquet#row_group=0&row=0&column=audio", "x\0.flac", "x" * 5_000])
def test_a_missing_file_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        AudioAddress.parse(text, tmp_path).read(tmp_path)


@pytest.mark.parametrize("cell", [(9, 0, "audio"), (0, 9, "audio"), (0, 0, "sound"), (0, 0, "text")])
def test_a_missing_cell_is_an_error(tmp_path: Path, cell: tuple[int, int, str]) -> None:
    path = write_parquet(tmp_path / "a.parquet", [{"audio": b"fLaC", "text": "yes"}])
    with pytest.raises(UserError):
        AudioAddress(path, ParquetCell(*cell)).read(tmp_path / "cache")


@pytest.mark.parametrize("repo", ["a/b/c", "none/at all", "a/none"])
def test_a_missing_dataset_is_an_error(tmp_path: Path, hub: Hub, repo: str) -> None:
    with pytest.raises(UserError, match=repo):
        AudioAddress(HubFile(repo, "main", "a.flac")).read(tmp_path)
