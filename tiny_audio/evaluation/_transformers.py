"""Any speech recognizer that transformers has a class for, through its own pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import PositiveInt
from torch import Tensor

from tiny_audio.config import Config, UserError
from tiny_audio.evaluation.targets import ModelTarget
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.model.decoding import Transcript
from tiny_audio.runtime.device import device_of, in_parts_that_fit
from tiny_audio.runtime.quiet import quiet_transformers

_BATCH = 16
_WINDOW_S = 30.0
"""Whisper takes so much at once, and needs its own timestamps to go on from there."""


class TransformersOptions(Config):
    """What can be said behind a model's name, as in ``openai/whisper-small:language=en``."""

    revision: str | None = None
    """A branch, a tag or a commit on the hub."""
    language: str | None = None
    """For models of several languages, such as Whisper; None lets them find out."""
    num_beams: PositiveInt = 1
    """Of models with a decoder; 1 is greedy."""
    max_new_tokens: PositiveInt | None = None
    """Of models with a decoder; None takes the model's own limit."""


class TransformersTarget(ModelTarget):
    """A model of CTC or of encoder and decoder, with its own processor; no code of its repository is run."""

    def __init__(
        self, label: str, place: str | Path, kind: str, options: TransformersOptions, identity: dict[str, Any]
    ) -> None:
        self.label, self._place, self._kind, self._options = label, str(place), kind, options
        self.identity = {"kind": "transformers", "model_type": kind, **options.model_dump(), **identity}

    def check(self) -> None:
        """See :meth:`Target.check`."""
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_CTC_MAPPING_NAMES,
            MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
        )

        # The pipeline takes what it does not know for CTC, and then hears nothing without a word about it.
        if self._kind not in MODEL_FOR_CTC_MAPPING_NAMES | MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES:
            raise UserError(
                f"{self._place}: a model of another kind: model_type is {self._kind!r} in its config.json, which is no "
                "speech recognizer that transformers has a class for; give one such as openai/whisper-small or "
                "facebook/wav2vec2-base-960h, or a model that tiny-audio exported"
            )

    def load(self) -> None:
        """See :meth:`Target.load`."""
        from transformers import pipeline

        try:
            with quiet_transformers():
                self._pipeline: Any = pipeline(
                    "automatic-speech-recognition",
                    model=self._place,
                    revision=self._options.revision,
                    device=device_of("auto"),
                    trust_remote_code=False,
                )
        except (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError) as error:
            # A folder lacks a file, holds another model's weights, or needs a package: each has its own type there.
            words = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"{self._place}: transformers cannot load it: {words[0]}") from error

    def transcribe(self, waveforms: list[Tensor]) -> list[Transcript]:
        """See :meth:`ModelTarget.transcribe`."""
        is_whisper = self._pipeline.type == "seq2seq_whisper"
        long = [is_whisper and len(waveform) > _WINDOW_S * SAMPLE_RATE for waveform in waveforms]
        texts: dict[int, str] = {}
        for is_long in set(long):  # which do not fit into one batch
            numbers = [number for number, one in enumerate(long) if one is is_long]
            heard = in_parts_that_fit(partial(self._texts, is_long=is_long), [waveforms[number] for number in numbers])
            texts |= zip(numbers, heard, strict=True)
        return [Transcript(texts[number], None, truncated=False) for number in range(len(waveforms))]

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
        with quiet_transformers():
            heard = self._pipeline(clips, batch_size=size, **settings)
        return [one["text"].strip() for one in heard]

    def _takes_batches(self) -> bool:
        """Not without a token to pad texts with, which the pipeline asks for; and not where the model knows no mask, as
        wav2vec 2.0's base models do not, and would take the padding for silence that was recorded."""
        masks = self._pipeline.feature_extractor.return_attention_mask or not self._pipeline.type.startswith("ctc")
        return masks and self._pipeline.tokenizer.pad_token_id is not None
