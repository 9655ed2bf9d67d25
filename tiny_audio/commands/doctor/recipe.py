"""Check the device, checkpoints, normalizer and data of a recipe for ``tiny-audio doctor``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from tiny_audio.analysis.scoring import normalizer
from tiny_audio.audio.errors import AudioError, FileError
from tiny_audio.commands.doctor.checkpoints import checkpoints
from tiny_audio.commands.doctor.finding import Finding
from tiny_audio.commands.run.context import RunClips
from tiny_audio.config import UserError
from tiny_audio.ctc import CtcVocabulary, min_frames
from tiny_audio.data.clips import Clip, ClipSet
from tiny_audio.data.sounds import sounds_in
from tiny_audio.data.target_encoder import too_many_characters
from tiny_audio.data.text import TargetText, TargetTextChoice, markers
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.pretrained.building import attention_implementation
from tiny_audio.recipe import Recipe
from tiny_audio.runtime.device import device_of
from tiny_audio.runtime.files import cache_dir
from tiny_audio.sources import SOURCES, SourceContext
from tiny_audio.training.initialize import PretrainedHead

_T = TypeVar("_T")
_SAMPLES = 3
"""Maximum number of examples that are shown of each kind, such as clips of a source."""
_TRANSCRIPTS = 2_000
"""Maximum number of transcripts that are checked per source."""
_SHOWN = 200
"""Maximum number of characters of a clip's target text that are shown."""


def examine(recipe: Recipe) -> Iterator[Finding]:
    """Check everything that ``recipe`` needs. The message of a problem says how to correct it."""
    yield from _device(recipe)
    limits = yield from checkpoints(recipe)
    recipe = limits.recipe
    yield _normalizer(recipe)
    vocabulary = None
    if recipe.ctc is not None and recipe.ctc.init == "pretrained":
        try:
            vocabulary = PretrainedHead.read(recipe.encoder).vocabulary
            yield Finding("CTC head", f"{len(vocabulary)} labels: the blank and {''.join(vocabulary.characters)!r}")
        except UserError as error:
            yield Finding("CTC head", str(error), True)
    for section, folder in recipe.augmentation.folders().items():
        try:
            sounds = sounds_in(folder)
            detail = f"{len(sounds.names)} sounds, {sounds.check():.2f} h, in {sounds.folder}"
            yield Finding(f"augmentation.{section}", detail)
        except UserError as error:
            yield Finding(f"augmentation.{section}", str(error), True)
    for name, source in recipe.data.train.items():
        bounds = recipe.data.min_duration_s, recipe.data.max_duration_s
        yield from _source(recipe, f"data.train.{name}", source, bounds, recipe.data.target_text, vocabulary)
    for name, source in recipe.data.evaluation.items():
        yield from _source(recipe, f"data.evaluation.{name}", source, (0.0, limits.longest_evaluation_s))
    yield from _overlaps(recipe, limits.longest_evaluation_s)


def _normalizer(recipe: Recipe) -> Finding:
    try:
        found = normalizer(recipe.evaluation.normalizer)
        return Finding("evaluation.normalizer", f"{found.name} ({found.version})")
    except UserError as error:
        return Finding("evaluation.normalizer", str(error), True)


def _device(recipe: Recipe) -> Iterator[Finding]:
    try:
        yield Finding("execution.device", device_of(recipe.execution.device).type)
    except UserError as error:
        yield Finding("execution.device", str(error).removeprefix("execution.device is "), True)
    for kind, part in (("encoder", recipe.encoder), ("decoder", recipe.decoder)):
        try:
            yield Finding(f"{kind}.attention", attention_implementation(part))
        except UserError as error:
            yield Finding(f"{kind}.attention", str(error), True)


def _source(
    recipe: Recipe,
    place: str,
    config: Any,
    bounds_s: tuple[float, float],
    text: TargetTextChoice = "none",
    vocabulary: CtcVocabulary | None = None,
) -> Iterator[Finding]:
    try:
        trains = place.startswith("data.train")
        context = SourceContext(cache_dir(), keep_empty=trains and recipe.data.keep_empty)
        source = SOURCES.build(config, context)
        keep_empty = recipe.data.keep_empty or not trains
        gathered = ClipSet.gather({place.rsplit(".", 1)[-1]: source}, *bounds_s, keep_empty=keep_empty)
    except UserError as error:
        yield Finding(place, str(error), True)
        return
    hours = gathered.duration_s / 3600
    dropped = f", {len(gathered.dropped)} dropped" if gathered.dropped else ""
    yield Finding(place, f"{len(gathered.clips)} clips, {hours:.2f} h{dropped}", is_problem=not gathered.clips)
    target = TargetText.of(text)
    references = [clip.utterance.text for clip in _spread(gathered.clips, _TRANSCRIPTS)]
    spoken = [text for text in references if text]
    yield from _targets(place, spoken, [target(text) for text in spoken], vocabulary)
    for drop in gathered.dropped[:_SAMPLES]:
        yield Finding(f"{place} dropped", f"{drop.id}: {drop.reason}: {drop.detail}")
    for clip in gathered.clips[:_SAMPLES]:
        yield _clip(recipe, clip, target(clip.utterance.text), bounds_s[1])


def _overlaps(recipe: Recipe, longest_evaluation_s: float) -> Iterator[Finding]:
    """Yield a warning for each overlap of an evaluation set with the training data, such as a shared speaker.

    The audio itself is not compared.
    """
    try:
        overlaps = RunClips(recipe, {}, longest_evaluation_s).overlaps
    except UserError:  # a source cannot be read, which another finding reports
        return
    for name, found in overlaps.items():
        for overlap in found.comparison.overlaps:
            yield Finding(f"data.evaluation.{name}", str(overlap), is_warning=True)


def _targets(
    place: str, references: Sequence[str], targets: Sequence[str], vocabulary: CtcVocabulary | None
) -> Iterator[Finding]:
    """Yield findings about the changes that ``data.target_text`` makes, and about problems of the resulting texts.

    ``references`` are transcripts that are not empty, and ``targets`` are their target texts. ``vocabulary`` has the
    labels of a pretrained CTC head, if there is one.
    """
    changed = [(before, after) for before, after in zip(references, targets, strict=True) if before != after]
    for before, after in _spread(changed, _SAMPLES):
        yield Finding(f"{place} target", f"{before!r} → {after!r}")
    checked = f"of {len(references)} checked transcripts"
    empty = sum(not target for target in targets)
    if empty:
        drops = "training drops these clips, unless data.keep_empty is set"
        yield Finding(place, f"data.target_text removes all text of {empty} {checked}; {drops}")
    marked = Counter(marker for target in targets for marker in set(markers(target)))
    if marked:
        most = ", ".join(f"{marker!r} in {count}" for marker, count in marked.most_common(_SAMPLES))
        yield Finding(place, f"target texts contain markers: {most} {checked}; data.target_text can remove them")
    if vocabulary is not None:
        unknown = Counter(c for target in targets for c in set(target) - set(vocabulary.characters))
        if unknown:
            most = ", ".join(f"{character!r} in {count}" for character, count in unknown.most_common(_SAMPLES))
            detail = f"target texts have characters without a CTC label: {most} {checked}; training drops these clips"
            yield Finding(place, f"{detail}. Rewrite the texts with data.target_text, or set ctc.init: random", True)


def _spread(items: Sequence[_T], count: int) -> list[_T]:
    """Return at most ``count`` items, spread evenly, because the first items of a sorted corpus are not typical."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _clip(recipe: Recipe, clip: Clip, target: str, max_duration_s: float) -> Finding:
    try:
        waveform = clip.load(max_duration_s)
    except (AudioError, FileError) as error:
        return Finding(clip.id, str(error), True)
    frames = recipe.encoder.num_frames(len(waveform))
    duration_s = len(waveform) / SAMPLE_RATE
    shown = target if len(target) <= _SHOWN else f"{target[:_SHOWN]} ..."
    detail = f"{duration_s:.2f} s, {frames} frames: {shown!r}"
    problem = too_many_characters(target, duration_s)
    if problem is None and recipe.ctc is not None and min_frames([ord(character) for character in target]) > frames:
        problem = "the text has too many characters for CTC on this number of frames"
    if problem:
        detail += f"; {problem}; check that the text belongs to the audio"
    return Finding(clip.id, detail, problem is not None)
