"""HTML elements for single utterances (reference, hypothesis and audio), and tables of confusions."""

from __future__ import annotations

import base64
import random
from collections.abc import Sequence
from dataclasses import dataclass

from tiny_audio.analysis.report._html import Markup, count, number, percent, table, tag
from tiny_audio.analysis.report.audio import ReadAudio, Row
from tiny_audio.analysis.scoring import Alignment, Normalizer, align, confusions, loops

_NUM_WORST = 10
_NUM_RANDOM = 3
_NUM_AUDIBLE = 5  # number of the worst utterances that get audio; a clip adds a few hundred kilobytes to the page
_NUM_CONFUSIONS = 12
_MAX_PAIRS = 300  # maximum number of word pairs shown; a looping hypothesis can have thousands of words


@dataclass(frozen=True)
class Scored:
    """The rows of one set with their alignments, worst first."""

    rows: Sequence[tuple[Row, Alignment]]

    @classmethod
    def of(cls, rows: Sequence[Row], normalizer: Normalizer) -> Scored:
        """Align and sort the rows."""
        return cls.of_aligned(
            rows, align([row["text"] for row in rows], [row["pred_text"] for row in rows], normalizer)
        )

    @classmethod
    def of_aligned(cls, rows: Sequence[Row], alignments: Sequence[Alignment]) -> Scored:
        """Sort rows that are already aligned."""
        pairs = zip(rows, alignments, strict=True)
        return cls(sorted(pairs, key=lambda pair: (-pair[1].errors, pair[1].num_reference_words, str(pair[0]["id"]))))


def confusion_tables(scored: Scored) -> Markup:
    """Show the most common substitutions, deletions and insertions side by side."""
    common = confusions([alignment for _, alignment in scored.rows], limit=_NUM_CONFUSIONS)
    swapped = [(reference, f"→ {hypothesis}", count(times)) for reference, hypothesis, times in common.substitutions]
    kinds: list[tuple[str, Sequence[str], Sequence[Sequence[object]]]] = [
        ("Substitutions", ("reference", "hypothesis", "count"), swapped),
        ("Deletions", ("reference", "count"), [(word, count(times)) for word, times in common.deletions]),
        ("Insertions", ("hypothesis", "count"), [(word, count(times)) for word, times in common.insertions]),
    ]
    columns = (
        tag("div", tag("h4", name), table(head, rows, numbers=[len(head) - 1]) if rows else tag("p", "None."))
        for name, head, rows in kinds
    )
    return tag("div", *columns, class_="columns")


def legend() -> Markup:
    """Return the legend of an alignment."""
    samples = (("word", "word"), ("word", "other"), ("word", None), (None, "word"))
    names = ("right", "substituted (underlined)", "deleted (struck through)", "inserted (+)")
    keys = (tag("span", _pair(*pair), name) for pair, name in zip(samples, names, strict=True))
    return tag("p", tag("span", "Reference above, hypothesis below, both normalized:"), *keys, class_="legend muted")


def utterances(scored: Scored, read_audio: ReadAudio | None) -> Markup:
    """Show the worst utterances, then a few random ones. If ``read_audio`` is None, there are no audio players."""
    wrong = [pair for pair in scored.rows if pair[1].errors][:_NUM_WORST]
    others = scored.rows[len(wrong) :]
    drawn = random.Random(0).sample(others, min(_NUM_RANDOM, len(others)))
    worst = [_utterance(*pair, read_audio if i < _NUM_AUDIBLE else None) for i, pair in enumerate(wrong)]
    parts: list[object] = [tag("h4", "The worst"), *(worst or [tag("p", "Every utterance is right.")])]
    if drawn:
        parts += [tag("h4", "At random, from the others"), *(_utterance(*pair, read_audio) for pair in drawn)]
    return tag("div", *parts)


def _utterance(row: Row, alignment: Alignment, read_audio: ReadAudio | None) -> Markup:
    seconds = number(row.get("duration"))
    facts = [f"{seconds:.1f} s"] if seconds is not None else []
    words = alignment.num_reference_words
    facts.append(f"errors: {count(alignment.errors)}, reference words: {count(words)}")
    facts += [f"WER {percent(alignment.errors / words)}"] if words else []
    facts += [f"{key}: {value}" for key, value in (row.get("metadata") or {}).items() if value is not None]
    flags = ["truncated"] if row.get("truncated") else []
    flags += ["looping"] if loops(row["pred_text"]) and not loops(row["text"]) else []
    header = tag(
        "header",
        tag("b", row["id"]),
        *(tag("span", fact) for fact in facts),
        *(tag("span", flag, class_="flag") for flag in flags),
    )
    pairs = [_pair(*pair) for pair in alignment.pairs[:_MAX_PAIRS]]
    hidden = len(alignment.pairs) - len(pairs)
    more = tag("span", f"… and {count(hidden)} more", class_="muted") if hidden else None
    side = tag("span", tag("i", "ref"), tag("i", "hyp"), class_="pair side")
    raw = [("reference", row["text"]), ("hypothesis", row["pred_text"]), ("CTC, greedy", row.get("ctc_text"))]
    lines = (tag("div", tag("span", f"{name}: ", class_="muted"), text) for name, text in raw if text is not None)
    return tag(
        "article",
        header,
        audio_player(read_audio(row)) if read_audio else None,
        tag("div", side, *pairs, more, class_="words"),
        tag("details", tag("summary", tag("small", "texts before normalization")), tag("small", *lines)),
    )


def _pair(reference: str | None, hypothesis: str | None) -> Markup:
    """Show a reference word above its hypothesis word. Errors are marked by color, and also by an underline, a
    strikethrough or a plus sign."""
    if reference == hypothesis:
        kind, title = "", None
    elif reference is None:
        kind, title = " ins", f"inserted: {hypothesis}"
    elif hypothesis is None:
        kind, title = " del", f"deleted: {reference}"
    else:
        kind, title = " sub", f"{hypothesis} instead of {reference}"
    return tag("span", tag("i", reference or ""), tag("i", hypothesis or ""), class_=f"pair{kind}", title=title)


def audio_player(data: bytes | str | None) -> Markup:
    """Return a player for an encoded clip, or a text with the reason why there is none."""
    if data is None or isinstance(data, str):
        return tag("small", data or "no audio available", class_="muted")
    types = {b"fLaC": "audio/flac", b"RIFF": "audio/wav", b"OggS": "audio/ogg", b"ID3": "audio/mpeg"}
    types |= {bytes([0xFF, second]): "audio/mpeg" for second in (0xFB, 0xF3, 0xF2, 0xFA)}  # MP3 without an ID3 tag
    kind = next((kind for magic, kind in types.items() if data.startswith(magic)), None)
    if kind is None:
        return tag("small", "no audio: the format is not FLAC, WAV, Ogg or MP3", class_="muted")
    source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return tag("audio", controls="", preload="metadata", src=source)
