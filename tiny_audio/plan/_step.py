"""Dry run of one training step, which gives its peak memory and the FLOPs of each part."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tiny_audio.config import UserError
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.plan._autocast import AutocastEmulation, use_flash_attention
from tiny_audio.plan._dry_run import BACKWARD, OTHER, DryRun
from tiny_audio.plan.meta import build_on_meta
from tiny_audio.pretrained.packing import PACKED
from tiny_audio.pretrained.quantization import quantized_layers
from tiny_audio.recipe import Recipe
from tiny_audio.runtime.device import frozen_type

if TYPE_CHECKING:
    from tiny_audio.model.model import TinyAudioModel

Device = Literal["cuda", "cpu"]
PARTS = ("encoder", "projector", "decoder", "ctc_head")

CHARACTERS_PER_S = 15
"""Average number of characters per second of English speech."""
CHARACTERS_PER_TOKEN = {"pretrained": 4.5, "bpe": 2.0, "characters": 1.0}
"""Assumed characters per token for three kinds of tokenizers: the tokenizer of a pretrained decoder, a BPE tokenizer
that is trained on the transcripts, and a tokenizer of single characters."""
_CHARACTERS_PER_HOTWORD, _CHARACTERS_PER_WORD = 13, 6
"""Assumed characters per hotword, and per word of the previous text, including separators. The number for hotwords is
larger, because rare words are split into more tokens."""
_MAX_CLIPS = 10_000
"""Maximum number of clips in a dry run. A dry run creates real lengths and transcripts, which takes time and memory."""
TEMPLATE_TOKENS = 30
"""Assumed number of tokens that a chat template adds to the messages."""


@dataclass(frozen=True)
class Shape:
    """The shape of a batch."""

    num_clips: int
    duration_s: float
    """Duration of the longest clip."""

    @property
    def padded_s(self) -> float:
        """Seconds of audio, padding included."""
        return self.num_clips * self.duration_s


@dataclass(frozen=True)
class DryRunResult:
    """Memory and FLOPs of one batch of a training step."""

    shape: Shape
    memory: dict[str, int]
    """Bytes at the time of the peak, for ``weights``, ``gradients``, ``optimizer``, ``activations_<part>``, ``logits``,
    ``backward`` and ``workspace``."""
    flops: dict[str, dict[str, int]]
    """FLOPs by part and direction (``forward`` or ``backward``)."""
    parts: list[dict[str, Any]]
    """Rows of :func:`tiny_audio.model.parts_table.describe_parts`."""
    approximate: bool
    """Whether sizes are estimates, because they depend on a vocabulary that is learned from the transcripts."""
    num_tokens: int
    """Number of tokens of the longest clip's transcript, including the end token."""
    prompt_tokens: int
    """Number of tokens of the prompt, including the context."""

    @property
    def peak_bytes(self) -> int:
        """Peak memory in bytes."""
        return sum(self.memory.values())

    @property
    def parameters(self) -> dict[str, dict[str, int]]:
        """Numbers of parameters by part: ``total`` and ``trainable``."""
        return {row["part"]: {key: row[key] for key in ("total", "trainable")} for row in self.parts}


def worst_shapes(recipe: Recipe) -> list[Shape]:
    """Return the batches that may need the most memory: one with the longest clips, and one with the most clips.

    Raises:
        UserError: a batch has too many clips.
    """
    data, augmentation = recipe.data, recipe.augmentation
    most, budget = recipe.batching.max_clips, recipe.batching.max_padded_s
    longest_s = augmentation.longest_s(data.max_duration_s, data.max_duration_s)
    if budget is not None:
        most = min(
            most, int(budget / augmentation.shortest_s(data.min_duration_s))
        )  # the number of shortest clips that fit
    if most > _MAX_CLIPS:
        raise UserError(
            f"batching allows batches of {most:,} clips, but a plan supports at most {_MAX_CLIPS:,}; lower "
            "batching.max_clips, or set batching.max_padded_s"
        )

    if budget is None or most * longest_s <= budget:
        return [Shape(most, longest_s)]
    # A batch of many short clips may need more memory, because it has more prompts and text. A clip that is longer than
    # the budget gets a batch of its own.
    return [Shape(max(1, int(budget // longest_s)), longest_s), Shape(most, budget / most)]


def dry_run_worst(recipe: Recipe, device: Device) -> DryRunResult:
    """Return the dry run of the batch that needs the most memory."""
    return max((dry_run(recipe, shape, device) for shape in worst_shapes(recipe)), key=lambda done: done.peak_bytes)


def dry_run(
    recipe: Recipe, shape: Shape, device: Device, text_share: float = 1.0, context_tokens: int | None = None
) -> DryRunResult:
    """Run a training step on one batch, with tensors that have no storage.

    The optimizer already has its moments, as after the first step.

    Args:
        device: the device whose kernels and allocator are emulated.
        context_tokens: number of tokens of each clip's context. If None, it is the maximum of the recipe.
        text_share: factor for the amount of text. 1 is the usual amount for a clip of this duration.

    Raises:
        UserError: a part cannot be built, see :func:`tiny_audio.plan.meta.build_on_meta`.
    """
    prompt_tokens = prompt_tokens_of(recipe, context_tokens)
    from tiny_audio.model.parts_table import describe_parts

    built = build_on_meta(recipe, prompt_tokens)
    model = built.model.train()
    autocast = torch.bfloat16 if recipe.training.precision == "bf16" else None
    # Use the same data types as the trainer.
    frozen = frozen_type(recipe.training.precision, device)
    for tensor in model.parameters():
        tensor.data = tensor.data.to(torch.float32 if tensor.requires_grad else frozen)
    for _, layer in quantized_layers(model):
        layer.set_type(frozen)
    # PyTorch's CUDA allocator returns multiples of 512 bytes. On a CPU, oneDNN copies the inputs and outputs of
    # convolutions into its own layouts.
    dry = DryRun(512 if device == "cuda" else 64, copies_convolutions=device == "cpu")
    trained = [tensor for tensor in model.parameters() if tensor.requires_grad]
    for tensor in (*model.parameters(), *model.buffers()):
        dry.account(tensor, "weights")
    moments = [torch.empty_like(tensor) for tensor in trained for _ in range(2)]
    for tensor in moments:
        dry.account(tensor, "optimizer")
    for tensor in trained:
        if recipe.training.accumulation > 1:  # gradients of earlier batches are in memory
            tensor.grad = torch.empty_like(tensor)
            dry.account(tensor.grad, "gradients")
        tensor.register_post_accumulate_grad_hook(
            lambda done: dry.account(done.grad, "gradients") if done.grad is not None else None
        )
    for part in PARTS:
        module = getattr(model, part)
        if module is not None:
            dry.follow(module, part, output="logits" if part in ("decoder", "ctc_head") else None)
    for part in ("encoder", "decoder"):
        if device == "cuda" and getattr(recipe, part).attention in PACKED:
            use_flash_attention(getattr(model, part))
    num_tokens = text_tokens_of(recipe, text_share * shape.duration_s)
    emulation = AutocastEmulation(device, autocast)
    with dry, emulation:
        loss = _loss(recipe, model, shape, num_tokens, fused=device == "cuda" and recipe.execution.fused_cross_entropy)
        emulation.leave_autocast()
        with dry.backward():
            emulation.backward(loss)
    return DryRunResult(
        shape,
        _by_kind(dry.at_peak),
        _by_part(dry.flops),
        describe_parts(model),
        built.approximate,
        num_tokens,
        prompt_tokens,
    )


def _loss(recipe: Recipe, model: TinyAudioModel, shape: Shape, num_tokens: int, *, fused: bool) -> Tensor:
    num_samples = int(shape.duration_s * SAMPLE_RATE)
    lengths = torch.full((shape.num_clips,), num_samples)
    if num_samples > SAMPLE_RATE:
        lengths[1:] -= SAMPLE_RATE // 10  # so that the batch has padding and needs a mask
    scores = model(
        torch.empty(shape.num_clips, num_samples, device="meta"),
        lengths,
        [torch.zeros(num_tokens, dtype=torch.long)] * shape.num_clips,
        [[1] * max(1, round(shape.duration_s * CHARACTERS_PER_S))] * shape.num_clips if recipe.ctc else None,
        transform=recipe.augmentation.of_features(range(shape.num_clips)),
        label_smoothing=recipe.training.label_smoothing,
        linear_cross_entropy=_in_chunks if fused else None,
    )
    loss: Tensor = scores.decoder_loss.sum()
    for auxiliary in (scores.ctc_loss, scores.alignment_loss):
        loss = loss if auxiliary is None else loss + auxiliary.sum()
    return loss


def _in_chunks(hidden: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Compute the losses in chunks, like liger-kernel. The logits of a chunk are about as large as ``hidden``."""

    def losses(hidden: Tensor, targets: Tensor) -> Tensor:
        logits = F.linear(hidden, weight).float()
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)

    count, (vocabulary, dim) = len(hidden), weight.shape
    positions = math.ceil(count / math.ceil(vocabulary / dim))
    size = 1 << (positions - 1).bit_length()
    chunks = zip(hidden.split(size), targets.split(size), strict=True)  # type: ignore[no-untyped-call]
    return torch.cat([checkpoint(losses, *chunk, use_reentrant=False) for chunk in chunks])


def _by_kind(at_peak: Counter[str]) -> dict[str, int]:
    kinds = {kind: at_peak[kind] for kind in ("weights", "gradients", "optimizer")}
    kinds |= {f"activations_{part}": at_peak[part] for part in PARTS}
    # Tensors outside the parts count as logits: spliced embeddings, losses, and probabilities computed from logits.
    kinds["logits"] = at_peak["logits"] + at_peak[OTHER]
    return kinds | {kind: at_peak[kind] for kind in (BACKWARD, "workspace")}


def _by_part(flops: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    parts = [part for part in PARTS if flops[part, "forward"]]
    return {part: {direction: flops[part, direction] for direction in ("forward", "backward")} for part in parts}


def _characters_per_token(recipe: Recipe) -> float:
    return CHARACTERS_PER_TOKEN[recipe.decoder.tokenizer.kind if recipe.decoder.tokenizer else "pretrained"]


def text_tokens_of(recipe: Recipe, duration_s: float) -> int:
    """Estimate the number of tokens of a clip's transcript, including the end token."""
    return max(2, round(duration_s * CHARACTERS_PER_S / _characters_per_token(recipe)) + 1)


def prompt_tokens_of(recipe: Recipe, context_tokens: int | None = None) -> int:
    """Estimate the number of tokens of the prompt. If ``context_tokens`` is None, the recipe's maximum is used."""
    text = f"{recipe.prompt.system or ''}{recipe.prompt.user.replace('{audio}', '')}"
    template = 3 if recipe.decoder.tokenizer else TEMPLATE_TOKENS
    if context_tokens is None:
        context_tokens = recipe.prompt.context.max_tokens if recipe.prompt.context else 0
    return template + round(len(text) / _characters_per_token(recipe)) + context_tokens


def mean_context_tokens(recipe: Recipe) -> int:
    """Estimate the mean number of tokens of a clip's context, over all clips."""
    context = recipe.prompt.context
    if context is None:
        return 0
    characters = 0.0
    if context.hotwords is not None:
        characters += context.hotwords.probability * _CHARACTERS_PER_HOTWORD * sum(context.hotwords.num_words) / 2
    if context.previous_text is not None:
        characters += context.previous_text.probability * _CHARACTERS_PER_WORD * context.previous_text.max_words
    return min(context.max_tokens, round(characters / _characters_per_token(recipe)))
