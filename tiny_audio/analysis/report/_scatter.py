"""Scatter plots with intervals, such as quality against cost, as inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tiny_audio.analysis.ledger import three_digits
from tiny_audio.analysis.report._html import Markup, compact, percent, tag
from tiny_audio.analysis.report._svg import linear_ticks

_LEAST_SPAN = 0.1
"""Minimum span of the cost axis, as a share of the largest cost. Without a minimum, nearly equal costs would look very
different."""
_MARGIN_SHARE = 0.08
_NAME_HEIGHT, _NAME_WIDTH = 14.0, 120.0


@dataclass(frozen=True)
class Point:
    """One system: its cost and its error rate."""

    name: str
    x: float
    y: float
    """The error rate as a fraction."""
    interval: tuple[float, float]


def scatter_plot(title: str, x_name: str, points: Sequence[Point], show: Callable[[object], str] = compact) -> Markup:
    """Plot the error rate of each system against its cost, with intervals and names. The axes need not start at 0."""
    width, height, left, right, above, below = 520.0, 330.0, 54.0, 14.0, 12.0, 40.0
    xs = [point.x for point in points]
    ends = [end for point in points for end in (point.y, *point.interval)]
    y_ticks = linear_ticks(min(ends), max(ends))
    middle, span = (min(xs) + max(xs)) / 2, max(max(xs) - min(xs), _LEAST_SPAN * max(xs)) or 1.0
    first, last = (middle + side * (0.5 + _MARGIN_SHARE) * span for side in (-1, 1))

    def x_at(x: float) -> float:
        return left + (width - left - right) * (x - first) / (last - first)

    def y_at(y: float) -> float:
        return height - below - (height - below - above) * (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    parts: list[object] = []
    for tick in y_ticks:
        parts.append(tag("line", x1=left, x2=width - right, y1=y_at(tick), y2=y_at(tick), class_="grid"))
        parts.append(tag("text", f"{three_digits(100 * tick)} %", x=left - 7, y=y_at(tick) + 4, text_anchor="end"))
    bottom = height - below
    shown = ""
    for tick in (tick for tick in linear_ticks(first, last) if first <= tick <= last):
        parts.append(tag("line", x1=x_at(tick), x2=x_at(tick), y1=bottom, y2=bottom + 4, class_="axis"))
        if show(tick) != shown:  # rounding can give neighboring ticks the same label
            shown = show(tick)
            parts.append(tag("text", shown, x=x_at(tick), y=bottom + 17, text_anchor="middle"))
    parts.append(tag("line", x1=left, x2=width - right, y1=bottom, y2=bottom, class_="axis"))
    parts.append(tag("text", x_name, x=(left + width - right) / 2, y=height - 3, text_anchor="middle"))
    places = [(x_at(point.x), y_at(point.y)) for point in points]
    for point, (x, y), name_y in zip(points, places, name_heights(places, above, bottom), strict=True):
        low, high = (y_at(end) for end in point.interval)
        side = -1 if x > (left + width - right) / 2 else 1
        anchor = "end" if side < 0 else "start"
        moved = abs(name_y - y) > _NAME_HEIGHT / 2
        leader = tag("line", x1=x + 4 * side, x2=x + 15 * side, y1=y, y2=name_y, class_="axis", stroke_width=0.6)
        parts.append(
            tag(
                "g",
                tag("title", f"{point.name}: {percent(point.y)}, {x_name.lower()} {show(point.x)}"),
                tag("line", x1=x, x2=x, y1=low, y2=high, class_="s1", stroke_width=1.6),
                tag("circle", cx=x, cy=y, r=4.5, class_="f1"),
                leader if moved else None,
                tag(
                    "text", point.name, x=x + (17 if moved else 8) * side, y=name_y + 4, text_anchor=anchor, class_="l"
                ),
            )
        )
    label = f"{title}: " + "; ".join(f"{point.name} {percent(point.y)} at {show(point.x)}" for point in points)
    svg = tag("svg", *parts, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label)
    return tag("figure", tag("figcaption", title), svg)


def name_heights(places: Sequence[tuple[float, float]], top: float, bottom: float) -> list[float]:
    """Return a y coordinate for the name of each point ``(x, y)``, so that names do not overlap."""
    order = sorted(range(len(places)), key=lambda index: places[index][1])
    heights = [max(y, top + _NAME_HEIGHT / 2) for _, y in places]

    def near(index: int, others: Sequence[int]) -> list[float]:
        return [heights[other] for other in others if abs(places[other][0] - places[index][0]) < _NAME_WIDTH]

    for rank, index in enumerate(order):
        heights[index] = max([heights[index], *(height + _NAME_HEIGHT for height in near(index, order[:rank]))])
    for rank in reversed(range(len(order))):
        index, below = order[rank], order[rank + 1 :]
        lowest = [height - _NAME_HEIGHT for height in near(index, below)]
        heights[index] = min([heights[index], bottom - _NAME_HEIGHT / 2, *lowest])
    return heights
