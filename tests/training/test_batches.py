"""Batches of an epoch's plan: their clips, texts and augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Document, changed, manifest_row, tiny_recipe, write_clips
from tests.support.training import (
    gather,
    make_trainer,
    parse,
)
from tiny_audio.config import RunFailed
from tiny_audio.data.batches import PlannedBatches
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.runtime.world import World
from tiny_audio.training.assembly import assemble
from tiny_audio.training.batches import Batches
from tiny_audio.training.metrics import read_metrics
from tiny_audio.training.signals import StopSignal

pytestmark = pytest.mark.usefixtures("one_thread")


def first_batch(document: Document) -> Any:
    """Return the first batch of the first epoch."""
    recipe = parse(document)
    clips = gather(recipe)
    _, _, target_encoder = assemble(recipe, clips, None)
    plan = clips.clips.plan(recipe.batching, 0, 0)
    return PlannedBatches(clips.clips, plan, target_encoder, recipe.augmentation, recipe.data.max_duration_s, 0, 0)[0]


def test_added_silence_counts_as_audio_and_respects_the_maximum_duration(tmp_path: Path) -> None:
    manifest = write_clips(tmp_path, 4)
    with manifest.open("a") as file:
        file.write(manifest_row(tmp_path / "clip001.flac", "no " * 11, 0.61))  # too much text for 31 frames
    document = changed(tiny_recipe(tmp_path), ctc={"weight": 0.5}, data__max_duration_s=1.5, batching__max_clips=8)
    plain = first_batch(document)
    silence = {"max_before_s": 5.0, "max_after_s": 5.0, "probability": 1.0}
    padded = first_batch(changed(document, augmentation__silence=silence))
    assert [drop.reason for drop in plain.dropped] == ["text_too_long"]
    assert not padded.dropped
    assert len(padded.lengths) == len(plain.lengths) + 1
    assert 1.49 < int(padded.lengths.max()) / SAMPLE_RATE <= 1.5
    assert padded.audio_s > plain.audio_s


def test_a_text_that_does_not_fit_its_clip_is_dropped(tmp_path: Path) -> None:
    manifest = write_clips(tmp_path, 2)
    with manifest.open("a") as file:
        file.write(manifest_row(tmp_path / "clip001.flac", "no " * 40, 0.61))
        file.write(manifest_row(tmp_path / "clip000.wav", "yes", 3.0))
    batch = first_batch(changed(tiny_recipe(tmp_path), ctc={"weight": 0.5}))
    assert {drop.id: drop.reason for drop in batch.dropped} == {
        "clips/clip001.flac:3": "text_too_long",
        "clips/clip000.wav:4": "duration_differs",
    }
    details = " ".join(drop.detail for drop in batch.dropped)
    assert "119 characters need at least 119 frames, but the clip has 31" in details
    assert "lasts 1.10 s, but the index lists 3.00 s; correct the index" in details
    assert len(batch.targets) == 2
    assert batch.waveforms.shape[0] == len(batch.seeds) == len(batch.ctc_targets) == 2


def test_a_clip_is_not_sped_up_if_its_text_would_not_fit(tmp_path: Path) -> None:
    """Speeding up a clip removes frames, so a text may no longer fit. Such a clip is used at its own speed."""
    manifest = write_clips(tmp_path, 2)
    with manifest.open("a") as file:
        file.write(manifest_row(tmp_path / "clip001.flac", "stop now go on left stop no ba", 0.61))
    document = changed(tiny_recipe(tmp_path), ctc={"weight": 0.5}, augmentation={"speed": [1.1], "white_noise": {}})
    first, again = first_batch(document), first_batch(document)
    assert not first.dropped
    lengths = {row.numel(): length for row, length in zip(first.targets, first.lengths.tolist(), strict=True)}
    assert lengths[max(lengths)] == 9760, "the clip with the longest text is not sped up"
    assert 0.61 * 16_000 / 1.1 < 9_000
    assert sorted(first.lengths.tolist())[0] < 9_000, "other clips are sped up"
    assert torch.equal(first.waveforms, again.waveforms)


def test_a_clip_that_is_not_sped_up_respects_the_maximum_duration(tmp_path: Path) -> None:
    manifest = write_clips(tmp_path, 2)
    with manifest.open("a") as file:
        # At the higher speed, these clips are too short for their text. Without added silence, they keep their speed.
        for _ in range(12):
            file.write(manifest_row(tmp_path / "clip001.flac", "stop now go on left stop no ba", 0.61))
    augmentation = {"speed": [1.1], "silence": {"max_before_s": 5.0, "max_after_s": 5.0}}
    document = changed(tiny_recipe(tmp_path), ctc={"weight": 0.5}, augmentation=augmentation, batching__max_clips=16)
    batch = first_batch(changed(document, data__max_duration_s=1.5))
    assert len(batch.lengths) == 14
    assert int(batch.lengths.max()) <= 1.5 * SAMPLE_RATE


def test_a_text_with_a_control_token_is_dropped(tmp_path: Path) -> None:
    manifest = write_clips(tmp_path, 2)
    with manifest.open("a") as file:
        file.write(manifest_row(tmp_path / "clip001.flac", "no <|end|>", 0.61))
    batch = first_batch(tiny_recipe(tmp_path))
    assert {drop.id: drop.reason for drop in batch.dropped} == {"clips/clip001.flac:3": "special_token"}
    assert "'<|end|>'" in batch.dropped[0].detail
    assert len(batch.targets) == 2


def test_target_text_is_normalized_and_empty_texts_are_dropped(tmp_path: Path) -> None:
    manifest = write_clips(tmp_path, 2)
    with manifest.open("a") as file:
        file.write(manifest_row(tmp_path / "clip001.flac", "Uh [noise]", 0.61))
        file.write(manifest_row(tmp_path / "clip001.flac", "I'm UM here", 0.61))
    batch = first_batch(changed(tiny_recipe(tmp_path), data__target_text="whisper_english"))
    assert len(batch.targets) == 3
    (drop,) = batch.dropped
    assert (drop.id, drop.reason, drop.detail) == (
        "clips/clip001.flac:3",
        "text_missing",
        "data.target_text makes its transcript empty",
    )


def test_a_run_cannot_continue_with_another_plan(tmp_path: Path) -> None:
    write_clips(tmp_path, 4)
    recipe = parse(changed(tiny_recipe(tmp_path), batching__max_clips=2))
    clips = gather(recipe)
    _, _, target_encoder = assemble(recipe, clips, None)
    batches = Batches(recipe, clips, target_encoder, World(), lambda dropped: None, StopSignal(), pin_memory=False)
    plan = clips.clips.plan(recipe.batching, recipe.training.seed, 0)
    assert next(batches.start(0, 1, plan.hash)).index == 1
    with pytest.raises(RunFailed) as failure:
        next(batches.start(0, 1, "another"))
    assert "epoch 0" in str(failure.value)
    assert "batch 1" in str(failure.value)


def test_epochs_without_clips_are_skipped(tmp_path: Path) -> None:
    """With a weight of 0.1, each of the three clips is in one of ten epochs, so at least seven epochs are empty. With
    a weight of 1e-7, a run fails, because the first 1,000 epochs are empty."""

    def mixed(weight: float) -> Document:
        source = tiny_recipe(tmp_path)["data"]["train"]["clips"]
        mix = {"name": "mix", "sources": {"few": {"source": source, "weight": weight}}}
        return changed(tiny_recipe(tmp_path), data__train={"mix": mix}, training__steps=4, execution__log_clips=True)

    write_clips(tmp_path, 3)
    make_trainer(mixed(0.1), tmp_path / "run").run()
    epochs = [row["epoch"] for row in read_metrics(tmp_path / "run" / "clips.jsonl")]
    assert len(epochs) == 4
    assert epochs[0] > 0
    assert epochs == sorted(set(epochs))
    with pytest.raises(RunFailed) as failure:
        make_trainer(mixed(1e-7), tmp_path / "never").run()
    for value in ("data.train", "1,000 epochs", "epoch 1000", "3e-07"):
        assert value in str(failure.value)


def test_each_use_of_a_clip_in_an_epoch_is_augmented_differently(tmp_path: Path) -> None:
    write_clips(tmp_path, 2)
    document = changed(tiny_recipe(tmp_path), augmentation={"speed": [0.8, 0.9, 1.1, 1.2]}, batching__max_clips=8)
    mixed = {"source": document["data"]["train"]["clips"], "weight": 4}
    recipe = parse(changed(document, data__train={"mix": {"name": "mix", "sources": {"clips": mixed}}}))
    clips = gather(recipe)
    _, _, target_encoder = assemble(recipe, clips, None)
    plan = clips.clips.plan(recipe.batching, 0, 0)
    whole = PlannedBatches(clips.clips, plan, target_encoder, recipe.augmentation, recipe.data.max_duration_s, 0, 0)[0]
    assert len(set(whole.seeds)) == 8
    assert len(set(whole.lengths.tolist())) > 2
    parts = [
        PlannedBatches(
            clips.clips, plan, target_encoder, recipe.augmentation, recipe.data.max_duration_s, 0, 0, rank, 2
        )[0]
        for rank in range(2)
    ]
    assert [parts[index % 2].seeds[index // 2] for index in range(8)] == whole.seeds


def test_augmented_clips_stay_within_the_seconds_of_a_batch(tmp_path: Path) -> None:
    write_clips(tmp_path, 12)
    augmentation = {"speed": [0.5, 1.0, 2.0], "silence": {"max_before_s": 0.4, "max_after_s": 0.4}}
    document = changed(tiny_recipe(tmp_path), augmentation=augmentation, data__max_duration_s=2.0)
    recipe = parse(changed(document, batching={"max_clips": 4, "max_padded_s": 4.0, "pool_batches": 10}))
    clips = gather(recipe)
    _, _, target_encoder = assemble(recipe, clips, None)
    batches = Batches(recipe, clips, target_encoder, World(), lambda dropped: None, StopSignal(), pin_memory=False)
    sizes, padded_s, lengths = [], [], []
    for micro_batch in batches.start(0, 0, ""):
        assert micro_batch is not None
        if micro_batch.epoch > 1:
            break
        batch = micro_batch.batch
        sizes.append(len(batch.lengths))
        padded_s.append(batch.waveforms.numel() / SAMPLE_RATE)
        lengths.append(batch.lengths)
    assert sum(sizes) == 24
    assert max(padded_s) <= 4.001
    assert max(sizes) > 1
    assert all((clip_lengths.diff() >= -1).all() for clip_lengths in lengths)


def test_batches_do_not_depend_on_the_number_of_threads(document: Document) -> None:
    document = changed(document, augmentation__speed=[0.9], augmentation__white_noise={"snr_db": [10.0, 30.0]})
    alone = first_batch(document)
    torch.set_num_threads(2)
    try:
        assert torch.equal(first_batch(document).waveforms, alone.waveforms)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
