"""Weights that an export leaves where they were published: which those are, and how they come back.

A model on frozen checkpoints trains a hundredth of its weights. An export of what was trained holds those alone, and
says which commit of the hub, or which folder, the rest is in. What was trained is what differs from there, bit by bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tiny_audio.config import UserError
from tiny_audio.decoders import DECODERS, DecoderConfig, DecoderContext
from tiny_audio.encoders import ENCODERS, EncoderConfig, EncoderContext
from tiny_audio.pretrained.checkpoints import checkpoint_fingerprint

KINDS = ("encoder", "decoder")
"""Parts that may come from a checkpoint."""

Reference = dict[str, Any]
"""What ``config.json`` says of one part, beside its ``pretrained`` and ``revision``: ``tensors``, how many are in the
checkpoint alone; ``dtype``, the type that they had; ``fingerprint``, see
:func:`tiny_audio.pretrained.checkpoints.checkpoint_fingerprint`."""


def references(parts: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> dict[str, Reference]:
    """For each part with weights in its checkpoint, the reference and, under ``names``, the tensors that it stands for.

    Args:
        parts: the configs of encoder and decoder as mappings, by kind.
        tensors: of the whole model, by name, tied ones once.

    Raises:
        UserError: a checkpoint cannot be read, or a frozen part is not the one in its checkpoint.
    """
    found: dict[str, Reference] = {}
    for kind in KINDS:
        part = _parse(kind, parts[kind])
        fingerprint = checkpoint_fingerprint(part)
        if fingerprint is None:
            continue
        if not Path(part.pretrained).is_dir():
            part = part.model_copy(update={"revision": fingerprint})
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{kind}.")}
        dtype = Counter(tensor.dtype for tensor in own.values() if tensor.is_floating_point()).most_common(1)[0][0]
        base = _base_tensors(kind, part)
        names = [
            name
            for name, tensor in own.items()
            if (there := base.get(_published_name(name))) is not None and _is_same(tensor, there, dtype)
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
                f"{kind}: nothing in {part.pretrained!r} is what this model was trained on: it is another checkpoint "
                "by now; put that back, or export all weights"
            )
    return found


def complete(model: nn.Module, config: Any, missing: Collection[str]) -> set[str]:
    """Copy into a model what its export left in checkpoints; gives the names that were filled.

    Args:
        model: just loaded.
        config: its config, with ``base_weights``.
        missing: names of the tensors that the export does not hold, tied ones left out.

    Raises:
        UserError: a checkpoint cannot be read or is not the one, or tensors are missing that it does not hold.
    """
    filled: set[str] = set()
    own = model.state_dict()
    for kind, reference in (config.base_weights or {}).items():
        part = _parse(kind, getattr(config, kind))
        names = {name for name in missing if name.startswith(f"{kind}.")}
        if len(names) != reference["tensors"]:
            raise UserError(
                f"the {kind} lacks {len(names):,} tensors, and {reference['tensors']:,} are to come from "
                f"{part.pretrained!r}: the export is incomplete; copy or export it again"
            )
        if Path(part.pretrained).is_dir() and checkpoint_fingerprint(part) != reference["fingerprint"]:
            raise UserError(
                f"{kind}: {part.pretrained!r} holds other weights than those that this model was trained on; put that "
                "checkpoint back, or export the model again with all its weights"
            )
        base = _base_tensors(kind, part)
        for name in sorted(names):
            there = base.get(_published_name(name))
            if there is None or there.shape != own[name].shape:
                raise UserError(
                    f"{name} is missing from the export, and {part.pretrained!r} has none of that name and shape; "
                    "copy or export the model again"
                )
            if own[name].is_meta:
                raise UserError(
                    "an export that leaves weights in their checkpoints cannot be loaded to disk or piece by piece; "
                    "export it with all weights, or give another device_map"
                )
            dtype = getattr(torch, reference["dtype"]) if there.is_floating_point() else there.dtype
            own[name].copy_(there.to(dtype))
        filled |= names
    return filled


def _parse(kind: str, part: Mapping[str, Any]) -> EncoderConfig | DecoderConfig:
    """Without adapters, which no checkpoint has."""
    bare = {**part, "lora": None}
    return ENCODERS.parse(bare) if kind == "encoder" else DECODERS.parse(bare)


def _base_tensors(kind: str, part: EncoderConfig | DecoderConfig) -> dict[str, Tensor]:
    """The part's tensors as its checkpoint has them, by their names in the whole model."""
    built: nn.Module
    if isinstance(part, EncoderConfig):
        built = ENCODERS.build(part, EncoderContext())
    else:
        built = DECODERS.build(part, DecoderContext(None))
    return {f"{kind}.{name}": tensor for name, tensor in built.state_dict().items()}


def _published_name(name: str) -> str:
    """What a tensor is called where there are no adapters around it."""
    return ".".join(step for step in name.split(".") if step != "base_layer")


def _is_same(own: Tensor, there: Tensor, dtype: torch.dtype) -> bool:
    if own.is_floating_point():
        return own.dtype == dtype and torch.equal(own.cpu(), there.to(dtype))
    return torch.equal(own.cpu(), there)


def key_problems(info: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the keys of weights, from the loading info of transformers."""
    for kind in ("missing", "unexpected", "mismatched"):
        # A mismatched key comes with its two shapes.
        keys = sorted(key if isinstance(key, str) else str(key[0]) for key in info[f"{kind}_keys"])
        if keys:
            yield f"{kind}: {', '.join(keys[:5])}{' …' if len(keys) > 5 else ''} ({len(keys)})"
