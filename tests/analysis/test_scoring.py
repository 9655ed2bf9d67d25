"""Scores, compared with jiwer's and with values computed by hand."""

from __future__ import annotations

import importlib.metadata
import re

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_audio
from tiny_audio.analysis.normalizer_names import NORMALIZER_NAMES
from tiny_audio.analysis.scoring import (
    Score,
    Transcripts,
    align,
    confusions,
    glues_words,
    loops,
    normalizer,
    paired_difference,
    score,
    score_set,
    score_transcripts,
)
from tiny_audio.config import UserError

LOWER = normalizer("lower")
ENGLISH = normalizer("whisper_english")

texts = st.lists(st.sampled_from(list("abcde")), max_size=8).map(" ".join)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=12).filter(lambda rows: any(a for a, _ in rows))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("none", "  It's\t the\n END. ", "It's the END."),
        ("lower", "  It's\t the\n END. ", "it's the end."),
        ("basic", " It's (laughs) the END.", "it s the end"),
        ("whisper_english", "Uh, it's the COLOUR [noise] of $5!", "it is the color of $5"),
        ("whisper_english", "one two three", "123"),
        ("whisper_english", "", ""),
        ("open_asr_leaderboard_2025_04", "The U.S.A. is ... big...", "the usa is big"),
        ("open_asr_leaderboard_2025_04", "C.E.O.s on T.V. at 5 p.m. today.", "ceos on tv at 5 pm today"),
        ("open_asr_leaderboard_2025_04", "Uh, it's the COLOUR [noise] of $5!", "it is the color of $5"),
        ("open_asr_leaderboard_2025_04", "Kinda the cause, I dunno", "kinda the cause i dunno"),
        ("whisper_english", "Kinda the cause, I dunno", "kind of the because i do not know"),
        ("open_asr_leaderboard_2025_04", "archaeology travelogue cancellation", "archeology travelog cancelation"),
        ("open_asr_leaderboard_2025_04", "one two three, u.m. um", "123 um"),
        ("open_asr_leaderboard_2025_04", "", ""),
    ],
)
def test_normalizers(name, text, expected):
    assert normalizer(name)(text) == expected


def test_normalizers_have_a_version():
    assert (LOWER.name, LOWER.version) == ("lower", "2")
    assert re.fullmatch(r"NFC, whisper-normalizer \d+\.\d+\.\d+", ENGLISH.version)
    assert normalizer("basic").version == ENGLISH.version
    leaderboard = normalizer("open_asr_leaderboard_2025_04")
    assert leaderboard.version == f"open_asr_leaderboard 0c261bf, {ENGLISH.version}"


def test_whisper_english_is_not_idempotent_as_documented():
    assert ENGLISH("oh one") == "01"
    assert ENGLISH("01") == "one"


@pytest.mark.parametrize("text", ["1" * 5000, "5" * 5000 + " million", "nine " * 5000])
def test_whisper_english_accepts_very_long_numbers(text):
    assert ENGLISH(text)


def test_an_unknown_normalizer_is_rejected():
    allowed = ", ".join(NORMALIZER_NAMES)
    message = f"unknown normalizer 'whisper'; allowed: {allowed}; choose one of these"
    with pytest.raises(UserError, match=re.escape(message)):
        normalizer("whisper")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three", True),
        ("flight ONE oh one", True),
        ("double seven", True),
        ("one hundred men", True),
        ("twenty one", True),
        ("twenty-one", False),
        ("one", False),
        ("the first one", False),
        ("i'm in room 5", False),
        ("uh it was 7 and he won't", False),
        ("(one two) at 6", False),
        ("", False),
    ],
)
def test_glues_words(text, expected):
    assert glues_words(text, ENGLISH) is expected
    assert not glues_words(text, LOWER)
    assert not glues_words(text, normalizer("basic"))


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("a b c", "a x c d", (("a", "a"), ("b", "x"), ("c", "c"), (None, "d"))),
        ("a b", "", (("a", None), ("b", None))),
        ("", "a", ((None, "a"),)),
        ("", "", ()),
    ],
)
def test_align(reference, hypothesis, expected):
    assert align([reference], [hypothesis], LOWER)[0].pairs == expected


def test_empty_texts_can_be_aligned():
    assert align([], [], LOWER) == []


@given(pairs)
@settings(max_examples=40, deadline=None)
def test_counts_are_consistent_and_equal_jiwers(rows):
    references, hypotheses = map(list, zip(*rows, strict=True))
    result = score(references, hypotheses, LOWER, num_bootstrap=100)
    alignments = align(references, hypotheses, LOWER)
    theirs = jiwer.process_words(references, hypotheses)
    assert (result.substitutions, result.deletions, result.insertions) == (
        theirs.substitutions,
        theirs.deletions,
        theirs.insertions,
    )
    assert result.wer == pytest.approx(theirs.wer)
    assert result.cer == pytest.approx(jiwer.cer(references, hypotheses))
    assert sum(a.hits + a.substitutions + a.deletions for a in alignments) == result.num_reference_words
    assert sum(a.hits + a.substitutions + a.insertions for a in alignments) == sum(len(b.split()) for b in hypotheses)
    for (reference, hypothesis), alignment in zip(rows, alignments, strict=True):
        assert [word for word, _ in alignment.pairs if word is not None] == reference.split()
        assert [word for _, word in alignment.pairs if word is not None] == hypothesis.split()


@given(pairs, st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_interval_contains_the_estimate(rows, seed):
    references, hypotheses = map(list, zip(*rows, strict=True))
    result = score(references, hypotheses, LOWER, num_bootstrap=200, seed=seed)
    low, high = result.wer_interval
    assert low - 1e-12 <= result.wer <= high + 1e-12


@given(pairs)
@settings(max_examples=40, deadline=None)
def test_identical_texts_have_no_error(rows):
    references = [reference for reference, _ in rows]
    result = score(references, references, ENGLISH, num_bootstrap=100)
    assert (result.wer, result.cer, result.wer_interval) == (0, 0, (0, 0))


@given(pairs)
@settings(max_examples=40, deadline=None)
def test_paired_difference_is_antisymmetric(rows):
    references, hypotheses = map(list, zip(*rows, strict=True))
    one = paired_difference(references, references, hypotheses, LOWER, num_bootstrap=100)
    other = paired_difference(references, hypotheses, references, LOWER, num_bootstrap=100)
    assert one.difference == -other.difference == one.wer_other - one.wer_baseline
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]))
    assert one.probability_better == pytest.approx(1 - other.probability_better)


def test_a_score_equals_values_computed_by_hand():
    result = score(["a b c d", "", "e f"], ["a x c", "y", ""], LOWER)
    assert result.num_utterances == 3
    assert result.num_reference_words == 6
    assert (result.substitutions, result.deletions, result.insertions) == (1, 3, 1)
    assert result.wer == 5 / 6
    assert result.empty_hypotheses == 1
    assert (result.normalizer, result.normalizer_version) == ("lower", "2")
    assert result.scorer == "jiwer"
    assert result.scorer_version == importlib.metadata.version("jiwer")
    assert Score.model_validate_json(result.model_dump_json()) == result


def test_errors_are_pooled_not_averaged():
    assert score(["a", "a b c d e f g h i"], ["x", "a b c d e f g h i"], LOWER).wer == 0.1


def test_the_interval_is_determined_by_the_seed():
    references = ["a b c"] * 30
    hypotheses = ["a b c", "a x c", "x"] * 10
    first, again, other = (score(references, hypotheses, LOWER, seed=seed).wer_interval for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_the_interval_has_the_width_of_the_binomial():
    rng = np.random.default_rng(0)
    hypotheses = ["x" if wrong else "a" for wrong in rng.random(2000) < 0.1]
    result = score(["a"] * 2000, hypotheses, LOWER, num_bootstrap=2000)
    half = 1.96 * (result.wer * (1 - result.wer) / 2000) ** 0.5
    assert result.wer_interval == pytest.approx((result.wer - half, result.wer + half), abs=0.002)


def test_groups_are_resampled_together():
    references = ["a"] * 400
    hypotheses = ["a" if i % 20 else "x" for i in range(400)]
    speakers = [str(i % 20) for i in range(400)]  # one speaker has all errors
    alone = score(references, hypotheses, LOWER)
    grouped = score(references, hypotheses, LOWER, groups=speakers)
    assert (alone.num_groups, grouped.num_groups) == (None, 20)
    assert alone.wer == grouped.wer
    assert np.diff(grouped.wer_interval) > 3 * np.diff(alone.wer_interval)


def test_an_unknown_speaker_is_a_separate_group():
    references, hypotheses = ["a", "b", "c", "d"], ["a", "x", "c", "x"]
    unknown = score(references, hypotheses, LOWER, groups=[None] * 4)
    assert unknown.num_groups == 4
    assert unknown.wer_interval == score(references, hypotheses, LOWER).wer_interval
    assert score(references, hypotheses, LOWER, groups=["1", None, None, "1"]).num_groups == 3


def test_resamples_without_reference_words_are_omitted():
    low, high = score(["", "a b"], ["", "a x"], LOWER).wer_interval
    assert (low, high) == (0.5, 0.5)


def test_a_paired_difference_equals_values_computed_by_hand():
    references = ["a b c d"] * 50
    better = ["a b c d", "a b c x"] * 25
    worse = ["a b x x", "x b c x"] * 25
    result = paired_difference(references, worse, better, LOWER, groups=[str(i % 10) for i in range(50)])
    assert (result.wer_baseline, result.wer_other, result.difference) == (0.5, 0.125, -0.375)
    assert result.interval[1] < 0
    assert result.probability_better == 1
    assert (result.num_utterances, result.num_groups) == (50, 10)


def test_equal_error_counts_have_no_difference():
    result = paired_difference(["a b"], ["a x"], ["x b"], LOWER)
    assert (result.difference, result.interval, result.probability_better) == (0, (0, 0), 0.5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no no no no", True),
        ("No, no. NO no!", True),
        ("no no no", False),
        ("well and so and so and so and so it goes", True),
        ("and so and so and so and then", False),
        ("a b c d e " * 4, True),
        (f"{' '.join(map(str, range(100)))} " * 4, True),
        (f"{' '.join(map(str, range(101)))} " * 4, False),
        ("", False),
    ],
)
def test_loops_are_detected(text, expected):
    assert loops(text) is expected


def test_a_loop_in_the_reference_is_not_a_failure():
    result = score(["zero zero zero zero", "we left"], ["zero zero zero zero", "we we we we"], ENGLISH)
    assert result.looping_hypotheses == 1


def test_a_score_contains_the_costs_of_edits():
    references, hypotheses = ["a b c d e"] * 3, ["d e x y z"] * 3
    unit = score(references, hypotheses, LOWER, num_bootstrap=100)
    weighed = score(references, hypotheses, LOWER, num_bootstrap=100, cost="sclite")
    assert (unit.cost, unit.wer, weighed.cost, weighed.wer) == ("unit", 5 / 5, "sclite", 6 / 5)
    assert (weighed.scorer, weighed.scorer_version) == ("tiny-audio", tiny_audio.__version__)
    transcripts = Transcripts(references, hypotheses, LOWER, "sclite")
    assert transcripts.alignments == align(references, hypotheses, LOWER, cost="sclite")
    assert score_transcripts(transcripts, num_bootstrap=100) == weighed
    nested = score_set(references, hypotheses, LOWER, ctc_hypotheses=references, num_bootstrap=100, cost="sclite")
    assert (nested["cost"], nested["ctc"]["cost"], nested["difference"]["wer_other"]) == ("sclite", "sclite", 6 / 5)


def test_score_set_adds_scores_that_apply():
    references, hypotheses = ["room one two three", "go on"], ["room one two four", "go on"]
    plain = score_set(["go on"], ["go on"], ENGLISH)
    assert plain == score(["go on"], ["go on"], ENGLISH).model_dump(mode="json")
    entry = score_set(references, hypotheses, ENGLISH, ctc_hypotheses=["room one two three", "go"], groups=["1", "2"])
    assert entry["wer"] == 1 / 4
    assert (entry["unnormalized"]["wer"], entry["unnormalized"]["normalizer"]) == (1 / 6, "lower")
    assert entry["ctc"]["wer"] == 1 / 4
    assert entry["difference"]["difference"] == 0
    assert entry["difference"]["num_groups"] == 2
    worse = score_set(["go on"] * 9, ["go in"] * 9, ENGLISH, ctc_hypotheses=["go on"] * 9)["difference"]
    assert (worse["wer_baseline"], worse["wer_other"], worse["difference"]) == (0, 0.5, 0.5)
    assert worse["probability_better"] == 0
    assert isinstance(entry["wer_interval"], list)


def test_confusions_are_ranked():
    references, hypotheses = ["a b", "a b", "a c", "d", "e"], ["x b z", "x b", "y c z", "", "e q"]
    found = confusions(align(references, hypotheses, LOWER))
    assert found.substitutions == (("a", "x", 2), ("a", "y", 1))
    assert found.deletions == (("d", 1),)
    assert found.insertions == (("z", 2), ("q", 1))
    assert confusions(align(references, hypotheses, LOWER), limit=1).substitutions == (("a", "x", 2),)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: score([], [], LOWER), "no utterance to score: an error rate needs at least one"),
        (
            lambda: score(["a"], [], LOWER),
            "1 references, but 0 hypotheses; they must come in the same order, one for each utterance",
        ),
        (lambda: score(["a"], ["a"], LOWER, groups=["1", "2"]), "1 references, but 2 groups"),
        (lambda: paired_difference(["a"], ["a"], [], LOWER), "1 references, but 0 other"),
        (lambda: align(["a"], [], LOWER), "1 references, but 0 hypotheses"),
        (
            lambda: align(["a"], ["a"], LOWER, cost="nist"),
            "unknown cost 'nist'; allowed: unit, sclite, compounds, joined; choose one of these",
        ),
        (
            lambda: score(["uh", ""], ["a", "b"], ENGLISH),
            "the 2 references have no word after the normalizer 'whisper_english'; an error rate needs at least one; "
            "check the text column, or choose another normalizer",
        ),
        (
            lambda: score(["a"], ["a"], LOWER, num_bootstrap=10),
            "num_bootstrap is 10; an interval needs at least 100 resamples",
        ),
    ],
)
def test_invalid_arguments_are_rejected(call, message):
    with pytest.raises(UserError, match=re.escape(message)):
        call()
