"""Evaluate any speech recognizer that transformers supports, with transformers' own pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from tiny_audio.config import Config, UserError, first_line
from tiny_audio.evaluation.targets import ModelTarget
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.model.decoding import Transcript
from tiny_audio.model.prompt import Context
from tiny_audio.runtime.device import device_of, in_parts_that_fit
from tiny_audio.runtime.quiet import quiet_transformers

_BATCH = 16
_WINDOW_S = 30.0
"""Duration of Whisper's window in seconds. For longer clips, timestamps are switched on, because Whisper needs them to
continue from window to window."""


class TransformersOptions(Config):
    """Options that follow a model's name, as in ``openai/whisper-small:language=en``."""

    revision: str | None = None
    """A branch, a tag or a commit on the hub."""
    language: str | None = None
    """Language for multilingual models such as Whisper. If None, the model detects the language."""
    num_beams: PositiveInt = 1
    """Number of beams, for models with a decoder. 1 means greedy decoding."""
    max_new_tokens: PositiveInt | None = None
    """Maximum number of tokens, for models with a decoder. If None, the model's own limit applies."""


class TransformersTarget(ModelTarget):
    """A CTC or encoder-decoder model with its own processor. No code from its repository is run."""

    def __init__(
        self,
        label: str,
        place: str | Path,
        kind: str,
        options: TransformersOptions,
        identity: dict[str, Any],
        device: str = "auto",
    ) -> None:
        self.label, self._place, self._kind, self._options = label, str(place), kind, options
        self._device = device
        self.identity = {"kind": "transformers", "model_type": kind, **options.model_dump(), **identity}

    def check(self) -> None:
        """See :meth:`Target.check`."""
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_CTC_MAPPING_NAMES,
            MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
        )

        # The pipeline treats unknown types as CTC models. It would return empty texts without an error.
        if self._kind not in MODEL_FOR_CTC_MAPPING_NAMES | MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES:
            raise UserError(
                f"{self._place}: its config.json has model_type {self._kind!r}, and transformers has no speech "
                "recognizer of that type; give a model such as openai/whisper-small or "
                "facebook/wav2vec2-base-960h, or one that tiny-audio exported"
            )
        given = self._given_options()
        if given and self._kind not in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES:
            raise UserError(
                f"{self.label}: a CTC model has no decoder, so it cannot use {' and '.join(given)}; remove "
                f"{'this option' if len(given) == 1 else 'these options'}"
            )

    def load(self) -> None:
        """See :meth:`Target.load`."""
        from transformers import pipeline

        device = device_of(self._device)
        try:
            with quiet_transformers():
                self._pipeline: Any = pipeline(
                    "automatic-speech-recognition",
                    model=self._place,
                    revision=self._options.revision,
                    device=device,
                    # On most CPUs, convolutions in fp16 are slow: those of Whisper take 50 times as long as in fp32.
                    dtype=torch.float32 if device.type == "cpu" else "auto",
                    trust_remote_code=False,
                )
        except (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError) as error:
            # The type of the error depends on the cause, such as a missing file, a missing package or wrong weights.
            raise UserError(f"{self._place}: transformers cannot load it: {first_line(error)}") from error

    def transcribe_batch(
        self, waveforms: list[Tensor], contexts: Sequence[Context | None] | None = None
    ) -> list[Transcript]:
        """See :meth:`ModelTarget.transcribe_batch`. These models get no contexts."""
        is_whisper = self._pipeline.type == "seq2seq_whisper"
        long = [is_whisper and len(waveform) > _WINDOW_S * SAMPLE_RATE for waveform in waveforms]
        texts: dict[int, str] = {}
        for is_long in set(long):  # long and short clips need different settings, so they do not share a batch
            indices = [index for index, one in enumerate(long) if one is is_long]
            found = in_parts_that_fit(partial(self._texts, is_long=is_long), [waveforms[index] for index in indices])
            texts |= zip(indices, found, strict=True)
        return [Transcript(texts[index], None, truncated=False) for index in range(len(waveforms))]

    def _texts(self, waveforms: Sequence[Tensor], *, is_long: bool) -> list[str]:
        clips = [{"raw": waveform.numpy(), "sampling_rate": SAMPLE_RATE} for waveform in waveforms]
        settings: dict[str, Any] = {"return_timestamps": True} if is_long else {}
        if not self._pipeline.type.startswith("ctc"):
            settings["generate_kwargs"] = {"num_beams": self._options.num_beams}
            if self._options.language is not None:
                settings["generate_kwargs"]["language"] = self._options.language
            if self._options.max_new_tokens is not None:
                settings["generate_kwargs"]["max_new_tokens"] = self._options.max_new_tokens
        size = min(_BATCH, len(clips)) if self._takes_batches() else 1
        try:
            with quiet_transformers():
                results = self._pipeline(clips, batch_size=size, **settings)
        except ValueError as error:
            # For example, the model does not know the language, or has fewer positions than max_new_tokens.
            given = self._given_options()
            advice = f"; check {' and '.join(given)}" if given else ""
            raise UserError(f"{self.label}: transformers cannot transcribe: {first_line(error)}{advice}") from error
        return [result["text"].strip() for result in results]

    def _given_options(self) -> list[str]:
        """Return the names of the options for decoding that differ from their defaults."""
        return list(self._options.model_dump(exclude={"revision"}, exclude_defaults=True))

    def _takes_batches(self) -> bool:
        """Whether clips can be padded and batched.

        A CTC model needs an attention mask for this. The base models of wav2vec 2.0 use no mask, so they would treat
        padding as silence in the recording.
        """
        masks = self._pipeline.feature_extractor.return_attention_mask or not self._pipeline.type.startswith("ctc")
        return masks and self._pipeline.tokenizer.pad_token_id is not None
