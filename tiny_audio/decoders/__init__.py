"""The Decoder contract: embeddings in, text tokens out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import model_validator
from torch import Tensor, nn

from tiny_audio.decoders._tokenizer import SPECIAL_TOKENS as SPECIAL_TOKENS
from tiny_audio.decoders._tokenizer import TrainedTokenizerConfig, train_tokenizer
from tiny_audio.decoders._tokenizer import load_tokenizer as load_tokenizer
from tiny_audio.decoders._tokenizer import restore_tokenizer as restore_tokenizer
from tiny_audio.pretrained.config import TransformersPartConfig
from tiny_audio.registry import Registry

Head = Callable[[Tensor, Tensor], Tensor]
"""Takes hidden states ``[K, H]`` and the head's weights ``[V, H]``, in place of their product, the logits."""

_TOKENIZERS_OWN = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")


class DecoderConfig(TransformersPartConfig, ABC):
    """Base of every decoder's config."""

    plain_head: ClassVar[bool] = False
    """Whether logits are the product of the last hidden states and the head's weights, so that a :data:`Head` can take
    its place."""

    tokenizer: TrainedTokenizerConfig | None = None
    """A small tokenizer to train on the transcripts; None takes the one that comes with ``pretrained``."""

    @model_validator(mode="after")
    def _check_tokens(self) -> DecoderConfig:
        if self.tokenizer and self.init == "pretrained":
            raise ValueError(
                "a pretrained decoder knows only its own tokenizer's ids; remove tokenizer, or set init: random"
            )
        for name in _TOKENIZERS_OWN:
            if name in self.overrides:
                raise ValueError(f"overrides.{name} is the tokenizer's to say (pad and end must differ); remove it")
        return self

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """A config of some 10,000 random parameters and a character tokenizer, for tests."""


@dataclass(frozen=True)
class DecoderContext:
    """What a builder gets besides the config."""

    tokenizer: Any
    """The tokenizer whose ids it reads and writes; a random decoder takes its vocabulary size from it.
    None where ``architecture`` is given."""
    architecture: dict[str, Any] | None = None
    """:meth:`Decoder.architecture` of an earlier build; the decoder is then built so, with no weights read."""


def build_tokenizer(config: DecoderConfig, transcripts: Iterable[str]) -> Any:
    """The decoder's tokenizer: the checkpoint's own, or one trained on ``transcripts``.

    Raises:
        UserError: the checkpoint's tokenizer cannot be read.
    """
    if config.tokenizer is None:
        return load_tokenizer(config.pretrained, config.revision)
    return train_tokenizer(config.tokenizer, transcripts)


class DecoderCache(ABC):
    """The state of a decoder after rows that it has read; it can be cropped at their ends.

    B rows · P positions read so far · L more of them · H channels · V token ids
    """

    @abstractmethod
    def extend(self, embeddings: Tensor, mask: Tensor, num_kept: int) -> Tensor:
        """Read on, in one forward pass.

        Args:
            embeddings: ``[B, L, H]``.
            mask: ``[B, L]`` bool, True on real positions, which are one run in each row. What is read first may be
                padded on both sides, what comes later on the right only.
            num_kept: how many of the last positions' logits are wanted.

        Returns:
            ``[B, num_kept, V]``; those of padding mean nothing, and ids that ``generate`` never gives are ``-inf``.
        """

    @abstractmethod
    def keep(self, rows: Tensor, lengths: Tensor) -> None:
        """Remember of chosen rows only their first real positions.

        Args:
            rows: ``[K]`` int64, which rows, in the order that they are to have.
            lengths: ``[K]`` int64, how many real positions of each, from 1 to all.
        """


class Decoder(nn.Module, ABC):
    """A causal language model that reads embeddings.

    B rows · L positions · H channels · V token ids
    """

    dim: int
    """H."""

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Token ids ``[...]`` -> embeddings ``[..., H]``, scaled as the model itself would."""

    @abstractmethod
    def forward(self, embeddings: Tensor, mask: Tensor, keep: Tensor, head: Head | None = None) -> Tensor:
        """Logits at chosen positions only, in row-major order.

        Args:
            embeddings: ``[B, L, H]``, right-padded.
            mask: ``[B, L]`` bool, True on real positions.
            keep: ``[B, L]`` bool, positions whose logits are wanted; full-sequence logits would cost gigabytes.
            head: what to do with the hidden states at those positions instead; where the config has a ``plain_head``.

        Returns:
            ``[keep.sum(), V]``, or what ``head`` gives.
        """

    @abstractmethod
    def generate(self, embeddings: Tensor, mask: Tensor, **settings: Any) -> Any:
        """New token ids after left-padded ``embeddings [B, L, H]``; ``settings`` are those of transformers' generate.

        Returns:
            ids ``[B, new tokens]``, or transformers' output object where ``return_dict_in_generate`` is set.
        """

    @abstractmethod
    def cache(self) -> DecoderCache | None:
        """An empty cache, or None where what the model remembers cannot be taken back, as a recurrent state."""

    @abstractmethod
    def embedding_rms(self) -> float:
        """Root mean square over the token embeddings."""

    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """JSON from which :class:`DecoderContext` rebuilds this decoder without its checkpoint."""


DECODERS: Registry[DecoderConfig, Decoder] = Registry(
    "decoder", DecoderConfig, package=__name__, entry_points="tiny_audio.decoders"
)
"""Registered decoders; builders take ``(config, context: DecoderContext)``."""
