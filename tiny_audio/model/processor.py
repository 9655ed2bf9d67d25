"""TinyAudioProcessor: pads waveforms to form a batch, and decodes token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, ProcessorMixin

from tiny_audio.config import UserError
from tiny_audio.frames import SAMPLE_RATE

Waveform = np.ndarray[Any, Any] | Tensor


class TinyAudioProcessor(ProcessorMixin):  # type: ignore[misc]  # transformers is untyped here
    """Prepares the inputs of ``TinyAudioModel.generate``, and decodes its token ids with ``batch_decode``.

    The audio is only padded. Features are computed by the encoder's own front end.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)

    def __call__(
        self, audio: Waveform | Sequence[Waveform], sampling_rate: int = SAMPLE_RATE, return_tensors: str = "pt"
    ) -> BatchFeature:
        """Pad clips to the length of the longest clip.

        Args:
            audio: one mono clip ``[S]`` of floating-point samples between -1 and 1, or a list of such clips.
            sampling_rate: rate of all clips in Hz. Only 16,000 is accepted, so that nothing is resampled silently.
            return_tensors: only ``"pt"``.

        Returns:
            ``waveforms [B, S]`` (float32, padded with zeros), and ``waveform_lengths [B]`` in samples.

        Raises:
            UserError: ``sampling_rate`` or ``return_tensors`` is not supported, there is no clip, or a clip is empty,
                has several channels, or has samples that are not finite floating-point numbers.
        """
        if sampling_rate != SAMPLE_RATE:
            raise UserError(
                f"the audio has {sampling_rate:,} Hz, but {SAMPLE_RATE:,} Hz is required; resample it first, for "
                f"example with torchaudio.functional.resample(audio, {sampling_rate}, {SAMPLE_RATE})"
            )
        if return_tensors != "pt":
            raise UserError(f"return_tensors={return_tensors!r} is not supported; use 'pt' (PyTorch)")
        clips = [audio] if isinstance(audio, np.ndarray | Tensor) else audio
        if len(clips) == 0:
            raise UserError("there is no clip; pass one array of samples, or a list of arrays")
        rows = [_mono(clip, index) for index, clip in enumerate(clips)]
        return BatchFeature(
            {
                "waveforms": pad_sequence(rows, batch_first=True),
                "waveform_lengths": torch.tensor([len(row) for row in rows]),
            }
        )


def _mono(clip: Waveform, index: int) -> Tensor:
    """Check the clip, and return it as float32 ``[S]``."""
    if not isinstance(clip, np.ndarray | Tensor):
        raise UserError(
            f"clip {index} is a {type(clip).__name__}; pass NumPy arrays or tensors of samples "
            "(read a file with soundfile.read)"
        )
    if clip.ndim != 1:
        raise UserError(
            f"clip {index} has the shape {tuple(clip.shape)}, but one channel of samples is required; for stereo "
            "audio, average the channels; for the shape [1, samples], take the row; for a batch, pass a list of clips"
        )
    if not (clip.is_floating_point() if isinstance(clip, Tensor) else clip.dtype.kind == "f"):
        raise UserError(
            f"clip {index} has {str(clip.dtype).removeprefix('torch.')}, but floating-point samples between "
            "-1 and 1 are required; divide 16-bit samples by 32768"
        )
    if len(clip) == 0:
        raise UserError(f"clip {index} is empty; leave it out")
    # PyTorch needs a writable array with native byte order and without negative strides.
    waveform = clip if isinstance(clip, Tensor) else torch.from_numpy(np.require(clip, np.float32, ["C", "W"]))
    if not torch.isfinite(waveform).all():
        raise UserError(f"clip {index} has NaN or infinite samples; leave it out")
    return waveform.float()
