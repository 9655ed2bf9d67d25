"""The dry run: count the bytes and FLOPs of a model that runs without storage.

The model runs forward and backward on the meta device. Each tensor has a shape, a type and a lifetime, but no data. Its
bytes are counted from its creation until its last reference is released. Lengths, ids and masks are real tensors on the
CPU, because control flow depends on them.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import torch
import torch.nn.attention.varlen  # registers its operators
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

BACKWARD = "backward"
"""Label of the backward pass's temporary tensors: gradients of activations, and recomputed activations."""
OTHER = "other"
"""Label of tensors that are created outside the parts."""


def _attention_flops(query: Tensor, key: Tensor, *_: Any, **__: Any) -> int:
    """Return the FLOPs of attention's two matrix products, for queries ``[B, H, T, D]``. Heads may share keys."""
    return 4 * query.numel() * key.shape[2]


def _attention_backward_flops(_gradient: Tensor, query: Tensor, key: Tensor, *_: Any, **__: Any) -> int:
    """Return the FLOPs of the backward pass: five matrix products, one of which computes the scores again."""
    return 10 * query.numel() * key.shape[2]


def _packed_flops(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, *_: Any, **__: Any) -> int:
    """Return the FLOPs of attention for packed queries ``[T, H, D]``. Each sequence starts at one of ``offsets``."""
    return 4 * query[0].numel() * int((offsets.diff() ** 2).sum())


def _packed_backward_flops(
    _gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, _out: Tensor, _lse: Tensor, offsets: Tensor,
    *_: Any, **__: Any,
) -> int:  # fmt: skip
    return 10 * query[0].numel() * int((offsets.diff() ** 2).sum())


_FLOPS: dict[Any, Callable[..., int]] = flop_registry | {
    # torch does not count these attention operators itself.
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    torch.ops.torch_attn._varlen_attn: _packed_flops,
    torch.ops.torch_attn._varlen_attn_backward: _packed_backward_flops,
}
_CONVOLUTIONS = (aten.convolution, aten.convolution_backward)
_NORMS = (aten.native_layer_norm, aten.native_layer_norm_backward)
_BY_INDEX = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
_META, _CPU = torch.device("meta"), torch.device("cpu")


class DryRun(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts bytes and FLOPs of everything that runs inside its ``with`` block.

    Args:
        granularity: allocations are rounded up to a multiple of this number of bytes.
        copies_convolutions: whether a convolution needs a second copy of its inputs and outputs while it runs.
    """

    def __init__(self, granularity: int = 1, copies_convolutions: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._granularity = granularity
        self._copies_convolutions = copies_convolutions
        self._part = self._label = OTHER
        self._direction = "forward"
        # Key: the address of a storage. Value: a weak reference to the storage, its size in bytes, and its label. The
        # callback of the reference runs when the storage is released.
        self._alive: dict[int, tuple[Any, int, str]] = {}
        self._bytes: Counter[str] = Counter()
        self._total = 0
        self.peak_bytes = 0
        self.at_peak: Counter[str] = Counter()
        """Bytes by label at the peak."""
        self.flops: Counter[tuple[str, str]] = Counter()
        """FLOPs by part and direction (``forward`` or ``backward``). A multiplication and an addition count as two."""

    def account(self, tensor: Tensor, label: str) -> None:
        """Count a tensor that was created outside the dry run, or change the label of a counted tensor."""
        key = tensor.untyped_storage()._cdata
        if key not in self._alive:
            self._track(tensor, label)
            return
        reference, size, before = self._alive[key]
        self._alive[key] = (reference, size, label)
        self._bytes[before] -= size
        self._bytes[label] += size

    @contextmanager
    def inside(self, part: str) -> Iterator[None]:
        """Count the new tensors and the FLOPs of the ``with`` block for ``part``."""
        before = self._label, self._part
        # Tensors that are recomputed in the backward pass are temporary.
        self._label, self._part = (part if self._direction == "forward" else BACKWARD), part
        try:
            yield
        finally:
            self._label, self._part = before

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Count the new tensors of the ``with`` block as temporary, and its FLOPs as ``backward``.

        To count the gradients of parameters under another label, call :meth:`account` for them.
        """
        before = self._label, self._direction
        self._label, self._direction = BACKWARD, "backward"
        try:
            yield
        finally:
            self._label, self._direction = before

    def follow(self, module: nn.Module, part: str, output: str | None = None) -> None:
        """Count the forward and backward passes of a module for ``part``.

        Args:
            module: the module.
            part: label of the tensors of the forward pass, and of the FLOPs of both passes.
            output: label of the module's outputs. If None, they keep the label ``part``.
        """
        entered: list[Any] = []

        def arrive(gradient: Tensor) -> None:
            self._part = part

        def enter(*_: Any) -> None:
            entered.append(self.inside(part))
            entered[-1].__enter__()

        def leave(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
            entered.pop().__exit__(None, None, None)
            for tensor in _tensors(outputs):
                if output is not None:
                    self.account(tensor, output)
                if tensor.requires_grad:
                    tensor.register_hook(arrive)  # type: ignore[no-untyped-call]

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        tensors = list(_leaves((args, tuple(kwargs.values()))))
        if any(tensor.is_meta for tensor in tensors):
            if packet in _BY_INDEX:
                args = _resolve_masks(args)
            out = _without_content(packet, func, args, kwargs, all(tensor.is_meta for tensor in tensors))
        else:
            if kwargs.get("device") == _META and _makes_integers(packet, args, kwargs, tensors):
                kwargs = {**kwargs, "device": _CPU}
            out = func(*args, **kwargs)
        if packet in _FLOPS:
            self.flops[self._part, self._direction] += _FLOPS[packet](*args, **kwargs, out_val=out)
        made = list(_leaves((out,)))
        for tensor in made:
            self._track(tensor, self._label)
        self._note_peak(self._workspace(packet, tensors, made))
        return out

    def _workspace(self, packet: Any, tensors: list[Tensor], made: list[Tensor]) -> int:
        """Return the bytes that a kernel allocates while it runs. Kernels that allocate little count as 0."""
        if packet not in _CONVOLUTIONS and packet not in _NORMS:
            return 0
        # These kernels need contiguous tensors, so they copy tensors that are not contiguous.
        copied = [tensor for tensor in tensors if not tensor.is_contiguous()]
        if self._copies_convolutions and packet in _CONVOLUTIONS:
            copied += [*tensors, *made]
        return sum(tensor.numel() * tensor.element_size() for tensor in copied)

    def _track(self, tensor: Tensor, label: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = -(-storage.nbytes() // self._granularity) * self._granularity

        def forget(_: Any) -> None:
            _, size, label = self._alive.pop(key)
            self._bytes[label] -= size
            self._total -= size

        self._alive[key] = (weakref.ref(storage, forget), size, label)
        self._bytes[label] += size
        self._total += size

    def _note_peak(self, workspace: int) -> None:
        if self._total + workspace > self.peak_bytes:
            self.peak_bytes = self._total + workspace
            self.at_peak = self._bytes.copy()
            self.at_peak["workspace"] = workspace


def _without_content(packet: Any, func: Any, args: Any, kwargs: Any, all_meta: bool) -> Any:
    """Run an operator on shapes only. Real tensors among the arguments are replaced by meta tensors."""
    if packet is aten._ctc_loss:
        # torch has no meta kernel for this loss. The second result of the loss has an entry for each label, and for the
        # blanks before, between and after the labels.
        log_probs, sizes = args[0], args[3]
        num_frames, num_clips = log_probs.shape[:2]
        longest = max(int(size) for size in sizes)
        return log_probs.new_empty(num_clips), log_probs.new_empty(num_clips, num_frames, 2 * longest + 1)
    if packet is aten._ctc_loss_backward:
        return torch.empty_like(args[1])
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": _META}
    if all_meta:
        return _on_meta(func, args, kwargs)
    # Tensors without dimensions are kept, because they can be combined with tensors of any device.
    args, kwargs = tree_map_only(
        Tensor, lambda tensor: tensor if tensor.is_meta or not tensor.ndim else tensor.to(_META), (args, kwargs)
    )
    return func(*args, **kwargs)


_Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]
_LAYOUTS: dict[Any, list[_Layout] | None] = {}
"""Cache. Key: an operator, the layouts of its tensor arguments, and its other arguments. Value: the layouts of its
results, or None if they are not enough to recreate the results, for example because results share memory."""
_MAX_LAYOUTS = 50_000


def _on_meta(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operator on meta tensors.

    Computing the shapes of results takes most of the time of a dry run, so the layouts of results are cached.
    """
    key = func, _without_values(args), _without_values(tuple(kwargs.items()))
    try:
        layouts = _LAYOUTS.get(key)
    except TypeError:  # an argument is not hashable
        return func(*args, **kwargs)
    if layouts is not None:
        made = [torch.empty_strided(size, stride, dtype=dtype, device=_META) for size, stride, dtype in layouts]
        return made[0] if len(func._schema.returns) == 1 else tuple(made)
    out = func(*args, **kwargs)
    if key not in _LAYOUTS:
        if len(_LAYOUTS) >= _MAX_LAYOUTS:
            _LAYOUTS.clear()
        _LAYOUTS[key] = _layouts_of_new(func, _leaves((args, tuple(kwargs.values()))), out)
    return out


def _without_values(value: Any) -> Any:
    """Return the layout of each tensor argument, and the type and value of each other argument."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(_without_values, value))
    return type(value), value


def _layouts_of_new(func: Any, given: Iterator[Tensor], out: Any) -> list[_Layout] | None:
    """Return the layouts of the results if all results are new, dense tensors with their own memory, else None."""
    results = out if isinstance(out, tuple) else (out,)
    if func._schema.is_mutable or not all(isinstance(result, Tensor) and result.is_meta for result in results):
        return None
    used, layouts = {tensor.untyped_storage()._cdata for tensor in given}, []
    for result in results:
        storage, layout = result.untyped_storage(), (result.shape, result.stride(), result.dtype)
        again = torch.empty_strided(layout[0], layout[1], dtype=layout[2], device=_META)
        if storage._cdata in used or again.untyped_storage().nbytes() != storage.nbytes():
            return None
        used.add(storage._cdata)
        layouts.append(layout)
    return layouts


def _resolve_masks(args: Any) -> Any:
    """Return the arguments of an indexing operator, with boolean masks replaced by the positions that they select.

    The number of selected positions determines the shape of the result. Masks on the meta device are kept.
    """

    def positions(index: Tensor | None) -> list[Tensor | None]:
        if index is None or index.is_meta or index.dtype != torch.bool:
            return [index]
        return list(index.nonzero().unbind(1))

    values, indices, *rest = args
    return (values, [position for index in indices for position in positions(index)], *rest)


def _makes_integers(packet: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> bool:
    """Whether a call creates integers or booleans: lengths, positions or masks, whose values are needed."""
    dtype = kwargs.get("dtype") or (tensors[0].dtype if tensors else None)
    if dtype is not None:
        return not (dtype.is_floating_point or dtype.is_complex)
    numbers = args if packet is aten.arange else args[1:] if packet is aten.full else ()
    return bool(numbers) and all(isinstance(number, int) for number in numbers)


def _leaves(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _leaves(value)


def _tensors(outputs: Any) -> Iterator[Tensor]:
    """Yield the tensors of a part's output, which is a tensor, a tuple of tensors, or a dataclass."""
    return _leaves(vars(outputs).values() if is_dataclass(outputs) else (outputs,))
