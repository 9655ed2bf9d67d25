"""Plots of comparisons: what is written in them can be told apart."""

from __future__ import annotations

import re

from tiny_audio.analysis.report._benchmark import _curves
from tiny_audio.analysis.report._html import duration
from tiny_audio.analysis.report._scatter import Point, scatter_plot
from tiny_audio.analysis.report._svg import IntervalRow, interval_plot


def texts(markup: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)", markup)


def test_long_names_keep_both_ends() -> None:
    """A sweep's variants begin alike, or end alike."""
    start, end = "projector=swiglu,encoder.lora.rank=8", "training.learning_rate=0.0003"
    rows = [IntervalRow(name, 0.1, (0.0, 0.2)) for name in (f"{start},{end}", f"conv,{end}", f"{start},x=1")]
    names = [text for text in texts(interval_plot("WER", rows, "")) if "…" in text]
    assert len(names) == len(set(names)) == 2
    assert all(len(name) <= 36 for name in names)
    assert names[0].startswith("projector=swiglu")
    assert names[0].endswith("_rate=0.0003")


def test_ticks_that_read_the_same_are_written_once() -> None:
    points = [Point(name, seconds, 0.1, (0.05, 0.2)) for name, seconds in (("a", 0.21), ("b", 0.22), ("c", 0.24))]
    shown = [text for text in texts(scatter_plot("WER and time", "Time", points, duration)) if text.endswith(" s")]
    assert shown == ["0.2 s"]


def test_every_curve_has_a_name_beside_it() -> None:
    """A chart of one would have no key."""
    for number in (2, 4, 5, 9, 13):
        variants = [{"label": f"v{place}", "curves": [[(0, 1.0), (1, 0.5)]]} for place in range(number)]
        (charts,) = _curves(variants)
        keys = re.findall(r'class="key">.*?</svg>(v\d+)<', charts)
        assert keys == [f"v{place}" for place in range(number)]
