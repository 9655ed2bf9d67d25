"""Read finished runs from their folders, and pair their hypotheses by utterance."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_audio.config import UserError
from tiny_audio.registry import did_you_mean
from tiny_audio.runtime.files import short_names
from tiny_audio.runtime.text_files import decoded
from tiny_audio.sources import AudioAddress, HubFile

Row = dict[str, Any]
"""A hypothesis, with the keys in ``_KEYS``. :data:`tiny_audio.evaluation.hypotheses.Hypothesis` describes them."""

_KEYS = ("id", "audio_filepath", "duration", "text", "pred_text", "ctc_text", "metadata")
_SAME_DURATION_S = 0.01
"""Maximum difference of durations that count as equal. Some manifests round durations to hundredths of a second."""


@dataclass(frozen=True)
class FinishedRun:
    """A run folder in which all stages are done. ``report`` is the content of ``report.json``."""

    name: str
    folder: Path
    report: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, name: str) -> FinishedRun:
        """Read a run folder. Raise :class:`UserError` if it does not contain a finished run."""
        if not folder.is_dir():
            found = "is not a folder" if folder.exists() else "does not exist"
            raise UserError(f"{folder} {found}; give the folder that `tiny-audio run` wrote")
        if not (folder / "state.json").exists():
            inside = sorted(path.parent for path in folder.glob("*/state.json"))
            hint = f"a run in this folder, such as {inside[0]}" if inside else "the folder that `tiny-audio run` wrote"
            raise UserError(f"{folder} is not the folder of a run (it has no state.json); give {hint}")
        if not (folder / "report.json").exists():
            raise UserError(
                f"{folder} is an unfinished run (it has no report.json); continue it with the command that started "
                f"it, or with: tiny-audio run {folder / 'recipe.yaml'} --output-dir {folder}"
            )
        return cls(name, folder, _object(folder / "report.json"))

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """The scores in ``report.json``, by set."""
        scores: dict[str, dict[str, Any]] = self.report["evaluation"]
        return scores

    @property
    def group_by(self) -> str | None:
        """The metadata column whose groups are resampled for the run's intervals. If None, clips are resampled."""
        column: str | None = self.report["recipe"]["evaluation"]["group_by"]
        return column

    def fingerprint(self, set_name: str) -> str:
        """Return the fingerprint of a set's data, as recorded when the run was scored."""
        found: str = self.report["provenance"]["evaluation_data"][set_name]
        return found

    def rows(self, set_name: str) -> dict[str, Row]:
        """Read the raw hypotheses of a set, by utterance id."""
        path = self.folder / "evaluation" / f"{set_name}.jsonl"
        if not path.exists():
            raise UserError(f"{path} is missing, although {self.folder} is finished; repeat the run's command")
        rows = {}
        for line_number, line in enumerate(decoded(path.read_bytes()).split("\n"), 1):
            if not line:
                continue
            try:
                row = json.loads(line)
                rows[row["id"]] = {key: row[key] for key in _KEYS}
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{path}, line {line_number}: is not a hypothesis; delete the file and repeat the run's command"
                ) from None
        return rows


@dataclass(frozen=True)
class Variant:
    """Runs of one recipe that differ only in their seeds. Usually, there is only one run."""

    name: str
    runs: tuple[FinishedRun, ...]


def read_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """Read the runs. The name of a run is the shortest unique end of its path.

    If a folder is given more than once, a number is added to the name.
    """
    names = short_names([Path(os.path.abspath(folder)) for folder in folders])
    again = [names[:index].count(name) for index, name in enumerate(names)]
    named = (f"{name} ({times + 1})" if times else name for name, times in zip(names, again, strict=True))
    return [FinishedRun.read(folder, name) for folder, name in zip(folders, named, strict=True)]


def shared_sets(runs: Sequence[FinishedRun], wanted: str | None) -> list[str]:
    """Return the names of the sets that all runs were scored on. If a set is wanted, return only its name.

    Raises:
        UserError: there is no set that all runs were scored on, or not all runs were scored on the wanted set.
    """
    shared = [name for name in runs[0].scores if all(name in run.scores for run in runs)]
    if not shared:
        listed = "; ".join(f"{run.name}: {', '.join(run.scores) or 'none'}" for run in runs)
        raise UserError(
            f"there is no set that all of these runs were scored on ({listed}); add the same set to data.evaluation "
            "of each run's recipe, and repeat each run's command; the command then scores only the new set"
        )
    if wanted is None:
        return shared
    if wanted not in shared:
        raise UserError(f"--set {wanted}: not all of these runs were scored on it; {did_you_mean(wanted, shared)}")
    return [wanted]


def paired_rows(set_name: str, runs: Sequence[FinishedRun], *, common: bool) -> tuple[list[list[Row]], int]:
    """Pair the rows of all runs. Paired rows have the same id, reference and duration.

    Args:
        common: leave out utterances that are not the same in all runs, instead of raising an error.

    Returns:
        the rows of each run, in the same order, and the number of utterances that were left out.

    Raises:
        UserError: the runs have no utterance in common, or ``common`` is False and utterances, references or durations
            differ.
    """
    tables = [run.rows(set_name) for run in runs]
    first = tables[0]
    ids = [
        name for name, row in first.items() if all(name in table and _is_same(table[name], row) for table in tables[1:])
    ]
    left_out = len(set().union(*tables)) - len(ids)
    if not ids:
        raise UserError(
            f"{set_name}: these runs have no utterance in common that has the same reference and duration; score the "
            "runs on the same clips"
        )
    if left_out and not common:
        differing = zip(runs[1:], tables[1:], strict=True)
        lines = [line for run, table in differing for line in _differences(runs[0].name, first, run.name, table)]
        raise UserError(
            "\n  ".join([f"{set_name}: the runs were scored on different clips:", *lines])
            + f"\n{len(ids)} utterances are the same in all runs; to compare only these utterances, add --common"
        )
    return [[table[name] for name in ids] for table in tables], left_out


def audio_warnings(set_name: str, runs: Sequence[FinishedRun], rows: Sequence[list[Row]]) -> Iterator[str]:
    """Yield warnings if runs may have been scored on different audio, although ids, references and durations agree.

    Each run is compared with the first. ``rows`` are the rows of each run, from :func:`paired_rows`.
    """
    for run, theirs in zip(runs[1:], rows[1:], strict=True):
        elsewhere = [
            (here, there)
            for here, there in zip(rows[0], theirs, strict=True)
            if _portable(here["audio_filepath"]) != _portable(there["audio_filepath"])
        ]
        if elsewhere:
            here, there = elsewhere[0]
            yield (
                f"{run.name} read {len(elsewhere)} clips from other files than {runs[0].name}, such as {here['id']}: "
                f"from {there['audio_filepath']} instead of {here['audio_filepath']}; ids, references and durations "
                "agree, but check that the audio is the same"
            )
        if run.fingerprint(set_name) != runs[0].fingerprint(set_name):
            yield (
                f"{run.name} and {runs[0].name} were scored on data with different fingerprints, although ids, "
                "references and durations of the compared clips agree; clips that are not compared, the order of "
                "the clips, or the revision of the data may differ"
            )


def _portable(audio_filepath: str | None) -> str:
    """Return the part of an audio file's address that does not depend on the machine or on the revision of the data."""
    if not audio_filepath:
        return ""
    address = AudioAddress.parse(audio_filepath, Path())
    file = address.file
    return f"{f'{file.repo}/{file.path}' if isinstance(file, HubFile) else file.name}#{address.cell}"


def _is_same(row: Row, other: Row) -> bool:
    return bool(row["text"] == other["text"] and abs(row["duration"] - other["duration"]) <= _SAME_DURATION_S)


def _differences(name: str, table: dict[str, Row], other_name: str, other: dict[str, Row]) -> list[str]:
    lines = []
    for here, there, whose in ((table, other, name), (other, table, other_name)):
        missing = [row for row in here if row not in there]
        if missing:
            lines.append(f"{len(missing)} only in {whose}, such as {missing[0]}")
    changed = [row for row in table if row in other and table[row]["text"] != other[row]["text"]]
    if changed:
        example = changed[0]
        lines.append(
            f"{len(changed)} with different references in {other_name} and in {name}, such as {example}: "
            f"{_shown(other[example]['text'])} and {_shown(table[example]['text'])}"
        )
    longer = [row for row in table if row in other and row not in changed and not _is_same(table[row], other[row])]
    if longer:
        example = longer[0]
        lines.append(
            f"{len(longer)} with different durations in {other_name} and in {name}, such as {example}: "
            f"{other[example]['duration']:.2f} and {table[example]['duration']:.2f} s"
        )
    return lines


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or not {"evaluation", "recipe", "training", "parameters"} <= content.keys():
        raise UserError(
            f"{path} is not the report of a run; delete this file and repeat the run's command, which writes the report"
        )
    return content
