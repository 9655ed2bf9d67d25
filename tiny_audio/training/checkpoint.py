"""Save and load checkpoints.

A checkpoint is written to a temporary folder, synced to disk, and then committed by renaming the folder.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tiny_audio.config import RunFailed, UserError
from tiny_audio.runtime.checkpoint_folders import PREFIX, steps_in
from tiny_audio.runtime.files import UNFINISHED, new_folder
from tiny_audio.runtime.world import World
from tiny_audio.training.parallel import plain, spread_like
from tiny_audio.training.progress import Progress
from tiny_audio.training.random_state import rng_state, set_rng_state

_DAMAGED = "damaged-"
_SUMS = "checksums.json"
_WEIGHTS = "model.safetensors"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Saved:
    """The content of a checkpoint."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    """The optimizer's tensors. A key is the parameter's index and the tensor's name, such as ``0.exp_avg``."""
    groups: list[dict[str, Any]]
    """The optimizer's parameter groups."""
    rng: dict[str, Any]
    """The state of the random generators, see :func:`tiny_audio.training.random_state.rng_state`."""
    progress: Progress


def latest(folder: Path) -> Path | None:
    """Return the newest committed checkpoint, or None. Remove the uncommitted checkpoints of killed processes."""
    if not folder.exists():
        return None
    for leftover in folder.glob(f".{PREFIX}*{UNFINISHED}"):
        shutil.rmtree(leftover)
    return max(steps_in(folder).values(), default=None)


def has_any(folder: Path) -> bool:
    """Whether a folder has a committed checkpoint, damaged or not."""
    return latest(folder) is not None or bool(_renamed(folder))


def _renamed(folder: Path) -> list[Path]:
    """Return the damaged checkpoints that :func:`newest_whole` renamed."""
    return list(folder.glob(f"{_DAMAGED}{PREFIX}*"))


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    keep: int,
    world: World,
    needed: Collection[int] = (),
) -> None:
    """Commit a checkpoint. Then keep only the newest ``keep`` checkpoints and those of the steps in ``needed``.

    This is a collective: all processes must call it. Only the main process writes.

    Raises:
        UserError: the disk is full or not writable. Earlier checkpoints are unchanged.
    """
    weights = _whole(_changing(model), world)
    state = optimizer.state_dict()
    names = [(index, name) for index in sorted(state["state"]) for name in sorted(state["state"][index])]
    moments = _whole({f"{index}.{name}": state["state"][index][name] for index, name in names}, world)

    def write() -> None:
        try:
            with new_folder(_of_step(folder, progress.step)) as aside:
                save_file(weights, aside / _WEIGHTS)
                restored: dict[int, dict[str, Tensor]] = {}
                for index, name in names:
                    restored.setdefault(index, {})[name] = moments[f"{index}.{name}"]
                _torch_save({"state": restored, "param_groups": state["param_groups"]}, aside / "optimizer.pt")
                _torch_save(rng_state(), aside / "rng.pt")
                (aside / "progress.json").write_text(json.dumps(asdict(progress), indent=1))
                sums = {path.name: _sum_of(path) for path in sorted(aside.iterdir())}
                (aside / _SUMS).write_text(json.dumps(sums, indent=1))
        except (OSError, SafetensorError) as error:
            last = latest(folder)
            kept = f"{last} is unchanged" if last else "there is no earlier checkpoint"
            raise UserError(
                f"the checkpoint of step {progress.step} cannot be written to {folder}: {error}; {kept}. Make room, or "
                "allow writing there. Then the same command continues."
            ) from error
        for step, old in list(steps_in(folder).items())[:-keep]:
            if step not in needed:
                shutil.rmtree(old)

    world.broadcast_from_main(write)


def load_newest(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, note: Callable[[str], None], world: World
) -> Progress | None:
    """Load the newest undamaged checkpoint. Return its progress, or None if there is no checkpoint.

    The states of the optimizer and of the random generators are also loaded. Damaged checkpoints are reported, renamed
    and skipped. This is a collective. Only the main process reads.

    Raises:
        UserError: all checkpoints are damaged.
        RunFailed: the checkpoint's tensors have other names or shapes than the model's.
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
    _copy(saved.weights if saved else {}, own, world)
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
    """Return the newest undamaged checkpoint, or None. Damaged checkpoints are renamed and skipped.

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
    # An earlier run of the command may have renamed damaged checkpoints. Then do not silently begin at step 0.
    damaged = damaged or sorted(path.name for path in _renamed(folder))
    if damaged:
        raise UserError(
            f"{folder} has only damaged checkpoints ({'; '.join(damaged)}); check the disk, then delete the folder to "
            "train from the start"
        )
    return None


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


def read_weights(folder: Path, steps: Sequence[int], model: nn.Module) -> dict[str, Tensor]:
    """Read the weights of one checkpoint, or the average of several checkpoints.

    Trainable tensors are averaged in float64. Buffers, such as batch norm statistics, come from the last of these
    checkpoints.

    Args:
        steps: the steps of the checkpoints, in ascending order.
        model: the model, which may be sharded.

    Raises:
        UserError: a checkpoint is missing or damaged.
        RunFailed: a checkpoint's tensors have other names or shapes than the model's.
    """
    shapes = {name: list(tensor.shape) for name, tensor in _changing(model).items()}
    for step in steps:
        problem = _damage(_of_step(folder, step))
        if problem is not None:
            raise UserError(
                f"{_of_step(folder, step)}, which the final model needs, is missing or damaged ({problem}); copy "
                "it back from a backup, or delete the checkpoints of this step and all later steps, so that the "
                "same command trains these steps again"
            )
    weights = load_file(_of_step(folder, steps[-1]) / _WEIGHTS)
    _check_fits(_of_step(folder, steps[-1]), shapes, weights)
    if len(steps) > 1:
        trainable = [name for name, tensor in model.named_parameters() if tensor.requires_grad]
        with ExitStack() as opened:
            files = [opened.enter_context(safe_open(_of_step(folder, step) / _WEIGHTS, "pt")) for step in steps]
            for name in trainable:
                total = torch.stack([file.get_tensor(name).double() for file in files]).sum(0)
                weights[name] = (total / len(files)).to(weights[name].dtype)
    return weights


def set_weights(model: nn.Module, read: Callable[[], dict[str, Tensor]], world: World) -> None:
    """Replace the weights of the model in all processes. This is a collective. Only the main process calls ``read``."""
    found: list[dict[str, Tensor]] = []
    world.broadcast_from_main(lambda: found.append(read()))
    _copy(found[0] if found else {}, _changing(model), world)


def _copy(weights: dict[str, Tensor], own: dict[str, Tensor], world: World) -> None:
    """Copy the main process's ``weights`` to the tensors ``own`` of all processes. This is a collective."""
    with torch.no_grad():
        for name, whole in world.broadcast_tensors(weights):
            own[name].copy_(spread_like(own[name], whole))


def _of_step(folder: Path, step: int) -> Path:
    return folder / f"{PREFIX}{step:09d}"


def _outline(found: list[Saved | None], saved: Saved | None) -> tuple[list[Any], dict[str, Any], dict[str, Any]] | None:
    """Append ``saved`` to ``found``. Return the small values of ``saved``, to broadcast them in one message.

    Weights and moments are large, so the caller takes them from ``found`` and broadcasts them one by one.
    """
    found.append(saved)
    return None if saved is None else (saved.groups, saved.rng, asdict(saved.progress))


def _read(checkpoint: Path) -> Saved:
    optimizer = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
    moments = {
        f"{index}.{name}": tensor for index, values in optimizer["state"].items() for name, tensor in values.items()
    }
    return Saved(
        load_file(checkpoint / _WEIGHTS),
        moments,
        optimizer["param_groups"],
        torch.load(checkpoint / "rng.pt", weights_only=True),
        read_progress(checkpoint),
    )


def _check_fits(checkpoint: Path, shapes: dict[str, list[int]], saved: dict[str, Tensor]) -> None:
    if saved.keys() != shapes.keys():
        differing = ", ".join(sorted(saved.keys() ^ shapes.keys())[:5])
        raise RunFailed(
            f"{checkpoint} does not hold the tensors that this recipe trains (differences: {differing}); delete "
            "this checkpoint"
        )
    for name, shape in shapes.items():
        if shape != list(saved[name].shape):
            raise RunFailed(
                f"{checkpoint} holds {name} with shape {list(saved[name].shape)}, but this recipe trains it with shape "
                f"{shape}; delete this checkpoint"
            )


def _damage(checkpoint: Path) -> str | None:
    """Compare a checkpoint's files with their recorded sizes and checksums. Describe the first difference, if any."""
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
            return f"the content of {name} has changed since it was written"
    return None


def _sum_of(path: Path) -> tuple[int, int]:
    """Return the size and CRC-32 of a file."""
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total = zlib.crc32(chunk, total)
    return path.stat().st_size, total


def _torch_save(value: object, path: Path) -> None:
    # A file object raises OSError if the disk is full. With a path, torch's own writer would abort the process.
    with path.open("wb") as file:
        torch.save(value, file)


def _whole(tensors: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """Gather sharded tensors (a collective). Return all tensors in the main process, and none in other processes."""
    whole = {}
    for name, tensor in tensors.items():
        value = plain(tensor)
        if world.is_main:
            whole[name] = value
    return whole


def _changing(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that training can change: trainable parameters and persistent buffers.

    A tied tensor occurs only once, under one of its names.
    """
    persistent = model.state_dict()
    trainable = {name: tensor.detach() for name, tensor in model.named_parameters() if tensor.requires_grad}
    buffers = {name: tensor for name, tensor in model.named_buffers() if name in persistent}
    return trainable | buffers
