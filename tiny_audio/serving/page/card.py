"""The model's parts and word error rates, shown on the web page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter
from yaml import YAMLError

from tiny_audio.model.context import ContextSettings
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.model.parts_table import describe_parts

_NAMES = {"ctc_head": "CTC head"}


@dataclass(frozen=True)
class Part:
    """A row of the page's table of parts."""

    part: str
    kind: str
    initialized_from: str
    parameters: int


@dataclass(frozen=True)
class Score:
    """The word error rate on one test set."""

    set: str
    wer: float
    """In percent."""
    interval_95: tuple[float, float] | None = None
    """In percent."""
    num_utterances: int | None = None
    normalizer: str | None = None


@dataclass(frozen=True)
class Card:
    """The page's information about the model."""

    name: str
    words: bool
    """Whether the model can give the times of words."""
    prompt: Literal["hotwords", "previous_text"] | None
    """How the model uses the prompt of a request. None if it was trained with neither hotwords nor previous text."""
    parts: tuple[Part, ...]
    scores: tuple[Score, ...]
    """From the model card. Empty if there is none, or if the model was not evaluated."""


_SCORE = TypeAdapter(Score)


def read_card(name: str, folder: Path, model: TinyAudioModel) -> Card:
    """Return the card of a model.

    Args:
        name: the name under which the model is served.
        folder: the exported model.
        model: the loaded model.
    """
    parts = []
    for row in describe_parts(model):
        section = getattr(model.config, row["part"], None) or {}
        base = section.get("pretrained") if section.get("init") == "pretrained" else None
        # The path of a local folder may be private.
        start = (Path(base).name if Path(base).is_absolute() else base) if base else "random weights"
        parts.append(Part(_NAMES.get(row["part"], row["part"]), row["name"] or "", start, row["total"]))
    known = ContextSettings.model_validate(model.config.context or {}, strict=False)
    prompt: Literal["hotwords", "previous_text"] | None = "previous_text" if known.previous_text else None
    if known.hotwords:
        prompt = "hotwords"
    return Card(name, model.ctc_head is not None, prompt, tuple(parts), _scores(folder / "README.md"))


def _scores(path: Path) -> tuple[Score, ...]:
    """Return the word error rates in the ``model-index`` of a model card."""
    from huggingface_hub.repocard import metadata_load
    from huggingface_hub.repocard_data import model_index_to_eval_results

    try:
        metadata = metadata_load(path) or {}
        results = model_index_to_eval_results(metadata["model-index"])[1] if "model-index" in metadata else []
        return tuple(
            _SCORE.validate_python({"set": one.dataset_name, "wer": one.metric_value} | (one.metric_args or {}))
            for one in results
            if one.metric_type == "wer"
        )
    # The model card is missing, or someone edited it.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, YAMLError):
        return ()
