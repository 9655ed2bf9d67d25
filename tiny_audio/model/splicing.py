"""Build the decoder's input (prompt prefix, context, audio, prompt suffix, text), and compute its losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from tiny_audio.decoders import Decoder
from tiny_audio.frames import length_mask

LinearCrossEntropy = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""Function that computes cross-entropy without materializing logits. It receives hidden states ``[K, H]``, the
language-model head's weights ``[V, H]``, targets ``[K]`` and the label smoothing, and returns losses ``[K]``."""

Contexts = Sequence[Sequence[int]]
"""B rows of token ids between the prompt's prefix and the audio. A row without context is empty."""


@dataclass(frozen=True)
class TargetScores:
    """Negative log-likelihoods of the targets, summed over tokens.

    The exact mean over any group of rows is ``sum(losses) / sum(numbers of tokens)``.
    """

    decoder_loss: Tensor
    """``[B]``, the sum in nats over each row's tokens, including the end token."""
    ctc_loss: Tensor | None
    """``[B]``, the sum in nats over each row's labels. None if there are no CTC targets or no CTC head."""
    alignment_loss: Tensor | None = None
    """``[B]``, the sum in nats over each row's tokens, without the end token. 0 for rows whose tokens need more audio
    embeddings than the row has. None without an alignment loss."""
    aligned: Tensor | None = None
    """``[B]`` bool: whether the row has enough audio embeddings for its tokens. None without an alignment loss."""

    def weighted(self, weight: float) -> TargetScores:
        """Return the same scores with all losses multiplied by ``weight``."""
        if weight == 1.0:
            return self
        ctc_loss, alignment_loss = (
            None if loss is None else loss * weight for loss in (self.ctc_loss, self.alignment_loss)
        )
        return TargetScores(self.decoder_loss * weight, ctc_loss, alignment_loss, self.aligned)


def splice(
    decoder: Decoder,
    prefix_ids: Sequence[int],
    suffix_ids: Sequence[int],
    audio: Tensor,
    audio_lengths: Tensor,
    ids: Sequence[Tensor],
    padding_side: str,
    contexts: Contexts | None = None,
) -> tuple[Tensor, Tensor]:
    """Return embeddings ``[B, L, H]`` and their bool mask ``[B, L]`` (see ``TinyAudioModel.splice``)."""
    prefix, suffix = (
        decoder.embed(torch.tensor(part, dtype=torch.long, device=audio.device)).to(audio.dtype)
        for part in (prefix_ids, suffix_ids)
    )
    before = [prefix] * len(audio) if contexts is None else _with_contexts(decoder, prefix, contexts)
    rows = [
        torch.cat([start, row[: int(length)], suffix, decoder.embed(text).to(audio.dtype)])
        for start, row, length, text in zip(before, audio, audio_lengths, ids, strict=True)
    ]
    embeddings = pad_sequence(rows, batch_first=True, padding_side=padding_side)
    sizes = torch.tensor([len(row) for row in rows], device=audio.device)
    mask = length_mask(sizes, embeddings.shape[1])
    return embeddings, mask if padding_side == "right" else mask.flip(1)


def _with_contexts(decoder: Decoder, prefix: Tensor, contexts: Contexts) -> list[Tensor]:
    """Return B rows of embeddings: the prefix, followed by the row's context."""
    ids = torch.tensor([index for row in contexts for index in row], dtype=torch.long, device=prefix.device)
    embedded = torch.split(decoder.embed(ids).to(prefix.dtype), [len(row) for row in contexts])
    return [torch.cat([prefix, row]) for row in embedded]


def target_losses(
    decoder: Decoder,
    embeddings: Tensor,
    mask: Tensor,
    targets: Sequence[Tensor],
    label_smoothing: float,
    linear_cross_entropy: LinearCrossEntropy | None,
    num_shared: int = 0,
) -> Tensor:
    """Return the negative log-likelihoods ``[B]`` of B rows of targets. Each row ends in the end token.

    Args:
        embeddings: ``[B, L, H]``, right-padded, without the end tokens.
        mask: ``[B, L]``.
        label_smoothing, linear_cross_entropy: see ``TinyAudioModel.forward``.
        num_shared: number of positions at the start that are the same in all rows. The decoder may compute them once.
    """
    sizes = torch.tensor([len(row) for row in targets], device=embeddings.device)
    # Each position predicts the next token, so the last position before the text predicts the first target.
    ends = mask.sum(1)
    positions = torch.arange(mask.shape[1], device=mask.device)
    keep = (positions >= (ends - sizes)[:, None]) & (positions < ends[:, None])
    labels = torch.cat(list(targets))
    if linear_cross_entropy is None:
        logits = decoder(embeddings, mask, keep, num_shared=num_shared)
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = F.cross_entropy(precise, labels, reduction="none", label_smoothing=label_smoothing)
    else:
        fused = linear_cross_entropy

        def head(hidden: Tensor, weight: Tensor) -> Tensor:
            return fused(hidden, weight, labels, label_smoothing)

        losses = decoder(embeddings, mask, keep, head, num_shared=num_shared)
    rows = torch.arange(len(targets), device=embeddings.device).repeat_interleave(sizes)
    return torch.zeros(len(targets), dtype=losses.dtype, device=embeddings.device).index_add(0, rows, losses)
