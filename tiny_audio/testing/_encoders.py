"""Checks of the Encoder contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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
    expect_finite,
    expect_gradients,
    generator,
    perturb,
    weighted_sum,
)
from tiny_audio.testing._transformers_parts import Check, TransformersPartChecks


def clip(num_samples: int, seed: int = 0) -> Tensor:
    """Return noise ``[S]`` whose loudness changes slowly, as in speech."""
    noise = 0.1 * torch.randn(num_samples, generator=generator(seed))
    return noise * (1.1 + torch.sin(torch.arange(num_samples) / 1000.0))


def batch_of(clips: Sequence[Tensor], *, noise: bool = False, extra: int = 0) -> tuple[Tensor, Tensor]:
    """Return waveforms ``[B, S]``, padded with silence or with loud noise, and their lengths ``[B]``.

    S is ``extra`` samples more than the longest clip.
    """
    lengths = torch.tensor([len(row) for row in clips])
    size = int(lengths.max()) + extra
    waveforms = NOISE * torch.randn(len(clips), size, generator=generator(99)) * noise
    for row, waveform in zip(waveforms, clips, strict=True):
        row[: len(waveform)] = waveform
    return waveforms, lengths


def sizes(config: EncoderConfig, encoder: Encoder) -> list[int]:
    """Return clip lengths to test, in samples, such as multiples of the stride plus -1, 0 or 1 sample."""
    stride = round(SAMPLE_RATE / encoder.frame_rate)
    edges = [2, stride // 2, 400, *(multiple * stride for multiple in (1, 2, 3, 4, 5, 8, 25, 50))]
    limit_s = config.max_duration_s()
    found = {1, SAMPLE_RATE + 7} | {edge + step for edge in edges for step in (-1, 0, 1)}
    return sorted(size for size in found if limit_s is None or size <= limit_s * SAMPLE_RATE)


class EncoderChecks(TransformersPartChecks[EncoderConfig]):
    """Checks of an encoder."""

    output = "frames"

    def build(self, config: EncoderConfig, seed: int = 0) -> Encoder:
        torch.manual_seed(seed)
        return ENCODERS.build(config, EncoderContext())

    def rebuild(self, config: EncoderConfig, architecture: dict[str, Any]) -> Encoder:
        return ENCODERS.build(config, EncoderContext(architecture))

    def run(self, part: Encoder) -> Tensor:
        """Return the frames ``[K, D]`` of two clips, without padding."""
        frames: Frames = part(*batch_of([clip(SAMPLE_RATE), clip(9_001)]))
        return frames.values[frames.mask()]

    def checks(self) -> tuple[Check[EncoderConfig], ...]:
        return (
            self.check_lengths,
            self.check_finite,
            self.check_invariance,
            self.check_transform,
            self.check_gradients,
            self.check_save_load,
            self.check_determinism,
            self.check_layers,
            self.check_linear_layers,
            self.check_attentions,
            self.check_packing,
            self.check_checkpointing,
        )

    def check_lengths(self, config: EncoderConfig) -> None:
        """Check ``num_frames`` of the config and of the encoder against the encoder's output, for many clip lengths."""
        encoder = self.build(config).eval()
        stride = round(SAMPLE_RATE / encoder.frame_rate)
        samples = torch.arange(1, 4 * stride)
        counts = encoder.num_frames(samples)
        # Choose the sizes at which the number of frames changes, the sizes before them, and every 16th size.
        steps = counts.diff() != 0
        chosen = F.pad(steps, (0, 1)) | F.pad(steps, (1, 0)) | (samples % 16 == 1)
        for size, count in zip(samples[chosen].tolist(), counts[chosen].tolist(), strict=True):
            planned = config.num_frames(size)
            what = f"{size} samples: config.num_frames is {planned}, but encoder.num_frames is {count}"
            expect(planned == count, config, what)
        clip_sizes = sizes(config, encoder)
        waveforms, lengths = batch_of([clip(size, size) for size in clip_sizes])
        with torch.no_grad():
            frames = encoder(waveforms, lengths)
        found = frames.lengths.tolist()
        expect(frames.lengths.dtype == torch.long, config, f"lengths must be int64, but are {frames.lengths.dtype}")
        expect(frames.rate == encoder.frame_rate, config, f"frames.rate {frames.rate} is not frame_rate")
        for size, length in zip(clip_sizes, found, strict=True):
            planned = config.num_frames(size)
            what = f"{size} samples gave {length} frames, but config.num_frames says {planned}"
            expect(length == planned, config, what)
            expect(length >= 1, config, f"{size} samples gave no frame; a clip has at least one")
        shape, wanted = list(frames.values.shape), [len(clip_sizes), max(found), encoder.dim]
        expect(shape == wanted, config, f"frames have shape {shape}; [clips, frames of the longest, dim] is {wanted}")
        expect(found == sorted(found), config, "longer clips must not have fewer frames")
        rate = config.num_frames(60 * SAMPLE_RATE) / 60
        close = abs(rate - encoder.frame_rate) <= 0.01 * encoder.frame_rate
        expect(close, config, f"a minute has {rate:.2f} frames per second, but frame_rate is {encoder.frame_rate:.2f}")

    def check_finite(self, config: EncoderConfig) -> None:
        """Check that frames in fp32 and bf16 are finite, for silence, a single sample and clipped audio."""
        clips = [torch.zeros(4000), clip(1), clip(9001).sign(), 1e-4 * clip(3000), clip(SAMPLE_RATE)]
        for dtype in (torch.float32, torch.bfloat16):
            encoder = self.build(config).eval().to(dtype)
            with torch.no_grad():
                for waveforms in (clips, clips[:1], clips[1:2]):
                    frames = encoder(*batch_of(waveforms))
                    expect_finite(config, f"frames in {dtype}", frames.values[frames.mask()])

    def check_invariance(self, config: EncoderConfig) -> None:
        """Check that a clip has the same frames alone and in a batch, for any content of the padding."""
        encoder = self.build(config).eval()
        perturb(encoder)
        clips = [clip(size, size) for size in (SAMPLE_RATE, 1, 7_000, 12_345, 401, 20_001)]
        with torch.no_grad():
            alone = [encoder(*batch_of([waveform])) for waveform in clips]
            batches = {
                "in a batch with longer and shorter clips": encoder(*batch_of(clips)),
                "in padding full of noise": encoder(*batch_of(clips, noise=True)),
                "in a batch padded beyond its longest clip": encoder(*batch_of(clips, noise=True, extra=5_000)),
            }
        for where, frames in batches.items():
            for row, single in enumerate(alone):
                count, wanted = int(frames.lengths[row]), int(single.lengths[0])
                what = f"a clip of {len(clips[row])} samples {where}"
                expect(count == wanted, config, f"{what} has {count} frames, but {wanted} alone")
                expect_equal(config, what, frames.values[row, :count], single.values[0, :count])

    def check_transform(self, config: EncoderConfig) -> None:
        """Check that a feature transform, such as SpecAugment, is called once, and that its result is encoded."""
        encoder = self.build(config).eval()
        waveforms, lengths = batch_of([clip(SAMPLE_RATE), clip(9_001)])
        seen: list[Frames] = []

        def record(features: Frames) -> Frames:
            seen.append(features)
            return features

        def erase(features: Frames) -> Frames:
            return Frames(torch.zeros_like(features.values), features.lengths, features.rate)

        with torch.no_grad():
            plain, recorded = encoder(waveforms, lengths), encoder(waveforms, lengths, record)
            erased = encoder(waveforms, lengths, erase)
        expect(len(seen) == 1, config, f"the transform was called {len(seen)} times, not once")
        shape = list(seen[0].values.shape)
        fits = len(shape) == 3 and int(seen[0].lengths.max()) <= shape[1]
        expect(fits, config, f"features must be [B, F, C] with lengths within F; their shape is {shape}")
        same = torch.equal(plain.values, recorded.values)
        expect(same, config, "a transform that returns the features unchanged still changes the frames")
        expect(not torch.equal(plain.values, erased.values), config, "the result of the transform is not encoded")

    def check_gradients(self, config: EncoderConfig) -> None:
        """Check that gradients reach all trainable tensors and no frozen tensor."""
        for what, fields in (
            ("freeze: false", {"freeze": False, "lora": None}),
            ("freeze: true", {"freeze": True, "lora": None}),
            ("lora", {"freeze": True, "lora": self.lora(config)}),
        ):
            encoder = self.build(changed(config, **fields)).train().double()
            perturb(encoder)
            frames = self.run(encoder)
            expect_gradients(config, what, encoder, weighted_sum(frames))
            if what == "lora":
                expect_adapters_only(config, encoder)
            elif what == "freeze: true":
                expect(not frames.requires_grad, config, "freeze: true, but the frames require gradients")
            else:
                expect(frames.requires_grad, config, "freeze: false, but the frames require no gradients")

    def check_save_load(self, config: EncoderConfig) -> None:
        """Check that a rebuilt encoder has the same frame rate and frames."""
        super().check_save_load(config)
        encoder = self.build(config)
        rebuilt = self.rebuild(config, encoder.architecture())
        same = encoder.frame_rate == rebuilt.frame_rate
        expect(same, config, "the encoder rebuilt from architecture() has a different frame_rate")

    def check_layers(self, config: EncoderConfig) -> None:
        """Check that all layers above the chosen layer are removed if ``layer`` is a number.

        With ``layer: weighted``, the frames are a weighted sum of the first layer's input and all layers' outputs. The
        weights must be trainable even if the encoder is frozen.
        """
        config = changed(config, layer="last", lora=None)
        weighted = self.build(changed(config, layer="weighted", freeze=True)).train().double()
        trainable = [tensor for tensor in weighted.parameters() if tensor.requires_grad]
        expect(
            len(trainable) == 1 and trainable[0].ndim == 1 and len(trainable[0]) >= 2,
            config,
            "layer: weighted, freeze: true: there must be one trainable vector, with a weight for each layer and one "
            "for the first layer's input; the shapes of the trainable tensors are "
            f"{[list(tensor.shape) for tensor in trainable]}",
        )
        weights, depth, own = trainable[0], len(trainable[0]) - 1, weighted.state_dict()
        expect_gradients(config, "layer: weighted, freeze: true", weighted, weighted_sum(self.run(weighted)))
        trains = weights.grad is not None and bool(weights.grad.any())
        expect(trains, config, "layer: weighted: the weights' gradient is zero")
        num_parameters = []
        for layer in range(1, depth + 1):
            single = self.build(changed(config, layer=layer, freeze=True)).train().double()
            num_parameters.append(sum(tensor.numel() for tensor in single.parameters()))
            missing = sorted(single.state_dict().keys() - own.keys())
            expect(not missing, config, f"layer: weighted lacks keys that layer: {layer} has: {', '.join(missing)}")
            single.load_state_dict({name: own[name] for name in single.state_dict()})
            with torch.no_grad():
                weights.copy_(100.0 * (torch.arange(depth + 1) == layer))
                found, wanted = self.run(single), self.run(weighted)
            expect_equal(
                config, f"layer: {layer}, compared with layer: weighted and all weight on this layer", found, wanted
            )
        grows = num_parameters == sorted(set(num_parameters))
        what = (
            "layers above the chosen layer must be removed; the numbers of parameters with layer: 1, 2, … are "
            f"{num_parameters}"
        )
        expect(grows, config, what)
        try:
            self.build(changed(config, layer=depth + 1))
        except UserError as error:
            what = f"layer: {depth + 1}: the error must say that there are {depth} layers"
            expect(str(depth) in str(error), config, what)
        else:
            expect(False, config, f"layer: {depth + 1} is built, but there are only {depth} layers")
        for variant in (changed(config, layer=1), changed(config, layer="weighted")):
            self.check_invariance(variant)
            self.check_save_load(variant)
            encoder = self.build(changed(variant, freeze=False)).train().double()
            perturb(encoder)
            expect_gradients(config, f"layer: {variant.layer}, freeze: false", encoder, weighted_sum(self.run(encoder)))

    def check_packing(self, config: EncoderConfig) -> None:
        """Check that clips do not attend to each other with ``attention: varlen``.

        Gradients must be the same as with padded rows.
        """
        if VARLEN not in config.attentions:
            return
        config = changed(config, dropout=0.0)
        self.check_invariance(changed(config, attention=VARLEN))
        self.check_layers(changed(config, attention=VARLEN))
        self.check_packed_gradients(config)


CHECKS = EncoderChecks().checks()
