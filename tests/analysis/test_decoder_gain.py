"""The gain of the decoder: comparisons of a model with recognizers that use only its encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.report_data import METRICS, REPORT, no_audio
from tests.analysis.systems import SET, make_rows
from tests.support.html import Page
from tiny_audio.analysis.comparison import Difference
from tiny_audio.analysis.decoder_gain import MODEL, EncoderSystem, Speed, decoder_gains, gain_lines
from tiny_audio.analysis.report import render_report
from tiny_audio.analysis.rescore import rescore

OWN, SPEEDS = make_rows(0.3), (Speed(10, 0.05, 2e9), Speed(10, 0.2, 5e9))


def system(name: str, rows: list[dict[str, Any]], *speeds: Speed | None) -> EncoderSystem:
    return EncoderSystem(SET, name, "lower", rows, *speeds or (None, None))


@pytest.fixture(scope="module")
def entries() -> list[dict[str, Any]]:
    """Compare the model with a worse recognizer, and with one that has the model's hypotheses. Return both entries."""
    systems = [system("CTC head", OWN, *SPEEDS), system("whisper-tiny.en", make_rows(0.1)[:80])]
    gains = decoder_gains(systems, {SET: make_rows(0.1)}, None)
    found: list[dict[str, Any]] = json.loads(json.dumps([gain.to_json() for gain in gains]))
    return found


def test_verdicts_equal_those_of_rescore(entries: list[dict[str, Any]], tmp_path: Path) -> None:
    for name, rows in (("own", OWN), (MODEL, make_rows(0.1))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = [tmp_path / "own.jsonl", tmp_path / f"{MODEL}.jsonl"]
    expected = rescore(paths, normalizer_name="lower").summary["differences"][0]
    first, second = entries
    for key in ("difference", "interval", "p_value", "verdict"):
        assert first["difference"][key] == expected[key]
    assert first["difference"]["verdict"] == "better"
    assert first["difference"]["p_adjusted"] == 2 * first["difference"]["p_value"], (
        "Holm's correction covers both comparisons"
    )
    assert second["difference"]["verdict"] == "no difference shown"
    assert (first["num_utterances"], second["num_utterances"]) == (120, 80)
    assert (first["group_by"], first["num_groups"]) == ("speaker", 12)
    assert first["rates"][MODEL]["wer"] - first["rates"]["CTC head"]["wer"] == pytest.approx(expected["difference"])
    assert {part["column"] for part in first["slices"]} == {"speaker"}
    assert Difference.from_json(first["difference"]).to_json() == first["difference"]


def test_sets_without_common_clips_or_words_are_left_out() -> None:
    failed = [{**row, "error": "too long", "pred_text": None} for row in OWN]
    silent = [{**row, "text": ""} for row in OWN]
    assert decoder_gains([system("a", failed), system("b", [])], {SET: make_rows(0.1)}, None) == []
    assert decoder_gains([system("a", silent)], {SET: silent}, None) == []
    assert decoder_gains([], {}, None) == []


def test_the_terminal_names_rates_and_costs(entries: list[dict[str, Any]]) -> None:
    lines = list(gain_lines(entries))
    text = " ".join(" ".join(lines).split())
    rates = [entries[0]["rates"][name]["wer"] for name in ("CTC head", MODEL)]
    assert f"{SET}: WER {rates[0]:.2%} with CTC head, {rates[1]:.2%} with the model: " in text
    assert "better with the decoder; 2.5 times the FLOPs, 4 times the latency" in text
    assert text.count("no difference shown") == 1
    assert text.endswith("intervals come from a bootstrap over whole groups by speaker; normalizer lower")
    assert max(map(len, lines)) <= 80
    assert list(gain_lines([])) == []


def test_the_page_shows_rates_costs_verdicts_and_slices(entries: list[dict[str, Any]]) -> None:
    page = Page(render_report({**REPORT, "decoder_gain": entries}, METRICS, {}, no_audio))
    assert "What the decoder adds" in page.words
    for text in ("2 G", "5 G", "50 ms", "200 ms", f"{MODEL}, against whisper-tiny.en", "no difference shown", "better"):
        assert text in page.words, text
    slices = [f"{SET}: {name} and {MODEL} by slice" for name in ("CTC head", "whisper-tiny.en")]
    assert all(title in page.words for title in slices)
    assert "(at most 10 clips of each set)" in page.words
    untimed = Page(render_report({**REPORT, "decoder_gain": entries[1:]}, METRICS, {}, no_audio)).words
    assert "at most 0 clips" not in untimed
    assert "The time per clip was not measured." in untimed
    assert "What the decoder adds" not in Page(render_report(REPORT, METRICS, {}, no_audio)).words
