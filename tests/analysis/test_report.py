"""The report page is well-formed, uses no other files, escapes texts, and works if data is missing."""

from __future__ import annotations

import math
import re

import pytest

from tests.analysis.report_data import METRICS, REPORT, ROWS, flac, make_evaluation, no_audio
from tests.support.html import EVIL, Page
from tiny_audio.analysis.report import render_report
from tiny_audio.analysis.scoring import normalizer, score_set
from tiny_audio.config import UserError


@pytest.fixture(scope="module")
def html():
    return render_report(REPORT, METRICS, {"dev": ROWS}, flac)


def test_the_page_has_all_sections(html):
    page = Page(html)
    titles = "Curves Scores Confusions Utterances Parts-and-parameters Training Ledger Dropped-clips Provenance Recipe"
    assert [section["id"] for section in page.all("section")] == titles.lower().split()
    assert {link["href"] for link in page.all("a")} == {f"#{title.lower()}" for title in titles.split()}
    for text in (
        "tiny-1a2b",
        "41 k of 1.04 M",
        "9 h 18 min",
        "1,736",
        "whisper-normalizer",
        "in lower case only",
        "CTC head alone, greedy",
        "versions.torch 2.11.0",
        "tiny-audio run r.yaml",
        "undecodable 12 too_long 3 all 15",
        "learning_rate: 0.0001",
        "encoder HubertModel 1,000,000 0 1,280 50",
        "audio hours 1,736.2",
        "note –",
        "wall time 9 h 18 min",
        "padding share 7.10 %",
        "utilization 41.2% of the peak, 150 TFLOPS (table, a40)",
        "cost $4.40 $0.44 an hour (rough, from the table)",
    ):
        assert text in page.words, text
    wer = f"{100 * REPORT['evaluation']['dev']['wer']:.2f} %"
    assert page.words.count(wer) >= 3


def test_a_set_without_words_counts_as_scored():
    page = Page(render_report({"evaluation": {"silence": {"wer": None}}}, [], {}, flac))
    assert "No set has been scored." not in page.words
    assert "No reference has a word" in page.words


def test_the_page_has_all_curves(html):
    page = Page(html)
    titles = re.findall(r"<figcaption>([^<]+)<", html)
    assert titles == [
        "Word error rate",
        "Training loss",
        "Word error rate during training",
        "Learning rate",
        "Gradient norm",
        "Hours of audio per hour",
        "Padding share",
        "Share of peak speed",
        "Share of time waiting for data",
    ]
    assert len(page.all("polyline")) == 10  # three losses and seven single curves
    assert all(len(curve["points"].split()) <= 300 for curve in page.all("polyline"))
    assert "step 1,000 dev: 10 %" in page.words
    assert all(svg.get("role") == "img" or svg["viewbox"] == "0 0 26 10" for svg in page.all("svg"))
    assert not any("nan" in curve["points"] for curve in page.all("polyline"))


def test_the_page_uses_no_other_files(html):
    page = Page(html)
    assert not {"script", "link", "iframe", "img", "object", "embed"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        for key in ("src", "href", "action", "data", "poster", "srcset", "xlink:href"):
            assert attributes.get(key, "#").startswith(("#", "data:audio/flac;base64,"))
        assert not any(key.startswith("on") for key in attributes)
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    assert "url(" not in html
    assert "default-src 'none'" in page.all("meta")[1]["content"]


def test_everything_is_escaped():
    rows = [{**row, "id": EVIL, "pred_text": f"{EVIL} {row['pred_text']}", "metadata": {EVIL: EVIL}} for row in ROWS]
    metrics = [*METRICS, {"kind": "evaluation", "step": 5, "set": EVIL, "wer": 0.5}]
    report = {
        "name": EVIL,
        "run_id": EVIL,
        "parts": [{"part": EVIL, "class": EVIL}],
        "parameters": {EVIL + "2": {"total": 1, "trainable": 1}},
        "training": {EVIL: EVIL},
        "evaluation": {EVIL: {**make_evaluation(rows), "scorer": EVIL, "normalizer": "none"}},
        "dropped": {EVIL: 1},
        "provenance": {EVIL: {EVIL: EVIL}},
        "recipe": {EVIL: EVIL},
    }
    page = Page(render_report(report, metrics, {EVIL: rows}, flac))
    assert not {"script", "img"} & {tag for tag, _ in page.elements}
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert page.words.count("<script>alert(") > 20


def test_worst_and_other_utterances_are_shown(html):
    page = Page(html)
    assert len(page.all("article")) == 13  # the ten worst and three others
    assert len(page.all("audio")) == 8  # for five of the worst, and for the three others
    assert page.words.index("utterance-000") > page.words.index("The worst")
    assert "truncated looping" in page.words
    assert "more" in page.words  # the very long text is shortened
    for kind, title in (("sub", " instead of "), ("del", "deleted: "), ("ins", "inserted: ")):
        assert any(title in (span.get("title") or "") for span in page.classes(kind))
    assert html == render_report(REPORT, METRICS, {"dev": ROWS}, flac)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"fLaC....", "data:audio/flac;base64,"),
        (b"RIFF....", "data:audio/wav;base64,"),
        (b"OggS....", "data:audio/ogg;base64,"),
        (b"ID3.....", "data:audio/mpeg;base64,"),
        (b"\xff\xfb....", "data:audio/mpeg;base64,"),
        (b"\xff\xf3....", "data:audio/mpeg;base64,"),
        (b"<script>", "no audio: the format is not FLAC, WAV, Ogg or MP3"),
        (b"", "no audio: the format is not FLAC, WAV, Ogg or MP3"),
        (None, "no audio available"),
    ],
)
def test_audio_is_embedded_with_its_type(data, expected):
    html = render_report(REPORT, [], {"dev": ROWS}, lambda row: data)
    Page(html)
    assert html.count(expected) == 8


@pytest.mark.parametrize("missing", [*REPORT, "metrics", "hypotheses", "all"])
def test_a_page_can_be_made_from_incomplete_data(missing):
    report = {} if missing == "all" else {key: value for key, value in REPORT.items() if key != missing}
    metrics = [] if missing in ("metrics", "all") else METRICS
    hypotheses = {} if missing in ("hypotheses", "all") else {"dev": ROWS}
    page = Page(render_report(report, metrics, hypotheses, no_audio))
    assert ("Unnamed run" in page.words) is (missing == "all")
    assert ("No set has been scored." in page.words) is (missing in ("evaluation", "all"))
    assert ("section" in {tag for tag, _ in page.elements}) is (missing != "all")


def test_a_page_can_be_made_without_a_ctc_head():
    report = {**REPORT, "evaluation": {"dev": score_set(["a b"], ["a c"], normalizer("lower"))}}
    metrics = [{**row, "ctc_loss": None} for row in METRICS]
    rows = [{"id": "1", "text": "a b", "pred_text": "a c"}]
    html = render_report(report, metrics, {"dev": rows}, no_audio)
    assert "CTC" not in Page(html).words
    assert len(Page(html).all("polyline")) == 8


def test_a_set_without_errors_and_without_dropped_clips():
    rows = [{"id": "1", "text": "a b", "pred_text": "a b"}]
    report = {"evaluation": {"dev": score_set(["a b"], ["a b"], normalizer("lower"))}, "dropped": {}}
    words = Page(render_report(report, METRICS[:1], {"dev": rows, "empty": []}, no_audio)).words
    assert "Every utterance is right." in words
    assert "Dropped clips None." in words


def test_invalid_metrics_are_left_out():
    metrics = [
        {"kind": "heartbeat", "step": 1},
        {"kind": "train", "step": None, "loss": 1.0},
        {"kind": "train", "step": 5, "loss": math.inf},
        {"kind": "train", "step": 5, "loss": True, "unknown": {}},
    ]
    assert Page(render_report({}, metrics, {}, no_audio)).all("polyline") == []


def test_the_last_value_of_a_repeated_step_is_used():
    metrics = [{"kind": "train", "step": step, "loss": loss} for step, loss in ((1, 4.0), (2, 9.0), (2, 2.0))]
    html = render_report({}, metrics, {}, no_audio)
    assert "loss from 4 to 2" in html


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [-1.0, 1.0], [1e-9, 1e9], [5.0, 5.0, 5.0], [1e-300, 1e300]])
def test_any_curve_has_finite_coordinates(values):
    metrics = [
        {"kind": "train", "step": i, "loss": value, "learning_rate": value, "gradient_norm": value}
        for i, value in enumerate(values)
    ]
    page = Page(render_report({}, metrics, {}, no_audio))
    for name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height"):
        for _, attributes in page.elements:
            assert math.isfinite(float(attributes.get(name, 0)))
    for curve in page.all("polyline"):
        assert all(math.isfinite(float(x)) for x in re.split("[ ,]", curve["points"]))


def test_an_unknown_normalizer_is_rejected():
    report = {"evaluation": {"dev": {"normalizer": "x"}}}
    with pytest.raises(UserError, match="unknown normalizer 'x'; allowed: none, lower, basic, whisper_english"):
        render_report(report, [], {"dev": ROWS}, no_audio)
