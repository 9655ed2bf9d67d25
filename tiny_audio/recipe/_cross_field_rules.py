"""Rules that cross a recipe's sections: every pair that would fail later, or silently disable work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.pretrained import published
from tiny_audio.projectors import PROJECTORS, ProjectorContext
from tiny_audio.registry import did_you_mean

if TYPE_CHECKING:
    from tiny_audio.recipe import Recipe

Mistakes = Iterator[tuple[str, str]]
"""(place in the recipe, what is wrong there and what to do)"""


def cross_field_errors(recipe: Recipe) -> Mistakes:
    """All that a valid recipe may not say at once."""
    yield from _clips(recipe)
    yield from _evaluation(recipe)
    yield from _parts(recipe)
    yield from _ctc(recipe)
    yield from _optimization(recipe)


def _clips(recipe: Recipe) -> Mistakes:
    """Whether each part takes the shortest and the longest clip."""
    data = recipe.data
    if data.min_duration_s >= data.max_duration_s:
        yield (
            "data.min_duration_s",
            f"{data.min_duration_s} leaves no clip below max_duration_s {data.max_duration_s}; lower it",
        )
    if recipe.batching.max_padded_s is not None and recipe.batching.max_padded_s < data.max_duration_s:
        yield (
            "batching.max_padded_s",
            f"{recipe.batching.max_padded_s} s cannot hold one clip of data.max_duration_s {data.max_duration_s} s; "
            "raise it, or lower that",
        )
    speeds = recipe.augmentation.speed or (1.0,)
    slowest, fastest = min(*speeds, 1.0), max(*speeds, 1.0)
    shortest, longest = data.min_duration_s / fastest, data.max_duration_s / slowest
    try:
        frames = recipe.encoder.num_frames(int(shortest * SAMPLE_RATE))
        limit = recipe.encoder.max_duration_s()
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        if not recipe.encoder.overrides:
            raise
        # Overrides are free-form: only the architecture knows what they mean, and it is not loaded here.
        yield (
            f"encoder.{recipe.encoder.name}.overrides",
            f"the frames of a clip cannot be counted with them: {str(error).splitlines()[0]}; correct or remove them",
        )
        return
    if limit is not None and longest > limit:
        slowed = f", slowed down by augmentation.speed to {longest:.1f} s," if slowest < 1 else ""
        yield (
            "data.max_duration_s",
            f"{data.max_duration_s} s{slowed} is more than the {limit:g} s that encoder {recipe.encoder.name!r} "
            f"takes; set at most {limit * slowest:g}",
        )
    if frames < recipe.projector.min_frames():
        hurried = f", sped up by augmentation.speed to {shortest:.2f} s," if fastest > 1 else ""
        yield (
            f"projector.{recipe.projector.name}",
            f"needs {recipe.projector.min_frames()} encoder frames, and a clip of data.min_duration_s "
            f"{data.min_duration_s} s{hurried} has {frames}; shrink the projector's window or raise "
            "data.min_duration_s",
        )
    else:
        yield from _context(recipe, longest)


def _context(recipe: Recipe, longest_s: float) -> Mistakes:
    """Whether the decoder's context holds the longest clip and its transcript.

    The prompt's few words are left out: only the tokenizer can count them.
    """
    frames = recipe.encoder.num_frames(int(longest_s * SAMPLE_RATE))
    rate = recipe.encoder.num_frames(60 * SAMPLE_RATE) / 60
    width = 64  # of neighbors that are not known yet; the number of embeddings does not depend on it
    try:
        with torch.device("meta"):
            projector = PROJECTORS.build(recipe.projector, ProjectorContext(width, width, rate, 1.0))
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        yield f"projector.{recipe.projector.name}", f"cannot be built: {str(error).splitlines()[0]}; shrink its sizes"
        return
    limit = _max_positions(recipe)
    needed = int(projector.max_embeddings(torch.tensor([frames]))) + recipe.generation.max_new_tokens
    if limit is not None and needed > limit:
        yield (
            f"decoder.{recipe.decoder.name}",
            f"reads at most {limit} positions, and a clip of {longest_s:g} s can need {needed}: audio embeddings and "
            "generation.max_new_tokens; lower data.max_duration_s or max_new_tokens, or let the projector merge more "
            "frames",
        )


def _max_positions(recipe: Recipe) -> int | None:
    """Positions that the decoder can tell apart, where that is known without fetching anything."""
    decoder = recipe.decoder
    fields = decoder.overrides if decoder.init == "random" else published.architecture(decoder) or {}
    positions = fields.get("max_position_embeddings")
    return positions if isinstance(positions, int) else None


def _evaluation(recipe: Recipe) -> Mistakes:
    """What is scored, and when."""
    data, execution = recipe.data, recipe.execution
    for name in sorted(data.train.keys() & data.evaluation.keys()):
        yield (
            f"data.evaluation.{name}",
            "is a training set's name too; give it another, since names tell clips apart",
        )
    if execution.evaluate_every is not None and execution.evaluate_every > recipe.training.steps:
        yield (
            "execution.evaluate_every",
            f"{execution.evaluate_every} is past the last of {recipe.training.steps} steps; lower it, or leave it out",
        )
    if (execution.evaluate_every is None) != (execution.evaluate_set is None):
        yield "execution.evaluate_set", "and evaluate_every go together; give both or neither"
    elif execution.evaluate_set is not None and execution.evaluate_set not in data.evaluation:
        yield (
            "execution.evaluate_set",
            f"there is no set {execution.evaluate_set!r} in data.evaluation; "
            f"{did_you_mean(execution.evaluate_set, data.evaluation)}",
        )
    if recipe.generation.ctc_weight and recipe.ctc is None:
        yield "generation.ctc_weight", "needs a CTC head; add a `ctc` section, or set it to 0"
    if recipe.generation.draft == "ctc" and recipe.ctc is None:
        yield "generation.draft", "ctc needs a CTC head; add a `ctc` section, or leave draft out"


def _parts(recipe: Recipe) -> Mistakes:
    """What encoder and decoder are told, against what happens to them."""
    training = recipe.training
    taken = training.init_from.parts or ("encoder", "decoder") if training.init_from else ()
    for kind, part in (("encoder", recipe.encoder), ("decoder", recipe.decoder)):
        place = f"{kind}.{part.name}"
        if part.attention == "flash_attention_2" and (training.precision != "bf16" or recipe.execution.device == "cpu"):
            yield (
                f"{place}.attention",
                "flash_attention_2 runs in half precision on a GPU only; set training.precision: bf16, or sdpa here",
            )
        for field in ("learning_rate", "weight_decay"):
            # The weights of a weighted sum of layers train in a frozen encoder too, and have one dimension.
            weighted = field == "learning_rate" and getattr(part, "layer", None) == "weighted"
            if getattr(part, field) is not None and part.freeze and part.lora is None and not weighted:
                yield f"{place}.{field}", "has no effect where nothing trains; remove it, or add lora"
        if part.gradient_checkpointing and not _has_gradients(recipe, kind):
            yield (
                f"{place}.gradient_checkpointing",
                "saves nothing where no gradient passes; remove it, or train the part",
            )
        if part.init == "random" and part.freeze and kind not in taken:
            yield (
                f"{place}.freeze",
                "random weights that do not train stay random; set freeze: false, init: pretrained, or take the "
                f"{kind} from another run with training.init_from",
            )


def _has_gradients(recipe: Recipe, kind: str) -> bool:
    """Whether a backward pass goes through a part: it trains, or something below it does."""
    if kind == "decoder":
        return True  # the projector, below it, always trains
    return not recipe.encoder.freeze or recipe.encoder.lora is not None


def _ctc(recipe: Recipe) -> Mistakes:
    """Whether there is a CTC head for what reads it, and where it comes from."""
    taken = recipe.training.init_from
    if recipe.ctc is None:
        if recipe.projector.needs_ctc:
            yield f"projector.{recipe.projector.name}", "reads the CTC head's labels; add a `ctc` section"
        if taken and "ctc_head" in (taken.parts or ()):
            yield "training.init_from.parts", "ctc_head has no place to go; add a `ctc` section, or leave it out"
        return
    if recipe.ctc.init != "pretrained":
        return
    encoder = recipe.encoder
    if encoder.init != "pretrained":
        yield "ctc.init", f"the encoder {encoder.name!r} has random weights, so no head comes with it; set init: random"
    elif encoder.ctc_head is None:
        yield "ctc.init", f"checkpoints of the encoder {encoder.name!r} carry no head that spells; set init: random"
    if encoder.layer != "last":
        yield (
            "ctc.init",
            f"the head was trained on the last layer, and encoder.layer is {encoder.layer}; set it to last",
        )
    if taken and "ctc_head" in (taken.parts or ("ctc_head",)):
        yield "ctc.init", "the head comes from training.init_from already; set init: random"


def _optimization(recipe: Recipe) -> Mistakes:
    """The training section's fields, against each other and the device."""
    training = recipe.training
    if training.warmup_steps >= training.steps:
        yield "training.warmup_steps", f"{training.warmup_steps} leaves nothing of {training.steps} steps; lower it"
    if training.schedule == "constant" and training.final_learning_rate_ratio:
        yield "training.final_learning_rate_ratio", "has no effect under schedule: constant; set it to 0"
    for beta in training.adam_betas:
        if not 0 <= beta < 1:
            yield "training.adam_betas", f"each must be at least 0 and below 1, not {beta}"
    if recipe.execution.fused_cross_entropy and recipe.execution.device in ("cpu", "mps"):
        device = recipe.execution.device
        yield "execution.fused_cross_entropy", f"needs a CUDA GPU, and execution.device is {device}; set it to false"
    if recipe.execution.fused_cross_entropy and not recipe.decoder.plain_head:
        yield (
            "execution.fused_cross_entropy",
            f"the decoder {recipe.decoder.name!r} may do more to its logits than a fused head would; set it to false",
        )
    if training.tf32 and recipe.execution.device == "cpu":
        yield "training.tf32", "has no effect on execution.device: cpu; set it to false"
