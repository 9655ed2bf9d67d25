"""A model spread over processes: whole in each (DDP), or in slices (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from tiny_audio.training.world import World


def shard(model: nn.Module, device: torch.device, world: World) -> None:
    """Leave each process a slice of every parameter (FSDP2); layers are put together as the passes reach them.

    Parameters keep their types and autocast stays the same, so the arithmetic is that of one process.

    Args:
        model: on the CPU, the same in every process.
        device: where the slices go.
    """
    mesh = init_device_mesh(device.type, (world.size,))
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """What is gathered and freed at a time: the members of the outermost lists of layers."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)


@contextmanager
def synchronizing(model: nn.Module, last: bool) -> Iterator[None]:
    """A forward and a backward pass, after which processes add up their gradients if it is the step's ``last``."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        yield
    elif isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """All of a sharded model's parameters whole, in every process, so that one alone may use it; a meeting."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            # Torch's own choice for the outermost: its parameters are needed again right away.
            part.set_reshard_after_forward(part is not model, recurse=False)


def plain(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may lie in slices; a meeting where it does."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, whole: Tensor) -> Tensor:
    """``whole``, which every process has, in slices where ``tensor`` is."""
    if not isinstance(tensor, DTensor):
        return whole
    on_device = whole.to(tensor.device)
    return distribute_tensor(on_device, tensor.device_mesh, tensor.placements, src_data_rank=None)
