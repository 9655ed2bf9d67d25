"""Finished runs that cannot be compared are rejected with the reason. ``messages.txt`` contains the wording."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.analysis.report_data import no_audio
from tests.analysis.runs import COUNT, MakeVariant, Row, assert_rejected, number_of, only, read
from tests.support.html import Page
from tests.support.messages import assert_names
from tiny_audio.analysis.compare import compare_folders
from tiny_audio.analysis.report import render_comparison
from tiny_audio.analysis.tables import comparison_table
from tiny_audio.cli import main


def test_a_single_run_is_rejected(made: Path) -> None:
    assert_rejected([made / "small"], "two runs")


def test_folders_without_a_finished_run_are_rejected(made: Path, variant: MakeVariant, tmp_path: Path) -> None:
    run = made / "small"
    missing, file, unfinished, broken = (tmp_path / name for name in ("none", "file", "unfinished", "broken"))
    file.write_text("")
    shutil.copytree(run, unfinished)
    (unfinished / "report.json").unlink()
    shutil.copytree(run, broken)
    (broken / "report.json").write_text("{}")
    bare, cut = variant("bare"), variant("cut")
    (bare / "evaluation" / "held_out.jsonl").unlink()
    (cut / "evaluation" / "held_out.jsonl").write_text('{"id": "held_out/x"}\n')
    assert_rejected([run, missing], f"{missing} does not exist; `tiny-audio run`")
    assert_rejected([run, file], f"{file} folder `tiny-audio run`")
    assert_rejected([run, run / "model"], f"{run / 'model'} state.json `tiny-audio run`")
    assert_rejected([run, made], f"{made} state.json {made / 'large'}")
    command = f"tiny-audio run {unfinished / 'recipe.yaml'} --output-dir {unfinished}"
    assert_rejected([run, unfinished], f"{unfinished} report.json {command}")
    assert_rejected([run, broken], f"{broken / 'report.json'} delete")
    assert_rejected([run, bare], f"{bare / 'evaluation' / 'held_out.jsonl'} is missing")
    assert_rejected([run, cut], f"{cut / 'evaluation' / 'held_out.jsonl'}, line 1 delete")


def test_runs_without_a_common_set_are_rejected(made: Path, variant: MakeVariant) -> None:
    scores = read(made / "small" / "report.json")["evaluation"]["held_out"]
    one, other = variant("one"), variant("other", evaluation={"elsewhere": scores})
    assert_rejected([one, other], "(one: held_out; other: elsewhere) data.evaluation")
    assert_rejected([one, variant("two")], "--set held_ot: 'held_out'? Allowed: held_out", set_name="held_ot")
    assert list(compare_folders([one, one], set_name="held_out").sets) == ["held_out"]


def test_different_clips_or_references_are_rejected(variant: MakeVariant) -> None:
    def fewer(row: Row) -> None:
        row["gone"] = number_of(row) < 5
        if number_of(row) == 7:
            row["text"] = "another text"

    def more(row: Row) -> None:
        row["gone"] = number_of(row) == 40

    one, other = variant("one", more), variant("other", fewer)
    assert_rejected(
        [one, other],
        "held_out: 5 only in one, held_out/clip000.wav 1 only in other, held_out/clip040.flac",
        "1 reference in other one, held_out/clip007.flac: 'another text' 'no'",
        f"{COUNT - 7} --common",
    )
    comparison = compare_folders([one, other], common=True)
    entry = only(comparison)
    assert (entry["num_utterances"], entry["left_out"]) == (COUNT - 7, 7)
    assert "7 utterances left out because they are not the same in all runs" in comparison_table(comparison)
    assert (
        "7 utterances are left out, because they are missing from some runs or differ"
        in Page(render_comparison(comparison, no_audio)).words
    )

    def others(row: Row) -> None:
        row["text"] = "something else"

    assert_rejected([one, variant("third", others)], "held_out: no utterance", common=True)


def test_different_audio_with_the_same_names_is_noticed(variant: MakeVariant) -> None:
    """Clips with equal names are rejected if their durations differ. Other paths or fingerprints give a warning."""

    def longer(row: Row) -> None:
        row["duration"] = 0.9 if number_of(row) % 2 else row["duration"] + 0.005

    one, other = variant("one"), variant("other", longer)
    assert_rejected([one, other], f"held_out: 24 other one held_out/clip001.flac: 0.90 0.61 s {COUNT // 2} --common")
    assert only(compare_folders([one, other], common=True))["num_utterances"] == COUNT // 2

    def moved(row: Row) -> None:
        if number_of(row) < 3:
            row["audio_filepath"] = f"/data/noisy-{number_of(row)}.wav"

    comparison = compare_folders([one, variant("noisy", moved)])
    (doubt,) = only(comparison)["doubts"]
    assert_names(ValueError(doubt), "noisy 3 one held_out/clip000.wav: /data/noisy-0.wav")
    assert f"  warning: {doubt}\n" in comparison_table(comparison)
    assert f"Warning: {doubt}." in Page(render_comparison(comparison, no_audio)).words

    fresh = variant("fresh", provenance__evaluation_data={"held_out": "0" * 64})
    (doubt,) = only(compare_folders([one, fresh]))["doubts"]
    assert_names(ValueError(doubt), "fresh one fingerprints")
    assert only(compare_folders([one, one]))["doubts"] == []

    both = variant("both", moved, provenance__evaluation_data={"held_out": "0" * 64})
    assert len(only(compare_folders([one, both]))["doubts"]) == 2


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("/data/{}.wav", "/mnt/copy/{}.wav"),
        ("/data/a.parquet#row_group=0&row={}&column=audio", "/mnt/a.parquet#row_group=0&row={}&column=audio"),
        (
            "hf://datasets/a/b@111/x.parquet#row_group=0&row={}&column=audio",
            "hf://datasets/a/b@222/x.parquet#row_group=0&row={}&column=audio",
        ),
    ],
)
def test_data_with_another_root_or_revision_can_be_compared(variant: MakeVariant, here: str, there: str) -> None:
    def at(address: str) -> Callable[[Row], None]:
        return lambda row: row.update(audio_filepath=address.format(number_of(row)))

    first = variant("one", at(here))
    comparison = compare_folders([first, variant("two", at(there))])
    assert only(comparison)["doubts"] == []
    other = compare_folders([first, variant("three", at(there.replace("{}", "1{}")))])
    assert len(only(other)["doubts"]) == 1


def test_different_normalizers_are_rejected(variant: MakeVariant) -> None:
    one, other = variant("one"), variant("other", evaluation__held_out__normalizer="none")
    assert_rejected([one, other], "held_out: (lower: one; none: other) --normalizer lower")
    assert only(compare_folders([one, other], normalizer_name="none"))["normalizer"] == "none"
    assert_rejected([one, other], "'upper'; none, lower", normalizer_name="upper")


def test_references_without_words_are_rejected(variant: MakeVariant) -> None:
    def dots(row: Row) -> None:
        row["text"] = "..."

    assert_rejected(
        [variant("one", dots), variant("two", dots)], "held_out: word 'basic' --normalizer", normalizer_name="basic"
    )


def test_unusable_group_columns_are_rejected(variant: MakeVariant) -> None:
    one = variant("one", recipe__evaluation__group_by="reader")
    other = variant("other", recipe__evaluation__group_by="room")
    assert_rejected([one, other], "evaluation.group_by reader room --group-by reader")
    assert only(compare_folders([one, other], group_by="reader"))["num_groups"] == 3
    assert_rejected([one, other], "held_out: 'room' (columns: reader) --group-by", group_by="room")


def test_an_unwritable_page_is_an_error(made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "none" / "page.html"
    assert main(["compare", str(made / "small"), str(made / "large"), "--html", str(page)]) == 2
    assert_names(ValueError(capsys.readouterr().err), f"error: --html {page}: {page.parent}")
