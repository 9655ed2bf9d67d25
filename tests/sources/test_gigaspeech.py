"""Source ``gigaspeech``, read from a local hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import changed, tiny_recipe
from tests.support.hub_server import Hub, Repo, running_hub, use_hub
from tests.support.parquet_shards import GIGASPEECH, gigaspeech_row, parquet_bytes
from tiny_audio.commands.run.context import RunClips
from tiny_audio.config import UserError
from tiny_audio.data.text import TargetText, TargetTextConfig
from tiny_audio.recipe import Recipe
from tiny_audio.sources import SOURCES, Source, SourceContext

NAME = "speechcolab/gigaspeech"
SPLITS = {"xs": ("train",), "dev": ("validation",), "test": ("test",)}


def shard(first: int, count: int) -> bytes:
    return parquet_bytes([gigaspeech_row(number) for number in range(first, first + count)], GIGASPEECH)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as hub:
        files = {f"{config}/{split}-00000-of-00001.parquet": shard(10 * number, 4)
                 for number, (config, splits) in enumerate(SPLITS.items()) for split in splits}  # fmt: skip
        configs = [
            {"config_name": config, "data_files": [{"split": split, "path": f"{config}/{split}-*"} for split in splits]}
            for config, splits in SPLITS.items()
        ]
        hub.repos[NAME] = Repo(files, {"configs": configs}, gated=True)
        use_hub(monkeypatch, hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", "hf_accepted")
        yield hub


def build(cache: Path, **fields: Any) -> Source:
    return SOURCES.build(SOURCES.parse({"name": "gigaspeech", "config": "xs", **fields}), SourceContext(cache))


def test_rows_are_segments(hub: Hub, tmp_path: Path) -> None:
    source = build(tmp_path)
    index = source.index()
    assert (len(index.utterances), index.dropped) == (4, ())
    first = index.utterances[0]
    assert (first.id, first.text) == ("POD0000000000_S0000000", "WELL <COMMA> STOP NOW <PERIOD>")
    assert first.duration_s == pytest.approx(0.6, abs=1e-4), "the end time minus the start time"
    assert first.metadata == {"audio_id": "POD0000000000"}
    assert source.encoded(first) == gigaspeech_row(0)["audio"]["bytes"]
    written = TargetText(TargetTextConfig(write_punctuation=True, true_case=True))
    assert written(first.text) == "Well, stop now."


def test_dev_and_test_are_separate_configs(hub: Hub, tmp_path: Path) -> None:
    for split, first in (("dev", 10), ("test", 20)):
        index = build(tmp_path, split=split).index()
        assert index.utterances[0].id.endswith(f"S{first:07d}")


def test_segments_without_speech_or_without_an_end_are_dropped(hub: Hub, tmp_path: Path) -> None:
    rows = [gigaspeech_row(number) for number in range(8)]
    for row, text in zip(rows, ("<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>", "<NOISE> YES"), strict=False):
        row["text"] = text
    rows[5]["end_time"] = rows[5]["begin_time"]
    rows[6]["begin_time"] = None
    hub.repos[NAME].files["xs/train-00000-of-00001.parquet"] = parquet_bytes(rows, GIGASPEECH)
    index = build(tmp_path).index()
    assert [utterance.text for utterance in index.utterances] == ["<NOISE> YES", "WELL <COMMA> STOP NOW <PERIOD>"]
    assert [drop.reason for drop in index.dropped] == ["no_speech"] * 4 + ["bad_duration"] * 2
    details = [drop.detail.split("row ")[-1] for drop in index.dropped]
    assert details[0].startswith("0: 'text' is <SIL>, ")
    assert details[4] == "5: 'end_time' minus 'begin_time' must be a finite number of seconds above 0, not 0.0"
    assert details[5].endswith("not nan")


def test_segments_without_speech_can_be_kept_for_training(hub: Hub, tmp_path: Path) -> None:
    rows = [gigaspeech_row(number) for number in range(6)]
    for row, text in zip(rows, ("<SIL>", "YES", " <MUSIC> ", "<NOISE> YES", None), strict=False):
        row["text"] = text
    hub.repos[NAME].files["xs/train-00000-of-00001.parquet"] = parquet_bytes(rows, GIGASPEECH)
    build(tmp_path).index()
    config = SOURCES.parse({"name": "gigaspeech", "config": "xs"})
    mix = SOURCES.parse({"name": "mix", "sources": {"wild": {"source": {"name": "gigaspeech", "config": "xs"}}}})
    for given in (config, mix):
        index = SOURCES.build(given, SourceContext(tmp_path, keep_empty=True)).index()
        assert [utterance.text for utterance in index.utterances][:4] == ["", "YES", "", "<NOISE> YES"]
        assert index.without_text().tolist() == [True, False, True, False, False]
        assert [drop.reason for drop in index.dropped] == ["text_missing"]
    kept, dropped = (SourceContext(tmp_path, keep_empty=keep) for keep in (True, False))
    assert SOURCES.build(config, kept).index().fingerprint != SOURCES.build(config, dropped).index().fingerprint


@pytest.mark.parametrize("keep", [True, False])
def test_keep_empty_applies_to_training_only(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    monkeypatch.setenv("TINY_AUDIO_CACHE", str(tmp_path / "cache"))
    rows = [gigaspeech_row(number) | ({"text": "<OTHER>"} if number < 2 else {}) for number in range(5)]
    for split in ("xs/train", "dev/validation"):
        hub.repos[NAME].files[f"{split}-00000-of-00001.parquet"] = parquet_bytes(rows, GIGASPEECH)
    document = changed(tiny_recipe(tmp_path), data__keep_empty=keep)
    document["data"]["train"] = {"wild": {"name": "gigaspeech", "config": "xs"}}
    document["data"]["evaluation"] = {"dev": {"name": "gigaspeech", "split": "dev"}}
    clips = RunClips(Recipe.model_validate_json(json.dumps(document)), {}, 60.0)
    assert [clip.utterance.text == "" for clip in clips.training().clips] == [True] * 2 * keep + [False] * 3
    assert [drop.reason for drop in clips.training().dropped] == ["no_speech"] * 2 * (not keep)
    assert len(clips.evaluation("dev").clips) == 3
    assert [drop.reason for drop in clips.evaluation("dev").dropped] == ["no_speech"] * 2


def test_without_a_token_the_message_names_the_terms(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    terms = f"{NAME} is gated: accept its terms at {hub.endpoint}/datasets/{NAME}, then log in with `hf auth login`, or"
    with pytest.raises(UserError, match=re.escape(f"{terms} set HF_TOKEN")):
        build(tmp_path).index()


def test_a_repository_without_parquet_is_read_from_the_hubs_conversion(hub: Hub, tmp_path: Path) -> None:
    converted = Repo({"xs/train/0000.parquet": shard(0, 2), "dev/validation/0000.parquet": shard(10, 2)})
    hub.repos[NAME] = Repo({"gigaspeech.py": b"a script"}, converted=converted)
    with pytest.raises(UserError, match="try revision: refs/convert/parquet"):
        build(tmp_path).index()
    for split in ("train", "dev"):
        index = build(tmp_path, split=split, revision="refs/convert/parquet").index()
        assert len(index.utterances) == 2


def test_missing_columns_are_an_error(hub: Hub, tmp_path: Path) -> None:
    rows = [gigaspeech_row(0)]
    hub.repos[NAME].files["xs/train-00000-of-00001.parquet"] = parquet_bytes(rows, GIGASPEECH.remove(4))
    with pytest.raises(UserError, match=r"has no column 'begin_time' \(begin\); its columns: segment_id"):
        build(tmp_path).index()
