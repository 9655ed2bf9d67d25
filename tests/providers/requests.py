"""The clip that is sent to providers, the environment variables of their keys, and the names of those that use HTTP."""

from __future__ import annotations

from pathlib import Path

import torch

from tiny_audio.providers import (
    PROVIDERS,
    encode,
)
from tiny_audio.providers._http import HttpConfig

AUDIO = encode(0.1 * torch.sin(torch.arange(16_000) / 20))
VARIABLES = {
    "assemblyai": "ASSEMBLYAI_API_KEY",
    "deepgram": "DEEPGRAM_API_KEY",
    "elevenlabs": "ELEVENLABS_API_KEY",
    "openai": "OPENAI_API_KEY",
}
OVER_HTTP = [entry.name for entry in PROVIDERS.entries() if issubclass(entry.config, HttpConfig)]
SPEECH = Path(__file__).parents[3] / "shared" / "speech" / "librispeech-sample"
