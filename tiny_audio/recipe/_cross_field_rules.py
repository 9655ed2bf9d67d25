"""Rules across the sections of a recipe. They find combinations of fields that would fail later or have no effect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiny_audio.analysis.scoring.metrics import METRICS
from tiny_audio.recipe.limits import Errors, limit_errors
from tiny_audio.registry import did_you_mean

if TYPE_CHECKING:
    from tiny_audio.recipe import Recipe


def cross_field_errors(recipe: Recipe) -> Errors:
    """Yield the errors of all rules."""
    for rule in _RULES:
        yield from rule(recipe)


def _evaluation(recipe: Recipe) -> Errors:
    """Check the evaluation sets, the steps at which they are scored, and ``generation`` fields that need a CTC head."""
    data, execution = recipe.data, recipe.execution
    for name in sorted(data.train.keys() & data.evaluation.keys()):
        yield (
            f"data.evaluation.{name}",
            "is also the name of a training set; rename one of the two sets, because the names identify clips",
        )
    if execution.evaluate_every is not None and execution.evaluate_every > recipe.training.steps:
        yield (
            "execution.evaluate_every",
            f"{execution.evaluate_every} must be at most training.steps, {recipe.training.steps}; lower "
            "evaluate_every, or remove it",
        )
    if (execution.evaluate_every is None) != (execution.evaluate_set is None):
        yield "execution.evaluate_set", "works only together with execution.evaluate_every; set both or neither"
    elif execution.evaluate_set is not None and execution.evaluate_set not in data.evaluation:
        yield (
            "execution.evaluate_set",
            f"there is no set {execution.evaluate_set!r} in data.evaluation; "
            f"{did_you_mean(execution.evaluate_set, data.evaluation)}",
        )
    if recipe.generation.ctc_weight and recipe.ctc is None:
        yield "generation.ctc_weight", "needs a CTC head; add a `ctc` section, or set ctc_weight to 0"
    if recipe.generation.draft == "ctc" and recipe.ctc is None:
        yield "generation.draft", "ctc needs a CTC head; add a `ctc` section, or remove draft"


def _final_weights(recipe: Recipe) -> Errors:
    """Check that the run makes the evaluations and checkpoints that determine the final weights."""
    training, execution = recipe.training, recipe.execution
    if training.average_last is not None:
        last = 1 + (training.steps - 1) // execution.checkpoint_every
        if last < training.average_last:
            yield (
                "training.average_last",
                f"{training.average_last} must be at most {last}, the number of checkpoints of {training.steps} steps "
                f"with execution.checkpoint_every: {execution.checkpoint_every}; lower average_last or "
                "checkpoint_every",
            )
    best = training.keep_best
    if best is None:
        return
    allowed = [metric.key for metric in METRICS if metric.compute is not None]
    if best.metric not in allowed:
        yield (
            "training.keep_best.metric",
            f"{best.metric!r} is not a metric of evaluations during training; {did_you_mean(best.metric, allowed)}",
        )
    if best.set not in recipe.data.evaluation:
        yield (
            "training.keep_best.set",
            f"there is no set {best.set!r} in data.evaluation; {did_you_mean(best.set, recipe.data.evaluation)}",
        )
        return
    if execution.evaluate_every is None:
        yield (
            "training.keep_best",
            f"needs evaluations during training; set execution.evaluate_every, and execution.evaluate_set: {best.set}",
        )
        return
    if execution.evaluate_set not in (None, best.set):
        yield (
            "training.keep_best.set",
            f"{best.set!r} is not execution.evaluate_set, {execution.evaluate_set!r}, which is scored during training; "
            "set both to the same set",
        )
    num_evaluations = -(-training.steps // execution.evaluate_every)
    if num_evaluations == 1:
        yield (
            "training.keep_best",
            f"has no effect with a single evaluation: execution.evaluate_every is {execution.evaluate_every}, and "
            f"training.steps is {training.steps}; lower evaluate_every",
        )
        return
    alone = recipe.alone_steps // execution.evaluate_every  # number of evaluations before the decoder is trained
    most = num_evaluations - 1 - max(1, alone)
    if best.patience is not None and best.patience > most:
        yield (
            "training.keep_best.patience",
            f"{best.patience} never stops the run before its last step, because there are only {num_evaluations} "
            "evaluations"
            + (f", {alone} of them in alignment.alone_steps; " if alone else "; ")
            + (f"set at most {most}" if most > 0 else "lower execution.evaluate_every"),
        )


def _parts(recipe: Recipe) -> Errors:
    """Check that the fields of the encoder and the decoder can be used and have an effect."""
    training = recipe.training
    taken = training.init_from
    for kind, part in (("encoder", recipe.encoder), ("decoder", recipe.decoder)):
        place = f"{kind}.{part.name}"
        if part.attention == "flash_attention_2" and (
            training.precision != "bf16" or recipe.execution.device in ("cpu", "mps")
        ):
            yield (
                f"{place}.attention",
                "flash_attention_2 needs a GPU and half precision; set training.precision: bf16, or use sdpa",
            )
        for field in ("learning_rate", "weight_decay"):
            # The coefficients of `layer: weighted` are trained even if the encoder is frozen, so `learning_rate` has an
            # effect. `weight_decay` has none, because it does not apply to tensors of one dimension.
            weighted = field == "learning_rate" and kind == "encoder" and recipe.encoder.layer == "weighted"
            if getattr(part, field) is not None and part.freeze and part.lora is None and not weighted:
                yield f"{place}.{field}", "has no effect, because the part is frozen; remove it, or add lora"
        if part.gradient_checkpointing and not _has_gradients(recipe, kind):
            yield (
                f"{place}.gradient_checkpointing",
                "has no effect, because no gradient passes through the part; remove it, or train the part",
            )
        if part.init == "random" and part.freeze and not (taken and taken.takes(kind)):
            yield (
                f"{place}.freeze",
                "frozen random weights stay random; set freeze: false or init: pretrained, or take the "
                f"{kind} from another run with training.init_from",
            )


def _has_gradients(recipe: Recipe, kind: str) -> bool:
    """Whether gradients pass through a part."""
    if kind == "decoder":
        return True  # gradients pass through the decoder to the projector, which is always trained
    return not recipe.encoder.freeze or recipe.encoder.lora is not None


def _frame_cache(recipe: Recipe) -> Errors:
    """Check that ``cache_frames_gb`` is set only if a clip's frames are the same in every epoch."""
    if recipe.execution.cache_frames_gb is None:
        return
    place, encoder = "execution.cache_frames_gb", recipe.encoder
    if not encoder.freeze or encoder.lora is not None or encoder.layer == "weighted":
        yield (
            place,
            "needs an encoder that is not trained; remove cache_frames_gb, or set encoder.freeze: true without lora "
            "and without layer: weighted",
        )
    if encoder.dropout:
        yield (
            place,
            f"needs the same frames in every epoch, but encoder.dropout is {encoder.dropout}; remove one of the two "
            "fields",
        )
    for section, value in recipe.augmentation:
        if value is not None:
            yield (
                place,
                f"needs the same frames in every epoch, but augmentation.{section} changes them; remove one of the two "
                "fields",
            )
    if recipe.execution.parallel == "fsdp":
        yield place, "does not work with execution.parallel: fsdp; set parallel to ddp, or remove cache_frames_gb"


def _ctc(recipe: Recipe) -> Errors:
    """Check that there is a CTC head if another section needs it, and that a pretrained head exists and can be used."""
    taken = recipe.training.init_from
    if recipe.ctc is None:
        if recipe.projector.needs_ctc:
            yield f"projector.{recipe.projector.name}", "needs the labels of a CTC head; add a `ctc` section"
        if taken and "ctc_head" in (taken.parts or ()):
            yield (
                "training.init_from.parts",
                "ctc_head is not part of this recipe; add a `ctc` section, or remove ctc_head",
            )
        return
    if recipe.ctc.init != "pretrained":
        return
    encoder = recipe.encoder
    if encoder.init != "pretrained":
        yield "ctc.init", f"the encoder {encoder.name!r} has random weights and no pretrained head; set init: random"
    elif encoder.ctc_head is None:
        yield "ctc.init", f"checkpoints of the encoder {encoder.name!r} have no CTC head; set init: random"
    if encoder.layer != "last":
        yield (
            "ctc.init",
            f"the head was trained on the last layer, but encoder.layer is {encoder.layer}; set it to last",
        )
    if taken and taken.takes("ctc_head"):
        yield "ctc.init", "the head already comes from training.init_from; set init: random"


def _optimization(recipe: Recipe) -> Errors:
    """Check that the fields for optimization are compatible with each other, with the decoder and with the device."""
    training, device = recipe.training, recipe.execution.device
    if training.warmup_steps >= training.steps:
        yield (
            "training.warmup_steps",
            f"{training.warmup_steps} must be less than training.steps, {training.steps}; lower warmup_steps",
        )
    alignment = recipe.alignment
    if alignment is not None and alignment.alone_steps is not None and alignment.alone_steps >= training.steps:
        yield (
            "alignment.alone_steps",
            f"{alignment.alone_steps} must be less than training.steps, {training.steps}, because the decoder is not "
            "trained in these steps; lower alone_steps",
        )
    if training.schedule == "constant" and training.final_learning_rate_ratio:
        yield (
            "training.final_learning_rate_ratio",
            "has no effect with schedule: constant; set final_learning_rate_ratio to 0",
        )
    for beta in training.adam_betas:
        if not 0 <= beta < 1:
            yield "training.adam_betas", f"each must be at least 0 and below 1, not {beta}"
    if recipe.execution.fused_cross_entropy and device in ("cpu", "mps"):
        yield (
            "execution.fused_cross_entropy",
            f"needs a CUDA GPU, but execution.device is {device}; set fused_cross_entropy to false",
        )
    if recipe.execution.fused_cross_entropy and not recipe.decoder.plain_head:
        yield (
            "execution.fused_cross_entropy",
            f"is not supported by the decoder {recipe.decoder.name!r}, which may transform its logits; set "
            "fused_cross_entropy to false",
        )
    if recipe.execution.compile and recipe.decoder.quantization:
        yield (
            "execution.compile",
            f"does not support decoder.quantization: {recipe.decoder.quantization}; set compile to false",
        )
    if training.tf32 and device in ("cpu", "mps"):
        yield "training.tf32", f"has no effect with execution.device: {device}; set tf32 to false"


_RULES = (limit_errors, _evaluation, _final_weights, _parts, _frame_cache, _ctc, _optimization)
