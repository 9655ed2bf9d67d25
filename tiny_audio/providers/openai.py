"""Provider ``openai``: OpenAI's transcription API."""

from __future__ import annotations

from typing import Literal, Self

from tiny_audio.providers import PROVIDERS, Price, Provider
from tiny_audio.providers._http import read_key
from tiny_audio.providers._openai import Transcriptions, TranscriptionsConfig

_USD_PER_MINUTE = {
    "gpt-transcribe": 0.0045,
    "gpt-4o-transcribe": 0.006,
    "gpt-4o-mini-transcribe": 0.003,
    "whisper-1": 0.006,
}


class OpenAIConfig(TranscriptionsConfig):
    """OpenAI's transcription API. The key is read from `OPENAI_API_KEY`.

    Documented at developers.openai.com/api/docs/guides/speech-to-text. Files may have 25 MB: some 20 minutes.
    """

    name: Literal["openai"] = "openai"
    base_url: str = "https://api.openai.com/v1"
    """Where the API is."""
    model: str = "gpt-transcribe"
    """`gpt-transcribe`, `gpt-4o-transcribe`, `gpt-4o-mini-transcribe`, `whisper-1`, or what comes after them."""

    def list_price(self) -> Price | None:
        """See :meth:`ProviderConfig.list_price`."""
        per_minute = _USD_PER_MINUTE.get(self.model)
        source = "developers.openai.com/api/docs/models, 2026-10"
        return None if per_minute is None else Price(60 * per_minute, source)

    @classmethod
    def tiny(cls) -> Self:
        """For tests."""
        return cls()


@PROVIDERS.register
def build_openai(config: OpenAIConfig) -> Provider:
    """The API, with the key of the environment."""
    return Transcriptions(config, read_key("OPENAI_API_KEY", config.name))
