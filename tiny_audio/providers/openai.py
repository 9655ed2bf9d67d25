"""Provider ``openai``: OpenAI's transcription API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from tiny_audio.providers import PROVIDERS, Provider
from tiny_audio.providers._http import read_key
from tiny_audio.providers._openai import Transcriptions, TranscriptionsConfig


class OpenAIConfig(TranscriptionsConfig):
    """OpenAI's transcription API. The key is read from `OPENAI_API_KEY`.

    Documented at developers.openai.com/api/docs/guides/speech-to-text. A request may have up to 25 MB, about 20 minutes
    of FLAC at 16 kHz.
    """

    usd_per_hour_of: ClassVar[Mapping[str, float]] = {
        "gpt-transcribe": 60 * 0.0045,
        "gpt-4o-transcribe": 60 * 0.006,
        "gpt-4o-mini-transcribe": 60 * 0.003,
        "whisper-1": 60 * 0.006,
    }
    price_source: ClassVar[str] = "developers.openai.com/api/docs/models, 2026-10"

    name: Literal["openai"] = "openai"
    base_url: str = "https://api.openai.com/v1"
    """Address of the API."""
    model: str = "gpt-transcribe"
    """`gpt-transcribe`, `gpt-4o-transcribe`, `gpt-4o-mini-transcribe`, `whisper-1` or a later model."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a config for tests."""
        return cls()


@PROVIDERS.register
def build_openai(config: OpenAIConfig) -> Provider:
    """Build the provider with the key from the environment."""
    return Transcriptions(config, read_key("OPENAI_API_KEY", config.name))
