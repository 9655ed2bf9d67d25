"""The transcriptions endpoint of OpenAI's API, for OpenAI itself and for compatible servers."""

from __future__ import annotations

from pydantic import BaseModel

from tiny_audio.providers import ProviderTranscript, ProviderWord
from tiny_audio.providers._http import AUDIO_TYPE, HttpConfig, HttpProvider


class TranscriptionsConfig(HttpConfig):
    """Base of the configs of providers with OpenAI's transcriptions endpoint."""

    prompt: str | None = None
    """Text that is sent to the model: an example of the transcript's style, or a list of names that may occur in the
    clips."""
    temperature: float | None = None
    """Sampling temperature. If None, the server's default is used."""
    word_timestamps: bool = False
    """Request the start and end of each word, with the response format `verbose_json`. Of OpenAI's own models, only
    `whisper-1` returns word times."""


class _Word(BaseModel):
    word: str
    start: float
    end: float


class _Answer(BaseModel):
    text: str


class _VerboseAnswer(_Answer):
    words: list[_Word]


class Transcriptions(HttpProvider):
    """Sends each clip in a form to ``POST /audio/transcriptions``."""

    def __init__(self, config: TranscriptionsConfig, key: str | None) -> None:
        self._config = config
        super().__init__(config, {} if key is None else {"Authorization": f"Bearer {key}"}, key)

    def transcribe(self, audio: bytes) -> ProviderTranscript:
        """See :meth:`Provider.transcribe`."""
        config = self._config
        form: dict[str, str | list[str]] = {"model": config.model, "response_format": "json"}
        if config.word_timestamps:
            form |= {"response_format": "verbose_json", "timestamp_granularities[]": ["word"]}
        if config.language is not None:
            form["language"] = config.language
        if config.prompt is not None:
            form["prompt"] = config.prompt
        if config.temperature is not None:
            form["temperature"] = f"{config.temperature:g}"
        files = {"file": ("clip.flac", audio, AUDIO_TYPE)}
        expected: type[_Answer] = _VerboseAnswer if config.word_timestamps else _Answer
        answer = self._api.ask(expected, "POST", "/audio/transcriptions", data=form, files=files)
        words = None
        if isinstance(answer, _VerboseAnswer):
            words = tuple(ProviderWord(word.word, word.start, word.end) for word in answer.words)
        return ProviderTranscript(answer.text.strip(), words)
