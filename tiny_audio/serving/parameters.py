"""Read the form fields of a transcription request. docs/serving.md describes them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from starlette.datastructures import FormData, UploadFile

from tiny_audio.serving.errors import ApiError

ResponseFormat = Literal["json", "text", "srt", "verbose_json", "vtt"]
Granularity = Literal["word", "segment"]

ALIASES = (
    *("whisper-1", "gpt-transcribe", "gpt-4o-transcribe", "gpt-4o-mini-transcribe"),
    "gpt-4o-mini-transcribe-2025-12-15",
)
"""Names of OpenAI's models, which also select the served model. Many clients cannot send any other name."""
_REPEATED = (
    "timestamp_granularities",
    "include",
    "keywords",
    "languages",
    "known_speaker_names",
    "known_speaker_references",
)
_SINGLE = ("file", "model", "language", "prompt", "response_format", "temperature", "stream", "chunking_strategy")
_UNSUPPORTED = {
    "known_speaker_names": "this server does not tell speakers apart",
    "known_speaker_references": "this server does not tell speakers apart",
    "languages": "this server does not detect languages; send `language` if the language is known",
}
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")
_TRUE, _FALSE = ("true", "1"), ("false", "0")


@dataclass(frozen=True)
class Parameters:
    """The parameters of a request."""

    file: UploadFile
    response_format: ResponseFormat = "json"
    language: str | None = None
    prompt: str | None = None
    """Hotwords, or the text before the recording. See :func:`tiny_audio.serving.contexts.context_of`."""
    keywords: tuple[str, ...] = ()
    """Words that the recording may contain."""
    granularities: frozenset[Granularity] = frozenset()
    stream: bool = False

    @property
    def words(self) -> bool:
        """Whether the response contains the times of words."""
        return "word" in self.granularities


def parse_parameters(form: FormData, model_name: str) -> Parameters:
    """Read the fields of a form.

    Raises:
        ApiError: a field is unknown, missing, repeated or not supported, or has a wrong value.
    """
    fields = _collected(form)
    file = fields.pop("file", [None])[0]
    if not isinstance(file, UploadFile):
        raise ApiError(400, "the form has no file; send the audio as the part `file`, with a file name", param="file")
    texts = {name: [_text(name, value) for value in values] for name, values in fields.items()}
    check_model(_single(texts, "model") or model_name, model_name)
    for name, why in _UNSUPPORTED.items():
        if name in texts:
            raise _rejected(name, why)
    if texts.get("include"):
        raise _rejected("include", "this server does not return log probabilities")
    strategy = _single(texts, "chunking_strategy")
    if strategy not in (None, "auto"):
        raise _rejected("chunking_strategy", "this server cuts long recordings by itself; send `auto`, or leave it out")
    _check_temperature(_single(texts, "temperature"))
    response_format = _one_of("response_format", _single(texts, "response_format") or "json", get_args(ResponseFormat))
    found = Parameters(
        file=file,
        response_format=cast(ResponseFormat, response_format),
        language=language_of(_single(texts, "language")),
        prompt=_single(texts, "prompt"),
        keywords=tuple(texts.get("keywords", ())),
        granularities=_granularities(texts, response_format),
        stream=_flag("stream", _single(texts, "stream") or "false"),
    )
    if found.stream and found.response_format not in ("json", "text"):
        raise ApiError(
            400,
            f"stream is true and response_format is {response_format}; only json and text can be streamed",
            param="stream",
        )
    return found


def language_of(value: str | None) -> str | None:
    """Check the parameter ``language``.

    Raises:
        ApiError: it does not have the form of a language code.
    """
    if value is not None and not _LANGUAGE.fullmatch(value):
        raise ApiError(400, f"language is {value!r}; send a code of ISO 639 such as en", param="language")
    return value


def check_model(given: str, model_name: str) -> None:
    """Check the name of a model.

    Raises:
        ApiError: the name is neither the served model's name nor one of :data:`ALIASES`.
    """
    if given != model_name and given not in ALIASES:
        message = f"the model {given!r} does not exist; this server has {model_name!r}"
        raise ApiError(404, message, param="model", code="model_not_found")


def _collected(form: FormData) -> dict[str, list[str | UploadFile]]:
    """Return a mapping from the name of each field to its values. Names lose the ``[]`` at their end."""
    fields: dict[str, list[str | UploadFile]] = {}
    for key, value in form.multi_items():
        name = key.removesuffix("[]")
        if key.startswith("chunking_strategy["):
            raise _rejected("chunking_strategy", "the settings of voice activity detection are fixed; send `auto`")
        if name not in (_REPEATED if key.endswith("[]") else (*_SINGLE, *_REPEATED)):
            known = ", ".join(sorted((*_SINGLE, *(f"{one}[]" for one in _REPEATED if one not in _UNSUPPORTED))))
            raise ApiError(
                400, f"{key!r} is not a parameter; the parameters are {known}", param=key, code="unknown_parameter"
            )
        fields.setdefault(name, []).append(value)
        if len(fields[name]) > 1 and name in _SINGLE:
            raise ApiError(400, f"{name} is given twice; send it once", param=name)
    return fields


def _text(name: str, value: str | UploadFile) -> str:
    if isinstance(value, UploadFile):
        raise ApiError(400, f"{name} was sent as a file; send it as text; only `file` may be a file", param=name)
    return value


def _single(texts: Mapping[str, Sequence[str]], name: str) -> str | None:
    """Return a field. None if it is missing or empty."""
    return next(iter(texts.get(name, ())), None) or None


def _rejected(name: str, why: str) -> ApiError:
    return ApiError(400, f"{name} is not supported: {why}", param=name, code="unsupported_parameter")


def _one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ApiError(400, f"{name} is {value!r}; choose one of {', '.join(allowed)}", param=name)
    return value


def _flag(name: str, value: str) -> bool:
    return _one_of(name, value.lower(), (*_TRUE, *_FALSE)) in _TRUE


def _check_temperature(value: str | None) -> None:
    try:
        temperature = float(value or 0)
    except ValueError:
        raise ApiError(400, f"temperature is {value!r}; send 0, or leave it out", param="temperature") from None
    if temperature != 0:
        raise _rejected("temperature", f"it is {value}, but decoding is never random; send 0, or leave it out")


def _granularities(texts: Mapping[str, Sequence[str]], response_format: str) -> frozenset[Granularity]:
    name = "timestamp_granularities"
    given = texts.get(name)
    if given is None:
        return frozenset({"segment"})
    if response_format != "verbose_json":
        raise ApiError(
            400,
            f"{name}[] needs response_format verbose_json, but response_format is {response_format}",
            param=f"{name}[]",
        )
    return frozenset(cast(Granularity, _one_of(f"{name}[]", value, get_args(Granularity))) for value in given)
