"""Two finished runs side by side: refused where they cannot be compared, and otherwise told apart, or not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import changed, tiny_recipe, write_clips
from tests.support.html import Page
from tiny_audio.analysis.compare import Comparison, compare_folders
from tiny_audio.analysis.report import render_comparison
from tiny_audio.analysis.tables import comparison_table
from tiny_audio.cli import main
from tiny_audio.config import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT = 48
Row = dict[str, Any]
Edit = Callable[[Row], None]


@pytest.fixture(scope="module")
def made(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs of two recipes, ``small`` and ``large``."""
    folder = tmp_path_factory.mktemp("compare")
    write_clips(folder, COUNT)
    settings: dict[str, Any] = {
        "ctc": {"weight": 0.5},
        "generation__max_new_tokens": 3,
        "training__steps": 2,
        "training__warmup_steps": 1,
        "evaluation": {"normalizer": "lower", "num_bootstrap": 100},
    }
    (folder / "recipe.yaml").write_text(json.dumps(changed(tiny_recipe(folder), **settings)))
    for name, stack in (("small", 4), ("large", 2)):
        command = ["run", str(folder / "recipe.yaml"), f"projector.stack={stack}"]
        assert main([*command, "--output-dir", str(folder / name)]) == 0
    return folder


@pytest.fixture
def variant(made: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies ``small`` with other hypotheses, and other facts in its report."""

    def make(name: str, edit: Edit = lambda row: None, **report: Any) -> Path:
        folder = tmp_path / name
        (folder / "evaluation").mkdir(parents=True)
        for file in ("state.json", "recipe.yaml"):
            shutil.copy(made / "small" / file, folder)
        (folder / "report.json").write_text(json.dumps(changed(read(made / "small" / "report.json"), **report)))
        lines = (made / "small" / "evaluation" / "held_out.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        for row in rows:
            row["pred_text"] = row["text"]  # right in every word, unless it is edited
            edit(row)
        kept = [row for row in rows if not row.get("gone")]
        (folder / "evaluation" / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
        return folder

    return make


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def number_of(row: Row) -> int:
    return int(row["id"].removeprefix("held_out/clip")[:3])


def wrong(every: int) -> Edit:
    """A wrong last word in every so many utterances."""

    def edit(row: Row) -> None:
        if number_of(row) % every == 0:
            row["pred_text"] = " ".join([*row["text"].split()[:-1], "banana"])

    return edit


def only(comparison: Comparison) -> dict[str, Any]:
    return dict(comparison.to_json()["sets"]["held_out"])


def refusal(*folders: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        compare_folders(folders, **options)
    return str(caught.value)


# --- real runs


def test_two_real_runs(made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
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
    assert (entry["num_utterances"], entry["normalizer"], entry["num_groups"]) == (COUNT, "lower", None)
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
    assert (tmp_path / "page.html").read_text() == render_comparison(compared)


def test_comparing_needs_no_model_and_no_torch(made: Path) -> None:
    command = (
        "import sys; from tiny_audio.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(code or len({'torch', 'transformers'} & sys.modules.keys()))"
    )
    arguments = ["compare", str(made / "small"), str(made / "large")]
    process = subprocess.run([sys.executable, "-c", command, *arguments], capture_output=True, text=True, timeout=60)
    assert (process.returncode, process.stderr) == (0, "")


# --- what is said


def test_a_run_against_itself_is_not_called_different(made: Path) -> None:
    comparison = compare_folders([made / "small", made / "small"])
    assert [variant.name for variant in comparison.variants] == ["small", "small (2)"]
    (difference,) = only(comparison)["differences"]
    assert difference["verdict"] == "no difference shown"
    assert (difference["difference"], difference["interval"], difference["p_value"]) == (0, [0, 0], 1)
    assert comparison.recipe == []
    table = comparison_table(comparison)
    assert "no difference shown" in table
    assert "The recipes are the same." in table
    assert "Nowhere." in Page(render_comparison(comparison)).words


def test_a_crippled_run_is_called_worse_and_a_mended_one_better(variant: Callable[..., Path]) -> None:
    good, crippled = variant("good"), variant("crippled", wrong(every=2))
    (difference,) = only(compare_folders([good, crippled]))["differences"]
    assert difference["verdict"] == "worse"
    assert 0 < difference["interval"][0] < difference["difference"] < difference["interval"][1]
    assert difference["difference"] == pytest.approx((COUNT // 2) / 72)
    (difference,) = only(compare_folders([crippled, good]))["differences"]
    assert difference["verdict"] == "better"
    assert difference["difference"] == pytest.approx(-(COUNT // 2) / 72)


def test_what_chance_explains_is_not_called_different(variant: Callable[..., Path]) -> None:
    """Four sentences that differ, all in favor of one: p is 0.125."""
    folders = [variant("good"), variant("slightly_worse", wrong(every=12))]
    (difference,) = only(compare_folders(folders))["differences"]
    assert difference["difference"] > 0
    assert difference["p_value"] == pytest.approx(0.125, abs=0.01)
    assert difference["verdict"] == "no difference shown"


def test_the_more_is_compared_the_more_it_takes(variant: Callable[..., Path]) -> None:
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


def test_speakers_are_resampled_whole_where_the_runs_were_scored_so(variant: Callable[..., Path]) -> None:
    scored_so = {"recipe__evaluation__group_by": "speaker"}
    folders = [variant("good", **scored_so), variant("bad", wrong(every=2), **scored_so)]
    entry = only(compare_folders(folders))
    assert (entry["group_by"], entry["num_groups"]) == ("speaker", 3)
    # Three speakers, all in favor of one: a coin shows one face three times in a row, either, once in 4 times.
    assert entry["differences"][0]["p_value"] == pytest.approx(0.25, abs=0.02)
    assert entry["differences"][0]["verdict"] == "no difference shown"
    assert "3 groups by speaker, resampled whole" in comparison_table(compare_folders(folders))

    plain = [variant("plain_good"), variant("plain_bad", wrong(every=2))]
    assert only(compare_folders(plain))["differences"][0]["verdict"] == "worse"
    assert only(compare_folders(plain, group_by="speaker"))["num_groups"] == 3


def test_slices(variant: Callable[..., Path]) -> None:
    def edit(row: Row) -> None:
        row["metadata"]["room"] = None if number_of(row) % 6 == 0 else "hall" if number_of(row) % 2 else "car"
        row["metadata"]["clip"] = row["id"]  # as many values as clips: no slice
        row["metadata"]["language"] = "en"  # the same everywhere: no slice

    def worse_in_the_car(row: Row) -> None:
        edit(row)
        if row["metadata"]["room"] == "car":
            row["pred_text"] = "banana"

    entry = only(compare_folders([variant("good", edit), variant("bad", worse_in_the_car)]))
    parts = {(part["column"], part["value"]): part for part in entry["slices"]}
    assert {column for column, _ in parts} == {"duration", "speaker", "room"}
    for column in ("duration", "speaker", "room"):
        chosen = [part for part in entry["slices"] if part["column"] == column]
        assert sum(part["num_utterances"] for part in chosen) == COUNT
        assert sum(part["num_reference_words"] for part in chosen) == entry["num_reference_words"]
    assert next(value for column, value in parts if column == "duration") == "to 0.6 s"
    assert [value for column, value in parts if column == "room"] == ["car", "hall", "(not given)"]
    assert parts["room", "hall"]["wer"] == {"good": 0, "bad": 0}
    assert parts["room", "car"]["wer"]["bad"] > 0.9
    assert parts["room", "car"]["intervals"]["bad"][0] > 0


def test_sentences_that_changed(variant: Callable[..., Path]) -> None:
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

    html = render_comparison(comparison)
    page = Page(html)
    assert "<b>banana" not in html
    for title in ("inserted: <b>banana</b>", "deleted: now", "deleted: right", "turn, heard as banana"):
        assert any(title == mark.get("title") for mark in page.all("i")), title
    assert "reference before after" in page.words


def test_the_longest_lists_are_cut(variant: Callable[..., Path]) -> None:
    comparison = compare_folders([variant("good"), variant("bad", wrong(every=1))])
    (found,) = only(comparison)["changed"]
    assert found["num_worsened"] == COUNT
    assert len(found["worsened"]) == 10
    assert comparison_table(comparison).count("  worsened held_out/") == 3
    assert len(Page(render_comparison(comparison)).all("article")) == 10


def test_without_a_ctc_head(variant: Callable[..., Path]) -> None:
    def headless(row: Row) -> None:
        row["ctc_text"] = None

    both = compare_folders([variant("with"), variant("without", headless)])
    assert only(both)["differences"][0]["ctc_difference"] is None
    assert [rates["ctc_wer"] is None for rates in only(both)["variants"]] == [False, True]
    assert "CTC head" in comparison_table(both)
    Page(render_comparison(both))
    neither = compare_folders([variant("one", headless), variant("two", headless)])
    assert "CTC head" not in comparison_table(neither)
    assert "CTC head" not in Page(render_comparison(neither)).words


def test_names_tell_the_runs_apart(variant: Callable[..., Path]) -> None:
    folders = [variant("a/run"), variant("b/run"), variant("c/other")]
    names = [variant.name for variant in compare_folders(folders).variants]
    assert names == ["a/run", "b/run", "c/other"]
    assert [variant.name for variant in compare_folders(folders[1:]).variants] == ["run", "other"]


# --- refusals


def test_one_run_is_none_to_compare(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(made / "small")]) == 2
    assert capsys.readouterr().err == (
        "error: give two runs or more: the first is the baseline that the others are compared with\n"
    )


def test_folders_that_are_no_finished_run(made: Path, variant: Callable[..., Path], tmp_path: Path) -> None:
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
    wants = "give the folder that `tiny-audio run` wrote"
    assert refusal(run, missing) == f"{missing} does not exist; {wants}"
    assert refusal(run, file) == f"{file} is no folder; {wants}"
    assert refusal(run, run / "model") == (
        f"{run / 'model'} is no run's folder (it has no state.json); give the one that `tiny-audio run` wrote"
    )
    assert refusal(run, made) == (
        f"{made} is no run's folder (it has no state.json); give one in it, such as {made / 'large'}"
    )
    assert refusal(run, unfinished) == (
        f"{unfinished} is a run that is not finished (it has no report.json); continue it by the command that started "
        f"it, or by: tiny-audio run {unfinished / 'recipe.yaml'} --output-dir {unfinished}"
    )
    assert refusal(run, broken) == (
        f"{broken / 'report.json'} is no run's report; delete it and run the run's command again, which writes it anew"
    )
    assert refusal(run, bare) == (
        f"{bare / 'evaluation' / 'held_out.jsonl'} is missing, although {bare} is finished; run its command again"
    )
    assert refusal(run, cut) == (
        f"{cut / 'evaluation' / 'held_out.jsonl'}, line 1: is no row of hypotheses; delete the file and run its "
        "command again"
    )


def test_no_set_in_common(made: Path, variant: Callable[..., Path]) -> None:
    scores = read(made / "small" / "report.json")["evaluation"]["held_out"]
    one, other = variant("one"), variant("other", evaluation={"elsewhere": scores})
    assert refusal(one, other).startswith(
        "there is no set that all of these runs were scored on (one: held_out; other: elsewhere); add one to "
        "data.evaluation of each"
    )
    assert refusal(one, variant("two"), set_name="held_ot") == (
        "--set held_ot: not all of these runs were scored on it; did you mean 'held_out'? Allowed: held_out"
    )
    assert list(compare_folders([one, one], set_name="held_out").sets) == ["held_out"]


def test_other_clips_or_references(variant: Callable[..., Path]) -> None:
    def fewer(row: Row) -> None:
        row["gone"] = number_of(row) < 5
        if number_of(row) == 7:
            row["text"] = "another text"

    def more(row: Row) -> None:
        row["gone"] = number_of(row) == 40

    one, other = variant("one", more), variant("other", fewer)
    assert refusal(one, other) == (
        "held_out: the runs were scored on different clips:\n"
        "  5 only in one, such as held_out/clip000.wav\n"
        "  1 only in other, such as held_out/clip040.flac\n"
        "  1 with another reference in other than in one, such as held_out/clip007.flac: 'another text' and 'no'\n"
        f"{COUNT - 7} utterances are the same in all: --common compares those"
    )
    comparison = compare_folders([one, other], common=True)
    entry = only(comparison)
    assert (entry["num_utterances"], entry["left_out"]) == (COUNT - 7, 7)
    assert "7 utterances that not all runs have left out" in comparison_table(comparison)
    assert "7 utterances that not all runs have are left out" in Page(render_comparison(comparison)).words

    def others(row: Row) -> None:
        row["text"] = "something else"

    assert refusal(one, variant("third", others), common=True) == (
        "held_out: no utterance with the same reference and length is in all of these runs, so that there is nothing "
        "to compare; score them on the same clips"
    )


def test_other_audio_under_the_same_names(variant: Callable[..., Path]) -> None:
    """Two lists that name and transcribe clips alike need not mean the same recordings."""

    def longer(row: Row) -> None:
        row["duration"] = 0.9 if number_of(row) % 2 else row["duration"] + 0.005

    one, other = variant("one"), variant("other", longer)
    assert refusal(one, other) == (
        "held_out: the runs were scored on different clips:\n"
        "  24 of another length in other than in one, and so other audio, such as held_out/clip001.flac: "
        "0.90 and 0.61 s\n"
        f"{COUNT // 2} utterances are the same in all: --common compares those"
    )
    assert only(compare_folders([one, other], common=True))["num_utterances"] == COUNT // 2

    def moved(row: Row) -> None:
        if number_of(row) < 3:
            row["audio_filepath"] = f"/noisy/{row['id']}"

    comparison = compare_folders([one, variant("noisy", moved)])
    (doubt,) = only(comparison)["doubts"]
    assert doubt.startswith(
        "noisy read 3 of the clips elsewhere than one, such as held_out/clip000.wav: /noisy/held_out/clip000.wav, not /"
    )
    assert doubt.endswith("lengths agree, and whether it is the same sound is for you to know")
    assert f"  mind: {doubt}\n" in comparison_table(comparison)
    assert f"Mind: {doubt}." in Page(render_comparison(comparison)).words

    fresh = variant("fresh", provenance__evaluation_data={"held_out": "0" * 64})
    assert only(compare_folders([one, fresh]))["doubts"] == [
        "fresh and one were scored on data with different fingerprints, although ids, references and lengths of the "
        "clips here agree: the rest of the set, or the revision that it is of, differs"
    ]
    assert only(compare_folders([one, one]))["doubts"] == []


def test_other_normalizers(variant: Callable[..., Path]) -> None:
    one, other = variant("one"), variant("other", evaluation__held_out__normalizer="none")
    assert refusal(one, other) == (
        "held_out: the runs were scored by different normalizers (lower: one; none: other), and rates under different "
        "rules cannot be compared; score all of them by one here: --normalizer lower"
    )
    assert only(compare_folders([one, other], normalizer_name="none"))["normalizer"] == "none"
    assert refusal(one, other, normalizer_name="upper").startswith("unknown normalizer 'upper'; allowed: none, lower")


def test_references_without_a_word(variant: Callable[..., Path]) -> None:
    def dots(row: Row) -> None:
        row["text"] = "..."

    assert refusal(variant("one", dots), variant("two", dots), normalizer_name="basic") == (
        "held_out: the references have no word after the normalizer 'basic'; choose another by --normalizer"
    )


def test_columns_to_group_by(variant: Callable[..., Path]) -> None:
    one = variant("one", recipe__evaluation__group_by="speaker")
    other = variant("other", recipe__evaluation__group_by="room")
    assert refusal(one, other) == (
        "the runs were scored with evaluation.group_by room and speaker; say which to resample whole by --group-by room"
    )
    assert only(compare_folders([one, other], group_by="speaker"))["num_groups"] == 3
    assert refusal(one, other, group_by="room") == (
        "held_out: no utterance has a column 'room' to group by (columns: speaker); name one of them by --group-by"
    )


def test_a_page_that_cannot_be_written(made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "none" / "page.html"
    assert main(["compare", str(made / "small"), str(made / "large"), "--html", str(page)]) == 2
    assert capsys.readouterr().err == f"error: --html {page}: there is no folder {page.parent}; make it first\n"
