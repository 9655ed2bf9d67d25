"""Scores with the rules of the Open ASR Leaderboard, compared with those of the leaderboard's own scorer."""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import re
from typing import Any

import pytest

from tests.support.make_leaderboard_golden import GOLDEN
from tiny_audio.analysis.rescore import read_targets, rescore
from tiny_audio.analysis.scoring import align, normalizer, paired_difference, score
from tiny_audio.config import UserError

pytest.importorskip("kaldialign", reason="kaldialign is not installed")

CONTENT: dict[str, Any] = json.loads(gzip.decompress(GOLDEN.read_bytes()))
LANGUAGES = ("de", "es", "fr", "it", "pt")
NONE, LOWER = normalizer("none"), normalizer("lower")


def texts(name: str) -> tuple[list[str], list[str]]:
    rows = CONTENT["sets"][name]
    return [row["text"] for row in rows], [row["pred_text"] for row in rows]


def test_english_utterances_equal_the_leaderboards():
    assert len(CONTENT["english"]) == 700
    aligned = align(*texts("english"), normalizer("open_asr_leaderboard"))
    found = [[each.insertions, each.deletions, each.substitutions, each.num_reference_words] for each in aligned]
    assert found == CONTENT["english"]


@pytest.mark.parametrize("name", ["english", *LANGUAGES])
def test_sets_equal_the_leaderboards(name):
    if name != "english":
        pytest.importorskip("num2words")
    rule = normalizer("open_asr_leaderboard" if name == "english" else f"open_asr_leaderboard_{name}")
    found, expected = score(*texts(name), rule, num_bootstrap=100), CONTENT["scores"][name]
    assert (found.insertions, found.deletions, found.substitutions) == tuple(
        expected[key] for key in ("ins", "del", "sub")
    )
    assert round(100 * found.wer, 2) == expected["wer"]
    assert (found.scorer, found.scorer_version) == ("kaldialign", importlib.metadata.version("kaldialign"))
    assert found.normalizer_version.startswith("open_asr_leaderboard d1e99b2, ")


def test_chunks_are_joined_to_recordings_before_scoring(tmp_path):
    rows = [
        {"audio_filepath": f"{index}.wav", "duration": 2.0, "time": 0.5, **row}
        for index, row in enumerate(CONTENT["sets"]["chunked"])
    ]
    path = tmp_path / "chunks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (found,) = rescore([path], normalizer_name="open_asr_leaderboard").scores
    expected = CONTENT["scores"]["chunked"]
    assert [found[key] for key in ("insertions", "deletions", "substitutions")] == [
        expected[key] for key in ("ins", "del", "sub")
    ]
    assert (round(100 * found["wer"], 2), found["rtfx"]) == (expected["wer"], expected["rtfx"])
    assert (found["num_utterances"], found["num_clips"]) == (6, 6)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "edits"),
    [
        ("the white paper is good", "the whitepaper is good", "CCCCC"),
        ("the whitepaper is good", "the white paper is good", "CCCC"),
        ("some times and some where", "sometimes and somewhere", "CCCCC"),
        ("book store", "books tore", "SS"),
        ("a b", "ab c", "CCI"),
        ("white paper", "", "DD"),
        ("", "white paper", "II"),
    ],
)
def test_compounds(reference, hypothesis, edits):
    (found,) = align([reference], [hypothesis], NONE, cost="compounds")
    assert found.edits == edits
    assert found.num_reference_words == len(reference.split())


@pytest.mark.parametrize(
    ("reference", "hypothesis", "edits", "words"),
    [
        ("der bahn hof ist zu", "der bahnhof ist zu", "CCCCC", 4),
        ("ab cd e", "a bcd e", "CCC", 2),  # only the word boundary differs
        ("ab cd e", "a bcx e", "SSC", 3),
        ("ja", "nein doch", "SI", 1),
    ],
)
def test_joined_words_count_once(reference, hypothesis, edits, words):
    (found,) = align([reference], [hypothesis], NONE, cost="joined")
    assert (found.edits, found.num_reference_words) == (edits, words)
    assert [pair[0] for pair in found.pairs if pair[0]] == reference.split()


def test_systems_that_join_other_words_have_their_own_numbers_of_words(tmp_path):
    reference, apart, joined = (
        f"il y a {text}" for text in ("beau coup de monde ici", "beau coup de monde la", "beaucoup de monde la")
    )
    for name, (text, ctc) in {"a": (apart, joined), "b": (joined, apart)}.items():
        rows = (
            {"audio_filepath": f"{number}.wav", "duration": 2.0, "speaker": f"s{number % 6}"}
            | {"text": reference, "pred_text": text, "ctc_text": ctc}
            for number in range(60)
        )
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rates, differences = {"a": 1 / 8, "b": 1 / 7}, []
    for names in ("ab", "ba"):
        found = rescore([tmp_path / f"{name}.jsonl" for name in names], normalizer_name="lower", cost="joined")
        for target in found.scores:
            assert target["wer"] == rates[target["name"]]
            assert target["wer_interval_by_group"] == target["wer_interval"] == [target["wer"]] * 2
            assert target["ctc_wer"] == rates[{"a": "b", "b": "a"}[target["name"]]]
        (entry,) = found.comparison.differences
        assert entry.difference == rates[names[1]] - rates[names[0]]
        assert entry.interval == (entry.difference,) * 2
        assert entry.ctc_difference == -entry.difference
        assert entry.p_value == pytest.approx(2**-5, abs=0.01)  # all six speakers favor the same system
        assert all(part.wer == rates for part in found.comparison.slices)
        pair = paired_difference(
            [reference] * 60, *([{"a": apart, "b": joined}[name]] * 60 for name in names), LOWER, cost="joined"
        )
        assert (pair.difference, pair.interval) == (entry.difference, entry.interval)
        differences.append(entry.difference)
    assert differences[0] == -differences[1] > 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Um, it's John's e-mail, all right?", "it is john s email alright"),
        ("The B B C and its 5 G x-ray", "the bbc and its 5g xray"),
        ("a b is no run, a b c is", "a b is no run abc is"),
        ("Kathryn met Stephen and Geoff at the THEATRE", "catherine met steven and jeff at the theater"),
        ("Kinda the cause, OK?", "kinda the cause okay"),
        ("It's nine a.m. and $2 and ¢7", "it is 9 am and $2.07"),
        ("huh uhuh [noise] (laughs)", ""),
    ],
)
def test_english_rules(text, expected):
    assert normalizer("open_asr_leaderboard")(text) == expected


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("de", "Um 12 Uhr, 1 500 Euro!", "um zwölf uhr eintausendfünfhundert euro"),
        ("fr", "L'école a 80 élèves.", "l école a quatre-vingts élèves"),
        ("pt", "São 3 (três) pães", "são três pães"),
        ("es", "9" * 5000, None),
    ],
)
def test_rules_of_other_languages(language, text, expected):
    pytest.importorskip("num2words")
    found = normalizer(f"open_asr_leaderboard_{language}")(text)
    assert found if expected is None else found == expected


def test_the_rule_of_april_2025_has_its_own_name():
    former = normalizer("open_asr_leaderboard_2025_04")
    assert (former.name, former.cost) == ("open_asr_leaderboard_2025_04", "unit")
    assert former.version.startswith("open_asr_leaderboard 0c261bf, ")
    assert normalizer("open_asr_leaderboard").cost == "compounds"


@pytest.mark.parametrize("cost", ["compounds", "joined"])
def test_a_missing_package_is_named(cost, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UserError, match=re.escape("pip install kaldialign")):
        align(["a"], ["a"], NONE, cost=cost)


def chunk(parent: str, index: int, **changes: Any) -> dict[str, Any]:
    row = {
        "audio_filepath": f"{parent}{index}.wav",
        "duration": 1.0,
        "text": f"all of {parent}",
        "pred_text": f" w{index}",
    }
    return row | {"parent_id": parent, "chunk_index": index, "speaker": parent} | changes


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([chunk("a", 0), chunk("a", 2)], "chunk 1 of the recording 'a' is missing"),
        ([chunk("a", 0), chunk("a", 1, text="other")], "have different references"),
        ([chunk("a", 0, chunk_index="x")], "should be a whole number"),
        (
            [chunk("a", 0, metadata={"chunk_index": None})],
            "a0.wav: chunk_index should be a whole number of at least 0, not null; number the",
        ),
        (
            [chunk("a", 0, metadata={"chunk_index": 0.5})],
            'a0.wav: chunk_index should be a whole number of at least 0, not "0.5"',
        ),
        (
            [chunk("a", -1)],
            'a-1.wav: chunk_index should be a whole number of at least 0, not "-1"; number the chunks of each',
        ),
        ([chunk("a", 0), chunk("a", 10**12)], "chunk 1 of the recording 'a' is missing"),
        ([chunk("a", 0), chunk("a", 7, chunk_index="0")], "a0.wav and a7.wav are both chunk 0 of the recording 'a'"),
    ],
)
def test_chunks_that_cannot_be_joined_are_rejected(tmp_path, rows, message):
    path = tmp_path / "chunks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=message):
        read_targets([path])


def test_chunks_are_joined_in_order_and_fail_as_one_recording(tmp_path):
    path = tmp_path / "chunks.jsonl"
    failed = {"error": "too long", "pred_text": None}
    rows = [chunk("b", 1), chunk("a", 0, **failed), chunk("b", 0, time=0.5), chunk("a", 1), chunk("b", 2, pred_text="")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_targets([path])[0].rows
    assert list(found) == ["a", "b"]
    assert found["a"]["error"] == "a0.wav: too long"
    assert {key: found["b"][key] for key in ("pred_text", "duration", "time", "error", "metadata")} == {
        "pred_text": "w0 w1",
        "duration": 3.0,
        "time": None,
        "error": None,
        "metadata": {"parent_id": "b", "speaker": "b"},
    }


def test_ids_of_recordings_can_be_numbers(tmp_path):
    path = tmp_path / "chunks.jsonl"
    path.write_text("".join(json.dumps(chunk("7", index, parent_id=7)) + "\n" for index in (1, 0)))
    (row,) = read_targets([path])[0].rows.values()
    assert (row["id"], row["pred_text"]) == ("7", "w0 w1")


@pytest.mark.parametrize("metadata", [{}, {"parent_id": None, "chunk_index": None}])
def test_rows_are_not_joined_if_some_are_not_chunks(tmp_path, metadata):
    path = tmp_path / "mixed.jsonl"
    other = {"audio_filepath": "b.wav", "duration": 1.0, "text": "b", "pred_text": "b", "metadata": metadata}
    rows = [chunk("a", 0), other]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(read_targets([path])[0].rows) == ["a0.wav", "b.wav"]
