"""Alignments equal those of NIST's sclite. The matched-pairs test MAPSSWE equals that of NIST's sc_stats.

The results of sclite and sc_stats come from a golden file. If the programs are installed, two tests also run them.
"""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import sclite
from tests.support.fast import fast_ones
from tiny_audio.analysis.scoring import NormalizerName, align, normalizer
from tiny_audio.analysis.significance import matched_pairs, matched_segments

GOLDEN: dict[str, Any] = json.loads(
    gzip.decompress(Path(sclite.__file__).with_name("sclite_golden.json.gz").read_bytes())
)
SPEECH = Path(__file__).parents[3] / "shared" / "speech"
NONE = normalizer("none")


def edits(references: Sequence[str], hypotheses: Sequence[str]) -> list[str]:
    return [alignment.edits for alignment in align(references, hypotheses, NONE, cost="sclite")]


def texts_of(name: str) -> list[list[str]]:
    """Return the normalized texts of a set in the golden file: references, and the hypotheses of two systems."""
    given_texts: list[list[str]] | None = GOLDEN["sets"][name]["texts"]
    if given_texts is not None:
        return given_texts
    return [[NONE(row[key]) for row in GOLDEN["rows"]] for key in ("reference", "baseline", "other")]


def assert_same_test(theirs: dict[str, Any], baseline: Sequence[str], other: Sequence[str]) -> None:
    """Compare our result of MAPSSWE with that of sc_stats.

    The tolerances are needed because sc_stats prints only three decimals, and truncates ``z`` to two decimals before it
    computes p.
    """
    ours = matched_pairs(baseline, other)
    assert ours.num_segments == theirs["num_segments"]
    for key in ("mean", "standard_deviation", "z"):
        assert getattr(ours, key) == pytest.approx(theirs[key], abs=0.00051), key
    cut = math.floor(abs(ours.z) * 100) / 100
    assert math.erfc(cut / math.sqrt(2)) == pytest.approx(theirs["p_value"], abs=0.00061)
    assert ours.p_value <= theirs["p_value"] + 0.00051
    assert ours.p_value == pytest.approx(theirs["p_value"], abs=0.009)


@pytest.mark.parametrize("name", list(GOLDEN["sets"]))
def test_alignments_equal_those_of_sclite(name: str) -> None:
    references, *systems = texts_of(name)
    assert len(references) >= 500
    for key, hypotheses in zip(("baseline", "other"), systems, strict=True):
        ours = align(references, hypotheses, NONE, cost="sclite")
        for place, (alignment, theirs) in enumerate(zip(ours, GOLDEN["sets"][name][key], strict=True)):
            counts = (alignment.substitutions, alignment.deletions, alignment.insertions)
            assert counts == (theirs.count("S"), theirs.count("D"), theirs.count("I")), place
            assert alignment.edits == theirs, place


@pytest.mark.parametrize("name", list(GOLDEN["sets"]))
def test_mapsswe_equals_that_of_sc_stats(name: str) -> None:
    entry = GOLDEN["sets"][name]
    assert sum(part["p_value"] > 0.001 for part in entry["mapsswe"]) >= 5
    for part in entry["mapsswe"]:
        rows = slice(*part["rows"])
        assert_same_test(part, entry["baseline"][rows], entry["other"][rows])


@pytest.mark.parametrize("name", list(GOLDEN["sets"]))
def test_unit_costs_give_the_counts_of_jiwer(name: str) -> None:
    references, *systems = texts_of(name)
    for hypotheses in systems:
        aligned = align(references, hypotheses, NONE)
        for reference, hypothesis, ours in zip(references, hypotheses, aligned, strict=True):
            theirs = jiwer.process_words(reference, hypothesis)
            counts = (theirs.substitutions, theirs.deletions, theirs.insertions)
            assert (ours.substitutions, ours.deletions, ours.insertions) == counts


def test_normalized_texts_equal_those_of_the_golden_file() -> None:
    for name, entry in GOLDEN["sets"].items():
        rule = normalizer(name)
        if entry["texts"] is None or entry["normalizer_version"] != rule.version:
            continue
        assert [[rule(row[key]) for row in GOLDEN["rows"]] for key in ("reference", "baseline", "other")] == entry[
            "texts"
        ]


def test_unit_and_sclite_costs_give_different_alignments() -> None:
    (unit,) = align(["a b c d e"], ["d e x y z"], NONE)
    (weighed,) = align(["a b c d e"], ["d e x y z"], NONE, cost="sclite")
    assert (unit.substitutions, unit.deletions, unit.insertions) == (5, 0, 0)
    assert (weighed.substitutions, weighed.deletions, weighed.insertions, weighed.hits) == (0, 3, 3, 2)


words = st.lists(st.sampled_from("abcd"), max_size=9)


@settings(deadline=None)
@given(words, words)
def test_alignments_have_the_minimum_cost(reference: list[str], hypothesis: list[str]) -> None:
    """The cost equals the minimum that dynamic programming finds, and the alignment contains both texts."""
    least: dict[tuple[int, int], int] = {}
    for i in range(len(reference) + 1):
        for j in range(len(hypothesis) + 1):
            ways = [least[i - 1, j] + 3] if i else []
            ways += [least[i, j - 1] + 3] if j else []
            ways += [least[i - 1, j - 1] + 4 * (reference[i - 1] != hypothesis[j - 1])] if i and j else []
            least[i, j] = min(ways, default=0)
    (alignment,) = align([" ".join(reference)], [" ".join(hypothesis)], NONE, cost="sclite")
    cost = 4 * alignment.substitutions + 3 * alignment.deletions + 3 * alignment.insertions
    assert cost == least[len(reference), len(hypothesis)]
    assert [word for word, _ in alignment.pairs if word is not None] == reference
    assert [word for _, word in alignment.pairs if word is not None] == hypothesis


@pytest.mark.parametrize("num_words", fast_ones([3_000, 10_000], 3_000))
def test_one_hour_can_be_aligned_at_once(num_words: int) -> None:
    """An hour of speech has about ten thousand words. About a tenth of the words are deleted or replaced."""
    rng = random.Random(0)
    reference = [f"w{rng.randrange(3000)}" for _ in range(num_words)]
    hypothesis = [word for word in reference if rng.random() > 0.05]
    hypothesis = [word if rng.random() > 0.05 else "x" for word in hypothesis]
    for cost in ("unit", "sclite"):
        (alignment,) = align([" ".join(reference)], [" ".join(hypothesis)], NONE, cost=cost)  # type: ignore[arg-type]
        assert 0.09 * num_words < alignment.errors <= 0.11 * num_words
        assert alignment.num_reference_words == len(reference)


@pytest.mark.parametrize(
    ("baseline", "other", "expected"),
    [
        ("", "", []),
        ("CCC", "CCC", []),
        ("SCCS", "CCCC", [(1, 0), (1, 0)]),
        ("SCS", "CCC", [(2, 0)]),
        ("SCCS", "CSCC", [(2, 1)]),  # one word that is right in both systems does not end a segment
        ("SCICS", "CCCC", [(3, 0)]),  # an insertion is between the two words that are right in both systems
        ("CC", "CCI", [(0, 1)]),
        ("II", "", [(2, 0)]),
    ],
)
def test_segments_equal_those_found_by_hand(baseline: str, other: str, expected: list[tuple[int, int]]) -> None:
    assert list(matched_segments(baseline, other)) == expected


def test_swapping_the_systems_changes_the_sign() -> None:
    entry = GOLDEN["sets"]["none"]
    one, other = (
        matched_pairs(*pair) for pair in ((entry["baseline"], entry["other"]), (entry["other"], entry["baseline"]))
    )
    assert (one.z, one.num_segments, one.p_value) == (-other.z, other.num_segments, other.p_value)


@pytest.mark.parametrize("edits_of_both", [("CC", "CC"), ("SCC", "CCC")])
def test_fewer_than_two_segments_give_no_result(edits_of_both: tuple[str, str]) -> None:
    found = matched_pairs(*([edit] for edit in edits_of_both))
    assert (found.z, found.p_value) == (0.0, 1.0)


@pytest.mark.skipif(not sclite.AVAILABLE, reason="needs Debian's package sctk")
@pytest.mark.parametrize("seed", [0, 1])
def test_random_strings_give_the_results_of_sclite(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    vocabulary = [f"w{number}" for number in range(rng.choice((3, 8, 40)))]

    def strings(low: int) -> list[str]:
        return [" ".join(rng.choices(vocabulary, k=rng.randint(low, 18))) for _ in range(600)]

    assert_live(tmp_path, strings(1), strings(0), strings(0))


@pytest.mark.skipif(not sclite.AVAILABLE, reason="needs Debian's package sctk")
@pytest.mark.skipif(not SPEECH.is_dir(), reason="needs the recorded speech")
@pytest.mark.parametrize("name", ["none", "whisper_english"])
def test_real_texts_give_the_results_of_sclite(name: NormalizerName, tmp_path: Path) -> None:
    rng = random.Random(0)
    lists = ("librispeech-sample/all.jsonl", "an4/dev.jsonl", "an4/train.jsonl")
    lines = [line for path in lists for line in (SPEECH / path).read_text(encoding="utf-8").splitlines()]
    references = [json.loads(line)["text"] for line in lines][:700]
    vocabulary = sorted({word for text in references for word in text.split()})
    rule = normalizer(name)
    systems = [[sclite.corrupted(text, rng, rate, vocabulary) for text in references] for rate in (0.24, 0.2)]
    assert_live(tmp_path, *([rule(text) for text in texts] for texts in (references, *systems)))


def assert_live(folder: Path, references: list[str], baseline: list[str], other: list[str]) -> None:
    theirs = sclite.run_sclite(folder, references, baseline, other)
    ours = [edits(references, hypotheses) for hypotheses in (baseline, other)]
    assert ours == theirs
    assert_same_test(sclite.run_mapsswe(folder, references, baseline, other), *ours)
