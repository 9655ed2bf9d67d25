"""A hub that fails sometimes or rejects requests: retries, and error messages that tell users what to do."""

from __future__ import annotations

import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.sources.loquacious_hub import CARD, NAME, assert_audio, assert_rows, build, build_any
from tests.support.hub_server import Fault, Hub, Repo, forget, use_hub
from tests.support.parquet_shards import (
    LOQUACIOUS,
    loquacious_row,
    loquacious_shard,
    parquet_bytes,
)
from tiny_audio.audio.errors import AudioError
from tiny_audio.config import UserError
from tiny_audio.sources import SOURCES, SourceContext
from tiny_audio.sources.hub import HubConfig


def test_requests_are_retried_if_a_fifth_fails(hub: Hub, tmp_path: Path, waits: list[float]) -> None:
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


def test_retries_wait_until_a_rate_limit_resets(
    hub: Hub, tmp_path: Path, waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    source = build(tmp_path)
    first = source.index().utterances[0]
    hub.reset_s = 77
    hub.fault = lambda number, path: "limit" if len(waits) < 2 else None
    assert source.encoded(first) == loquacious_row(0)["wav"]["bytes"]
    assert waits == pytest.approx([78.5, 78.5], abs=0.5)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [re.sub(r"7\d\.\d", "N", text) for text in warnings] == ["the hub answers HTTP 429; trying again in N s"] * 2

    waits.clear()
    forget()
    build(tmp_path / "fresh").index()
    assert waits[:2] == pytest.approx([78.5, 78.5], abs=0.5), "the very first request also waits"


def test_an_expired_signature_is_renewed(hub: Hub, tmp_path: Path) -> None:
    source = build(tmp_path)
    utterances = source.index().utterances
    source.encoded(utterances[0])
    hub.signature = 1
    assert source.encoded(utterances[5]) == loquacious_row(5)["wav"]["bytes"]
    assert 403 in [request.status for request in hub.requests]


def test_interrupted_indexing_continues(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_token_is_sent_to_the_hub_only(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.repos[NAME].gated = True
    source = build(tmp_path)
    index = source.index()
    source.encoded(index.utterances[0])
    # Leave out a request that huggingface_hub itself makes without a token, for a list of agent harnesses.
    tokens = {request.is_place: request.token for request in hub.requests if "agent-harnesses" not in request.path}
    assert tokens == {False: "Bearer hf_secret", True: None}


def test_a_missing_network_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"http://127.0.0.1:9 cannot be reached \(.*refused.*\); "):
        build(tmp_path).index()


def test_offline_mode_is_named_in_the_error(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import close_session

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    close_session()
    try:
        with pytest.raises(UserError, match=f"{NAME} is not in the cache, and HF_HUB_OFFLINE "):
            build(tmp_path).index()
    finally:
        close_session()


def test_a_hub_that_does_not_recover_is_an_error(hub: Hub, tmp_path: Path, waits: list[float]) -> None:
    hub.fault = lambda number, path: "error"
    with pytest.raises(UserError, match=f"the hub answers HTTP 500 for {NAME} after 8 retries; .* http:"):
        build(tmp_path).index()
    hub.fault = lambda number, path: "limit"
    with pytest.raises(UserError, match=r"the hub still limits your requests after 8 retries; "):
        build(tmp_path).index()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"repo": "nobody/nothing"}, "there is no dataset 'nobody/nothing' at http://127.0.0.1:"),
        ({"repo": "nobody/nothing"}, "; check its name, and if it is private, run `hf auth login` first"),
        ({"repo": "no name/at all"}, "'no name/at all' cannot be the name of a dataset; write owner/name, such as"),
        ({"revision": "v2"}, f"{NAME} has no revision 'v2'; see http://127.0.0.1:"),
        ({"config": "smal"}, f"{NAME} has no config 'smal'; did you mean 'small'? Allowed: large, small"),
        ({}, f"{NAME} has several configs; set config to one of small, large"),
        (
            {"config": "small", "split": "test"},
            f"{NAME} has no split 'test' of config 'small'; Allowed: dev, train",
        ),
        (
            {"config": "large"},
            f"the split 'train' of {NAME} has no .parquet files; ",
        ),
        (
            {"config": "small", "id_column": "id"},
            "small/train-00000-of-00003.parquet has no column 'id' (id_column); its columns: ID (string), duration "
            "(float), wav (audio), spk_id (string), sex (string), text (string)",
        ),
    ],
)
def test_missing_names_are_an_error(hub: Hub, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        build_any(tmp_path, **fields).index()


def test_a_repository_without_data_is_an_error(hub: Hub, tmp_path: Path) -> None:
    hub.repos["a/b"] = Repo({"README.md": b""})
    with pytest.raises(UserError, match=r"a/b has no configs, .*'small'; remove config"):
        build_any(tmp_path, "a/b", config="small").index()
    with pytest.raises(UserError, match="a/b has no data files that the datasets library recognizes; "):
        build_any(tmp_path, "a/b").index()


def test_a_gated_repository_needs_accepted_terms(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        (404, {"X-Error-Code": "RepoNotFound"}, "check its name, and whether the account of your token has access"),
        (
            401,
            {"X-Error-Message": "Invalid credentials in Authorization header"},
            f"the hub rejects your token for {NAME}; log in again with `hf auth login`",
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


def test_a_proxy_without_byte_ranges_is_an_error(hub: Hub, tmp_path: Path) -> None:
    hub.knows_ranges = False
    with pytest.raises(
        UserError, match=r"the hub sent [\d,]+ bytes of small/.* instead of the requested 65,536; perhaps a proxy"
    ):
        build(tmp_path).index()


def test_a_deleted_file_is_an_error(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = build(tmp_path)
    first = source.index().utterances[0]
    commit = hub.repos[NAME].commit
    monkeypatch.setattr(Repo, "commit", commit)
    del hub.repos[NAME].files["small/train-00000-of-00003.parquet"]
    with pytest.raises(UserError, match=f"{NAME} has no file small/train-00000-of-00003.parquet at commit {commit}$"):
        source.encoded(first)


def test_the_hubs_parquet_conversion_can_be_read(hub: Hub, tmp_path: Path) -> None:
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
    with pytest.raises(UserError, match="a/b has several configs; set config to one of all, other"):
        build_any(tmp_path, "a/b", split="dev", **branch).index()


def test_a_bad_clip_is_dropped_with_its_reason(hub: Hub, tmp_path: Path) -> None:
    rows = [loquacious_row(0), loquacious_row(1, wav=None), loquacious_row(2, text=None)]
    hub.repos["a/b"] = Repo({"train.parquet": parquet_bytes(rows, LOQUACIOUS)})
    source = build_any(tmp_path, "a/b")
    index = source.index()
    assert [(drop.id, drop.reason) for drop in index.dropped] == [("clip-2", "text_missing")]
    with pytest.raises(AudioError, match=r"/train.parquet, row group 0, row 1: no audio; ") as caught:
        source.encoded(index.utterances[1])
    assert caught.value.reason == "audio_missing"


def test_a_split_without_usable_rows_is_an_error(hub: Hub, tmp_path: Path) -> None:
    hub.repos["a/b"] = Repo({"train.parquet": parquet_bytes([loquacious_row(2, text=None)], LOQUACIOUS)})
    with pytest.raises(
        UserError, match=r"no row of the split 'train' of a/b can be used; the first problem of 1: train.parq"
    ):
        build_any(tmp_path, "a/b").index()


def test_damaged_pins_and_unwritable_caches_are_named(hub: Hub, tmp_path: Path) -> None:
    build(tmp_path).index()
    (pin,) = (tmp_path / "hub" / "speechbrain--LoquaciousSet").glob("*.json")
    pin.write_text("{")
    forget()
    with pytest.raises(UserError, match=r"\.json is damaged; delete it"):
        build(tmp_path).index()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"the cache folder .*/file/hub/speechbrain--LoquaciousSet cannot be written: "):
        build(tmp_path / "file").index()


@pytest.mark.parametrize("content", [b"", bytes(5_000)])
def test_a_damaged_part_of_an_index_is_written_again(hub: Hub, tmp_path: Path, content: bytes) -> None:
    index = build(tmp_path).index()
    (folder,) = (path for path in (tmp_path / "hub" / "speechbrain--LoquaciousSet").iterdir() if path.is_dir())
    shutil.rmtree(folder)
    part = folder.with_name(f"{folder.name}.shards") / "000001.arrow"
    part.parent.mkdir()
    part.write_bytes(content)
    forget()
    assert build(tmp_path).index() == index


def test_a_part_of_an_index_is_synced_before_it_is_renamed(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, parts = set(), []
    sync, replace = os.fsync, Path.replace

    def note(descriptor: int) -> None:
        synced.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def rename(path: Path, target: Path) -> Path:
        if target.parent.suffix == ".shards":
            assert path in synced
            parts.append(target.name.split(".")[0])
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "replace", rename)
    build(tmp_path).index()
    assert sorted(parts) == ["000000", "000001", "000002"]
