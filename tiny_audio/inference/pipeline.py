"""The speech recognition pipeline of an exported model.

``pipeline("automatic-speech-recognition", model=…, trust_remote_code=True)`` returns this pipeline. transformers' own
pipeline would treat an unknown model class as a CTC model, and would read files with the FFmpeg program. This pipeline
transcribes audio like ``tiny-audio transcribe``, but reads only files that libsndfile can decode.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from transformers import Pipeline
from transformers.utils import logging

from tiny_audio.audio.load import load_audio, waveform_of
from tiny_audio.config import UserError, first_line, problems
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.model.decoding import GenerationConfig
from tiny_audio.model.prompt import Context

MAX_DURATION_S = 24 * 3600.0
"""Maximum duration of a recording. A longer recording might not fit into memory."""
_FETCH_TIMEOUT_S = 30.0

_RECORDINGS = (str, bytes, bytearray, io.IOBase, Mapping, np.ndarray, torch.Tensor)
"""Types of a single recording. Other iterables contain several recordings."""

_CONTEXT = ("hotwords", "previous_text", "language")
"""The fields of a :class:`Context`."""

logger = logging.get_logger(__name__)


class TinyAudioPipeline(Pipeline):  # type: ignore[misc]  # transformers is untyped here
    """Transcribes recordings.

    A recording can be:

    - a path, a URL, or the bytes of a file
    - an array of samples at 16 kHz
    - a torchcodec decoder, as in rows of ``datasets`` 4 and later
    - a mapping with ``raw`` or ``array``, and ``sampling_rate``
    - a mapping with ``bytes`` or ``path``, as in data sets with ``Audio(decode=False)``
    - a mapping whose ``audio`` is one of the above, as in rows of data sets

    Lists, columns and data sets of recordings are also accepted.
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def __init__(self, model: Any, tokenizer: Any = None, **kwargs: Any) -> None:
        if tokenizer is not None and tokenizer.pad_token_id is None:
            # transformers requires a padding token for batches, although this model never uses one.
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.config.end_token_id)
        self._forward_params: dict[str, Any] = {}  # read by _sanitize_parameters, which super().__init__ calls
        super().__init__(model, tokenizer=tokenizer, **kwargs)

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Transcribe one recording or many.

        Args:
            inputs: a recording, or a list, data set or generator of recordings. For data sets and generators, the
                result is an iterator.
            kwargs: ``batch_size`` is the number of recordings that are transcribed together, 1 by default.
                ``return_timestamps`` is ``"word"``, which needs a CTC head, or True for the times of chunks.
                ``hotwords`` (a list, or a text with commas), ``previous_text`` and ``language`` are the context of the
                recordings. ``filter_hallucinations=False`` turns the hallucination filters off. ``search_cuts=False``
                turns the search for better cuts off. ``max_new_tokens``, ``num_beams``, ``ctc_weight``, ``ctc_search``
                and ``draft`` override the model's own settings, and may also be given in ``generate_kwargs``.
                ``chunk_length_s`` and ``stride_length_s`` are accepted but ignored, because long recordings are split
                at pauses.

        Returns:
            ``{"text": …}``. With timestamps, also ``"chunks": [{"text": …, "timestamp": (start_s, end_s)}, …]``.

        Raises:
            UserError: a recording cannot be used, or an argument is unknown or not supported.
        """
        if isinstance(inputs, Sequence) and not isinstance(inputs, str | bytes | bytearray):
            # transformers reads the first item of a list, so it would fail on an empty list.
            return super().__call__(list(inputs), **kwargs) if len(inputs) else []
        if isinstance(inputs, Iterable) and not isinstance(inputs, _RECORDINGS):
            return super().__call__((recording for recording in inputs), **kwargs)
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(
        self,
        return_timestamps: str | bool | None = None,
        chunk_length_s: float | None = None,
        stride_length_s: Any = None,
        filter_hallucinations: bool | None = None,
        search_cuts: bool | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        forward: dict[str, Any] = {}
        postprocess: dict[str, Any] = {}
        if return_timestamps is not None:
            if return_timestamps not in (True, False, "word"):
                raise UserError(f"return_timestamps={return_timestamps!r}: choose 'word', True (chunks), or False")
            if return_timestamps == "word" and self.model.ctc_head is None:
                raise UserError(
                    "return_timestamps='word' needs a CTC head, and this model has none; choose True for the times of "
                    "chunks"
                )
            forward["word_timestamps"] = return_timestamps == "word"
            postprocess["return_timestamps"] = return_timestamps
        for name, value in {"filter_hallucinations": filter_hallucinations, "search_cuts": search_cuts}.items():
            if value is not None:
                if not isinstance(value, bool):
                    raise UserError(f"{name}={value!r}: choose True or False")
                forward[name] = value
        settings |= generate_kwargs or {}
        given = {name: value for name in _CONTEXT if (value := settings.pop(name, None)) is not None}
        if given:
            forward["context"] = self._context(given)
        unknown = sorted(settings.keys() - GenerationConfig.model_fields.keys())
        if unknown:
            raise UserError(
                f"{', '.join(unknown)}: unknown argument; this pipeline accepts batch_size, return_timestamps, "
                f"filter_hallucinations, search_cuts, chunk_length_s, {', '.join(_CONTEXT)} and "
                f"{', '.join(GenerationConfig.model_fields)}"
            )
        if settings:
            forward["settings"] = self._generation(settings)
        return {}, forward, postprocess

    def _context(self, given: dict[str, Any]) -> Context | None:
        """Return the pipeline's own context, with the fields in ``given`` replaced."""
        own = self._forward_params.get("context") or Context()
        return Context.of(**({name: getattr(own, name) for name in _CONTEXT} | given))

    def _generation(self, settings: dict[str, Any]) -> GenerationConfig:
        """Return the pipeline's settings (by default, the model's) with the values in ``settings`` replaced."""
        own: GenerationConfig = self._forward_params.get("settings") or self.model.generation
        try:
            return GenerationConfig(**(own.model_dump(mode="json") | settings))
        except ValidationError as error:
            raise UserError(f"generation settings: {problems(error)}") from error

    def preprocess(self, recording: Any) -> dict[str, Any]:
        """Decode, down-mix and resample a recording to ``waveform [S]`` at 16 kHz.

        The waveform is a NumPy array, because transformers would pad tensors in a batch and drop their lengths.
        """
        return {"waveform": _waveform(recording).numpy()}

    def _forward(
        self,
        inputs: dict[str, Any],
        word_timestamps: bool = False,
        settings: GenerationConfig | None = None,
        filter_hallucinations: bool = True,
        search_cuts: bool = True,
        context: Context | None = None,
    ) -> dict[str, Any]:
        given = inputs["waveform"]
        waveforms = [torch.from_numpy(waveform) for waveform in (given if isinstance(given, list) else [given])]
        transcriber = Transcriber(
            self.model,
            self.tokenizer,
            generation=settings,
            filter_hallucinations=filter_hallucinations,
            search_cuts=search_cuts,
        )
        for warning in transcriber.encode_context(context).warnings:
            logger.warning_once(warning)  # only once, because this method is called for each batch
        transcriptions = transcriber.transcribe(waveforms, word_timestamps=word_timestamps, contexts=context)
        return {"transcription": transcriptions if isinstance(given, list) else transcriptions[0]}

    def postprocess(self, outputs: dict[str, Any], return_timestamps: str | bool = False) -> dict[str, Any]:
        """Return the text and the requested timestamps."""
        transcription = outputs["transcription"]
        if transcription.truncated:
            logger.warning("a transcript was truncated at max_new_tokens; raise max_new_tokens if words are missing")
        if transcription.warning is not None:
            logger.warning(transcription.warning)
        if transcription.why_empty is not None:
            logger.warning("a transcript is empty: %s", transcription.why_empty)
        if transcription.suppressed is not None:
            logger.warning("parts of a transcript have no text: %s", transcription.suppressed)
        result: dict[str, Any] = {"text": transcription.text}
        if return_timestamps:
            spoken = [segment for segment in transcription.segments if segment.text]
            timed = [word for segment in spoken for word in segment.words] if return_timestamps == "word" else spoken
            result["chunks"] = [{"text": one.text, "timestamp": (one.start_s, one.end_s)} for one in timed]
        return result


def _waveform(recording: Any) -> torch.Tensor:
    """Read any form of a recording as a waveform ``[S]``.

    Raises:
        UserError: the recording cannot be used.
    """
    if isinstance(recording, Mapping):
        if recording.get("audio") is not None:
            return _waveform(recording["audio"])
        samples = next((recording[key] for key in ("raw", "array") if recording.get(key) is not None), None)
        if samples is not None:
            rate = recording.get("sampling_rate")
            if isinstance(rate, bool) or not isinstance(rate, Integral):
                raise UserError(f"sampling_rate is {rate!r}; give the rate of the samples, a whole number of Hz")
            return _from_samples(samples, int(rate))
        recording = next((recording[key] for key in ("bytes", "path") if recording.get(key) is not None), recording)
    if isinstance(recording, bytes | bytearray):
        return load_audio(bytes(recording), max_duration_s=MAX_DURATION_S, keep_damaged=True)
    if isinstance(recording, str) and recording.startswith(("http://", "https://")):
        return load_audio(_fetched(recording), max_duration_s=MAX_DURATION_S, name=recording, keep_damaged=True)
    if isinstance(recording, str | Path):
        return load_audio(Path(recording), max_duration_s=MAX_DURATION_S, keep_damaged=True)
    if isinstance(recording, np.ndarray | torch.Tensor):
        return _from_samples(recording, SAMPLE_RATE)
    # torchcodec is not a dependency, so its decoder is recognized by a method instead of its class.
    if callable(decode := getattr(recording, "get_all_samples", None)):
        decoded = decode()
        return _from_samples(decoded.data, int(decoded.sample_rate))
    raise UserError(
        f"a recording cannot be a {type(recording).__name__}; give a path, a URL, the bytes of a file, an "
        "array of samples at 16,000 Hz, a torchcodec decoder, or a mapping with 'raw' or 'array' and 'sampling_rate', "
        "with 'bytes' or 'path', or with one of these in 'audio'"
    )


def _from_samples(samples: Any, rate: int) -> torch.Tensor:
    if not isinstance(samples, torch.Tensor):
        try:
            array = np.asarray(samples)
            # PyTorch needs a writable array with native byte order and without negative strides.
            kind = np.float32 if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
            samples = torch.from_numpy(np.require(array, kind, ["C", "W"]))
        except (TypeError, ValueError) as error:
            raise UserError(
                "the samples are not an array of numbers; give floating-point samples between -1 and 1, as [samples] "
                "or [channels, samples]"
            ) from error
    return waveform_of(samples, rate, max_duration_s=MAX_DURATION_S, name="samples")


def _fetched(url: str) -> bytes:
    from huggingface_hub.utils import httpx

    try:
        answer = httpx.get(url, follow_redirects=True, timeout=_FETCH_TIMEOUT_S).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(f"{url}: cannot be fetched: {first_line(error)}") from error
    return bytes(answer.content)
