"""Connectionist temporal classification (CTC; Graves et al. 2006): settings, labels, decoding and likelihoods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from tiny_audio.config import Config

BLANK = 0


class CtcConfig(Config):
    """A linear CTC head that predicts characters from the encoder's frames, and its auxiliary training loss.

    Small models and models trained from scratch learn many times faster with this loss. With ``generation.ctc_weight``
    or ``generation.draft``, the head also takes part in decoding.
    """

    weight: PositiveFloat = 0.5
    """Weight of the CTC loss, which is added to the decoder's loss."""
    init: Literal["random", "pretrained"] = "random"
    """Initial weights. ``pretrained`` copies the head from the encoder's checkpoint, and converts the head's characters
    to lower case."""


class AlignmentConfig(Config):
    """An auxiliary training loss that aligns audio embeddings with the text: CTC with the decoder's tokens as labels.

    The loss moves audio embeddings toward the embeddings of the spoken tokens. The loss thus trains the projector even
    before the decoder has learned to use the audio. The loss has no parameters and is not part of the trained model.
    """

    weight: PositiveFloat = 0.3
    """Weight of the loss, which is added to the decoder's loss. Both losses are divided by the number of target
    tokens."""
    steps: PositiveInt | None = None
    """Number of steps, counted after ``alone_steps``, in which the weight falls linearly to 0. If None, the weight is
    constant."""
    alone_steps: PositiveInt | None = None
    """Number of steps at the start of training that do not run the decoder. They are much faster, because the decoder
    takes most of the time of a step. These steps train the projector and the encoder's trainable weights and adapters.
    They use this loss and, if there is a CTC head, its loss. The decoder's weights and adapters are trained afterwards.
    If None, all steps run the decoder."""
    temperature: PositiveFloat = 0.04
    """The logit of a token is the cosine similarity of audio embedding and token embedding, divided by this value. If
    the value is too high, the loss cannot become small, because the embeddings of all tokens are similar to each other.
    For example, an audio embedding that equals a token's embedding gives this token a probability of 82 % at 0.04, but
    only 4 % at 0.1 (mean over 20,776 labels of SmolLM2-135M)."""
    max_labels: PositiveInt | None = None
    """Approximate number of labels. The labels are tokens of the decoder that are frequent substrings of the words in
    the transcripts. Every other token of the transcripts is replaced by a sequence of labels that spells it. A rare
    word is thus learned from other words with the same labels. A token that cannot be spelled becomes an additional
    label. If None, or if the transcripts contain at most this many different tokens, every token of the transcripts
    becomes a label."""
    blank_similarity: float = Field(default=0.5, gt=-1, lt=1)
    """Cosine similarity of the blank to every audio embedding. It is a constant, because the blank has no embedding. If
    an audio embedding's similarity to every token is below this value, its most likely label is the blank."""

    def weight_at(self, step: int) -> float:
        """Return the weight of the loss in a step. Steps are counted from 0."""
        if self.steps is None:
            return self.weight
        return self.weight * min(1.0, max(0.0, 1 - (step - (self.alone_steps or 0)) / self.steps))


@dataclass(frozen=True)
class CtcVocabulary:
    """The labels of the CTC head. Label 0 is the blank, and each other label is a character."""

    characters: tuple[str, ...]

    @classmethod
    def of(cls, transcripts: Iterable[str]) -> CtcVocabulary:
        """Return a vocabulary of all characters of the transcripts, sorted."""
        characters: set[str] = set()
        for text in transcripts:
            characters.update(text)
        return cls(tuple(sorted(characters)))

    def __len__(self) -> int:
        return len(self.characters) + 1

    def encode(self, text: str) -> list[int] | None:
        """Return the labels of ``text``, or None if a character is not in the vocabulary."""
        if not set(text) <= set(self.characters):
            return None
        return [self.characters.index(character) + 1 for character in text]

    def decode(self, labels: Sequence[int]) -> str:
        """Return the text of labels, which must contain no blanks."""
        return "".join(self.characters[label - 1] for label in labels)


def min_frames(labels: Sequence[int]) -> int:
    """Return the minimum number of frames for ``labels``.

    CTC needs one frame for each label. Between two equal neighboring labels, it needs one more frame for a blank.
    """
    return len(labels) + sum(left == right for left, right in pairwise(labels))


def greedy(logits: Tensor, lengths: Tensor) -> list[list[int]]:
    """Decode logits ``[B, T, V]`` to B lists of labels.

    Take the best label of each frame, merge repeated labels, and remove blanks.
    """
    best = logits.argmax(-1).cpu()
    return [
        [int(label) for label in torch.unique_consecutive(row[: int(length)]) if label != BLANK]
        for row, length in zip(best, lengths, strict=True)
    ]


def log_likelihood(logits: Tensor, lengths: Tensor, labels: Sequence[Sequence[int]]) -> Tensor:
    """Return the log-probability ``[B]`` of each clip's label sequence, summed over all alignments.

    ``logits`` is ``[B, T, V]``, and ``lengths`` ``[B]`` are the numbers of frames. If a clip has too few frames for its
    labels, its log-probability is -inf.
    """
    if logits.device.type == "mps":  # PyTorch has no CTC loss for MPS
        return log_likelihood(logits.cpu(), lengths.cpu(), labels).to(logits.device)
    flat = torch.tensor([label for row in labels for label in row], dtype=torch.long, device=logits.device)
    sizes = torch.tensor([len(row) for row in labels], dtype=torch.long, device=logits.device)
    log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1).transpose(0, 1)
    return -F.ctc_loss(log_probs, flat, lengths, sizes, blank=BLANK, reduction="none")


@dataclass(frozen=True)
class Prefixes:
    """P label sequences, and the CTC probabilities that one clip's labels start with them.

    All probabilities are summed over all alignments, and stored as natural logarithms.
    """

    by_label: Tensor
    """``[P, T + 1]``: the probability that the first t of T frames output the sequence, and that frame t outputs its
    last label."""
    by_blank: Tensor
    """``[P, T + 1]``: as ``by_label``, but frame t outputs a blank."""
    last: Tensor
    """``[P]``, the last label of each sequence. It is the blank for an empty sequence."""
    starting: Tensor
    """``[P]``: the probability of all label sequences that start with this sequence."""

    @classmethod
    def empty(cls, log_probs: Tensor) -> Prefixes:
        """Return only the empty sequence (P = 1). ``log_probs`` ``[T, V]`` are a clip's log-probabilities."""
        by_blank = F.pad(log_probs[:, BLANK].cumsum(0), (1, 0))
        by_label = torch.full_like(by_blank, -torch.inf)
        return cls(by_label[None], by_blank[None], torch.tensor([BLANK]), log_probs.new_zeros(1))

    @property
    def complete(self) -> Tensor:
        """``[P]``: the probability that a sequence is the whole label sequence of the clip."""
        return torch.logaddexp(self.by_label[:, -1], self.by_blank[:, -1])

    def extended(self, log_probs: Tensor, labels: Tensor) -> Prefixes:
        """Return each sequence with one more label.

        Each recursion over time is x[t] = (x[t - 1] + a[t]) * b[t]. After division by the product b[1] * ... * b[t],
        x[t] is a cumulative sum, which needs no loop over the frames.

        Args:
            log_probs: ``[T, V]``, as for :meth:`empty`.
            labels: ``[P]``, the new labels. None of them is the blank.
        """
        both = torch.logaddexp(self.by_label, self.by_blank)
        # CTC requires a blank between two equal labels.
        before = torch.where((labels == self.last)[:, None], self.by_blank, both)[:, :-1]
        by_label = _summed(before, log_probs.T[labels])
        by_blank = _summed(by_label[:, :-1], log_probs[:, BLANK])
        starting = (before + log_probs.T[labels]).logsumexp(1)
        return Prefixes(by_label, by_blank, labels, starting)

    def __getitem__(self, rows: Tensor | slice) -> Prefixes:
        return Prefixes(self.by_label[rows], self.by_blank[rows], self.last[rows], self.starting[rows])

    def with_first(self, first: Prefixes) -> Prefixes:
        """Return these sequences, but replace the first ones by the sequences in ``first``."""
        pairs = ((getattr(first, name), getattr(self, name)) for name in self.__dataclass_fields__)
        return Prefixes(*(torch.cat([new, old[len(new) :]]) for new, old in pairs))


def _summed(entering: Tensor, staying: Tensor) -> Tensor:
    """Return x ``[P, T + 1]`` with x[0] = 0 and x[t] = (x[t - 1] + entering[t - 1]) * staying[t - 1].

    All tensors contain the logarithms of these values, so x[0] is returned as -inf.
    """
    product = F.pad(staying.cumsum(-1), (1, 0))
    later = (entering - product[..., :-1]).logcumsumexp(-1) + product[..., 1:]
    return F.pad(later, (1, 0), value=-torch.inf)
