"""Augment training clips. Seeds depend only on the clip and the epoch, so workers and restarts change no result.

To add an augmentation, write a subclass of :class:`WaveformAugmentation` or :class:`FeatureAugmentation` here, and add
a field to :class:`AugmentationConfig`. Fields of the same kind are applied in the order in which they are defined.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, field_validator, model_validator
from torch import Tensor

from tiny_audio.config import NO_IDENTITY, Config, LocalPath, UserError
from tiny_audio.data.sounds import sounds_in
from tiny_audio.encoders import FeatureTransform
from tiny_audio.frames import SAMPLE_RATE, Frames

_MAX_DECAY_S = 10.0
"""Maximum reverberation time, about that of a cathedral."""


@dataclass(frozen=True)
class Draw:
    """Random state and bounds for the augmentation of one clip."""

    rng: random.Random
    seed: int
    loudness: Tensor
    """Root mean square of the recorded clip, without added silence."""
    max_duration_s: float


class WaveformAugmentation(Config, ABC):
    """Base class of the sections that change the waveforms of a random share of the clips."""

    probability: float
    """Share of the clips that are changed."""

    @abstractmethod
    def apply(self, waveform: Tensor, draw: Draw) -> Tensor:
        """Return the changed waveform of a clip ``[S]``. All random numbers come from ``draw``."""


class SilenceConfig(WaveformAugmentation):
    """Silence of random length before and after the clip. If all training clips start with speech, a model fails on
    recordings that start with silence."""

    max_before_s: float = Field(default=0.3, ge=0, le=10)
    """Maximum silence before the clip."""
    max_after_s: float = Field(default=0.3, ge=0, le=10)
    """Maximum silence after the clip."""
    probability: float = Field(default=0.5, gt=0, le=1)
    """Share of the clips that get silence. The other clips stay unchanged, so that the model learns both cases."""

    @model_validator(mode="after")
    def _check_any(self) -> SilenceConfig:
        if not self.longest_s:
            raise ValueError(
                "max_before_s and max_after_s are both 0, so nothing is added; raise one, or remove the section"
            )
        return self

    @property
    def longest_s(self) -> float:
        """Maximum total silence before and after a clip."""
        return self.max_before_s + self.max_after_s

    def apply(self, waveform: Tensor, draw: Draw) -> Tensor:
        """See :meth:`WaveformAugmentation.apply`. Silence does not make a clip longer than ``max_duration_s``."""
        before_s, after_s = draw.rng.uniform(0, self.max_before_s), draw.rng.uniform(0, self.max_after_s)
        share = min(1.0, max(0.0, draw.max_duration_s - len(waveform) / SAMPLE_RATE) / (before_s + after_s or 1.0))
        # The silence consists of zeros. Later sections may add noise.
        padding = int(share * before_s * SAMPLE_RATE), int(share * after_s * SAMPLE_RATE)
        return torch.nn.functional.pad(waveform, padding)


class ReverberationConfig(WaveformAugmentation):
    """Reverberation: convolution with recorded or simulated impulse responses of rooms (Ko et al., ICASSP 2017)."""

    folder: LocalPath = Field(json_schema_extra=NO_IDENTITY)
    """Folder of audio files, at any depth. Each file is one impulse response. Channels are averaged. A run records the
    names and sizes of the files, because they affect the weights."""
    probability: float = Field(default=0.3, gt=0, le=1)
    """Share of the clips that get reverberation."""

    def apply(self, waveform: Tensor, draw: Draw) -> Tensor:
        """See :meth:`WaveformAugmentation.apply`. Length, loudness and the time of the direct sound stay the same."""
        response = _drawn(self.folder, draw.rng)
        if response is None:
            return waveform
        arrival = int(response.abs().argmax())  # the direct sound is the loudest
        return _reverberant(waveform, response, arrival)


class SimulatedReverberationConfig(WaveformAugmentation):
    """Reverberation of random rooms, without files: the direct sound, followed by noise that decays exponentially
    (Polack's statistical model of late reverberation, see Habets 2007)."""

    decay_s: tuple[PositiveFloat, PositiveFloat] = (0.1, 0.6)
    """Range of the reverberation time RT60, in which the sound decays by 60 dB. A living room has about 0.4 s."""
    direct_to_reverberant_db: tuple[float, float] = (0.0, 15.0)
    """Range of the ratio of direct sound to reverberation, by energy. Larger distances to the microphone mean lower
    ratios."""
    probability: float = Field(default=0.3, gt=0, le=1)
    """Share of the clips that get reverberation."""

    @field_validator("decay_s", "direct_to_reverberant_db")
    @classmethod
    def _check_range(cls, span: tuple[float, float]) -> tuple[float, float]:
        return _ascending(span)

    @field_validator("decay_s")
    @classmethod
    def _check_decay(cls, span: tuple[float, float]) -> tuple[float, float]:
        if span[1] > _MAX_DECAY_S:
            raise ValueError(f"must be at most {_MAX_DECAY_S:g} s, not {span[1]:g}")
        return span

    def apply(self, waveform: Tensor, draw: Draw) -> Tensor:
        """See :meth:`WaveformAugmentation.apply`. Length, loudness and the time of the direct sound stay the same."""
        decay_s = draw.rng.uniform(*self.decay_s)
        ratio_db = draw.rng.uniform(*self.direct_to_reverberant_db)
        generator = torch.Generator().manual_seed(draw.rng.getrandbits(63))
        length = max(2, int(decay_s * SAMPLE_RATE))
        # The energy falls by 60 dB, so the amplitude falls by a factor of 1,000.
        tail = torch.randn(length, generator=generator) * torch.logspace(0, -3, length)
        tail[0] = 0.0
        tail *= 10 ** (-ratio_db / 20) / tail.pow(2).sum().sqrt()
        tail[0] = 1.0  # the direct sound
        return _reverberant(waveform, tail, arrival=0)


class AddedNoise(WaveformAugmentation, ABC):
    """Base class of the sections that add noise at a random signal-to-noise ratio."""

    snr_db: tuple[float, float]
    """Minimum and maximum signal-to-noise ratio. A ratio between them is drawn for each clip."""

    @field_validator("snr_db")
    @classmethod
    def _check_snr(cls, snr: tuple[float, float]) -> tuple[float, float]:
        return _ascending(snr)

    @abstractmethod
    def noise(self, length: int, draw: Draw) -> Tensor | None:
        """Return noise ``[length]`` of any loudness, or None to add no noise."""

    def apply(self, waveform: Tensor, draw: Draw) -> Tensor:
        """See :meth:`WaveformAugmentation.apply`. Silent noise is not amplified."""
        snr_db = draw.rng.uniform(*self.snr_db)
        noise = self.noise(len(waveform), draw)
        if noise is None:
            return waveform
        own = _loudness(noise)
        return waveform + (noise * (draw.loudness / own * 10 ** (-snr_db / 20)) if own else noise)


class NoiseConfig(AddedNoise):
    """Recorded noise, such as MUSAN's (Snyder et al. 2015, arXiv 1510.08484): a random part of a random file."""

    folder: LocalPath = Field(json_schema_extra=NO_IDENTITY)
    """Folder of audio files, at any depth. A run records the names and sizes of the files, because they affect the
    weights."""
    snr_db: tuple[float, float] = (5.0, 25.0)
    """Minimum and maximum signal-to-noise ratio. A ratio between them is drawn for each clip."""
    probability: float = Field(default=0.5, gt=0, le=1)
    """Share of the clips that get noise."""

    def noise(self, length: int, draw: Draw) -> Tensor | None:
        """See :meth:`AddedNoise.noise`. A sound that is shorter than the clip is looped."""
        start = draw.rng.random()
        sound = _drawn(self.folder, draw.rng)
        if sound is None:
            return None
        if len(sound) >= length:
            first = int(start * (len(sound) - length + 1))
            return sound[first : first + length]
        turned = sound.roll(-int(start * len(sound)))
        return turned.repeat(-(-length // len(sound)))[:length]


class WhiteNoiseConfig(AddedNoise):
    """White noise: all frequencies have equal power."""

    snr_db: tuple[float, float] = (15.0, 40.0)
    """Minimum and maximum signal-to-noise ratio. A ratio between them is drawn for each clip."""
    probability: float = Field(default=0.5, gt=0, le=1)
    """Share of the clips that get white noise."""

    def noise(self, length: int, draw: Draw) -> Tensor:
        """See :meth:`AddedNoise.noise`."""
        return torch.randn(length, generator=torch.Generator().manual_seed(draw.seed % 2**63))


class FeatureAugmentation(Config, ABC):
    """Base class of the sections that change the encoder's features, between its front end and its layers."""

    @abstractmethod
    def apply(self, features: Frames, seeds: Sequence[int]) -> Frames:
        """Return the changed features ``[B, F, C]`` of a batch. Lengths stay the same.

        The result for a clip depends only on the clip and its seed, not on the batch or its padding.

        Args:
            seeds: the seed of each clip, see :func:`clip_seed`.
        """


class SpecAugmentConfig(FeatureAugmentation):
    """Masks over time and over channels of the encoder's features (Park et al. 2019, arXiv 1904.08779)."""

    num_time_masks: NonNegativeInt = 2
    """Number of time masks for each clip."""
    time_masks_per_s: NonNegativeFloat = 0.0
    """Number of additional time masks per second of a clip, so that long and short clips are masked equally. The number
    for a clip is rounded up or down at random."""
    max_time_mask_s: PositiveFloat = 0.4
    """Maximum length of a time mask."""
    max_time_share: float = Field(default=0.2, gt=0, le=1)
    """Maximum length of a time mask, as a share of the clip. This limit protects short clips."""
    num_channel_masks: NonNegativeInt = 2
    """Number of channel masks for each clip."""
    max_channel_share: float = Field(default=0.2, gt=0, le=1)
    """Maximum width of a channel mask, as a share of the channels."""

    def apply(self, features: Frames, seeds: Sequence[int]) -> Frames:
        """See :meth:`FeatureAugmentation.apply`. Masked features are replaced by the mean of their clip."""
        mask = features.mask()
        channels = features.values.shape[2]
        kept = torch.ones(features.values.shape, dtype=torch.bool)
        for clip, (seed, length) in enumerate(zip(seeds, features.lengths.tolist(), strict=True)):
            rng = random.Random(seed + 1)
            widest = int(min(self.max_time_mask_s * features.rate, self.max_time_share * length))
            num_time_masks = self.num_time_masks
            if self.time_masks_per_s:
                num_time_masks += int(self.time_masks_per_s * length / features.rate + rng.random())
            for _ in range(num_time_masks):
                width = rng.randint(0, widest)
                start = rng.randint(0, length - width)
                kept[clip, start : start + width] = False
            for _ in range(self.num_channel_masks):
                width = rng.randint(0, int(self.max_channel_share * channels))
                start = rng.randint(0, channels - width)
                kept[clip, :, start : start + width] = False
        count = (features.lengths * channels)[:, None, None]
        mean = features.zeroed().values.sum(dim=(1, 2), keepdim=True) / count
        return replace(features, values=torch.where(kept.to(mask.device), features.values, mean))


class AugmentationConfig(Config):
    """Augmentation of training clips. Off by default: with a frozen encoder, it makes most test results worse.

    Speed is changed first. Then the other sections that change waveforms are applied, in the order of the fields.
    Sections that change features, such as SpecAugment, are applied last.
    """

    spec_augment: SpecAugmentConfig | None = None
    speed: tuple[PositiveFloat, ...] | None = None
    """Speed factors, such as ``[0.9, 1.0, 1.1]``. One of them is drawn for each clip. Pitch changes with speed (Ko et
    al. 2015)."""
    silence: SilenceConfig | None = None
    reverberation: ReverberationConfig | None = None
    simulated_reverberation: SimulatedReverberationConfig | None = None
    noise: NoiseConfig | None = None
    white_noise: WhiteNoiseConfig | None = None

    @field_validator("speed")
    @classmethod
    def _check_speed(cls, speed: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if speed is not None and (not speed or min(speed) < 0.5 or max(speed) > 2):
            raise ValueError(f"needs factors between 0.5 and 2, such as [0.9, 1.0, 1.1], not {list(speed)}")
        return speed

    def longest_s(self, duration_s: float, max_duration_s: float) -> float:
        """Return the maximum duration of a clip after augmentation.

        Only a change of speed can make a clip longer than ``max_duration_s``.
        """
        slowed = duration_s / min(*(self.speed or (1.0,)), 1.0)
        added = self.silence.longest_s if self.silence else 0.0
        return max(slowed, min(slowed + added, max_duration_s))

    def folders(self) -> dict[str, str]:
        """Return the folders of sounds, by section."""
        return {name: part.folder for name, part in self if isinstance(part, ReverberationConfig | NoiseConfig)}

    def sections(self) -> list[WaveformAugmentation]:
        """Return the sections that change waveforms after the change of speed, in the order of application."""
        return [section for _, section in self if isinstance(section, WaveformAugmentation)]

    def of_features(self, seeds: Sequence[int]) -> FeatureTransform | None:
        """Return a function that changes the features of a batch of clips, or None if no section does this.

        Args:
            seeds: the seed of each clip, see :func:`clip_seed`.
        """
        sections = [section for _, section in self if isinstance(section, FeatureAugmentation)]

        def transform(features: Frames) -> Frames:
            for section in sections:
                features = section.apply(features, seeds)
            return features

        return transform if sections else None


def sounds_fingerprint(config: AugmentationConfig) -> str | None:
    """Return a hash of all sounds that augmentation uses, or None if there are none.

    Raises:
        UserError: a folder or a file in it cannot be used. The message names the section.
    """
    fingerprints = {}
    for section, folder in config.folders().items():
        try:
            sounds = sounds_in(folder)
            sounds.check()
        except UserError as error:
            raise UserError(f"augmentation.{section}.folder: {error}") from error
        fingerprints[section] = sounds.fingerprint
    return hashlib.sha256(json.dumps(fingerprints).encode()).hexdigest() if fingerprints else None


def clip_seed(seed: int, epoch: int, clip_id: str, repeat: int = 0) -> int:
    """Return the seed of a clip in an epoch. It is the same on every machine, unlike Python's salted hash.

    Args:
        repeat: number of earlier occurrences of the clip in this epoch.
    """
    again = f"/{repeat}" if repeat else ""
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}/{clip_id}{again}".encode()).digest()[:8], "big")


def augment_waveform(
    config: AugmentationConfig, waveform: Tensor, seed: int, max_duration_s: float = math.inf
) -> Tensor:
    """Augment one clip ``[S]``.

    The result depends only on the clip, its seed, and the names and content of the sounds.

    Args:
        max_duration_s: maximum duration of a clip with added silence.
    """
    rng = random.Random(seed)
    factor = rng.choice(config.speed) if config.speed else 1.0
    if factor != 1.0:
        import torchaudio

        # Changing the speed means resampling. Factors are rounded to 1 % to keep the kernel small.
        waveform = torchaudio.functional.resample(waveform, round(factor * 100), 100)
    draw = Draw(rng, seed, _loudness(waveform), max_duration_s)
    for section in config.sections():
        if rng.random() < section.probability:
            waveform = section.apply(waveform, draw)
    return waveform


def _drawn(folder: str, rng: random.Random) -> Tensor | None:
    sounds = sounds_in(folder)
    return sounds.load(rng.randrange(len(sounds.names)))


def _reverberant(waveform: Tensor, response: Tensor, arrival: int) -> Tensor:
    """Convolve with an impulse response whose direct sound is at sample ``arrival``. Keep length and loudness."""
    import torchaudio

    wet = torchaudio.functional.fftconvolve(waveform, response)[arrival : arrival + len(waveform)]
    return wet * (_loudness(waveform) / _loudness(wet)) if _loudness(wet) > 0 else waveform


def _ascending(span: tuple[float, float]) -> tuple[float, float]:
    if span[0] > span[1]:
        raise ValueError(f"must be a range [lowest, highest], but {span[0]} is above {span[1]}")
    return span


def _loudness(waveform: Tensor) -> Tensor:
    return waveform.pow(2).mean().sqrt()
