"""The evaluation stage: transcribe one evaluation set with the exported model, and score the hypotheses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

from tiny_audio.analysis.audio_bits import score_bits
from tiny_audio.analysis.warnings import state_overlap, state_selection
from tiny_audio.commands.run.context import RunContext
from tiny_audio.commands.run.state import EvaluationState
from tiny_audio.config import UserError
from tiny_audio.data.clips import Clip
from tiny_audio.data.dropped import DroppedLog
from tiny_audio.data.evaluation_clips import UNBOUNDED_DURATION_S
from tiny_audio.data.target_encoder import TargetEncoder
from tiny_audio.data.text import TargetText
from tiny_audio.evaluation import Evaluation, evaluate_clips
from tiny_audio.evaluation.audio_bits import measure_losses
from tiny_audio.evaluation.hypotheses import groups_of, write_rows
from tiny_audio.export.load import load_model
from tiny_audio.inference.transcriber import LONGEST_CHUNK_S
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.recipe import Recipe, content_hash
from tiny_audio.runtime.device import device_of, set_tf32
from tiny_audio.training.ledger import Overhead
from tiny_audio.training.precision import autocast


class EvaluationModel:
    """The exported model on the run's device. It is loaded when the first stage needs it."""

    def __init__(self, run: RunContext) -> None:
        self._run = run

    @cached_property
    def overhead(self) -> Overhead:
        """Resources used since the first access to this property, including those for loading the model."""
        return self._run.overhead()

    @cached_property
    def loaded(self) -> tuple[TinyAudioModel, Any]:
        """The model and its tokenizer."""
        # With bf16, keep the saved data types, so that a model that fit into memory in training also fits here.
        half = self._run.recipe.training.precision == "bf16"
        model, tokenizer = load_model(self._run.model_folder, types_as_saved=half)
        model.to(device_of(self._run.recipe.execution.device))
        set_tf32(self._run.recipe.training.tf32)
        return model, tokenizer


class SetStage:
    """Base of the stages that use the exported model on the evaluation set ``name``."""

    def __init__(self, run: RunContext, name: str, model: EvaluationModel) -> None:
        self._run, self._name, self._model = run, name, model


class EvaluateStage(SetStage):
    """Scores one evaluation set."""

    def identity(self) -> str:
        """Return a hash of the settings. The set's paths are included, because another file may have other clips."""
        recipe = self._run.recipe
        source = recipe.data.evaluation[self._name].model_dump(mode="json")
        return content_hash(recipe.evaluation_identity() | {"data": source})

    def is_done(self) -> bool:
        """Return whether the set has been scored with the current settings and clips.

        If the clips can no longer be read, they count as unchanged.
        """
        done = self._run.state.evaluation.get(self._name)
        if done is None or done.identity != self.identity():
            return False
        try:
            return done.data == self._fingerprint()
        except UserError:
            return True

    def _fingerprint(self) -> str:
        """Return a hash of the set's clips, and of their groups, which affect the confidence intervals."""
        group_by = self._run.recipe.evaluation.group_by
        columns = [] if group_by is None else [group_by]
        return self._run.clips.unchecked_evaluation(self._name).fingerprint_with(columns)

    def run(self) -> None:
        """Transcribe and score the set."""
        run, name = self._run, self._name
        overhead = self._model.overhead
        model, tokenizer = self._model.loaded
        run.callback.note(f"comparing {name} with the training data")
        clips, comparison = run.clips.scored(name)
        left_out = f", {len(clips.dropped)} left out" if clips.dropped else ""
        run.callback.note(f"scoring {name}: {len(clips.clips)} utterances{left_out}")
        with autocast(run.recipe.training.precision, model.device):
            scores, hypotheses, dropped = score(run.recipe, model, tokenizer, clips.clips)
        DroppedLog(run.folder / "dropped.jsonl").replace(name, [*clips.dropped, *dropped])
        (run.folder / "evaluation").mkdir(exist_ok=True)
        write_rows(run.folder / "evaluation" / f"{name}.jsonl", hypotheses)
        scores["dropped"] = len(clips.dropped) + len(dropped)
        state_overlap(scores, comparison)
        assert run.state.training is not None
        state_selection(scores, name, run.state.training.summary.get("final_weights"))
        run.state.evaluation[name] = EvaluationState(self.identity(), self._fingerprint(), scores, overhead.usage())
        run.save()
        if scores["wer"] is None:
            run.callback.note(f"{name}: no WER, because every reference is empty")
        else:
            low, high = scores["wer_interval"]
            run.callback.note(f"{name}: WER {scores['wer']:.2%} (95 % interval {low:.2%} to {high:.2%})")


def score(recipe: Recipe, model: TinyAudioModel, tokenizer: Any, clips: Sequence[Clip]) -> Evaluation:
    """Evaluate clips with the recipe's settings.

    The scores include the bits from audio (see :mod:`tiny_audio.analysis.audio_bits`), measured on some of the clips.
    The hypotheses of these clips have a field ``losses``, which contains the fields of a ``ClipLosses``.
    """
    settings = recipe.evaluation
    evaluation = evaluate_clips(
        model,
        tokenizer,
        clips,
        normalizer_name=settings.normalizer,
        num_bootstrap=settings.num_bootstrap,
        group_by=settings.group_by,
        max_duration_s=model.longest_clip_s(UNBOUNDED_DURATION_S),
        max_padded_s=recipe.execution.evaluate_max_padded_s,
    )
    target_encoder = TargetEncoder(
        tokenizer,
        model.config.end_token_id,
        ctc=None,
        encoder=recipe.encoder,
        max_ids=model.generation.max_new_tokens,
        num_embeddings=recipe.decoder.num_embeddings(),
        keep_empty=True,
    )
    losses = measure_losses(
        model,
        target_encoder,
        clips,
        TargetText.of(recipe.data.target_text),
        max_duration_s=model.longest_clip_s(LONGEST_CHUNK_S),
        max_padded_s=recipe.execution.evaluate_max_padded_s,
    )
    measured = [row for row in evaluation.hypotheses if row["id"] in losses]
    for row in measured:
        row["losses"] = asdict(losses[row["id"]])
    groups = groups_of(measured, settings.group_by)
    evaluation.scores.update(
        score_bits([losses[row["id"]] for row in measured], groups=groups, num_bootstrap=settings.num_bootstrap)
    )
    return evaluation
