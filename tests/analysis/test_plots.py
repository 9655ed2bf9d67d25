"""Plots on HTML pages: labels are readable, can be distinguished and do not overlap."""

from __future__ import annotations

import re
from itertools import combinations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiny_audio.analysis.report._benchmark import _curves
from tiny_audio.analysis.report._html import duration
from tiny_audio.analysis.report._scatter import Point, name_heights, scatter_plot
from tiny_audio.analysis.report._svg import IntervalRow, interval_plot


def texts(markup: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)", markup)


def test_long_names_keep_both_ends() -> None:
    """Names are shortened in the middle, because the names of a sweep's variants may share their start or their end."""
    start, end = "projector=swiglu,encoder.lora.rank=8", "training.learning_rate=0.0003"
    rows = [IntervalRow(name, 0.1, (0.0, 0.2)) for name in (f"{start},{end}", f"conv,{end}", f"{start},x=1")]
    names = [text for text in texts(interval_plot("WER", rows, "")) if "…" in text]
    assert len(names) == len(set(names)) == 2
    assert all(len(name) <= 36 for name in names)
    assert names[0].startswith("projector=swiglu")
    assert names[0].endswith("_rate=0.0003")


def test_rates_above_1000_percent_have_no_exponent() -> None:
    labels = texts(interval_plot("WER", [IntervalRow("looping", 19.0, (18.0, 20.0))], ""))
    assert "2000 %" in labels
    assert not [label for label in labels if "e+" in label]


def test_equal_tick_labels_are_written_once() -> None:
    points = [Point(name, seconds, 0.1, (0.05, 0.2)) for name, seconds in (("a", 0.21), ("b", 0.22), ("c", 0.24))]
    shown = [text for text in texts(scatter_plot("WER and time", "Time", points, duration)) if text.endswith(" s")]
    assert shown == ["0.2 s"]


def test_every_curve_has_a_name() -> None:
    """Curves are divided among charts of at most four. A chart with one curve would have no legend, so none has one."""
    for number in (2, 4, 5, 9, 13):
        variants = [{"label": f"v{place}", "curves": [[(0, 1.0), (1, 0.5)]]} for place in range(number)]
        (charts,) = _curves(variants)
        keys = re.findall(r'class="key">.*?</svg>(v\d+)<', charts)
        assert keys == [f"v{place}" for place in range(number)]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.floats(60, 500), st.floats(15, 285)), min_size=1, max_size=16))
def test_names_in_a_plot_do_not_overlap(places: list[tuple[float, float]]) -> None:
    heights = name_heights(places, 12.0, 290.0)
    assert all(12 <= height <= 290 for height in heights)
    for (first_x, first), (second_x, second) in combinations(zip([x for x, _ in places], heights, strict=True), 2):
        assert abs(first_x - second_x) >= 120 or abs(first - second) >= 14 - 1e-6
