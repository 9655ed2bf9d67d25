"""Provider ``assemblyai``: AssemblyAI's API for recorded audio."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self
from urllib.parse import quote

from pydantic import BaseModel, Field, PositiveFloat

from tiny_audio.config import NO_IDENTITY
from tiny_audio.providers import PROVIDERS, Provider, ProviderTranscript, ProviderWord
from tiny_audio.providers._http import HttpConfig, HttpProvider, read_key

_UNDER_WAY = ("queued", "processing")


class AssemblyAIConfig(HttpConfig):
    """AssemblyAI's API for recorded audio. The key is read from `ASSEMBLYAI_API_KEY`.

    Documented at assemblyai.com/docs/pre-recorded-audio. AssemblyAI transcribes in the background, so this provider
    requests the transcript again and again until it is ready.
    """

    usd_per_hour_of: ClassVar[Mapping[str, float]] = {"universal-2": 0.15, "universal-3-5-pro": 0.21}
    price_source: ClassVar[str] = "assemblyai.com/pricing, 2026-10"

    name: Literal["assemblyai"] = "assemblyai"
    base_url: str = "https://api.assemblyai.com"
    """Address of the API. The address in the EU is https://api.eu.assemblyai.com."""
    model: str = "universal-2"
    """Name of the model, such as `universal-2` or `universal-3-5-pro`. It is sent as the API's `speech_models`."""
    poll_every_s: PositiveFloat = Field(default=1.0, json_schema_extra=NO_IDENTITY)
    """Seconds between two requests for a transcript that is not ready yet."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a config for tests."""
        return cls(poll_every_s=0.01)


class _Uploaded(BaseModel):
    upload_url: str


class _Word(BaseModel):
    text: str
    start: int
    """In milliseconds, like ``end``."""
    end: int
    confidence: float


class _Transcript(BaseModel):
    id: str
    status: str
    text: str | None = None
    words: list[_Word] | None = None
    error: str | None = None


class AssemblyAI(HttpProvider):
    """Uploads each clip and polls until the transcript is ready."""

    def __init__(self, config: AssemblyAIConfig, key: str) -> None:
        self._config = config
        super().__init__(config, {"Authorization": key}, key)

    def transcribe(self, audio: bytes) -> ProviderTranscript:
        """See :meth:`Provider.transcribe`."""
        headers = {"Content-Type": "application/octet-stream"}
        uploaded = self._api.ask(_Uploaded, "POST", "/v2/upload", content=audio, headers=headers)
        wanted: dict[str, Any] = {"audio_url": uploaded.upload_url, "speech_models": [self._config.model]}
        language = self._config.language
        wanted |= {"language_detection": True} if language is None else {"language_code": language}
        transcript = self._api.ask(_Transcript, "POST", "/v2/transcript", json=wanted)
        place = f"/v2/transcript/{quote(transcript.id, safe='')}"
        deadline = time.monotonic() + self._config.timeout_s
        while transcript.status in _UNDER_WAY:
            if time.monotonic() > deadline:
                raise self._api.problem(
                    f"transcript {transcript.id} is {transcript.status} after {self._config.timeout_s:g} s (timeout_s)"
                )
            time.sleep(self._config.poll_every_s)
            transcript = self._api.ask(_Transcript, "GET", place)
        if transcript.status == "error":
            raise self._api.problem(f"transcript {transcript.id} failed: {transcript.error}")
        if transcript.status != "completed":
            raise self._api.problem(
                f"transcript {transcript.id} has the status {transcript.status!r}, which is unknown"
            )
        if transcript.text is None:
            raise self._api.problem(f"transcript {transcript.id} is completed but has no text")
        if transcript.words is None:
            return ProviderTranscript(transcript.text.strip())
        words = (ProviderWord(one.text, one.start / 1000, one.end / 1000, one.confidence) for one in transcript.words)
        return ProviderTranscript(transcript.text.strip(), tuple(words))


@PROVIDERS.register
def build_assemblyai(config: AssemblyAIConfig) -> Provider:
    """Build the provider with the key from the environment."""
    return AssemblyAI(config, read_key("ASSEMBLYAI_API_KEY", config.name))
