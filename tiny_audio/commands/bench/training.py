"""Trained benchmark: train projector variants with several seeds, and compare their error rates.

All variants have the same training budget. Their recipes differ only in the projector. With the same seed, all variants
get the training clips in the same order.

A unit is one variant with one seed. The name of a unit's result folder is a hash of everything that affects the result.
A unit whose folder exists is not trained again, so the same command continues an interrupted benchmark.
"""

from __future__ import annotations

import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tiny_audio import __version__
from tiny_audio.analysis.report import render_benchmark
from tiny_audio.analysis.scoring import normalizer
from tiny_audio.analysis.warnings import Comparison, state_overlap
from tiny_audio.commands.bench.analysis import AGAIN, DEGRADED, Control, Outcome, Scoring, analyze
from tiny_audio.commands.bench.features import FeatureCache, check_cacheable
from tiny_audio.commands.bench.units import BenchmarkClips, CachedClips, WaveformClips, decode, train
from tiny_audio.commands.bench.variants import Variant, Variants
from tiny_audio.commands.run.context import RunClips
from tiny_audio.commands.run.state import now
from tiny_audio.commands.run.train import training_inputs
from tiny_audio.config import RunFailed, UserError
from tiny_audio.data.clips import ClipSet
from tiny_audio.data.dropped import check_dropped
from tiny_audio.evaluation.hypotheses import Hypothesis, read_rows, write_rows
from tiny_audio.recipe import Recipe, content_hash, load_recipe
from tiny_audio.recipe.limits import ContextLimits
from tiny_audio.registry import did_you_mean
from tiny_audio.runtime.device import device_name, device_of
from tiny_audio.runtime.files import cache_dir, new_folder, write_atomically
from tiny_audio.training.assembly import assemble
from tiny_audio.training.initialize import StartingPoint
from tiny_audio.training.loop import Budget, Diverged
from tiny_audio.training.precision import place
from tiny_audio.training.real_checkpoints import with_limits
from tiny_audio.training.signals import StopSignal

MIN_SEEDS = 2
"""Minimum number of seeds. With one seed, the variation between seeds is unknown."""


@dataclass(frozen=True)
class Plan:
    """Settings of a trained benchmark."""

    recipe_path: Path
    overrides: tuple[str, ...]
    variants: Variants
    seeds: tuple[int, ...]
    budget: Budget | None = None
    """Budget of each unit. If None, the recipe's number of steps is used."""
    baseline: str | None = None
    """Label of the variant that the others are compared with. Default: the recipe's projector if it is a variant, else
    the first variant."""
    controls: bool = False
    """Also train the controls: the baseline with other seeds, and the variants that are degraded on purpose."""
    cached: bool = True
    """Compute the encoder's frames once, and train all units on these cached frames."""
    without_decoder: bool = False
    """Train with the alignment loss alone. The hypotheses are the tokens that are most similar to the audio
    embeddings."""


@dataclass(frozen=True)
class _Unit:
    variant: Variant
    control: Control | None
    seed: int
    recipe: Recipe


class TrainedBenchmark:
    """Runs a trained benchmark in its own folder.

    Args:
        plan: the settings.
        folder: folder for units, ``results.json`` and ``results.html``.
        note: receives progress messages.

    Raises:
        UserError: a setting is not valid, the recipe has a setting that a benchmark does not support, or a variant does
            not fit the recipe.
    """

    def __init__(self, plan: Plan, folder: Path, note: Callable[[str], None]) -> None:
        self.plan, self.folder, self.note = plan, folder, note
        labels = [variant.label for variant in plan.variants.compared]
        if len(set(plan.seeds)) < max(MIN_SEEDS, len(plan.seeds)):
            given = ",".join(map(str, plan.seeds)) or "(none)"
            raise UserError(
                f"--seeds {given}: at least {MIN_SEEDS} seeds, all different, are needed to measure the variation "
                "between seeds; give seeds such as --seeds 0,1,2"
            )
        if plan.baseline is not None and plan.baseline not in labels:
            raise UserError(f"--baseline: there is no variant {plan.baseline!r}; {did_you_mean(plan.baseline, labels)}")
        if plan.controls and not plan.variants.controls:
            raise UserError(
                "--controls: there is no degraded control; give --variants a YAML file with a section `controls`"
            )
        if len(labels) + len(plan.variants.controls) * plan.controls < 2:
            raise UserError("--variants: a comparison needs at least two variants; add one")
        own = self._load({}).projector.name
        self.baseline = plan.baseline or (own if own in labels else labels[0])
        self.units = self._units()
        self.recipe = self.units[0].recipe
        if plan.cached:
            check_cacheable(self.recipe)
        for option in ("compile", "fused_cross_entropy"):
            if getattr(self.recipe.execution, option):
                raise UserError(f"execution.{option}: a benchmark trains without it; set it to false")
        if plan.without_decoder and not plan.cached:
            raise UserError("--without-decoder and --no-feature-cache exclude each other; remove one of the two")
        if self.recipe.prompt.context is not None:
            raise UserError("prompt.context: a benchmark trains without context; remove prompt.context")
        if not self.recipe.data.evaluation:
            raise UserError(
                f"{plan.recipe_path}: data.evaluation is empty, so the variants cannot be compared; add an evaluation "
                "set"
            )

    def _load(self, changes: Mapping[str, Any]) -> Recipe:
        """Load the recipe with ``changes`` and the budget's number of steps.

        A benchmark scores the weights of the last step. Therefore, evaluation during training is off, and so are the
        settings that would choose or average the weights of earlier steps.
        """
        steps = self.plan.budget.steps if self.plan.budget else None
        fixed: dict[str, Any] = {} if steps is None else {"training.steps": steps}
        fixed |= {"execution.evaluate_every": None, "execution.evaluate_set": None}
        fixed |= {"training.keep_best": None, "training.average_last": None}
        if self.plan.without_decoder:
            fixed |= {"alignment.alone_steps": None}  # has no effect here, because no step runs the decoder
        return load_recipe(self.plan.recipe_path, self.plan.overrides, {**fixed, **changes})

    def _units(self) -> list[_Unit]:
        """Return all units, ordered by seed, so that every variant gets its first result early."""
        plan, compared = self.plan, self.plan.variants.compared
        chosen: list[tuple[Variant, Control | None, Sequence[int]]] = [
            (variant, None, plan.seeds) for variant in compared
        ]
        if plan.controls:
            base = next(variant for variant in compared if variant.label == self.baseline)
            others = range(max(plan.seeds) + 1, max(plan.seeds) + 1 + len(plan.seeds))
            chosen.append((Variant(f"{base.label}, other seeds", base.section), AGAIN, others))
            chosen += [(variant, DEGRADED, plan.seeds) for variant in plan.variants.controls]
        units, errors = [], []
        for index in range(len(plan.seeds)):
            for variant, control, seeds in chosen:
                changes = {"projector": variant.section, "training.seed": seeds[index]}
                try:
                    units.append(_Unit(variant, control, seeds[index], self._load(changes)))
                except UserError as error:
                    errors.append(f"variant {variant.label}: {error}")
        if errors:
            raise UserError("\n".join(dict.fromkeys(errors)))  # most errors are the same for every seed
        return units

    @property
    def budget(self) -> Budget:
        """Training budget of each unit."""
        return self.plan.budget or Budget(steps=self.recipe.training.steps)

    def complete(self) -> dict[str, Any]:
        """Train the unfinished units, compare all units, and write ``results.json`` and ``results.html``.

        Returns:
            the content of ``results.json``.

        Raises:
            UserError: the data or a checkpoint is not usable, or the cached frames do not fit on the disk.
            RunFailed: a unit diverged, a GPU ran out of memory, or no training clip can be used.
            Stopped: a signal arrived. Finished units are kept.
        """
        with StopSignal():
            self.folder.mkdir(parents=True, exist_ok=True)
            waiting = [unit for unit in self.units if not self._folder(unit).exists()]
            if len(waiting) < len(self.units):
                self.note(f"{len(self.units) - len(waiting)} of {len(self.units)} units are done already")
            spent: list[float] = []
            for index, unit in enumerate(waiting, start=1):
                started = time.monotonic()
                rates = self._train(unit)
                spent.append(time.monotonic() - started)
                left_s = statistics.mean(spent) * (len(waiting) - index)
                left = f", about {left_s / 60:.0f} min left" if left_s else ""
                name = f"{unit.variant.label}, seed {unit.seed}"
                self.note(f"[{index}/{len(waiting)}] {name}: WER {rates} ({spent[-1]:.0f} s{left})")
            return self._write()

    @cached_property
    def _longest_evaluation_s(self) -> float:
        return ContextLimits(with_limits(self.recipe)).longest_evaluation_s

    @cached_property
    def _clips(self) -> RunClips:
        return RunClips(self.recipe, {}, self._longest_evaluation_s)

    @cached_property
    def _train_clips(self) -> ClipSet:
        clips = self._clips.training()
        check_dropped(clips.dropped, clips.num_inside, self.recipe.data.max_dropped_share)
        return clips

    @cached_property
    def _scored(self) -> dict[str, tuple[ClipSet, Comparison | None]]:
        """For each evaluation set, the clips to score, and how the set overlaps the training data."""
        self.note("comparing the evaluation sets with the training data")
        return {name: self._clips.scored(name) for name in self.recipe.data.evaluation}

    @property
    def _evaluation_clips(self) -> dict[str, ClipSet]:
        return {name: clips for name, (clips, _) in self._scored.items()}

    @cached_property
    def _start(self) -> StartingPoint | None:
        return StartingPoint.of(self.recipe)

    @cached_property
    def _inputs(self) -> dict[str, Any]:
        """Everything that affects the result of a unit, except its recipe."""
        inputs = asdict(training_inputs(self.recipe, self._train_clips, self._start))
        inputs.pop("selection")  # the evaluation set of training.keep_best, which a benchmark does not use
        return {
            "train": inputs.pop("data"),
            **inputs,
            "evaluation": {name: clips.fingerprint for name, clips in self._evaluation_clips.items()},
            # Older versions applied the duration bounds of training to evaluation. This key changes the names of the
            # result folders, so that results of older versions are not used again.
            "max_duration_s": dict.fromkeys(self._evaluation_clips, self._longest_evaluation_s),
            "budget": asdict(self.budget),
            "cached": self.plan.cached,
            **({"without_decoder": True} if self.plan.without_decoder else {}),
        }

    def _folder(self, unit: _Unit) -> Path:
        identity = unit.recipe.training_identity() | {"then": unit.recipe.evaluation_identity()}
        return self.folder / "units" / content_hash([identity, self._inputs])[:16]

    @cached_property
    def _device(self) -> torch.device:
        return device_of(self.recipe.execution.device)

    @cached_property
    def _unit_clips(self) -> BenchmarkClips:
        if not self.plan.cached:
            return WaveformClips(self._train_clips, self._evaluation_clips)
        model, _, _ = assemble(self.recipe, self._train_clips, self._start)
        place(model, self.recipe, self._device)
        cache = FeatureCache(model, self.recipe, cache_dir() / "features", self.note)
        evaluation = {name: cache.get(clips) for name, clips in self._evaluation_clips.items()}
        return CachedClips(cache.get(self._train_clips), evaluation, self.plan.without_decoder)

    def _train(self, unit: _Unit) -> str:
        """Train and decode a unit, store its result, and return its word error rates as text."""
        recipe, clips = unit.recipe, self._unit_clips
        model, tokenizer, target_encoder = assemble(recipe, self._train_clips, self._start)
        clips.prepare(model)
        place(model, recipe, self._device)
        try:
            epochs = clips.epochs(model, recipe, target_encoder)
            trained = train(model, recipe, epochs, self.budget, self.plan.without_decoder)
        except Diverged as error:
            name = f"variant {unit.variant.label}, seed {unit.seed}"
            raise RunFailed(f"{name}: {error}, or leave this variant out") from error
        except RunFailed as error:
            raise RunFailed(f"variant {unit.variant.label}, seed {unit.seed}: {error}") from error
        hypotheses, embeddings_per_s = decode(model, recipe, tokenizer, clips, list(recipe.data.evaluation))
        result = {
            "label": unit.variant.label,
            "section": dict(unit.variant.section),
            "seed": unit.seed,
            "parameters": sum(tensor.numel() for tensor in model.projector.parameters()),
            "trainable": sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad),
            "embeddings_per_s": embeddings_per_s,
            "steps": trained.steps,
            "train_s": trained.wall_s,
            "skipped_steps": trained.skipped_steps,
            "curve": trained.curve,
            "finished": now(),
        }
        self._keep(unit, result, hypotheses)
        rule = normalizer(recipe.evaluation.normalizer)
        outcome = Outcome(unit.variant.label, {}, None, [result], [hypotheses])
        scored = analyze([outcome], unit.variant.label, Scoring(rule, recipe.evaluation.group_by, num_draws=100))
        found = {name: rates.wer for (_, name), rates in scored.rates.items()}
        return ", ".join(f"{name} {'none' if wer is None else f'{wer:.1%}'}" for name, wer in found.items())

    def _keep(self, unit: _Unit, result: dict[str, Any], hypotheses: Mapping[str, Sequence[Hypothesis]]) -> None:
        with new_folder(self._folder(unit)) as aside:
            for name, rows in hypotheses.items():
                write_rows(aside / f"{name}.jsonl", rows)
            (aside / "result.json").write_text(json.dumps(result, indent=1))

    def _read(self, unit: _Unit) -> tuple[dict[str, Any], dict[str, list[Hypothesis]]]:
        folder = self._folder(unit)
        hypotheses = {name: read_rows(folder / f"{name}.jsonl") for name in unit.recipe.data.evaluation}
        return json.loads((folder / "result.json").read_text()), hypotheses

    def _write(self) -> dict[str, Any]:
        outcomes = []
        for label in dict.fromkeys(unit.variant.label for unit in self.units):
            mine = [unit for unit in self.units if unit.variant.label == label]
            results, hypotheses = zip(*(self._read(unit) for unit in mine), strict=True)
            outcomes.append(Outcome(label, mine[0].variant.section, mine[0].control, results, hypotheses))
        settings = self.recipe.evaluation
        rule = normalizer(settings.normalizer)
        analysis = analyze(outcomes, self.baseline, Scoring(rule, settings.group_by))
        sets: dict[str, dict[str, Any]] = {name: {} for name in self._scored}
        for name, (_, comparison) in self._scored.items():
            state_overlap(sets[name], comparison)
        report = {
            "command": shlex.join(["tiny-audio", *sys.argv[1:]]),
            "date": now(),
            "recipe_path": str(self.plan.recipe_path),
            "baseline": self.baseline,
            "seeds": list(self.plan.seeds),
            "budget": asdict(self.budget),
            "cached": self.plan.cached,
            "without_decoder": self.plan.without_decoder,
            "inputs": self._inputs,
            "normalizer": {"name": rule.name, "version": rule.version},
            "machine": f"{platform.system()} {platform.machine()}",
            "device": device_name(self._device),
            "threads": torch.get_num_threads(),
            "versions": {"tiny-audio": __version__, "torch": torch.__version__, "python": platform.python_version()},
            **analysis.to_json(),
            "sets": sets,
            "recipe": self.recipe.model_dump(mode="json"),
        }
        # Parse the text again, so that returned values have the types of JSON, such as lists instead of tuples.
        text = json.dumps(report, indent=1, ensure_ascii=False)
        write_atomically(self.folder / "results.json", text)
        written: dict[str, Any] = json.loads(text)
        write_atomically(self.folder / "results.html", render_benchmark(written))
        return written
