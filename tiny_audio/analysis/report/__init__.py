"""Self-contained HTML pages, without network access or scripts.

- :func:`render_report`: the report of one run
- :func:`render_comparison`: a comparison of several runs
- :func:`render_targets`: scored hypotheses of any systems
- :func:`render_benchmark`: the results of a benchmark
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tiny_audio.analysis.ledger import ledger_rows, three_digits
from tiny_audio.analysis.report._benchmark import render_benchmark
from tiny_audio.analysis.report._comparison import render_comparison
from tiny_audio.analysis.report._decoder_gain import decoder_gain
from tiny_audio.analysis.report._html import (
    DASH,
    Markup,
    compact,
    count,
    duration,
    number,
    page,
    percent,
    table,
    tag,
)
from tiny_audio.analysis.report._svg import IntervalRow, Series, interval_plot, line_chart
from tiny_audio.analysis.report._systems import NO_WER, scores_table, warning_notes
from tiny_audio.analysis.report._targets import render_targets
from tiny_audio.analysis.report._utterances import Scored, confusion_tables, legend, utterances
from tiny_audio.analysis.report.audio import ReadAudio, Row
from tiny_audio.analysis.scoring import normalizer
from tiny_audio.runtime.yaml_file import dump_yaml

__all__ = ["render_benchmark", "render_comparison", "render_report", "render_targets"]


def render_report(
    report: Mapping[str, Any],
    metrics: Sequence[Row],
    hypotheses: Mapping[str, Sequence[Row]],
    read_audio: ReadAudio,
) -> str:
    """Render the report of a run as one HTML page. Missing data is omitted, so unfinished runs can be rendered too.

    Args:
        report: ``report.json``.
        metrics: the rows of ``metrics.jsonl``. If a resumed run wrote a step twice, the later row is used.
        hypotheses: the rows of each set, with ``id``, ``text`` and ``pred_text``. They may also have ``duration`` (s),
            ``ctc_text``, ``truncated`` and ``metadata``.
        read_audio: returns the encoded clip (FLAC, WAV, Ogg or MP3) of a row, or the reason why there is none. It is
            called only for the few utterances of each set that get an audio player.

    Raises:
        UserError: a set's ``normalizer`` is unknown, or its package is missing.
    """
    evaluation: Mapping[str, Any] = report.get("evaluation") or {}
    scored = {
        name: Scored.of(rows, normalizer((evaluation.get(name) or {}).get("normalizer") or "lower"))
        for name, rows in hypotheses.items()
        if rows
    }
    sections: list[tuple[str, Sequence[object]]] = [
        ("Curves", _curves(metrics)),
        ("Scores", _scores(evaluation)),
        ("What the decoder adds", decoder_gain(report.get("decoder_gain") or ())),
        ("Confusions", [part for name, rows in scored.items() for part in (_h3(name), confusion_tables(rows))]),
        ("Utterances", [part for name, rows in scored.items() for part in (_h3(name), utterances(rows, read_audio))]),
        ("Parts and parameters", _parts(report)),
        ("Training", _training(report.get("training") or {})),
        ("Ledger", _ledger(report.get("ledger"))),
        ("Dropped clips", _dropped(report.get("dropped"))),
        ("Provenance", _provenance(report.get("provenance") or {})),
        ("Recipe", _recipe(report.get("recipe"))),
    ]
    present = [(title, parts) for title, parts in sections if parts]
    links = (tag("a", title, href=f"#{_anchor(title)}") for title, _ in present)
    name, run_id = (str(report.get(key) or "") for key in ("name", "run_id"))
    body = [
        tag("h1", name or run_id or "Unnamed run"),
        tag("p", "run ", tag("code", run_id), class_="muted") if run_id else None,
        *_headline(report, evaluation),
        tag("nav", *links),
        *(
            tag("section", tag("h2", title), legend() if title == "Utterances" else None, *parts, id=_anchor(title))
            for title, parts in present
        ),
    ]
    return page(name or run_id or "Unnamed run", *body)


def _headline(report: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[Markup]:
    training = report.get("training") or {}
    sizes = _sizes(report)
    trainable = sum(number(row.get("trainable")) or 0 for row in sizes)
    total = sum(number(row.get("total")) or 0 for row in sizes)
    speed = number(training.get("audio_hours_per_hour"))
    tiles = [
        ("parameters trained", f"{compact(trainable)} of {compact(total)}" if sizes else None),
        ("steps", count(training["steps"]) if "steps" in training else None),
        ("hours of audio", count(training["audio_hours"]) if "audio_hours" in training else None),
        ("training time", duration(training["wall_s"]) if "wall_s" in training else None),
        ("hours of audio per hour", count(speed) if speed is not None else None),
    ]
    shown = (tag("div", tag("b", value), tag("span", name), class_="tile") for name, value in tiles if value)
    rows = [
        IntervalRow(name, wer, _ends(entry.get("wer_interval")), number((entry.get("ctc") or {}).get("wer")))
        for name, entry in evaluation.items()
        if (wer := number(entry.get("wer"))) is not None
    ]
    plot = interval_plot("Word error rate", rows, "CTC head alone, greedy") if rows else None
    reason = NO_WER if evaluation else "No set has been scored."
    return [tag("div", *shown, class_="tiles"), plot or tag("p", reason, class_="muted")]


def _curves(metrics: Sequence[Row]) -> list[Markup]:
    train = [row for row in metrics if row.get("kind") == "train"]
    scores = [row for row in metrics if row.get("kind") == "evaluation"]
    sets = dict.fromkeys(str(row.get("set")) for row in scores)
    losses = {"loss": "loss", "decoder_loss": "decoder", "ctc_loss": "CTC", "alignment_loss": "alignment"}
    loss = [Series(name, _points(train, key)) for key, name in losses.items()]
    if not any(series.points for series in loss[2:]):
        loss = loss[:1]  # without a CTC or alignment loss, the loss equals the decoder's loss
    wer, bits = (
        [Series(name, _points([row for row in scores if str(row.get("set")) == name], key)) for name in sets]
        for key in ("wer", "bits_from_audio")
    )
    charts = [
        line_chart("Training loss", loss, may_be_log=True),
        line_chart("Word error rate during training", wer, _share),
        line_chart("Bits per token from the audio during training", bits),
        line_chart("Learning rate", [Series("learning rate", _points(train, "learning_rate"))]),
        line_chart("Gradient norm", [Series("gradient norm", _points(train, "gradient_norm"))], may_be_log=True),
        line_chart("Hours of audio per hour", [Series("throughput", _points(train, "audio_hours_per_hour"))]),
        line_chart("Padding share", [Series("padding", _points(train, "padding_share"))], _share),
        line_chart("Share of peak speed", [Series("utilization", _points(train, "utilization"))], _share),
        line_chart("Share of time waiting for data", [Series("waiting", _points(train, "data_wait_share"))], _share),
    ]
    drawn = [chart for chart in charts if chart]
    return [tag("div", *drawn, class_="charts")] if drawn else []


def _share(value: object) -> str:
    return f"{three_digits(100 * (number(value) or 0))} %"


def _points(rows: Sequence[Row], key: str) -> list[tuple[float, float]]:
    points = {}
    for row in rows:
        step, value = number(row.get("step")), number(row.get(key))
        if step is not None and value is not None:
            points[step] = value
    return sorted(points.items())


def _scores(evaluation: Mapping[str, Any]) -> list[Markup]:
    if not evaluation:
        return []
    kinds = {"unnormalized": "in lower case only", "ctc": "CTC head alone, greedy"}
    scores = [
        (name, label, values)
        for name, entry in evaluation.items()
        for label, values in [(None, entry), *((label, entry.get(key)) for key, label in kinds.items())]
        if values
    ]
    rows = []
    used: dict[tuple[str, ...], list[str]] = {}
    for name, label, values in scores:
        rows.append(((tag("span", label, class_="nest") if label else tag("b", name),), values))
        stamp = (values.get(key) for key in ("normalizer", "normalizer_version", "scorer", "scorer_version"))
        by = tuple(str(value or DASH) for value in (*stamp, _resampled(values)))
        used.setdefault(by, []).append(f"{name} ({label})" if label else name)
    sizes = [
        (title, [count(values.get(key)) for _, values in rows])
        for title, key in (("Utterances", "num_utterances"), ("Words", "num_reference_words"))
    ]
    stamp_head = ["Normalizer", "Version", "Scorer", "Version", "Resampled for the interval", "Used for"]
    return [
        scores_table(["Set"], rows, after=sizes),
        *warning_notes(evaluation),
        _h3("How they were scored"),
        table(stamp_head, [(*by, "; ".join(names)) for by, names in used.items()]),
    ]


def _resampled(values: Mapping[str, Any]) -> str:
    groups = values.get("num_groups")
    return "utterances" if groups is None else f"{count(groups)} groups of utterances"


def _sizes(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row per part. Parts that occur only in ``parameters``, such as a CTC head, come last."""
    rows = [dict(part) for part in report.get("parts") or ()]
    known = {row.get("part") for row in rows}
    for name, sizes in (report.get("parameters") or {}).items():
        if name not in known:
            rows.append({"part": name, **sizes, "total": sizes.get("total"), "trainable": sizes.get("trainable")})
    return rows


def _parts(report: Mapping[str, Any]) -> list[Markup]:
    sizes = _sizes(report)
    if not sizes:
        return []
    head = ["Part", "Class", "Parameters", "Trained", "Dimension", "Frames per second"]
    rows: list[Sequence[object]] = [
        (
            tag("b", row["part"]),
            tag("code", row.get("class") or DASH),
            *(count(row.get(key)) for key in ("total", "trainable", "dim")),
            compact(row.get("frame_rate_hz")),
        )
        for row in sizes
    ]
    sums = (tag("b", count(sum(number(row.get(key)) or 0 for row in sizes))) for key in ("total", "trainable"))
    return [table(head, [*rows, (tag("b", "all"), "", *sums, "", "")], numbers=(2, 3, 4, 5))]


def _training(training: Mapping[str, Any]) -> list[Markup]:
    def shown(key: str, value: object) -> str:
        if key.endswith("_s"):
            return duration(value)
        if key.endswith("_share"):
            return percent(value)
        finite = number(value)
        if finite is None:
            return DASH if value is None else str(value)
        return count(finite) if finite.is_integer() else f"{finite:,.1f}" if abs(finite) >= 100 else compact(finite)

    rows = [(re.sub("_s$", " time", key).replace("_", " "), shown(key, value)) for key, value in _flat(training)]
    return [table(("What", "Value"), rows, numbers=(1,))] if rows else []


def _ledger(ledger: Mapping[str, Any] | None) -> list[Markup]:
    if ledger is None:
        return []
    rows = [(tag("b", what), tag("span", value, class_="nowrap"), how) for what, value, how in ledger_rows(ledger)]
    return [table(("Quantity", "Value", "How it was measured"), rows)]


def _dropped(dropped: Mapping[str, Any] | None) -> list[Markup]:
    if dropped is None:
        return []
    ordered = sorted(dropped.items(), key=lambda item: (-(number(item[1]) or 0), item[0]))
    if not ordered:
        return [tag("p", "None.")]
    total = tag("b", count(sum(number(times) or 0 for _, times in ordered)))
    rows = [*((reason, count(times)) for reason, times in ordered), (tag("b", "all"), total)]
    return [table(("Reason", "Clips"), rows, numbers=(1,))]


def _provenance(provenance: Mapping[str, Any]) -> list[Markup]:
    rows = [(key, tag("code", DASH if value is None else value)) for key, value in _flat(provenance)]
    return [table(("What", "Value"), rows)] if rows else []


def _recipe(recipe: Mapping[str, Any] | None) -> list[Markup]:
    if not recipe:
        return []
    text = dump_yaml({**recipe})
    return [tag("details", tag("summary", "The resolved recipe"), tag("pre", tag("code", text)))]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of each leaf of nested mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", " ".join(map(str, value))
        else:
            yield f"{prefix}{key}", value


def _ends(value: object) -> tuple[float, float] | None:
    if not isinstance(value, Sequence) or len(value) != 2:
        return None
    low, high = map(number, value)
    return None if low is None or high is None else (low, high)


def _h3(title: str) -> Markup:
    return tag("h3", title)


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
