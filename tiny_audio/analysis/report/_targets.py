"""Systems side by side on one page: rates, intervals, slices, and the utterances with their sound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from tiny_audio.analysis.report._comparison import by_word, heard_word, trio_legend
from tiny_audio.analysis.report._html import (
    DASH,
    Markup,
    compact,
    count,
    interval,
    label,
    number,
    page,
    percent,
    table,
    tag,
)
from tiny_audio.analysis.report._svg import IntervalRow, interval_plot
from tiny_audio.analysis.report._utterances import ReadAudio, Row, Scored, audio, confusion_tables, legend, utterances
from tiny_audio.analysis.scoring import Alignment

_NUM_APART = 15
_MAX_COLUMNS = 300  # a looping hypothesis can have thousands of words
_MAX_TITLE = 80


def render_targets(
    summary: Mapping[str, Any],
    rows: Sequence[Sequence[Row]],
    alignments: Sequence[Sequence[Alignment]],
    read_audio: ReadAudio,
) -> str:
    """One target's scores, or several compared with the first, as one HTML page.

    Args:
        summary: the summary of :class:`tiny_audio.analysis.rescore.Rescored`.
        rows: of each target, in one order.
        alignments: of each target, in that order.
        read_audio: the encoded clip (FLAC, WAV, Ogg or MP3) of a row, or ``None``; anyone can hear what it gives.
    """
    names = [target["name"] for target in summary["targets"]]
    several = len(names) > 1
    title = ", ".join(names)
    if len(title) > _MAX_TITLE:
        title = f"{names[0]} and {len(names) - 1} others"
    sections: list[tuple[str, Sequence[object]]] = [
        ("Scores", list(_scores(summary))),
        ("By slice", list(_slices(summary))),
        ("Where they differ most", list(_apart(names, rows, alignments, read_audio)) if several else []),
    ]
    for name, heard, aligned in zip(names, rows, alignments, strict=True):
        scored = Scored.of_aligned(heard, aligned)
        title_of = f"Utterances: {name}" if several else "Utterances"
        # Of several targets, the clips that all of them are bad at would be in the page again and again.
        sections.append((title_of, [legend(), utterances(scored, None if several else read_audio)]))
        sections.append((f"Confusions: {name}" if several else "Confusions", [confusion_tables(scored)]))
    present = [(name, parts) for name, parts in sections if parts]
    links = (tag("a", name, href=f"#section-{place}") for place, (name, _) in enumerate(present))
    return page(
        title,
        tag("h1", title),
        tag("p", "compared with ", tag("b", summary["baseline"]), ", the baseline", class_="muted")
        if several
        else None,
        tag("p", _about(summary), class_="muted"),
        *_verdicts(summary),
        *_plots(summary),
        tag("nav", *links),
        *(
            tag("section", tag("h2", name), *parts, id=f"section-{place}")
            for place, (name, parts) in enumerate(present)
        ),
    )


def _about(summary: Mapping[str, Any]) -> str:
    left = summary["left_out"]
    facts = [
        f"{count(summary['num_utterances'])} utterances, {count(summary['num_reference_words'])} reference words",
        f"{count(left)} clips for which not every target has a hypothesis are left out" if left else None,
        f"normalizer {summary['normalizer']} ({summary['normalizer_version']})",
        f"edits cost {_COSTS[summary['cost']]} (scorer {summary['scorer']} {summary['scorer_version']})",
    ]
    text = "; ".join(fact for fact in facts if fact) + "."
    if summary["glued_references"]:
        glued = count(summary["glued_references"])
        text += f" This normalizer makes one word of the numbers of {glued} references: there a wrong digit costs all."
    return text


_COSTS = {"unit": "one each", "sclite": "4 (substitution), 3 (insertion) and 3 (deletion), as in NIST's sclite"}


def _verdicts(summary: Mapping[str, Any]) -> list[Markup]:
    rows = []
    for found in summary["differences"]:
        test, verdict = found["mapsswe"], found["verdict"]
        shown = tag("span" if verdict == "no difference shown" else "b", verdict, class_="nowrap")
        change, bounds = percent(found["difference"], sign="+"), interval(found["interval"], sign="+")
        chance = f"{100 * found['probability_better']:.1f}\N{NO-BREAK SPACE}%"
        cells = [
            label(found["name"]),
            shown,
            change,
            bounds,
            chance,
            count(test["num_segments"]),
            f"{test['z']:.3f}".replace("-", "−"),
        ]
        rows.append([*cells, _p(test["p_value"]), _p(found["p_adjusted"])])
    if not rows:
        return []
    column = summary["group_by"]
    whole = "utterances" if column is None else f"{count(summary['num_groups'])} groups by {column}, whole"
    note = (
        "Difference in word error rate from the baseline, in percentage points, on the same utterances: below zero is "
        f"better. Its interval, and the chance of being better, are of the paired bootstrap over {whole}. MAPSSWE is "
        "the matched-pairs test of NIST's sc_stats over segments between two words that both have right; z is above "
        "zero where better. “Better” and “worse” want p, adjusted by Holm's correction for "
        f"{count(len(rows))} comparison{'s' if len(rows) > 1 else ''}, below {summary['significance']:g}, and an "
        "interval without zero. “No difference shown” does not mean that there is none."
    )
    head = ["Target", "Against the baseline", "Difference", "95 % interval", "Chance of better"]
    head += ["Segments", "MAPSSWE z", "p", "p, adjusted"]
    return [table(head, rows, numbers=range(2, 9)), tag("p", note, class_="muted")]


def _plots(summary: Mapping[str, Any]) -> Iterator[Markup]:
    rates = [
        IntervalRow(
            target["name"],
            target["wer"],
            tuple(target["wer_interval_by_group"] or target["wer_interval"]),
            target["ctc_wer"],
        )
        for target in summary["targets"]
    ]
    resampled = "utterances" if summary["group_by"] is None else f"groups by {summary['group_by']}"
    plots = [interval_plot(f"Word error rate (intervals over {resampled})", rates, "CTC head alone, greedy")]
    if summary["differences"]:
        rows = [IntervalRow(row["name"], row["difference"], tuple(row["interval"])) for row in summary["differences"]]
        plots.append(interval_plot(f"Difference from {summary['baseline']}", rows, "", signed=True))
    for plot in plots:
        yield tag("div", plot, style="margin:.7rem 0")


def _scores(summary: Mapping[str, Any]) -> Iterator[Markup]:
    column = summary["group_by"]
    head = [
        "Target",
        "WER",
        "95 % interval by utterance",
        *([f"by {column}"] if column else []),
        "CER",
        "Sub.",
        "Del.",
        "Ins.",
    ]
    rows = []
    for target in summary["targets"]:
        cells = [label(target["name"]), tag("b", percent(target["wer"])), interval(target["wer_interval"])]
        cells += [interval(target["wer_interval_by_group"])] if column else []
        cells += [percent(target["cer"]), *(count(target[key]) for key in ("substitutions", "deletions", "insertions"))]
        rows.append(cells)
    yield table(head, rows, numbers=range(1, len(head)))
    rows = []
    for target in summary["targets"]:
        failed = f"{percent(target['failure_rate'])} ({count(target['failures'])} of {count(target['num_clips'])})"
        shares = (percent(target[key]) for key in ("empty_rate", "looping_rate", "truncated_rate"))
        speed = DASH if target["rtfx"] is None else f"{compact(target['rtfx'])} ({count(target['num_timed'])} clips)"
        rows.append([label(target["name"]), failed, *shares, speed])
    yield table(["Target", "Failed", "Empty", "Looping", "Truncated", "RTFx"], rows, numbers=range(1, 6))
    note = (
        "Failed: clips without a hypothesis, of all clips of the target; all other rates are over clips that did not "
        "fail. Empty: no word where the reference has one. Looping: the same words four times in a row or more. RTFx: "
        "seconds of audio in a second of processing."
    )
    yield tag("p", note, class_="muted")


def _slices(summary: Mapping[str, Any]) -> Iterator[Markup]:
    names = [target["name"] for target in summary["targets"]]
    several = len(names) > 1
    rows = []
    before = None
    for part in summary["slices"]:
        cells: list[object] = [tag("b", part["column"]) if part["column"] != before else ""]
        cells.append(tag("span", part["value"], class_="nowrap"))
        cells += [count(part["num_utterances"]), count(part["num_reference_words"])]
        for name in names:
            rate, bounds = percent(part["wer"][name]), part["difference_intervals"].get(name)
            leaves_zero_out = bounds is not None and (bounds[0] > 0 or bounds[1] < 0)
            title = None if bounds is None else f"difference from the baseline: {interval(bounds, sign='+')}"
            cells.append(tag("span", tag("b", rate, "*") if leaves_zero_out else rate, title=title))
        cells += [] if several else [interval(part["intervals"][names[0]])]
        rows.append(cells)
        before = part["column"]
    if not rows:
        return
    head = ["Slice", "", "Utterances", "Words", *(map(label, names) if several else ["WER", "95 % interval"])]
    yield table(head, rows, numbers=range(2, len(head)))
    if several:
        note = (
            "* the 95 % interval of the difference from the baseline in this slice, alone, leaves out zero: a hint "
            "where to look, and no test, since one slice in twenty would by chance."
        )
        yield tag("p", note, class_="muted")


def _apart(
    names: Sequence[str],
    rows: Sequence[Sequence[Row]],
    alignments: Sequence[Sequence[Alignment]],
    read_audio: ReadAudio,
) -> Iterator[Markup]:
    errors = [[side[place].errors for side in alignments] for place in range(len(alignments[0]))]
    spread = [max(each) - min(each) for each in errors]
    words = [alignment.num_reference_words for alignment in alignments[0]]
    # Of equal differences, the short sentences: there the same number of words weighs most.
    places = sorted(range(len(errors)), key=lambda place: (-spread[place], words[place], place))
    chosen = [place for place in places[:_NUM_APART] if spread[place]]
    if not chosen:
        yield tag("p", "Every target has as many errors as the others in every utterance.")
        return
    yield trio_legend()
    for place in chosen:
        sides = [side[place] for side in alignments]
        yield _utterance(rows[0][place], names, sides, read_audio)


def _utterance(row: Row, names: Sequence[str], sides: Sequence[Alignment], read_audio: ReadAudio) -> Markup:
    seconds = number(row["duration"])
    facts = [None if seconds is None else f"{seconds:.1f} s", f"{count(sides[0].num_reference_words)} reference words"]
    facts += [f"errors: {', '.join(count(side.errors) for side in sides)}"]
    facts += [f"{key}: {value}" for key, value in row["metadata"].items() if value is not None]
    columns = list(_columns(sides))
    hidden = len(columns) - _MAX_COLUMNS
    more = tag("span", f"… and {count(hidden)} more", class_="muted") if hidden > 0 else None
    side = tag("span", tag("i", "reference"), *(tag("i", name) for name in names), class_="pair side")
    pairs = (
        tag("span", tag("i", said or ""), *(heard_word(said, word) for word in heard), class_="pair")
        for said, *heard in columns[:_MAX_COLUMNS]
    )
    header = tag("header", tag("b", row["id"]), *(tag("span", fact) for fact in facts if fact))
    return tag("article", header, audio(read_audio(row)), tag("div", side, *pairs, more, class_="words trios"))


def _columns(sides: Sequence[Alignment]) -> Iterator[tuple[str | None, ...]]:
    """(reference, then each target's) words of alignments with one reference, insertions side by side."""
    for spot in zip(*map(by_word, sides), strict=True):
        yield from ((None, *inserted) for inserted in zip_longest(*(inserted for _, _, inserted in spot)))
        if (said := spot[0][0]) is not None:
            yield said, *(heard for _, heard, _ in spot)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
