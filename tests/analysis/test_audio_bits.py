"""Bits from audio, a score of how much the decoder uses the audio: values, warnings and display."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.analysis.report_data import REPORT, no_audio
from tests.support.html import Page
from tiny_audio.analysis.audio_bits import ClipLosses, ignores_audio, progress_text, score_bits
from tiny_audio.analysis.report import render_report
from tiny_audio.analysis.scoring import normalizer, score_set
from tiny_audio.analysis.warnings import warnings_of
from tiny_audio.commands.console import sets_table
from tiny_audio.export.card import _scores as card_scores

LN2 = math.log(2)


def clip(bits: float, tokens: int = 4) -> ClipLosses:
    return ClipLosses(tokens, loss=2.0, other_loss=2.0 + bits * LN2)


def test_scores_equal_values_computed_by_hand() -> None:
    scores = score_bits([clip(8.0, 2), clip(1.0, 7)])
    assert scores["bits_from_audio"] == pytest.approx(1.0)
    assert scores["bits_from_audio_interval"] == pytest.approx([1 / 7, 4.0])
    assert scores["bits_from_audio_clips"] == 2
    assert scores["reference_loss"] == pytest.approx(4 / 9)
    assert scores["reference_loss_with_other_audio"] == pytest.approx((4 + 9 * LN2) / 9)
    assert score_bits([]) == {}


def test_groups_widen_the_interval() -> None:
    losses = [clip(bits) for bits in (0.0, 0.5, 20.0, 20.5) for _ in range(5)]
    alone = score_bits(losses)["bits_from_audio_interval"]
    grouped = score_bits(losses, groups=["a"] * 10 + ["b"] * 10)["bits_from_audio_interval"]
    assert grouped[0] < alone[0] < alone[1] < grouped[1]


@pytest.mark.parametrize(
    ("interval", "expected"), [([0.51, 3.0], False), ([0.49, 3.0], True), ([-0.4, -0.1], True), (None, False)]
)
def test_too_few_bits_give_a_warning(interval: list[float] | None, expected: bool) -> None:
    scores: dict[str, Any] = {} if interval is None else {"bits_from_audio": 0.6, "bits_from_audio_interval": interval}
    assert ignores_audio(scores) is expected
    assert ("hardly" in progress_text(scores)) is expected, "the log and the warning agree"
    found = list(warnings_of(scores))
    assert len(found) == expected
    assert not expected or f"{interval[0]:.2f} to {interval[1]:.2f}" in found[0]  # type: ignore[index]


def test_log_lines_of_evaluations_contain_the_bits() -> None:
    assert progress_text({}) == progress_text({"bits_from_audio": None}) == ""
    few, many = (
        progress_text({"bits_from_audio": bits, "bits_from_audio_interval": [bits - 0.1, bits + 0.1]})
        for bits in (0.01, 2.345)
    )
    assert tuple(float(text.removeprefix(", ").split()[0]) for text in (few, many)) == (0.01, 2.35)
    assert "hardly" in few
    assert "hardly" not in many


def test_bits_are_shown_everywhere() -> None:
    references = ["go on", "stop", "left"]
    scores = score_set(references, references, normalizer("lower"), num_bootstrap=100)
    scores |= score_bits([clip(8.0, 2), clip(1.0, 7), clip(9.0, 9)])
    assert "\ndev: 1.00 [0.14, 4.00] bits per token from the audio\n" in sets_table({"dev": scores}) + "\n"
    rows = [{"kind": "evaluation", "step": step, "set": "dev", "wer": 0.5, "bits_from_audio": 2.0} for step in (1, 2)]
    page = Page(render_report({**REPORT, "evaluation": {"dev": scores}}, rows, {}, no_audio))
    card = "\n".join(card_scores({"dev": scores}))
    assert "[0.14, 4.00]" in page.words
    assert any(mark.get("title") == "bits per token from the audio" for mark in page.all("span"))
    assert "Bits per token from the audio during training" in page.words
    assert "1.00 | \\[0.14, 4.00\\]" in card
