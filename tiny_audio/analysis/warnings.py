"""Warnings about the scores of a set: what makes the error rate better or worse than the recognizer is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

_KEY = "shared_with_training"
_NUM_EXAMPLES = 3


@dataclass(frozen=True)
class Overlap:
    """Clips of an evaluation set that share something with training clips."""

    by: Literal["clip", "recording", "speaker"]
    """What they share. A clip counts under the first of these only."""
    num_shared: int
    num_clips: int
    """Size of the evaluation set."""
    training_sets: tuple[str, ...]
    """The training sets that they share it with."""
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
    """Add what a set shares with training to its scores. None: it is not known, since the training data is gone."""
    scores[_KEY] = None if overlaps is None else [asdict(overlap) for overlap in overlaps]


def warnings_of(scores: Mapping[str, Any]) -> Iterator[str]:
    """The warnings that belong next to the error rate of a set, given its scores by key."""
    for entry in scores.get(_KEY) or ():
        yield str(Overlap(**{**entry, "training_sets": tuple(entry["training_sets"])}))
    cut, total = scores.get("truncated_hypotheses"), scores.get("num_utterances")
    if cut and total:
        yield (
            f"{cut:,} of {total:,} hypotheses ({cut / total:.1%}) were cut at generation.max_new_tokens and may lack "
            "words; raise it"
        )
