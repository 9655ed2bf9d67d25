"""Run a model in several processes, replicated (DDP) or sharded (FSDP2)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from tiny_audio.runtime.world import World


def shard(model: nn.Module, device: torch.device, world: World) -> None:
    """Split every parameter into shards, one for each process (FSDP2).

    The forward and backward passes gather the parameters of one layer at a time. Parameters keep their dtypes, and
    autocast works as in a single process.

    Args:
        model: the model, on the CPU, the same in every process.
        device: the device of the shards.
    """
    # FSDP2 warns if a layer returns a view, because in-place operations on a view would be wrong. No model of this
    # package uses such operations.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    mesh = init_device_mesh(device.type, (world.size,))
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the members of the outermost module lists, such as the layers of the encoder and of the decoder."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)


@contextmanager
def synchronizing(model: nn.Module, last: bool) -> Iterator[None]:
    """Context for one forward and backward pass of a step. Only the ``last`` pass synchronizes gradients."""
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
    """Gather all parameters of a sharded model in every process while the context is active.

    This is a collective: all processes must enter the context.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            # Restore PyTorch's default: the outermost module is not resharded after a forward pass, because the
            # backward pass needs it at once.
            part.set_reshard_after_forward(part is not model, recurse=False)


def plain(tensor: Tensor) -> Tensor:
    """Return the whole tensor. A sharded tensor is gathered, so all processes must call this function."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, whole: Tensor) -> Tensor:
    """Shard ``whole`` in the same way as ``tensor``. Every process must have all of ``whole``."""
    if not isinstance(tensor, DTensor):
        return whole
    on_device = whole.to(tensor.device)
    return distribute_tensor(on_device, tensor.device_mesh, tensor.placements, src_data_rank=None)
