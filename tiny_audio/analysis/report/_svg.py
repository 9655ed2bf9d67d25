"""Curves and interval plots as inline SVG."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tiny_audio.analysis.ledger import three_digits
from tiny_audio.analysis.report._html import Markup, compact, count, percent, tag

_NUM_COLORS = 6
_MAX_POINTS = 300  # more points would overlap and make the page large
_MAX_HITS = 100  # maximum number of tooltips in a chart
_MAX_MARKED = 40  # a curve with at most this many points also has a dot at each point
_MAX_NAME = 36
_LOG_RATIO = 30.0
"""Maximum ratio of the largest to the smallest value on a linear axis. With a larger ratio, differences between small
values would be invisible, so the axis is logarithmic."""


@dataclass(frozen=True)
class Series:
    """One curve: its name and its (step, value) points, sorted by step."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class IntervalRow:
    """One row of an interval plot: a rate, its interval and an optional second rate, all as fractions."""

    name: str
    value: float
    interval: tuple[float, float] | None
    second: float | None = None


def line_chart(
    title: str, series: Sequence[Series], show: Callable[[object], str] = compact, *, may_be_log: bool = False
) -> Markup | None:
    """Draw curves over steps. Return ``None`` if there is nothing to draw.

    A long curve shows the mean of neighboring points, with a band from their minimum to their maximum. The value axis
    is logarithmic if ``may_be_log`` is set, all values are positive, and the largest is more than 30 times the
    smallest. ``show`` formats a value.
    """
    series = [curve for curve in series if curve.points]
    if not series:
        return None
    binned = [_bins(curve.points) for curve in series]
    lows = [low for bins in binned for _, _, low, _ in bins]
    highs = [high for bins in binned for _, _, _, high in bins]
    log = may_be_log and min(lows) > 0 and max(highs) / min(lows) > _LOG_RATIO
    y_ticks = _log_ticks(min(lows), max(highs)) if log else linear_ticks(min(0.0, *lows), max(highs))
    bottom, top = min(*lows, *y_ticks) if log else y_ticks[0], max(*highs, *y_ticks)
    first, last = (f(x for curve in series for x, _ in curve.points) for f in (min, max))
    width, height, left, right, above, below = 520.0, 230.0, 54.0, 12.0, 12.0, 36.0

    def x_at(x: float) -> float:
        return left + (width - left - right) * ((x - first) / (last - first) if last > first else 0.5)

    def y_at(y: float) -> float:
        if log:
            y, low, high = math.log(y), math.log(bottom), math.log(top)
        else:
            low, high = bottom, top
        share = (y - low) / (high - low)
        return height - below - (height - below - above) * share

    parts: list[object] = []
    for y in y_ticks:
        parts.append(tag("line", x1=left, x2=width - right, y1=y_at(y), y2=y_at(y), class_="grid"))
        parts.append(tag("text", show(y), x=left - 7, y=y_at(y) + 4, text_anchor="end"))
    x_ticks = [x for x in linear_ticks(first, last) if first <= x <= last] if last > first else [first]
    for x in x_ticks:
        parts.append(tag("line", x1=x_at(x), x2=x_at(x), y1=height - below, y2=height - below + 4, class_="axis"))
        parts.append(tag("text", compact(x), x=x_at(x), y=height - below + 17, text_anchor="middle"))
    parts.append(tag("line", x1=left, x2=width - right, y1=height - below, y2=height - below, class_="axis"))
    parts.append(tag("text", "step", x=(left + width - right) / 2, y=height - 3, text_anchor="middle"))
    for index, bins in enumerate(binned):
        color = index % _NUM_COLORS + 1
        if any(high > low for _, _, low, high in bins):
            edge = [(x, high) for x, _, _, high in bins] + [(x, low) for x, _, low, _ in reversed(bins)]
            parts.append(tag("polygon", points=_path(edge, x_at, y_at), class_=f"band f{color}"))
        line = [(x, y) for x, y, _, _ in bins]
        parts.append(tag("polyline", points=_path(line, x_at, y_at), class_=f"curve s{color}"))
        if len(line) <= _MAX_MARKED:
            parts += (tag("circle", cx=x_at(x), cy=y_at(y), r=2.6, class_=f"f{color}") for x, y in line)
    parts += _hits(series, binned, show, x_at, above, height - below)
    note = "logarithmic" if log else None
    svg = tag("svg", *parts, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=_summary(title, series, show))
    keys = (_key(curve.name, index % _NUM_COLORS + 1) for index, curve in enumerate(series))
    caption = tag("figcaption", title, *(keys if len(series) > 1 else ()), tag("small", note) if note else None)
    return tag("figure", caption, svg)


def interval_plot(title: str, rows: Sequence[IntervalRow], second: str, *, signed: bool = False) -> Markup:
    """Draw one row per system, with the estimate and its interval as marks and as text.

    Hollow marks show the optional second rates, and ``second`` is their legend. If ``signed`` is set, the rows are
    differences: numbers have a sign, and a line marks 0.
    """
    sign = "+" if signed else ""
    width, right, row_height, above = 1000.0, 235.0, 34.0, 8.0
    longest = min(_MAX_NAME, max(len(row.name) for row in rows))
    left = max(140.0, 30 + 7.3 * longest)
    ends = [end for row in rows for end in (row.value, row.second or 0.0, *(row.interval or ()))]
    ticks = linear_ticks(min(0.0, *ends), max(0.0, *ends) or 0.01)
    bottom = above + row_height * len(rows)

    def x_at(value: float) -> float:
        return left + (width - left - right) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    parts: list[object] = []
    for tick in ticks:
        line = "axis" if signed and tick == 0 else "grid"
        label = f"{sign if tick > 0 else ''}{three_digits(100 * tick)} %".replace("-", "−")
        parts.append(tag("line", x1=x_at(tick), x2=x_at(tick), y1=above, y2=bottom, class_=line))
        parts.append(tag("text", label, x=x_at(tick), y=bottom + 16, text_anchor="middle"))
    for index, row in enumerate(rows):
        y = above + row_height * (index + 0.5)
        low, high = row.interval or (row.value, row.value)
        ends_text = f" [{100 * low:{sign}.2f}, {100 * high:{sign}.2f}]".replace("-", "−") if row.interval else ""
        marks: list[object] = [tag("title", f"{row.name}: {percent(row.value, sign=sign)}{ends_text}")]
        # Shorten long names in the middle, because similar names differ at their ends.
        half = _MAX_NAME // 2
        name = row.name if len(row.name) <= _MAX_NAME else f"{row.name[:half]}…{row.name[1 - half :]}"
        marks.append(tag("text", name, x=left - 16, y=y + 4.5, text_anchor="end", class_="l"))
        marks.append(tag("line", x1=x_at(low), x2=x_at(high), y1=y, y2=y, class_="s1", stroke_width=2.5))
        for end in (low, high) if row.interval else ():
            marks.append(tag("line", x1=x_at(end), x2=x_at(end), y1=y - 6, y2=y + 6, class_="s1", stroke_width=2))
        if row.second is not None:
            x = x_at(row.second)
            points = f"{x - 5:.1f},{y} {x:.1f},{y - 5} {x + 5:.1f},{y} {x:.1f},{y + 5}"
            marks.append(tag("polygon", points=points, class_="second"))
        marks.append(tag("circle", cx=x_at(row.value), cy=y, r=5, class_="f1"))
        text = tag(
            "text",
            percent(row.value, sign=sign),
            tag("tspan", f" {ends_text}"),
            x=width - right + 20,
            y=y + 4.5,
            class_="v",
        )
        parts.append(tag("g", *marks, text))
    label = f"{title}: " + "; ".join(f"{row.name} {percent(row.value, sign=sign)}" for row in rows)
    svg = tag("svg", *parts, viewBox=f"0 0 {width:g} {bottom + 22:g}", role="img", aria_label=label)
    note = f"● estimate with its 95 % interval{f'   ◇ {second}' if any(r.second is not None for r in rows) else ''}"
    return tag("figure", tag("figcaption", title, tag("small", note)), tag("div", svg, class_="scroll"))


def _hits(
    series: Sequence[Series],
    binned: Sequence[Sequence[tuple[float, float, float, float]]],
    show: Callable[[object], str],
    x_at: Callable[[float], float],
    top: float,
    bottom: float,
) -> list[Markup]:
    """Create invisible columns whose tooltips show the value of every curve."""
    steps = sorted({x for bins in binned for x, *_ in bins})
    steps = steps[:: math.ceil(len(steps) / _MAX_HITS)]
    edges = [x_at(steps[0]) - 5, *(x_at((a + b) / 2) for a, b in pairwise(steps)), x_at(steps[-1]) + 5]
    columns = []
    for step, (start, end) in zip(steps, pairwise(edges), strict=True):
        lines = [f"step {count(step)}"]
        for curve, bins in zip(series, binned, strict=True):
            right = min(bisect_left(bins, (step,)), len(bins) - 1)
            _, value, *_ = min(bins[max(right - 1, 0) : right + 1], key=lambda point: abs(point[0] - step))
            lines.append(f"{curve.name}: {show(value)}")
        title = tag("title", "\n".join(lines))
        columns.append(tag("rect", title, x=start, y=top, width=end - start, height=bottom - top, class_="hit"))
    return columns


def _bins(points: Sequence[tuple[float, float]]) -> list[tuple[float, float, float, float]]:
    """Return (step, mean, minimum, maximum) of each bin of neighboring points, for at most ``_MAX_POINTS`` bins."""
    size = math.ceil(len(points) / _MAX_POINTS)
    bins = []
    for start in range(0, len(points), size):
        xs, ys = zip(*points[start : start + size], strict=True)
        bins.append((sum(xs) / len(xs), sum(ys) / len(ys), min(ys), max(ys)))
    return bins


def _path(points: Sequence[tuple[float, float]], x_at: Callable[[float], float], y_at: Callable[[float], float]) -> str:
    return " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in points)


def linear_ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers. The first is at most ``low``, and the last is at least ``high``."""
    span = high - low or abs(high) or 1.0
    size = 10.0 ** math.floor(math.log10(span / 4))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if span / (size * factor) <= 5)
    start, stop = math.floor(low / step + 1e-9), max(math.ceil(high / step - 1e-9), math.floor(low / step) + 1)
    return [round(i * step, 12) for i in range(start, stop + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [f * 10.0**d for d in decades for f in factors]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= 7:
            break
    return inside[:: math.ceil(len(inside) / 8)] or [low, high]


def _key(name: str, color: int) -> Markup:
    sample = tag("svg", tag("line", x1=0, x2=26, y1=5, y2=5, class_=f"curve s{color}"), viewBox="0 0 26 10")
    return tag("span", sample, name, class_="key")


def _summary(title: str, series: Sequence[Series], show: Callable[[object], str]) -> str:
    ends = (f"{curve.name} from {show(curve.points[0][1])} to {show(curve.points[-1][1])}" for curve in series)
    return f"{title}: " + "; ".join(ends)
