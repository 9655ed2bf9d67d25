"""The whole of ``tiny-audio run``: prepare, train, export, evaluate, report; idempotent and resumable.

A run folder's ``state.json`` says which stage is done under which identity. The same command continues what is
unfinished, redoes only what its identity makes stale, and does nothing where all is done.
"""

from __future__ import annotations

import fcntl
import json
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch

from tiny_audio.analysis.ledger import account
from tiny_audio.analysis.report import render_report
from tiny_audio.config import UserError
from tiny_audio.data.augmentation import sounds_fingerprint
from tiny_audio.data.clips import Clip, ClipSet
from tiny_audio.data.dropped import DroppedLog, read_dropped
from tiny_audio.data.evaluation_clips import evaluation_clips, longest_duration_s
from tiny_audio.evaluation import evaluate_clips
from tiny_audio.export import export_model, load_model
from tiny_audio.export.card import base_licenses, model_card
from tiny_audio.model.model import TinyAudioModel, describe_parts
from tiny_audio.plan.work import Work, work_of
from tiny_audio.pretrained.checkpoints import checkpoint_fingerprint
from tiny_audio.recipe import Recipe, content_hash
from tiny_audio.runtime.device import device_of, set_tf32
from tiny_audio.runtime.files import cache_dir, write_atomically
from tiny_audio.runtime.yaml_file import dump_yaml
from tiny_audio.sources import SOURCES, Dropped, Source, SourceConfig, SourceContext
from tiny_audio.training.assembly import assemble
from tiny_audio.training.checkpoint import latest, load_weights
from tiny_audio.training.host import Host
from tiny_audio.training.initialize import StartingPoint
from tiny_audio.training.ledger import Overhead, added
from tiny_audio.training.loop import Callback, Trainer, summary
from tiny_audio.training.metrics import read_metrics
from tiny_audio.training.precision import set_types
from tiny_audio.training.signals import StopSignal
from tiny_audio.training.spelling import Spelling
from tiny_audio.training.world import World, joined

_PACKAGES = ("tiny-audio", "torch", "torchaudio", "transformers", "peft", "numpy", "jiwer")
_MAX_LISTENABLE_BYTES = 1 << 20


class Run:
    """One execution of a recipe in its own folder.

    Args:
        recipe: what to do.
        name: what the report calls it, such as the recipe file's stem.
        folder: where everything goes; made if missing.
        callback: told about progress.
    """

    def __init__(self, recipe: Recipe, name: str, folder: Path, callback: Callback) -> None:
        self.recipe, self.name, self.folder, self.callback = recipe, name, folder, callback
        self._context = SourceContext(cache_dir())
        self._state: dict[str, Any] = {}

    def complete(self) -> dict[str, Any] | None:
        """Do whatever is not done yet; of several processes, all train, and the first does the rest.

        Returns:
            the report, as in ``report.json``; None in all processes but the first.

        Raises:
            UserError: the folder holds another recipe's run, is in use, or the data is not usable.
            Stopped: a signal came; what was done is saved.
            RunFailed: training diverged.
        """
        device = device_of(self.recipe.execution.device)
        with joined(device) as world, StopSignal() as stop, ExitStack() as held:
            if not world.is_main:
                self.callback = _Silent()
            training = world.broadcast_from_main(lambda: self._open(held))
            # Every process sees the commits of datasets that the first one does.
            datasets = world.broadcast_from_main(lambda: self._context.commits)
            if not world.is_main:
                self._context = SourceContext(cache_dir(), datasets)
            if training is not None:
                self._train(training, stop, world)
            return self._finish() if world.is_main else None

    def _open(self, held: ExitStack) -> dict[str, Any] | None:
        """Take the folder; gives what is known of its training, None where that is done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        held.enter_context(_locked(self.folder / ".lock"))
        self._open_state()
        training: dict[str, Any] = self._state.get("training", {})
        # Without the model, training continues from its last checkpoint, which is its end.
        if training.get("finished") and (self.folder / "model").is_dir():
            return None
        self._check_evaluation()
        return training

    def _finish(self) -> dict[str, Any]:
        self._export()
        stale = [name for name in self.recipe.data.evaluation if not self._is_scored(name)]
        if stale:
            self._evaluate(stale)
        if not self._is_reported():
            self._report()
        report: dict[str, Any] = json.loads((self.folder / "report.json").read_text())
        return report

    def _open_state(self) -> None:
        path = self.folder / "state.json"
        identity = self.recipe.training_identity()
        if path.exists():
            self._state = json.loads(path.read_text())
            differences = sorted(_differences(self._state["recipe"], identity))
            if differences:
                raise UserError(
                    f"{self.folder} holds a run of another recipe; it differs in:\n  "
                    + "\n  ".join(differences[:8])
                    + "\nGive another --output-dir, or delete that folder to start over."
                )
        else:
            # The state is written first, so these are not an earlier run's.
            foreign = [name for name in ("checkpoints", "model", "metrics.jsonl") if (self.folder / name).exists()]
            if foreign:
                raise UserError(
                    f"{self.folder} is no run's folder (it has no state.json), and holds {', '.join(foreign)}, which a "
                    "run would replace; give another --output-dir"
                )
            self._state = {"recipe": identity, "started": _now()}
        # Shared with the sources, which keep to the commits of an earlier start and add what they look up.
        self._context = SourceContext(cache_dir(), self._state.setdefault("datasets", {}))
        resolved = dump_yaml(self.recipe.model_dump(mode="json"))
        self._save_state()
        _write_where_new(self.folder / "recipe.yaml", resolved)

    def _save_state(self) -> None:
        _write_where_new(self.folder / "state.json", json.dumps(self._state, indent=1))

    def _build(self, sources: Mapping[str, SourceConfig]) -> dict[str, Source]:
        return {name: SOURCES.build(config, self._context) for name, config in sources.items()}

    def _training_clips(self) -> ClipSet:
        data = self.recipe.data
        return ClipSet.gather(self._build(data.train), data.min_duration_s, data.max_duration_s, data.target_text)

    def _evaluation_clips(self, name: str) -> ClipSet:
        recipe = self.recipe
        source = SOURCES.build(recipe.data.evaluation[name], self._context)
        return evaluation_clips(
            name,
            source,
            place=f"data.evaluation.{name}",
            encoder=recipe.encoder,
            group_by=recipe.evaluation.group_by,
        )

    def _check_evaluation(self) -> None:
        """Refuse before training what could not be scored after it."""
        self.callback.note("reading the evaluation data; synthetic speech is made now, if it is not in the cache")
        for name in self.recipe.data.evaluation:
            self._evaluation_clips(name)

    def _train(self, known: Mapping[str, Any], stop: StopSignal, world: World) -> None:
        # A branch of the hub may have moved on since the run began; its commit stays.
        recipe = _pinned(self.recipe, known.get("inputs", {}))
        self.callback.note("reading the training data")
        clips = world.main_first(self._training_clips)
        start = world.collective(
            lambda: StartingPoint(recipe.training.init_from) if recipe.training.init_from else None
        )
        inputs, work = world.broadcast_from_main(lambda: self._record(recipe, _inputs(recipe, clips, start)))
        recipe = _pinned(recipe, inputs)
        world.collective(lambda: None if world.is_main else _check_same(inputs, _inputs(recipe, clips, start), world))
        self.callback.note(f"{len(clips.clips)} training clips, {clips.duration_s / 3600:.2f} hours")
        spelling = world.broadcast_from_main(lambda: self._spelling(recipe, clips, start))
        model, tokenizer, target_encoder = world.main_first(lambda: assemble(recipe, clips, start, spelling))
        scores = world.is_main or recipe.execution.parallel == "fsdp"
        monitor = world.main_first(lambda: self._monitor(tokenizer) if scores else None)
        trainer = Trainer(recipe, model, clips, target_encoder, self.folder, stop, self.callback, monitor, work, world)
        progress = trainer.run()
        if not world.is_main:
            return
        beside = self._beside()
        if trainer.is_sharded:
            # Whole again, from the checkpoint of the last step.
            last = latest(self.folder / "checkpoints")
            assert last is not None
            model = assemble(recipe, clips, start, spelling)[0]
            set_types(model, recipe.training.precision, device_of(recipe.execution.device))
            load_weights(last, model)
        done = {"summary": summary(progress), "totals": trainer.ledger.totals(), "parts": describe_parts(model)}
        self._state["training"] |= {**done, "finished": True}
        self._export_from(model, tokenizer, beside)
        self._save_state()

    def _record(self, recipe: Recipe, inputs: dict[str, str | None]) -> tuple[dict[str, str | None], Work | None]:
        """What a run trains on stays what it was, once something is trained; gives that, and what a clip takes."""
        recorded = self._state.setdefault("training", {"inputs": inputs})
        if latest(self.folder / "checkpoints") is None:
            recorded["inputs"] = inputs  # nothing is trained yet, so the data may have been mended
        for what in inputs:
            if recorded["inputs"].get(what) != inputs[what]:
                names = {"data": "set of training clips", "augmentation": "set of sounds for augmentation"}
                name = (names | {"init_from": "init_from"}).get(what, f"{what} checkpoint")
                was = f" ({recorded['inputs'][what]})" if what in ("encoder", "decoder") else ""
                raise UserError(
                    f"{self.folder} was started with another {name}{was}; put that back, or give another --output-dir"
                )
        work = self._work_of_clips(recipe, recorded)
        self._save_state()
        return inputs, work

    def _spelling(self, recipe: Recipe, clips: ClipSet, start: StartingPoint | None) -> Spelling:
        """Of these clips: read once in a run."""
        recorded = self._state["training"]
        known = recorded.get("spelling")
        if known is None or known["data"] != clips.fingerprint:
            known = {"data": clips.fingerprint, **asdict(Spelling.learn(recipe, clips, start))}
            recorded["spelling"] = known
            self._save_state()
        return Spelling(known["tokenizer"], known["characters"])

    def _work_of_clips(self, recipe: Recipe, recorded: dict[str, Any]) -> Work | None:
        """What a clip takes: rehearsed once in a run, before anything is seeded."""
        if "work" not in recorded:
            on_gpu = device_of(recipe.execution.device).type == "cuda"
            try:
                recorded["work"] = asdict(work_of(recipe, "cuda" if on_gpu else "cpu"))
            except (UserError, RuntimeError) as error:  # a part that trains need not run on the meta device
                reason = str(error).splitlines()[0]
                self.callback.note(f"the model cannot be rehearsed, so its FLOPs are not counted: {reason}")
                recorded["work"] = None
        return Work(**recorded["work"]) if recorded["work"] else None

    def _monitor(self, tokenizer: Any) -> Any:
        """Scores the model on a part of one set while it trains."""
        execution = self.recipe.execution
        if execution.evaluate_set is None:
            return None
        name = execution.evaluate_set
        clips = self._evaluation_clips(name).clips
        # Spread over the set, since corpora are often sorted.
        clips = clips[:: -(-len(clips) // execution.evaluate_utterances)]

        def evaluate(model: TinyAudioModel) -> dict[str, Any]:
            scores = self._score(model, tokenizer, clips)[0]
            return {"set": name, "utterances": len(clips), "wer": scores["wer"], "cer": scores["cer"]}

        return evaluate

    def _score(
        self, model: TinyAudioModel, tokenizer: Any, clips: Sequence[Clip]
    ) -> tuple[dict[str, Any], list[dict[str, Any]], list[Dropped]]:
        recipe = self.recipe
        return evaluate_clips(
            model,
            tokenizer,
            clips,
            normalizer_name=recipe.evaluation.normalizer,
            num_bootstrap=recipe.evaluation.num_bootstrap,
            group_by=recipe.evaluation.group_by,
            max_duration_s=longest_duration_s(recipe.encoder),
            max_padded_s=recipe.execution.evaluate_max_padded_s,
        )

    def _beside(self) -> Overhead:
        recipe = self.recipe
        return Overhead(Host.of(device_of(recipe.execution.device), recipe.execution, recipe.training))

    def _export_from(self, model: TinyAudioModel, tokenizer: Any, beside: Overhead) -> None:
        model.config.generation = self.recipe.generation.model_dump(mode="json")
        export_model(model, tokenizer, self.folder / "model")
        self._state["export"] = {"generation": model.config.generation, "took": beside.took()}

    def _export(self) -> None:
        """Generation settings travel with the model: where they changed, it is written again."""
        if self._state["export"]["generation"] != self.recipe.generation.model_dump(mode="json"):
            beside = self._beside()
            self._export_from(*load_model(self.folder / "model", types_as_saved=True), beside)
            self._save_state()

    def _evaluation_identity(self, name: str) -> str:
        # With its path: another file under the same name holds other clips.
        source = self.recipe.data.evaluation[name].model_dump(mode="json")
        return content_hash(self.recipe.evaluation_identity() | {"data": source})

    def _is_scored(self, name: str) -> bool:
        """Under the same settings and, as far as the data is still there, on the same clips."""
        done = self._state.get("evaluation", {}).get(name, {})
        if done.get("identity") != self._evaluation_identity(name):
            return False
        try:
            return bool(done["data"] == self._evaluation_clips(name).fingerprint)
        except UserError:  # gone since then; what was measured stands
            return True

    def _report_identity(self) -> str:
        done = self._state.get("evaluation", {})
        scored = {name: [self._evaluation_identity(name), done[name]["data"]] for name in self.recipe.data.evaluation}
        execution = self.recipe.execution
        prices = [execution.price_per_hour, execution.grid_gco2_per_kwh]
        return content_hash([scored, self.recipe.generation.model_dump(mode="json"), prices])

    def _is_reported(self) -> bool:
        files = (self.folder / "report.json", self.folder / "report.html", self.folder / "model" / "README.md")
        return self._state.get("report") == self._report_identity() and all(file.exists() for file in files)

    def _evaluate(self, names: list[str]) -> None:
        beside = self._beside()
        half = self.recipe.training.precision == "bf16"
        # No wider than it was trained: what fitted the GPU then, fits now.
        model, tokenizer = load_model(self.folder / "model", types_as_saved=half)
        device = device_of(self.recipe.execution.device)
        model.to(device)
        set_tf32(self.recipe.training.tf32)
        (self.folder / "evaluation").mkdir(exist_ok=True)
        for name in names:
            gathered = self._evaluation_clips(name)
            left_out = f", {len(gathered.dropped)} left out" if gathered.dropped else ""
            self.callback.note(f"scoring {name}: {len(gathered.clips)} utterances{left_out}")
            with torch.autocast(device.type, torch.bfloat16, enabled=half):  # the arithmetic that it was trained in
                scores, hypotheses, dropped = self._score(model, tokenizer, gathered.clips)
            DroppedLog(self.folder / "dropped.jsonl").add([*gathered.dropped, *dropped])
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in hypotheses)
            write_atomically(self.folder / "evaluation" / f"{name}.jsonl", lines)
            scores["dropped"] = len(gathered.dropped) + len(dropped)
            self._state.setdefault("evaluation", {})[name] = {
                "identity": self._evaluation_identity(name),
                "data": gathered.fingerprint,
                "scores": scores,
                "took": beside.took(),
            }
            self._save_state()
            low, high = scores["wer_interval"]
            self.callback.note(f"{name}: WER {scores['wer']:.2%} (95 % interval {low:.2%} to {high:.2%})")

    def _report(self) -> None:
        recipe, training = self.recipe, self._state["training"]
        scored = [self._state["evaluation"][name] for name in recipe.data.evaluation]
        asides = [done["took"] for done in [self._state["export"], *scored] if "took" in done]
        totals = added(training["totals"], asides)
        report = {
            "run_id": recipe.run_id(),
            "name": self.name,
            "parameters": {row["part"]: {k: row[k] for k in ("total", "trainable")} for row in training["parts"]},
            "parts": training["parts"],
            "training": training["summary"],
            "ledger": account(totals, recipe.execution.price_per_hour, recipe.execution.grid_gco2_per_kwh),
            "evaluation": {name: self._state["evaluation"][name]["scores"] for name in recipe.data.evaluation},
            "dropped": dict(Counter(drop.reason for drop in read_dropped(self.folder / "dropped.jsonl"))),
            "provenance": self._provenance(),
            "recipe": recipe.model_dump(mode="json"),
        }
        hypotheses = {
            name: [json.loads(line) for line in text.split("\n") if line]
            for name in recipe.data.evaluation
            for text in [(self.folder / "evaluation" / f"{name}.jsonl").read_text()]
        }
        sources = self._build(recipe.data.evaluation)
        clips: dict[str, Clip] = {}

        def read_audio(row: Mapping[str, Any]) -> bytes | None:
            name = row["id"].split("/")[0]
            if not clips.keys() & {row["id"]}:
                clips.update({clip.id: clip for clip in self._evaluation_clips(name).clips})
            clip = clips.get(row["id"])
            audio = sources[name].encoded(clip.utterance) if clip else None
            content = audio.read_bytes() if isinstance(audio, Path) else audio
            return content if content and len(content) <= _MAX_LISTENABLE_BYTES else None

        page = render_report(report, read_metrics(self.folder / "metrics.jsonl"), hypotheses, read_audio)
        card = model_card(report, base_licenses(report["recipe"]))
        write_atomically(self.folder / "report.html", page)
        write_atomically(self.folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False))
        write_atomically(self.folder / "model" / "README.md", card)
        self._state["report"] = self._report_identity()
        self._save_state()

    def _provenance(self) -> dict[str, Any]:
        training = self._state["training"]
        return {
            "command": " ".join(["tiny-audio", *sys.argv[1:]]),
            "started": self._state["started"],
            "finished": _now(),
            "git_commit": _git_commit(),
            "seed": self.recipe.training.seed,
            "training_data": training["inputs"]["data"],
            "augmentation_sounds": training["inputs"].get("augmentation"),
            "init_from": training["inputs"]["init_from"],
            "encoder_checkpoint": training["inputs"]["encoder"],
            "decoder_checkpoint": training["inputs"]["decoder"],
            "evaluation_data": {name: done["data"] for name, done in self._state.get("evaluation", {}).items()},
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}",
            "device": str(device_of(self.recipe.execution.device)),
            "threads": torch.get_num_threads(),
            **{package: version(package) for package in _PACKAGES},
        }


def _inputs(recipe: Recipe, clips: ClipSet, start: StartingPoint | None) -> dict[str, str | None]:
    """Hashes and commits of all that training starts from."""
    return {
        "data": clips.fingerprint,
        "augmentation": sounds_fingerprint(recipe.augmentation),
        "init_from": start.fingerprint() if start else None,
        "encoder": checkpoint_fingerprint(recipe.encoder),
        "decoder": checkpoint_fingerprint(recipe.decoder),
    }


def _check_same(inputs: Mapping[str, str | None], own: Mapping[str, str | None], world: World) -> None:
    """Refuse processes that would train on different things.

    Raises:
        UserError: names the first difference.
    """
    for what in inputs:
        if own[what] != inputs[what]:
            raise UserError(
                f"process {world.rank} has another {what} ({own[what]}) than the first one ({inputs[what]}); give all "
                "machines the same files"
            )


class _Silent:
    """Of several processes, the first alone speaks."""

    def step(self, step: int, values: dict[str, Any]) -> None:
        """Nothing."""

    def note(self, message: str) -> None:
        """Nothing."""


def _pinned(recipe: Recipe, inputs: Mapping[str, str | None]) -> Recipe:
    """The recipe with checkpoints of the hub at the commits in ``inputs``."""
    parts: dict[str, Any] = {}
    for kind, part in (("encoder", recipe.encoder), ("decoder", recipe.decoder)):
        commit = inputs.get(kind)
        if commit is not None and not Path(part.pretrained).is_dir():
            parts[kind] = part.model_copy(update={"revision": commit})
    return recipe.model_copy(update=parts)


@contextmanager
def _locked(path: Path) -> Iterator[IO[str]]:
    """Hold a run folder for this process; the lock goes with the process, however it ends."""
    with path.open("a") as file:
        try:
            # Not flock, which the loader's processes would inherit, and hold for as long as they outlive a kill.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{path.parent} is in use by another run; wait for it, stop it, or give another --output-dir"
            ) from None
        yield file


def _write_where_new(path: Path, text: str) -> None:
    """As :func:`write_atomically`, and leave a file alone that says so already."""
    if not path.exists() or path.read_text() != text:
        write_atomically(path, text)


def _differences(recorded: Any, wanted: Any, place: str = "") -> Iterator[str]:
    if isinstance(recorded, dict) and isinstance(wanted, dict):
        for key in recorded.keys() | wanted.keys():
            below = f"{place}.{key}" if place else str(key)
            yield from _differences(recorded.get(key), wanted.get(key), below)
    elif recorded != wanted:
        yield f"{place}: {json.dumps(recorded)} there, {json.dumps(wanted)} here"


def _git_commit() -> str | None:
    """Commit of the code that runs, where it runs from a checkout."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
