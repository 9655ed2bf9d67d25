"""Assertions and tools for the contract checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn

TOLERANCE = 1e-5
"""Maximum difference between two fp32 computations of the same values, relative to the root mean square of the values.

The order in which kernels add numbers depends on the batch size. In the outputs of a part, this alone causes
differences of up to three quarters of the tolerance."""
ZERO = 1e-9
"""A gradient in fp64 counts as zero if it is smaller than this, relative to the part's largest gradient.

For a gradient that is mathematically zero, kernels may return rounding errors on the scale of the machine epsilon of
fp64 (2⁻⁵²). fp32 is not used, because its rounding errors could be as large as the smallest real gradients."""
NOISE = 100.0
"""Standard deviation of the noise in padding. The standard deviation of speech is below 1."""

ConfigT = TypeVar("ConfigT", bound=BaseModel)


def expect(condition: bool, part: BaseModel, message: str) -> None:
    """Assert a condition. The message begins with the part's name.

    Raises:
        AssertionError: ``condition`` is false.
    """
    if not condition:
        raise AssertionError(f"{getattr(part, 'name', type(part).__name__)}: {message}")


def changed(config: ConfigT, **fields: Any) -> ConfigT:
    """Return a validated copy of the config in which ``fields`` have new values."""
    return type(config).model_validate({**config.model_dump(), **fields}, strict=False)


def generator(seed: int = 0) -> torch.Generator:
    """Return a random generator that is independent of torch's global generator."""
    return torch.Generator().manual_seed(seed)


def weighted_sum(values: Tensor) -> Tensor:
    """Return a scalar loss: the sum of all values, each multiplied by its own random weight."""
    return (values * torch.randn(values.shape, generator=generator())).sum()


def expect_equal(part: BaseModel, what: str, found: Tensor, wanted: Tensor) -> None:
    """Check that the shapes are equal, and that no difference exceeds :data:`TOLERANCE` times the RMS of ``wanted``."""
    expect(found.shape == wanted.shape, part, f"{what}: shape {list(found.shape)}, expected {list(wanted.shape)}")
    difference = float((found - wanted).abs().max())
    rms = float(wanted.pow(2).mean().sqrt())
    expect(
        difference <= TOLERANCE * rms,
        part,
        f"{what}: values differ by up to {difference:.1e}, but only {TOLERANCE} of their RMS ({rms:.1e}) is allowed",
    )


def expect_equal_gradients(part: BaseModel, what: str, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Check that the same parameters have gradients, and that the gradients are equal.

    Gradients are in fp64. Two gradients that both count as zero (:data:`ZERO`) are equal.
    """
    expect(found.keys() == wanted.keys(), part, f"{what}: the two runs give gradients to different parameters")
    largest = max(float(gradient.pow(2).mean().sqrt()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        if max(float(gradient.abs().max()), float(found[name].abs().max())) > ZERO * largest:
            expect_equal(part, f"{what}: gradient of {name}", found[name], gradient)


def expect_finite(part: BaseModel, what: str, values: Tensor) -> None:
    """Check that no value is NaN or infinite."""
    expect(bool(values.isfinite().all()), part, f"{what}: {int((~values.isfinite()).sum())} values are not finite")


def perturb(module: nn.Module) -> None:
    """Add noise to every trainable tensor.

    In new modules, many biases are 0 and many weights of norms are 1. Adding 0 or multiplying by 1 changes nothing, so
    a check could overlook that such an operation is missing.
    """
    numbers = generator()
    with torch.no_grad():
        for tensor in module.parameters():
            if tensor.requires_grad:
                scale = 0.1 * tensor.pow(2).mean().sqrt() if tensor.any() else torch.tensor(0.1)
                tensor.add_(scale * torch.randn(tensor.shape, generator=numbers))


def expect_gradients(part: BaseModel, what: str, module: nn.Module, loss: Tensor) -> None:
    """Check that ``loss``, in fp64, has gradients for all trainable tensors and for no frozen tensor.

    The gradient of a matrix must not be zero, as defined by :data:`ZERO`.
    """
    module.zero_grad(set_to_none=True)
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
    gradients = [tensor.grad for tensor in module.parameters() if tensor.grad is not None]
    largest = max((float(gradient.abs().max()) for gradient in gradients), default=0.0)
    for name, tensor in module.named_parameters():
        if not tensor.requires_grad:
            expect(tensor.grad is None, part, f"{what}: frozen {name} gets a gradient")
            continue
        expect(tensor.grad is not None, part, f"{what}: no gradient reaches {name}")
        assert tensor.grad is not None
        expect_finite(part, f"{what}: gradient of {name}", tensor.grad)
        # The gradient of a vector may be mathematically zero. An example is the bias of attention keys.
        reached = tensor.ndim < 2 or float(tensor.grad.abs().max()) > ZERO * largest
        expect(reached, part, f"{what}: the gradient of {name} is all zeros")


def expect_adapters_only(part: BaseModel, module: nn.Module) -> None:
    """Check that only adapters are trainable."""
    trainable = [name for name, tensor in module.named_parameters() if tensor.requires_grad]
    expect(bool(trainable), part, "lora: no parameter is trainable")
    others = [name for name in trainable if "lora_" not in name]
    expect(not others, part, f"lora: {', '.join(others[:3])} trains too, but only the adapters should")


def lora_for(modules: Iterable[tuple[str, nn.Module]]) -> dict[str, Any]:
    """Return a ``lora`` section for the linear layers that have the most frequent name, such as ``q_proj``."""
    names = Counter(name.rsplit(".", 1)[-1] for name, module in modules if isinstance(module, nn.Linear))
    return {"rank": 2, "alpha": 4.0, "targets": [name for name, _ in names.most_common(1)]}


def reload(part: BaseModel, module: nn.Module, rebuilt: nn.Module) -> None:
    """Copy the state dict of ``module`` to ``rebuilt`` through safetensors bytes, and check that the keys are equal."""
    from safetensors.torch import load, save

    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    owners: dict[int, str] = {}
    for name, tensor in module.state_dict().items():
        owner = owners.setdefault(tensor.data_ptr(), name) if tensor.numel() else name
        if owner == name:
            tensors[name] = tensor.contiguous()
        else:
            aliases[name] = owner  # a file contains only one of several tied tensors
    saved = load(save(tensors))
    own = rebuilt.state_dict()
    missing = sorted(own.keys() - saved.keys() - aliases.keys())
    unexpected = sorted(saved.keys() - own.keys())
    expect(
        not missing, part, f"the part rebuilt from architecture() has keys that were not saved: {', '.join(missing)}"
    )
    expect(not unexpected, part, f"the part rebuilt from architecture() lacks the keys {', '.join(unexpected)}")
    for name, owner in aliases.items():
        tied = name in own and own[name].data_ptr() == own[owner].data_ptr()
        expect(tied, part, f"{name} and {owner} are one tensor, but two tensors when rebuilt")
    for name, tensor in saved.items():
        expect(
            own[name].shape == tensor.shape,
            part,
            f"{name} has a different shape in the part rebuilt from architecture()",
        )
    rebuilt.load_state_dict(saved, strict=False)
