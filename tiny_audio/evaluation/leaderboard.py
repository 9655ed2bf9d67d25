"""Sets of the Open ASR Leaderboard, and the file of results in a model's repository.

Source: github.com/huggingface/open_asr_leaderboard at commit d1e99b2 of 2026-08-21. The names of repositories, configs
and columns are from the leaderboard's scripts. They were not compared with the repositories themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tiny_audio.config import UserError, first_line
from tiny_audio.runtime.files import write_atomically
from tiny_audio.runtime.spec import folder_name

NORMALIZER = "open_asr_leaderboard"
RESULTS = Path(".eval_results") / "open_asr_leaderboard.yaml"
"""Path of the results in a model's repository."""

_MAIN = "hf-audio/open-asr-leaderboard"
_FORMER = "hf-audio/esb-datasets-test-only-sorted"
_LONG, _CORAAL = "hf-audio/asr-leaderboard-longform", "bezzam/coraal"
_MULTILINGUAL = "hf-audio/open-asr-leaderboard-multilingual-datasets"
_COLUMNS = {"duration_column": "audio_length_s", "id_column": "id"}
_LANGUAGES = {
    "fleurs": ("de", "es", "fr", "it", "pt"),
    "mcv": ("de", "es", "fr", "it"),
    "mls": ("es", "fr", "it", "pt"),
}


@dataclass(frozen=True)
class LeaderboardSet:
    """A set of the leaderboard."""

    repo: str
    config: str
    split: str = "test"
    columns: Mapping[str, str] = field(default_factory=dict)
    """Names of columns that differ from the source's defaults."""
    task: str | None = None
    """The set's task id in files of results. None if the set is not in the hub's registry of tasks."""
    parent: str | None = None
    """The repository with the references, if the recordings of the set are split into chunks. Otherwise None."""

    def source(self, cache: Path) -> dict[str, Any]:
        """Return the fields of the set's source. If recordings are split into chunks, this downloads the set."""
        if self.parent is not None:
            return {"name": "manifest", "path": str(chunked_manifest(self.repo, self.parent, self.split, cache))}
        return {"name": "hub", "repo": self.repo, "config": self.config, "split": self.split, **self.columns}


def _main(config: str, split: str = "test", task: str | None = None) -> LeaderboardSet:
    return LeaderboardSet(_MAIN, config, split, _COLUMNS, task)


_ENGLISH = {
    "ami_cleaned": _main("ami_cleaned"),
    "earnings22_cleaned_aa_chunked": LeaderboardSet(
        "ArtificialAnalysis/Earnings22-Cleaned-AA-chunked", "default", parent="ArtificialAnalysis/Earnings22-Cleaned-AA"
    ),
    "gigaspeech_cleaned": _main("gigaspeech_cleaned"),
    "librispeech_clean": _main("librispeech", "test.clean", "librispeech_clean_wer"),
    "librispeech_other": _main("librispeech", "test.other", "librispeech_other_wer"),
    "spgispeech": _main("spgispeech", task="spgispeech_wer"),
    "voxpopuli_cleaned_aa": _main("voxpopuli_cleaned_aa"),
}
_FORMERLY = {
    "ami": _main("ami", task="ami_wer"),
    "earnings22": _main("earnings22", task="earnings22_wer"),
    "gigaspeech": _main("gigaspeech", task="gigaspeech_wer"),
    "tedlium": LeaderboardSet(_FORMER, "tedlium", "test", _COLUMNS, "tedlium_wer"),
    "voxpopuli": _main("voxpopuli", task="voxpopuli_wer"),
}
_RECORDINGS = {
    **{name: LeaderboardSet(_LONG, name) for name in ("earnings21", "earnings22")},
    **{
        f"coraal_{name.lower()}": LeaderboardSet(_CORAAL, name)
        for name in ("ATL", "DCA", "DCB", "DTA", "LES", "PRV", "ROC", "VLD")
    },
}
_OTHER_LANGUAGES = {
    f"{corpus}_{language}": LeaderboardSet(_MULTILINGUAL, f"{corpus}_{language}")
    for corpus, languages in _LANGUAGES.items()
    for language in languages
}

GROUPS: dict[str, dict[str, LeaderboardSet]] = {
    "leaderboard": _ENGLISH,
    "leaderboard_long": _RECORDINGS,
    "leaderboard_multilingual": _OTHER_LANGUAGES,
}
"""The current sets of each track, by name of the track. On the command line, ``TRACK`` selects all sets of a track, and
``TRACK/SET`` selects one."""
SETS: dict[str, LeaderboardSet] = {
    f"{group}/{name}": each
    for group, sets in (GROUPS | {"leaderboard": _ENGLISH | _FORMERLY}).items()
    for name, each in sets.items()
}
"""All sets, including the sets that the leaderboard used only before July 2026."""


def chunked_manifest(repo: str, parent: str, split: str, cache: Path) -> Path:
    """Write a manifest of a set whose recordings are split into chunks, and return its path.

    The text of each chunk is the reference of its whole recording, because the hypotheses of a recording's chunks are
    joined before they are scored.

    Args:
        repo: the data set of chunks: a local folder, or a repository on the hub. It has the columns ``file_name``,
            ``parent_id`` and ``chunk_index``, and a folder ``audio``.
        parent: the data set of recordings, with ``id`` and the text of each recording.
        split: the split of both data sets.
        cache: folder for the manifest.

    Raises:
        UserError: a data set cannot be read, or a recording has no reference.
    """
    import httpx2
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub import constants, snapshot_download

    try:
        references = {str(row["id"]): _text(row) for row in load_dataset(parent, split=split)}
        chunks = load_dataset(repo, split=split)
        local = Path(repo).is_dir()
        folder = Path(repo if local else snapshot_download(repo, repo_type="dataset", allow_patterns=["audio/*"]))
    # The causes include a missing network, a wrong repository name and missing access rights.
    except (OSError, ValueError, httpx2.HTTPError, DatasetsError) as error:
        advice = (
            "the environment variable HF_HUB_OFFLINE forbids downloads; unset it"
            if constants.HF_HUB_OFFLINE
            else "check the network, and that you may read these data sets (hf auth login)"
        )
        raise UserError(f"{repo} and {parent} cannot be downloaded: {first_line(error)}; {advice}") from error
    except KeyError as error:
        raise UserError(f"{parent} has no column {error.args[0]}, so its references cannot be read") from error
    lacking = {"file_name", "parent_id", "chunk_index"} - set(chunks.column_names)
    if lacking:
        raise UserError(
            f"{repo} has no column {', '.join(sorted(lacking))}; it has {', '.join(sorted(chunks.column_names))}"
        )
    lines = []
    for row in chunks:
        if str(row["parent_id"]) not in references:
            raise UserError(
                f"{repo}: the recording {row['parent_id']!r} has no reference in {parent}, so the two data sets do not "
                "match"
            )
        line = {
            "audio_filepath": str((folder / "audio" / row["file_name"]).absolute()),
            "text": references[str(row["parent_id"])],
            "parent_id": str(row["parent_id"]),
            "chunk_index": str(row["chunk_index"]),
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    path = cache / "leaderboard" / f"{folder_name(repo)}-{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(lines))
    return path


def _text(row: Mapping[str, Any]) -> str:
    names = ("text", "sentence", "normalized_text", "transcript", "transcription")
    name = next((name for name in names if name in row), None)
    if name is None:
        raise KeyError(" or ".join(names))
    return str(row[name])


def write_results(scores: Mapping[str, Mapping[str, Any]], folder: Path, date: str) -> Path | None:
    """Write the results of one model or provider in the hub's format ``.eval_results``, and return the file's path.

    A set is included if it was scored with the leaderboard's normalizer, and all its clips were usable and transcribed.
    If no included set has a task id, write nothing and return None. The mean WER is included if all current sets of the
    English track are included. The speed (RTFx) is left out, because the leaderboard measures it itself.

    Args:
        scores: scores of complete sets (without ``max_samples``), by name of the set.
        folder: the file is written to :data:`RESULTS` in this folder.
        date: date of the evaluation in ISO 8601 format.
    """
    from huggingface_hub import EvalResultEntry
    from huggingface_hub import eval_result_entries_to_yaml as to_entries

    found = {name: scores[folder_name(name)] for name in SETS if folder_name(name) in scores}
    done = {
        name: each
        for name, each in found.items()
        if each["normalizer"] == NORMALIZER and not each["num_failed"] and not each["dropped"]
    }
    rates = {name: round(100 * each["wer"], 2) for name, each in done.items()}
    values = {SETS[name].task: rate for name, rate in rates.items()}
    present = [f"leaderboard/{name}" for name in _ENGLISH]
    if all(name in rates for name in present):
        values["mean_wer"] = round(sum(rates[name] for name in present) / len(present), 2)
    values.pop(None, None)
    if not values:
        return None
    first = next(iter(done.values()))
    others = "; ".join(f"{name} {rate}" for name, rate in rates.items() if SETS[name].task is None)
    notes = f"{first['normalizer_version']}, {first['scorer']} {first['scorer_version']}"
    entries = [
        EvalResultEntry(_MAIN, str(task), rate, date=date, notes=f"{notes}; also {others}" if others else notes)
        for task, rate in values.items()
    ]
    path = folder / RESULTS
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, yaml.safe_dump(to_entries(entries), sort_keys=False, allow_unicode=True))
    return path
