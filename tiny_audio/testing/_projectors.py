"""Checks of the Projector contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from tiny_audio.frames import Frames, length_mask
from tiny_audio.projectors import PROJECTORS, Projector, ProjectorConfig, ProjectorContext
from tiny_audio.testing._checks import (
    NOISE,
    changed,
    expect,
    expect_equal,
    expect_finite,
    expect_gradients,
    generator,
    perturb,
    reload,
)

CONTEXT = ProjectorContext(in_dim=64, out_dim=48, frame_rate=50.0, embedding_rms=0.03)
NUM_LABELS = 7
"""Number of labels of the frames' CTC logits, for projectors that read them."""
ROUNDING = 0.05
"""Maximum error in bf16: the RMS of the difference from fp32, relative to the RMS of the embeddings in fp32.

The error of projectors with a few layers is a tenth of this."""


def build(config: ProjectorConfig, context: ProjectorContext = CONTEXT, seed: int = 0) -> Projector:
    """Build the projector. The same seed gives the same random weights."""
    torch.manual_seed(seed)
    return PROJECTORS.build(config, context)


def frames_of(lengths: Sequence[int], *, noise: bool = False, extra: int = 0) -> Frames:
    """Return random frames of RMS 1, with zeros or loud noise as padding. Clips of equal length have equal frames."""
    size = max(lengths) + extra
    values = NOISE * torch.randn(len(lengths), size, CONTEXT.in_dim, generator=generator(98)) * noise
    logits = NOISE * torch.randn(len(lengths), size, NUM_LABELS, generator=generator(97)) * noise
    for row, length in enumerate(lengths):
        values[row, :length] = torch.randn(length, CONTEXT.in_dim, generator=generator(length))
        logits[row, :length] = 3 * torch.randn(length, NUM_LABELS, generator=generator(length))
    return Frames(values, torch.tensor(list(lengths)), CONTEXT.frame_rate, logits)


def sizes(config: ProjectorConfig) -> list[int]:
    """Return numbers of frames to test: small numbers, and multiples of ``min_frames`` plus -1, 0 or 1 frame."""
    window = config.min_frames()
    return sorted(
        {*range(1, 12), *(max(1, times * window + step) for times in (1, 2, 3, 7) for step in (-1, 0, 1)), 100}
    )


def check_lengths(config: ProjectorConfig) -> None:
    """Check that every clip has 1 to ``max_embeddings`` embeddings, and that shapes agree with the lengths."""
    window = config.min_frames()
    sane = 1 <= window <= 10 * CONTEXT.frame_rate
    expect(sane, config, f"min_frames is {window}; it must be from 1 to the number of frames in 10 s")
    projector = build(config).eval()
    wanted = sizes(config)
    with torch.no_grad():
        embeddings, lengths = projector(frames_of(wanted))
    expect(lengths.dtype == torch.long, config, f"lengths must be int64, but are {lengths.dtype}")
    bounds = projector.max_embeddings(torch.tensor(wanted))
    for size, length, bound in zip(wanted, lengths.tolist(), bounds.tolist(), strict=True):
        expect(length >= 1, config, f"{size} frames gave no embedding; a clip has at least one")
        expect(length <= bound, config, f"{size} frames gave {length} embeddings, but max_embeddings says {bound}")
    shape, right = list(embeddings.shape), [len(wanted), int(lengths.max()), CONTEXT.out_dim]
    what = f"embeddings have shape {shape}, but must have shape {right}: [clips, max(lengths), out_dim]"
    expect(shape == right, config, what)


def check_finite(config: ProjectorConfig) -> None:
    """Check that embeddings in fp32 and bf16 are finite, for frames of zeros and for large frames."""
    plain = frames_of([1, 30, 100])
    for dtype in (torch.float32, torch.bfloat16):
        projector = build(config).eval().to(dtype)
        for gain in (0.0, 1.0, 1000.0):
            with torch.no_grad():
                embeddings, _ = projector(replace(plain, values=(gain * plain.values).to(dtype)))
            expect_finite(config, f"embeddings of frames × {gain:g} in {dtype}", embeddings)


def check_autocast(config: ProjectorConfig) -> None:
    """Check that bf16 autocast changes embeddings only by rounding, for frames in fp32 and bf16."""
    projector, frames = build(config).eval(), frames_of([40, 100])
    with torch.no_grad():
        exact, _ = projector(frames)
        for dtype in (torch.float32, torch.bfloat16):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                embeddings, lengths = projector(replace(frames, values=frames.values.to(dtype)))
            what = f"embeddings of frames in {dtype} under bf16 autocast"
            expect_finite(config, what, embeddings)
            mask = length_mask(lengths, exact.shape[1])
            error = float((embeddings.float() - exact)[mask].pow(2).mean().sqrt() / exact[mask].pow(2).mean().sqrt())
            expect(
                error <= ROUNDING,
                config,
                f"{what} differ from those in fp32 by {error:.1%} of their RMS, but only {ROUNDING:.0%} is allowed; "
                "compute norms and sums in the precision of the weights",
            )


def check_meta_device(config: ProjectorConfig) -> None:
    """Check that the projector can be built on the meta device, as the commands ``validate`` and ``plan`` do.

    ``in_dim`` and ``out_dim`` of the context may have any values.
    """
    for in_dim, out_dim in ((64, 64), (61, 53)):
        with torch.device("meta"):
            projector = build(config, replace(CONTEXT, in_dim=in_dim, out_dim=out_dim))
        for name, tensor in projector.state_dict().items():
            expect(tensor.is_meta, config, f"built on the meta device, {name} is on {tensor.device}")
        bound = projector.max_embeddings(torch.tensor([1, 100]))
        expect(
            bound.device.type == "cpu" and bool((bound >= 1).all()),
            config,
            f"built on the meta device, max_embeddings of 1 and 100 frames is {bound}; the result must be at least 1 "
            "and on the CPU, so compute it without weights",
        )


def check_invariance(config: ProjectorConfig) -> None:
    """Check that a clip has the same embeddings alone and in a batch, for any content of the padding."""
    projector = build(config).eval()
    perturb(projector)
    wanted = sizes(config)
    with torch.no_grad():
        alone = {size: projector(frames_of([size])) for size in wanted}
        for where, frames in {
            "in a batch with longer and shorter clips": frames_of(wanted),
            "in padding full of noise": frames_of(wanted, noise=True),
            "in a batch padded beyond its longest clip": frames_of(wanted, noise=True, extra=23),
        }.items():
            embeddings, lengths = projector(frames)
            for row, size in enumerate(wanted):
                single, (count,) = alone[size]
                what = f"a clip of {size} frames {where}"
                expect(
                    int(lengths[row]) == int(count),
                    config,
                    f"{what} has {int(lengths[row])} embeddings, but {int(count)} alone",
                )
                expect_equal(config, what, embeddings[row, : int(count)], single[0, : int(count)])


def check_gradients(config: ProjectorConfig) -> None:
    """Check that gradients reach every parameter and the real frames, but not the padding."""
    projector = build(config).train().double()
    perturb(projector)
    frames = frames_of([40, 100], noise=True)
    values = frames.values.double().requires_grad_()
    embeddings, lengths = projector(replace(frames, values=values))
    weights = torch.randn(embeddings.shape, generator=generator())
    loss = sum(
        (embeddings[row, : int(length)] * weights[row, : int(length)]).sum() for row, length in enumerate(lengths)
    )
    assert isinstance(loss, torch.Tensor)
    trainable = [tensor.requires_grad for tensor in projector.parameters()]
    expect(bool(trainable) and all(trainable), config, "all parameters of a projector must be trainable")
    expect_gradients(config, "training", projector, loss)
    assert values.grad is not None
    mask = frames.mask()
    expect(bool(values.grad[mask].any()), config, "no gradient reaches the frames, so the encoder could not train")
    expect(not values.grad[~mask].any(), config, "a gradient reaches the padding")


def check_save_load(config: ProjectorConfig) -> None:
    """Check that a rebuilt projector with the saved tensors returns the same embeddings, bit for bit."""
    projector = build(config).eval()
    perturb(projector)
    rebuilt = build(config, seed=1).eval()
    reload(config, projector, rebuilt)
    with torch.no_grad():
        first, second = projector(frames_of([40, 100]))[0], rebuilt(frames_of([40, 100]))[0]
    expect(torch.equal(first, second), config, "after saving and loading, the projector has different embeddings")


def check_determinism(config: ProjectorConfig) -> None:
    """Check that training mode does not change the embeddings if there is no dropout."""
    projector, frames = build(config), frames_of([40, 100])
    with torch.no_grad():
        still, _ = projector.eval()(frames)
        torch.manual_seed(2)
        trained, _ = projector.train()(frames)
    expect(torch.equal(still, trained), config, "training mode changes the embeddings; tiny() must not have dropout")


def check_output_rms(config: ProjectorConfig) -> None:
    """Check the RMS of the initial embeddings, for frames of any RMS.

    It must be ``output_rms`` or, if that is None, the RMS of the decoder's token embeddings.
    """
    for own, rms in ((None, 0.03), (None, 1.0), (0.5, 0.03)):
        projector = build(changed(config, output_rms=own), replace(CONTEXT, embedding_rms=rms)).eval()
        for gain in (0.1, 1.0, 10.0):
            frames = frames_of([400, 200])
            with torch.no_grad():
                embeddings, lengths = projector(replace(frames, values=gain * frames.values))
            real = torch.cat([row[: int(length)] for row, length in zip(embeddings, lengths, strict=True)])
            found, wanted = float(real.pow(2).mean().sqrt()), rms if own is None else own
            expect(
                abs(found - wanted) <= 0.02 * wanted,
                config,
                f"initial embeddings have RMS {found:.3g} for frames of RMS {gain:g}, but must have {wanted:g} "
                "(config.output_rms, or context.embedding_rms if that is None)",
            )


CHECKS = (
    check_lengths,
    check_finite,
    check_autocast,
    check_meta_device,
    check_invariance,
    check_gradients,
    check_save_load,
    check_determinism,
    check_output_rms,
)
