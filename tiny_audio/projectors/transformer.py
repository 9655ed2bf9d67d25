"""A few Transformer encoder layers on stacked frames, as in the modality adapter of NeMo's SALM."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from tiny_audio.frames import length_mask
from tiny_audio.projectors import PROJECTORS, Frames, Projector, ProjectorConfig, ProjectorContext
from tiny_audio.projectors._attention import Attention, check_heads, initialize
from tiny_audio.projectors._layers import FeedForward, normalize, num_windows, output_norm, windows


class TransformerConfig(ProjectorConfig):
    """Transformer layers on stacked frames: every embedding can attend to the whole clip.

    SALM (Chen et al. 2023, arXiv 2310.09424) has two Conformer layers with 1024 channels and 8 heads between a
    FastConformer and a language model. One SALM model is as accurate as two Conformers, one for recognition and one for
    translation. Instead of Conformer layers, this projector has Transformer layers with pre-norm and rotary positions
    (Su et al. 2021, arXiv 2104.09864).
    """

    name: Literal["transformer"] = "transformer"
    stack: PositiveInt = 5
    """Number of neighboring encoder frames that are joined into one embedding before the layers."""
    dim: PositiveInt = 1024
    """Number of channels of the layers. 1024 in SALM."""
    num_layers: int = Field(default=2, ge=1, le=100)
    """Number of layers, each with self-attention and a feed-forward network. 2 in SALM."""
    num_heads: PositiveInt = 8
    """Number of attention heads. ``dim`` must be a multiple of twice this number. 8 in SALM."""
    feedforward_dim: PositiveInt = 4096
    """Number of channels inside the feed-forward layers, usually 4 × ``dim``."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the attention weights and of every layer's output. 0.1 is usual."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        check_heads(self.dim, self.num_heads)
        if self.dim // self.num_heads % 2:
            raise ValueError(
                f"with dim {self.dim} and num_heads {self.num_heads}, each head has {self.dim // self.num_heads} "
                "channels, but rotary positions need an even number; set dim to a multiple of twice num_heads"
            )
        return self

    def min_frames(self) -> int:
        """Return the number of frames in a stack."""
        return self.stack

    @classmethod
    def tiny(cls) -> Self:
        """Return a config with 32 channels and 4 heads."""
        return cls(dim=32, num_heads=4, feedforward_dim=64)


@PROJECTORS.register
def build_transformer(config: TransformerConfig, context: ProjectorContext) -> Projector:
    """Build the projector with random weights."""
    return TransformerProjector(config, context)


class TransformerProjector(Projector):
    """Stack k frames → linear → encoder layers → LayerNorm → linear → RMSNorm."""

    def __init__(self, config: TransformerConfig, context: ProjectorContext) -> None:
        super().__init__()
        self.stack = config.stack
        self.up = nn.Linear(config.stack * context.in_dim, config.dim)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.dim)
        self.down = nn.Linear(config.dim, context.out_dim)
        self.apply(initialize)
        self.output_norm = output_norm(config, context)

    def max_embeddings(self, num_frames: Tensor) -> Tensor:
        """Return the number of stacks."""
        return num_windows(num_frames, self.stack)

    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """Map frames ``[B, T, D]`` to embeddings ``[B, ⌈T/k⌉, H]``. The last stack is padded with zeros."""
        # [B, T, D] -> [B, T/k, k·D]
        values = self.up(windows(frames.zeroed().values, self.stack).flatten(2))
        lengths = self.max_embeddings(frames.lengths)
        mask = length_mask(lengths, values.shape[1])
        for layer in self.layers:
            values = layer(values, mask)
        return normalize(self.output_norm, self.down(normalize(self.norm, values))), lengths


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with pre-norm and a residual connection."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.dim)
        self.attention = Attention(config.dim, config.num_heads, dropout=config.dropout, rotary=True)
        self.feedforward_norm = nn.LayerNorm(config.dim)
        self.feedforward = FeedForward(config.dim, config.feedforward_dim, config.dim, nn.GELU)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Map ``[B, T, C]`` and a bool mask ``[B, T]`` to ``[B, T, C]``."""
        normalized = normalize(self.attention_norm, values)
        values = values + self.dropout(self.attention(normalized, normalized, mask))
        added: Tensor = values + self.dropout(self.feedforward(normalize(self.feedforward_norm, values)))
        return added
