"""Measure how much a model uses the audio: how much its loss grows if a clip's audio is replaced by another clip's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tiny_audio.analysis.audio_bits import ClipLosses
from tiny_audio.data.clips import Clip
from tiny_audio.data.target_encoder import TargetEncoder, TargetError
from tiny_audio.data.text import TargetText
from tiny_audio.evaluation.batches import loaded_batches
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.runtime.device import in_parts_that_fit

NUM_CLIPS = 100
"""Maximum number of clips of a set that are measured."""
_NUM_NEAREST = 8
"""Maximum number of candidates for the other clip, from which one is chosen at random. The candidates have a different
text, and their durations are the most similar."""
_SEED = 0


@dataclass(frozen=True)
class _Embedded:
    """A clip, its reference, and its audio embeddings."""

    clip: Clip
    text: str
    target: Tensor
    """Token ids of the reference, including the end token."""
    audio: Tensor
    """Audio embeddings ``[N, H]``: N vectors of the decoder's hidden size H."""


def spread(clips: Sequence[Clip], most: int) -> Sequence[Clip]:
    """Return at most ``most`` clips, spread evenly over the set.

    Corpora are often sorted, so their first clips are not a fair sample.
    """
    return clips[:: -(-len(clips) // most)] if clips else clips


@torch.no_grad()
def measure_losses(
    model: TinyAudioModel,
    target_encoder: TargetEncoder,
    clips: Sequence[Clip],
    rewrite: TargetText,
    *,
    max_duration_s: float,
    max_padded_s: float,
) -> dict[str, ClipLosses]:
    """Return the losses of at most :data:`NUM_CLIPS` clips, by id of the clip.

    The decoder makes two teacher-forced passes over each reference: one with the clip's own audio, and one with another
    clip's audio. A clip is left out if it cannot be read, or if its reference cannot be turned into a target. The
    result is empty if all references are equal.

    Args:
        model: the model, in evaluation mode.
        rewrite: rewrites the references in the same way as the training transcripts.
        max_duration_s: longer clips are left out.
        max_padded_s: maximum seconds of audio in a batch, including padding.
    """

    def embed(loaded: Sequence[tuple[Clip, Tensor]]) -> list[_Embedded]:
        return list(_embed(model, target_encoder, rewrite, loaded))

    chosen = [clip for clip in spread(clips, NUM_CLIPS) if clip.utterance.duration_s <= max_duration_s]
    batches = [
        in_parts_that_fit(embed, list(zip(batch.clips, batch.waveforms, strict=True)))
        for batch in loaded_batches(chosen, max_duration_s=max_duration_s, max_padded_s=max_padded_s)
    ]
    embedded = [one for batch in batches for one in batch]
    partners = iter(choose_partners([one.text for one in embedded]))
    losses: dict[str, ClipLosses] = {}
    for batch in batches:
        found = [(one, embedded[index]) for one in batch if (index := next(partners)) is not None]

        def score(pairs: Sequence[tuple[_Embedded, _Embedded]]) -> list[ClipLosses]:
            targets = [own.target for own, _ in pairs]
            own = _losses(model, [own.audio for own, _ in pairs], targets)
            other = _losses(model, [other.audio for _, other in pairs], targets)
            return [ClipLosses(len(target), *both) for target, *both in zip(targets, own, other, strict=True)]

        losses |= zip((own.clip.id for own, _ in found), in_parts_that_fit(score, found) if found else (), strict=True)
    return losses


def choose_partners(texts: Sequence[str], seed: int = _SEED) -> list[int | None]:
    """For each clip, choose another clip of similar duration that has a different text.

    Args:
        texts: the text of each clip. The clips are sorted by duration.

    Returns:
        For each clip, the index of the other clip. None if all texts are equal.
    """
    rng = random.Random(seed)
    chosen: list[int | None] = []
    for own, text in enumerate(texts):
        others = [index for index, other in enumerate(texts) if other != text]
        nearest = sorted(others, key=lambda index: abs(index - own))[:_NUM_NEAREST]
        chosen.append(rng.choice(nearest) if nearest else None)
    return chosen


def _embed(
    model: TinyAudioModel,
    target_encoder: TargetEncoder,
    rewrite: TargetText,
    loaded: Sequence[tuple[Clip, Tensor]],
) -> list[_Embedded]:
    targets = []
    for clip, waveform in loaded:
        try:
            text = rewrite(clip.utterance.text)
            ids = target_encoder.encode(text, len(waveform)).ids
        except TargetError:
            continue
        targets.append((clip, waveform, text, torch.tensor(ids, device=model.device)))
    if not targets:
        return []
    waveforms = [waveform for _, waveform, _, _ in targets]
    lengths = torch.tensor([len(waveform) for waveform in waveforms], device=model.device)
    audio, sizes = model.projector(model.encode(pad_sequence(waveforms, batch_first=True).to(model.device), lengths))
    return [
        _Embedded(clip, text, ids, row[: int(size)])
        for (clip, _, text, ids), row, size in zip(targets, audio, sizes, strict=True)
    ]


def _losses(model: TinyAudioModel, audio: Sequence[Tensor], targets: Sequence[Tensor]) -> list[float]:
    sizes = torch.tensor([len(row) for row in audio], device=model.device)
    losses: list[float] = model.score_embeddings(pad_sequence(list(audio), batch_first=True), sizes, targets).tolist()
    return losses
