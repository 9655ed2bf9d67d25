"""The wording of errors about data. Other tests check which error each kind of bad data causes, and its values.

After a change of wording, regenerate the golden file and review its diff:

    REGENERATE=1 pytest tests/sources/test_messages.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sources.clip_files import write, write_clip
from tests.support.golden import check_golden
from tests.support.hub_server import Hub, Repo
from tests.support.parquet_shards import encoded_clip, write_parquet
from tiny_audio.config import UserError
from tiny_audio.sources import SOURCES, AudioAddress, SourceContext

GOLDEN = Path(__file__).with_name("messages.txt")
HEADER = "client_id\tpath\tsentence"
CLIP = {"audio": encoded_clip(0, 0.5), "text": "yes", "duration": 0.5}


def lines(folder: Path, hub: Hub) -> Iterator[str]:
    """Yield all messages. Each message follows a title that says what is wrong with the data."""

    def build(name: str, **fields: Any) -> Any:
        return SOURCES.build(SOURCES.parse({"name": name, **fields}), SourceContext(folder / "cache"))

    def error(title: str, name: str, **fields: Any) -> Iterator[str]:
        with pytest.raises(UserError) as caught:
            build(name, **fields).index()
        yield f"{title}: {caught.value}"

    def dropped(title: str, name: str, **fields: Any) -> Iterator[str]:
        for drop in build(name, **fields).index().dropped:
            yield f"{title}: [{drop.reason}] {drop.id}: {drop.detail}"

    manifest = folder / "manifest.jsonl"
    yield from error("no manifest", "manifest", path=str(manifest))
    manifest.write_text("")
    yield from error("an empty manifest", "manifest", path=str(manifest))
    manifest.write_text("audio,text\na.flac,yes\n")
    yield from error("no usable row", "manifest", path=str(manifest))
    write_clip(folder / "a.flac")
    good = {"audio_filepath": "a.flac", "text": "yes", "duration": 1.0}
    bad = ({"text": None}, {"audio_filepath": "b.flac"}, {"audio_filepath": ""}, {"duration": -1}, {"offset": 3})
    manifest.write_text("".join(json.dumps(good | change) + "\n" for change in ({}, *bad)) + "{\n[]\n")
    yield from dropped("a row of a manifest", "manifest", path=str(manifest))

    sentences = folder / "sentences.txt"
    yield from error("no sentences", "synthetic", sentences_file=str(sentences))
    sentences.write_bytes(
        "open the valve\n\n$5 for café\n?!\ncaf\udce9\n".encode(errors="surrogateescape") + b"#\n" * 4
    )
    yield from error("unusable sentences", "synthetic", sentences_file=str(sentences))
    sentences.write_text("open the valve\n")
    yield from error("no held-out sentence", "synthetic", sentences_file=str(sentences), sentences="held_out")

    data = folder / "data"
    data.mkdir()
    yield from error("no table", "folder", path=str(data))
    table = data / "metadata.csv"
    write(table, "path,text", "a.wav,yes")
    yield from error("no column of files", "folder", path=str(data))
    write(table, "file_name,text,transcription", "a.wav,yes,no")
    yield from error("two columns of texts", "folder", path=str(data))
    write_clip(data / "a.wav")
    write_clip(data / "b.wav")
    write(data / "noise.wav", "no audio")
    write(table, "file_name,text", "a.wav,yes", "none.wav,yes", "../a.wav,yes", ",yes", "noise.wav,yes", "a.wav,b,c")
    yield from dropped("a row of a folder", "folder", path=str(data))

    voice = folder / "voice"
    write_clip(voice / "clips" / "a.mp3")
    yield from error("no Common Voice", "common_voice", path=str(voice))
    write(voice / "train.tsv", "path\tsentence", "a.mp3\tyes")
    yield from error("no column of speakers", "common_voice", path=str(voice))
    write(voice / "train.tsv", HEADER, "ann\ta.mp3\tyes", "ann\tb.mp3\tyes", "ann\ta.mp3\t")
    yield from dropped("a row of Common Voice", "common_voice", path=str(voice))

    clips = folder / "clips.parquet"
    yield from error("no file", "parquet", path=str(clips))
    clips.write_text("no parquet")
    yield from error("no parquet", "parquet", path=str(clips))
    write_parquet(clips, [CLIP])
    yield from error("no column of texts", "parquet", path=str(clips), text_column="words")
    yield from error("no column of audio", "parquet", path=str(clips), audio_column="text", text_column="audio")
    write_parquet(clips, [CLIP, CLIP | {"text": None}, CLIP | {"duration": 0.0}])
    yield from dropped("a row of parquet", "parquet", path=str(clips))
    write_parquet(clips, [{"audio": value, "text": "yes"} for value in (CLIP["audio"], None, b"noise")])
    yield from dropped("the audio of a row of parquet", "parquet", path=str(clips))
    source = build("parquet", path=str(clips))
    utterance = source.index().utterances[0]
    clips.unlink()
    with pytest.raises(UserError) as caught:
        source.encoded(utterance)
    yield f"a file that is gone: {caught.value}"
    with pytest.raises(UserError) as caught:
        AudioAddress.parse("gone.flac", folder).read(folder / "cache")
    yield f"an address of a file that is gone: {caught.value}"

    train = {"train.parquet": write_parquet(folder / "train.parquet", [CLIP]).read_bytes()}
    hub.repos = {"a/b": Repo(train), "a/gated": Repo(train, gated=True), "a/text": Repo({"train.csv": b"a,b\n"})}
    yield from error("no dataset", "hub", repo="a/c")
    yield from error("no revision", "hub", repo="a/b", revision="best")
    yield from error("no config", "hub", repo="a/b", config="small")
    yield from error("no split", "hub", repo="a/b", split="trian")
    yield from error("no parquet on the hub", "hub", repo="a/text")
    yield from error("a gated dataset", "hub", repo="a/gated")
    hub.fault = lambda number, path: "limit"
    yield from error("a rate limit", "hub", repo="a/b")
    hub.fault = lambda number, path: "error"
    yield from error("a hub that is down", "hub", repo="a/b")
    train_source = {"name": "manifest", "path": str(manifest)}
    yield from error(
        "a limit that is shorter than every clip",
        "mix",
        sources={"read": {"source": train_source, "max_hours": 0.0001}},
    )


def test_messages(hub: Hub, tmp_path: Path, waits: list[float]) -> None:
    text = "\n\n".join(lines(tmp_path, hub)) + "\n"
    for value, name in ((str(tmp_path), "FOLDER"), (hub.endpoint, "HUB")):
        text = text.replace(value, name)
    check_golden(GOLDEN, text)
