"""Selection of the clips that a report page embeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.parquet_shards import write_parquet
from tiny_audio.analysis.report.audio import FULL, MAX_CLIP_BYTES, NOT_CACHED, TOO_LARGE, audio_reader


def test_large_clips_are_not_embedded(tmp_path: Path) -> None:
    long, short, missing = (tmp_path / name for name in ("long.flac", "short.flac", "missing.flac"))
    long.write_bytes(b"fLaC" + bytes(MAX_CLIP_BYTES))
    short.write_bytes(b"fLaC")
    read = audio_reader([tmp_path / "hypotheses.jsonl"])
    assert read({"audio_filepath": "short.flac"}) == b"fLaC"
    assert read({"audio_filepath": "long.flac"}) == TOO_LARGE
    for path in (str(missing), "bad\0name", "x" * 5000, None):
        assert read({"audio_filepath": path}) is None
    for number in range(13):
        (tmp_path / f"{number}.flac").write_bytes(bytes(MAX_CLIP_BYTES))
    taken = [read({"audio_filepath": f"{number}.flac"}) for number in range(13)]
    assert taken == [*[bytes(MAX_CLIP_BYTES)] * 11, FULL, FULL]  # at most 24 MiB, including the short clip
    (tmp_path / "last.flac").write_bytes(b"fLaC")
    assert read({"audio_filepath": "last.flac"}) == FULL, "no further clip is read if the page is full"


def test_a_clip_that_a_page_embeds_twice_counts_twice(tmp_path: Path) -> None:
    (tmp_path / "clip.flac").write_bytes(bytes(MAX_CLIP_BYTES))
    read = audio_reader([tmp_path / "hypotheses.jsonl"])
    names = ["clip.flac", str(tmp_path / "clip.flac")] * 7
    taken = [read({"audio_filepath": name}) for name in names]
    assert taken == [*[bytes(MAX_CLIP_BYTES)] * 12, FULL, FULL]


def test_a_page_reads_cached_audio_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("a page asked the hub")

    monkeypatch.setenv("TINY_AUDIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tiny_audio.sources._row_groups.open_on_hub", no_network)
    monkeypatch.setattr("tiny_audio.sources._hub.ranges.RangeFile.__init__", no_network)
    cells = [{"audio": audio, "text": "yes"} for audio in (b"fLaC", None, b"fLaC2")]
    write_parquet(tmp_path / "clips.parquet", cells)
    read = audio_reader([tmp_path / "hypotheses.jsonl"])
    for file in ("a.flac", "a.parquet#row_group=0&row=0&column=audio"):
        assert read({"audio_filepath": f"hf://datasets/a/b@1/{file}"}) == NOT_CACHED
    found = [read({"audio_filepath": f"clips.parquet#row_group=0&row={row}&column=audio"}) for row in range(4)]
    assert found == [b"fLaC", None, b"fLaC2", None], "only the empty cell and the missing row have no audio"
