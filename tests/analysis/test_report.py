"""The report is well-formed, needs nothing from outside, lets nothing in, and stands gaps."""

from __future__ import annotations

import io
import math
import random
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

from tiny_audio.analysis.report import render_report
from tiny_audio.analysis.scoring import normalizer, score_set
from tiny_audio.config import UserError

EVIL = """<script>alert("x")</script><img src=x onerror='y'>&amp;"""
TEXT = "the river and its people went down in the evening over hills to three hundred and five rooms"
WORDS = TEXT.split()
VOID = {"meta"}


class Page(HTMLParser):
    """Checks that every element is closed, and gathers elements and text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def classes(self, name):
        return [attributes for _, attributes in self.elements if name in (attributes.get("class") or "").split()]

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def make_rows(count=40, seed=0):
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        said = [rng.choice(WORDS) for _ in range(rng.randint(3, 12))]
        heard = [rng.choice(WORDS) if rng.random() < 0.1 else word for word in said if rng.random() > 0.04]
        rows.append(
            {
                "id": f"utterance-{i:03d}",
                "audio_filepath": f"{i}.flac",
                "duration": 2.5,
                "text": " ".join(said).upper(),
                "pred_text": " ".join(heard),
                "ctc_text": " ".join(heard[1:]),
                "truncated": i == 0,
                "metadata": {"speaker": str(i % 7), "sex": None},
            }
        )
    rows[0]["pred_text"] = "and the river " * 200
    rows[1]["pred_text"] = ""
    rows[2]["text"] = ""
    return rows


def make_evaluation(rows):
    references, hypotheses, ctc = ([row[key] for row in rows] for key in ("text", "pred_text", "ctc_text"))
    return score_set(references, hypotheses, normalizer("whisper_english"), ctc_hypotheses=ctc, num_bootstrap=100)


ROWS = make_rows()
METRICS = [
    {
        "kind": "train",
        "step": step,
        "loss": 8 * math.exp(-step / 200) + 0.2,
        "decoder_loss": 8 * math.exp(-step / 200),
        "ctc_loss": 1 / step,
        "learning_rate": 1e-4,
        "gradient_norm": math.nan if step == 30 else 1.0,
        "audio_hours_per_hour": 1100.0,
        "padding_share": 0.07,
        "utilization": None if step < 20 else 0.4,
        "data_wait_share": 0.01,
        "wall_s": 2.0 * step,
    }
    for step in range(10, 8000, 10)
] + [{"kind": "evaluation", "step": step, "set": "dev", "wer": 100 / step, "cer": 0.1} for step in (1000, 2000)]
REPORT = {
    "run_id": "tiny-1a2b",
    "name": "tiny",
    "parameters": {"ctc": {"total": 41_000, "trainable": 41_000, "class": "Linear"}},
    "parts": [
        {
            "part": "encoder",
            "class": "HubertModel",
            "total": 1_000_000,
            "trainable": 0,
            "dim": 1280,
            "frame_rate_hz": 50.0,
        }
    ],
    "training": {"steps": 8000, "wall_s": 33480, "audio_hours": 1736.25, "padding_share": 0.071, "note": None},
    "evaluation": {"dev": make_evaluation(ROWS)},
    "ledger": {
        "audio_hours": 1736.25,
        "audio_hours_per_hour": 1100.0,
        "padding_share": 0.03,
        "tokens_per_s": 3300.5,
        "data_wait_share": 0.004,
        "utilization": 0.412,
        "tokens": 18_000_000,
        "flops": 2.25e18,
        "step_hours": 9.0,
        "occupied_hours": 10.0,
        "num_processes": 1,
        "peak_tflops": 149.7,
        "peak_source": "table, a40",
        "peak_memory_bytes": 26 * 2**30,
        "memory_of": "GPU",
        "power_watts": 300.0,
        "power_source": "table, a40",
        "price_per_hour": 0.44,
        "price_source": "rough, from the table",
        "cost_usd": 4.4,
        "energy_kwh": 2.5,
        "energy_measured_share": 1.0,
        "grid_gco2_per_kwh": 445.0,
        "co2_kg": 1.1125,
    },
    "dropped": {"too_long": 3, "undecodable": 12},
    "provenance": {"versions": {"torch": "2.11.0"}, "seed": 0, "command": ["tiny-audio", "run", "r.yaml"]},
    "recipe": {"encoder": {"name": "hubert"}, "training": {"learning_rate": 1e-4}},
}


def flac(row):
    data = io.BytesIO()
    soundfile.write(data, np.zeros(1600, dtype=np.float32), 16_000, format="FLAC")
    return data.getvalue()


def no_audio(row):
    return None


@pytest.fixture(scope="module")
def html():
    return render_report(REPORT, METRICS, {"dev": ROWS}, flac)


def test_everything_is_there(html):
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
        "Decoder against CTC head",
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


def test_curves(html):
    page = Page(html)
    titles = re.findall(r"<figcaption>([^<]+)<", html)
    assert titles == [
        "Word error rate",
        "Training loss",
        "Word error rate while training",
        "Learning rate",
        "Gradient norm",
        "Hours of audio per hour",
        "Padding share",
        "Share of peak speed",
        "Share of time waiting for data",
    ]
    assert len(page.all("polyline")) == 10  # three losses, seven single curves
    assert all(len(curve["points"].split()) <= 300 for curve in page.all("polyline"))
    assert "step 1,000 dev: 10 %" in page.words
    assert all(svg.get("role") == "img" or svg["viewbox"] == "0 0 26 10" for svg in page.all("svg"))
    assert not any("nan" in curve["points"] for curve in page.all("polyline"))


def test_nothing_comes_from_outside(html):
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


def test_utterances(html):
    page = Page(html)
    assert len(page.all("article")) == 13  # ten of the worst, three others
    assert len(page.all("audio")) == 8  # with five of the worst and all of the others
    assert page.words.index("utterance-000") > page.words.index("The worst")
    assert "truncated looping" in page.words
    assert "more" in page.words  # the endless one is cut
    for kind, title in (("sub", ", heard as "), ("del", "deleted: "), ("ins", "inserted: ")):
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
        (b"<script>", "the audio is in no format that browsers play"),
        (b"", "the audio is in no format that browsers play"),
        (None, "no audio at hand"),
    ],
)
def test_audio(data, expected):
    html = render_report(REPORT, [], {"dev": ROWS}, lambda row: data)
    Page(html)
    assert html.count(expected) == 8


@pytest.mark.parametrize("missing", [*REPORT, "metrics", "hypotheses", "all"])
def test_gaps(missing):
    report = {} if missing == "all" else {key: value for key, value in REPORT.items() if key != missing}
    metrics = [] if missing in ("metrics", "all") else METRICS
    hypotheses = {} if missing in ("hypotheses", "all") else {"dev": ROWS}
    page = Page(render_report(report, metrics, hypotheses, no_audio))
    assert ("Unnamed run" in page.words) is (missing == "all")
    assert ("No set has been scored." in page.words) is (missing in ("evaluation", "all"))
    assert ("section" in {tag for tag, _ in page.elements}) is (missing != "all")


def test_without_a_ctc_head():
    report = {**REPORT, "evaluation": {"dev": score_set(["a b"], ["a c"], normalizer("lower"))}}
    metrics = [{**row, "ctc_loss": None} for row in METRICS]
    rows = [{"id": "1", "text": "a b", "pred_text": "a c"}]
    html = render_report(report, metrics, {"dev": rows}, no_audio)
    assert "CTC" not in Page(html).words
    assert len(Page(html).all("polyline")) == 8


def test_a_perfect_set_and_nothing_dropped():
    rows = [{"id": "1", "text": "a b", "pred_text": "a b"}]
    report = {"evaluation": {"dev": score_set(["a b"], ["a b"], normalizer("lower"))}, "dropped": {}}
    words = Page(render_report(report, METRICS[:1], {"dev": rows, "empty": []}, no_audio)).words
    assert "Every utterance is right." in words
    assert "Dropped clips None." in words


def test_strange_metrics_are_left_out():
    metrics = [
        {"kind": "heartbeat", "step": 1},
        {"kind": "train", "step": None, "loss": 1.0},
        {"kind": "train", "step": 5, "loss": math.inf},
        {"kind": "train", "step": 5, "loss": True, "unknown": {}},
    ]
    assert Page(render_report({}, metrics, {}, no_audio)).all("polyline") == []


def test_a_step_that_comes_twice_counts_as_it_came_last():
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


def test_unknown_normalizer_is_refused():
    report = {"evaluation": {"dev": {"normalizer": "x"}}}
    with pytest.raises(UserError, match="unknown normalizer 'x'; allowed: none, lower, basic, whisper_english"):
        render_report(report, [], {"dev": ROWS}, no_audio)
