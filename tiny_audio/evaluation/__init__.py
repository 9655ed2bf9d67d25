"""Transcribe clips with a model, and compute raw hypotheses and scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tiny_audio.analysis.scoring import NormalizerName, normalizer
from tiny_audio.data.clips import Clip
from tiny_audio.data.evaluation_clips import check_group_by
from tiny_audio.evaluation.batches import loaded_batches
from tiny_audio.evaluation.hypotheses import Hypothesis, hypothesis, score_rows
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.sources import Dropped


class Evaluation(NamedTuple):
    """The result of one model on one set."""

    scores: dict[str, Any]
    """Scores as JSON (see :func:`tiny_audio.evaluation.hypotheses.score_rows`)."""
    hypotheses: list[Hypothesis]
    """Hypotheses in the order of the clips."""
    dropped: list[Dropped]
    """Clips whose audio could not be read, or that were too long."""


def transcribe_clips(
    model: TinyAudioModel,
    tokenizer: Any,
    clips: Sequence[Clip],
    *,
    max_duration_s: float,
    max_padded_s: float,
) -> tuple[list[Hypothesis], list[Dropped]]:
    """Transcribe clips without the hallucination filters. Clips longer than a transcriber's chunk are split at pauses.

    Returns:
        The hypotheses in the order of the clips, and the dropped clips, which cannot be read or are longer than
        ``max_duration_s``.
    """
    transcriber = Transcriber(model, tokenizer, max_padded_s=max_padded_s, filter_hallucinations=False)
    by_id, dropped = {}, []
    for batch in loaded_batches(clips, max_duration_s=max_duration_s, max_padded_s=max_padded_s):
        dropped += [Dropped(clip.id, error.reason, str(error)) for clip, error in batch.unread]
        for clip, transcript in zip(batch.clips, transcriber.transcripts(batch.waveforms), strict=True):
            by_id[clip.id] = hypothesis(clip, transcript)
    return [by_id[clip.id] for clip in clips if clip.id in by_id], dropped


def evaluate_clips(
    model: TinyAudioModel,
    tokenizer: Any,
    clips: Sequence[Clip],
    *,
    normalizer_name: NormalizerName,
    num_bootstrap: int,
    group_by: str | None,
    max_duration_s: float,
    max_padded_s: float,
) -> Evaluation:
    """Transcribe and score clips.

    Args:
        group_by: metadata column. The bootstrap resamples utterances with the same value in this column together. If
            None, it resamples single utterances.

    Raises:
        UserError: nothing can be scored, or no clip has the column ``group_by``.
    """
    check_group_by(clips, group_by)
    hypotheses, dropped = transcribe_clips(
        model, tokenizer, clips, max_duration_s=max_duration_s, max_padded_s=max_padded_s
    )
    scores = score_rows(hypotheses, normalizer(normalizer_name), group_by, num_bootstrap=num_bootstrap)
    return Evaluation(scores, hypotheses, dropped)
