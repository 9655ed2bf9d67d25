"""The evaluation of one target on one set: its folder, its missing clips and its scores."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tiny_audio.analysis import rescore
from tiny_audio.analysis.scoring import Normalizer
from tiny_audio.analysis.warnings import Comparison, state_overlap
from tiny_audio.config import RunFailed, UserError
from tiny_audio.data.clips import Clip
from tiny_audio.evaluation.data import DataSet
from tiny_audio.evaluation.hypotheses import Hypothesis, hypothesis, score_rows, to_lines, with_outcome, write_rows
from tiny_audio.evaluation.targets import Target
from tiny_audio.runtime.files import write_atomically
from tiny_audio.runtime.shares import split_evenly
from tiny_audio.runtime.spec import folder_name
from tiny_audio.runtime.world import World

HYPOTHESES, SCORES, IDENTITY = "hypotheses.jsonl", "scores.json", "target.json"
OTHERS = "other_hypotheses.jsonl"
"""Name of the file with hypotheses of clips that are not in the set. An earlier evaluation, which had more samples,
transcribed these clips."""

Compared = Mapping[str, Comparison | None]
"""Comparison of each set with a target's training data, by name of the set. A comparison is None if the training data
cannot be read. The mapping is empty if the target is not a run."""
_Row = tuple[Hypothesis, bool]
"""A row, and whether the clip failed because of its audio (see ``Outcome.is_audio``)."""


class TargetOnSet:
    """The evaluation of one target on one set, with its folder. Only the main process reads and writes the folder."""

    def __init__(self, target: Target, data: DataSet, output_dir: Path) -> None:
        self.target, self.data = target, data
        self.folder = output_dir / folder_name(target.label) / data.name
        self._errors_of_audio = 0
        self.failures: list[Hypothesis] = []
        """Rows of the failed clips, in the order of the clips. :meth:`complete` sets them when it ends."""
        self._failed: dict[str, Hypothesis] = {}
        """Rows of the clips that have failed so far, by id."""
        self.rows: dict[str, Hypothesis] = {}
        """Hypotheses of the clips that were transcribed, by id. Only the main process has them."""
        self.missing: list[Clip] = []
        """Clips that still need to be transcribed, including clips that failed before."""

    def open(self) -> list[str]:
        """Read the folder, and return the ids of the clips that are missing.

        Rows of clips that are not in this set are moved to the file :data:`OTHERS`.

        Raises:
            UserError: the folder has results of another target or of other data.
        """
        identity = {"target": self.target.identity, "data": self.data.fingerprint}
        self._check_identity(json.loads(json.dumps(identity)))
        here, elsewhere = ({row["id"]: row for row in _read(self.folder / name)} for name in (HYPOTHESES, OTHERS))
        known = elsewhere | {name: row for name, row in here.items() if row["error"] is None}
        ids = [clip.id for clip in self.data.clips]
        self.rows = {name: known[name] for name in ids if name in known}
        others = {name: row for name, row in known.items() if name not in self.rows}
        if not here.keys() <= set(ids) or elsewhere.keys() != others.keys():
            # Write each row to its new file first. Then no row is lost if the process is killed.
            write_rows(self.folder / OTHERS, known.values())
            write_rows(self.folder / HYPOTHESES, self.rows.values())
            write_rows(self.folder / OTHERS, others.values())
        if not others:
            (self.folder / OTHERS).unlink(missing_ok=True)
        return [name for name in ids if name not in self.rows]

    def expect(self, ids: Sequence[str]) -> None:
        """Set the missing clips from their ids, which :meth:`open` returned in the main process."""
        wanted = set(ids)
        self.missing = [clip for clip in self.data.clips if clip.id in wanted]

    def complete(self, note: Callable[[str], None], world: World) -> None:
        """Transcribe the missing clips. Each process transcribes a share, and the main process writes all rows."""
        if not self.missing:
            return
        with ExitStack() as stack:
            add: Callable[[_Row], None] = self._begin(note, stack) if world.is_main else world.send_to_main

            def receive() -> None:
                for row in world.received():
                    add(row)

            def transcribe() -> None:
                for outcome in self.target.transcribe(self._share(world)):
                    row = hypothesis(outcome.clip, outcome.transcript)
                    add((with_outcome(row, outcome.time_s, outcome.error), outcome.is_audio))
                    receive()

            stack.callback(receive)  # after an interruption, this still writes the rows that were already sent
            world.collective(transcribe, receive)
        world.broadcast_from_main(self._finish)

    def _share(self, world: World) -> list[Clip]:
        if self.target.is_remote:  # several processes would exceed the provider's limits on requests
            return self.missing if world.is_main else []
        shares = split_evenly([clip.utterance.duration_s for clip in self.missing], world.size)
        return [self.missing[index] for index in shares[world.rank]]

    def _begin(self, note: Callable[[str], None], stack: ExitStack) -> Callable[[_Row], None]:
        """Open the file of hypotheses, and return a function that adds a row to it."""
        path, total, done = self.folder / HYPOTHESES, len(self.missing), 0
        if self.rows:
            note(f"{self.target.label} on {self.data.name}: {len(self.rows)} of {len(self.data.clips)} are done")
        # Rewrite the file without failures and without the incomplete last line of a killed process.
        write_rows(path, self.rows.values())
        file = stack.enter_context(path.open("a", encoding="utf-8"))
        self._failed = {}

        def add(found: _Row) -> None:
            nonlocal done
            row, is_audio = found
            (self.rows if row["error"] is None else self._failed)[row["id"]] = row
            self._errors_of_audio += is_audio
            file.write(to_lines([row]))
            file.flush()
            done += 1
            if done % 100 == 0:
                note(f"{self.target.label} on {self.data.name}: {done} of {total}, {len(self._failed)} failed")

        return add

    def _finish(self) -> None:
        """Write the rows in the order of the clips.

        Raises:
            UserError: nothing can be scored, and all failed clips have unusable audio.
            RunFailed: nothing can be scored, and at least one clip failed for another reason.
        """
        everything = self.rows | self._failed
        rows = [everything[clip.id] for clip in self.data.clips]
        write_rows(self.folder / HYPOTHESES, rows)
        self.failures = [row for row in rows if row["error"] is not None]
        if not self.scored:
            nothing = f"none of {len(rows)} clips was transcribed"
            problem = "no recording was transcribed completely" if self.rows else nothing
            first = f"the first: {self.failures[0]['id']}: {self.failures[0]['error']}"
            message = f"{self.target.label} on {self.data.name}: {problem}; {first}"
            raise UserError(message) if self._errors_of_audio == len(self.failures) else RunFailed(message)

    @property
    def scored(self) -> dict[str, Hypothesis]:
        """Hypotheses to score, by id: the transcribed clips, or the recordings whose chunks were all transcribed."""
        rows = self.rows | {row["id"]: row for row in self.failures}
        ordered = {clip.id: rows[clip.id] for clip in self.data.clips if clip.id in rows}
        joined = rescore.join_chunks(ordered, str(self.folder / HYPOTHESES))
        return {name: row for name, row in joined.items() if row["error"] is None}

    def score(
        self, normalizer: Normalizer, group_by: str | None, load_s: float | None, compared: Compared
    ) -> dict[str, Any]:
        """Score the transcribed clips, write ``scores.json``, and return its content.

        ``load_s`` is None if the target was not loaded, because no clip was missing.
        """
        rows = list(self.scored.values())
        scores = score_rows(rows, normalizer, group_by)
        # `fsum` is exact, so the sums do not depend on the order in which processes finish their clips.
        audio_s, time_s = (math.fsum(row[key] for row in self.rows.values()) for key in ("duration", "time"))
        price = self.target.price()
        scores |= {
            "target": self.target.label,
            "set": self.data.name,
            "num_clips": len(self.data.clips),
            "num_failed": len(self.failures),
            "failure_rate": len(self.failures) / len(self.data.clips),
            "failures": [{"id": row["id"], "error": row["error"]} for row in self.failures[:20]],
            "audio_s": audio_s,
            "time_s": time_s,
            "rtfx": audio_s / time_s if time_s else None,
            "load_s": load_s,
            "cost_usd": None if price is None else audio_s / 3600 * price.usd_per_hour,
            "price": None if price is None else {"usd_per_hour": price.usd_per_hour, "source": price.source},
            "dropped": [{"id": drop.id, "reason": drop.reason, "detail": drop.detail} for drop in self.data.dropped],
        }
        if self.data.name in compared:
            state_overlap(scores, compared[self.data.name])
        write_atomically(self.folder / SCORES, json.dumps(scores, indent=1, ensure_ascii=False) + "\n")
        return scores

    def _check_identity(self, identity: dict[str, Any]) -> None:
        path = self.folder / IDENTITY
        self.folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if any((self.folder / name).exists() for name in (HYPOTHESES, OTHERS)):
                raise UserError(
                    f"{self.folder} has hypotheses of unknown origin (it has no {IDENTITY}); give another --output-dir"
                )
            write_atomically(path, json.dumps(identity, indent=1, ensure_ascii=False) + "\n")
            return
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            before = None
        old = before if isinstance(before, dict) else {}
        names = {"target": "another target", "data": "other data"}
        changed = [name for what, name in names.items() if _given(old.get(what)) != _given(identity[what])]
        if changed:
            raise UserError(
                f"{self.folder} has results of {' and '.join(changed)}; give another --output-dir, or "
                f"remove {self.folder}"
            )


def _given(value: Any) -> Any:
    """Remove options that are None, because files from older versions of this package lack newer options."""
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


def _read(path: Path) -> Iterator[Hypothesis]:
    """Yield the complete rows of a file. An incomplete last line is skipped.

    Raises:
        UserError: a line before the last line is not a hypothesis.
    """
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")
    for line_number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
            complete = isinstance(row, dict) and row.keys() >= {"id", "error", "pred_text", "duration", "time", "text"}
        except ValueError:
            complete = False
        if complete:
            yield row
        elif line_number < len(lines):  # an incomplete last line of a killed process has no newline
            raise UserError(f"{path}, line {line_number}: not a hypothesis of an evaluation; give another --output-dir")
