"""The training stage: train the recipe's model, and export it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from tiny_audio.analysis.audio_bits import BITS
from tiny_audio.commands.run.context import RunContext
from tiny_audio.commands.run.evaluate import score
from tiny_audio.commands.run.export import ExportStage
from tiny_audio.commands.run.state import LearnedVocabulary, TrainingInputs, TrainingState, write_if_changed
from tiny_audio.config import UserError, first_line
from tiny_audio.data.augmentation import sounds_fingerprint
from tiny_audio.data.clips import ClipSet
from tiny_audio.evaluation.audio_bits import spread
from tiny_audio.model.clip_durations import ClipDurations
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.model.parts_table import describe_parts
from tiny_audio.plan.work import Work, work_of
from tiny_audio.pretrained.identity import checkpoint_identity
from tiny_audio.recipe import Recipe, load_recipe
from tiny_audio.runtime.device import device_of
from tiny_audio.runtime.world import World
from tiny_audio.runtime.yaml_file import dump_yaml
from tiny_audio.training.assembly import assemble
from tiny_audio.training.checkpoint import has_any, read_weights, set_weights
from tiny_audio.training.final_weights import check_metric
from tiny_audio.training.initialize import StartingPoint
from tiny_audio.training.precision import set_types
from tiny_audio.training.progress import summary
from tiny_audio.training.signals import StopSignal
from tiny_audio.training.trainer import Trainer
from tiny_audio.training.transcript_vocabulary import TranscriptVocabulary

_INPUT_NAMES = {
    "data": "set of training clips",
    "augmentation": "set of sounds for augmentation",
    "init_from": "checkpoint of training.init_from",
    "encoder": "encoder checkpoint",
    "decoder": "decoder checkpoint",
    "selection": "evaluation set for training.keep_best",
}


_MONITORED = ("wer", "cer", *BITS)
"""The scores that an evaluation during training writes to ``metrics.jsonl``, in addition to the metric of
``training.keep_best``."""


class TrainStage:
    """Trains in all processes. The main process also records the state and exports the model.

    ``state.json`` records the recipe's :meth:`~tiny_audio.recipe.Recipe.training_identity` and the
    :class:`TrainingInputs`. :mod:`tiny_audio.commands.run.prepare` checks the identity. If the inputs have changed and
    a checkpoint exists, this stage raises an error.
    """

    def __init__(self, run: RunContext, stop: StopSignal, world: World) -> None:
        self._run, self._stop, self._world = run, stop, world

    def is_done(self) -> bool:
        """Return whether training is finished and the model is exported.

        If only the export is missing, :meth:`run` exports the final weights without training again.
        """
        training = self._run.state.training
        return training is not None and training.finished and self._run.model_folder.is_dir()

    def write_recipe(self) -> None:
        """Write the resolved recipe to the run folder.

        If training is finished and ``data.train`` has changed, first check that the clips are the same. The identity of
        a run does not contain local paths, so a recipe with the same identity may read a different manifest. If
        ``data.train`` is unchanged, the clips are not read, because the data of a finished run may no longer exist.

        If training continues from a checkpoint, nothing is written here. In this case, :meth:`run` writes the recipe
        after it has checked the inputs.

        Raises:
            UserError: the clips differ from those of the finished run, or the clips or the run's recipe cannot be read.
        """
        run, path = self._run, self._run.folder / "recipe.yaml"
        if not self.is_done() and has_any(run.folder / "checkpoints"):
            return
        if self.is_done() and path.is_file() and load_recipe(path).data.train != run.recipe.data.train:
            assert run.state.training is not None
            if _data_fingerprint(run.recipe, run.clips.training()) != run.state.training.inputs.data:
                raise UserError(
                    f"{run.folder} was trained with a different {_INPUT_NAMES['data']}; give a different --output-dir, "
                    "or delete that folder to train again"
                )
        self._write_recipe()

    def _write_recipe(self) -> None:
        write_if_changed(self._run.folder / "recipe.yaml", dump_yaml(self._run.recipe.model_dump(mode="json")))

    def run(self) -> None:
        """Train to the end.

        Raises:
            UserError: the data cannot be used, or the inputs differ from those that the run started with. Or a GPU ran
                out of memory, and all earlier steps are saved.
            Stopped: a signal arrived. After the first signal, the last step is saved.
            RunFailed: training diverged. Or a GPU ran out of memory, and the last steps could not be saved.
        """
        run, world = self._run, self._world
        recorded = run.state.training
        # Use each hub checkpoint at the same commit as at the start of the run, even if its branch now has a newer one.
        recipe = pinned(run.recipe, recorded.inputs) if recorded else run.recipe
        run.callback.note("reading the training data")
        clips = world.main_first(run.clips.training)
        start = world.collective(lambda: StartingPoint.of(recipe))
        inputs, work = world.broadcast_from_main(
            lambda: self._record(recipe, self._inputs(recipe, clips, start), clips)
        )
        recipe = pinned(recipe, inputs)
        world.collective(
            lambda: None if world.is_main else _check_same(inputs, training_inputs(recipe, clips, start), world)
        )
        run.callback.note(f"{len(clips.clips)} training clips, {clips.duration_s / 3600:.2f} hours")
        world.broadcast_from_main(self._note_overlaps)
        vocabulary = world.broadcast_from_main(lambda: self._vocabulary(recipe, clips, start))
        model, tokenizer, target_encoder = world.main_first(lambda: assemble(recipe, clips, start, vocabulary))
        # A sharded model can run only in all processes together, so all of them score it.
        scores = world.is_main or recipe.execution.parallel == "fsdp"
        monitor = world.main_first(lambda: self._monitor(tokenizer) if scores else None)
        if recipe.execution.parallel == "fsdp" and recipe.execution.evaluate_set is not None:
            self._check_evaluation_set(recipe.execution.evaluate_set)
        trainer = Trainer(
            recipe, model, clips, target_encoder, run.folder, self._stop, run.callback, monitor, work, world
        )
        progress = trainer.run()
        if not world.is_main:
            return
        overhead = run.overhead()
        if trainer.is_sharded:
            model = self._whole_model(recipe, clips, start, vocabulary, trainer.final.steps)
        training = run.state.training
        assert training is not None
        model.config.clip_durations = training.config_durations
        training.summary = summary(progress) | trainer.final.as_json()
        training.totals = trainer.ledger.totals()
        training.parts, training.finished = describe_parts(model), True
        ExportStage(run).export(model, tokenizer, overhead)

    def _check_evaluation_set(self, name: str) -> None:
        """Check that all processes score the same clips. Otherwise, they would wait for each other without end."""
        own = self._run.clips.evaluation(name).fingerprint
        first = self._world.broadcast_from_main(lambda: own)
        self._world.collective(lambda: _check_equal(f"evaluation set {name!r}", own, first, self._world))

    def _whole_model(
        self,
        recipe: Recipe,
        clips: ClipSet,
        start: StartingPoint | None,
        vocabulary: TranscriptVocabulary,
        steps: Sequence[int],
    ) -> TinyAudioModel:
        """Return the unsharded trained model. Its weights are read from the checkpoints of the steps ``steps``."""
        folder = self._run.folder / "checkpoints"
        model = assemble(recipe, clips, start, vocabulary)[0]
        set_types(model, recipe.training.precision, device_of(recipe.execution.device))
        set_weights(model, lambda: read_weights(folder, steps, model), World())
        return model

    def _inputs(self, recipe: Recipe, clips: ClipSet, start: StartingPoint | None) -> TrainingInputs:
        """Return the inputs of training, including the evaluation set of ``training.keep_best``."""
        best = recipe.training.keep_best
        selection = self._run.clips.evaluation(best.set).fingerprint if best else None
        return replace(training_inputs(recipe, clips, start), selection=selection)

    def _record(self, recipe: Recipe, inputs: TrainingInputs, clips: ClipSet) -> tuple[TrainingInputs, Work | None]:
        """Record the inputs, or check that they equal the recorded inputs.

        Also record the durations of the clips and the formulas for their FLOPs. Return the inputs and the formulas.
        """
        run = self._run
        recorded = run.state.training
        if recorded is None or (recorded.inputs != inputs and not has_any(run.folder / "checkpoints")):
            # As long as no step is saved, the inputs may change. The new state has no results of the old inputs.
            recorded = run.state.training = TrainingState(inputs)
        for key, name in _INPUT_NAMES.items():
            before, after = getattr(recorded.inputs, key), getattr(inputs, key)
            if before != after:
                which = ""
                if key in ("encoder", "decoder"):
                    which = f" (hash {before}): the weights, config, tokenizer or template differ"
                raise UserError(
                    f"{run.folder} was started with a different {name}{which}; restore the earlier {name}, or give a "
                    "different --output-dir"
                )
        recorded.clip_durations = ClipDurations.of(clips.clips.durations_s)
        if recorded.work is None:  # a new run, a run of an older version, or the dry run failed
            recorded.work = self._work(recipe)
        self._write_recipe()
        run.save()
        return inputs, recorded.work

    def _work(self, recipe: Recipe) -> Work | None:
        """Return formulas for the FLOPs of a clip. Return None if they cannot be computed.

        The formulas are fitted to dry runs of the model on the meta device. A dry run may advance the random
        generators, so call this before :func:`assemble` seeds them.
        """
        on_gpu = device_of(recipe.execution.device).type == "cuda"
        try:
            return work_of(recipe, "cuda" if on_gpu else "cpu")
        except (UserError, RuntimeError) as error:  # some parts can be trained, but not run on the meta device
            self._run.callback.note(
                f"the dry run of the model failed, so its FLOPs are not counted: {first_line(error)}"
            )
            return None

    def _note_overlaps(self) -> None:
        for name, shared in self._run.clips.overlaps.items():
            for overlap in shared.comparison.overlaps:
                self._run.callback.note(f"warning: data.evaluation.{name}: {overlap}")

    def _vocabulary(self, recipe: Recipe, clips: ClipSet, start: StartingPoint | None) -> TranscriptVocabulary:
        """Return the vocabulary of the transcripts. It is saved, because reading millions of transcripts takes time."""
        training = self._run.state.training
        assert training is not None
        if training.spelling is None or training.spelling.data != clips.fingerprint:
            learned = TranscriptVocabulary.learn(recipe, clips, start)
            training.spelling = LearnedVocabulary(clips.fingerprint, **asdict(learned))
            self._run.save()
        return training.spelling.vocabulary

    def _monitor(self, tokenizer: Any) -> Callable[[TinyAudioModel], dict[str, Any]] | None:
        """Return a function that scores the model on part of ``execution.evaluate_set``, or None if there is no set."""
        execution = self._run.recipe.execution
        if execution.evaluate_set is None:
            return None
        name, recipe = execution.evaluate_set, self._run.recipe
        clips = spread(self._run.clips.evaluation(name).clips, execution.evaluate_utterances)
        best = recipe.training.keep_best
        if best is not None:
            check_metric(best, clips, recipe.evaluation.normalizer)
        monitored = dict.fromkeys((*_MONITORED, *([best.metric] if best else [])))

        def evaluate(model: TinyAudioModel) -> dict[str, Any]:
            scores = score(recipe, model, tokenizer, clips).scores
            return {"set": name, "utterances": len(clips)} | {key: scores.get(key) for key in monitored}

        return evaluate


def _data_fingerprint(recipe: Recipe, clips: ClipSet) -> str:
    """Return a hash of the training clips, and of the metadata in their prompts."""
    context = recipe.prompt.context
    return clips.fingerprint_with([] if context is None else context.columns())


def training_inputs(recipe: Recipe, clips: ClipSet, start: StartingPoint | None) -> TrainingInputs:
    """Return the inputs of training, except the evaluation set of ``training.keep_best``."""
    return TrainingInputs(
        _data_fingerprint(recipe, clips),
        sounds_fingerprint(recipe.augmentation),
        start.fingerprint() if start else None,
        checkpoint_identity(recipe.encoder),
        checkpoint_identity(recipe.decoder),
    )


def _check_same(inputs: TrainingInputs, own: TrainingInputs, world: World) -> None:
    """Raise a UserError if an input of this process differs from that of the main process."""
    # Do not compare the set of keep_best here. Without fsdp, only the main process scores this set. With fsdp,
    # `_check_evaluation_set` compares it.
    own = replace(own, selection=inputs.selection)
    for field in fields(TrainingInputs):
        _check_equal(_INPUT_NAMES[field.name], getattr(own, field.name), getattr(inputs, field.name), world)


def _check_equal(name: str, ours: str | None, first: str | None, world: World) -> None:
    if ours != first:
        raise UserError(
            f"process {world.rank} has a different {name} (hash {ours}) than the main process (hash {first}); give "
            "all machines the same files"
        )


def pinned(recipe: Recipe, inputs: TrainingInputs) -> Recipe:
    """Return the recipe with its hub checkpoints pinned to the commits in ``inputs``."""
    parts: Mapping[str, Any] = {
        kind: part.model_copy(update={"revision": commit})
        for kind, part, commit in (
            ("encoder", recipe.encoder, inputs.encoder),
            ("decoder", recipe.decoder, inputs.decoder),
        )
        if commit is not None and not Path(part.pretrained).is_dir()
    }
    return recipe.model_copy(update=parts)
