"""Whom is listened to: a run, an exported model, any speech transcriber of transformers, or a provider."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from tiny_audio.audio.load import AudioError
from tiny_audio.config import RunFailed, UserError, identity_of
from tiny_audio.data.clips import Clip
from tiny_audio.data.evaluation_clips import UNBOUNDED_DURATION_S
from tiny_audio.evaluation._batches import loaded_batches
from tiny_audio.export import check_exported, load_model
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.model.decoding import Transcript
from tiny_audio.providers import PROVIDERS, Price, ProviderConfig, ProviderError, ProviderTranscript, encode
from tiny_audio.runtime.device import device_of

_BATCH_PADDED_S = 120.0
_GIVE_UP_AFTER = 20
"""Clips in a row for which a provider has no answer; each was asked for several times."""


@dataclass(frozen=True)
class Outcome:
    """What became of one clip: a transcript and the time that it took, or an error."""

    clip: Clip
    transcript: Transcript | None
    time_s: float | None
    """Seconds, without loading the audio; a clip of a batch has its equal share. Of a provider, from the request to
    the text, further tries and pauses included."""
    error: str | None
    is_audio: bool = False
    """The error is one of the clip itself, whoever listens."""


class Target(ABC):
    """Somebody who transcribes clips."""

    label: str
    """Its name in tables, and of its folder."""
    identity: dict[str, Any]
    """What makes its hypotheses what they are, as JSON: results are continued only where it is equal."""

    @abstractmethod
    def check(self) -> None:
        """Refuse early what :meth:`load` would refuse after the targets before it were evaluated.

        Raises:
            UserError: a key or a package is missing, or a model is of a kind that nothing here runs.
        """

    @abstractmethod
    def load(self) -> None:
        """Make ready. Called once; the time is stated apart.

        Raises:
            UserError: it cannot be.
        """

    @abstractmethod
    def hear(self, clips: Sequence[Clip]) -> Iterator[Outcome]:
        """Transcribe clips, in an order of its own.

        Raises:
            RunFailed, UserError: nobody answers any more.
        """

    @abstractmethod
    def price(self) -> Price | None:
        """What an hour of audio costs; None where nobody knows or nobody asks."""

    @abstractmethod
    def close(self) -> None:
        """Free what is held."""


class ModelTarget(Target, ABC):
    """A model on this machine, given batches of similar length."""

    max_duration_s: float = UNBOUNDED_DURATION_S

    @abstractmethod
    def transcribe(self, waveforms: list[Tensor]) -> list[Transcript]:
        """Waveforms ``[S]`` each, on the CPU -> what is said in them; in smaller parts where memory ends."""

    def hear(self, clips: Sequence[Clip]) -> Iterator[Outcome]:
        """See :meth:`Target.hear`: longest first."""
        warm = False
        for batch in loaded_batches(clips, max_duration_s=self.max_duration_s, max_padded_s=_BATCH_PADDED_S):
            for clip, error in batch.unread:
                yield Outcome(clip, None, None, f"{error.reason}: {error}", is_audio=True)
            if not batch.clips:
                continue
            if not warm:
                self.transcribe(batch.waveforms)  # kernels are chosen, and memory is taken, the first time
                warm = True
            began = time.perf_counter()
            transcripts = self.transcribe(batch.waveforms)
            took = (time.perf_counter() - began) / len(batch.clips)
            for clip, transcript in zip(batch.clips, transcripts, strict=True):
                yield Outcome(clip, transcript, took, None)

    def price(self) -> Price | None:
        """See :meth:`Target.price`."""
        return None

    def close(self) -> None:
        """See :meth:`Target.close`."""


class OwnTarget(ModelTarget):
    """A model that this package exported; clips that it does not take whole are split at pauses, nothing is guarded."""

    max_duration_s = float("inf")

    def __init__(self, label: str, folder: Path, identity: dict[str, Any]) -> None:
        self.label, self._folder, self.identity = label, folder, identity

    def check(self) -> None:
        """See :meth:`Target.check`."""
        check_exported(self._folder)

    def load(self) -> None:
        """See :meth:`Target.load`."""
        model, tokenizer = load_model(self._folder)
        self._transcriber = Transcriber(
            model.to(device_of("auto")), tokenizer, max_padded_s=_BATCH_PADDED_S, guard=False
        )

    def transcribe(self, waveforms: list[Tensor]) -> list[Transcript]:
        """See :meth:`ModelTarget.transcribe`."""
        heard = self._transcriber.transcribe(waveforms)
        return [Transcript(one.text, one.ctc_text, one.truncated) for one in heard]


class ProviderTarget(Target):
    """A provider, asked for several clips at a time."""

    def __init__(self, label: str, config: ProviderConfig) -> None:
        self.label, self._config = label, config
        self.identity = {"kind": "provider", **identity_of(config)}

    def check(self) -> None:
        """See :meth:`Target.check`."""
        PROVIDERS.build(self._config).close()

    def load(self) -> None:
        """See :meth:`Target.load`."""
        self._provider = PROVIDERS.build(self._config)

    def hear(self, clips: Sequence[Clip]) -> Iterator[Outcome]:
        """See :meth:`Target.hear`: as answers come."""
        waiting, asked, failures = iter(clips), set[Future[Outcome]](), 0
        end: BaseException | None = None
        pool = ThreadPoolExecutor(self._config.concurrency)
        try:
            while True:
                # No more than are asked for at a time: a clip that waits is not in memory.
                room = 0 if end else self._config.concurrency - len(asked)
                asked |= {pool.submit(self._ask, clip) for clip in islice(waiting, room)}
                if not asked:
                    break
                try:
                    done, asked = wait(asked, return_when=FIRST_COMPLETED)
                except KeyboardInterrupt as interrupt:
                    if end is not None:  # somebody cannot wait
                        raise
                    end = interrupt
                    continue
                for future in done:
                    try:
                        outcome = future.result()
                    except UserError as error:
                        end = end or error  # answers that are under way may be paid for
                        continue
                    yield outcome
                    if not outcome.is_audio:
                        failures = 0 if outcome.error is None else failures + 1
                    if failures >= _GIVE_UP_AFTER:
                        end = end or RunFailed(
                            f"{self.label}: no answer for {failures} clips in a row, the last: {outcome.error}; what "
                            "was answered is kept, and the same command goes on from there"
                        )
        finally:
            pool.shutdown(cancel_futures=True)
        if end is not None:
            raise end

    def _ask(self, clip: Clip) -> Outcome:
        try:
            audio = encode(clip.load(float("inf")))
        except AudioError as error:
            return Outcome(clip, None, None, f"{error.reason}: {error}", is_audio=True)
        began = time.perf_counter()
        try:
            heard: Any = self._provider.transcribe(audio)
        except ProviderError as error:
            return Outcome(clip, None, None, str(error))
        except UserError:
            raise
        except Exception as error:  # a mistake in somebody's provider costs the clip, and not the evaluation
            return Outcome(clip, None, None, f"{self._config.name}: {type(error).__name__}: {error}")
        if not isinstance(heard, ProviderTranscript) or not isinstance(heard.text, str):
            return Outcome(
                clip, None, None, f"{self._config.name}: gave {heard!r}, which is no ProviderTranscript with a text"
            )
        return Outcome(clip, Transcript(heard.text, None, truncated=False), time.perf_counter() - began, None)

    def price(self) -> Price | None:
        """See :meth:`Target.price`."""
        return self._config.price()

    def close(self) -> None:
        """See :meth:`Target.close`."""
        self._provider.close()
