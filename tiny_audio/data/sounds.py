"""Folders of sounds for augmentation. Each process lists a folder once, and decodes a sound when it is drawn."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import Tensor

from tiny_audio.audio.errors import AudioError, FileError
from tiny_audio.audio.formats import is_audio_name
from tiny_audio.audio.load import MIN_DURATION_S, audio_duration, load_audio
from tiny_audio.config import UserError
from tiny_audio.runtime.files import files_below

MAX_SOUND_S = 600.0
"""Maximum duration of a sound. Decoded sounds are kept in memory, and ten minutes take 38 MB."""
_MAX_KEPT_BYTES = 256 * 2**20
"""Maximum size of the sounds that each loader process keeps in memory."""
_THREADS = 8

_LOG = logging.getLogger(__name__)
_KEPT: OrderedDict[Path, Tensor | None] = OrderedDict()


@dataclass(frozen=True)
class Sounds:
    """The audio files in a folder, at any depth."""

    folder: Path
    names: tuple[str, ...]
    """Sorted paths below the folder. Sounds are drawn by their index in this list."""
    fingerprint: str
    """Hash of the files' names and sizes. If it changes, the same random numbers may select different sounds."""

    def check(self) -> float:
        """Read the header of every file, to find unusable files before training.

        Returns:
            hours of sound in all files.

        Raises:
            UserError: files are unreadable, too short or too long. The message has their number and the first problem.
        """
        with ThreadPoolExecutor(_THREADS, "headers") as pool:
            found = list(pool.map(self._duration, self.names))
        bad = [problem for problem in found if isinstance(problem, str)]
        if bad:
            raise UserError(
                f"{len(bad)} of the {len(found)} audio files in {self.folder} cannot be used; remove or repair them; "
                f"the first: {bad[0]}"
            )
        return sum(seconds for seconds in found if isinstance(seconds, float)) / 3600

    def _duration(self, name: str) -> float | str:
        try:
            seconds = audio_duration(self.folder / name, name=name)
        except (AudioError, FileError) as error:
            return str(error)
        if not MIN_DURATION_S <= seconds <= MAX_SOUND_S:
            return f"{name} lasts {seconds:g} s; {MIN_DURATION_S} to {MAX_SOUND_S:g} s are allowed"
        return seconds

    def load(self, index: int) -> Tensor | None:
        """Return a decoded sound ``[S]``. If the file is damaged, log a warning and return None."""
        path = self.folder / self.names[index]
        if path in _KEPT:
            _KEPT.move_to_end(path)
            return _KEPT[path]
        try:
            sound: Tensor | None = load_audio(path, max_duration_s=MAX_SOUND_S)
        except AudioError as error:
            # Only warn. An error would drop the training clip, and many dropped clips would stop the run.
            _LOG.warning("a sound for augmentation cannot be decoded; clips are used without it: %s", error)
            sound = None
        _KEPT[path] = sound
        while len(_KEPT) > 1 and sum(kept.nbytes for kept in _KEPT.values() if kept is not None) > _MAX_KEPT_BYTES:
            _KEPT.popitem(last=False)
        return sound


@cache
def sounds_in(folder: str) -> Sounds:
    """List the sounds in a folder.

    Raises:
        UserError: the folder cannot be read, or has no audio file.
    """
    path = Path(folder).absolute()
    try:
        files = files_below(path, is_audio_name)
    except OSError as error:
        raise UserError(
            f"the folder {path} cannot be read: {error.strerror}; give a folder with audio files"
        ) from error
    if not files:
        raise UserError(f"{path} and its subfolders have no audio file; give a folder with audio files")
    sizes = {name: status.st_size for name, status in files.items()}
    digest = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode()).hexdigest()
    return Sounds(path, tuple(files), digest)
