"""Limits on the length of clips, prompt and transcripts. They follow from the configs of the recipe's parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from tiny_audio.config import first_line
from tiny_audio.data.evaluation_clips import UNBOUNDED_DURATION_S
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.model.limits import longest_clip_s, num_embeddings
from tiny_audio.projectors import PROJECTORS, ProjectorContext

if TYPE_CHECKING:
    from tiny_audio.recipe import Recipe

Errors = Iterator[tuple[str, str]]
"""Pairs of (location in the recipe, message)."""

_WIDTH = 64
"""An arbitrary width for the projector. The number of embeddings does not depend on the width."""


class ContextLimits:
    """The decoder positions that audio, prompt and text need, and the limits that follow from them.

    Args:
        num_prompt_ids: number of tokens of the prompt. 0 if the tokenizer is not known yet.
    """

    def __init__(self, recipe: Recipe, num_prompt_ids: int = 0) -> None:
        self.recipe = recipe
        rate = recipe.encoder.num_frames(60 * SAMPLE_RATE) / 60
        with torch.device("meta"):
            self._projector = PROJECTORS.build(recipe.projector, ProjectorContext(_WIDTH, _WIDTH, rate, 1.0))
        self.max_positions = recipe.decoder.max_positions()
        """Number of positions of the decoder. None if it has no limit."""
        self.longest_training_s = recipe.data.max_duration_s / min(*recipe.augmentation.speeds(), 1.0)
        """Maximum duration of a training clip in seconds, after ``augmentation.speed`` has slowed it down."""
        self.audio = num_embeddings(recipe.encoder, self._projector, self.longest_training_s)
        """Number of positions that the audio of the longest training clip takes."""
        context = recipe.prompt.context
        self.prompt = num_prompt_ids + (context.max_tokens if context else 0)
        """Number of positions of the prompt, including the longest context."""

    @property
    def needed(self) -> int:
        """Number of positions for the longest training clip, the prompt, and ``generation.max_new_tokens`` tokens."""
        return self.audio + self.prompt + self.recipe.generation.max_new_tokens

    @property
    def max_target_ids(self) -> int | None:
        """Maximum number of target tokens that fit in addition to the prompt and the longest training clip.

        The end token is included. None if there is no limit.
        """
        return None if self.max_positions is None else self.max_positions - self.audio - self.prompt

    @property
    def longest_evaluation_s(self) -> float:
        """Maximum duration of a clip that is scored, in seconds."""
        text = self.prompt + self.recipe.generation.max_new_tokens
        return longest_clip_s(self.recipe.encoder, self._projector, self.max_positions, text, UNBOUNDED_DURATION_S)


def limit_errors(recipe: Recipe) -> Errors:
    """Yield the location and a message for each limit that the shortest or the longest clip violates.

    Limits of a checkpoint are checked only if its config was read or is in the table of well-known checkpoints.
    """
    data = recipe.data
    if data.min_duration_s >= data.max_duration_s:
        yield (
            "data.min_duration_s",
            f"{data.min_duration_s} leaves no clip below max_duration_s {data.max_duration_s}; lower min_duration_s",
        )
    if recipe.batching.max_padded_s is not None and recipe.batching.max_padded_s < data.max_duration_s:
        yield (
            "batching.max_padded_s",
            f"{recipe.batching.max_padded_s} s cannot hold one clip of data.max_duration_s {data.max_duration_s} s; "
            "raise max_padded_s, or lower data.max_duration_s",
        )
    speeds = recipe.augmentation.speeds()
    slowest, fastest = min(*speeds, 1.0), max(*speeds, 1.0)
    shortest, longest = data.min_duration_s / fastest, data.max_duration_s / slowest
    try:
        frames = recipe.encoder.num_frames(int(shortest * SAMPLE_RATE))
        limit = recipe.encoder.max_duration_s()
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        if not recipe.encoder.known_fields():
            raise
        # transformers would reject wrong values of the encoder's fields, but these checks run without transformers.
        # Therefore a wrong value raises an error only when it is used.
        field = "overrides" if recipe.encoder.init == "random" else "pretrained"
        yield (
            f"encoder.{recipe.encoder.name}.{field}",
            f"the frames of a clip cannot be counted with these values: {first_line(error)}; correct or remove them",
        )
        return
    # Compare samples, because a division by the speed may round up: 21 s / 0.7 is 30.000000000000004 s.
    if limit is not None and round(longest * SAMPLE_RATE) > round(limit * SAMPLE_RATE):
        slowed = f", slowed down by augmentation.speed to {longest:.1f} s," if slowest < 1 else ""
        yield (
            "data.max_duration_s",
            f"{data.max_duration_s} s{slowed} is more than the {limit:g} s that encoder {recipe.encoder.name!r} "
            f"accepts; set at most {limit * slowest:g}",
        )
    if frames < recipe.projector.min_frames():
        sped_up = f", sped up by augmentation.speed to {shortest:.2f} s," if fastest > 1 else ""
        yield (
            f"projector.{recipe.projector.name}",
            f"needs {recipe.projector.min_frames()} encoder frames, but a clip of data.min_duration_s "
            f"{data.min_duration_s} s{sped_up} has {frames}; shrink the projector's window or raise "
            "data.min_duration_s",
        )
    else:
        yield from _context(recipe, longest)


def _context(recipe: Recipe, longest_s: float) -> Errors:
    """Check that the decoder has enough positions for the longest clip and its transcript.

    Of the prompt, only ``prompt.context`` is counted. To count its few other tokens, the tokenizer would be needed.
    """
    try:
        limits = ContextLimits(recipe)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        yield f"projector.{recipe.projector.name}", f"cannot be built: {first_line(error)}; use smaller values"
        return
    if limits.max_positions is not None and limits.needed > limits.max_positions:
        yield (
            f"decoder.{recipe.decoder.name}",
            f"has {limits.max_positions} positions, but a clip of {longest_s:g} s can need {limits.needed} (audio "
            f"embeddings{', prompt.context.max_tokens' if limits.prompt else ''} and generation.max_new_tokens); lower "
            "data.max_duration_s or max_new_tokens, or merge more frames in the projector",
        )
