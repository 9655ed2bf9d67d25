"""What many tests start from: a recipe of tiny parts, and the text of a refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_audio.decoders import DECODERS
from tiny_audio.encoders import ENCODERS
from tiny_audio.projectors import PROJECTORS

torch.set_num_threads(2)

Document = dict[str, Any]


def tiny_recipe(folder: Path) -> Document:
    """A valid recipe of tiny parts, as plain YAML values; its manifest would be ``manifest.jsonl`` in ``folder``."""
    encoder = ENCODERS.entry("whisper").config.tiny()  # type: ignore[attr-defined]
    projector = PROJECTORS.entry("swiglu").config.tiny()  # type: ignore[attr-defined]
    decoder = DECODERS.entry("smollm3").config.tiny()  # type: ignore[attr-defined]
    source = {"name": "manifest", "path": str(folder / "manifest.jsonl")}
    return {
        "encoder": {"name": "whisper", **encoder.model_dump(mode="json", exclude_unset=True)},
        "projector": {"name": "swiglu", **projector.model_dump(mode="json", exclude_unset=True)},
        "decoder": {"name": "smollm3", **decoder.model_dump(mode="json", exclude_unset=True)},
        "data": {"train": {"clips": source}, "evaluation": {"held_out": dict(source)}, "max_duration_s": 10.0},
        "batching": {"max_clips": 4},
        "training": {"steps": 20, "learning_rate": 1e-3, "warmup_steps": 2},
        "execution": {"device": "cpu", "log_every": 5},
    }


@pytest.fixture
def document(tmp_path: Path) -> Document:
    return tiny_recipe(tmp_path)


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    def write(content: Document | str | bytes, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        if isinstance(content, dict):
            content = json.dumps(content)  # which is YAML; PyYAML's own dump writes "1e-4" without quotes
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write
