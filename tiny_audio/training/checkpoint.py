"""Checkpoints: written aside, synced to the disk, committed by a rename. A folder that has its name is whole."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tiny_audio.config import RunFailed
from tiny_audio.files import commit_folder

_PREFIX = "step-"
_UNCOMMITTED = ".writing-"


@dataclass
class Progress:
    """Where training stands; with the planned order, this is the whole state of the data."""

    step: int = 0
    """Optimiser steps done, skipped ones included."""
    epoch: int = 0
    batch: int = 0
    """Batches of this epoch's plan that are used up."""
    audio_s: float = 0.0
    padded_s: float = 0.0
    tokens: int = 0
    wall_s: float = 0.0
    """Of steps, from the wait for their batches to the update."""
    waited_s: float = 0.0
    """Of that, waiting for batches."""
    beside_s: float = 0.0
    """Between steps: evaluations, checkpoints."""
    flops: float = 0.0
    """Of what was trained on, see :class:`tiny_audio.plan.work.Work`."""
    possible_flops: float = 0.0
    """At the machine's peak, in the time of the same steps."""
    measured_j: float = 0.0
    """Joules, by a meter."""
    rated_j: float = 0.0
    """Joules while nothing measured, as if the devices drew all that they are rated for."""
    peak_memory_bytes: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0


def latest(folder: Path) -> Path | None:
    """The newest committed checkpoint; what a killed writer left behind is removed."""
    if not folder.exists():
        return None
    for leftover in folder.glob(f"{_UNCOMMITTED}*"):
        shutil.rmtree(leftover)
    return max(folder.glob(f"{_PREFIX}*"), default=None)


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, keep: int) -> Path:
    """Commit a checkpoint, then remove all but the newest ``keep``."""
    final = folder / f"{_PREFIX}{progress.step:09d}"
    aside = folder / f"{_UNCOMMITTED}{final.name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(_changing(model), aside / "model.safetensors")
    torch.save(optimizer.state_dict(), aside / "optimizer.pt")
    torch.save(_rng_state(), aside / "rng.pt")
    (aside / "progress.json").write_text(json.dumps(asdict(progress), indent=1))
    commit_folder(aside, final)
    for old in sorted(folder.glob(f"{_PREFIX}*"))[:-keep]:
        shutil.rmtree(old)
    return final


def load(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Put a checkpoint back.

    Raises:
        RunFailed: it does not hold exactly what this model trains.
    """
    saved, own = load_file(checkpoint / "model.safetensors"), _changing(model)
    if saved.keys() != own.keys():
        differing = ", ".join(sorted(saved.keys() ^ own.keys())[:5])
        raise RunFailed(f"{checkpoint} does not hold the tensors that this recipe trains ({differing}); delete it")
    for name, tensor in own.items():
        if tensor.shape != saved[name].shape:
            raise RunFailed(
                f"{checkpoint} holds {name} as {list(saved[name].shape)}, and this recipe trains {list(tensor.shape)}; "
                "delete it"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])
    optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True))
    _set_rng_state(torch.load(checkpoint / "rng.pt", weights_only=True))
    return Progress(**json.loads((checkpoint / "progress.json").read_text()))


def _changing(model: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes: trainable parameters, each once however often tied, and the buffers of a state dict."""
    persistent = model.state_dict()
    trainable = {name: tensor.detach() for name, tensor in model.named_parameters() if tensor.requires_grad}
    buffers = {name: tensor for name, tensor in model.named_buffers() if name in persistent}
    return trainable | buffers


def _rng_state() -> dict[str, Any]:
    """Random states of all generators that a part may use."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_rng_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
