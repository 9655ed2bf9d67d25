"""``report.html``: what a run did, in one file that needs nothing else, neither network nor script."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from tiny_audio.report._html import (
    DASH,
    STYLE,
    Markup,
    compact,
    count,
    duration,
    interval,
    join,
    number,
    percent,
    table,
    tag,
)
from tiny_audio.report._svg import IntervalRow, Series, interval_plot, line_chart
from tiny_audio.report._utterances import ReadAudio, Row, Scored, confusion_tables, legend, utterances
from tiny_audio.scoring import normalizer

# Nothing may be fetched, whatever a transcript says: escaping is the first line of defence, this is the second.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; media-src data:"


def render_report(
    report: Mapping[str, Any],
    metrics: Sequence[Row],
    hypotheses: Mapping[str, Sequence[Row]],
    read_audio: ReadAudio,
) -> str:
    """The report of a run as one HTML page. What is missing is left out, so that a run half done renders too.

    Args:
        report: ``report.json``.
        metrics: the rows of ``metrics.jsonl``; where a step comes twice, after a resume, the later row counts.
        hypotheses: per set, rows with ``id``, ``text`` and ``pred_text``, and where known ``duration`` (s),
            ``ctc_text``, ``truncated`` and ``metadata``.
        read_audio: the encoded clip (FLAC, WAV, Ogg or MP3) of such a row, or ``None``. It is called for a few rows of
            each set, and what it gives is in the page for anyone to hear.

    Raises:
        UserError: a set's ``normalizer`` is unknown.
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
        ("Confusions", [part for name, rows in scored.items() for part in (_h3(name), confusion_tables(rows))]),
        ("Utterances", [part for name, rows in scored.items() for part in (_h3(name), utterances(rows, read_audio))]),
        ("Parts and parameters", _parts(report)),
        ("Training", _training(report.get("training") or {})),
        ("Dropped clips", _dropped(report.get("dropped"))),
        ("Provenance", _provenance(report.get("provenance") or {})),
        ("Recipe", _recipe(report.get("recipe"))),
    ]
    present = [(title, parts) for title, parts in sections if parts]
    links = (tag("a", title, href=f"#{_anchor(title)}") for title, _ in present)
    name, run_id = (str(report.get(key) or "") for key in ("name", "run_id"))
    body = tag(
        "body",
        tag("h1", name or run_id or "Unnamed run"),
        tag("p", "run ", tag("code", run_id), class_="muted") if run_id else None,
        *_headline(report, evaluation),
        tag("nav", *links),
        *(
            tag("section", tag("h2", title), legend() if title == "Utterances" else None, *parts, id=_anchor(title))
            for title, parts in present
        ),
    )
    head = tag(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", f"{name or run_id or 'Unnamed run'} · Tiny Audio"),
        tag("style", Markup(STYLE)),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _headline(report: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[Markup]:
    training = report.get("training") or {}
    sizes = _sizes(report)
    trainable = sum(number(row["trainable"]) or 0 for row in sizes)
    total = sum(number(row["total"]) or 0 for row in sizes)
    speed = number(training.get("audio_hours_per_hour"))
    tiles = [
        ("parameters trained", f"{compact(trainable)} of {compact(total)}" if sizes else None),
        ("steps", count(training["steps"]) if "steps" in training else None),
        ("hours of audio", compact(training["audio_hours"]) if "audio_hours" in training else None),
        ("training time", duration(training["wall_s"]) if "wall_s" in training else None),
        ("hours of audio per hour", compact(speed) if speed is not None else None),
    ]
    shown = (tag("div", tag("b", value), tag("span", name), class_="tile") for name, value in tiles if value)
    rows = [
        IntervalRow(name, wer, _pair(entry.get("wer_interval")), number((entry.get("ctc") or {}).get("wer")))
        for name, entry in evaluation.items()
        if (wer := number(entry.get("wer"))) is not None
    ]
    plot = interval_plot("Word error rate", rows, "CTC head alone, greedy") if rows else None
    return [tag("div", *shown, class_="tiles"), plot or tag("p", "No set has been scored.", class_="muted")]


def _curves(metrics: Sequence[Row]) -> list[Markup]:
    train = [row for row in metrics if row.get("kind") == "train"]
    scores = [row for row in metrics if row.get("kind") == "evaluation"]
    sets = dict.fromkeys(str(row.get("set")) for row in scores)
    losses = {"loss": "loss", "decoder_loss": "decoder", "ctc_loss": "CTC"}
    loss = [Series(name, _points(train, key)) for key, name in losses.items()]
    if not loss[2].points:
        loss = loss[:1]  # without a CTC head the decoder's loss is the loss
    wer = [Series(name, _points([row for row in scores if str(row.get("set")) == name], "wer")) for name in sets]
    charts = [
        line_chart("Training loss", loss),
        line_chart("Word error rate while training", wer, lambda value: percent(value)),
        line_chart("Learning rate", [Series("learning rate", _points(train, "learning_rate"))]),
        line_chart("Gradient norm", [Series("gradient norm", _points(train, "gradient_norm"))]),
        line_chart("Hours of audio per hour", [Series("throughput", _points(train, "audio_hours_per_hour"))]),
        line_chart("Padding share", [Series("padding", _points(train, "padding_share"))], lambda value: percent(value)),
    ]
    drawn = [chart for chart in charts if chart]
    return [tag("div", *drawn, class_="charts")] if drawn else []


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
    head = ["Set", "WER", "95 % interval", "CER", "Sub.", "Del.", "Ins.", "Utterances", "Words", "Empty", "Looping"]
    rows, stamps, differences = [], {}, []
    for name, entry in evaluation.items():
        kinds = [(tag("b", name), entry)]
        nested = {"unnormalized": "in lower case only", "ctc": "CTC head alone, greedy"}
        kinds += [(tag("span", label, class_="nest"), entry[key]) for key, label in nested.items() if entry.get(key)]
        for label, values in kinds:
            numbers = ("substitutions", "deletions", "insertions", "num_utterances", "num_reference_words")
            failures = ("empty_hypotheses", "looping_hypotheses")
            wer = percent(values.get("wer"))
            bounds = interval(values.get("wer_interval"))
            row = [label, tag("b", wer), bounds, percent(values.get("cer"))]
            rows.append(row + [count(values.get(key)) for key in (*numbers, *failures)])
            keys = ("normalizer", "normalizer_version", "scorer", "scorer_version")
            stamp = tuple(str(values.get(key) or DASH) for key in keys) + (_resampled(values),)
            stamps.setdefault(stamp, []).append(name if values is entry else f"{name}, {label_text(values, entry)}")
        if entry.get("difference"):
            differences.append(_difference(name, entry["difference"]))
    stamp_head = ["Normaliser", "Version", "Scorer", "Version", "Interval resamples", "Used for"]
    parts = [table(head, rows, numbers=range(1, len(head)))]
    if differences:
        parts += [_h3("Decoder against CTC head, paired")]
        head = ["Set", "WER difference", "95 % interval", "Chance that the CTC head is better"]
        parts += [table(head, differences, numbers=(1, 2, 3))]
        parts += [tag("p", "Below zero, the decoder is better; significant where the interval leaves zero out.")]
    parts += [_h3("How it was scored"), table(stamp_head, [(*key, "; ".join(used)) for key, used in stamps.items()])]
    return parts
