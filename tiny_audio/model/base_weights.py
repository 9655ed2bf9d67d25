"""Find the base weights that an export can leave out, and fill them in when the export is loaded.

An export without base weights contains only the trained weights, often about 1% of all weights. The other weights come
from a checkpoint: a commit on the hub, or a folder. A tensor counts as trained if it differs from the checkpoint.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tiny_audio.config import UserError
from tiny_audio.decoders import DECODERS, DecoderConfig, DecoderContext
from tiny_audio.encoders import ENCODERS, EncoderConfig, EncoderContext
from tiny_audio.pretrained.identity import checkpoint_identity
from tiny_audio.pretrained.quantization import quantizable, quantize, quantized_layers, whole_state

KINDS = ("encoder", "decoder")
"""Parts that may come from a checkpoint."""

Reference = dict[str, Any]
"""A part's entry in the ``base_weights`` of ``config.json``. ``tensors`` is the number of tensors that the export
leaves out, and ``dtype`` is their type in training. ``fingerprint`` is the result of
:func:`tiny_audio.pretrained.identity.checkpoint_identity`, or of :func:`_hash_of_weights` in older exports."""


def references(parts: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> dict[str, Reference]:
    """Return a reference for each part that has unchanged weights.

    Each reference also has ``names``, the names of the tensors that can be left out.

    Args:
        parts: the configs of encoder and decoder as mappings. The keys are those in :data:`KINDS`.
        tensors: the tensors of the whole model, by name. Of tied tensors, only one is included.

    Raises:
        UserError: a checkpoint cannot be read, or no tensor of a frozen part equals a tensor of its checkpoint.
    """
    found: dict[str, Reference] = {}
    for kind in KINDS:
        part = _parse(kind, parts[kind])
        fingerprint = checkpoint_identity(part)
        if fingerprint is None:
            continue
        if not Path(part.pretrained).is_dir():
            part = part.model_copy(update={"revision": fingerprint})
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{kind}.")}
        # Find the most common type of the base weights. Adapters are left out, because they are trained in single
        # precision, and may have more tensors than the base model.
        bare = [tensor for name, tensor in own.items() if not _is_adapter(name) and tensor.is_floating_point()]
        dtype = Counter(tensor.dtype for tensor in bare).most_common(1)[0][0]
        base = _base_tensors(kind, part, quantized=dtype)
        names = [
            name
            for name, tensor in own.items()
            if (there := base.get(without_adapters(name))) is not None and _is_same(tensor, there, dtype)
        ]
        if names:
            found[kind] = {
                "tensors": len(names),
                "dtype": str(dtype).removeprefix("torch."),
                "fingerprint": fingerprint,
                "names": names,
            }
        elif part.freeze:
            raise UserError(
                f"{kind}: no tensor of the model equals a tensor in {part.pretrained!r}, so the checkpoint has changed "
                "since training; restore the checkpoint, or export all weights"
            )
    return found


def complete(model: nn.Module, config: Any, missing: Collection[str]) -> set[str]:
    """Fill in the missing tensors from the checkpoints, and return their names.

    Args:
        model: the model, directly after loading.
        config: the model's config, with ``base_weights``.
        missing: names of the tensors that are not in the export, except for tied tensors.

    Raises:
        UserError: a checkpoint cannot be read, has changed, or does not contain a missing tensor.
    """
    filled: set[str] = set()
    own = model.state_dict()
    for kind, reference in (config.base_weights or {}).items():
        part = _parse(kind, getattr(config, kind))
        names = {name for name in missing if name.startswith(f"{kind}.")}
        if len(names) != reference["tensors"]:
            raise UserError(
                f"the export is damaged: it lacks {len(names):,} tensors of the {kind}, but according to config.json, "
                f"{reference['tensors']:,} come from {part.pretrained!r}; copy or export the model again"
            )
        folder, recorded = Path(part.pretrained), reference["fingerprint"]
        if folder.is_dir() and checkpoint_identity(part) != recorded and _hash_of_weights(folder) != recorded:
            raise UserError(
                f"{kind}: {part.pretrained!r} is not the checkpoint that this model was trained on: its weights, "
                "config, tokenizer or templates have changed; restore that checkpoint, or export the model again with "
                "all its weights"
            )
        base = _base_tensors(kind, part)
        # Weights that will be quantized keep the checkpoint's data type, as in training.
        exact = {
            f"{kind}.{path}.weight"
            for path in quantizable(getattr(model, kind))
            if isinstance(part, DecoderConfig) and part.quantization
        }
        for name in sorted(names):
            there = base.get(without_adapters(name))
            if there is None or there.shape != own[name].shape:
                raise UserError(
                    f"{name} is missing from the export, and {part.pretrained!r} has no tensor of that name and shape; "
                    "copy or export the model again"
                )
            if own[name].is_meta:
                raise UserError(
                    "an export without base weights cannot be offloaded to disk or loaded in parts; export the "
                    "model with all weights, or give another device_map"
                )
            dtype = dtype_of(reference) if there.is_floating_point() and name not in exact else there.dtype
            own[name].copy_(there.to(dtype))
        filled |= names
    return filled


def dtype_of(reference: Reference) -> torch.dtype:
    """Return the data type that the base weights had in training."""
    dtype: torch.dtype = getattr(torch, reference["dtype"])
    return dtype


def _parse(kind: str, part: Mapping[str, Any]) -> EncoderConfig | DecoderConfig:
    """Return the part's config without adapters, because checkpoints have no adapters."""
    bare = {**part, "lora": None}
    return ENCODERS.parse(bare) if kind == "encoder" else DECODERS.parse(bare)


def _base_tensors(
    kind: str, part: EncoderConfig | DecoderConfig, *, quantized: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Return the checkpoint's tensors. The keys are the names of the tensors in the whole model.

    Args:
        kind: ``encoder`` or ``decoder``.
        part: the config of the part without adapters.
        quantized: the type of dequantized weights. If this type is given and the part is quantized in training, the
            part's weights are quantized and dequantized, so that they have the same rounding errors as in training.
    """
    built: nn.Module
    if isinstance(part, EncoderConfig):
        built = ENCODERS.build(part, EncoderContext())
    else:
        built = DECODERS.build(part, DecoderContext(None))
        if quantized is not None and part.quantization:
            quantize(built, part.quantization)
            for _, layer in quantized_layers(built):
                layer.set_type(quantized)
    return {f"{kind}.{name}": tensor for name, tensor in whole_state(built).items()}


def without_adapters(name: str) -> str:
    """Return the name that the tensor has in a model without adapters."""
    return ".".join(step for step in name.split(".") if step != "base_layer")


def _is_adapter(name: str) -> bool:
    return any(step.startswith("lora_") for step in name.split("."))


def _hash_of_weights(folder: Path) -> str:
    """Return the identity that older exports recorded for a folder."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(path.name.encode())
        with path.open("rb") as weights:
            digest.update(hashlib.file_digest(weights, "sha256").digest())
    return digest.hexdigest()


def _is_same(own: Tensor, there: Tensor, dtype: torch.dtype) -> bool:
    if own.is_floating_point():
        return own.dtype == dtype and torch.equal(own.cpu(), there.to(dtype))
    return torch.equal(own.cpu(), there)


def key_problems(info: Mapping[str, Any]) -> Iterator[str]:
    """Yield descriptions of the missing, unexpected and mismatched keys in transformers' loading info."""
    for kind in ("missing", "unexpected", "mismatched"):
        # A mismatched key is a tuple of the name and two shapes.
        keys = sorted(key if isinstance(key, str) else str(key[0]) for key in info[f"{kind}_keys"])
        if keys:
            yield f"{kind}: {', '.join(keys[:5])}{' …' if len(keys) > 5 else ''} ({len(keys)})"
