"""``state.json`` of a run folder: the finished stages with their identities and results."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tiny_audio.analysis.decoder_gain import Speed
from tiny_audio.analysis.normalizer_names import NormalizerName
from tiny_audio.config import UserError, first_line
from tiny_audio.model.clip_durations import ClipDurations
from tiny_audio.plan.work import Work
from tiny_audio.runtime.files import write_atomically
from tiny_audio.training.transcript_vocabulary import TranscriptVocabulary

FILE_NAME = "state.json"


@dataclass(frozen=True)
class TrainingInputs:
    """Hashes and commits of all inputs of training. None means that the recipe has no such input."""

    data: str
    augmentation: str | None = None
    init_from: str | None = None
    encoder: str | None = None
    decoder: str | None = None
    selection: str | None = None
    """Fingerprint of the evaluation set of ``training.keep_best``."""


@dataclass(frozen=True)
class LearnedVocabulary:
    """The vocabulary learned from the transcripts of the training clips (see :class:`TranscriptVocabulary`)."""

    data: str
    """Fingerprint of the training clips."""
    tokenizer: str | None
    characters: str | None
    token_ids: list[int] | None = None
    pieces: list[tuple[int, list[int]]] | None = None

    @property
    def vocabulary(self) -> TranscriptVocabulary:
        """The vocabulary without the fingerprint."""
        return TranscriptVocabulary(self.tokenizer, self.characters, self.token_ids, self.pieces)


@dataclass
class TrainingState:
    """What a run records about training: the inputs, the vocabulary, and the results after the last step."""

    inputs: TrainingInputs
    work: Work | None = None
    """Formulas for the FLOPs of a clip, from dry runs on the meta device. None if a dry run failed."""
    spelling: LearnedVocabulary | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    totals: dict[str, Any] = field(default_factory=dict)
    parts: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False
    clip_durations: ClipDurations | None = None
    """Durations of the training clips. None in runs of older versions."""

    @property
    def config_durations(self) -> dict[str, float] | None:
        """The durations as a dict, as in the model's config."""
        return None if self.clip_durations is None else asdict(self.clip_durations)


@dataclass(frozen=True)
class ExportState:
    """The export in ``model/``."""

    generation: dict[str, Any]
    """Identity of the export: its generation settings."""
    took: dict[str, Any] | None = None
    """Resources that the stage used. None in runs of older versions."""


@dataclass(frozen=True)
class EvaluationState:
    """The scores of one evaluation set."""

    identity: str
    data: str
    """Fingerprint of the clips that were scored."""
    scores: dict[str, Any]
    took: dict[str, Any] | None = None


@dataclass(frozen=True)
class RecordedSystem:
    """The hypotheses of a recognizer that uses the encoder but not the decoder, on one evaluation set."""

    name: str
    normalizer: NormalizerName
    file: str | None
    """Name of the file in ``evaluation/`` that has the hypotheses. None for the CTC head, whose hypotheses are the
    ``ctc_text`` in the file of the whole model."""
    speed: Speed | None
    """Speed of the recognizer. None if no clip could be read to measure it."""
    model_speed: Speed | None
    """Speed of the whole model, including the decoder, on the same clips."""


@dataclass(frozen=True)
class EncoderSystemsState:
    """The recognizers that use the encoder but not the decoder, on one evaluation set."""

    identity: str
    data: str
    """Fingerprint of the clips."""
    systems: list[RecordedSystem]
    """Empty if no such recognizer could be used."""
    took: dict[str, Any] | None = None


@dataclass
class RunState:
    """The state that a run saves, so that the same command can continue the run."""

    recipe: dict[str, Any]
    """The recipe's :meth:`~tiny_audio.recipe.Recipe.training_identity` when the run was created."""
    started: str
    datasets: dict[str, str] = field(default_factory=dict)
    """Commit of each dataset split on the hub, by name of the split. The run uses these commits even if there are newer
    ones."""
    training: TrainingState | None = None
    export: ExportState | None = None
    evaluation: dict[str, EvaluationState] = field(default_factory=dict)
    encoder_systems: dict[str, EncoderSystemsState] = field(default_factory=dict)
    report: str | None = None
    """Identity of the report that was written."""

    @classmethod
    def read(cls, folder: Path) -> RunState | None:
        """Return the state of a run folder, or None if the folder has no ``state.json``.

        Raises:
            UserError: the file is damaged.
        """
        path = folder / FILE_NAME
        if not path.exists():
            return None
        try:
            state: RunState = _ADAPTER.validate_python(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise UserError(
                f"{path} is damaged: {first_line(error)}; restore it from a backup, or start the run again in another "
                "folder"
            ) from error
        return state

    def write(self, folder: Path) -> None:
        """Write ``state.json``, unless it already has this content."""
        content = {key: value for key, value in asdict(self).items() if value is not None}
        write_if_changed(folder / FILE_NAME, json.dumps(content, indent=1))


_ADAPTER = TypeAdapter(RunState)


def write_if_changed(path: Path, text: str) -> None:
    """Write like :func:`write_atomically`, but do not touch a file that already has this text."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text)


def now() -> str:
    """Return the current time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
