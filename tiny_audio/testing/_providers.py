"""Checks of the Provider contract."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import torch

from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.providers import PROVIDERS, ProviderConfig, ProviderTranscript, encode
from tiny_audio.testing._checks import expect

DURATION_S = 2.0
"""Duration of the two test clips: silence, and a tone with pauses."""


def check_config(config: ProviderConfig) -> None:
    """Check that the config has a docstring and a valid price, and that saving it as JSON does not change it."""
    expect(bool((type(config).__doc__ or "").strip()), config, "the config has no docstring for the reference page")
    price = config.price()
    usable = price is None or (math.isfinite(price.usd_per_hour) and price.usd_per_hour >= 0 and bool(price.source))
    expect(usable, config, f"the price is {price}; it must have US dollars per hour, and a source")
    expect(PROVIDERS.parse(config.model_dump(mode="json")) == config, config, "saving the config as JSON changes it")


def check_answers(config: ProviderConfig) -> None:
    """Check that silence is accepted, and that words are in order and within the clip.

    If several threads transcribe the same clip at the same time, each must get the same transcript as one thread alone.
    """
    seconds = torch.arange(int(DURATION_S * SAMPLE_RATE)) / SAMPLE_RATE
    tone = 0.3 * torch.sin(2 * torch.pi * 220 * seconds) * (torch.sin(2 * torch.pi * 2 * seconds) > 0)
    silent, sounding = encode(torch.zeros_like(tone)), encode(tone)
    provider = PROVIDERS.build(config)
    try:
        _check_transcript(config, provider.transcribe(silent))
        alone = provider.transcribe(sounding)
        _check_transcript(config, alone)
        with ThreadPoolExecutor(config.concurrency) as pool:
            concurrent = list(pool.map(provider.transcribe, [sounding] * 2 * config.concurrency))
    finally:
        provider.close()
    same = all(one.text == alone.text for one in concurrent)
    expect(same, config, f"from {config.concurrency} threads, the same clip gets a different transcript")


def _check_transcript(config: ProviderConfig, transcript: object) -> None:
    expect(
        isinstance(transcript, ProviderTranscript),
        config,
        f"transcribe returned a {type(transcript).__name__}, not a ProviderTranscript",
    )
    assert isinstance(transcript, ProviderTranscript)
    expect(transcript.text == transcript.text.strip(), config, f"there is whitespace around {transcript.text!r}")
    before = 0.0
    for word in transcript.words or ():
        inside = before <= word.start_s <= word.end_s <= DURATION_S + 0.5
        what = f"the word {word.text!r} from {word.start_s} to {word.end_s} s is outside of the clip or out of order"
        expect(inside, config, what)
        valid = word.confidence is None or 0 <= word.confidence <= 1
        expect(valid, config, f"the word {word.text!r} has the confidence {word.confidence}; it must be from 0 to 1")
        before = word.start_s


CHECKS = (check_config, check_answers)
