"""Compute the FLOPs of a training step from its clips. The formulas are fitted to dry runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tiny_audio.plan._step import Device, DryRunResult, Shape, dry_run
from tiny_audio.recipe import Recipe, content_hash


@dataclass(frozen=True)
class Work:
    """FLOPs of a forward and a backward pass over a clip, without padding.

    As in ``tiny-audio plan``, the forward pass of a layer counts twice if gradient checkpointing recomputes it.
    """

    audio: tuple[float, float, float]
    """FLOPs of the encoder, the projector and the CTC head together: per clip, per second, and per second². For
    example, a clip of 2 s needs ``audio[0] + 2 * audio[1] + 4 * audio[2]`` FLOPs."""
    decoder: tuple[float, float, float]
    """FLOPs of the decoder: per position, per position², and per target token. Only target tokens have logits."""
    prompt_tokens: int
    """Number of tokens of the prompt, without context."""
    embeddings_per_s: float
    """Number of audio embeddings per second of audio."""

    def flops(
        self,
        durations_s: Sequence[float],
        num_tokens: Sequence[int],
        context_tokens: Sequence[int] | None = None,
        skip_decoder: bool = False,
    ) -> float:
        """Return the total FLOPs of several clips.

        Args:
            durations_s: duration of each clip, without padding.
            num_tokens: number of tokens of each clip's transcript, end token included.
            context_tokens: number of tokens of each clip's context. None if there are no contexts.
            skip_decoder: whether the decoder is left out.
        """
        seconds, tokens = np.asarray(durations_s, dtype=np.float64), np.asarray(num_tokens, dtype=np.float64)
        by_audio = np.stack([np.ones_like(seconds), seconds, seconds**2]).sum(1) @ self.audio
        if skip_decoder:
            return float(by_audio)
        positions = _positions(self.prompt_tokens, self.embeddings_per_s, seconds, tokens)
        if context_tokens is not None:
            positions = positions + np.asarray(context_tokens, dtype=np.float64)
        return float(by_audio + np.stack([positions, positions**2, tokens]).sum(1) @ self.decoder)


def work_of(recipe: Recipe, device: Device) -> Work:
    """Return formulas for the FLOPs of a clip, fitted to dry runs of a short clip, a medium clip and the longest clip.

    The FLOPs of attention are quadratic in the length of the clip. All other FLOPs are linear.

    Raises:
        UserError: a part cannot be built; see :func:`tiny_audio.plan.meta.build_on_meta`.
    """
    parts = recipe.model_dump(mode="json", include={"encoder", "projector", "decoder", "ctc", "prompt"})
    durations = recipe.data.min_duration_s, recipe.data.max_duration_s
    computation = recipe.training.precision, recipe.execution.fused_cross_entropy, device
    key = content_hash([parts, durations, computation])
    if key not in _KNOWN:
        _KNOWN[key] = _fit(recipe, device)
    return _KNOWN[key]


_KNOWN: dict[str, Work] = {}
"""Cache of the results in this process. Sweeps and benchmarks train the same model many times."""


def _fit(recipe: Recipe, device: Device) -> Work:
    longest = recipe.data.max_duration_s
    shortest = max(recipe.data.min_duration_s, longest / 8)
    # The middle clip has twice the usual text. Otherwise, tokens and positions would grow together, and their FLOPs
    # could hardly be separated.
    points = [
        dry_run(recipe, Shape(1, seconds), device, text_share=share, context_tokens=0)
        for seconds, share in ((shortest, 1), ((shortest + longest) / 2, 2), (longest, 1))
    ]
    seconds = np.array([point.shape.duration_s for point in points])
    tokens = np.array([point.num_tokens for point in points], dtype=np.float64)
    rate = next(row["frame_rate_hz"] for row in points[0].parts if row["part"] == "projector")
    prompt = points[0].prompt_tokens
    positions = _positions(prompt, rate, seconds, tokens)
    decoder = np.array([_flops(point, decoder=True) for point in points])
    audio = np.array([_flops(point, decoder=False) for point in points])
    return Work(
        tuple(np.linalg.solve(np.vander(seconds, 3, increasing=True), audio).tolist()),
        tuple(np.linalg.solve(np.stack([positions, positions**2, tokens], axis=1), decoder).tolist()),
        prompt,
        rate,
    )


def _positions(prompt_tokens: int, embeddings_per_s: float, seconds: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return the number of positions that the decoder reads for each clip. The end token is not read."""
    positions: np.ndarray = prompt_tokens + embeddings_per_s * seconds + tokens - 1
    return positions


def _flops(point: DryRunResult, *, decoder: bool) -> int:
    return sum(sum(counts.values()) for part, counts in point.flops.items() if (part == "decoder") == decoder)
