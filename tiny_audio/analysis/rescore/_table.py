"""Scores of hypotheses on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tiny_audio.analysis.scoring import Alignment
from tiny_audio.runtime.columns import in_columns

_NUM_WORST = 5
_NUM_WORST_EACH = 2
"""Of several targets."""
_MAX_WORDS = 60


def rescore_table(rescored: Any) -> str:
    """What :func:`tiny_audio.analysis.rescore.rescore` found, as text; the page has more of it."""
    summary = rescored.summary
    blocks = [_about(summary), _rates(summary)]
    if summary["differences"]:
        blocks.append(_differences(summary))
    if summary["slices"]:
        blocks.append(_slices(summary))
    for target, rows, alignments in zip(summary["targets"], rescored.rows, rescored.alignments, strict=True):
        blocks += _worst(target["name"], rows, alignments, _NUM_WORST if len(rescored.rows) == 1 else _NUM_WORST_EACH)
    return "\n\n".join(blocks)


def _about(summary: Mapping[str, Any]) -> str:
    facts = [f"{summary['num_utterances']:,} utterances", f"{summary['num_reference_words']:,} words"]
    if summary["left_out"]:
        facts.append(f"{summary['left_out']:,} clips without a hypothesis of every target left out")
    facts.append(f"normalizer {summary['normalizer']} ({summary['normalizer_version']})")
    facts.append(f"cost {summary['cost']} ({summary['scorer']} {summary['scorer_version']})")
    text = "; ".join(facts)
    if summary["glued_references"]:
        text += (
            f"\nmind: this normalizer makes one word of the numbers of {summary['glued_references']:,} references "
            "(one two -> 12), where a wrong digit costs the whole; --normalizer lower does not"
        )
    return text


def _rates(summary: Mapping[str, Any]) -> str:
    column = summary["group_by"]
    head = ["", "WER", "95 % interval", f"by {column}", "CER", "sub", "del", "ins", "RTFx"]
    head += ["CTC head", "failed", "empty", "looping", "truncated"]
    rows = [head]
    for target in summary["targets"]:
        by_group = target["wer_interval_by_group"]
        rows.append(
            [
                target["name"],
                f"{target['wer']:.2%}",
                _ends(target["wer_interval"]),
                "" if by_group is None else _ends(by_group),
                f"{target['cer']:.2%}",
                *(f"{target[key]:,}" for key in ("substitutions", "deletions", "insertions")),
                "" if target["rtfx"] is None else f"{target['rtfx']:.4g}",
                "" if target["ctc_wer"] is None else f"{target['ctc_wer']:.2%}",
                f"{target['failure_rate']:.2%}",
                *("" if target[key] is None else f"{target[key]:.2%}" for key in _SHARES),
            ]
        )
    text = in_columns(_without_empty(rows), num_texts=1)
    if any(target["failures"] for target in summary["targets"]):
        text += "\nfailed: of all clips of the target; the other rates are over those that did not fail"
    return text


_SHARES = ("empty_rate", "looping_rate", "truncated_rate")


def _differences(summary: Mapping[str, Any]) -> str:
    rows = [
        ["against " + summary["baseline"], "difference", "95 % interval", "segments", "MAPSSWE z", "p", "adjusted", ""]
    ]
    for found in summary["differences"]:
        test = found["mapsswe"]
        cells = [found["name"], f"{100 * found['difference']:+.2f}", _ends(found["interval"], "+")]
        cells += [f"{test['num_segments']:,}", f"{test['z']:.3f}", _p(test["p_value"]), _p(found["p_adjusted"])]
        rows.append([*cells, found["verdict"]])
    resampled = "utterances" if summary["group_by"] is None else f"whole groups by {summary['group_by']}"
    return (
        f"{in_columns(rows, num_texts=1)}\ndifference: in percentage points, less than 0 where better, its interval by "
        f"the paired bootstrap over {resampled}; z is above 0 where better; adjusted: p after Holm's correction for "
        f"{len(rows) - 1} comparison{'s' if len(rows) > 2 else ''}"
    )


def _slices(summary: Mapping[str, Any]) -> str:
    names = [target["name"] for target in summary["targets"]]
    rows = [["word error rate", "", "clips", *names]]
    for part in summary["slices"]:
        cells = [part["column"], part["value"], str(part["num_utterances"])]
        for name, rate in part["wer"].items():
            bounds = part["difference_intervals"].get(name)
            mark = "*" if bounds and (bounds[0] > 0 or bounds[1] < 0) else " "
            cells.append(f"{rate:.2%}{mark}")
        rows.append(cells)
    text = in_columns(rows, num_texts=2)
    return f"{text}\n*: the difference's own 95 % interval leaves out zero; a hint, no test" if "*" in text else text


def _worst(name: str, rows: Sequence[Mapping[str, Any]], alignments: Sequence[Alignment], limit: int) -> Iterator[str]:
    places = sorted(range(len(rows)), key=lambda place: (-alignments[place].errors, place))
    lines = [
        f"  {rows[place]['id']}: {alignments[place].errors} errors\n    {_marked(alignments[place])}"
        for place in places[:limit]
        if alignments[place].errors
    ]
    if lines:
        yield "\n".join([f"{name}, the worst; [-said-] and {{+heard+}}", *lines])


def _marked(alignment: Alignment) -> str:
    """One line, marked as ``git diff --word-diff`` does."""
    words = []
    for said, heard in alignment.pairs[:_MAX_WORDS]:
        if said == heard:
            words.append(str(said))
        else:
            words.append(f"{f'[-{said}-]' if said is not None else ''}{f'{{+{heard}+}}' if heard is not None else ''}")
    return " ".join([*words, *(["…"] if len(alignment.pairs) > _MAX_WORDS else [])])


def _without_empty(rows: list[list[str]]) -> list[list[str]]:
    """Without the columns in which no row but the head has anything."""
    empty = {place for place, cells in enumerate(zip(*rows[1:], strict=True)) if not any(cells)}
    return [[cell for place, cell in enumerate(row) if place not in empty] for row in rows]


def _ends(interval: Sequence[float], sign: str = "") -> str:
    low, high = interval
    return f"[{100 * low:{sign}.2f}, {100 * high:{sign}.2f}]"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
