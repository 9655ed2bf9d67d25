"""Source ``hub``, and sources for a single corpus such as ``loquacious``: rows, audio and pinned commits.

A local server replaces the Hugging Face hub.
"""

from __future__ import annotations

import json
import pickle
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import Document, changed
from tests.sources.loquacious_hub import CARD, CLIPS, NAME, assert_audio, assert_rows, audio_spans, build, build_any
from tests.support.hub_server import Fault, Hub, Repo, forget, use_hub
from tests.support.parquet_shards import (
    LIBRISPEECH,
    LOQUACIOUS,
    encoded_clip,
    librispeech_row,
    loquacious_row,
    loquacious_shard,
    parquet_bytes,
)
from tests.support.training import RecordingCallback
from tests.support.tutorial import python
from tiny_audio.commands.run import Run
from tiny_audio.data.clips import ClipSet
from tiny_audio.recipe import Recipe
from tiny_audio.sources import SOURCES, SourceContext
from tiny_audio.sources.hub import HubConfig
from tiny_audio.sources.loquacious import LoquaciousConfig


def test_index_and_audio_equal_the_corpus(hub: Hub, tmp_path: Path) -> None:
    source = build(tmp_path)
    index = source.index()
    assert_rows(index)
    assert_audio(source, index)
    assert_rows(build(tmp_path, split="dev").index(), first=CLIPS, count=4)


def test_indexing_fetches_no_audio(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    build(tmp_path).index()
    footer = 64 * 1024  # number of bytes that Arrow first reads from the end of a file
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
    assert len(resolved) == len(set(resolved)) == 3, "the location of each file is looked up once"


def test_only_the_needed_row_group_is_fetched_and_only_once(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    source = build(tmp_path)
    utterances = source.index().utterances
    before = hub.bytes_sent()
    for utterance in utterances[25:30]:
        source.encoded(utterance)
    start, end = audio_spans(files["small/train-00001-of-00003.parquet"])[1]
    assert hub.bytes_sent() - before == 64 * 1024 + end - start
    count = len(hub.requests)
    source.encoded(utterances[30])
    assert len(hub.requests) == count + 1, "the footer of the file is not fetched again"


def test_a_second_start_needs_no_network(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_commit_of_a_branch_is_pinned_in_the_cache(hub: Hub, tmp_path: Path) -> None:
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


def test_a_known_commit_is_read_after_the_branch_has_changed(hub: Hub, tmp_path: Path) -> None:
    """A continued run reads its original commit, even if the cache was deleted. ``commits`` is the
    part of the run's state that stores the commit."""
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


def test_a_commit_can_be_given_as_revision(hub: Hub, tmp_path: Path) -> None:
    commit = hub.repos[NAME].commit
    pinned = build(tmp_path / "1", revision=commit).index()
    assert pinned == build(tmp_path / "2").index()
    hub.repos[NAME].card["license"] = "cc-by-4.0"  # gives another commit with the same data
    try:
        assert build(tmp_path / "3").index().fingerprint != pinned.fingerprint
    finally:
        del hub.repos[NAME].card["license"]


def test_selected_shards_are_spread_evenly(hub: Hub, tmp_path: Path) -> None:
    shards = {f"data/train-{n:05d}-of-00010.parquet": parquet_bytes([loquacious_row(n)], LOQUACIOUS) for n in range(10)}
    hub.repos["an/other"] = Repo(shards)
    for count, numbers in ((1, [0]), (3, [0, 3, 6]), (4, [0, 2, 5, 7]), (10, range(10)), (11, range(10))):
        source = build_any(tmp_path, "an/other", max_shards=count)
        index = source.index()
        assert [utterance.id for utterance in index.utterances] == [f"clip-{n}" for n in numbers]
        assert_audio(source, index)


def test_a_corpus_without_durations_can_be_read(hub: Hub, tmp_path: Path) -> None:
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
    assert len(hub.requests) == count, "audio that was fetched to measure durations stays in the cache"


def test_without_configs_splits_are_found_by_file_names(hub: Hub, tmp_path: Path) -> None:
    rows = [{"audio": encoded_clip(n, 0.5), "text": "yes", "duration": 0.5} for n in range(2)]
    hub.repos["a/b"] = Repo({"test/x.parquet": parquet_bytes(rows), "train/y.parquet": parquet_bytes(rows[:1])})
    config = HubConfig(repo="a/b", split="test")
    ids = [utterance.id for utterance in SOURCES.build(config, SourceContext(tmp_path)).index().utterances]
    assert ids == ["test/x.parquet/0", "test/x.parquet/1"]
    named = HubConfig(repo="a/b", config="default", split="train")
    assert len(SOURCES.build(named, SourceContext(tmp_path)).index().utterances) == 1


def test_a_config_can_name_a_folder(hub: Hub, tmp_path: Path) -> None:
    rows = [{"audio": encoded_clip(n, 0.5), "text": "yes", "duration": 0.5} for n in range(2)]
    configs = [{"config_name": "en", "data_dir": "en", "default": True}, {"config_name": "de", "data_dir": "de"}]
    shards = {"en/train.parquet": parquet_bytes(rows), "de/train.parquet": parquet_bytes(rows[:1])}
    hub.repos["a/b"] = Repo(shards, {"configs": configs})
    for config, count in (("de", 1), (None, 2)):
        source = SOURCES.build(HubConfig(repo="a/b", config=config), SourceContext(tmp_path))
        assert len(source.index().utterances) == count


def test_a_new_process_uses_the_hub_in_the_environment(hub: Hub, tmp_path: Path) -> None:
    build(tmp_path / "cache", split="dev").index()
    code = (
        "import json, pyarrow, sys\n"
        "for dims in (2, 3, 4, 5):\n"  # the package datasets is imported again, and registers them again
        "    pyarrow.unregister_extension_type(f'datasets.features.features.Array{dims}DExtensionType')\n"
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
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": ""}
    anew = ["datasets", "huggingface_hub"]
    done = python(None, code, str(tmp_path / "cache"), anew=anew, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    kept, early, sizes = json.loads(done.stdout)
    assert (kept, early) == (4, ["huggingface_hub"]), "an index in the cache is read without the package datasets"
    assert sizes == [len(loquacious_row(number)["wav"]["bytes"]) for number in range(CLIPS)]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_training_on_a_hub_with_occasional_failures(
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
    Run(recipe, "hub", tmp_path / "run", RecordingCallback()).complete()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 16
    assert not (tmp_path / "run" / "dropped.jsonl").exists()
    fetched = {request.range for request in hub.requests if request.is_place and request.status == 206}
    assert len(fetched) > 12

    # Although the cache is deleted and the branch has changed, the same command gives the same weights.
    before = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    old = hub.repos[NAME]
    hub.repos[NAME] = Repo(
        {**old.files, "small/train-00000-of-00003.parquet": loquacious_shard(0, 5)}, CARD, before=old
    )
    shutil.rmtree(tmp_path / "cache")
    shutil.rmtree(tmp_path / "run" / "model")
    forget()
    Run(recipe, "hub", tmp_path / "run", RecordingCallback()).complete()
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == before


def test_texts_are_unchanged_unless_normalized(hub: Hub, tmp_path: Path) -> None:
    source = build(tmp_path, split="dev")
    as_is = list(ClipSet.gather({"dev": source}, 0.1, 30).texts)
    assert as_is == ["STOP NOW", "TURN RIGHT", "IT'S LEFT", "YES"]
    assert list(ClipSet.gather({"dev": source}, 0.1, 30, "lower").texts) == [text.lower() for text in as_is]


def test_each_split_has_its_own_pinned_commit(hub: Hub, tmp_path: Path) -> None:
    build(tmp_path).index()
    build(tmp_path, split="dev").index()
    pins = sorted((tmp_path / "hub" / "speechbrain--LoquaciousSet").glob("*.json"))
    assert len(pins) == 2
    assert all(one != other for one, other in pairwise(pin.read_text() for pin in pins))
