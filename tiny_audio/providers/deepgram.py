"""Provider ``deepgram``: Deepgram's API for recorded audio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, Field

from tiny_audio.providers import PROVIDERS, Provider, ProviderTranscript, ProviderWord
from tiny_audio.providers._http import AUDIO_TYPE, HttpConfig, HttpProvider, read_key


class DeepgramConfig(HttpConfig):
    """Deepgram's API for recorded audio. The key is read from `DEEPGRAM_API_KEY`.

    Documented at developers.deepgram.com/reference/speech-to-text/listen-pre-recorded.
    """

    usd_per_hour_of: ClassVar[Mapping[str, float]] = {"nova-3": 60 * 0.0043, "nova-2": 60 * 0.0043}
    price_source: ClassVar[str] = "deepgram.com/pricing, 2026-05"

    name: Literal["deepgram"] = "deepgram"
    base_url: str = "https://api.deepgram.com"
    """Address of the API."""
    model: str = "nova-3"
    """Name of the model, such as `nova-3` or `nova-2`."""
    smart_format: bool = True
    """Add punctuation, and write numbers, dates and amounts with digits."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a config for tests."""
        return cls()


class _Word(BaseModel):
    word: str
    start: float
    end: float
    confidence: float
    punctuated_word: str | None = None


class _Alternative(BaseModel):
    transcript: str
    words: list[_Word] | None = None


class _Channel(BaseModel):
    alternatives: list[_Alternative] = Field(min_length=1)


class _Results(BaseModel):
    channels: list[_Channel] = Field(min_length=1)


class _Answer(BaseModel):
    results: _Results


class Deepgram(HttpProvider):
    """Sends each clip as the body of ``POST /v1/listen``."""

    def __init__(self, config: DeepgramConfig, key: str) -> None:
        super().__init__(config, {"Authorization": f"Token {key}"}, key)
        self._query = {"model": config.model, "smart_format": "true" if config.smart_format else "false"}
        self._query |= {"detect_language": "true"} if config.language is None else {"language": config.language}

    def transcribe(self, audio: bytes) -> ProviderTranscript:
        """See :meth:`Provider.transcribe`."""
        request = {"params": self._query, "content": audio, "headers": {"Content-Type": AUDIO_TYPE}}
        best = self._api.ask(_Answer, "POST", "/v1/listen", **request).results.channels[0].alternatives[0]
        if best.words is None:
            return ProviderTranscript(best.transcript.strip())
        words = (
            ProviderWord(one.punctuated_word or one.word, one.start, one.end, one.confidence) for one in best.words
        )
        return ProviderTranscript(best.transcript.strip(), tuple(words))


@PROVIDERS.register
def build_deepgram(config: DeepgramConfig) -> Provider:
    """Build the provider with the key from the environment."""
    return Deepgram(config, read_key("DEEPGRAM_API_KEY", config.name))
