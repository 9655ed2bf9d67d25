"""A table of a model's parts."""

from __future__ import annotations

from typing import Any

import torch

from tiny_audio.model.model import TinyAudioModel
from tiny_audio.pretrained.quantization import quantized_layers


def describe_parts(model: TinyAudioModel) -> list[dict[str, Any]]:
    """Return a row for each part: its class, numbers of parameters and trainable parameters, output width and rate."""
    rows = []
    for part in ("encoder", "projector", "decoder", "ctc_head"):
        module = getattr(model, part)
        if module is None:
            continue
        parameters = list(module.parameters())  # tied tensors are listed once
        rows.append(
            {
                "part": part,
                "name": (getattr(model.config, part, None) or {}).get("name"),
                "class": type(module).__name__,
                "total": sum(tensor.numel() for tensor in parameters)
                + sum(layer.num_weights for _, layer in quantized_layers(module)),
                "trainable": sum(tensor.numel() for tensor in parameters if tensor.requires_grad),
                "dim": {
                    "encoder": model.encoder.dim,
                    "projector": model.decoder.dim,
                    "decoder": model.decoder.dim,
                    "ctc_head": len(model.ctc_vocabulary or ()),
                }[part],
                "frame_rate_hz": _frame_rate(model, part),
            }
        )
    return rows


def _frame_rate(model: TinyAudioModel, part: str) -> float | None:
    if part == "decoder":
        return None
    if part == "projector":
        # Count the embeddings of one minute, so that rounding at the end of a clip is negligible.
        frames = torch.tensor([round(60 * model.encoder.frame_rate)])
        return int(model.projector.max_embeddings(frames)) / 60
    return model.encoder.frame_rate
