"""Provider ``pocketsphinx``: local CMU PocketSphinx, with hidden Markov models and a trigram language model."""

from __future__ import annotations

import re
import threading
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt

from tiny_audio.audio.load import load_audio
from tiny_audio.config import NO_IDENTITY, UserError
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.providers import PROVIDERS, Price, Provider, ProviderConfig, ProviderTranscript, ProviderWord

_VARIANT = re.compile(r"\(\d+\)$")
"""The suffix, such as ``(2)``, that the dictionary adds to a word for its second and later pronunciations."""
_NO_WORD = re.compile(r"<.*>|\[.*\]|\+.*\+")
"""Dictionary entries for silence, breath and noise."""


class PocketSphinxConfig(ProviderConfig):
    """CMU PocketSphinx: an offline and free recognizer without neural networks.

    It uses the US English model of the package `pocketsphinx`, with a dictionary of about 130,000 words. Every clip is
    decoded with a fresh state, so its transcript does not depend on earlier clips.
    """

    name: Literal["pocketsphinx"] = "pocketsphinx"
    concurrency: PositiveInt = Field(default=1, json_schema_extra=NO_IDENTITY)
    """Number of threads, each with its own decoder. Python runs only one thread at a time, so more threads help
    little."""

    def list_price(self) -> Price | None:
        """See :meth:`ProviderConfig.list_price`."""
        return Price(0.0, "runs on this machine")

    @classmethod
    def tiny(cls) -> Self:
        """Return a config for tests."""
        return cls()


class _Decoders(threading.local):
    """Each thread's own decoder."""

    decoder: Any = None


class PocketSphinx(Provider):
    """A PocketSphinx recognizer with one decoder per thread, because a decoder handles one utterance at a time."""

    def __init__(self) -> None:
        self._decoders = _Decoders()
        self._decoder()  # load the model now, so that a failure is reported early

    def transcribe(self, audio: bytes) -> ProviderTranscript:
        """See :meth:`Provider.transcribe`."""
        samples = (load_audio(audio, max_duration_s=float("inf")).clamp(-1, 1) * 32767).short().numpy()
        decoder = self._decoder()
        decoder.reinit_feat()
        decoder.start_utt()
        decoder.process_raw(samples.tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        if found is None:
            return ProviderTranscript("", ())
        rate = decoder.config["frate"]
        words = tuple(
            ProviderWord(
                _VARIANT.sub("", segment.word),
                segment.start_frame / rate,
                (segment.end_frame + 1) / rate,
                min(1.0, segment.prob),
            )
            for segment in decoder.seg()
            if not _NO_WORD.fullmatch(segment.word)
        )
        return ProviderTranscript(found.hypstr.strip(), words)

    def close(self) -> None:
        """See :meth:`Provider.close`."""
        self._decoders = _Decoders()

    def _decoder(self) -> Any:
        if self._decoders.decoder is None:
            from pocketsphinx import Decoder

            self._decoders.decoder = Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")
        return self._decoders.decoder


@PROVIDERS.register
def build_pocketsphinx(config: PocketSphinxConfig) -> Provider:
    """Build the provider with the package's own model."""
    try:
        return PocketSphinx()
    except ImportError:
        raise UserError(
            "provider pocketsphinx needs the package pocketsphinx: pip install 'tiny-audio[pocketsphinx]'"
        ) from None
