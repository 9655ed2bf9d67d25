"""Learned queries that attend to speech frames, as in BLIP-2's Q-Former (Li et al. 2023, arXiv 2301.12597)."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from tiny_audio.projectors import PROJECTORS, Frames, Projector, ProjectorConfig, ProjectorContext
from tiny_audio.projectors._attention import Attention, check_heads, initialize
from tiny_audio.projectors._layers import FeedForward, init_normal, normalize, num_windows, output_norm, windows

_GRANITE_WINDOW, _GRANITE_QUERIES, _BLIP2_QUERIES = 15, 3, 32


class QFormerConfig(ProjectorConfig):
    """Q-Former: learned queries attend to the frames of a window or of a whole clip.

    A window is a group of consecutive frames. Mode ``windowed`` is the projector of Granite Speech (Saon et al. 2025,
    arXiv 2505.08699), which has 3 queries per window of 15 frames. Granite Speech models have an average WER of 5.5% to
    6% on the Open ASR Leaderboard. SALMONN (Tang et al. 2023, arXiv 2310.13289) has 1 query per 0.33 s: ``window: 17,
    num_queries: 1, cross_attention_every: 2`` at 50 Hz. Mode ``global`` is the projector of BLIP-2 (Li et al. 2023,
    arXiv 2301.12597). In this mode, every clip has the same number of embeddings, which saves time but reduces accuracy
    on long clips.
    """

    name: Literal["qformer"] = "qformer"
    mode: Literal["windowed", "global"] = "windowed"
    """``windowed``: the queries attend to each window separately. ``global``: the queries attend to the whole clip."""
    window: PositiveInt | None = None
    """Number of encoder frames per window. If None, it is 15, as in Granite. Not used in mode ``global``."""
    num_queries: PositiveInt | None = None
    """Number of embeddings per window or, in mode ``global``, per clip. If None, it is 3 per window, as in Granite, or
    32 per clip, as in BLIP-2 (64 in SLAM-LLM). In mode ``windowed``, ``window`` must be a multiple of this number."""
    dim: PositiveInt = 1024
    """Number of channels of the queries. 1024 in Granite, 768 in BLIP-2 and SALMONN."""
    num_layers: int = Field(default=2, ge=1, le=100)
    """Number of layers. Each has self-attention, a feed-forward network and, depending on ``cross_attention_every``,
    cross-attention. 2 in Granite and SALMONN, 12 in BLIP-2."""
    num_heads: PositiveInt = 16
    """Number of attention heads. ``dim`` must be a multiple of this number. 16 in Granite, 12 in BLIP-2."""
    feedforward_dim: PositiveInt = 4096
    """Number of channels inside the feed-forward layers, usually 4 × ``dim``."""
    cross_attention_every: PositiveInt = 1
    """Distance between layers with cross-attention. 1: every layer, as in Granite. 2: the first, third, fifth, … layer,
    as in BLIP-2."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the attention weights and of every layer's output. 0.1 in Granite."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        check_heads(self.dim, self.num_heads)
        if self.cross_attention_every > self.num_layers:
            raise ValueError(
                f"cross_attention_every {self.cross_attention_every} is more than num_layers {self.num_layers}; lower "
                "cross_attention_every, or raise num_layers"
            )
        if self.mode == "global":
            if self.window is not None:
                raise ValueError(
                    f"window {self.window} has no effect in mode global; remove window, or set mode: windowed"
                )
            return self
        window, queries = self.frames_per_window(), self.queries_per_window()
        if window % queries:
            raise ValueError(
                f"window {window} is not a multiple of num_queries {queries}; set window to a multiple, such as "
                f"{(window // queries + 1) * queries}"
            )
        return self

    def frames_per_window(self) -> int:
        """Return the number of frames in a window in mode ``windowed``."""
        return _GRANITE_WINDOW if self.window is None else self.window

    def queries_per_window(self) -> int:
        """Return the number of queries per window or, in mode ``global``, per clip."""
        if self.num_queries is not None:
            return self.num_queries
        return _GRANITE_QUERIES if self.mode == "windowed" else _BLIP2_QUERIES

    def min_frames(self) -> int:
        """Return the number of frames in a window, or 1 in mode ``global``."""
        return self.frames_per_window() if self.mode == "windowed" else 1

    @classmethod
    def tiny(cls) -> Self:
        """Return a config with 32 channels and 4 heads."""
        return cls(dim=32, num_heads=4, feedforward_dim=64)


@PROJECTORS.register
def build_qformer(config: QFormerConfig, context: ProjectorContext) -> Projector:
    """Build the projector with random weights."""
    return QFormerProjector(config, context)


class QFormerProjector(Projector):
    """Queries → LayerNorm → layers with cross-attention to the frames → linear → RMSNorm.

    Dimensions: W windows of the longest clip · Q queries · C channels of the queries
    """

    def __init__(self, config: QFormerConfig, context: ProjectorContext) -> None:
        super().__init__()
        self.window = config.frames_per_window() if config.mode == "windowed" else None
        self.queries = nn.Parameter(torch.empty(config.queries_per_window(), config.dim))
        self.norm = _layer_norm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            QFormerLayer(config, context.in_dim if index % config.cross_attention_every == 0 else None)
            for index in range(config.num_layers)
        )
        self.down = nn.Linear(config.dim, context.out_dim)
        self.apply(initialize)
        init_normal(self.queries, std=1.0)
        self.output_norm = output_norm(config, context)

    def max_embeddings(self, num_frames: Tensor) -> Tensor:
        """Return the number of queries times the number of windows, or the number of queries in mode ``global``."""
        if self.window is None:
            return torch.full_like(num_frames, len(self.queries))
        return num_windows(num_frames, self.window) * len(self.queries)

    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """Map frames ``[B, T, D]`` to embeddings ``[B, W·Q, H]``, or to ``[B, Q, H]`` in mode ``global``.

        The last window of a clip is padded with zeros, which are not masked, as in Granite. In mode ``global``, padding
        is masked.
        """
        values, mask = frames.zeroed().values, None
        if self.window is None:
            mask = frames.mask()
        else:
            # [B, T, D] -> [B·W, k, D]
            values = windows(values, self.window).flatten(0, 1)
        found = self.dropout(normalize(self.norm, self.queries))[None]
        for layer in self.layers:
            found = layer(found, values, mask)
        # [B·W, Q, C] -> [B, W·Q, C]
        found = found.reshape(len(frames.values), -1, found.shape[-1])
        return normalize(self.output_norm, self.down(found)), self.max_embeddings(frames.lengths)


class QFormerLayer(nn.Module):
    """Self-attention, then cross-attention to the frames if ``frames_dim`` is given, then feed-forward."""

    def __init__(self, config: QFormerConfig, frames_dim: int | None) -> None:
        super().__init__()
        self.self_attention = AttentionBlock(config, config.dim)
        self.cross_attention = None if frames_dim is None else AttentionBlock(config, frames_dim)
        self.feedforward = FeedForward(config.dim, config.feedforward_dim, config.dim, nn.GELU)
        self.norm = _layer_norm(config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, queries: Tensor, frames: Tensor, mask: Tensor | None) -> Tensor:
        """Map queries ``[B, Q, C]`` (or ``[1, Q, C]`` for all clips) and frames ``[B, T, D]`` to ``[B, Q, C]``."""
        queries = self.self_attention(queries, queries)
        if self.cross_attention is not None:
            queries = self.cross_attention(queries, frames, mask)
        return normalize(self.norm, queries + self.dropout(self.feedforward(queries)))


class AttentionBlock(nn.Module):
    """Attention with a residual connection and post-norm, as in BERT."""

    def __init__(self, config: QFormerConfig, key_dim: int) -> None:
        super().__init__()
        self.attention = Attention(config.dim, config.num_heads, key_dim=key_dim, dropout=config.dropout)
        self.norm = _layer_norm(config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map queries ``[B, Q, C]`` or ``[1, Q, C]``, keys ``[B, K, D]`` and bool mask ``[B, K]`` to ``[B, Q, C]``."""
        return normalize(self.norm, queries + self.dropout(self.attention(queries, keys, mask)))


def _layer_norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=1e-12)
