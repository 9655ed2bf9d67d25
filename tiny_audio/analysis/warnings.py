"""Warnings about the scores of a set: reasons why the error rate does not describe the recognizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

_KEY = "shared_with_training"
_NUM_EXAMPLES = 3


@dataclass(frozen=True)
class Overlap:
    """Clips of an evaluation set that overlap with training clips."""

    by: Literal["clip", "recording", "speaker"]
    """The kind of overlap. If several kinds apply to a clip, only the first one counts."""
    num_shared: int
    num_clips: int
    """Size of the evaluation set."""
    training_sets: tuple[str, ...]
    """The training sets with the same clip, recording or speaker."""
    examples: tuple[str, ...]
    """The first few: ids of clips, or names of recordings or speakers."""

    def __str__(self) -> str:
        shared = {
            "clip": "are also training clips",
            "recording": "come from recordings that are also in training",
            "speaker": "have speakers who are also in training",
        }[self.by]
        named = ", ".join(self.examples[:_NUM_EXAMPLES])
        share = f"{self.num_shared:,} of {self.num_clips:,} clips"
        return f"{share} {shared} ({', '.join(self.training_sets)}), such as {named}"


def state_overlap(scores: dict[str, Any], overlaps: list[Overlap] | None) -> None:
    """Add the overlaps of a set to its scores. None means that the training data cannot be read any more."""
    scores[_KEY] = None if overlaps is None else [asdict(overlap) for overlap in overlaps]


def warnings_of(scores: Mapping[str, Any]) -> Iterator[str]:
    """Yield the warnings about the scores of a set. They are shown next to its error rate."""
    for entry in scores.get(_KEY) or ():
        yield str(Overlap(**{**entry, "training_sets": tuple(entry["training_sets"])}))
    cut, total = scores.get("truncated_hypotheses"), scores.get("num_utterances")
    if cut and total:
        yield (
            f"{cut:,} of {total:,} hypotheses ({cut / total:.1%}) were cut at generation.max_new_tokens and may lack "
            "words; raise it"
        )
