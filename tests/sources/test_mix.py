"""Source ``mix``: several sources combined."""

from __future__ import annotations

import pickle
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Document, changed, write_clips
from tests.support.parquet_shards import LOQUACIOUS, loquacious_row, write_parquet
from tiny_audio.config import UserError
from tiny_audio.recipe import Recipe, load_recipe, recipe_schema
from tiny_audio.sources import SOURCES, Dropped, Index, Source, SourceContext, Utterance
from tiny_audio.sources.mix import Mixed, MixedConfig, MixSource


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a manifest of 8 clips, and a Parquet file of 40 clips in row groups of 5. Parquet row 7 has no text."""
    folder = tmp_path_factory.mktemp("mix")
    write_clips(folder, 8)
    rows = [loquacious_row(number) for number in range(40)]
    rows[7]["text"] = None
    write_parquet(folder / "wild.parquet", rows, LOQUACIOUS, row_group=5)
    return folder


def sections(folder: Path, read: Any = None, wild: Any = None) -> dict[str, Any]:
    manifest = {"name": "manifest", "path": str(folder / "manifest.jsonl")}
    parquet = {"name": "parquet", "path": str(folder / "wild.parquet"), "audio_column": "wav", "id_column": "ID"}
    return {"read": {"source": manifest, **(read or {})}, "wild": {"source": parquet, **(wild or {})}}


def build(folder: Path, cache: Path, *, seed: int = 0, **parts: Any) -> Source:
    config = {"name": "mix", "sources": sections(folder, **parts), "seed": seed}
    return SOURCES.build(SOURCES.parse(config), SourceContext(cache))


def ids(index: Index) -> list[str]:
    return [utterance.id for utterance in index.utterances]


def test_clips_are_read_by_their_own_source(folder: Path, tmp_path: Path) -> None:
    source = build(folder, tmp_path, wild={"weight": 0.5})
    index = source.index()
    assert len(index.utterances) == 8 + 39
    assert ids(index)[:2] == ["read/clip000.wav", "read/clip001.flac"]
    assert ids(index)[8:10] == ["wild/clip-0", "wild/clip-1"]
    assert [(drop.id, drop.reason) for drop in index.dropped] == [("wild/clip-7", "text_missing")]
    assert source.encoded(index.utterances[0]) == folder / "clip000.wav"
    traveled = pickle.loads(pickle.dumps(source))
    assert traveled.encoded(index.utterances[-1]) == loquacious_row(39)["wav"]["bytes"]
    assert index.utterances[0].metadata == {"source": "read", "speaker": "s0"}
    assert index.weights is not None
    assert index.weights.tolist() == [1.0] * 8 + [0.5] * 39
    assert index.durations_s is not None
    assert index.durations_s.tolist() == [utterance.duration_s for utterance in index.utterances]


def test_utterances_are_a_sequence(folder: Path, tmp_path: Path) -> None:
    utterances = build(folder, tmp_path).index().utterances
    assert list(utterances) == [utterances[number] for number in range(47)]
    assert utterances[-1] == utterances[46]
    assert [utterance.id for utterance in utterances[6:10]] == [utterances[number].id for number in range(6, 10)]
    with pytest.raises(IndexError):
        utterances[47]


def test_caps_keep_a_fixed_random_part(folder: Path, tmp_path: Path) -> None:
    few, more = (ids(build(folder, tmp_path, read={"max_clips": count}).index())[:count] for count in (3, 5))
    assert set(few) < set(more), "a larger cap keeps all clips that a smaller cap keeps"
    assert few == sorted(few), "in the order of the source"
    assert few == ids(build(folder, tmp_path, read={"max_clips": 3}).index())[:3]
    drawn = {tuple(ids(build(folder, tmp_path, seed=seed, read={"max_clips": 3}).index())[:3]) for seed in range(5)}
    assert len(drawn) > 2
    assert len(ids(build(folder, tmp_path, read={"max_clips": 100}).index())) == 47


def test_max_hours_is_respected(folder: Path, tmp_path: Path) -> None:
    all_s = build(folder, tmp_path).index().durations_s
    assert all_s is not None
    index = build(folder, tmp_path, read={"max_hours": 3.0 / 3600}).index()
    assert index.durations_s is not None
    used_s = index.durations_s.sum() - all_s[8:].sum()
    assert 3.0 - all_s[:8].max() < used_s <= 3.0
    whole = float(all_s[:8].sum())
    assert len(ids(build(folder, tmp_path, read={"max_hours": whole / 3600}).index())) == 47
    both = build(folder, tmp_path, read={"max_hours": 3.0 / 3600, "max_clips": 1}).index()
    assert len(ids(both)) == 40


def test_a_cap_below_the_first_clip_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^max_hours 0.0001 of 'read' is less than the duration of the first clip drawn \(\d\.\d s\); "
    ):
        build(folder, tmp_path, read={"max_hours": 0.0001}).index()


@dataclass(frozen=True)
class Table(Source):
    """A source with any number of rows. Its index creates an utterance only when a test accesses the utterance."""

    rows: int
    row_group: int | None
    num_dropped: int = 0

    def index(self) -> Index:
        groups = None if self.row_group is None else np.arange(self.rows) // self.row_group
        dropped = tuple(Dropped(f"bad{number}", "text_missing", "no text") for number in range(self.num_dropped))
        return Index(Rows(self.rows), dropped, f"{self.rows} rows", np.full(self.rows, 2.0), groups)

    def encoded(self, utterance: Utterance) -> bytes:
        return f"clip {utterance.id}".encode()


class Rows(Sequence[Utterance]):
    """Utterances that are created on access. ``made`` is the number of utterances created so far."""

    made = 0

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: Any) -> Any:
        Rows.made += 1
        return Utterance(f"{number}", 2.0, "yes", None, {"source": "podcast"})

    def __iter__(self) -> Iterator[Utterance]:
        raise AssertionError("an utterance would be created for every row")


def mix_of(*mixed: tuple[str, Source, float, float | None, int | None], seed: int = 0) -> MixSource:
    keys = ("weight", "max_hours", "max_clips")
    configs = [MixedConfig.model_construct(**dict(zip(keys, values, strict=True))) for _, _, *values in mixed]
    pairs = zip(mixed, configs, strict=True)
    return MixSource(tuple(Mixed(name, source, config) for (name, source, *_), config in pairs), seed)


def test_indexing_millions_of_rows_creates_no_utterances() -> None:
    Rows.made = 0
    started = time.process_time()
    source = mix_of(("a", Table(2_000_000, 1000), 1.0, None, None), ("b", Table(1_000_000, 100), 3.0, None, 500_000))
    index = source.index()
    assert time.process_time() - started < 20
    assert (len(index.utterances), Rows.made) == (2_500_000, 0)
    last = index.utterances[2_499_999]
    assert Rows.made == 1
    assert source.encoded(last).decode() == f"clip {last.id.removeprefix('b/')}"
    assert last.metadata == {"source": "podcast"}, "the clip has its own column `source`, which is kept"


def test_caps_select_whole_row_groups() -> None:
    index = mix_of(("a", Table(10_000, 100), 1.0, None, 1_050), ("b", Table(50, None), 1.0, None, None)).index()
    assert index.groups is not None
    in_a, counts = np.unique(index.groups[:1_050], return_counts=True)
    assert sorted(counts.tolist()) == [50] + [100] * 10
    assert len(set(index.groups[1_050:].tolist())) == 50, "each clip in a file of its own is a group"
    assert not set(in_a.tolist()) & set(index.groups[1_050:].tolist())


def test_a_cap_also_applies_to_dropped_clips() -> None:
    index = mix_of(("a", Table(10_000, None, 1_000), 1.0, None, 1_000)).index()
    assert 50 < len(index.dropped) < 160
    assert index.dropped == mix_of(("a", Table(10_000, None, 1_000), 1.0, None, 1_000)).index().dropped


def test_nested_mixes_multiply_their_weights() -> None:
    inner = mix_of(("x", Table(4, None), 2.0, None, None), ("y", Table(2, None), 1.0, None, None))
    source = mix_of(("a", inner, 3.0, None, None), ("b", Table(1, None), 0.25, None, None))
    index = source.index()
    assert index.weights is not None
    assert index.weights.tolist() == [6.0] * 4 + [3.0] * 2 + [0.25]
    assert [utterance.id for utterance in index.utterances[4:]] == ["a/y/0", "a/y/1", "b/0"]
    assert source.encoded(index.utterances[5]) == b"clip 1"


def test_the_fingerprint_depends_on_names_weights_and_selected_clips() -> None:
    table = Table(10, None)
    same = [mix_of(("a", table, 1.0, None, None)).index().fingerprint for _ in range(2)]
    others = [
        mix_of(("b", table, 1.0, None, None)),
        mix_of(("a", table, 2.0, None, None)),
        mix_of(("a", table, 1.0, None, 5)),
        mix_of(("a", table, 1.0, None, 5), seed=1),
        mix_of(("a", Table(11, None), 1.0, None, None)),
    ]
    assert len({same[0], same[1], *(other.index().fingerprint for other in others)}) == 6


def test_a_recipe_can_use_a_mix(document: Document, folder: Path, write_recipe: Callable[..., Path]) -> None:
    mix = {"name": "mix", "sources": sections(folder, wild={"weight": 2})}
    recipe = Recipe.model_validate_json(
        Recipe.model_validate(changed(document, data__train={"all": mix})).model_dump_json()
    )
    assert recipe.data.train["all"].sources["wild"].weight == 2.0  # type: ignore[attr-defined]
    path = write_recipe(changed(document, data__train={"all": mix}))
    heavier = load_recipe(path, ["data.train.all.sources.read.weight=5"])
    assert heavier.run_id() != recipe.run_id()
    moved = load_recipe(path, ["data.train.all.sources.read.source.path=elsewhere.jsonl"])
    assert moved.run_id() == recipe.run_id(), "the path of the data does not change the id of the run"
    assert "MixConfig" in recipe_schema()["$defs"]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({}, "data.train.all.mix.sources: should have at least 1 item, not 0"),
        ({"a": {"source": "manifst"}}, "sources.a.source: unknown source 'manifst'; did you mean 'manifest'?"),
        ({"a": {"source": "synthetic", "weight": 0}}, "sources.a.weight: should be greater than 0, not 0"),
        ({"a": {"source": "synthetic", "wieght": 1}}, "sources.a.wieght: unknown field; did you mean 'weight'?"),
        ({"a/b": {"source": "synthetic"}}, "sources.'a/b': should match pattern"),
        (
            {"a": {"source": {"name": "manifest", "pth": "x"}}},
            "source.manifest.pth: unknown field; did you mean 'path'?",
        ),
    ],
)
def test_invalid_mixes_are_rejected(
    document: Document, write_recipe: Callable[..., Path], sources: dict[str, Any], message: str
) -> None:
    document = changed(document, data__train={"all": {"name": "mix", "sources": sources}})
    with pytest.raises(UserError, match=re.escape(message)):
        load_recipe(write_recipe(document))


def test_a_mix_of_files_has_no_row_groups(folder: Path, tmp_path: Path) -> None:
    one = {"source": {"name": "manifest", "path": str(folder / "manifest.jsonl")}}
    mix = SOURCES.build(SOURCES.parse({"name": "mix", "sources": {"a": one, "b": one}}), SourceContext(tmp_path))
    assert mix.index().groups is None
    assert build(folder, tmp_path).index().groups is not None


def test_a_source_without_clips_is_an_error() -> None:
    for max_hours, max_clips in ((None, None), (1.0, None), (None, 5)):
        with pytest.raises(UserError, match=r"^source 'empty' of the mix has no clips; "):
            mix_of(
                ("full", Table(5, None), 1.0, None, None), ("empty", Table(0, None), 1.0, max_hours, max_clips)
            ).index()
