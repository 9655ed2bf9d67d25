"""Evaluation targets: an exported model, any speech recognizer of transformers, or a provider."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from tiny_audio.audio.errors import AudioError
from tiny_audio.config import RunFailed, UserError, identity_of
from tiny_audio.data.clips import Clip
from tiny_audio.data.evaluation_clips import UNBOUNDED_DURATION_S
from tiny_audio.evaluation.batches import loaded_batches
from tiny_audio.evaluation.contexts import ClipContexts
from tiny_audio.export.load import check_exported, load_model
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.model.decoding import Transcript
from tiny_audio.model.prompt import Context
from tiny_audio.providers import PROVIDERS, Price, ProviderConfig, ProviderError, ProviderTranscript, encode
from tiny_audio.runtime.device import device_of

_BATCH_PADDED_S = 120.0
_GIVE_UP_AFTER = 20
"""The evaluation of a provider stops after this number of failed clips in a row. Clips whose audio cannot be used do
not count."""


@dataclass(frozen=True)
class Outcome:
    """The result of one clip: a transcript and its processing time, or an error."""

    clip: Clip
    transcript: Transcript | None
    time_s: float | None
    """Processing time in seconds, without loading the audio. The time of a batch is divided equally among its clips.
    For a provider, this is the time from the first request to the text, including retries and waiting times."""
    error: str | None
    is_audio: bool = False
    """True if the clip failed because of its audio, which cannot be loaded or is longer than the target accepts."""

    @classmethod
    def unreadable(cls, clip: Clip, error: AudioError) -> Outcome:
        """Return the outcome of a clip whose audio cannot be loaded or is too long."""
        return cls(clip, None, None, f"{error.reason}: {error}", is_audio=True)


class Target(ABC):
    """A model or provider that transcribes clips."""

    label: str
    """The target's name in tables and the name of its folder."""
    identity: dict[str, Any]
    """All settings that affect the hypotheses, as JSON. An evaluation can continue only if they are unchanged."""
    is_remote: bool = False
    """Whether a provider transcribes the clips. If True, only the main process sends requests."""
    contexts: ClipContexts | None = None
    """Contexts of the clips, such as hotwords. None if the target uses no contexts."""

    warnings: Sequence[str] = ()
    """Messages for the user, which are available after :meth:`load`."""

    @abstractmethod
    def check(self) -> None:
        """Raise an error if it is already clear that :meth:`load` would fail.

        Raises:
            UserError: an API key or a package is missing, or the kind of model is not supported.
        """

    @abstractmethod
    def load(self) -> None:
        """Load weights or open connections. This is called once, and its time is reported separately.

        Raises:
            UserError: the target cannot be loaded.
        """

    @abstractmethod
    def transcribe(self, clips: Sequence[Clip]) -> Iterator[Outcome]:
        """Transcribe clips, in any order.

        Raises:
            RunFailed, UserError: no further clip can be transcribed.
        """

    @abstractmethod
    def price(self) -> Price | None:
        """Return the price of an hour of audio, or None if the price is unknown."""

    @abstractmethod
    def close(self) -> None:
        """Release memory and connections."""


class ModelTarget(Target, ABC):
    """A model on this machine. It receives batches of clips of similar length."""

    max_duration_s: float = UNBOUNDED_DURATION_S
    """Maximum duration of a clip in seconds. The outcome of a longer clip is an error."""

    @abstractmethod
    def transcribe_batch(
        self, waveforms: list[Tensor], contexts: Sequence[Context | None] | None = None
    ) -> list[Transcript]:
        """Transcribe waveforms ``[S]``, which are on the CPU. Split the batch if it does not fit into memory."""

    def transcribe(self, clips: Sequence[Clip]) -> Iterator[Outcome]:
        """See :meth:`Target.transcribe`. The longest clips come first."""
        if self.contexts is not None:
            self.contexts.of_clips(clips)  # reports an error before anything is transcribed
        warm = False
        for batch in loaded_batches(clips, max_duration_s=self.max_duration_s, max_padded_s=_BATCH_PADDED_S):
            for clip, error in batch.unread:
                yield Outcome.unreadable(clip, error)
            if not batch.clips:
                continue
            contexts = None if self.contexts is None else self.contexts.of_clips(batch.clips)
            if not warm:
                # The first call also chooses kernels and allocates memory, so it is not timed.
                self.transcribe_batch(batch.waveforms, contexts)
                warm = True
            began = time.perf_counter()
            transcripts = self.transcribe_batch(batch.waveforms, contexts)
            time_s = (time.perf_counter() - began) / len(batch.clips)
            for clip, transcript in zip(batch.clips, transcripts, strict=True):
                yield Outcome(clip, transcript, time_s, None)

    def price(self) -> Price | None:
        """See :meth:`Target.price`."""
        return None

    def close(self) -> None:
        """See :meth:`Target.close`."""


class OwnTarget(ModelTarget):
    """A model that this package exported. Long clips are split at pauses, and the hallucination filters are off."""

    max_duration_s = float("inf")

    def __init__(
        self, label: str, folder: Path, identity: dict[str, Any], contexts: ClipContexts | None = None
    ) -> None:
        self.label, self._folder, self.contexts = label, folder, contexts
        self.identity = identity if contexts is None else identity | {"context": contexts.identity()}

    def check(self) -> None:
        """See :meth:`Target.check`."""
        check_exported(self._folder)

    def load(self) -> None:
        """See :meth:`Target.load`."""
        model, tokenizer = load_model(self._folder)
        self._transcriber = Transcriber(
            model.to(device_of("auto")), tokenizer, max_padded_s=_BATCH_PADDED_S, filter_hallucinations=False
        )
        if self.contexts is not None:
            self.warnings = self._transcriber.encode_context(self.contexts.shared).warnings
            self.contexts = replace(self.contexts, encode=self._transcriber.encode_context)

    def transcribe_batch(
        self, waveforms: list[Tensor], contexts: Sequence[Context | None] | None = None
    ) -> list[Transcript]:
        """See :meth:`ModelTarget.transcribe_batch`."""
        return self._transcriber.transcripts(waveforms, contexts)


class ProviderTarget(Target):
    """A provider, which receives several requests at a time."""

    is_remote = True

    def __init__(self, label: str, config: ProviderConfig) -> None:
        self.label, self._config = label, config
        self.identity = {"kind": "provider", **identity_of(config)}

    def check(self) -> None:
        """See :meth:`Target.check`."""
        PROVIDERS.build(self._config).close()

    def load(self) -> None:
        """See :meth:`Target.load`."""
        self._provider = PROVIDERS.build(self._config)

    def transcribe(self, clips: Sequence[Clip]) -> Iterator[Outcome]:
        """See :meth:`Target.transcribe`. Outcomes are yielded in the order of the responses.

        After an error or Ctrl-C, no more requests are sent. The responses to running requests are still yielded,
        because the provider may charge for them. After a second Ctrl-C, these responses are discarded, but the requests
        are not interrupted.
        """
        waiting, asked, failures = iter(clips), set[Future[Outcome]](), 0
        end: BaseException | None = None
        pool = ThreadPoolExecutor(self._config.concurrency)
        try:
            while True:
                try:
                    # Submit only as many requests as can run at the same time, so that few are pending after an error.
                    room = 0 if end else self._config.concurrency - len(asked)
                    for clip in islice(waiting, room):
                        asked.add(pool.submit(self._ask, clip))
                    if not asked:
                        break
                    done, asked = wait(asked, return_when=FIRST_COMPLETED)
                except KeyboardInterrupt as interrupt:
                    if end is not None:
                        raise
                    end = interrupt
                    continue
                for future in done:
                    try:
                        outcome = future.result()
                    except UserError as error:
                        end = end or error
                        continue
                    yield outcome
                    if not outcome.is_audio:
                        failures = 0 if outcome.error is None else failures + 1
                    if failures >= _GIVE_UP_AFTER:
                        end = end or RunFailed(
                            f"{self.label}: {failures} clips in a row failed, the last with: {outcome.error}; the "
                            "transcripts so far are kept, and the same command continues from there"
                        )
        finally:
            pool.shutdown(cancel_futures=True)
        if end is not None:
            raise end

    def _ask(self, clip: Clip) -> Outcome:
        try:
            audio = encode(clip.load(float("inf")))
        except AudioError as error:
            return Outcome.unreadable(clip, error)
        began = time.perf_counter()
        try:
            transcript: Any = self._provider.transcribe(audio)
        except ProviderError as error:
            return Outcome(clip, None, None, str(error))
        except UserError:
            raise
        except Exception as error:  # after an error in a third-party provider, only this clip counts as failed
            return Outcome(clip, None, None, f"{self._config.name}: {type(error).__name__}: {error}")
        time_s = time.perf_counter() - began
        if not isinstance(transcript, ProviderTranscript) or not isinstance(transcript.text, str):
            error_ = f"{self._config.name}: returned {transcript!r} instead of a ProviderTranscript with a text"
            return Outcome(clip, None, None, error_)
        return Outcome(clip, Transcript(transcript.text, None, truncated=False), time_s, None)

    def price(self) -> Price | None:
        """See :meth:`Target.price`."""
        return self._config.price()

    def close(self) -> None:
        """See :meth:`Target.close`."""
        self._provider.close()
