"""Save and load checkpoints. Each is written to a temporary folder, synced to disk and committed by a rename."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tiny_audio.config import RunFailed, UserError
from tiny_audio.runtime.files import commit_folder
from tiny_audio.training.parallel import plain, spread_like
from tiny_audio.training.progress import Progress
from tiny_audio.training.random_state import rng_state, set_rng_state
from tiny_audio.training.world import World

_PREFIX = "step-"
_UNCOMMITTED = ".writing-"
_DAMAGED = "damaged-"
_SUMS = "checksums.json"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Saved:
    """The content of a checkpoint."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    """The optimizer's tensors. A key is the parameter's index and the tensor's name, such as ``0.exp_avg``."""
    groups: list[dict[str, Any]]
    rng: dict[str, Any]
    progress: Progress


def latest(folder: Path) -> Path | None:
    """Find the newest committed checkpoint, and remove leftovers of killed writers."""
    if not folder.exists():
        return None
    for leftover in folder.glob(f"{_UNCOMMITTED}*"):
        shutil.rmtree(leftover)
    return max(folder.glob(f"{_PREFIX}*"), default=None)


def save(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, keep: int, world: World
) -> None:
    """Commit a checkpoint, then remove all checkpoints except the newest ``keep``.

    This is a collective. Only the main process writes.

    Raises:
        UserError: the disk is full or not writable. Earlier checkpoints are unchanged.
    """
    weights = _whole(_changing(model), world)
    state = optimizer.state_dict()
    names = [(index, name) for index in sorted(state["state"]) for name in sorted(state["state"][index])]
    moments = _whole({f"{index}.{name}": state["state"][index][name] for index, name in names}, world)

    def write() -> None:
        final = folder / f"{_PREFIX}{progress.step:09d}"
        aside = folder / f"{_UNCOMMITTED}{final.name}"
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir(parents=True)
            save_file(weights, aside / "model.safetensors")
            restored: dict[int, dict[str, Tensor]] = {}
            for index, name in names:
                restored.setdefault(index, {})[name] = moments[f"{index}.{name}"]
            _torch_save({"state": restored, "param_groups": state["param_groups"]}, aside / "optimizer.pt")
            _torch_save(rng_state(), aside / "rng.pt")
            (aside / "progress.json").write_text(json.dumps(asdict(progress), indent=1))
            sums = {path.name: _sum_of(path) for path in sorted(aside.iterdir())}
            (aside / _SUMS).write_text(json.dumps(sums, indent=1))
            commit_folder(aside, final)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            last = latest(folder)
            kept = f"{last} is unchanged" if last else "there is no earlier one"
            raise UserError(
                f"the checkpoint of step {progress.step} cannot be written to {folder}: {error}; {kept}. Make room, or "
                "allow writing there. Then the same command continues."
            ) from error
        for old in sorted(folder.glob(f"{_PREFIX}*"))[:-keep]:
            shutil.rmtree(old)

    world.broadcast_from_main(write)


def load_newest(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, note: Callable[[str], None], world: World
) -> Progress | None:
    """Restore the newest undamaged checkpoint. Return its progress, or None if there is no checkpoint.

    This is a collective. Only the main process reads. Damaged checkpoints are reported, renamed and skipped.

    Raises:
        UserError: all checkpoints are damaged.
        RunFailed: the checkpoint does not hold exactly the tensors that this model trains.
    """
    own = _changing(model)
    shapes = {name: list(tensor.shape) for name, tensor in own.items()}

    def read() -> Saved | None:
        last = newest_whole(folder, note)
        if last is None:
            return None
        saved = _read(last)
        _check_fits(last, shapes, saved.weights)
        note(f"continuing from step {saved.progress.step} ({last.name})")
        return saved

    found: list[Saved | None] = []
    outline = world.broadcast_from_main(lambda: _outline(found, read()))
    if outline is None:
        return None
    saved = found[0] if found else None
    with torch.no_grad():
        for name, whole in world.broadcast_tensors(saved.weights if saved else {}):
            own[name].copy_(spread_like(own[name], whole))
    parameters = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, whole in world.broadcast_tensors(saved.moments if saved else {}):
        index, _, name = key.partition(".")
        spread = spread_like(parameters[int(index)], whole) if whole.ndim else whole
        state.setdefault(int(index), {})[name] = spread
    groups, rng, progress = outline
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    set_rng_state(rng)
    return Progress(**progress)


def newest_whole(folder: Path, note: Callable[[str], None]) -> Path | None:
    """Find the newest undamaged checkpoint. Damaged checkpoints are renamed and skipped.

    Raises:
        UserError: all checkpoints are damaged.
    """
    damaged = []
    while (last := latest(folder)) is not None:
        problem = _damage(last)
        if problem is None:
            return last
        aside = last.with_name(f"{_DAMAGED}{last.name}")
        shutil.rmtree(aside, ignore_errors=True)
        last.rename(aside)
        damaged.append(f"{last.name}: {problem}")
        note(f"{last.name} is damaged ({problem}) and is skipped; it was renamed to {aside.name}")
    if damaged:
        raise UserError(
            f"every checkpoint in {folder} is damaged ({'; '.join(damaged)}); check the disk, then delete that folder "
            "to train from the start"
        )
    return None


def steps_in(folder: Path) -> dict[int, Path]:
    """Return the folder of each committed checkpoint by its step, in ascending order."""
    return {int(path.name.removeprefix(_PREFIX)): path for path in sorted(folder.glob(f"{_PREFIX}*"))}


def read_progress(checkpoint: Path) -> Progress:
    """Read the progress of a training run from a checkpoint.

    Raises:
        UserError: the checkpoint is damaged.
    """
    try:
        return Progress(**json.loads((checkpoint / "progress.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{checkpoint} is damaged: {error}; use another step") from error


def check_whole(checkpoint: Path) -> None:
    """Check a checkpoint's files against their checksums.

    Raises:
        UserError: the checkpoint is damaged.
    """
    problem = _damage(checkpoint)
    if problem is not None:
        raise UserError(f"{checkpoint} is damaged ({problem}); use another step")


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Load the weights of a checkpoint into a model that is used in a single process.

    Raises:
        RunFailed: the checkpoint does not hold exactly the tensors that this model trains.
    """
    own, saved = _changing(model), load_file(checkpoint / "model.safetensors")
    _check_fits(checkpoint, {name: list(tensor.shape) for name, tensor in own.items()}, saved)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])


def _outline(found: list[Saved | None], saved: Saved | None) -> tuple[list[Any], dict[str, Any], dict[str, Any]] | None:
    """Store ``saved`` in ``found``, and return its values for one message. The tensors are broadcast one by one."""
    found.append(saved)
    return None if saved is None else (saved.groups, saved.rng, asdict(saved.progress))


def _read(checkpoint: Path) -> Saved:
    optimizer = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
    moments = {
        f"{index}.{name}": tensor for index, values in optimizer["state"].items() for name, tensor in values.items()
    }
    return Saved(
        load_file(checkpoint / "model.safetensors"),
        moments,
        optimizer["param_groups"],
        torch.load(checkpoint / "rng.pt", weights_only=True),
        read_progress(checkpoint),
    )


def _check_fits(checkpoint: Path, shapes: dict[str, list[int]], saved: dict[str, Tensor]) -> None:
    if saved.keys() != shapes.keys():
        differing = ", ".join(sorted(saved.keys() ^ shapes.keys())[:5])
        raise RunFailed(f"{checkpoint} does not hold the tensors that this recipe trains ({differing}); delete it")
    for name, shape in shapes.items():
        if shape != list(saved[name].shape):
            raise RunFailed(
                f"{checkpoint} holds {name} as {list(saved[name].shape)}, but this recipe trains {shape}; delete it"
            )


def _damage(checkpoint: Path) -> str | None:
    """Compare a checkpoint's files with their sizes and checksums. Return the first damage, or None if intact."""
    if not (checkpoint / _SUMS).exists():
        return f"{_SUMS} is missing"
    try:
        sums = json.loads((checkpoint / _SUMS).read_text())
    except ValueError:
        return f"{_SUMS} is not valid JSON"
    for name, (size, total) in sums.items():
        path = checkpoint / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} of {size:,} bytes"
        if _sum_of(path)[1] != total:
            return f"{name} has other content than was written"
    return None


def _sum_of(path: Path) -> tuple[int, int]:
    """Return the size and CRC-32 of a file."""
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total = zlib.crc32(chunk, total)
    return path.stat().st_size, total


def _torch_save(value: object, path: Path) -> None:
    """Save through a Python file, which raises OSError if the disk is full. torch's writer would abort the process."""
    with path.open("wb") as file:
        torch.save(value, file)


def _whole(tensors: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """Gather sharded tensors in the main process. This is a collective."""
    whole = {}
    for name, tensor in tensors.items():
        value = plain(tensor)
        if world.is_main:
            whole[name] = value
    return whole


def _changing(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that training changes: trainable parameters, and buffers of the state dict.

    Tied tensors occur once.
    """
    persistent = model.state_dict()
    trainable = {name: tensor.detach() for name, tensor in model.named_parameters() if tensor.requires_grad}
    buffers = {name: tensor for name, tensor in model.named_buffers() if name in persistent}
    return trainable | buffers
