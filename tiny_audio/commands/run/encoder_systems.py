"""The stage that transcribes one evaluation set with recognizers that use the encoder but not the decoder.

These recognizers are the model's CTC head and the encoder's published checkpoint. The report compares the model with
them, to show what the decoder adds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from tiny_audio.analysis.decoder_gain import EncoderSystem, Speed
from tiny_audio.analysis.normalizer_names import NormalizerName
from tiny_audio.audio.errors import AudioError
from tiny_audio.commands.run.context import RunContext
from tiny_audio.commands.run.evaluate import EvaluateStage, SetStage
from tiny_audio.commands.run.state import EncoderSystemsState, RecordedSystem
from tiny_audio.config import RunFailed, UserError, identity_of
from tiny_audio.data.clips import Clip
from tiny_audio.evaluation.audio_bits import spread
from tiny_audio.evaluation.encoder_systems import NUM_TIMED, checkpoint_recognizer, ctc_head, measure_speed
from tiny_audio.evaluation.hypotheses import Hypothesis, hypothesis, read_rows, with_outcome, write_rows
from tiny_audio.evaluation.targets import Target
from tiny_audio.inference.transcriber import LONGEST_CHUNK_S, Transcriber
from tiny_audio.recipe import content_hash
from tiny_audio.training.precision import autocast

_HEAD = "CTC head"
_CHECKPOINT_NORMALIZER: NormalizerName = "whisper_english"
"""The normalizer for hypotheses of the encoder's checkpoint. The hypotheses may have digits, capitals and punctuation
that the references do not have. This normalizer removes such differences."""


class EncoderSystemsStage(SetStage):
    """Records the hypotheses of recognizers that do not use the decoder, for the comparison in the report.

    If a recognizer cannot be used, the stage prints the reason, and the run continues.
    """

    @property
    def _num_clips(self) -> int:
        return self._run.recipe.evaluation.encoder_system_clips

    def identity(self) -> str:
        """Return a hash of the settings that affect the hypotheses."""
        encoder = identity_of(self._run.recipe.encoder)
        return content_hash([EvaluateStage(self._run, self._name, self._model).identity(), encoder, self._num_clips])

    def is_done(self) -> bool:
        """Return whether the clips that were scored last have been transcribed with the current settings.

        If there is no recognizer to compare, return True.
        """
        recipe = self._run.recipe
        if not self._num_clips or (recipe.ctc is None and recipe.encoder.init == "random"):
            return True
        done, scored = (getattr(self._run.state, key).get(self._name) for key in ("encoder_systems", "evaluation"))
        return done is not None and done.identity == self.identity() and scored is not None and done.data == scored.data

    def run(self) -> None:
        """Record each recognizer with its hypotheses and its speed."""
        run, systems = self._run, list[RecordedSystem]()
        overhead = self._model.overhead
        try:
            for system in self._systems():
                systems.append(system)  # keep it even if a later system fails
        except (UserError, RunFailed) as error:
            run.callback.note(f"{self._name}: a recognizer without the decoder is left out of the comparison: {error}")
        data = run.state.evaluation[self._name].data
        run.state.encoder_systems[self._name] = EncoderSystemsState(self.identity(), data, systems, overhead.usage())
        run.save()

    def _systems(self) -> Iterator[RecordedSystem]:
        run, recipe = self._run, self._run.recipe
        target = checkpoint_recognizer(recipe.encoder, recipe.execution.device)
        if target is None and recipe.ctc is None:
            return
        by_id = {clip.id: clip for clip in run.clips.evaluation(self._name).clips}
        rows = read_rows(run.folder / "evaluation" / f"{self._name}.jsonl")
        clips = [by_id[row["id"]] for row in rows if row["id"] in by_id]
        run.callback.note(f"{self._name}: transcribing with the encoder, but without the decoder, for comparison")
        model, tokenizer = self._model.loaded
        timed = _load(spread(clips, NUM_TIMED), model.longest_clip_s(LONGEST_CHUNK_S))
        with autocast(recipe.training.precision, model.device):
            transcriber = Transcriber(model, tokenizer, filter_hallucinations=False)
            speed = measure_speed(transcriber.transcribe, timed) if timed else None
            own = measure_speed(ctc_head(model), timed) if timed and recipe.ctc is not None else None
        if recipe.ctc is not None:
            yield RecordedSystem(_HEAD, recipe.evaluation.normalizer, None, own, speed)
        if target is not None:  # without autocast: transformers' feature extractors do not support it
            yield self._transcribe(target, spread(clips, self._num_clips), timed, speed)

    def _transcribe(
        self, target: Any, clips: Sequence[Clip], timed: list[Tensor], model_speed: Speed | None
    ) -> RecordedSystem:
        target.check()
        target.load()
        try:
            own = measure_speed(target.transcribe_batch, timed) if timed else None
            rows = list(_rows(target, clips))
        finally:
            target.close()
        file = f"{self._name}.encoder.jsonl"
        write_rows(self._run.folder / "evaluation" / file, rows)
        return RecordedSystem(target.label, _CHECKPOINT_NORMALIZER, file, own, model_speed)


def recorded(run: RunContext) -> dict[str, EncoderSystemsState]:
    """Return the recorded state of each evaluation set of the recipe. If the comparison is off, the result is empty."""
    states = run.state.encoder_systems if run.recipe.evaluation.encoder_system_clips else {}
    return {name: states[name] for name in run.recipe.data.evaluation if name in states}


def read_systems(run: RunContext) -> list[EncoderSystem]:
    """Return the recorded recognizers of all sets, each with its hypotheses."""
    found = []
    for name, state in recorded(run).items():
        for system in state.systems:
            file = run.folder / "evaluation" / (system.file or f"{name}.jsonl")
            rows = read_rows(file)
            if system.file is None:
                rows = [{**row, "pred_text": row["ctc_text"]} for row in rows]
            found.append(EncoderSystem(name, system.name, system.normalizer, rows, system.speed, system.model_speed))
    return found


def _rows(target: Target, clips: Sequence[Clip]) -> Iterator[Hypothesis]:
    outcomes = {outcome.clip.id: outcome for outcome in target.transcribe(clips)}
    for clip in clips:
        outcome = outcomes[clip.id]
        yield with_outcome(hypothesis(clip, outcome.transcript), outcome.time_s, outcome.error)


def _load(clips: Sequence[Clip], max_duration_s: float) -> list[Tensor]:
    waveforms = []
    for clip in clips:
        try:
            waveforms.append(clip.load(max_duration_s))
        except AudioError:
            continue
    return waveforms
