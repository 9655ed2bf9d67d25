"""Warnings about the scores of a set: reasons why the error rate does not describe the recognizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

_KEY, _COMPARED = "shared_with_training", "compared_with_training"
_NOT_COMPARED = "not_compared_with_training"
_NUM_EXAMPLES = 3


By = Literal["clip", "sound", "recording", "speaker", "text"]
"""What clips of an evaluation set can share with training clips:

- ``clip``: the address of the audio;
- ``sound``: the same recording under another address, also with other compression, level or ends;
- ``recording``, ``speaker``: the value of a column that names one;
- ``text``: the transcript, apart from case and spaces.
"""
SHARED = {
    "clip": "are also training clips",
    "sound": "sound like training clips",
    "recording": "come from recordings that are also in training",
    "speaker": "have speakers who are also in training",
    "text": "have transcripts that are also in training",
}


@dataclass(frozen=True)
class Overlap:
    """Clips of an evaluation set that overlap with training clips."""

    by: By
    """What they share. A clip counts under the first of these only; unless it is a copy, under ``text`` as well."""
    num_shared: int
    num_clips: int
    """Size of the evaluation set."""
    training_sets: tuple[str, ...]
    """The training sets with the same clip, recording or speaker."""
    examples: tuple[str, ...]
    """The first few: ids of clips, or names of recordings or speakers."""
    excluded: bool = False
    """Whether these clips were left out of the score."""

    def __str__(self) -> str:
        named = ", ".join(self.examples[:_NUM_EXAMPLES])
        share = f"{self.num_shared:,} of {self.num_clips:,} clips"
        end = "; they are not scored" if self.excluded else ""
        return f"{share} {SHARED[self.by]} ({', '.join(self.training_sets)}), such as {named}{end}"


@dataclass(frozen=True)
class Comparison:
    """What an evaluation set shares with the training data."""

    overlaps: tuple[Overlap, ...]
    compared: tuple[By, ...]
    """What was compared. A column is compared if both sides have it."""
    not_compared: str | None = None
    """Why sound was not compared."""


def state_overlap(scores: dict[str, Any], found: Comparison | None) -> None:
    """Add what a set shares with training to its scores. None: it is not known, since the training data is gone."""
    scores[_KEY] = None if found is None else [asdict(overlap) for overlap in found.overlaps]
    scores[_COMPARED] = None if found is None else list(found.compared)
    scores[_NOT_COMPARED] = "the training data cannot be read" if found is None else found.not_compared


def warnings_of(scores: Mapping[str, Any]) -> Iterator[str]:
    """Yield the warnings about the scores of a set. They are shown next to its error rate."""
    for entry in scores.get(_KEY) or ():
        yield str(Overlap(**{**entry, "training_sets": tuple(entry["training_sets"])}))
    if scores.get(_NOT_COMPARED):
        compared = ", ".join(scores[_COMPARED] or ["nothing"])
        yield f"compared with the training data by {compared} only: {scores[_NOT_COMPARED]}"
    cut, total = scores.get("truncated_hypotheses"), scores.get("num_utterances")
    if cut and total:
        yield (
            f"{cut:,} of {total:,} hypotheses ({cut / total:.1%}) were cut at generation.max_new_tokens and may lack "
            "words; raise it"
        )


def comparison_of(scores: Mapping[str, Any]) -> str | None:
    """What a set was compared by with the training data, given its scores. None: it was not, or a warning says so."""
    if not scores.get(_COMPARED) or scores.get(_NOT_COMPARED):
        return None
    shared = "" if scores[_KEY] else "; nothing is shared"
    return f"compared with the training data by {', '.join(scores[_COMPARED])}{shared}"
