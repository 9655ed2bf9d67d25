"""``tiny-audio cut``: write excerpts of clips as a manifest for training."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import soundfile

from tiny_audio.config import UserError
from tiny_audio.evaluation.data import read_data
from tiny_audio.export.load import load_model
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.runtime.device import device_of
from tiny_audio.runtime.files import new_folder
from tiny_audio.training.excerpts import Excerpt, Excerpts

_FILES_PER_FOLDER = 1_000
_MANIFEST = "train.jsonl"
_OFFSET = "offset"
"""Metadata column that is left out of the manifest, where ``offset`` means the start of a clip within its file."""


def cut(model: Path, data: Sequence[str], output_dir: Path, num_clips: int | None, seed: int) -> None:
    """Write excerpts to ``output_dir``, as FLAC files and ``train.jsonl``.

    Args:
        model: folder of a run or of an exported model. The model must have a CTC head.
        data: values of ``--data``, see :func:`tiny_audio.evaluation.data.read_data`.
        output_dir: a folder that does not exist or is empty.
        num_clips: number of excerpts. If None, it is the number of clips that have a transcript.
        seed: seed for all random choices.

    Raises:
        UserError: the model or the data cannot be used, or the folder cannot be written.
    """
    folder = output_dir.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{output_dir} exists already; delete it, or give another --output-dir")
    loaded, _ = load_model(model)
    sets = read_data(data, None)
    clips = [clip for one in sets for clip in one.clips if clip.utterance.text]
    if not clips:
        raise UserError(f"--data {' '.join(data)}: no clip has a transcript")
    excerpts = Excerpts(loaded.to(device_of("auto")), clips, seed)
    count = num_clips or len(clips)
    rows = []
    try:
        with new_folder(folder) as aside:
            for index in range(count):
                rows.append(_write(excerpts.make(index), index, aside))
                if (index + 1) % -(-count // 10) == 0:
                    _note(f"{index + 1} of {count} excerpts")
            (aside / _MANIFEST).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    except (OSError, soundfile.LibsndfileError) as error:
        raise UserError(
            f"{output_dir} cannot be written: {error}; choose another --output-dir, or free disk space"
        ) from error
    dropped = [*excerpts.dropped.values(), *(drop for one in sets for drop in one.dropped)]
    if dropped:
        reasons = ", ".join(f"{reason} {number}" for reason, number in Counter(one.reason for one in dropped).items())
        _note(f"clips that cannot be used: {len(dropped)} ({reasons}), such as {dropped[0].id}: {dropped[0].detail}")
    minutes = sum(float(row["duration"]) for row in rows) / 60
    manifest = output_dir / _MANIFEST
    print(f"{manifest}: {count} excerpts, {minutes:.1f} minutes, from {excerpts.num_used} of {len(clips)} clips")
    print(f"to train on them: data.train.excerpts.name=manifest data.train.excerpts.path={manifest}")


def _write(excerpt: Excerpt, index: int, folder: Path) -> dict[str, str | float]:
    """Write the audio file of an excerpt, and return the row of the manifest."""
    name = f"{index // _FILES_PER_FOLDER:04d}/{index:07d}.flac"
    (folder / name).parent.mkdir(exist_ok=True)
    soundfile.write(folder / name, excerpt.waveform.numpy(), SAMPLE_RATE, subtype="PCM_16")
    duration_s = len(excerpt.waveform) / SAMPLE_RATE
    metadata = {key: value for key, value in excerpt.metadata.items() if key != _OFFSET}
    return {**metadata, "audio_filepath": name, "duration": duration_s, "text": excerpt.text}


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
