"""Provider ``elevenlabs``: ElevenLabs' speech-to-text API (Scribe)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, Field, PositiveInt

from tiny_audio.config import NO_IDENTITY
from tiny_audio.providers import PROVIDERS, Provider, ProviderTranscript, ProviderWord
from tiny_audio.providers._http import AUDIO_TYPE, HttpConfig, HttpProvider, read_key


class ElevenLabsConfig(HttpConfig):
    """ElevenLabs' speech-to-text API. The key is read from `ELEVENLABS_API_KEY`.

    Documented at elevenlabs.io/docs/api-reference/speech-to-text/convert. Sounds, such as laughter, get no tag in the
    transcript.
    """

    usd_per_hour_of: ClassVar[Mapping[str, float]] = {"scribe_v1": 0.22, "scribe_v2": 0.22}
    price_source: ClassVar[str] = "elevenlabs.io/pricing/api, 2026-06"

    name: Literal["elevenlabs"] = "elevenlabs"
    base_url: str = "https://api.elevenlabs.io"
    """Address of the API."""
    concurrency: PositiveInt = Field(default=3, json_schema_extra=NO_IDENTITY)
    """Number of requests at a time. The smaller plans allow 2 to 5."""
    model: str = "scribe_v2"
    """Name of the model, such as `scribe_v2` or `scribe_v1`."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a config for tests."""
        return cls()


class _Word(BaseModel):
    text: str
    start: float | None = None
    end: float | None = None
    type: str


class _Answer(BaseModel):
    text: str
    words: list[_Word]


class ElevenLabs(HttpProvider):
    """Sends each clip in a form to ``POST /v1/speech-to-text``."""

    def __init__(self, config: ElevenLabsConfig, key: str) -> None:
        super().__init__(config, {"xi-api-key": key}, key)
        self._form = {"model_id": config.model, "tag_audio_events": "false", "timestamps_granularity": "word"}
        if config.language is not None:
            self._form["language_code"] = config.language

    def transcribe(self, audio: bytes) -> ProviderTranscript:
        """See :meth:`Provider.transcribe`."""
        files = {"file": ("clip.flac", audio, AUDIO_TYPE)}
        answer = self._api.ask(_Answer, "POST", "/v1/speech-to-text", data=self._form, files=files)
        words = [
            ProviderWord(word.text, word.start, word.end)
            for word in answer.words
            if word.type == "word" and word.start is not None and word.end is not None
        ]
        return ProviderTranscript(answer.text.strip(), tuple(words))


@PROVIDERS.register
def build_elevenlabs(config: ElevenLabsConfig) -> Provider:
    """Build the provider with the key from the environment."""
    return ElevenLabs(config, read_key("ELEVENLABS_API_KEY", config.name))
