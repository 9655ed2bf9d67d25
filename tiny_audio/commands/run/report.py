"""The report stage: write ``report.json``, ``report.html`` and the model card from the records of the run."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Mapping
from typing import Any

import torch

from tiny_audio.analysis.decoder_gain import decoder_gains
from tiny_audio.analysis.ledger import account
from tiny_audio.analysis.report import render_report
from tiny_audio.analysis.report.audio import audio_reader
from tiny_audio.commands._commit import git_commit
from tiny_audio.commands.run.context import RunContext
from tiny_audio.commands.run.encoder_systems import read_systems, recorded
from tiny_audio.commands.run.state import now
from tiny_audio.config import UserError
from tiny_audio.data.dropped import count_reasons
from tiny_audio.evaluation.hypotheses import Hypothesis, read_rows
from tiny_audio.export.card import base_licenses, model_card
from tiny_audio.recipe import content_hash
from tiny_audio.runtime.device import device_of
from tiny_audio.runtime.files import write_atomically
from tiny_audio.runtime.requirements import installed_version
from tiny_audio.sources import AudioAddress
from tiny_audio.training.ledger import with_overhead
from tiny_audio.training.metrics import read_metrics

_PACKAGES = ("tiny-audio", "torch", "torchaudio", "transformers", "peft", "bitsandbytes", "numpy", "jiwer")


class ReportStage:
    """Writes the report."""

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self._paths = {
            "json": run.folder / "report.json",
            "html": run.folder / "report.html",
            "card": run.model_folder / "README.md",
        }
        self._clips: dict[str, dict[str, AudioAddress | None]] = {}

    def identity(self) -> str:
        """Return a hash of the settings and data that affect the report."""
        recipe, done = self._run.recipe, self._run.state.evaluation
        scored: Any = {name: [done[name].identity, done[name].data] for name in recipe.data.evaluation}
        systems = {name: found.identity for name, found in recorded(self._run).items()}
        # `systems` are recognizers that use the encoder but not the decoder. Older versions recorded none. Leave an
        # empty dict out, so that the hashes of reports from older versions stay valid.
        scored = [scored, systems] if systems else scored
        prices = [recipe.execution.price_per_hour, recipe.execution.grid_gco2_per_kwh]
        return content_hash([scored, recipe.generation.model_dump(mode="json"), prices])

    def is_done(self) -> bool:
        """Return whether all files exist, and have been written with the current settings and data."""
        return self._run.state.report == self.identity() and all(path.exists() for path in self._paths.values())

    def run(self) -> None:
        """Write the JSON report, the HTML report and the model card."""
        run, report = self._run, self._report()
        metrics = read_metrics(run.folder / "metrics.jsonl")
        page = render_report(report, metrics, self._hypotheses(), audio_reader([], self._locate))
        card = model_card(report, base_licenses(report["recipe"]))
        write_atomically(self._paths["html"], page)
        write_atomically(self._paths["json"], json.dumps(report, indent=1, ensure_ascii=False))
        write_atomically(self._paths["card"], card)
        run.state.report = self.identity()
        run.save()

    def read(self) -> dict[str, Any]:
        """Return the content of ``report.json``."""
        report: dict[str, Any] = json.loads(self._paths["json"].read_text(encoding="utf-8"))
        return report

    def _report(self) -> dict[str, Any]:
        run, recipe = self._run, self._run.recipe
        training = run.state.training
        assert training is not None
        scored = {name: run.state.evaluation[name] for name in recipe.data.evaluation}
        gains = decoder_gains(read_systems(run), self._hypotheses(), recipe.evaluation.group_by)
        stages = [run.state.export, *scored.values(), *recorded(run).values()]
        totals = with_overhead(training.totals, [stage.took for stage in stages if stage is not None and stage.took])
        return {
            "run_id": recipe.run_id(),
            "name": run.name,
            "parameters": {row["part"]: {k: row[k] for k in ("total", "trainable")} for row in training.parts},
            "parts": training.parts,
            "training": training.summary | {"clip_durations": training.config_durations},
            "ledger": account(totals, recipe.execution.price_per_hour, recipe.execution.grid_gco2_per_kwh),
            "evaluation": {name: done.scores for name, done in scored.items()},
            "decoder_gain": [gain.to_json() for gain in gains],
            "dropped": count_reasons(run.folder / "dropped.jsonl", recipe.data.train | recipe.data.evaluation),
            "provenance": self._provenance(),
            "recipe": recipe.model_dump(mode="json"),
        }

    def _locate(self, row: Mapping[str, Any]) -> AudioAddress | None:
        """Return the audio address of a row's clip, or None if the clip is not found.

        The clip is found by its id. In hypotheses of older versions, ``audio_filepath`` may not be an address.
        """
        name = row["id"].split("/")[0]
        try:
            if name not in self._clips:
                found = self._run.clips.unchecked_evaluation(name).clips
                self._clips[name] = {clip.id: clip.utterance.audio for clip in found}
        except UserError:  # the data can no longer be read
            self._clips[name] = {}
        return self._clips[name].get(row["id"])

    def _hypotheses(self) -> dict[str, list[Hypothesis]]:
        return {
            name: read_rows(self._run.folder / "evaluation" / f"{name}.jsonl")
            for name in self._run.recipe.data.evaluation
        }

    def _provenance(self) -> dict[str, Any]:
        run, recipe = self._run, self._run.recipe
        assert run.state.training is not None
        inputs = run.state.training.inputs
        return {
            "command": shlex.join(["tiny-audio", *sys.argv[1:]]),
            "started": run.state.started,
            "finished": now(),
            "git_commit": git_commit(),
            "seed": recipe.training.seed,
            "training_data": inputs.data,
            "augmentation_sounds": inputs.augmentation,
            "init_from": inputs.init_from,
            "encoder_checkpoint": inputs.encoder,
            "decoder_checkpoint": inputs.decoder,
            "evaluation_data": {name: run.state.evaluation[name].data for name in recipe.data.evaluation},
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}",
            "device": str(device_of(recipe.execution.device)),
            "threads": torch.get_num_threads(),
            **{package: found for package in _PACKAGES if (found := installed_version(package))},
        }
