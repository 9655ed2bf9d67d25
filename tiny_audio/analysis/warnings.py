"""Warnings about the scores of a set: reasons why the error rate may be misleading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tiny_audio.analysis.audio_bits import ignores_audio

_KEY, _COMPARED = "shared_with_training", "compared_with_training"
_NOT_COMPARED = "not_compared_with_training"
_SELECTION = "chose_the_weights"
_NUM_EXAMPLES = 3


By = Literal["clip", "sound", "recording", "speaker", "text"]
"""A property that clips of an evaluation set can share with training clips:

- ``clip``: the audio file, or the cell of a Parquet file that contains the audio
- ``sound``: the audio itself, stored in another place. Its compression, level, start and end may differ.
- ``recording``, ``speaker``: the value of a column that names a recording or a speaker
- ``text``: the transcript, apart from case and spaces
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
    """The shared property. A clip that shares several of the properties ``clip``, ``sound``, ``recording`` and
    ``speaker`` is counted only under the first of them. Of these four, properties that exclude clips from the score
    come first. A clip with a shared transcript is also counted under ``text``, unless the clip is excluded from the
    score or counted under ``clip`` or ``sound``."""
    num_shared: int
    num_clips: int
    """Size of the evaluation set."""
    training_sets: tuple[str, ...]
    """The training sets that share the property with these clips."""
    examples: tuple[str, ...]
    """Ids of the first few clips, or names of the first few recordings or speakers."""
    excluded: bool = False
    """Whether these clips were left out of the score."""

    def __str__(self) -> str:
        named = ", ".join(self.examples[:_NUM_EXAMPLES])
        share = f"{self.num_shared:,} of {self.num_clips:,} clips"
        end = "; they are not scored" if self.excluded else ""
        return f"{share} {SHARED[self.by]} ({', '.join(self.training_sets)}), such as {named}{end}"


@dataclass(frozen=True)
class Comparison:
    """Result of comparing an evaluation set with the training data."""

    overlaps: tuple[Overlap, ...]
    compared: tuple[By, ...]
    """The compared properties. Recordings and speakers are compared only if the evaluation set and the training data
    both have a column for them."""
    not_compared: str | None = None
    """The reason why sound was not compared. None if sound was compared, or if no reason should be reported."""


def state_overlap(scores: dict[str, Any], found: Comparison | None) -> None:
    """Add a set's overlap with the training data to the set's scores.

    ``found`` is None if the training data cannot be read.
    """
    scores[_KEY] = None if found is None else [asdict(overlap) for overlap in found.overlaps]
    scores[_COMPARED] = None if found is None else list(found.compared)
    scores[_NOT_COMPARED] = "the training data cannot be read" if found is None else found.not_compared


def state_selection(scores: dict[str, Any], set_name: str, final_weights: Mapping[str, Any] | None) -> None:
    """If a set was used to choose the weights, add this fact to its scores.

    ``final_weights`` is the entry ``training.final_weights`` of the run's report, if there is one.
    """
    if final_weights and final_weights["selected_on"] == set_name:
        scores[_SELECTION] = {key: final_weights[key] for key in ("metric", "num_evaluations")}


def warnings_of(scores: Mapping[str, Any]) -> Iterator[str]:
    """Yield the warnings about the scores of a set, to be shown next to its error rate."""
    for entry in scores.get(_KEY) or ():
        yield str(Overlap(**{**entry, "training_sets": tuple(entry["training_sets"])}))
    if scores.get(_NOT_COMPARED):
        compared = ", ".join(scores[_COMPARED] or ())
        only = (
            f"compared with the training data only by {compared}, not by sound"
            if compared
            else "not compared with training data"
        )
        yield f"{only}: {scores[_NOT_COMPARED]}"
    if ignores_audio(scores):
        low, high = scores["bits_from_audio_interval"]
        yield (
            f"the audio adds {scores['bits_from_audio']:.2f} bits per token (95 % interval {low:.2f} to {high:.2f}), "
            "so the model may hardly use the audio and may write words that nobody spoke; train longer, "
            "or on more speech that is similar to this set"
        )
    if selection := scores.get(_SELECTION):
        yield (
            "these clips were used to choose the weights: training.keep_best kept the weights with the best "
            f"{selection['metric']} of {selection['num_evaluations']:,} evaluations, so the error rates are probably "
            "too low; judge the model on a different set"
        )
    cut, total = scores.get("truncated_hypotheses"), scores.get("num_utterances")
    if cut and total:
        yield (
            f"{cut:,} of {total:,} hypotheses ({cut / total:.1%}) were cut at generation.max_new_tokens and may lack "
            "words; raise this limit"
        )


def comparison_of(scores: Mapping[str, Any]) -> str | None:
    """Return a message with the properties by which a set was compared with the training data.

    Return None if the set was not compared, or if :func:`warnings_of` already names the properties.
    """
    if not scores.get(_COMPARED) or scores.get(_NOT_COMPARED):
        return None
    shared = "" if scores[_KEY] else "; nothing is shared"
    return f"compared with the training data by {', '.join(scores[_COMPARED])}{shared}"
