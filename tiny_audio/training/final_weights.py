"""Choose the final model's weights: those of the last step or of the best evaluation, or an average of checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from tiny_audio.analysis.scoring import NormalizerName, Transcripts, normalizer
from tiny_audio.analysis.scoring.metrics import Metric, measure, metric_of
from tiny_audio.config import UserError
from tiny_audio.data.clips import Clip
from tiny_audio.recipe import KeepBest, Recipe
from tiny_audio.runtime.world import World
from tiny_audio.training import checkpoint
from tiny_audio.training.progress import Progress


def check_metric(best: KeepBest, clips: Sequence[Clip], normalizer_name: NormalizerName) -> None:
    """Check that the metric is defined on the clips that are scored during training.

    Raises:
        UserError: the metric has no value on these clips.
    """
    references = [clip.utterance.text for clip in clips]
    durations_s = [clip.utterance.duration_s for clip in clips]
    # Whether the metric has a value does not depend on the hypotheses, so the references serve as hypotheses.
    transcripts = Transcripts(references, references, normalizer(normalizer_name), durations_s=durations_s)
    _check_value(best, measure(transcripts)[best.metric])


def _check_value(best: KeepBest, value: float | None) -> float:
    if value is None:
        raise UserError(
            f"training.keep_best: {best.metric} has no value on the clips of {best.set} that are scored during "
            "training; choose another metric or set"
        )
    return float(value)


@dataclass(frozen=True)
class FinalWeights:
    """The origin of the final model's weights. Reports store it as ``training.final_weights``."""

    steps: tuple[int, ...]
    """The step of the weights, or several steps whose checkpoints are averaged."""
    selected_on: str | None = None
    """The evaluation set whose scores chose the weights. If no scores were used, this and the next two fields are
    None."""
    metric: str | None = None
    """Name of the metric by which the weights were chosen."""
    value: float | None = None
    """Value of the metric for the chosen weights, on the clips that were scored during training."""
    num_evaluations: int = 0
    """Number of evaluations that were compared."""
    stopped_early: bool = False
    """Whether training ended before step ``training.steps``, because the evaluations no longer improved."""

    def as_json(self) -> dict[str, Any]:
        """Return the entry ``final_weights`` of a report's training section.

        The result is empty if these are the weights of the last step and no scores were used.
        """
        if self.selected_on is None and len(self.steps) == 1:
            return {}
        return {"final_weights": {**asdict(self), "steps": list(self.steps)}}


class Selection:
    """Counts the evaluations of a run, and chooses the final weights.

    The state is stored in :class:`Progress`, and therefore in every checkpoint.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._config, self._execution, self._alone_steps = recipe.training, recipe.execution, recipe.alone_steps
        self.best: KeepBest | None = recipe.training.keep_best
        self._metric: Metric | None = None
        if self.best is not None:
            self._metric = metric_of(self.best.metric)

    def is_due(self, progress: Progress) -> bool:
        """Whether the model must be evaluated after the current step."""
        every, step = self._execution.evaluate_every, progress.step
        if every is None or step in (0, progress.evaluated_step):
            return False
        return step % every == 0 or (self.best is not None and step == self._config.steps)

    def add(self, progress: Progress, scores: dict[str, Any]) -> dict[str, Any]:
        """Record an evaluation of the current step in ``progress``. Return values to log in addition to the scores."""
        value = self._value(scores) if self.best else None
        progress.evaluated_step = progress.step
        progress.num_evaluations += 1
        if value is None:
            return {}
        if progress.best_step == 0 or self._is_better(value, progress.best_value):
            progress.best_step, progress.best_value, progress.evaluations_since_best = progress.step, value, 0
        elif progress.step > self._alone_steps:  # the decoder is trained only after these steps
            progress.evaluations_since_best += 1
        return {"best_step": progress.best_step, "stops_early": self.stops_early(progress)}

    def stops_early(self, progress: Progress) -> bool:
        """Whether training ends before step ``training.steps``, because the evaluations no longer improve."""
        patience = self.best.patience if self.best else None
        is_last = progress.step >= self._config.steps
        return patience is not None and progress.evaluations_since_best >= patience and not is_last

    def text(self, progress: Progress, scores: Mapping[str, Any]) -> str:
        """Return the message about the evaluation that was added last."""
        wer, metric = metric_of("wer"), self._metric
        shown = dict.fromkeys((wer, metric or wer))
        text = ", ".join(f"{entry.short} {entry.text(scores[entry.key]) or '–'}" for entry in shown)
        if metric is None:
            return text
        if progress.best_step == progress.step:
            return f"{text} (the best {metric.short} so far)"
        text += f" (the best {metric.short} is {metric.text(progress.best_value)} at step {progress.best_step}"
        if self.stops_early(progress):
            text += f"; stopped early after {progress.evaluations_since_best} evaluations without a better value"
        return f"{text})"

    def needed(self, progress: Progress) -> set[int]:
        """Return the steps whose checkpoints must be kept after the current step."""
        return {progress.best_step, *self._averaged(progress.step)}

    def _averaged(self, last: int) -> tuple[int, ...]:
        """Return the steps whose weights are averaged if training ends at step ``last``.

        With ``average_last: 3`` and ``checkpoint_every: 100``, the result for 250 is (100, 200, 250). Without
        ``average_last``, it is (250,).
        """
        count = self._config.average_last
        planned = range(self._execution.checkpoint_every, last, self._execution.checkpoint_every)
        return (*planned[1 - count :], last) if count else (last,)

    def choose(
        self,
        folder: Path,
        model: nn.Module,
        progress: Progress,
        world: World,
        evaluate: Callable[[], dict[str, Any]],
    ) -> FinalWeights:
        """Load the final weights into the model, after the last step.

        With both ``keep_best`` and ``average_last``, the average is also scored. It is used only if its score is better
        than the best score during training. This is a collective: all processes must call it.

        Args:
            model: the model, with the weights of the last step.
            evaluate: scores the model.

        Raises:
            UserError: a required checkpoint is missing or damaged.
        """
        last = progress.step
        averaged = self._averaged(last)
        if self.best is None:
            if len(averaged) > 1:
                self._load(folder, model, averaged, world)
            return FinalWeights(averaged)
        found = FinalWeights(
            (progress.best_step,),
            self.best.set,
            self.best.metric,
            progress.best_value,
            progress.num_evaluations,
            self.stops_early(progress),
        )
        if len(averaged) > 1:
            self._load(folder, model, averaged, world)
            found = replace(found, num_evaluations=found.num_evaluations + 1)
            value = self._value(evaluate())
            if self._is_better(value, progress.best_value):
                return replace(found, steps=averaged, value=value)
        self._load(folder, model, found.steps, world)
        return found

    def _load(self, folder: Path, model: nn.Module, steps: Sequence[int], world: World) -> None:
        checkpoint.set_weights(model, lambda: checkpoint.read_weights(folder, steps, model), world)

    def _value(self, scores: dict[str, Any]) -> float:
        assert self.best is not None
        return _check_value(self.best, scores[self.best.metric])

    def _is_better(self, value: float, best: float) -> bool:
        assert self._metric is not None
        return value < best if self._metric.direction == "lower" else value > best
