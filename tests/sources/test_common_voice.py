"""Source ``common_voice``: the archive published by Mozilla."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.sources.clip_files import build, write, write_clip
from tiny_audio.config import UserError
from tiny_audio.sources import _durations

HEADER = "client_id\tpath\tsentence_id\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tlocale"


def row(number: int, sentence: str = "Yes.", **changes: str) -> str:
    cells = {"client_id": f"c{number % 2}", "path": f"common_voice_en_{number}.mp3", "id": "x", "sentence": sentence}
    cells |= {"up": "2", "down": "0", "age": "", "gender": "female_feminine", "accents": "", "locale": "en"}
    return "\t".join((cells | changes).values())


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Write the unpacked archive. It has three training clips, two of them with stated durations, and one dev clip."""
    corpus = tmp_path / "cv-corpus" / "en"
    for number in range(4):
        write_clip(corpus / "clips" / f"common_voice_en_{number}.mp3", 1.0 + number)
    write(corpus / "train.tsv", HEADER, row(0), row(1, '"He said ""no"" twice"'), row(2, '"Oh," he said, "yes"'))
    write(corpus / "dev.tsv", HEADER, row(3))
    stated = ["common_voice_en_0.mp3\t1044", "common_voice_en_1.mp3\t2052", "common_voice_en_2.mp3\t", "short"]
    write(corpus / "clip_durations.tsv", "clip\tduration[ms]", *stated)
    return corpus


def test_common_voice(corpus: Path, tmp_path: Path) -> None:
    source = build("common_voice", corpus, tmp_path / "cache")
    index = source.index()
    assert [u.text for u in index.utterances] == ["Yes.", 'He said "no" twice', '"Oh," he said, "yes"']
    assert [u.duration_s for u in index.utterances[:2]] == [1.044, 2.052], "from clip_durations.tsv"
    assert index.utterances[2].duration_s == pytest.approx(3.0, abs=0.1), "from the header"
    assert index.utterances[1].id == "common_voice_en_1.mp3"
    known = {"path": "common_voice_en_1.mp3", "speaker": "c1", "gender": "female_feminine", "locale": "en"}
    assert index.utterances[1].metadata == known
    assert source.encoded(index.utterances[1]) == corpus / "clips" / "common_voice_en_1.mp3"
    assert len(build("common_voice", corpus, tmp_path / "cache", split="dev").index().utterances) == 1
    assert build("common_voice", corpus, tmp_path / "cache").index() == index


def test_bad_rows_and_clips_are_dropped(corpus: Path, tmp_path: Path) -> None:
    write_clip(corpus / "clips" / "common_voice_en_5.mp3").write_bytes(b"no audio")
    bad = [row(9), row(3, ""), row(5), "short\trow", row(2, "x").encode() + b"\xff"]
    write(corpus / "train.tsv", HEADER, row(0), *bad)
    index = build("common_voice", corpus, tmp_path / "cache").index()
    assert [(drop.id, drop.reason) for drop in index.dropped] == [
        ("train.tsv:3", "audio_missing"),
        ("common_voice_en_3.mp3", "text_missing"),
        ("common_voice_en_5.mp3", "undecodable"),
        ("train.tsv:6", "bad_row"),
        ("train.tsv:7", "bad_unicode"),
    ]
    assert index.dropped[0].detail == "train.tsv, line 3: there is no file 'common_voice_en_9.mp3' in clips"
    assert index.dropped[3].detail.startswith("train.tsv, line 6: 2 cells, ")


def test_empty_cells_are_missing_values(corpus: Path, tmp_path: Path) -> None:
    write(corpus / "train.tsv", HEADER, row(0, client_id=""), row(1, path=""))
    index = build("common_voice", corpus, tmp_path / "cache").index()
    assert "speaker" not in index.utterances[0].metadata
    assert [drop.detail for drop in index.dropped] == ["train.tsv, line 3: 'path' is empty"]


def test_a_clip_that_is_added_later_is_found(corpus: Path, tmp_path: Path) -> None:
    (corpus / "clips" / "common_voice_en_1.mp3").rename(tmp_path / "aside.mp3")
    assert len(build("common_voice", corpus, tmp_path / "cache").index().dropped) == 1
    (tmp_path / "aside.mp3").rename(corpus / "clips" / "common_voice_en_1.mp3")
    assert len(build("common_voice", corpus, tmp_path / "cache").index().dropped) == 0


def test_a_repaired_clip_is_found(corpus: Path, tmp_path: Path) -> None:
    whole = build("common_voice", corpus, tmp_path / "another").index()
    clip = corpus / "clips" / "common_voice_en_2.mp3"
    clip.rename(tmp_path / "aside.mp3")
    clip.write_bytes(b"no audio")
    index = build("common_voice", corpus, tmp_path / "cache").index()
    assert [(drop.id, drop.reason) for drop in index.dropped] == [("common_voice_en_2.mp3", "undecodable")]
    (tmp_path / "aside.mp3").replace(clip)
    again = build("common_voice", corpus, tmp_path / "cache").index()
    assert again == whole
    assert again.fingerprint == whole.fingerprint


def test_a_release_without_durations_can_be_read(corpus: Path, tmp_path: Path) -> None:
    (corpus / "clip_durations.tsv").unlink()
    index = build("common_voice", corpus, tmp_path / "cache").index()
    assert [u.duration_s for u in index.utterances] == pytest.approx([1.0, 2.0, 3.0], abs=0.1)


def test_the_headers_of_each_split_are_read_once(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (corpus / "clip_durations.tsv").unlink()
    for split in ("train", "dev"):
        build("common_voice", corpus, tmp_path / "cache", split=split).index()
    opened: list[str] = []

    def counted(path: Path, *, name: str) -> float:
        opened.append(name)
        return 1.0

    monkeypatch.setattr(_durations, "audio_duration", counted)
    for split in ("train", "dev"):
        write(corpus / f"{split}.tsv", HEADER, row(0), row(3))
        assert len(build("common_voice", corpus, tmp_path / "cache", split=split).index().utterances) == 2
    assert opened == []


def test_other_folders_are_rejected(corpus: Path, tmp_path: Path) -> None:
    def assert_rejected(message: str, path: Path = corpus, **fields: str) -> None:
        with pytest.raises(UserError, match=re.escape(message)):
            build("common_voice", path, tmp_path / "cache", **fields).index()

    assert_rejected(
        f"there is no {tmp_path}/train.tsv; path must be the folder of one language, with clips and tr", tmp_path
    )
    assert_rejected(
        f"there is no {corpus.parent}/train.tsv; path must be the folder of one language: {corpus}", corpus.parent
    )
    assert_rejected(
        "train.tsv, dev.tsv, test.tsv, validated.tsv; download the archive from Mozilla and unpack it", split="test"
    )
    write(corpus / "train.tsv", "path\tsentence", "a.mp3\tyes")
    assert_rejected(f"{corpus}/train.tsv has no column client_id; its columns: path, sentence")
    write(corpus / "train.tsv", HEADER)
    assert_rejected(f"no row of {corpus}/train.tsv can be used")
    write(corpus / "clip_durations.tsv", "clip\tlength", "a.mp3\t1")
    write(corpus / "train.tsv", HEADER, row(0))
    assert_rejected("clip_durations.tsv must have the columns clip and duration[ms]; its columns: clip, length; ")
    (corpus / "clips").rename(corpus / "mp3")
    assert_rejected(
        f"the folder {corpus}/clips cannot be read: No such file or directory; path must be the folder of one"
    )
