"""The Projector contract, check by check."""

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
"""Of the CTC logits that come with the frames, for projectors that read them."""
ROUNDING = 0.05
"""Largest error in bf16, as a share of the root mean square; a few layers have a tenth of it."""


def build(config: ProjectorConfig, context: ProjectorContext = CONTEXT, seed: int = 0) -> Projector:
    """The projector, with the same random weights every time."""
    torch.manual_seed(seed)
    return PROJECTORS.build(config, context)


def frames_of(lengths: Sequence[int], *, noise: bool = False, extra: int = 0) -> Frames:
    """Noise of RMS 1 with zeros or loud noise beyond each length; a length's frames are always the same."""
    size = max(lengths) + extra
    values = NOISE * torch.randn(len(lengths), size, CONTEXT.in_dim, generator=generator(98)) * noise
    logits = NOISE * torch.randn(len(lengths), size, NUM_LABELS, generator=generator(97)) * noise
    for row, length in enumerate(lengths):
        values[row, :length] = torch.randn(length, CONTEXT.in_dim, generator=generator(length))
        logits[row, :length] = 3 * torch.randn(length, NUM_LABELS, generator=generator(length))
    return Frames(values, torch.tensor(list(lengths)), CONTEXT.frame_rate, logits)


def sizes(config: ProjectorConfig) -> list[int]:
    """Numbers of frames around the edges of its windows."""
    window = config.min_frames()
    return sorted(
        {*range(1, 12), *(max(1, times * window + step) for times in (1, 2, 3, 7) for step in (-1, 0, 1)), 100}
    )


def check_lengths(config: ProjectorConfig) -> None:
    """At least one embedding for any clip, as many as ``max_embeddings`` says or fewer, and the shapes fit."""
    window = config.min_frames()
    sane = 1 <= window <= 10 * CONTEXT.frame_rate
    expect(sane, config, f"min_frames {window} is not between 1 and 10 s of frames")
    projector = build(config).eval()
    wanted = sizes(config)
    with torch.no_grad():
        embeddings, lengths = projector(frames_of(wanted))
    expect(lengths.dtype == torch.long, config, f"lengths must be int64, and are {lengths.dtype}")
    bounds = projector.max_embeddings(torch.tensor(wanted))
    for size, length, bound in zip(wanted, lengths.tolist(), bounds.tolist(), strict=True):
        expect(length >= 1, config, f"{size} frames gave no embedding; a clip has at least one")
        expect(length <= bound, config, f"{size} frames gave {length} embeddings, and max_embeddings says {bound}")
    shape, told = list(embeddings.shape), [len(wanted), int(lengths.max()), CONTEXT.out_dim]
    expect(
        shape == told, config, f"embeddings have shape {shape}, not [clips, embeddings of the longest, out_dim] {told}"
    )


def check_finite(config: ProjectorConfig) -> None:
    """Silent and loud frames: no NaN comes out, in fp32 or bf16."""
    plain = frames_of([1, 30, 100])
    for dtype in (torch.float32, torch.bfloat16):
        projector = build(config).eval().to(dtype)
        for gain in (0.0, 1.0, 1000.0):
            with torch.no_grad():
                embeddings, _ = projector(replace(plain, values=(gain * plain.values).to(dtype)))
            expect_finite(config, f"embeddings of frames × {gain:g} in {dtype}", embeddings)


def check_autocast(config: ProjectorConfig) -> None:
    """In mixed precision, as it trains, it puts out the same but for rounding, whatever the encoder's precision."""
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
                f"{what} are {error:.1%} of their RMS away from those in fp32, and {ROUNDING:.0%} is allowed; norms "
                "and sums belong in the precision of the weights",
            )


def check_meta_device(config: ProjectorConfig) -> None:
    """It can be built without memory, and between neighbors of any width, which ``validate`` and ``plan`` do."""
    for in_dim, out_dim in ((64, 64), (61, 53)):
        with torch.device("meta"):
            projector = build(config, replace(CONTEXT, in_dim=in_dim, out_dim=out_dim))
        for name, tensor in projector.state_dict().items():
            expect(tensor.is_meta, config, f"built on the meta device, {name} lies on {tensor.device}")
        bound = projector.max_embeddings(torch.tensor([1, 100]))
        expect(
            bound.device.type == "cpu" and bool((bound >= 1).all()),
            config,
            f"built on the meta device, max_embeddings of 1 and 100 frames is {bound}; it must need no weights",
        )


def check_invariance(config: ProjectorConfig) -> None:
    """A clip's embeddings are the same alone and beside longer or shorter clips, whatever the padding holds."""
    projector = build(config).eval()
    perturb(projector)
    wanted = sizes(config)
    with torch.no_grad():
        alone = {size: projector(frames_of([size])) for size in wanted}
        for where, frames in {
            "beside longer and shorter clips": frames_of(wanted),
            "in padding full of noise": frames_of(wanted, noise=True),
            "in a batch that is padded beyond its longest clip": frames_of(wanted, noise=True, extra=23),
        }.items():
            embeddings, lengths = projector(frames)
            for row, size in enumerate(wanted):
                single, (count,) = alone[size]
                what = f"a clip of {size} frames {where}"
                expect(
                    int(lengths[row]) == int(count),
                    config,
                    f"{what} has {int(lengths[row])} embeddings, and {int(count)} alone",
                )
                expect_equal(config, what, embeddings[row, : int(count)], single[0, : int(count)])


def check_gradients(config: ProjectorConfig) -> None:
    """Gradients reach every tensor and every clip's frames, and stop at the padding."""
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
    expect(
        bool(trainable) and all(trainable), config, "a projector is the part that always trains, and not all of it does"
    )
    expect_gradients(config, "training", projector, loss)
    assert values.grad is not None
    mask = frames.mask()
    expect(bool(values.grad[mask].any()), config, "no gradient reaches the frames, so the encoder could not train")
    expect(not values.grad[~mask].any(), config, "the gradient reaches into the padding")


def check_save_load(config: ProjectorConfig) -> None:
    """Built again, with the saved tensors, it puts out the same, bit for bit."""
    projector = build(config).eval()
    perturb(projector)
    rebuilt = build(config, seed=1).eval()
    reload(config, projector, rebuilt)
    with torch.no_grad():
        first, second = projector(frames_of([40, 100]))[0], rebuilt(frames_of([40, 100]))[0]
    expect(torch.equal(first, second), config, "saved and loaded, it puts out other embeddings")


def check_determinism(config: ProjectorConfig) -> None:
    """Training mode is no different."""
    projector, frames = build(config), frames_of([40, 100])
    with torch.no_grad():
        still, _ = projector.eval()(frames)
        torch.manual_seed(2)
        trained, _ = projector.train()(frames)
    expect(
        torch.equal(still, trained), config, "training mode changes the embeddings; tiny() has to be without dropout"
    )


def check_output_rms(config: ProjectorConfig) -> None:
    """It starts as loud as the decoder's own embeddings, or as loud as the recipe says, whatever comes in."""
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
                f"embeddings start at RMS {found:.3g} for frames of RMS {gain:g}, and should at {wanted:g} "
                "(context.embedding_rms, or config.output_rms where it is set)",
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
