"""The Encoder contract, check by check."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tiny_audio.config import UserError
from tiny_audio.encoders import ENCODERS, Encoder, EncoderConfig, EncoderContext
from tiny_audio.frames import SAMPLE_RATE, Frames
from tiny_audio.pretrained.packing import VARLEN
from tiny_audio.testing._checks import (
    NOISE,
    changed,
    expect,
    expect_adapters_only,
    expect_equal,
    expect_equal_gradients,
    expect_finite,
    expect_gradients,
    generator,
    lora_for,
    reload,
    shake,
)


def build(config: EncoderConfig, seed: int = 0) -> Encoder:
    """The encoder, with the same random weights every time."""
    torch.manual_seed(seed)
    return ENCODERS.build(config, EncoderContext())


def clip(num_samples: int, seed: int = 0) -> Tensor:
    """Noise ``[S]`` with the slow swell of speech."""
    noise = 0.1 * torch.randn(num_samples, generator=generator(seed))
    return noise * (1.1 + torch.sin(torch.arange(num_samples) / 1000.0))


def batch_of(clips: Sequence[Tensor], *, garbage: bool = False, extra: int = 0) -> tuple[Tensor, Tensor]:
    """Waveforms ``[B, S]``, padded with silence or with loud noise, and their lengths."""
    lengths = torch.tensor([len(row) for row in clips])
    size = int(lengths.max()) + extra
    waveforms = NOISE * torch.randn(len(clips), size, generator=generator(99)) * garbage
    for row, waveform in zip(waveforms, clips, strict=True):
        row[: len(waveform)] = waveform
    return waveforms, lengths


def sizes(config: EncoderConfig, encoder: Encoder) -> list[int]:
    """Clip lengths around every edge there may be: a sample, a window, multiples of the stride."""
    stride = round(SAMPLE_RATE / encoder.frame_rate)
    edges = [2, stride // 2, 400, *(multiple * stride for multiple in (1, 2, 3, 4, 5, 8, 25, 50))]
    limit_s = config.max_duration_s()
    found = {1, SAMPLE_RATE + 7} | {edge + step for edge in edges for step in (-1, 0, 1)}
    return sorted(size for size in found if limit_s is None or size <= limit_s * SAMPLE_RATE)


def check_lengths(config: EncoderConfig) -> None:
    """Config, encoder and the frames themselves agree on how many there are, for every clip length."""
    encoder = build(config).eval()
    stride = round(SAMPLE_RATE / encoder.frame_rate)
    counted = torch.arange(1, 4 * stride)
    for size, count in zip(counted.tolist(), encoder.num_frames(counted).tolist(), strict=True):
        told = config.num_frames(size)
        expect(told == count, config, f"{size} samples: config.num_frames says {told}, and encoder.num_frames {count}")
    wanted = sizes(config, encoder)
    waveforms, lengths = batch_of([clip(size, size) for size in wanted])
    with torch.no_grad():
        frames = encoder(waveforms, lengths)
    expect(frames.lengths.dtype == torch.long, config, f"lengths must be int64, and are {frames.lengths.dtype}")
    expect(frames.rate == encoder.frame_rate, config, f"frames.rate {frames.rate} is not frame_rate")
    for size, length in zip(wanted, frames.lengths.tolist(), strict=True):
        told = config.num_frames(size)
        expect(length == told, config, f"{size} samples gave {length} frames, and config.num_frames says {told}")
        expect(length >= 1, config, f"{size} samples gave no frame; a clip has at least one")
    shape, told_shape = list(frames.values.shape), [len(wanted), int(frames.lengths.max()), encoder.dim]
    expect(
        shape == told_shape, config, f"frames have shape {shape}, not [clips, frames of the longest, dim] {told_shape}"
    )
    expect(
        wanted == sorted(wanted) and frames.lengths.tolist() == sorted(frames.lengths.tolist()),
        config,
        "longer clips must not have fewer frames",
    )
    minute = config.num_frames(60 * SAMPLE_RATE) / 60
    expect(
        abs(minute - encoder.frame_rate) <= 0.01 * encoder.frame_rate,
        config,
        f"a minute has {minute:.2f} frames a second, and frame_rate says {encoder.frame_rate:.2f}",
    )


def check_finite(config: EncoderConfig) -> None:
    """Silence, a single sample, clipping: no NaN comes out, in fp32 or bf16."""
    clips = [torch.zeros(4000), clip(1), clip(9001).sign(), 1e-4 * clip(3000), clip(SAMPLE_RATE)]
    for dtype in (torch.float32, torch.bfloat16):
        encoder = build(config).eval().to(dtype)
        with torch.no_grad():
            for waveforms in (clips, clips[:1], clips[1:2]):
                frames = encoder(*batch_of(waveforms))
                expect_finite(config, f"frames in {dtype}", frames.values[frames.mask()])


def check_invariance(config: EncoderConfig) -> None:
    """A clip's frames are the same alone and beside longer or shorter clips, whatever the padding holds."""
    encoder = build(config).eval()
    shake(encoder)
    clips = [clip(size, size) for size in (SAMPLE_RATE, 1, 7_000, 12_345, 401, 20_001)]
    with torch.no_grad():
        alone = [encoder(*batch_of([waveform])) for waveform in clips]
        batches = {
            "beside clips that are longer and shorter": encoder(*batch_of(clips)),
            "in padding full of noise": encoder(*batch_of(clips, garbage=True)),
            "in a batch that is padded beyond its longest clip": encoder(*batch_of(clips, garbage=True, extra=5_000)),
        }
    for where, frames in batches.items():
        for row, single in enumerate(alone):
            count = int(frames.lengths[row])
            what = f"a clip of {len(clips[row])} samples {where}"
            expect(
                count == int(single.lengths[0]),
                config,
                f"{what} has {count} frames, and {int(single.lengths[0])} alone",
            )
            expect_equal(config, what, frames.values[row, :count], single.values[0, :count])


def check_transform(config: EncoderConfig) -> None:
    """SpecAugment's place: called once, on what the front end puts out, and what it changes reaches the frames."""
    encoder = build(config).eval()
    waveforms, lengths = batch_of([clip(SAMPLE_RATE), clip(9_001)])
    seen: list[Frames] = []

    def look(features: Frames) -> Frames:
        seen.append(features)
        return features

    def erase(features: Frames) -> Frames:
        return Frames(torch.zeros_like(features.values), features.lengths, features.rate)

    with torch.no_grad():
        plain, looked = encoder(waveforms, lengths), encoder(waveforms, lengths, look)
        erased = encoder(waveforms, lengths, erase)
    expect(len(seen) == 1, config, f"the transform was called {len(seen)} times, not once")
    fits = seen[0].values.ndim == 3 and int(seen[0].lengths.max()) <= seen[0].values.shape[1]
    expect(
        fits, config, f"features must be [B, F, C] with lengths within F; their shape is {list(seen[0].values.shape)}"
    )
    expect(
        bool(torch.equal(plain.values, looked.values)), config, "a transform that changes nothing changes the frames"
    )
    expect(not torch.equal(plain.values, erased.values), config, "the transform's features are not what is encoded")


def check_gradients(config: EncoderConfig) -> None:
    """Gradients reach every trainable tensor and no frozen one: trained whole, frozen, and with adapters."""
    waveforms, lengths = batch_of([clip(SAMPLE_RATE), clip(9_001)])
    adapters = lora_for(build(config).named_modules())
    for what, fields in (
        ("freeze: false", {"freeze": False, "lora": None}),
        ("freeze: true", {"freeze": True, "lora": None}),
        ("lora", {"freeze": True, "lora": adapters}),
    ):
        encoder = build(changed(config, **fields)).train()
        shake(encoder)
        frames = encoder(waveforms, lengths)
        weights = torch.randn(frames.values.shape, generator=generator())
        expect_gradients(config, what, encoder, (frames.values * weights)[frames.mask()].sum())
        if what == "lora":
            expect_adapters_only(config, encoder)
        elif what == "freeze: true":
            expect(not frames.values.requires_grad, config, "freeze: true, and gradients are computed for nothing")
        else:
            expect(frames.values.requires_grad, config, "freeze: false, and nothing trains")


def check_save_load(config: EncoderConfig) -> None:
    """Rebuilt from ``architecture()`` and its saved tensors, it puts out the same, bit for bit."""
    waveforms, lengths = batch_of([clip(SAMPLE_RATE), clip(9_001)])
    adapters = lora_for(build(config).named_modules())
    for fields in ({}, {"freeze": True, "lora": adapters}):
        variant = changed(config, **fields)
        encoder = build(variant).eval()
        shake(encoder)
        torch.manual_seed(1)
        rebuilt = ENCODERS.build(variant, EncoderContext(json.loads(json.dumps(encoder.architecture())))).eval()
        reload(config, encoder, rebuilt)
        same = (encoder.dim, encoder.frame_rate) == (rebuilt.dim, rebuilt.frame_rate)
        expect(same, config, "rebuilt from architecture(), it has another dim or frame_rate")
        with torch.no_grad():
            first, second = encoder(waveforms, lengths), rebuilt(waveforms, lengths)
        expect(torch.equal(first.values, second.values), config, "saved and loaded, it puts out other frames")


def check_determinism(config: EncoderConfig) -> None:
    """Without dropout, training mode is no different; with it, it is."""
    waveforms, lengths = batch_of([clip(SAMPLE_RATE), clip(9_001)])
    outputs = []
    for dropout, training in ((0.0, False), (0.0, True), (0.5, False), (0.5, True)):
        encoder = build(changed(config, dropout=dropout)).train(training)
        torch.manual_seed(2)
        with torch.no_grad():
            frames = encoder(waveforms, lengths)
        outputs.append(frames.values[frames.mask()])
    still, trained, still_too, noisy = outputs
    expect(torch.equal(still, trained), config, "dropout: 0, and training mode changes the frames")
    expect(torch.equal(still, still_too), config, "dropout changes the frames outside of training")
    expect(not torch.equal(still, noisy), config, "dropout: 0.5 changes nothing in training mode")


def check_layers(config: EncoderConfig) -> None:
    """``layer``: one by its number, with none kept above it, and the learned sum, which trains in a frozen encoder."""
    config = changed(config, layer="last", lora=None)
    waveforms, lengths = batch_of([clip(SAMPLE_RATE), clip(9_001)])
    weighted = build(changed(config, layer="weighted", freeze=True)).train()
    trainable = [tensor for tensor in weighted.parameters() if tensor.requires_grad]
    fits = len(trainable) == 1 and trainable[0].ndim == 1 and len(trainable[0]) >= 2
    expect(
        fits,
        config,
        "layer: weighted, freeze: true: there must be one trainable vector, a weight for each layer and one for the "
        f"first one's input, and there are {[list(tensor.shape) for tensor in trainable]}",
    )
    weights, depth, own = trainable[0], len(trainable[0]) - 1, weighted.state_dict()
    frames = weighted(waveforms, lengths)
    noise = torch.randn(frames.values.shape, generator=generator())
    expect_gradients(config, "layer: weighted, freeze: true", weighted, (frames.values * noise)[frames.mask()].sum())
    expect(
        weights.grad is not None and bool(weights.grad.any()), config, "layer: weighted: the weights' gradient is zero"
    )
    sizes = []
    for number in range(1, depth + 1):
        single = build(changed(config, layer=number, freeze=True)).train()
        sizes.append(sum(tensor.numel() for tensor in single.parameters()))
        missing = sorted(single.state_dict().keys() - own.keys())
        expect(not missing, config, f"layer: {number}: it has keys that the sum of all has not: {', '.join(missing)}")
        single.load_state_dict({name: own[name] for name in single.state_dict()})
        with torch.no_grad():
            weights.copy_(100.0 * (torch.arange(depth + 1) == number))
            found, wanted = single(waveforms, lengths), weighted(waveforms, lengths)
        what = f"layer: {number}, and the weighted sum with all weight on it"
        expect_equal(config, what, found.values[found.mask()], wanted.values[wanted.mask()])
    expect(sizes == sorted(set(sizes)), config, f"layers above the chosen one must not be kept; parameters are {sizes}")
    try:
        build(changed(config, layer=depth + 1))
    except UserError as error:
        expect(str(depth) in str(error), config, f"layer: {depth + 1}: the refusal must say that there are {depth}")
    else:
        expect(False, config, f"layer: {depth + 1} is built, and there are {depth}")
    for layer in (1, "weighted"):
        variant = changed(config, layer=layer)
        for check in (check_invariance, check_save_load):
            check(variant)
    for layer in (1, "weighted"):
        encoder = build(changed(config, layer=layer, freeze=False)).train()
        shake(encoder)
        frames = encoder(waveforms, lengths)
        expect_gradients(
            config, f"layer: {layer}, freeze: false", encoder, (frames.values * noise)[frames.mask()].sum()
        )


def check_linear_layers(config: EncoderConfig) -> None:
    """``linear_layers`` are the ones that there are, and an adapter on any of them takes part."""
    if config.linear_layers is None:
        return
    names = _linear_layers(build(changed(config, lora=None)))
    expect(
        set(config.linear_layers) == names,
        config,
        f"linear_layers are {sorted(config.linear_layers)}, and the encoder has {sorted(names)}",
    )
    waveforms, lengths = batch_of([clip(SAMPLE_RATE), clip(9_001)])
    adapters = {"rank": 2, "alpha": 4.0, "targets": sorted(names)}
    encoder = build(changed(config, freeze=True, lora=adapters)).train()
    shake(encoder)
    frames = encoder(waveforms, lengths)
    noise = torch.randn(frames.values.shape, generator=generator())
    expect_gradients(config, "lora on all linear layers", encoder, (frames.values * noise)[frames.mask()].sum())


def check_attentions(config: EncoderConfig) -> None:
    """All of ``attentions`` put out the same, but for Flash Attention, which needs a GPU."""
    waveforms, lengths = batch_of([clip(SAMPLE_RATE), clip(9_001)])
    wanted: Tensor | None = None
    for attention in ("auto", *config.attentions):
        if attention == "flash_attention_2":
            continue
        encoder = build(changed(config, attention=attention)).eval()
        with torch.no_grad():
            frames = encoder(waveforms, lengths)
        values = frames.values[frames.mask()]
        wanted = values if wanted is None else wanted
        expect_equal(config, f"attention: {attention}, and auto", values, wanted)


def check_packing(config: EncoderConfig) -> None:
    """``attention: varlen``: no clip reads another, and gradients are those of the padded rows."""
    if VARLEN not in config.attentions:
        return
    config = changed(config, dropout=0.0)
    check_invariance(changed(config, attention=VARLEN))
    check_layers(changed(config, attention=VARLEN))
    waveforms, lengths = batch_of([clip(SAMPLE_RATE), clip(9_001), clip(401)])
    adapters = lora_for(build(config).named_modules())
    for fields in ({"freeze": False, "lora": None}, {"freeze": True, "lora": adapters}):
        for checkpointing in (False, True):
            gradients: list[dict[str, Tensor]] = []
            for attention in ("auto", VARLEN):
                settings = fields | {"attention": attention, "gradient_checkpointing": checkpointing}
                # Sums in another order differ in the last digits of fp32, and cancel in some gradients.
                encoder = build(changed(config, **settings)).train().double()
                shake(encoder)
                frames = encoder(waveforms, lengths)
                noise = torch.randn(frames.values.shape, generator=generator())
                torch.autograd.backward((frames.values * noise)[frames.mask()].sum())
                gradients.append(
                    {name: tensor.grad for name, tensor in encoder.named_parameters() if tensor.grad is not None}
                )
            expect_equal_gradients(config, f"attention: varlen with {settings}", gradients[1], gradients[0])


def check_checkpointing(config: EncoderConfig) -> None:
    """``gradient_checkpointing`` computes layers again in the backward pass, and changes no gradient."""
    waveforms, lengths = batch_of([clip(SAMPLE_RATE), clip(9_001)])
    adapters = lora_for(build(config).named_modules())
    for fields in ({"freeze": False, "lora": None}, {"freeze": True, "lora": adapters}):
        gradients: list[dict[str, Tensor]] = []
        calls: list[list[str]] = []
        for checkpointing in (False, True):
            encoder = build(changed(config, **fields, gradient_checkpointing=checkpointing)).train()
            shake(encoder)
            calls.append(_linear_calls(encoder))
            frames = encoder(waveforms, lengths)
            noise = torch.randn(frames.values.shape, generator=generator())
            torch.autograd.backward((frames.values * noise)[frames.mask()].sum())
            gradients.append(
                {name: tensor.grad for name, tensor in encoder.named_parameters() if tensor.grad is not None}
            )
        plain, checkpointed = map(len, calls)
        what = f"gradient_checkpointing with freeze: {str(fields['freeze']).lower()}"
        expect(checkpointed > plain, config, f"{what} computes nothing again in the backward pass")
        expect_equal_gradients(config, what, gradients[1], gradients[0])


def _linear_calls(encoder: Encoder) -> list[str]:
    """Where every call of a linear layer will be written down."""
    calls: list[str] = []
    for path, module in encoder.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_, path=path: calls.append(path))
    return calls


def _linear_layers(encoder: Encoder) -> set[str]:
    """Names of the linear layers, without their paths."""
    return {path.rsplit(".", 1)[-1] for path, module in encoder.named_modules() if isinstance(module, nn.Linear)}


CHECKS = (
    check_lengths,
    check_finite,
    check_invariance,
    check_transform,
    check_gradients,
    check_save_load,
    check_determinism,
    check_layers,
    check_linear_layers,
    check_attentions,
    check_packing,
    check_checkpointing,
)
