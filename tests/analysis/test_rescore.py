"""Scores of hypothesis files, from this project and from others, compared with values computed by hand."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.support.html import Page
from tests.support.messages import assert_names
from tests.support.sclite import corrupted
from tiny_audio.analysis.report import render_targets
from tiny_audio.analysis.report.audio import audio_reader
from tiny_audio.analysis.rescore import Rescored, read_targets, rescore
from tiny_audio.analysis.scoring import align, normalizer, paired_difference, score
from tiny_audio.analysis.significance import matched_pairs
from tiny_audio.analysis.tables import rescore_table
from tiny_audio.cli import main
from tiny_audio.config import UserError

Row = dict[str, Any]
Write = Callable[..., Path]
TEXTS = ("turn the light on", "stop now", "call the doctor at home", "go on", "what time is it in the garden")


def leaderboard(number: int, text: str, hypothesis: str) -> Row:
    """Return a row that has only the leaderboard's fields."""
    fields = {"audio_filepath": f"sample_{number}", "duration": 2.0 + number % 5, "time": 0.1}
    return {**fields, "text": text, "pred_text": hypothesis}


def ours(number: int, text: str, hypothesis: str) -> Row:
    """Return a row as a run writes it."""
    row = leaderboard(number, text, hypothesis)
    del row["time"]
    metadata = {"speaker": f"s{number % 6}", "sex": ("female", "male")[number % 2]}
    return {"id": row["audio_filepath"], **row, "ctc_text": text, "truncated": number % 10 == 0, "metadata": metadata}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(name: str, rows: list[Row] | str) -> Path:
        path = tmp_path / f"{name}.jsonl"
        path.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
        return path

    return written


def noisy(rate: float, make: Callable[[int, str, str], Row], size: int = 120) -> list[Row]:
    rng = random.Random(int(1000 * rate))
    texts = [TEXTS[number % len(TEXTS)] for number in range(size)]
    return [make(number, text, corrupted(text, rng, rate, ["banana", "on"])) for number, text in enumerate(texts)]


def only(found: Rescored) -> Row:
    (target,) = found.summary["targets"]
    return dict(target)


def test_scores_of_one_file_equal_values_computed_by_hand(write: Write) -> None:
    path = write(
        "mine",
        [
            {**leaderboard(0, "a b c d", "a x c"), "speaker": "p", "truncated": False},
            {**leaderboard(1, "e f", ""), "speaker": "q", "truncated": True},
            {**leaderboard(2, "g", "go on go on go on go on"), "speaker": "q"},
            {"audio_filepath": "x", "duration": 9.0, "text": "h", "error": "HTTP 500"},
        ],
    )
    found = rescore([path], normalizer_name="lower")
    target = only(found)
    assert target["name"] == "mine"
    # The first clip has a substitution and a deletion. The second clip has two deletions. The third clip has a
    # substitution and seven insertions.
    assert (target["substitutions"], target["deletions"], target["insertions"]) == (2, 3, 7)
    assert target["wer"] == 12 / 7
    assert (target["num_utterances"], target["num_reference_words"]) == (3, 7)
    assert (target["failures"], target["num_clips"], target["failure_rate"]) == (1, 4, 0.25)
    assert (target["empty_rate"], target["looping_rate"], target["truncated_rate"]) == (1 / 3, 1 / 3, 1 / 2)
    assert (target["rtfx"], target["num_timed"]) == (pytest.approx((2 + 3 + 4) / 0.3), 3)
    assert (found.summary["group_by"], found.summary["num_groups"], found.summary["left_out"]) == ("speaker", 2, 1)
    assert (target["normalizer"], target["cost"], target["scorer"]) == ("lower", "unit", "jiwer")


def test_scores_equal_those_of_the_texts(write: Write) -> None:
    rows = noisy(0.3, ours)
    texts, hypotheses = ([row[key] for row in rows] for key in ("text", "pred_text"))
    speakers = [row["metadata"]["speaker"] for row in rows]
    rule = normalizer("whisper_english")
    for cost in ("unit", "sclite"):
        target = only(rescore([write("mine", rows)], cost=cost))
        expected = score(texts, hypotheses, rule, num_bootstrap=2000, cost=cost)  # type: ignore[arg-type]
        assert {key: target[key] for key in expected.model_dump()} == expected.model_dump(mode="json")
        grouped = score(texts, hypotheses, rule, num_bootstrap=2000, cost=cost, groups=speakers)  # type: ignore[arg-type]
        assert tuple(target["wer_interval_by_group"]) == grouped.wer_interval
        assert target["ctc_wer"] == 0
        assert target["rtfx"] is None


def test_files_without_speech_have_insertions_per_hour(
    write: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """If all references are empty, a file has no word error rate, as in `evaluate`."""
    quiet = [{**ours(number, " ", "" if number else "thank you"), "duration": 3.0} for number in range(6)]
    loud = [{**row, "pred_text": "thank you"} for row in quiet]
    paths = [write("quiet", quiet), write("loud", loud)]
    assert main(["rescore", *map(str, paths), "--json", "--html", str(tmp_path / "page.html")]) == 0
    found = json.loads(capsys.readouterr().out)
    first, second = found["targets"]
    assert (first["wer"], first["wer_interval"], first["wer_interval_by_group"], first["ctc_wer"]) == (None,) * 4
    assert first["non_speech_insertions_per_hour"] == pytest.approx(2 / (18 / 3600))
    assert second["non_speech_insertions_per_hour"] == pytest.approx(12 / (18 / 3600))
    assert (found["differences"], found["num_reference_words"]) == ([], 0)
    assert "2,400.0" in Page((tmp_path / "page.html").read_text()).words
    assert main(["rescore", str(paths[0])]) == 0
    printed = capsys.readouterr().out
    assert "ins/h no speech" in printed
    assert "400.0" in printed
    assert "WER" not in printed
    assert main(["rescore", str(write("marks", [ours(0, "<noise>", "")]))]) == 2, "the text is not empty"


def test_rows_with_surrogates_huge_numbers_or_deep_nesting(
    write: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    odd = '{"audio_filepath": "a", "duration": 1, "text": "a", "pred_text": "a \\ud83d", "\\ud83d": "\\ud83d"}\n'
    path = write("odd", odd + odd.replace('"a", "d', '"b\\ud83d", "d').replace("ud83d", "ud83d\\ude00"))
    assert main(["rescore", str(path), "--html", str(tmp_path / "page.html")]) == 0
    assert "a \N{GRINNING FACE}" in (tmp_path / "page.html").read_text()
    refusals = {"1" * 400: "duration should be seconds, 0 or more, not Infinity", "[" * 90_000: "is not a JSON object"}
    for duration, message in refusals.items():
        capsys.readouterr()
        assert main(["rescore", str(write("odd", odd.replace('"duration": 1', f'"duration": {duration}')))]) == 2
        assert message in capsys.readouterr().err


def test_names_with_dots_are_kept(write: Write, tmp_path: Path) -> None:
    rows = noisy(0.2, leaderboard, 3)
    first, second = (write("a", rows).rename(tmp_path / name) for name in ("hyp.small", "hyp.large"))
    assert [target.name for target in read_targets([first, second])] == ["hyp.small", "hyp.large"]
    fourth = write("a", rows).rename(tmp_path / "a.json")
    third = write("a", rows)
    assert [target.name for target in read_targets([third, fourth])] == ["a.jsonl", "a.json"]


def test_a_failure_is_not_an_empty_hypothesis(write: Write) -> None:
    rows = noisy(0.2, leaderboard)
    failed = [
        {**row, "pred_text": None, "error": "timeout"} if number % 3 == 0 else row for number, row in enumerate(rows)
    ]
    kept = [row for number, row in enumerate(rows) if number % 3]
    target, expected = only(rescore([write("failed", failed)])), only(rescore([write("kept", kept)]))
    for key in ("wer", "cer", "deletions", "empty_rate", "num_utterances", "wer_interval"):
        assert target[key] == expected[key]
    assert (target["failure_rate"], expected["failure_rate"]) == (1 / 3, 0)


def test_several_files_are_compared_on_their_common_clips(write: Write) -> None:
    worse, better = noisy(0.4, leaderboard), noisy(0.05, ours)
    better[7] |= {"error": "HTTP 429", "pred_text": None}
    third = noisy(0.4, ours)[:100]
    paths = [write("worse", worse), write("better", list(reversed(better))), write("third", third)]
    found = rescore(paths, normalizer_name="lower")
    summary = found.summary
    assert (summary["num_utterances"], summary["left_out"], summary["baseline"]) == (99, 21, "worse")
    assert [target["failure_rate"] for target in summary["targets"]] == [0, 1 / 120, 0]
    ids = [row["id"] for row in found.rows[0]]
    assert [[row["id"] for row in rows] for rows in found.rows[1:]] == [ids, ids]
    # The columns of the first file determine the groups. This file has only the leaderboard's fields, and no speakers.
    assert summary["group_by"] is None
    texts = [row["text"] for row in found.rows[0]]
    hypotheses = [[row["pred_text"] for row in rows] for rows in found.rows]
    rule = normalizer("lower")
    for entry, other in zip(summary["differences"], hypotheses[1:], strict=True):
        expected = paired_difference(texts, hypotheses[0], other, rule, num_bootstrap=2000)
        assert (entry["difference"], tuple(entry["interval"])) == (expected.difference, expected.interval)
        test = matched_pairs(*([a.edits for a in align(texts, side, rule)] for side in (hypotheses[0], other)))
        assert (entry["mapsswe"]["z"], entry["mapsswe"]["num_segments"]) == (test.z, test.num_segments)
        assert entry["p_adjusted"] >= entry["p_value"]
    assert [entry["verdict"] for entry in summary["differences"]] == ["better", "no difference shown"]
    turned = rescore([paths[1], paths[0]], normalizer_name="lower").summary["differences"][0]
    assert turned["verdict"] == "worse"
    assert turned["mapsswe"]["z"] < 0 < turned["difference"]


def test_slices_cover_the_set(write: Write) -> None:
    summary = rescore([write("one", noisy(0.3, ours)), write("two", noisy(0.1, ours))]).summary
    assert {part["column"] for part in summary["slices"]} == {"duration", "speaker", "sex"}
    for column in ("duration", "speaker", "sex"):
        parts = [part for part in summary["slices"] if part["column"] == column]
        assert sum(part["num_utterances"] for part in parts) == summary["num_utterances"]
        errors = sum(part["wer"]["one"] * part["num_reference_words"] for part in parts)
        assert errors / summary["num_reference_words"] == pytest.approx(summary["targets"][0]["wer"])
    # Each slice by sex has three speakers, which are too few for an interval.
    assert all(part["intervals"]["one"] is None for part in summary["slices"] if part["column"] == "sex")


def test_files_can_have_other_columns_and_lack_durations(write: Write) -> None:
    rows = [{**row, "accent": "north"} for row in noisy(0.3, leaderboard)]
    rows[3] |= {"duration": None, "accent": "south"}
    found = rescore([write("mine", rows)], group_by="accent")
    assert {part["column"] for part in found.summary["slices"]} == {"accent"}
    assert found.summary["num_groups"] == 2
    assert only(found)["num_timed"] == 119


def test_names_of_files_are_unique(tmp_path: Path) -> None:
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "test.jsonl")
        paths[-1].write_text(json.dumps(leaderboard(0, "a", "a")))
    assert [target.name for target in read_targets(paths)] == ["a/test", "b/test"]


ROW = leaderboard(0, "a", "b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("hello\n", "mine.jsonl, line 1: audio_filepath duration text pred_text"),
        ("[1]\n", "mine.jsonl, line 1:"),
        ("\n\n", "mine.jsonl"),
        ([ROW, {"text": "a", "id": "x"}], "mine.jsonl, line 2: pred_text (it has text, id)"),
        ([{"pred_text": "a"}], "line 1: text audio_filepath (it has pred_text)"),
        ([{**ROW, "pred_text": None}], "line 1: pred_text null"),
        ([{**ROW, "text": 3}], "line 1: text 3"),
        ([{**ROW, "error": 500}], "line 1: error 500"),
        ([{**ROW, "duration": "3 s"}], 'line 1: duration "3 s"'),
        ([{**ROW, "time": -1}], "line 1: time -1"),
        ([{**ROW, "truncated": "no"}], 'line 1: truncated true false "no"'),
        ([{**ROW, "metadata": []}], "line 1: metadata []"),
        ([ROW, leaderboard(1, "c", "c"), ROW], "line 3: 'sample_0' line 1 twice id"),
        ([{**ROW, "error": "down"}], "mine (mine: 0 of 1 clips have a hypothesis)"),
        ([{**ROW, "text": "<noise>"}], "mine.jsonl: 'whisper_english'"),
    ],
)
def test_other_files_are_rejected(write: Write, content: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        rescore([write("mine", content)])
    assert_names(caught.value, message)


def test_impossible_comparisons_are_rejected(write: Write, tmp_path: Path) -> None:
    path, shifted = write("mine", noisy(0.2, ours)), noisy(0.2, ours)
    shifted[2]["text"] = "something else"
    elsewhere = write("elsewhere", [{**ROW, "audio_filepath": "elsewhere"}])
    binary = tmp_path / "sound.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    asked: list[tuple[Callable[[], object], str]] = [
        (
            lambda: rescore([path, write("shifted", shifted)]),
            "mine shifted references 1 of 120 sample_2: 'call the doctor at home' 'something else'",
        ),
        (
            lambda: rescore([path, elsewhere]),
            "(mine: 120 of 120 sample_0; elsewhere: 1 of 1 elsewhere);",
        ),
        (lambda: rescore([path, path]), f"{path} twice"),
        (lambda: rescore([tmp_path / "no.jsonl"]), "no.jsonl does not exist"),
        (lambda: rescore([tmp_path]), f"{tmp_path} is a folder"),
        (lambda: rescore([binary]), "sound.jsonl"),
        (lambda: rescore([path], cost="nist"), "'nist'; unit, sclite"),
        (lambda: rescore([path], normalizer_name="x"), "'x'; none, lower, basic,"),
        (lambda: rescore([path], group_by="room"), "mine.jsonl: 'room' (columns: sex, speaker)"),
    ]
    for call, message in asked:
        with pytest.raises(UserError) as caught:
            call()
        assert_names(caught.value, message)


def test_the_table_shows_counts_rates_and_verdicts(write: Write) -> None:
    rows = noisy(0.4, ours)
    rows[0] |= {"error": "HTTP 500"}
    found = rescore([write("worse", rows), write("better", noisy(0.05, ours))], cost="sclite")
    text = rescore_table(found)
    assert "119 utterances; " in text
    assert "1 clips left out" in text
    assert "cost sclite (tiny-audio" in text
    assert "Failed: the share of the target's clips" in text
    # All six speakers favor the same system. By chance, this happens with probability 1/32.
    number = r" +-\d+\.\d\d +\[-\d+\.\d\d, -\d+\.\d\d\]"
    assert re.search(rf"better +better{number} +0\.0\d\d +0\.0\d\d +\d+ +\d+\.\d\d\d +<0\.001", text)
    assert "whole groups by speaker" in text
    assert "RTFx" not in text  # no file has times
    assert "worse, the worst" in text
    assert "CTC head" in text
    assert "warning:" not in text
    one = rescore_table(rescore([write("timed", [leaderboard(0, "stop now", "stop <b>")])]))
    assert "CTC head" not in one
    assert "RTFx" in one
    assert "failed: " not in one
    assert "[-now-]" in one


def test_too_few_speakers_give_a_warning(write: Write) -> None:
    """With three speakers, p is at least 0.25, so the verdict is always "no difference shown". A warning says so."""
    files = []
    for name, rate in (("worse", 0.5), ("better", 0.01)):
        rows = noisy(rate, ours)
        for number, row in enumerate(rows):
            row["metadata"]["speaker"] = f"s{number % 3}"
        files.append(write(name, rows))
    found = rescore(files)
    assert [entry["verdict"] for entry in found.summary["differences"]] == ["no difference shown"]
    for text in (rescore_table(found), Page(render_targets(found, audio_reader([]))).words):
        assert "3 groups by speaker" in text
        assert "0.25" in text
    assert rescore(files, group_by="sex").summary["num_groups"] == 2


def test_numbers_that_are_joined_to_one_word_give_a_warning(write: Write) -> None:
    path = write(
        "digits", [leaderboard(0, "room one two three", "room one two four"), leaderboard(1, "go on", "go on")]
    )
    found = rescore([path])
    assert (found.summary["glued_references"], only(found)["num_reference_words"]) == (1, 4)
    assert "warning: in 1 references, this normalizer joins digits" in rescore_table(found)
    page = render_targets(found, audio_reader([path]))
    assert "In 1 references, this normalizer joins digits" in page
    assert rescore([path], normalizer_name="lower").summary["glued_references"] == 0


@pytest.fixture
def with_sound(tmp_path: Path, write: Write) -> tuple[Path, Path]:
    """Write two files of hypotheses in the folder of their clips."""
    (tmp_path / "flac").mkdir()
    clips = list(enumerate(TEXTS[:3]))
    for number, _ in clips:
        soundfile.write(tmp_path / f"flac/{number}.flac", np.zeros(1600, dtype=np.float32), 16_000)
    rows = [{**leaderboard(number, text, text), "audio_filepath": f"flac/{number}.flac"} for number, text in clips]
    others = [{**row, "pred_text": "<script>alert(1)</script>"} for row in rows]
    return write("one", rows), write("two", others)


def test_the_page_shows_scores_and_plays_audio(with_sound: tuple[Path, Path], write: Write) -> None:
    found = rescore(with_sound, normalizer_name="none")
    page = render_targets(found, audio_reader(with_sound))
    assert page.count('<audio controls="" preload="metadata" src="data:audio/flac;base64,') == 3
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "Where they differ most" in page
    assert "Difference from one" in page
    assert "MAPSSWE" in page
    assert "each edit costs 1 (scorer jiwer" in page
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)

    path = write("alone", noisy(0.3, ours))
    alone = rescore([path], cost="sclite")
    page = render_targets(alone, audio_reader([path]))
    assert "Where they differ most" not in page
    assert "as in NIST&#x27;s sclite" in page
    assert "no audio available" in page
    assert "by speaker" in page

    same = rescore([write("a", [ROW]), write("b", [ROW])])
    page = render_targets(same, audio_reader([]))
    assert "In every utterance, all targets have the same number of errors." in page


def test_the_command_prints_scores_and_writes_a_page(
    with_sound: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = map(str, with_sound)
    page = tmp_path / "page.html"
    assert main(["rescore", one, two, "--normalizer", "lower", "--cost", "sclite", "--html", str(page), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [target["name"] for target in summary["targets"]] == ["one", "two"]
    assert summary["cost"] == "sclite"
    assert page.read_text().startswith("<!doctype html>")
    assert main(["rescore", one]) == 0
    assert "normalizer whisper_english" in capsys.readouterr().out
    assert main(["rescore", one, "--html", str(tmp_path / "no" / "page.html")]) == 2
    assert f"{tmp_path / 'no'} " in capsys.readouterr().err
    assert main(["rescore", str(tmp_path / "no.jsonl")]) == 2


def test_rescore_imports_no_torch_and_scoring_no_jiwer(with_sound: tuple[Path, Path], tmp_path: Path) -> None:
    code = (
        "import sys, tiny_audio.analysis.scoring; from tiny_audio.cli import main; "
        "print(sorted({'jiwer', 'torch', 'whisper_normalizer'} & {*sys.modules})); "
        f"code = main(['rescore', *{[str(path) for path in with_sound]!r}, '--html', {str(tmp_path / 'p.html')!r}]); "
        "print(code, sorted({'torch', 'transformers', 'datasets', 'soundfile', 'pyarrow'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("[]", "0 []")
