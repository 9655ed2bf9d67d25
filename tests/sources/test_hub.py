"""Source ``hub`` and its presets, against a hub on this machine that speaks the protocol and has bad days."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from filelock import FileLock

from tests.conftest import Document, changed
from tests.support.hub_server import Fault, Hub, Repo, forget, running_hub, use_hub
from tests.support.parquet_shards import (
    LIBRISPEECH,
    LOQUACIOUS,
    encoded_clip,
    librispeech_row,
    loquacious_row,
    loquacious_shard,
    parquet_bytes,
)
from tiny_audio.audio.load import AudioError
from tiny_audio.commands.run import Run
from tiny_audio.config import UserError
from tiny_audio.data.clips import ClipSet
from tiny_audio.recipe import Recipe
from tiny_audio.sources import SOURCES, Index, Source, SourceContext, _row_groups
from tiny_audio.sources.hub import HubConfig
from tiny_audio.sources.loquacious import LoquaciousConfig

NAME = "speechbrain/LoquaciousSet"
CARD: dict[str, Any] = {
    "configs": [
        {
            "config_name": name,
            "data_files": [{"split": "train", "path": f"{name}/*"}, {"split": "dev", "path": "dev/*"}],
        }
        for name in ("small", "large")
    ]
}
CLIPS = 60


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """As the corpus lies: three shards of 20 clips in row groups of 5, one for dev, and what nobody asks for."""
    shards = {f"small/train-{n:05d}-of-00003.parquet": loquacious_shard(20 * n, 20, row_group=5) for n in range(3)}
    dev = {"dev/dev-00000-of-00001.parquet": loquacious_shard(CLIPS, 4)}
    return shards | dev | {"README.md": b"---\n---\n", "small.csv": b"ID,text\n", "large/README.md": b""}


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def hub(server: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub with LoquaciousSet on a good day; waits of the library are noted, not waited."""
    server.repos = {NAME: Repo(dict(files), CARD)}
    server.forget_requests()
    server.fault = lambda number, path: None
    server.signature, server.refusal, server.knows_ranges = 0, None, True
    use_hub(monkeypatch, server.endpoint)
    return server


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were to be waited before another try."""
    waited: list[float] = []
    monkeypatch.setattr("tiny_audio.runtime.retries._sleep", waited.append)
    return waited


def build(cache: Path, **fields: Any) -> Source:
    return SOURCES.build(LoquaciousConfig(**({"config": "small"} | fields)), SourceContext(cache))


def build_any(cache: Path, repo: str = NAME, **fields: Any) -> Source:
    columns = {"audio_column": "wav", "id_column": "ID", "speaker_column": "spk_id"}
    return SOURCES.build(HubConfig(repo=repo, **(columns | fields)), SourceContext(cache))


def assert_rows(index: Index, first: int = 0, count: int = CLIPS) -> None:
    assert index.dropped == ()
    assert [utterance.id for utterance in index.utterances] == [f"clip-{n}" for n in range(first, first + count)]
    for number, utterance in enumerate(index.utterances, start=first):
        row = loquacious_row(number)
        known = {"speaker": row["spk_id"], "sex": row["sex"]}
        assert utterance.text == row["text"]
        assert utterance.duration_s == pytest.approx(row["duration"], rel=1e-6)
        assert utterance.metadata == {key: value for key, value in known.items() if value is not None}


def assert_audio(source: Source, index: Index) -> None:
    for utterance in random.Random(0).sample(index.utterances, len(index.utterances)):
        assert source.encoded(utterance) == loquacious_row(int(utterance.id.split("-")[1]))["wav"]["bytes"]


def audio_spans(shard: bytes) -> list[tuple[int, int]]:
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(pa.BufferReader(shard))
    spans = []
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            if column.path_in_schema == "wav.bytes":
                start = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
                spans.append((start, start + column.total_compressed_size))
    return spans


# --- reading ----------------------------------------------------------------------------------------------------


def test_the_index_is_the_rows_and_audio_is_the_audio(hub: Hub, tmp_path: Path) -> None:
    source = build(tmp_path)
    index = source.index()
    assert_rows(index)
    assert_audio(source, index)
    assert_rows(build(tmp_path, split="dev").index(), first=CLIPS, count=4)


def test_indexing_fetches_no_audio(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    build(tmp_path).index()
    footer = 64 * 1024  # what Arrow reads from the end of a file before it knows more
    places = [request for request in hub.requests if request.is_place]
    for request in places:
        path = request.path.removeprefix(f"/places/{NAME}/").split("?")[0]
        assert request.range is not None
        start, end = request.range
        if end == len(files[path]):
            assert end - start == footer
            continue
        assert not any(start < stop and begin < end for begin, stop in audio_spans(files[path]))
    shards = [content for path, content in files.items() if path.startswith("small/train")]
    assert hub.bytes_sent() - len(shards) * footer < 0.02 * sum(map(len, shards))
    resolved = [request.path for request in hub.requests if "/resolve/" in request.path]
    assert len(resolved) == len(set(resolved)) == 3, "each file is resolved once"


def test_a_row_group_is_fetched_once_and_alone(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    source = build(tmp_path)
    utterances = source.index().utterances
    before = hub.bytes_sent()
    for utterance in utterances[25:30]:
        source.encoded(utterance)
    start, end = audio_spans(files["small/train-00001-of-00003.parquet"])[1]
    assert hub.bytes_sent() - before == 64 * 1024 + end - start
    count = len(hub.requests)
    source.encoded(utterances[30])
    assert len(hub.requests) == count + 1, "the file's end is remembered"


def test_the_second_start_needs_no_network(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = build(tmp_path)
    index = source.index()
    assert_audio(source, index)
    count = len(hub.requests)
    forget()
    use_hub(monkeypatch, hub.endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    again = build(tmp_path)
    assert again.index() == index
    assert_audio(pickle.loads(pickle.dumps(again)), index)
    assert len(hub.requests) == count


def test_a_branch_stays_where_it_was(hub: Hub, tmp_path: Path) -> None:
    source = build(tmp_path)
    index = source.index()
    old = hub.repos[NAME].commit
    files = hub.repos[NAME].files
    hub.repos[NAME] = Repo({**files, "small/train-00000-of-00003.parquet": loquacious_shard(0, 5)}, CARD)
    forget()
    assert build(tmp_path).index() == index
    (pin,) = (tmp_path / "hub" / "speechbrain--LoquaciousSet").glob("*.json")
    assert json.loads(pin.read_text())["commit"] == old
    pin.unlink()
    forget()
    newer = build(tmp_path).index()
    assert len(newer.utterances) == CLIPS - 15
    assert newer.fingerprint != index.fingerprint


def test_who_knows_the_commit_sees_it_after_the_branch_has_moved(hub: Hub, tmp_path: Path) -> None:
    """As a run does whose machine lost its cache: what it began with is in its own folder."""
    config, commits = LoquaciousConfig(config="small"), dict[str, str]()
    index = SOURCES.build(config, SourceContext(tmp_path / "1", commits)).index()
    old = hub.repos[NAME]
    assert commits == {"speechbrain/LoquaciousSet/small/train@main": old.commit}
    hub.repos[NAME] = Repo(
        {**old.files, "small/train-00000-of-00003.parquet": loquacious_shard(0, 5)}, CARD, before=old
    )
    forget()
    moved = SOURCES.build(config, SourceContext(tmp_path / "2")).index()
    assert moved.fingerprint != index.fingerprint
    forget()
    source = SOURCES.build(config, SourceContext(tmp_path / "2", commits))
    assert source.index() == index
    assert_audio(pickle.loads(pickle.dumps(source)), index)
    assert commits == {"speechbrain/LoquaciousSet/small/train@main": old.commit}
    count = len(hub.requests)
    forget()
    assert SOURCES.build(config, SourceContext(tmp_path / "2", commits)).index() == index
    assert SOURCES.build(config, SourceContext(tmp_path / "2")).index() == moved
    assert len(hub.requests) == count


def test_a_commit_is_its_own_pin(hub: Hub, tmp_path: Path) -> None:
    commit = hub.repos[NAME].commit
    pinned = build(tmp_path / "1", revision=commit).index()
    assert pinned == build(tmp_path / "2").index()
    hub.repos[NAME].card["license"] = "cc-by-4.0"  # another commit of the same files
    try:
        assert build(tmp_path / "3").index().fingerprint != pinned.fingerprint
    finally:
        del hub.repos[NAME].card["license"]


def test_some_shards_are_spread_over_all(hub: Hub, tmp_path: Path) -> None:
    shards = {f"data/train-{n:05d}-of-00010.parquet": parquet_bytes([loquacious_row(n)], LOQUACIOUS) for n in range(10)}
    hub.repos["an/other"] = Repo(shards)
    for count, numbers in ((1, [0]), (3, [0, 3, 6]), (4, [0, 2, 5, 7]), (10, range(10)), (11, range(10))):
        source = build_any(tmp_path, "an/other", max_shards=count)
        index = source.index()
        assert [utterance.id for utterance in index.utterances] == [f"clip-{n}" for n in numbers]
        assert_audio(source, index)


def test_a_corpus_without_durations(hub: Hub, tmp_path: Path) -> None:
    rows = [librispeech_row(number) for number in range(12)]
    rows[3]["audio"] = {"bytes": b"no audio" * 40, "path": "x.flac"}
    splits = [{"split": "test.clean", "path": "all/test.clean-*"}]
    shard = {"all/test.clean-00000-of-00001.parquet": parquet_bytes(rows, LIBRISPEECH)}
    hub.repos["openslr/librispeech_asr"] = Repo(shard, {"configs": [{"config_name": "all", "data_files": splits}]})
    source = SOURCES.build(SOURCES.parse({"name": "librispeech", "split": "test.clean"}), SourceContext(tmp_path))
    index = source.index()
    assert [drop.reason for drop in index.dropped] == ["undecodable"]
    assert [utterance.duration_s for utterance in index.utterances] == [0.6] * 11
    assert (index.utterances[0].text, index.utterances[0].id) == ("HELLO", "7-11-0000")
    assert index.utterances[0].metadata == {"speaker": "7", "chapter_id": "11"}
    count = len(hub.requests)
    for utterance in index.utterances:
        source.encoded(utterance)
    assert len(hub.requests) == count, "what was fetched for the durations is kept"


def test_without_configs_files_are_known_by_their_names(hub: Hub, tmp_path: Path) -> None:
    rows = [{"audio": encoded_clip(n, 0.5), "text": "yes", "duration": 0.5} for n in range(2)]
    hub.repos["a/b"] = Repo({"test/x.parquet": parquet_bytes(rows), "train/y.parquet": parquet_bytes(rows[:1])})
    config = HubConfig(repo="a/b", split="test")
    ids = [utterance.id for utterance in SOURCES.build(config, SourceContext(tmp_path)).index().utterances]
    assert ids == ["test/x.parquet/0", "test/x.parquet/1"]
    named = HubConfig(repo="a/b", config="default", split="train")
    assert len(SOURCES.build(named, SourceContext(tmp_path)).index().utterances) == 1


def test_a_config_with_a_folder(hub: Hub, tmp_path: Path) -> None:
    rows = [{"audio": encoded_clip(n, 0.5), "text": "yes", "duration": 0.5} for n in range(2)]
    configs = [{"config_name": "en", "data_dir": "en", "default": True}, {"config_name": "de", "data_dir": "de"}]
    shards = {"en/train.parquet": parquet_bytes(rows), "de/train.parquet": parquet_bytes(rows[:1])}
    hub.repos["a/b"] = Repo(shards, {"configs": configs})
    for config, count in (("de", 1), (None, 2)):
        source = SOURCES.build(HubConfig(repo="a/b", config=config), SourceContext(tmp_path))
        assert len(source.index().utterances) == count


# --- bad days ---------------------------------------------------------------------------------------------------


def test_a_fifth_of_all_answers_fail(hub: Hub, tmp_path: Path, waits: list[float]) -> None:
    kinds: tuple[Fault, ...] = ("limit", "error", "cut")
    rng = random.Random(1)
    faults = [rng.choice(kinds) if rng.random() < 0.2 else None for _ in range(5_000)]
    hub.fault = lambda number, path: faults[number % len(faults)]
    source = build(tmp_path)
    index = source.index()
    assert_rows(index)
    assert_audio(source, index)
    statuses = [request.status for request in hub.requests]
    assert statuses.count(429) >= 2
    assert statuses.count(500) >= 2
    assert len(waits) >= 5


def test_a_limit_is_waited_for(hub: Hub, tmp_path: Path, waits: list[float]) -> None:
    source = build(tmp_path)
    first = source.index().utterances[0]
    hub.reset_s = 77
    hub.fault = lambda number, path: "limit" if len(waits) < 2 else None
    assert source.encoded(first) == loquacious_row(0)["wav"]["bytes"]
    assert waits == pytest.approx([78.5, 78.5], abs=0.5)

    waits.clear()
    forget()
    build(tmp_path / "fresh").index()
    assert waits[:2] == pytest.approx([78.5, 78.5], abs=0.5), "the first question of all too"


def test_a_signature_that_expires(hub: Hub, tmp_path: Path) -> None:
    source = build(tmp_path)
    utterances = source.index().utterances
    source.encoded(utterances[0])
    hub.signature = 1
    assert source.encoded(utterances[5]) == loquacious_row(5)["wav"]["bytes"]
    assert 403 in [request.status for request in hub.requests]


def test_an_interrupted_index_goes_on(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiny_audio.sources._hub.source._THREADS", 1)
    whole = hub.repos[NAME].files
    broken = "small/train-00002-of-00003.parquet"
    hub.repos[NAME] = Repo({**whole, broken: whole[broken][:-40]}, CARD)
    commit = hub.repos[NAME].commit
    with pytest.raises(UserError) as caught:
        build(tmp_path).index()
    assert re.match(
        f"{broken} of {NAME} at commit {commit} cannot be read: ",
        str(caught.value),
    )
    before = len(hub.requests)
    hub.repos[NAME].files[broken] = whole[broken]
    monkeypatch.setattr(Repo, "commit", commit)
    assert_rows(build(tmp_path).index())
    asked = {request.path.split("?")[0] for request in hub.requests[before:] if request.is_place}
    assert asked == {f"/places/{NAME}/{broken}"}
    assert not list(tmp_path.rglob("*.shards"))


def test_a_token_goes_to_the_hub_and_nowhere_else(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.repos[NAME].gated = True
    source = build(tmp_path)
    index = source.index()
    source.encoded(index.utterances[0])
    tokens = {request.is_place: request.token for request in hub.requests if "agent-harnesses" not in request.path}
    assert tokens == {False: "Bearer hf_secret", True: None}


# --- what to do about it ----------------------------------------------------------------------------------------


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"http://127.0.0.1:9 cannot be reached \(.*refused.*\); connect to the netw"):
        build(tmp_path).index()


def test_offline_by_wish(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import close_session

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    close_session()
    try:
        with pytest.raises(UserError, match=f"{NAME} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it; uns"):
            build(tmp_path).index()
    finally:
        close_session()


def test_a_hub_that_stays_down(hub: Hub, tmp_path: Path, waits: list[float]) -> None:
    hub.fault = lambda number, path: "error"
    with pytest.raises(UserError, match=f"the hub answers HTTP 500 for {NAME}, after 8 retries; try later: http:"):
        build(tmp_path).index()
    hub.fault = lambda number, path: "limit"
    with pytest.raises(UserError, match=r"the hub limits your requests and still does after 8 retries; wait a few mi"):
        build(tmp_path).index()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"repo": "nobody/nothing"}, "there is no dataset 'nobody/nothing' at http://127.0.0.1:"),
        ({"repo": "nobody/nothing"}, "; check its name, and if it is private, run `hf auth login` first"),
        ({"repo": "no name/at all"}, "'no name/at all' cannot be the name of a dataset; write owner/name, such as"),
        ({"revision": "v2"}, f"{NAME} has no revision 'v2'; see http://127.0.0.1:"),
        ({"config": "smal"}, f"{NAME} has no config 'smal'; did you mean 'small'? Allowed: large, small"),
        ({}, f"{NAME} has several configs; choose one as config: small, large"),
        (
            {"config": "small", "split": "test"},
            f"{NAME} has no split 'test' of config 'small'; Allowed: dev, train",
        ),
        (
            {"config": "large"},
            f"the split 'train' of {NAME} has no .parquet files; many datasets have a copy that the hub conv",
        ),
        (
            {"config": "small", "id_column": "id"},
            "small/train-00000-of-00003.parquet has no column 'id' (id_column); its columns: ID (string), duration "
            "(float), wav (audio), spk_id (string), sex (string), text (string)",
        ),
    ],
)
def test_what_is_not_there(hub: Hub, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        build_any(tmp_path, **fields).index()


def test_no_configs_and_no_data(hub: Hub, tmp_path: Path) -> None:
    hub.repos["a/b"] = Repo({"README.md": b""})
    with pytest.raises(UserError, match="a/b has no configs; leave config out, which is 'small'"):
        build_any(tmp_path, "a/b", config="small").index()
    with pytest.raises(UserError, match="a/b holds no data files that the datasets library knows; many datasets ha"):
        build_any(tmp_path, "a/b").index()


def test_gated(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos[NAME].gated = True
    terms = f"{NAME} is gated: accept its terms at {hub.endpoint}/datasets/{NAME}"
    with pytest.raises(UserError, match=f"^{terms}, then log in with `hf auth login`, or set HF_TOKEN$"):
        build(tmp_path).index()
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    hub.refusal = 403, b"", {"X-Error-Code": "GatedRepo"}
    with pytest.raises(UserError, match=f"^{terms} with the account of your token$"):
        build(tmp_path).index()


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (404, {"X-Error-Code": "RepoNotFound"}, "check its name, and the account of your token may lack access"),
        (
            401,
            {"X-Error-Message": "Invalid credentials in Authorization header"},
            f"the hub refuses your token for {NAME}; log in again with `hf auth login`",
        ),
        (403, {"X-Error-Message": "Access to this resource is disabled."}, f"{NAME} is disabled on the hub; see http"),
        (418, {}, f"the hub answers HTTP 418 for {NAME}; see http://127.0.0.1:"),
    ],
)
def test_refusals_with_a_token(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, headers: dict[str, str], message: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.refusal = status, b"", headers
    with pytest.raises(UserError, match=re.escape(message)):
        build(tmp_path).index()


def test_a_proxy_without_ranges(hub: Hub, tmp_path: Path) -> None:
    hub.knows_ranges = False
    with pytest.raises(
        UserError, match=r"the hub gives [\d,]+ bytes of small/.* where 65,536 were asked for; a proxy on"
    ):
        build(tmp_path).index()


def test_a_file_that_is_gone(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = build(tmp_path)
    first = source.index().utterances[0]
    commit = hub.repos[NAME].commit
    monkeypatch.setattr(Repo, "commit", commit)
    del hub.repos[NAME].files["small/train-00000-of-00003.parquet"]
    with pytest.raises(UserError, match=f"{NAME} has no file small/train-00000-of-00003.parquet at commit {commit}$"):
        source.encoded(first)


def test_the_copy_that_the_hub_converted(hub: Hub, tmp_path: Path) -> None:
    one, two = loquacious_shard(0, 3), loquacious_shard(3, 3)
    files = {"all/train.clean/0000.parquet": one, "all/train.clean/0001.parquet": two, "all/test/0000.parquet": one}
    hub.repos["a/b"] = Repo({"b.py": b"a script"}, converted=Repo(files))
    branch = {"revision": "refs/convert/parquet"}
    source = build_any(tmp_path, "a/b", split="train.clean", **branch)
    index = source.index()
    assert_rows(index, count=6)
    assert_audio(source, index)
    assert index == build_any(tmp_path, "a/b", config="all", split="train.clean", **branch).index()
    config = HubConfig(repo="a/b", split="train.clean", audio_column="wav", id_column="ID", speaker_column="spk_id")
    commits = {"a/b/train.clean@refs/convert/parquet": Repo(files).commit}
    forget()
    known = SOURCES.build(config.model_copy(update=branch), SourceContext(tmp_path / "other", commits))
    assert known.index() == index
    for fields, message in (
        ({"config": "al"}, "a/b has no config 'al' at refs/convert/parquet; did you mean 'all'? Allowed: all"),
        (
            {"split": "tests"},
            "no split 'tests' of config 'all' at refs/convert/parquet; did you mean 'test'? Allowed: ",
        ),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            build_any(tmp_path, "a/b", **branch, **fields).index()
    files["other/train/0000.parquet"] = one
    forget()
    with pytest.raises(UserError, match="a/b has several configs; choose one as config: all, other"):
        build_any(tmp_path, "a/b", split="dev", **branch).index()


def test_a_bad_clip_is_said_and_dropped(hub: Hub, tmp_path: Path) -> None:
    rows = [loquacious_row(0), loquacious_row(1, wav=None), loquacious_row(2, text=None)]
    hub.repos["a/b"] = Repo({"train.parquet": parquet_bytes(rows, LOQUACIOUS)})
    source = build_any(tmp_path, "a/b")
    index = source.index()
    assert [(drop.id, drop.reason) for drop in index.dropped] == [("clip-2", "text_missing")]
    with pytest.raises(AudioError, match=r"/train.parquet, row group 0, row 1: no audio; ") as caught:
        source.encoded(index.utterances[1])
    assert caught.value.reason == "audio_missing"


def test_no_usable_row(hub: Hub, tmp_path: Path) -> None:
    hub.repos["a/b"] = Repo({"train.parquet": parquet_bytes([loquacious_row(2, text=None)], LOQUACIOUS)})
    with pytest.raises(UserError, match=r"no row of the split 'train' of a/b can be used; the first of 1: train.parq"):
        build_any(tmp_path, "a/b").index()


def test_damaged_pins_and_unwritable_caches(hub: Hub, tmp_path: Path) -> None:
    build(tmp_path).index()
    (pin,) = (tmp_path / "hub" / "speechbrain--LoquaciousSet").glob("*.json")
    pin.write_text("{")
    forget()
    with pytest.raises(UserError, match=r"\.json is damaged; delete it, and the hub is asked again"):
        build(tmp_path).index()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"the cache folder .*/file/hub/speechbrain--LoquaciousSet cannot be written: "):
        build(tmp_path / "file").index()


@pytest.mark.parametrize("content", [b"", bytes(5_000)])
def test_a_part_of_an_index_that_is_damaged_is_made_anew(hub: Hub, tmp_path: Path, content: bytes) -> None:
    index = build(tmp_path).index()
    (folder,) = (path for path in (tmp_path / "hub" / "speechbrain--LoquaciousSet").iterdir() if path.is_dir())
    shutil.rmtree(folder)
    part = folder.with_name(f"{folder.name}.shards") / "000001.arrow"
    part.parent.mkdir()
    part.write_bytes(content)
    forget()
    assert build(tmp_path).index() == index


def test_a_part_of_an_index_is_on_the_disk_before_it_has_its_name(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    build(tmp_path).index()
    parts = [path.name.split(".")[1] for path in synced if path.parent.suffix == ".shards"]
    assert sorted(parts) == ["000000", "000001", "000002"]


def test_two_processes_that_index_the_same_split_do_it_once(hub: Hub, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "import pyarrow.parquet\n"
        "from tiny_audio.sources import SOURCES, SourceContext\n"
        "config = SOURCES.parse({'name': 'loquacious', 'config': 'small'})\n"
        "source = SOURCES.build(config, SourceContext(Path(sys.argv[1])))\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(source.index().fingerprint)\n"
    )
    index = build(tmp_path / "another").index()
    alone = sorted(str(request.range) for request in hub.requests if request.is_place)
    hub.requests.clear()
    hub.fault = lambda number, path: time.sleep(0.05) if path.startswith("/places/") else None
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "cache")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate()[0] for process in processes]
    assert said == [f"{index.fingerprint}\n"] * 2
    assert sorted(str(request.range) for request in hub.requests if request.is_place) == alone


def test_what_killed_indexing_left_is_swept(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "speechbrain--LoquaciousSet"
    for name in ("dead.0123.tmp", "live.0123.tmp", "old.shards", "live.shards", "recent.shards"):
        (folder / name).mkdir(parents=True)
        (folder / name / "000000.arrow").write_bytes(b"x")
    for name in ("old.shards", "live.shards"):
        os.utime(folder / name, (time.time() - 8 * 86_400,) * 2)
    with FileLock(folder / ".live.lock"):
        index = build(tmp_path).index()
        left = {path.name for path in folder.iterdir() if path.suffix in (".tmp", ".shards")}
        assert left == {"live.0123.tmp", "live.shards", "recent.shards"}
    shutil.rmtree(next(path for path in folder.iterdir() if len(path.name) == 24))
    assert build(tmp_path).index() == index
    assert {path.name for path in folder.iterdir() if path.suffix in (".tmp", ".shards")} == {"recent.shards"}


# --- the cache --------------------------------------------------------------------------------------------------


def test_a_small_cache_costs_fetches_and_no_clip(hub: Hub, tmp_path: Path) -> None:
    source = build(tmp_path, cache_gb=0.0004)
    index = source.index()
    for _ in range(2):
        forget()
        assert_audio(source, index)
        (folder,) = (tmp_path / "hub" / "row_groups").iterdir()
        assert 200_000 < sum(path.stat().st_size for path in folder.iterdir()) <= 400_000


def cached(cache: Path) -> set[Path]:
    return set((cache / "hub" / "row_groups").rglob("*.arrow"))


def test_each_split_has_a_bound_of_its_own(hub: Hub, tmp_path: Path) -> None:
    large = build(tmp_path)
    index = large.index()
    assert_audio(large, index)
    kept = cached(tmp_path)
    assert len(kept) == 12
    small = build(tmp_path, split="dev", cache_gb=0.0002)
    for utterance in small.index().utterances:
        assert small.encoded(utterance) == loquacious_row(int(utterance.id.split("-")[1]))["wav"]["bytes"]
    assert len(cached(tmp_path)) == 13
    count = len(hub.requests)
    forget()
    assert_audio(build(tmp_path), index)
    assert {request.path for request in hub.requests[count:] if request.is_place} == set()
    assert cached(tmp_path) > kept


def test_what_has_no_room_on_disk_is_kept_in_memory_up_to_a_bound(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = build(tmp_path, cache_gb=1e-9)
    utterances = source.index().utterances
    size = sum(len(loquacious_row(number)["wav"]["bytes"]) for number in range(15))
    monkeypatch.setattr(_row_groups, "read_row_group", _row_groups.row_group_reader(size - 1, 32))  # two of three
    fetched = []
    for number in (0, 5, 0, 5, 10, 5, 0):  # the first clips of three row groups
        before = len(hub.requests)
        source.encoded(utterances[number])
        fetched.append(len(hub.requests) > before)
    assert fetched == [True, True, False, False, True, False, True]
    assert cached(tmp_path) == set()


# --- whole ------------------------------------------------------------------------------------------------------


def test_in_a_process_of_its_own_through_the_environment(hub: Hub, tmp_path: Path) -> None:
    build(tmp_path / "cache", split="dev").index()
    code = (
        "import sys, json\n"
        "from pathlib import Path\n"
        "from tiny_audio.sources import SOURCES, SourceContext\n"
        "def build(**fields):\n"
        "    config = SOURCES.parse({'name': 'loquacious', 'config': 'small', **fields})\n"
        "    return SOURCES.build(config, SourceContext(Path(sys.argv[1])))\n"
        "kept = len(build(split='dev').index().utterances)\n"
        "early = sorted({'datasets', 'huggingface_hub'} & set(sys.modules))\n"
        "source = build()\n"
        "sizes = [len(source.encoded(utterance)) for utterance in source.index().utterances]\n"
        "print(json.dumps([kept, early, sizes]))\n"
    )
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": ""}
    command = [sys.executable, "-c", code, str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    kept, early, sizes = json.loads(done.stdout)
    assert (kept, early) == (4, ["huggingface_hub"]), "what is in the cache needs neither network nor datasets"
    assert sizes == [len(loquacious_row(number)["wav"]["bytes"]) for number in range(CLIPS)]


class Silent:
    """Hears what a run says."""

    def note(self, message: str) -> None: ...

    def step(self, step: int, values: dict[str, Any]) -> None: ...


@pytest.mark.usefixtures("one_thread")
def test_training_on_a_hub_that_fails_now_and_then(
    hub: Hub, tmp_path: Path, document: Document, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    monkeypatch.setenv("TINY_AUDIO_CACHE", str(tmp_path / "cache"))
    kinds: tuple[Fault, ...] = ("limit", "error", "cut")
    hub.fault = lambda number, path: kinds[number // 7 % 3] if number % 7 == 0 else None
    source = {"name": "loquacious", "config": "small"}
    settings = {"data__train": {"loquacious": source}, "data__evaluation": {"dev": source | {"split": "dev"}}}
    settings |= {"data__target_text": "lower", "training__steps": 16, "execution__num_workers": 2}
    settings |= {"execution__log_every": 4, "generation__max_new_tokens": 5, "evaluation__num_bootstrap": 100}
    recipe = Recipe.model_validate(changed(document, **settings))
    Run(recipe, "hub", tmp_path / "run", Silent()).complete()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 16
    assert not (tmp_path / "run" / "dropped.jsonl").exists()
    fetched = {request.range for request in hub.requests if request.is_place and request.status == 206}
    assert len(fetched) > 12

    # The cache is gone and the branch has moved on: the same command still ends where it did.
    before = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    old = hub.repos[NAME]
    hub.repos[NAME] = Repo(
        {**old.files, "small/train-00000-of-00003.parquet": loquacious_shard(0, 5)}, CARD, before=old
    )
    shutil.rmtree(tmp_path / "cache")
    shutil.rmtree(tmp_path / "run" / "model")
    forget()
    Run(recipe, "hub", tmp_path / "run", Silent()).complete()
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == before


def test_texts_come_as_the_corpus_has_them(hub: Hub, tmp_path: Path) -> None:
    source = build(tmp_path, split="dev")
    as_is = list(ClipSet.gather({"dev": source}, 0.1, 30).texts)
    assert as_is == ["STOP NOW", "TURN RIGHT", "IT'S LEFT", "YES"]
    assert list(ClipSet.gather({"dev": source}, 0.1, 30, "lower").texts) == [text.lower() for text in as_is]


def test_pins_tell_requests_apart(hub: Hub, tmp_path: Path) -> None:
    build(tmp_path).index()
    build(tmp_path, split="dev").index()
    pins = sorted((tmp_path / "hub" / "speechbrain--LoquaciousSet").glob("*.json"))
    assert len(pins) == 2
    assert all(one != other for one, other in pairwise(pin.read_text() for pin in pins))
