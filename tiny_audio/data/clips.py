"""Clips ready to train on: gathered from sources, checked, loaded, batched."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast, overload

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, get_worker_info

from tiny_audio.audio.load import MIN_DURATION_S, AudioError, load_audio
from tiny_audio.config import UserError
from tiny_audio.ctc import CtcVocabulary, min_frames
from tiny_audio.data.augmentation import AugmentationConfig, augment_waveform, clip_seed
from tiny_audio.data.order import BatchingConfig, EpochPlan, plan_epoch
from tiny_audio.data.shared_batches import SUPPORTED, SharedBatches
from tiny_audio.data.text import TargetText, TargetTextChoice
from tiny_audio.encoders import EncoderConfig
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.sources import Dropped, Source, Utterance, runs, texts_of

BOUNDS = ("too_short", "too_long")
"""Reasons by which an index leaves out a clip outside data.min_duration_s and data.max_duration_s, and no more."""


@dataclass(frozen=True, slots=True)
class Clip:
    """An utterance and the source that reads it."""

    source: Source
    utterance: Utterance
    id: str
    """``set/utterance``, unique over all sets of a recipe."""

    def load(self, max_duration_s: float) -> Tensor:
        """Waveform ``[S]``.

        Raises:
            AudioError: the clip is unusable, or lasts nothing like what its index says.
        """
        utterance = self.utterance
        audio = self.source.encoded(utterance)
        try:
            waveform = load_audio(audio, max_duration_s=max_duration_s, name=utterance.id)
        except AudioError as error:
            if error.reason == "too_long" or (error.reason == "too_short" and utterance.duration_s >= MIN_DURATION_S):
                # By its index, the clip is inside the bounds; that is a fault of the data, and counts as one.
                said = f"its index says {utterance.duration_s:.2f} s"
                raise AudioError("duration_differs", f"{error}; {said}, correct it") from error
            raise
        duration_s = len(waveform) / SAMPLE_RATE
        if abs(duration_s - utterance.duration_s) > max(0.5, 0.1 * utterance.duration_s):
            raise AudioError(
                "duration_differs",
                f"{utterance.id} lasts {duration_s:.2f} s, and its index says {utterance.duration_s:.2f} s; "
                "correct the index, since batches are planned by it",
            )
        return waveform


@dataclass(frozen=True, eq=False)
class Clips(Sequence[Clip]):
    """Clips of one or more sources, as columns; a :class:`Clip` is made when it is asked for.

    n clips
    """

    sets: tuple[tuple[str, Source, Sequence[Utterance]], ...]
    """Name of the set, what reads it, all its utterances."""
    members: np.ndarray
    """``[n]`` int32: which of the sets."""
    rows: np.ndarray
    """``[n]`` int64: which of its utterances."""
    durations_s: np.ndarray
    """``[n]`` float64."""
    groups: np.ndarray | None
    """``[n]`` int64: which clips are fetched together; None: each by itself."""
    weights: np.ndarray | None
    """``[n]`` float64: how often each comes in an epoch on average; None: once."""
    target_text: TargetText
    """How transcripts are rewritten."""

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> Clips: ...
    def __getitem__(self, index: int | slice) -> Clip | Clips:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        name, source, utterances = self.sets[self.members[index]]
        utterance = utterances[int(self.rows[index])]
        if not self.target_text.changes_nothing:
            utterance = replace(utterance, text=self.target_text(utterance.text))
        return Clip(source, utterance, f"{name}/{utterance.id}")

    def take(self, chosen: np.ndarray) -> Clips:
        """Those of the numbers ``[m]``, in their order."""
        groups = None if self.groups is None else self.groups[chosen]
        weights = None if self.weights is None else self.weights[chosen]
        return replace(
            self,
            members=self.members[chosen],
            rows=self.rows[chosen],
            durations_s=self.durations_s[chosen],
            groups=groups,
            weights=weights,
        )

    def plan(self, config: BatchingConfig, seed: int, epoch: int) -> EpochPlan:
        """The order of an epoch, see :func:`tiny_audio.data.order.plan_epoch`."""
        return plan_epoch(self.durations_s, config, seed, epoch, groups=self.groups, weights=self.weights)


@dataclass(frozen=True)
class ClipSet:
    """The usable clips of some sources, what was left out, and one hash of it all."""

    clips: Clips
    dropped: tuple[Dropped, ...]
    fingerprint: str
    max_duration_s: float
    """Upper bound that the clips were gathered under, and that they are loaded under."""

    @classmethod
    def gather(
        cls,
        sources: Mapping[str, Source],
        min_duration_s: float,
        max_duration_s: float,
        text: TargetTextChoice = "none",
    ) -> ClipSet:
        """Index every source and keep what is inside the bounds; no audio is decoded, and no transcript read.

        Args:
            sources: by the name of the set.
            min_duration_s, max_duration_s: bounds, both inclusive.
            text: how transcripts are rewritten; a clip of which nothing is left is dropped when its turn comes.
        """
        dropped, digest = [], hashlib.sha256()
        sets, rows, durations, groups, weights = [], [], [], [], []
        for name, source in sources.items():
            index = source.index()
            digest.update(f"{name}={index.fingerprint};".encode())
            dropped += [Dropped(f"{name}/{drop.id}", drop.reason, drop.detail) for drop in index.dropped]
            every = index.durations_s
            if every is None:
                every = np.array([utterance.duration_s for utterance in index.utterances], dtype=np.float64)
            inside = (min_duration_s <= every) & (every <= max_duration_s)
            for row in np.flatnonzero(~inside).tolist():
                dropped.append(_out_of_bounds(name, index.utterances[row], min_duration_s, max_duration_s))
            kept = np.flatnonzero(inside)
            sets.append((name, source, index.utterances))
            rows.append(kept)
            durations.append(every[kept])
            groups.append(None if index.groups is None else index.groups[kept])
            weights.append(None if index.weights is None else index.weights[kept])
        clips = Clips(
            tuple(sets),
            np.repeat(np.arange(len(sets), dtype=np.int32), [len(kept) for kept in rows]),
            np.concatenate(rows),
            np.concatenate(durations),
            _joined_groups(groups, rows),
            _joined_weights(weights, rows),
            TargetText.of(text),
        )
        return cls(clips, tuple(dropped), digest.hexdigest(), max_duration_s)

    def check_any(self, place: str) -> None:
        """Refuse to go on with nothing.

        Args:
            place: of the recipe, such as ``data.train``.

        Raises:
            UserError: there is no usable clip; how many were dropped, and the first.
        """
        if self.clips:
            return
        why = f"; {len(self.dropped)} dropped, the first: {self.dropped[0].detail}" if self.dropped else ""
        raise UserError(
            f"{place} has no usable clip{why}; check the data, and data.min_duration_s and data.max_duration_s"
        )

    @property
    def num_inside(self) -> int:
        """Clips inside the bounds of length, those that cannot be used included."""
        return len(self.clips) + sum(drop.reason not in BOUNDS for drop in self.dropped)

    def usable_again(self, ids: Collection[str], target_encoder: TargetEncoder, max_duration_s: float) -> list[str]:
        """Those of the ids whose clips can be used now, or are no longer part of the data; reads these clips.

        Args:
            ids: of clips that could not be used.
        """
        unusable = {drop.id for drop in self.dropped}.intersection(ids)
        left = set(ids) - unusable
        for clip in self.clips if left else ():
            if clip.id in left:
                left.remove(clip.id)
                if target_encoder.dropped(clip, max_duration_s) is not None:
                    unusable.add(clip.id)
                if not left:
                    break
        return [id_ for id_ in ids if id_ not in unusable]

    @property
    def texts(self) -> Iterator[str]:
        """All transcripts, as they become targets, one by one."""
        clips = self.clips
        for run in runs(clips.members):
            utterances = clips.sets[clips.members[run.start]][2]
            yield from map(clips.target_text, texts_of(utterances, clips.rows[run]))

    @property
    def duration_s(self) -> float:
        """Seconds of all clips."""
        return float(self.clips.durations_s.sum())


def _out_of_bounds(name: str, utterance: Utterance, min_duration_s: float, max_duration_s: float) -> Dropped:
    reason = "too_short" if utterance.duration_s < min_duration_s else "too_long"
    bounds = f"{min_duration_s:g} to {max_duration_s:g} s"
    detail = f"lasts {utterance.duration_s:.2f} s, and data allows {bounds}"
    return Dropped(f"{name}/{utterance.id}", reason, detail)


def _joined_groups(groups: Sequence[np.ndarray | None], rows: Sequence[np.ndarray]) -> np.ndarray | None:
    """Groups of all sets under numbers of their own; a clip that is fetched by itself is a group of one."""
    if all(group is None for group in groups):
        return None
    joined, first = [], 0
    for group, kept in zip(groups, rows, strict=True):
        own = np.arange(len(kept)) if group is None else group
        joined.append(own + first)
        first += int(own.max(initial=-1)) + 1
    return np.concatenate(joined)


def _joined_weights(weights: Sequence[np.ndarray | None], rows: Sequence[np.ndarray]) -> np.ndarray | None:
    if all(weight is None for weight in weights):
        return None
    return np.concatenate(
        [np.ones(len(kept)) if weight is None else weight for weight, kept in zip(weights, rows, strict=True)]
    )


def check_dropped(dropped: Sequence[Dropped], num_clips: int, max_share: float) -> None:
    """Stop where too much is unusable. Clips outside the recipe's own bounds of length do not count: those were chosen.

    Args:
        num_clips: inside the bounds, unusable ones included.

    Raises:
        UserError: counts by reason, and an example of each.
    """
    dropped = [drop for drop in dropped if drop.reason not in BOUNDS]
    if num_clips and len(dropped) <= max_share * num_clips:
        return
    examples = {drop.reason: drop for drop in dropped}
    reasons = "\n".join(
        f"  {reason}: {count}, such as {examples[reason].id}: {examples[reason].detail}"
        for reason, count in Counter(drop.reason for drop in dropped).most_common()
    )
    share = len(dropped) / num_clips if num_clips else 1.0
    raise UserError(
        f"{len(dropped)} of {num_clips} training clips are unusable ({share:.1%}; data.max_dropped_share is "
        f"{max_share:.1%}):\n{reasons}\nMend the data, or raise data.max_dropped_share."
    )


@dataclass(frozen=True)
class Batch:
    """One padded batch.

    B clips · S samples of the longest
    """

    waveforms: Tensor
    """``[B, S]`` float32 at 16 kHz, zero beyond each length."""
    lengths: Tensor
    """``[B]`` int64, samples."""
    targets: list[Tensor]
    """B rows of token ids, each ending in the end token."""
    ctc_targets: list[list[int]] | None
    """B rows of CTC labels; None without a CTC head."""
    seeds: list[int]
    """One for each clip's augmentation."""
    dropped: list[Dropped] = field(default_factory=list)
    """Clips of the plan that turned out unusable."""

    def __getstate__(self) -> dict[str, Any]:
        # Between processes each tensor would get shared memory of its own, which is dear for a few numbers.
        targets, lengths = [row.tolist() for row in self.targets], self.lengths.tolist()
        return {**self.__dict__, "targets": targets, "lengths": lengths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        targets, lengths = map(torch.tensor, state["targets"]), torch.tensor(state["lengths"], dtype=torch.long)
        self.__dict__.update({**state, "targets": list(targets), "lengths": lengths})

    @property
    def audio_s(self) -> float:
        """Seconds of audio, without padding."""
        return int(self.lengths.sum()) / SAMPLE_RATE

    @property
    def padded_s(self) -> float:
        """Seconds of audio, padding included."""
        return self.waveforms.numel() / SAMPLE_RATE

    def pin_memory(self) -> Batch:
        """In page-locked memory, so that copies run beside the computation; a DataLoader calls it."""
        return replace(
            self,
            waveforms=self.waveforms.pin_memory(),
            lengths=self.lengths.pin_memory(),
            targets=[row.pin_memory() for row in self.targets],
        )

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return replace(
            self,
            waveforms=self.waveforms.to(device, non_blocking=True),
            lengths=self.lengths.to(device, non_blocking=True),
            targets=[row.to(device, non_blocking=True) for row in self.targets],
        )


@dataclass(frozen=True)
class TargetEncoder:
    """Turns transcripts into targets, and says which clips cannot be learned from."""

    tokenizer: Any
    end_id: int
    ctc: CtcVocabulary | None
    encoder: EncoderConfig
    _last: dict[str, list[int]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.all_special_ids)  # a tokenizer gathers them anew each time

    def targets(self, text: str) -> Tensor:
        """Token ids, the end token last."""
        return torch.tensor([*self._ids(text), self.end_id])

    def problem(self, text: str, num_samples: int) -> tuple[str, str] | None:
        """A reason and its detail where text and clip cannot go together."""
        if not text:
            return "text_missing", "data.target_text leaves nothing of its transcript"
        ids = self._ids(text)
        if self.tokenizer.unk_token_id is not None and self.tokenizer.unk_token_id in ids:
            return "unknown_token", f"the tokenizer has no token for a character of {text!r}"
        special = sorted(self._special_ids.intersection(ids))
        if special:
            name = self.tokenizer.convert_ids_to_tokens(special[0])
            return "special_token", f"{text!r} holds {name!r}, which steers the decoder and is no word"
        if self.ctc is None:
            return None
        labels = self.ctc.encode(text)
        if labels is None:
            strange = "".join(sorted(set(text) - set(self.ctc.characters)))
            return "unknown_character", f"the CTC head has no label for {strange!r}"
        frames = self.encoder.num_frames(num_samples)
        if min_frames(labels) > frames:
            return "text_too_long", f"{len(labels)} characters do not fit {frames} frames"
        return None

    def dropped(self, clip: Clip, max_duration_s: float) -> Dropped | None:
        """What is wrong with a clip as it is; reads it."""
        try:
            num_samples = len(clip.load(max_duration_s))
        except AudioError as error:
            return Dropped(clip.id, error.reason, str(error))
        problem = self.problem(clip.utterance.text, num_samples)
        return Dropped(clip.id, *problem) if problem else None

    def _ids(self, text: str) -> list[int]:
        # A text is checked, and then made into targets.
        if text not in self._last:
            self._last.clear()
            self._last[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self._last[text]


class PlannedBatches(Dataset[Batch]):
    """The batches of one epoch's plan; item k is a pure function of it, so workers and restarts change nothing.

    Of several processes, each takes its part of every global batch: ``rank``, ``rank + world_size``, … of its clips,
    which are sorted by duration, so that the parts take about as long. A part may be empty.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        plan: EpochPlan,
        target_encoder: TargetEncoder,
        augmentation: AugmentationConfig,
        max_duration_s: float,
        seed: int,
        epoch: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.clips = clips
        self.plan = plan
        self.target_encoder = target_encoder
        self.augmentation = augmentation
        self.max_duration_s = max_duration_s
        self.seed = seed
        self.epoch = epoch
        self.part = slice(rank, None, world_size)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, k: int) -> Batch:
        with _one_thread():
            return self._batch(k)

    def _batch(self, k: int) -> Batch:
        waveforms: list[Tensor] = []
        targets, ctc_targets, seeds, dropped = [], [], [], []
        for index, repeat in zip(self.plan[k][self.part], self.plan.repeats_of(k)[self.part], strict=True):
            clip = self.clips[int(index)]
            seed, text = clip_seed(self.seed, self.epoch, clip.id, int(repeat)), clip.utterance.text
            try:
                recorded = clip.load(self.max_duration_s)
                waveform = augment_waveform(self.augmentation, recorded, seed, self.max_duration_s)
            except AudioError as error:
                dropped.append(Dropped(clip.id, error.reason, str(error)))
                continue
            problem = self.target_encoder.problem(text, len(waveform))
            if problem and len(waveform) < len(recorded):
                # Its text may fit the clip, and only not the clip sped up, which is no fault of the data.
                as_recorded = self.augmentation.model_copy(update={"speed": None})
                waveform = augment_waveform(as_recorded, recorded, seed, self.max_duration_s)
                problem = self.target_encoder.problem(text, len(waveform))
            if problem:
                dropped.append(Dropped(clip.id, *problem))
                continue
            waveforms.append(waveform)
            targets.append(self.target_encoder.targets(text))
            seeds.append(seed)
            if self.target_encoder.ctc is not None:
                ctc_targets.append(self.target_encoder.ctc.encode(text) or [])
        return Batch(
            waveforms=_padded(waveforms),
            lengths=torch.tensor([len(waveform) for waveform in waveforms], dtype=torch.long),
            targets=targets,
            ctc_targets=ctc_targets if self.target_encoder.ctc is not None else None,
            seeds=seeds,
            dropped=dropped,
        )


def _padded(waveforms: list[Tensor]) -> Tensor:
    """``[B, S]``; in a loader's process what becomes that where it is received, see :class:`SharedBatches`."""
    if not waveforms:
        return torch.zeros(0, 0)
    if SUPPORTED and get_worker_info() is not None:
        return cast(Tensor, SharedBatches(waveforms))
    return pad_sequence(waveforms, batch_first=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """As in a loader process: a resampler's last bits depend on how many threads share its sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
