"""The feature cache: frames of the encoder are computed once for all variants, and used for training."""

from __future__ import annotations

import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_audio.commands.bench.features import FeatureCache, check_cacheable
from tiny_audio.commands.bench.units import CachedClips, WaveformClips, train
from tiny_audio.config import UserError
from tiny_audio.data.clips import ClipSet
from tiny_audio.recipe import load_recipe
from tiny_audio.sources import SOURCES, SourceContext
from tiny_audio.training.assembly import assemble
from tiny_audio.training.initialize import StartingPoint
from tiny_audio.training.loop import Budget
from tiny_audio.training.precision import place

pytestmark = pytest.mark.usefixtures("one_thread", "own_cache")


def gathered(recipe: Any) -> ClipSet:
    sources = {name: SOURCES.build(config, SourceContext(Path())) for name, config in recipe.data.train.items()}
    return ClipSet.gather(sources, recipe.data.min_duration_s, recipe.data.max_duration_s)


def built(home: Path, *overrides: str) -> tuple[Any, ClipSet, Any, Any]:
    recipe = load_recipe(home / "recipe.yaml", overrides)
    clips = gathered(recipe)
    model, _, target_encoder = assemble(recipe, clips, StartingPoint(recipe.training.init_from))
    place(model, recipe, torch.device("cpu"))
    return recipe, clips, model, target_encoder


def test_features_equal_the_encoders_frames(home: Path, tmp_path: Path) -> None:
    recipe, clips, model, _ = built(home)
    notes: list[str] = []
    features = FeatureCache(model, recipe, tmp_path, notes.append).get(clips)
    assert [clip.id for clip in features.clips] == [clip.id for clip in clips.clips]
    batch = features.frames([3, 0], torch.device("cpu"))
    for row, index in enumerate((3, 0)):
        waveform = clips.clips[index].load(10.0)
        with torch.no_grad():
            alone = model.encode(waveform[None], torch.tensor([len(waveform)]))
        assert features.num_samples[index] == len(waveform)
        size = int(alone.lengths)
        assert int(batch.lengths[row]) == size
        rms = alone.values.pow(2).mean().sqrt()
        assert (batch.values[row, :size] - alone.values[0]).abs().max() <= 1e-5 * rms
        assert alone.ctc_logits is not None
        assert batch.ctc_logits is not None
        torch.testing.assert_close(batch.ctc_logits[row, :size], alone.ctc_logits[0], rtol=1e-4, atol=1e-5)
    assert len(notes) == 1


def test_features_are_computed_once_for_each_encoder_and_set(home: Path, tmp_path: Path) -> None:
    recipe, clips, model, _ = built(home)
    notes: list[str] = []
    first = FeatureCache(model, recipe, tmp_path, notes.append).get(clips)
    again = FeatureCache(model, recipe, tmp_path, notes.append).get(clips)
    assert len(notes) == len(list(tmp_path.glob("*/index.json"))) == 1
    assert torch.equal(first.values, again.values)
    fewer = replace(clips, clips=clips.clips[:5], dropped=())
    assert len(FeatureCache(model, recipe, tmp_path, notes.append).get(fewer).clips) == 5
    with torch.no_grad():
        next(iter(model.encoder.parameters())).add_(0.01)
    other = FeatureCache(model, recipe, tmp_path, notes.append).get(clips)
    assert len(notes) == len(list(tmp_path.glob("*/index.json"))) == 3
    assert not torch.equal(first.values, other.values)


def test_features_needed_twice_at_once_are_computed_once(home: Path, tmp_path: Path) -> None:
    recipe, clips, model, _ = built(home)
    notes: list[str] = []
    encoding = threading.Barrier(2)

    def note(text: str) -> None:
        notes.append(text)
        with suppress(threading.BrokenBarrierError):
            encoding.wait(timeout=2)  # wait, so that the other thread would also compute features if it could

    caches = [FeatureCache(model, recipe, tmp_path, note) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda cache: cache.get(clips), caches)
    assert len(notes) == 1
    assert torch.equal(first.values, second.values)


def test_unreadable_clips_have_no_features(home: Path, tmp_path: Path) -> None:
    recipe, clips, model, _ = built(home)
    copied = tmp_path / "clips"
    shutil.copytree(home, copied, ignore=shutil.ignore_patterns("run", "cache"))
    (copied / "clip005.flac").write_bytes(b"no audio")
    moved = load_recipe(home / "recipe.yaml", [f"data.train.clips.path={copied / 'manifest.jsonl'}"])
    features = FeatureCache(model, recipe, tmp_path / "features", lambda note: None).get(gathered(moved))
    assert len(features.clips) == len(clips.clips) - 1
    assert [drop.reason for drop in features.dropped] == ["undecodable"]


def test_damaged_features_and_full_disks_are_named(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, clips, model, _ = built(home)
    cache = FeatureCache(model, recipe, tmp_path, lambda note: None)
    cache.get(clips)
    (values,) = tmp_path.glob("*/values.bin")
    values.write_bytes(values.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"is damaged .*values\.bin.*; delete that folder"):
        cache.get(clips)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"GB in .* TINY_AUDIO_CACHE .*--no-feature-cache"):
        FeatureCache(model, recipe, tmp_path / "else", lambda note: None).get(clips)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["encoder.freeze=false"], "the encoder is trained (encoder.freeze is false). Train an encoder with "),
        (["encoder.lora={rank: 2, alpha: 2, targets: [q_proj]}"], "the encoder's LoRA adapters are trained"),
        (["encoder.layer=weighted"], "the weights of encoder.layer: weighted are trained"),
        (["encoder.dropout=0.1"], "encoder.dropout is 0.1, so the frames of a clip change at every step; set it to 0"),
        (["augmentation.white_noise={}"], "augmentation (white_noise) changes each clip in each epoch"),
        (["augmentation.spec_augment={}"], "augmentation (spec_augment) changes each clip"),
        (["training.init_from.parts=[encoder]"], "the CTC head has random weights and is frozen"),
    ],
)
def test_recipes_whose_frames_change_are_rejected(home: Path, overrides: list[str], message: str) -> None:
    recipe = load_recipe(home / "recipe.yaml", overrides)
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        check_cacheable(recipe)
    assert "add --no-feature-cache to run the encoder at every step" in str(refused.value)


def test_training_on_cached_frames_equals_training_on_audio(home: Path, tmp_path: Path) -> None:
    """Only the decoder's losses are compared, because the CTC head is trained only if the input is audio."""
    curves = []
    for cached in (True, False):
        recipe, clips, model, target_encoder = built(home, "execution.log_every=1", "training.steps=6")
        inputs: Any = WaveformClips(clips, {})
        if cached:
            cache = FeatureCache(model, recipe, tmp_path, lambda note: None)
            inputs = CachedClips(cache.get(clips), {})
        inputs.prepare(model)
        trained = train(model, recipe, inputs.epochs(model, recipe, target_encoder), Budget(steps=6))
        assert trained.steps == 6
        curves.append([loss for _, loss in trained.curve])
    # If the input is audio, gradient clipping also counts the gradients of the CTC head. So the losses after the first
    # step differ slightly.
    assert curves[0][0] == pytest.approx(curves[1][0], rel=1e-5)
    assert curves[0] == pytest.approx(curves[1], rel=0.05)
    assert curves[0][-1] < curves[0][0]


def test_every_variant_sees_the_same_clips_in_the_same_order(home: Path, tmp_path: Path) -> None:
    orders = []
    for projector in ("swiglu", "conv"):
        recipe, clips, model, target_encoder = built(home, f"projector={projector}", "training.seed=3")
        cache = FeatureCache(model, recipe, tmp_path, lambda note: None)
        batches = CachedClips(cache.get(clips), {}).epochs(model, recipe, target_encoder)(1)
        orders.append([[row.tolist() for row in batch.targets] for batch in batches])
    assert orders[0] == orders[1]
    assert sum(map(len, orders[0])) == 24


def test_a_budget_in_seconds_is_respected(home: Path, tmp_path: Path) -> None:
    recipe, clips, model, target_encoder = built(home, "training.steps=1000")
    inputs = CachedClips(FeatureCache(model, recipe, tmp_path, lambda note: None).get(clips), {})
    trained = train(model, recipe, inputs.epochs(model, recipe, target_encoder), Budget(seconds=0.5))
    assert trained.steps > 1
    assert 0.5 <= trained.wall_s < 5
