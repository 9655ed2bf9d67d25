"""The HTML page of scored hypotheses: scores, verdicts, slices, and utterances with audio."""

from __future__ import annotations

from collections.abc import Iterator

from tiny_audio.analysis.comparison import too_few_units
from tiny_audio.analysis.report._html import Markup, count, label, page, sections, tag
from tiny_audio.analysis.report._systems import (
    page_title,
    rate_plots,
    rate_rows,
    scores_table,
    side_by_side,
    side_by_side_legend,
    slices_table,
    verdicts,
)
from tiny_audio.analysis.report._utterances import (
    Scored,
    audio_player,
    confusion_tables,
    legend,
    utterances,
)
from tiny_audio.analysis.report.audio import ReadAudio
from tiny_audio.analysis.rescore import Rescored
from tiny_audio.analysis.scoring import DESCRIPTIONS
from tiny_audio.analysis.tables import units_text

_NUM_APART = 15


def render_targets(rescored: Rescored, read_audio: ReadAudio) -> str:
    """Render the scores of the targets as one HTML page. All other targets are compared with the first target.

    ``read_audio`` returns the encoded clip of a row, to be embedded in the page.
    """
    compared = rescored.comparison
    names = [target.name for target in rescored.targets]
    several = len(names) > 1
    title = page_title(names)
    parts: list[tuple[str, list[Markup]]] = [
        ("Scores", list(_scores(rescored))),
        ("By slice", slices_table(compared.slices, names)),
        ("Where they differ most", list(_apart(rescored, read_audio)) if several else []),
    ]
    for name, rows, system in zip(names, rescored.rows, compared.aligned.systems, strict=True):
        scored = Scored.of_aligned(rows, system.alignments)
        # With several targets, leave out the audio, because a clip that is hard for all targets would be embedded for
        # each of them.
        worst = utterances(scored, None if several else read_audio)
        parts.append((f"Utterances: {name}" if several else "Utterances", [legend(), worst]))
        parts.append((f"Confusions: {name}" if several else "Confusions", [confusion_tables(scored)]))
    units = units_text([compared.aligned.column])
    rates = rate_rows((rate.name, rate) for rate in compared.rates)
    return page(
        title,
        tag("h1", title),
        tag("p", "The baseline is ", tag("b", names[0]), ".", class_="muted") if several else None,
        tag("p", _about(rescored), class_="muted"),
        *verdicts([("", entry) for entry in compared.differences], units, too_few_units({"the set": compared})),
        rate_plots(f"Word error rate (intervals from a bootstrap over {units})", rates, names[0], compared.differences),
        *sections(parts),
    )


def _about(rescored: Rescored) -> str:
    aligned, first = rescored.comparison.aligned, rescored.transcripts[0]
    left = rescored.left_out
    facts = [
        f"{count(len(aligned.rows))} utterances, {count(int(aligned.words.sum()))} reference words",
        f"{count(left)} clips are left out because a target has no hypothesis for them" if left else None,
        f"normalizer {first.normalizer.name} ({first.normalizer.version})",
        f"{DESCRIPTIONS[first.applied_cost]} (scorer {' '.join(first.scorer)})",
    ]
    text = "; ".join(fact for fact in facts if fact) + "."
    if rescored.glued_references:
        text += (
            f" In {count(rescored.glued_references)} references, this normalizer joins digits into one word (one two → "
            "12). One wrong digit then makes the whole number wrong."
        )
    return text


def _scores(rescored: Rescored) -> Iterator[Markup]:
    rows = [((label(entry["name"]),), entry) for entry in rescored.scores]
    failed = [f"{count(entry['failures'])} of {count(entry['num_clips'])}" for entry in rescored.scores]
    timed = [count(entry["num_timed"]) for entry in rescored.scores]
    after = [("Failed clips", failed), *([("Clips with a time", timed)] if any(timed) else [])]
    yield scores_table(["Target"], rows, grouped_by=rescored.comparison.aligned.column, after=after)
    note = (
        "Failed: the share of the target's clips without a hypothesis. All other rates leave these clips out. Empty: "
        "the hypothesis has no word, but the reference has one. Looping: the hypothesis has the same words at least "
        "four times in a row, but the reference does not. RTFx: seconds of audio per second of processing."
    )
    yield tag("p", note, class_="muted")


def _apart(rescored: Rescored, read_audio: ReadAudio) -> Iterator[Markup]:
    aligned = rescored.comparison.aligned
    names = [system.name for system in aligned.systems]
    errors = [[system.alignments[index].errors for system in aligned.systems] for index in range(len(aligned.rows))]
    spread = [max(each) - min(each) for each in errors]
    # Among utterances with equal differences, put short ones first, because an error is a larger share of their words.
    order = sorted(range(len(errors)), key=lambda index: (-spread[index], aligned.words[index], index))
    chosen = [index for index in order[:_NUM_APART] if spread[index]]
    if not chosen:
        yield tag("p", "In every utterance, all targets have the same number of errors.")
        return
    yield side_by_side_legend()
    for index in chosen:
        row, sides = rescored.rows[0][index], [system.alignments[index] for system in aligned.systems]
        facts = [f"{count(int(aligned.words[index]))} reference words"]
        facts.append(f"errors: {', '.join(map(count, errors[index]))}")
        yield side_by_side(row, facts, names, sides, audio_player(read_audio(row)))
