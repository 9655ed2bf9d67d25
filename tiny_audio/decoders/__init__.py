"""The Decoder contract. A decoder generates text tokens from embeddings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self, final

from pydantic import model_validator
from torch import Tensor, nn

from tiny_audio.decoders._tokenizer import SPECIAL_TOKENS as SPECIAL_TOKENS
from tiny_audio.decoders._tokenizer import TrainedTokenizerConfig, train_tokenizer
from tiny_audio.decoders._tokenizer import load_tokenizer as load_tokenizer
from tiny_audio.decoders._tokenizer import restore_tokenizer as restore_tokenizer
from tiny_audio.decoders._tokenizer import unknown_id as unknown_id
from tiny_audio.pretrained.config import TransformersPartConfig
from tiny_audio.pretrained.quantization import Quantization
from tiny_audio.registry import Registry

Head = Callable[[Tensor, Tensor], Tensor]
"""A function that is called instead of the language-model head, such as a fused cross-entropy. Its arguments are the
hidden states ``[K, H]`` of K positions and the weights ``[V, H]`` of the language-model head."""

_TOKENIZER_FIELDS = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")
_CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""Possible names of the config field for the maximum number of positions. The name depends on the architecture."""


class DecoderConfig(TransformersPartConfig, ABC):
    """Base class of all decoders' configs."""

    plain_head: ClassVar[bool] = False
    """Whether the logits are simply the product of the hidden states and the weights of the language-model head. If so,
    a :data:`Head` can replace this product."""

    tokenizer: TrainedTokenizerConfig | None = None
    """A small tokenizer that is trained on the transcripts. If None, the tokenizer of ``pretrained`` is used."""
    quantization: Quantization | None = None
    """Store the frozen weights of linear layers in 4 bits (``nf4``) or 8 bits (``int8``), to save memory (QLoRA).
    Embeddings, the head and adapters are not quantized. Needs bitsandbytes: ``pip install
    'tiny-audio[quantization]'``."""

    @model_validator(mode="after")
    def _check_tokens(self) -> DecoderConfig:
        if self.tokenizer and self.init == "pretrained":
            raise ValueError(
                "a pretrained decoder works only with its own tokenizer; remove tokenizer, or set init: random"
            )
        if self.quantization and not self.freeze:
            raise ValueError(
                f"quantization: {self.quantization} weights cannot be trained; set freeze: true (with lora to adapt "
                "them), or remove quantization"
            )
        for name in _TOKENIZER_FIELDS:
            if name in self.overrides:
                raise ValueError(f"the tokenizer determines {name}; remove overrides.{name}")
        return self

    @final
    def max_positions(self) -> int | None:
        """Return the maximum number of positions for prompt, audio and text, or None if it is unknown or unlimited."""
        found = (self.known_fields().get(name) for name in _CONTEXT_FIELDS)
        return next((positions for positions in found if isinstance(positions, int)), None)

    @final
    def num_embeddings(self) -> int | None:
        """Return the number of token ids that a pretrained decoder accepts, or None if it is unknown."""
        rows = self.known_fields().get("vocab_size")
        return rows if isinstance(rows, int) else None

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """Return the config of a very small decoder with random weights and a character tokenizer, for tests."""


@dataclass(frozen=True)
class DecoderContext:
    """The second argument of a builder, after the config. A builder is a function that returns a decoder."""

    tokenizer: Any
    """The decoder's tokenizer. It determines the vocabulary size of a decoder with random weights. It may be None if
    ``architecture`` is given, or if only the weights of a checkpoint are needed."""
    architecture: dict[str, Any] | None = None
    """The architecture of a decoder that was built before, from :meth:`Decoder.architecture`. If given, the decoder is
    rebuilt with this architecture, and no weights are read."""


def build_tokenizer(config: DecoderConfig, transcripts: Iterable[str]) -> Any:
    """Load the checkpoint's own tokenizer or, if ``config.tokenizer`` is set, train a tokenizer on ``transcripts``.

    Raises:
        UserError: the checkpoint's tokenizer cannot be read, or there are no transcripts.
    """
    if config.tokenizer is None:
        return load_tokenizer(config.pretrained, config.revision)
    return train_tokenizer(config.tokenizer, transcripts)


class DecoderCache(ABC):
    """A decoder's key-value cache, or an equivalent state. The last positions of each row can be removed.

    Dimensions: B rows · P positions in the cache · L new positions · H channels · V token ids
    """

    @abstractmethod
    def extend(self, embeddings: Tensor, mask: Tensor, num_kept: int) -> Tensor:
        """Append positions to the cache in one forward pass, and return the logits of the last positions.

        Args:
            embeddings: ``[B, L, H]``.
            mask: ``[B, L]`` bool, True on real positions. In each row, the real positions are contiguous. Padding may
                be on the right and, in the first call, also on the left.
            num_kept: number of positions, counted from the end, whose logits are returned.

        Returns:
            Logits ``[B, num_kept, V]``. Logits of padding are undefined. The logits of ids that ``generate`` never
            returns are ``-inf``.
        """

    @abstractmethod
    def keep(self, rows: Tensor, lengths: Tensor) -> None:
        """Select rows, and keep only the first real positions of each row.

        Args:
            rows: ``[K]`` int64, the indices of the rows to keep, in their new order.
            lengths: ``[K]`` int64, the number of real positions to keep in each of these rows, at least 1.
        """


class Decoder(nn.Module, ABC):
    """A causal language model with embeddings as input.

    Dimensions: B rows · L positions · H channels · V token ids
    """

    dim: int
    """Number of channels, H."""

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings ``[..., H]`` of token ids ``[...]``, with the scale that the model gives them."""

    @abstractmethod
    def forward(
        self, embeddings: Tensor, mask: Tensor, keep: Tensor, head: Head | None = None, num_shared: int = 0
    ) -> Tensor:
        """Compute logits only at the positions in ``keep``, in row-major order.

        Args:
            embeddings: ``[B, L, H]``, right-padded.
            mask: ``[B, L]`` bool, True on real positions.
            keep: ``[B, L]`` bool, True on positions whose logits are needed.
            head: see :data:`Head`. It is supported only if the config's ``plain_head`` is True.
            num_shared: number of positions at the start that are the same in all rows, such as the start of the
                prompt. ``keep`` is False on them. A decoder may compute these positions only once.

        Returns:
            Logits ``[keep.sum(), V]``, or the result of ``head``.
        """

    @abstractmethod
    def generate(self, embeddings: Tensor, mask: Tensor, **settings: Any) -> Any:
        """Generate token ids that follow left-padded ``embeddings [B, L, H]``.

        ``settings`` are those of transformers' ``generate``.

        Returns:
            Token ids ``[B, new tokens]``, or transformers' output object if ``return_dict_in_generate`` is set.
        """

    @abstractmethod
    def cache(self) -> DecoderCache | None:
        """Return an empty cache, or None if the model has a state that cannot be cropped, such as a recurrent state."""

    @abstractmethod
    def embedding_rms(self) -> float:
        """Return the root mean square of the token embeddings."""

    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """Return a JSON object from which the builder can rebuild this decoder without its checkpoint."""


DECODERS: Registry[DecoderConfig, Decoder] = Registry(
    "decoder", DecoderConfig, package=__name__, entry_points="tiny_audio.decoders"
)
"""Registered decoders. Builders have the arguments ``(config, context: DecoderContext)``."""
