"""Comparisons of finished runs."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.analysis.report_data import no_audio
from tests.analysis.runs import COUNT, MakeVariant, Row, number_of, only, read, wrong
from tests.support.html import Page
from tiny_audio.analysis.compare import compare_folders
from tiny_audio.analysis.report import render_comparison
from tiny_audio.analysis.report.audio import audio_reader
from tiny_audio.analysis.tables import comparison_table
from tiny_audio.cli import main

# --- real runs


def test_two_real_runs_can_be_compared(made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["compare", str(made / "small"), str(made / "large")]
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    comparison = json.loads(capsys.readouterr().out)
    assert comparison["baseline"] == "small"
    entry = comparison["sets"]["held_out"]
    reports = {name: read(made / name / "report.json") for name in ("small", "large")}
    for rates in entry["variants"]:
        scores = reports[rates["name"]]["evaluation"]["held_out"]
        for key in ("wer", "substitutions", "deletions", "insertions"):
            assert rates[key] == pytest.approx(scores[key])
        assert rates["ctc_wer"] == pytest.approx(scores["ctc"]["wer"])
    assert (entry["num_utterances"], entry["normalizer"], entry["num_groups"]) == (COUNT, "lower", 3)
    assert {field["field"]: field["values"] for field in comparison["recipe"]} == {
        "projector.stack": {"small": "4", "large": "2"}
    }
    for described in comparison["variants"]:
        report = reports[described["name"]]
        sizes = report["parameters"].values()
        assert described["parameters"]["trainable"] == sum(part["trainable"] for part in sizes)
        assert described["wall_s"] == report["training"]["wall_s"]
        assert described["runs"][0]["run_id"] == report["run_id"]

    assert main([*command, "--html", str(tmp_path / "page.html")]) == 0
    compared = compare_folders([made / "small", made / "large"])
    assert capsys.readouterr().out == comparison_table(compared) + "\n"
    page = (tmp_path / "page.html").read_text()
    assert page == render_comparison(compared, audio_reader(compared.files))
    assert page.count("<audio") == sum(
        len(part.improved) + len(part.worsened) for part in compared.sets["held_out"].changed
    )


def test_comparing_needs_no_model_and_no_torch(made: Path) -> None:
    command = (
        "import sys; from tiny_audio.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(code or len({'torch', 'transformers'} & sys.modules.keys()))"
    )
    arguments = ["compare", str(made / "small"), str(made / "large")]
    process = subprocess.run([sys.executable, "-c", command, *arguments], capture_output=True, text=True, timeout=60)
    assert (process.returncode, process.stderr) == (0, "")


# --- verdicts


def test_a_run_does_not_differ_from_itself(made: Path) -> None:
    comparison = compare_folders([made / "small", made / "small"])
    assert [variant.name for variant in comparison.variants] == ["small", "small (2)"]
    (difference,) = only(comparison)["differences"]
    assert difference["verdict"] == "no difference shown"
    assert (difference["difference"], difference["interval"], difference["p_value"]) == (0, [0, 0], 1)
    assert comparison.recipe == []
    table = comparison_table(comparison)
    assert "no difference shown" in table
    assert "The recipes are the same." in table
    assert "The recipes are the same." in Page(render_comparison(comparison, no_audio)).words


@pytest.mark.parametrize(
    ("rule", "cost", "scorer"), [("lower", "unit", "jiwer"), ("open_asr_leaderboard", "compounds", "kaldialign")]
)
def test_a_comparison_names_its_scorer(made: Path, rule: str, cost: str, scorer: str) -> None:
    compared = only(compare_folders([made / "small", made / "large"], normalizer_name=rule))
    assert (compared["cost"], compared["scorer"]) == (cost, scorer)
    assert compared["scorer_version"] == importlib.metadata.version(scorer)


def test_a_degraded_run_is_worse_and_a_corrected_run_is_better(variant: MakeVariant) -> None:
    good, degraded = variant("good"), variant("degraded", wrong(every=2))
    (difference,) = only(compare_folders([good, degraded]))["differences"]
    assert difference["verdict"] == "worse"
    assert 0 < difference["interval"][0] < difference["difference"] < difference["interval"][1]
    assert difference["difference"] == pytest.approx((COUNT // 2) / 72)
    (difference,) = only(compare_folders([degraded, good]))["differences"]
    assert difference["verdict"] == "better"
    assert difference["difference"] == pytest.approx(-(COUNT // 2) / 72)


def test_a_difference_that_chance_explains_is_not_shown(variant: MakeVariant) -> None:
    """Four sentences differ, all in favor of one run. By chance, all four favor the same run with probability 0.125."""
    folders = [variant("good"), variant("slightly_worse", wrong(every=12))]
    (difference,) = only(compare_folders(folders))["differences"]
    assert difference["difference"] > 0
    assert difference["p_value"] == pytest.approx(0.125, abs=0.01)
    assert difference["verdict"] == "no difference shown"


def test_p_values_are_corrected_for_the_number_of_comparisons(variant: MakeVariant) -> None:
    good, other = variant("good"), variant("other", wrong(every=7))
    (alone,) = only(compare_folders([good, other]))["differences"]
    assert (alone["p_adjusted"], alone["verdict"]) == (alone["p_value"], "worse")
    copies = [variant(f"copy{number}", wrong(every=7)) for number in range(3)]
    comparison = compare_folders([good, other, *copies])
    assert comparison.num_comparisons == 4
    for difference in only(comparison)["differences"]:
        assert difference["p_value"] == alone["p_value"]
        assert difference["p_adjusted"] == pytest.approx(4 * alone["p_value"])
        assert difference["verdict"] == "no difference shown"
    assert "for 4 comparisons" in comparison_table(comparison)


def test_speakers_are_resampled_if_the_runs_were_scored_by_speaker(variant: MakeVariant) -> None:
    scored_so = {"recipe__evaluation__group_by": "reader"}
    folders = [variant("good", **scored_so), variant("bad", wrong(every=2), **scored_so)]
    entry = only(compare_folders(folders))
    assert (entry["group_by"], entry["num_groups"]) == ("reader", 3)
    # All three speakers favor the same run. By chance, this happens with probability 1/4.
    assert entry["differences"][0]["p_value"] == pytest.approx(0.25, abs=0.02)
    assert entry["differences"][0]["verdict"] == "no difference shown"
    assert "3 groups by reader are resampled" in comparison_table(compare_folders(folders))

    plain = [variant("plain_good"), variant("plain_bad", wrong(every=2))]
    assert only(compare_folders(plain))["differences"][0]["verdict"] == "worse"
    assert only(compare_folders(plain, group_by="reader"))["num_groups"] == 3


def test_slices_cover_the_set_and_show_differences(variant: MakeVariant) -> None:
    def edit(row: Row) -> None:
        row["metadata"]["room"] = None if number_of(row) % 6 == 0 else "hall" if number_of(row) % 2 else "car"
        row["metadata"]["clip"] = row["id"]  # one value per clip: not a slice
        row["metadata"]["language"] = "en"  # the same in all clips: not a slice

    def worse_in_the_car(row: Row) -> None:
        edit(row)
        if row["metadata"]["room"] == "car":
            row["pred_text"] = "banana"

    entry = only(compare_folders([variant("good", edit), variant("bad", worse_in_the_car)]))
    parts = {(part["column"], part["value"]): part for part in entry["slices"]}
    assert {column for column, _ in parts} == {"duration", "reader", "room"}
    for column in ("duration", "reader", "room"):
        chosen = [part for part in entry["slices"] if part["column"] == column]
        assert sum(part["num_utterances"] for part in chosen) == COUNT
        assert sum(part["num_reference_words"] for part in chosen) == entry["num_reference_words"]
    assert next(value for column, value in parts if column == "duration") == "to 0.6 s"
    assert [value for column, value in parts if column == "room"] == ["car", "hall", "(not given)"]
    assert parts["room", "hall"]["wer"] == {"good": 0, "bad": 0}
    assert parts["room", "car"]["wer"]["bad"] > 0.9
    assert parts["room", "car"]["intervals"]["bad"][0] > 0


def test_changed_sentences_are_listed(variant: MakeVariant) -> None:
    def before(row: Row) -> None:
        if number_of(row) == 3:  # "go on"
            row["pred_text"] = "go <b>banana</b> on"
        if number_of(row) == 2:  # "stop now"
            row["pred_text"] = "stop"

    def after(row: Row) -> None:
        if number_of(row) == 5:  # "turn right"
            row["pred_text"] = "banana"

    comparison = compare_folders([variant("before", before), variant("after", after)])
    (found,) = only(comparison)["changed"]
    assert (found["num_improved"], found["num_worsened"], found["num_other"]) == (2, 1, COUNT - 3)
    assert [number_of(sentence) for sentence in found["improved"]] == [2, 3]
    (worsened,) = found["worsened"]
    assert (worsened["text"], worsened["baseline"], worsened["other"]) == ("turn right", "turn right", "banana")
    assert (worsened["baseline_errors"], worsened["other_errors"]) == (0, 2)
    table = comparison_table(comparison)
    assert "    go {+<b>banana</b>+} on  (before)\n    go on  (after)" in table
    assert "    stop [-now-]  (before)\n    stop now  (after)" in table

    html = render_comparison(comparison, no_audio)
    page = Page(html)
    assert "<b>banana" not in html
    for title in ("inserted: <b>banana</b>", "deleted: now", "deleted: right", "banana instead of turn"):
        assert any(title == mark.get("title") for mark in page.all("i")), title
    assert "reference before after" in page.words


def test_long_lists_are_shortened(variant: MakeVariant) -> None:
    comparison = compare_folders([variant("good"), variant("bad", wrong(every=1))])
    (found,) = only(comparison)["changed"]
    assert found["num_worsened"] == COUNT
    assert len(found["worsened"]) == 10
    assert comparison_table(comparison).count("  worsened held_out/") == 3
    assert len(Page(render_comparison(comparison, no_audio)).all("article")) == 10


def test_runs_without_a_ctc_head_can_be_compared(variant: MakeVariant) -> None:
    def headless(row: Row) -> None:
        row["ctc_text"] = None

    both = compare_folders([variant("with"), variant("without", headless)])
    assert only(both)["differences"][0]["ctc_difference"] is None
    assert [rates["ctc_wer"] is None for rates in only(both)["variants"]] == [False, True]
    assert "CTC head" in comparison_table(both)
    Page(render_comparison(both, no_audio))
    neither = compare_folders([variant("one", headless), variant("two", headless)])
    assert "CTC head" not in comparison_table(neither)
    assert "CTC head" not in Page(render_comparison(neither, no_audio)).words


def test_names_of_runs_are_unique(variant: MakeVariant) -> None:
    folders = [variant("a/run"), variant("b/run"), variant("c/other")]
    names = [variant.name for variant in compare_folders(folders).variants]
    assert names == ["a/run", "b/run", "c/other"]
    assert [variant.name for variant in compare_folders(folders[1:]).variants] == ["run", "other"]
