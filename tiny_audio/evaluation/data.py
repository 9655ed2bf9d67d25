"""Data for evaluations: a manifest, any source that a recipe can use, or a set of the Open ASR Leaderboard."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_audio.analysis.rescore import PARENT, check_chunks
from tiny_audio.analysis.scoring import normalizer
from tiny_audio.config import UserError, expand_path
from tiny_audio.data.clips import Clip
from tiny_audio.data.evaluation_clips import evaluation_clips
from tiny_audio.evaluation.hypotheses import hypothesis
from tiny_audio.evaluation.leaderboard import GROUPS, NORMALIZER, SETS
from tiny_audio.registry import did_you_mean
from tiny_audio.runtime.files import cache_dir
from tiny_audio.runtime.spec import folder_name, parse_part, split_spec
from tiny_audio.runtime.yaml_file import read_yaml
from tiny_audio.sources import SOURCES, Dropped, SourceContext

_UNSCORED = frozenset({"ignore_time_segment_in_scoring", "ignore time segment in scoring"})
"""Texts that a corpus has in place of a reference, to mark clips that are not scored."""


@dataclass(frozen=True)
class DataSet:
    """A named set of clips for an evaluation."""

    name: str
    clips: tuple[Clip, ...]
    dropped: tuple[Dropped, ...]
    """Utterances that the source left out of its index."""
    fingerprint: str
    """Hash of ids, durations and texts of all clips of the source, including clips that were not chosen."""


def read_data(texts: Sequence[str], max_samples: int | None) -> list[DataSet]:
    """Return the clips of all sets that ``--data`` names.

    Args:
        texts: values of ``--data``. Each is the path of a manifest or of a YAML file, ``SOURCE:key=value,...``, or the
            name of a preset, such as ``leaderboard``.
        max_samples: maximum number of clips of each set, or of recordings if they are split into chunks. The choice is
            pseudorandom and always the same. A larger number selects the same clips and additional ones.

    Raises:
        UserError: the data does not exist, cannot be read or is empty; two sets have the same name; or the chunks of a
            recording cannot be joined.
    """
    sets: dict[str, DataSet] = {}
    cache = cache_dir()
    for text in texts:
        for name, fields in _sources(text, cache).items():
            if name in sets:
                raise UserError(
                    f"--data {text}: there are two sets called {name!r}; rename one of them, or give the set only once"
                )
            sets[name] = _index(name, fields, text, max_samples, cache)
    return list(sets.values())


def _sources(text: str, cache: Path) -> dict[str, dict[str, Any]]:
    """Return the fields of each set's source, by name of the set."""
    path = Path(expand_path(text))
    named = text.partition(":")[0] in {*SOURCES.names(), *SETS} and not path.exists()
    if path.suffix in (".yaml", ".yml") and not named:
        return _from_yaml(path)
    if path.is_file() or (path.suffix in (".jsonl", ".json", ".ndjson") and not named):
        return {folder_name(path.stem): {"name": "manifest", "path": str(path)}}
    if path.is_dir():
        raise UserError(
            f"--data {text} is a folder; for the audio files in it write --data folder:path={text}, and see "
            "`tiny-audio reference sources`"
        )
    name, fields = split_spec(text)
    if name in GROUPS and not fields:
        return {folder_name(f"{name}/{each}"): found.source(cache) for each, found in GROUPS[name].items()}
    if name in SETS:
        # With fields, the set has another name, so its results do not count as those of the leaderboard's set.
        return {folder_name(text.replace(":", "-", 1)): SETS[name].source(cache) | fields}
    names = SOURCES.names()
    if name not in names:
        raise UserError(
            f"--data {text}: there is no file, source or preset with this name; "
            f"{did_you_mean(name, [*names, *GROUPS, *SETS])}"
        )
    return {folder_name(text.replace(":", "-", 1)): {"name": name} | fields}


def _from_yaml(path: Path) -> dict[str, dict[str, Any]]:
    """Read a file with one source, or with several sources by name as in ``data.evaluation`` of a recipe."""
    document = read_yaml(path)
    if isinstance(document.get("name"), str):
        return {folder_name(path.stem): document}
    wrong = [key for key, value in document.items() if not (isinstance(value, dict) and "name" in value)]
    if wrong or not document:
        problem = f"{wrong[0]!r} is not a source" if wrong else "the file is empty"
        raise UserError(
            f"--data {path}: {problem}; write one source, such as "
            "`name: librispeech`, or several named ones, such as `clean: {name: librispeech, split: test.clean}`"
        )
    found: dict[str, dict[str, Any]] = {}
    for key, value in document.items():
        name = folder_name(key)
        if name in found:
            raise UserError(f"--data {path}: there are two sets called {name!r}, such as {key!r}; rename one of them")
        found[name] = value
    return found


def _index(name: str, fields: dict[str, Any], text: str, max_samples: int | None, cache: Path) -> DataSet:
    source = SOURCES.build(parse_part(SOURCES, fields, f"--data {text}"), SourceContext(cache))
    gathered = evaluation_clips(name, source)
    gathered.check_any(f"--data {text}")
    clips = [clip for clip in gathered.clips if clip.utterance.text.strip().lower() not in _UNSCORED]
    # The leaderboard's scorer leaves out clips whose normalized reference is empty.
    if name.startswith("leaderboard-"):
        rule = normalizer(NORMALIZER)
        clips = [clip for clip in clips if rule(clip.utterance.text)]
    names = [clip.utterance.metadata.get(PARENT, clip.id) for clip in clips]
    if max_samples is not None and max_samples < len(set(names)):
        kept = set(sorted(set(names), key=_lot)[:max_samples])
        clips = [clip for clip, name in zip(clips, names, strict=True) if name in kept]
    # Check the chunks now, because they are joined only after the transcription, which can take hours.
    check_chunks({clip.id: hypothesis(clip, None) for clip in clips}, f"--data {text}")
    return DataSet(name, tuple(clips), gathered.dropped, gathered.fingerprint)


def _lot(clip_id: str) -> bytes:
    """Return a pseudorandom rank for choosing clips. The first clips of a sorted set would not be a fair sample."""
    return hashlib.sha256(clip_id.encode()).digest()
