"""The verdicts of ``bench projectors --train``: better, worse, or no difference shown."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tiny_audio.analysis.scoring import normalizer
from tiny_audio.commands.bench.analysis import Outcome, Scoring, analyze
from tiny_audio.commands.bench.tables import results_table

pytestmark = pytest.mark.usefixtures("one_thread")


def outcome(label: str, error_rates: list[float], control: Any = None, seed: int = 0) -> Outcome:
    """Return a variant's hypotheses of 300 utterances with 5 words each.

    ``error_rates`` has the approximate share of wrong words for each seed.
    """
    rng = torch.Generator().manual_seed(seed)
    words = ["one", "two", "three", "four", "five"]
    hypotheses = []
    for rate in error_rates:
        rows = []
        for number in range(300):
            wrong = torch.rand(5, generator=rng) < rate
            text = " ".join("x" if bad else word for bad, word in zip(wrong, words, strict=True))
            row = {"id": str(number), "text": " ".join(words), "pred_text": text, "truncated": False, "metadata": {}}
            rows.append(row | {"duration": 2.0})
        hypotheses.append({"dev": rows})
    result = {"parameters": 1, "embeddings_per_s": 10.0, "train_s": 1.0, "curve": []}
    results = [{**result, "seed": number, "steps": 5} for number in range(len(error_rates))]
    return Outcome(label, {"name": "swiglu"}, control, results, hypotheses)


def verdicts(*outcomes: Outcome) -> dict[str, str]:
    found = analyze(outcomes, outcomes[0].label, Scoring(normalizer("lower"), None, num_draws=500))
    return {label: entry.verdict for (label, _), entry in found.differences.items()}


def test_a_clear_difference_is_better_or_worse() -> None:
    base = outcome("base", [0.2, 0.21, 0.2], seed=1)
    found = verdicts(base, outcome("bad", [0.5, 0.52, 0.49], seed=2), outcome("good", [0.02, 0.03, 0.02], seed=3))
    assert found == {"bad": "worse", "good": "better"}


def test_a_difference_smaller_than_between_seeds_is_not_shown() -> None:
    """The variants' mean error rates differ by 10 points, but the rates of each variant's seeds differ by 30 points."""
    base = outcome("base", [0.2, 0.35, 0.5], seed=1)
    assert verdicts(base, outcome("other", [0.3, 0.45, 0.6], seed=2)) == {"other": "no difference shown"}


def test_the_same_variant_with_other_seeds_shows_no_difference() -> None:
    rates = [[0.20, 0.23, 0.26], [0.27, 0.22, 0.24], [0.21, 0.25, 0.22]]
    outcomes = [outcome(f"v{number}", rate, seed=number) for number, rate in enumerate(rates)]
    assert set(verdicts(*outcomes).values()) == {"no difference shown"}


def test_controls_are_corrected_separately_and_show_whether_they_hold() -> None:
    base = outcome("base", [0.2, 0.22, 0.21], seed=1)
    others = [outcome(f"v{number}", [0.21, 0.2, 0.22], seed=number) for number in range(2, 5)]
    again = outcome("again", [0.21, 0.22, 0.2], "again", seed=9)
    degraded = outcome("degraded", [0.9, 0.91, 0.92], "degraded", seed=10)
    found = analyze(
        [base, *others, again, degraded], "base", Scoring(normalizer("lower"), None, num_draws=500)
    ).to_json()
    assert [control["held"] for control in found["controls"]] == [True, True]
    by_label = {row["label"]: row for row in found["comparisons"]}
    assert by_label["degraded"]["p_holm"] == pytest.approx(2 * by_label["degraded"]["p_value"])
    blind = analyze(
        [base, outcome("degraded", [0.2, 0.22, 0.21], "degraded", seed=11)],
        "base",
        Scoring(normalizer("lower"), None, num_draws=500),
    ).to_json()
    assert [control["held"] for control in blind["controls"]] == [False]
    assert "control FAILS" in results_table(
        {**blind, "sets": {}, "baseline": "base", "seeds": [0], "budget": {"steps": 1, "seconds": None}}
    )


def test_sets_without_speech_have_insertions_per_hour_and_no_control_holds() -> None:
    outcomes = [outcome("base", [0.0, 0.0], seed=1), outcome("again", [0.0, 0.0], "again", seed=2)]
    for row in (row for one in outcomes for seed in one.hypotheses for row in seed["dev"]):
        row["text"] = ""
    found = analyze(outcomes, "base", Scoring(normalizer("lower"), None, num_draws=500)).to_json()
    rates = [variant["sets"]["dev"]["non_speech_insertions_per_hour"] for variant in found["variants"]]
    assert rates == [5 * 3600 / 2.0] * 2
    assert [(control["found"], control["held"]) for control in found["controls"]] == [({}, False)]
