"""Recognizers that use a model's encoder, but not its decoder. They are compared with the whole model.

There are two: the encoder's published checkpoint with its own head or decoder, and the model's encoder with the model's
CTC head.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence
from torch.utils.flop_counter import FlopCounterMode

from tiny_audio.analysis.decoder_gain import Speed
from tiny_audio.encoders import EncoderConfig
from tiny_audio.evaluation._transformers import TransformersOptions, TransformersTarget
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.pretrained.checkpoints import read_json

NUM_TIMED = 10
"""Number of clips on which the speed is measured."""
_NUM_COUNTED = 3
"""Number of clips whose FLOPs are counted. It is smaller than :data:`NUM_TIMED`, because counting is slow."""


def checkpoint_recognizer(encoder: EncoderConfig, device: str) -> TransformersTarget | None:
    """Return the encoder's checkpoint as a recognizer, with the head or decoder that it was published with.

    Return None if the encoder has random weights, or if transformers cannot use the checkpoint as a recognizer.

    Raises:
        UserError: the checkpoint's ``config.json`` cannot be read.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CTC_MAPPING_NAMES,
        MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    )

    fields = read_json(encoder, "config.json") if encoder.init == "pretrained" else None
    if fields is None:
        return None
    kind = str(fields.get("model_type"))
    # transformers would add a head with random weights to a checkpoint without a head, such as HuBERT before
    # fine-tuning.
    known = {mapping.get(kind) for mapping in (MODEL_FOR_CTC_MAPPING_NAMES, MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES)}
    if not known - {None} & set(fields.get("architectures") or ()):
        return None
    options = TransformersOptions(revision=encoder.revision)
    return TransformersTarget(Path(encoder.pretrained).name, encoder.pretrained, kind, options, {}, device)


def ctc_head(model: TinyAudioModel) -> Callable[[list[Tensor]], object]:
    """Return a function that transcribes waveforms with the model's CTC head only."""

    @torch.no_grad()
    def transcribe(waveforms: list[Tensor]) -> object:
        lengths = torch.tensor([len(waveform) for waveform in waveforms], device=model.device)
        return model.ctc_texts(model.encode(pad_sequence(waveforms, batch_first=True).to(model.device), lengths))

    return transcribe


def measure_speed(transcribe: Callable[[list[Tensor]], object], waveforms: Sequence[Tensor]) -> Speed:
    """Measure the median time of a recognizer for one clip, and its FLOPs per second of audio.

    Args:
        transcribe: the recognizer. It gets one waveform at a time.
        waveforms: at least one waveform ``[S]``.
    """
    counted = waveforms[:_NUM_COUNTED]
    # FlopCounterMode does not count fused attention on a CPU, so attention uses plain matrix products here.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for waveform in counted:
            transcribe([waveform])
    seconds = sum(len(waveform) for waveform in counted) / SAMPLE_RATE
    times = []
    for waveform in waveforms:
        began = time.perf_counter()
        transcribe([waveform])
        times.append(time.perf_counter() - began)
    return Speed(len(waveforms), median(times), counter.get_total_flops() / seconds)
