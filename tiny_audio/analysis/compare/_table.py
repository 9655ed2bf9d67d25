"""A comparison on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tiny_audio.analysis.scoring import NormalizerName, align, normalizer
from tiny_audio.runtime.columns import in_columns

_NUM_SENTENCES = 3
_MAX_WIDTH = 60


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """What :func:`tiny_audio.analysis.compare.compare_variants` found, as text; the longest lists are cut."""
    return "\n\n".join(
        [
            *(block for name, entry in comparison["sets"].items() for block in _set(name, entry, comparison)),
            _variants(comparison["variants"]),
            *_recipe(comparison["recipe"], comparison["variants"]),
        ]
    )


def _set(name: str, entry: Mapping[str, Any], comparison: Mapping[str, Any]) -> Iterator[str]:
    yield "\n".join(
        [f"{name}: {_about(entry)}", *(f"  mind: {doubt}" for doubt in entry["doubts"]), _rates(entry, comparison)]
    )
    if entry["slices"]:
        yield f"{name}, by slice: word error rate\n{_slices(entry)}"
    rule = normalizer(entry["normalizer"])
    for changed in entry["changed"]:
        lines = [
            f"{name}, {changed['name']} against {comparison['baseline']}: sentences better: "
            f"{changed['num_improved']}, worse: {changed['num_worsened']}, with as many errors: {changed['num_other']}"
        ]
        for title in ("improved", "worsened"):
            for sentence in changed[title][:_NUM_SENTENCES]:
                lines.append(f"  {title} {sentence['id']}")
                for side, whose in (("baseline", comparison["baseline"]), ("other", changed["name"])):
                    lines.append(f"    {_marked(sentence['text'], sentence[side], rule.name)}  ({whose})")
        if len(lines) > 1:
            lines[0] += "; [-said-] and {+heard+} below"
        yield "\n".join(lines)


def _about(entry: Mapping[str, Any]) -> str:
    facts = [f"{entry['num_utterances']:,} utterances", f"{entry['num_reference_words']:,} words"]
    if entry["num_groups"] is not None:
        facts.append(f"{entry['num_groups']} groups by {entry['group_by']}, resampled whole")
    if entry["left_out"]:
        facts.append(f"{entry['left_out']:,} utterances that not all runs have left out")
    return f"{', '.join(facts)}; normalizer {entry['normalizer']}"


def _rates(entry: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    head = ["", "WER", "95 % interval", "CTC head", "difference", "95 % interval", "p", "adjusted", ""]
    rows = [head]
    differences = {difference["name"]: difference for difference in entry["differences"]}
    for variant in entry["variants"]:
        name = variant["name"] if len(variant["seeds"]) == 1 else f"{variant['name']} ({len(variant['seeds'])} seeds)"
        ctc = "" if variant["ctc_wer"] is None else f"{variant['ctc_wer']:.2%}"
        cells = [name, f"{variant['wer']:.2%}", _ends(variant["wer_interval"]), ctc]
        found = differences.get(variant["name"])
        if found is None:
            cells += ["", "", "", "", "baseline"]
        else:
            cells += [f"{100 * found['difference']:+.2f}", _ends(found["interval"], "+")]
            cells += [_p(found["p_value"]), _p(found["p_adjusted"]), found["verdict"]]
        rows.append(cells)
    empty = [place for place, column in enumerate(zip(*rows[1:], strict=True)) if not any(column)]
    kept = [[cell for place, cell in enumerate(row) if place not in empty] for row in rows]
    text = in_columns(kept, num_texts=1)
    if not differences:
        return text
    return (
        f"{text}\ndifference: in percentage points, less than 0 where better; adjusted: p after Holm's correction for "
        f"{comparison['num_comparisons']} comparison{'s' if comparison['num_comparisons'] > 1 else ''}"
    )


def _slices(entry: Mapping[str, Any]) -> str:
    """Marked where the interval of the difference leaves out zero: a hint, since nobody corrects for the many."""
    rows = [["", "", "clips", *(variant["name"] for variant in entry["variants"])]]
    for part in entry["slices"]:
        cells = [part["column"], part["value"], str(part["num_utterances"])]
        for name, rate in part["wer"].items():
            bounds = part["intervals"].get(name)
            mark = "*" if bounds and (bounds[0] > 0 or bounds[1] < 0) else " "
            cells.append(f"{rate:.2%}{mark}")
        rows.append(cells)
    text = in_columns(rows, num_texts=2)
    if "*" not in text:
        return text
    return f"{text}\n*: the difference's own 95 % interval leaves out zero; a hint, no test"


def _variants(variants: Sequence[Mapping[str, Any]]) -> str:
    rows = [["", "parameters", "trained", "steps", "hours of audio", "training s", "device"]]
    for variant in variants:
        sizes = variant["parameters"]
        rows.append(
            [
                variant["name"],
                *(f"{sizes[key]:,}" for key in ("total", "trainable")),
                f"{variant['steps']:,}",
                f"{variant['audio_hours']:,.1f}",
                f"{variant['wall_s']:,.0f}",
                variant["device"],
            ]
        )
    return in_columns(rows, num_texts=1)


def _recipe(fields: Sequence[Mapping[str, Any]], variants: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if len(variants) == 1:
        return
    if not fields:
        yield "The recipes are the same."
        return
    names = [variant["name"] for variant in variants]
    rows = [["recipe", *names]]
    rows += [[field["field"], *(_short(field["values"][name]) for name in names)] for field in fields]
    yield in_columns(rows, num_texts=len(rows[0]))


def _marked(said: str, heard: str, rule: NormalizerName) -> str:
    """One line, marked as ``git diff --word-diff`` does."""
    words = []
    for word, other in align([said], [heard], normalizer(rule))[0].pairs:
        if word == other:
            words.append(str(word))
        else:
            words.append(f"{f'[-{word}-]' if word is not None else ''}{f'{{+{other}+}}' if other is not None else ''}")
    return " ".join(words)


def _short(value: str | None) -> str:
    if value is None:
        return "–"
    return value if len(value) <= _MAX_WIDTH else f"{value[: _MAX_WIDTH - 1]}…"


def _ends(interval: Sequence[float], sign: str = "") -> str:
    low, high = interval
    return f"[{100 * low:{sign}.2f}, {100 * high:{sign}.2f}]"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
