"""Read and write ``dropped.jsonl``, which lists each clip that is not used, with the reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from tiny_audio.audio.errors import AudioError
from tiny_audio.config import UserError
from tiny_audio.data.clips import BOUNDS, ClipSet
from tiny_audio.data.target_encoder import TargetEncoder, TargetError
from tiny_audio.runtime.files import write_atomically
from tiny_audio.sources import Dropped


class DroppedLog:
    """Appends to a new or existing ``dropped.jsonl``. An incomplete last line from a killed process is removed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ids = {drop.id for drop in read_dropped(path)}
        if path.exists():
            whole = path.read_bytes().rpartition(b"\n")
            if whole[2]:
                with path.open("r+b") as file:
                    file.truncate(len(whole[0]) + len(whole[1]))

    def add(self, dropped: Iterable[Dropped]) -> None:
        """Append the clips that are not listed yet. The file is created with the first clip."""
        fresh = _once(dropped, self._ids)
        if fresh:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(map(_line, fresh))
            self._ids |= {drop.id for drop in fresh}

    def remove(self, ids: Collection[str]) -> None:
        """Remove clips that can be used again."""
        kept = [drop for drop in read_dropped(self._path) if drop.id not in ids]
        write_atomically(self._path, "".join(map(_line, kept)))
        self._ids.difference_update(ids)

    def replace(self, name: str, dropped: Iterable[Dropped]) -> None:
        """Remove all clips of the set ``name``, then add the given clips."""
        listed = {id_ for id_ in self._ids if _set_of(id_) == name}
        if listed:
            self.remove(listed)
        self.add(dropped)


def read_dropped(path: Path) -> list[Dropped]:
    """Read a ``dropped.jsonl``. Return an empty list if there is no file. Ignore an incomplete last line."""
    if not path.exists():
        return []
    return [Dropped(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def count_reasons(path: Path, sets: Container[str]) -> dict[str, int]:
    """Return how often each reason occurs in a ``dropped.jsonl`` for clips of these sets."""
    return dict(Counter(drop.reason for drop in read_dropped(path) if _set_of(drop.id) in sets))


def _set_of(id_: str) -> str:
    return id_.partition("/")[0]


def _line(drop: Dropped) -> str:
    return json.dumps(asdict(drop)) + "\n"


class DroppedClips:
    """The unusable training clips found so far, and the limit on their number.

    Args:
        num_clips: number of training clips within the duration bounds, including unusable clips.
        max_share: maximum share of unusable clips, see ``data.max_dropped_share``.
    """

    def __init__(self, num_clips: int, max_share: float) -> None:
        self._num_clips, self._max_share = num_clips, max_share
        self._by_id: dict[str, Dropped] = {}
        self._counted: set[str] = set()

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, dropped: Iterable[Dropped]) -> list[Dropped]:
        """Add clips, and return those that were not added before."""
        fresh = _once(dropped, self._by_id)
        self._by_id |= {drop.id: drop for drop in fresh}
        self._counted |= {drop.id for drop in fresh if drop.reason not in BOUNDS}
        return fresh

    def over_ceiling(self) -> list[str]:
        """Return the ids of the clips that count toward the limit, or an empty list if the limit is not exceeded."""
        return sorted(self._counted) if len(self._counted) > self._max_share * self._num_clips else []

    def forget(self, ids: Iterable[str]) -> None:
        """Remove clips that can be used again."""
        for id_ in ids:
            del self._by_id[id_]
            self._counted.discard(id_)

    def check(self) -> None:
        """Check the limit.

        Raises:
            UserError: see :func:`check_dropped`.
        """
        if self.over_ceiling():
            check_dropped(list(self._by_id.values()), self._num_clips, self._max_share)


def check_dropped(dropped: Sequence[Dropped], num_clips: int, max_share: float) -> None:
    """Check that not too many clips are unusable. Clips outside the recipe's duration bounds do not count.

    Args:
        num_clips: number of clips within the bounds, including unusable clips.
        max_share: maximum share of unusable clips.

    Raises:
        UserError: too many clips are unusable, or there are no clips. The message has the count and an example for each
            reason.
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
        f"{max_share:.1%}):\n{reasons}\nRepair the data, or raise data.max_dropped_share."
    )


def usable_again(clips: ClipSet, ids: Collection[str], target_encoder: TargetEncoder) -> list[str]:
    """Decode the clips with these ids. Return the ids that no longer count as unusable.

    Their clips can be used now, or were removed from the data.
    """
    unusable = {drop.id for drop in clips.dropped}.intersection(ids)
    left = set(ids) - unusable
    for clip in clips.clips if left else ():
        if clip.id in left:
            left.remove(clip.id)
            try:
                target_encoder.encode(clip.utterance.text, len(clip.load(clips.max_duration_s)))
            except (AudioError, TargetError):
                unusable.add(clip.id)
            if not left:
                break
    return [id_ for id_ in ids if id_ not in unusable]


def _once(dropped: Iterable[Dropped], known: Container[str]) -> list[Dropped]:
    """Return the clips whose ids are not in ``known``, without duplicates."""
    fresh: dict[str, Dropped] = {}
    for drop in dropped:
        if drop.id not in known:
            fresh.setdefault(drop.id, drop)
    return list(fresh.values())
