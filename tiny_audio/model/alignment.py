"""An auxiliary CTC loss that aligns audio embeddings with the text. Its labels are tokens of the decoder.

The logit of a label is the cosine similarity of the audio embedding and the label's token embedding, divided by a
temperature.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tiny_audio import ctc
from tiny_audio.ctc import AlignmentConfig
from tiny_audio.decoders import Decoder


class AlignmentLoss(nn.Module):
    """The alignment loss of a model in training. It has no parameters, and checkpoints do not contain it.

    Dimensions: B clips · N audio embeddings · H decoder channels · K labels

    Args:
        config: the recipe's section ``alignment``.
        token_ids: token ids of the labels, ascending.
        pieces: the spellings of the other tokens that may occur in targets. A key is the id of such a token. Its value
            is the sequence of ids from ``token_ids`` that together spell the token.
    """

    token_ids: Tensor

    def __init__(
        self,
        config: AlignmentConfig,
        token_ids: Sequence[int],
        pieces: Mapping[int, Sequence[int]] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.config = config
        labels = {token: label for label, token in enumerate(token_ids, start=ctc.BLANK + 1)}
        self._labels = {token: [label] for token, label in labels.items()}
        self._labels |= {token: [labels[piece] for piece in row] for token, row in pieces.items()}
        self.register_buffer("token_ids", torch.tensor(token_ids, dtype=torch.long), persistent=False)

    def forward(
        self, decoder: Decoder, audio: Tensor, audio_lengths: Tensor, targets: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the targets' negative log-likelihoods ``[B]``, and a bool tensor ``[B]``: whether each target fits.

        A target does not fit if its labels need more audio embeddings than the clip has. Its loss is 0.

        Args:
            decoder: the model's decoder. Its embeddings get no gradient from this loss.
            audio: audio embeddings ``[B, N, H]``.
            audio_lengths: ``[B]``.
            targets: B rows of token ids. Each row ends in the end token, which is not aligned.
        """
        logits = self._logits(decoder, audio)
        tokens = iter(torch.cat(list(targets)).tolist())  # copy from the GPU only once
        texts = [list(itertools.islice(tokens, len(row)))[:-1] for row in targets]
        labels = [[label for token in text for label in self._labels[token]] for text in texts]
        fits = [ctc.min_frames(row) <= size for row, size in zip(labels, audio_lengths.tolist(), strict=True)]
        # A target that does not fit would have an infinite loss and no finite gradient, so use an empty target.
        labels = [row if fit else [] for row, fit in zip(labels, fits, strict=True)]
        fitting = torch.tensor(fits, device=audio.device)
        return -ctc.log_likelihood(logits, audio_lengths, labels) * fitting, fitting

    @torch.no_grad()
    def nearest(self, decoder: Decoder, audio: Tensor, audio_lengths: Tensor) -> list[list[int]]:
        """Return the token ids of B clips without running the decoder's layers.

        Each audio embedding is replaced by the label with the most similar token embedding. If no similarity is above
        ``blank_similarity``, it is replaced by the blank. Then adjacent repetitions are merged, and blanks are removed.
        """
        labels = ctc.greedy(self._logits(decoder, audio), audio_lengths)
        return [self.token_ids[torch.tensor(row, dtype=torch.long) - 1].tolist() for row in labels]

    def _logits(self, decoder: Decoder, audio: Tensor) -> Tensor:
        """Return the logits ``[B, N, 1 + K]`` of the blank and the labels."""
        precise = torch.promote_types(audio.dtype, torch.float32)
        with torch.no_grad():
            table = F.normalize(decoder.embed(self.token_ids).to(precise), dim=-1)
        with torch.autocast(audio.device.type, enabled=False):
            # [B, N, H] -> [B, N, K] -> [B, N, 1 + K], with the blank first
            similarity = F.normalize(audio.to(precise), dim=-1) @ table.T
            return F.pad(similarity, (1, 0), value=self.config.blank_similarity) / self.config.temperature
