"""Provider ``openai_compatible``: any server with OpenAI's transcriptions endpoint, such as vLLM's."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from tiny_audio.providers import PROVIDERS, Provider
from tiny_audio.providers._http import is_private_enough, read_key
from tiny_audio.providers._openai import Transcriptions, TranscriptionsConfig


class OpenAICompatibleConfig(TranscriptionsConfig):
    """Any server with OpenAI's `/audio/transcriptions`, such as vLLM, speaches, LocalAI, a proxy or another vendor."""

    sends_key: ClassVar[bool] = False

    name: Literal["openai_compatible"] = "openai_compatible"
    base_url: str
    """Address of the API with its version, such as `http://localhost:8000/v1`."""
    key_variable: str | None = None
    """The environment variable that contains the server's key. If None, no key is sent."""

    @model_validator(mode="after")
    def _check_key(self) -> Self:
        if self.key_variable is not None and not is_private_enough(self.base_url):
            raise ValueError(
                f"base_url {self.base_url!r} would send the key of key_variable unencrypted; write "
                "base_url as https://host/path, or leave key_variable out"
            )
        return self

    @classmethod
    def tiny(cls) -> Self:
        """Return a config for tests, which start their own server."""
        return cls(base_url="http://localhost:8000/v1", model="tiny")


@PROVIDERS.register
def build_openai_compatible(config: OpenAICompatibleConfig) -> Provider:
    """Build the provider. It sends a key if ``key_variable`` is set."""
    return Transcriptions(config, None if config.key_variable is None else read_key(config.key_variable, config.name))
