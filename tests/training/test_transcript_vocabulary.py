"""Vocabularies of tokens and characters. They are learned from the transcripts once per run, and stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import Document, changed, manifest_row, tiny_recipe, write_clips
from tests.support.parquet_shards import LOQUACIOUS, loquacious_row, write_parquet
from tests.support.training import (
    RecordingCallback,
    gather,
    parse,
    recipe_on,
    run,
)
from tests.support.worlds import in_processes
from tiny_audio.commands.run import Run
from tiny_audio.config import UserError
from tiny_audio.data.augmentation import AugmentationConfig, clip_seed
from tiny_audio.data.clips import ClipSet
from tiny_audio.data.order import BatchingConfig, plan_epoch
from tiny_audio.decoders import DECODERS, DecoderContext, build_tokenizer, restore_tokenizer
from tiny_audio.sources import SOURCES, ColumnarUtterances, SourceContext, ids_of, texts_of
from tiny_audio.sources._index_table import TableUtterances
from tiny_audio.training.assembly import assemble
from tiny_audio.training.checkpoint import latest
from tiny_audio.training.transcript_vocabulary import TranscriptVocabulary

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = {"kind": "bpe", "vocab_size": 60}


@pytest.fixture
def document(tmp_path: Path) -> Document:
    """Return a recipe whose tokenizer and CTC characters are learned from the transcripts."""
    write_clips(tmp_path, 8)
    settings = {
        "ctc": {"weight": 0.5},
        "decoder__tokenizer": TOKENIZER,
        "training__steps": 2,
        "training__warmup_steps": 0,
        "evaluation__num_bootstrap": 100,
        "generation__max_new_tokens": 5,
    }
    return changed(tiny_recipe(tmp_path), **settings)


# --- reading transcripts


@pytest.fixture
def mixed(tmp_path: Path, document: Document) -> ClipSet:
    """Return the clips of three sets: a manifest, a table of two shards with row groups of 5, and a mix of both."""
    for shard in range(2):
        rows = [loquacious_row(20 * shard + number, text=f"text {shard} {number}") for number in range(20)]
        rows[7]["text"] = ""
        write_parquet(tmp_path / "shards" / f"{shard}.parquet", rows, LOQUACIOUS, row_group=5)
    manifest = {"name": "manifest", "path": str(tmp_path / "manifest.jsonl")}
    table = {"name": "parquet", "path": str(tmp_path / "shards"), "audio_column": "wav", "id_column": "ID"}
    parts = {"read": {"source": manifest}, "wild": {"source": table, "max_clips": 17}, "all": {"source": table}}
    train = {"clips": manifest, "table": table, "mix": {"name": "mix", "sources": parts}}
    data = parse(changed(document, data__train=train)).data
    sources = {name: SOURCES.build(source, SourceContext(tmp_path / "cache")) for name, source in data.train.items()}
    return ClipSet.gather(sources, 0.7, 10.0, "lower")


def test_texts_equal_the_transcripts_of_the_clips(mixed: ClipSet) -> None:
    expected = [mixed.clips[index].utterance.text for index in range(len(mixed.clips))]
    assert len(expected) > 70
    assert len(set(expected)) > 25
    assert list(mixed.texts) == expected


def test_only_the_needed_column_of_a_table_is_read(mixed: ClipSet, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [
        (name, utterances) for name, _, utterances in mixed.clips.sets if isinstance(utterances, ColumnarUtterances)
    ]
    assert [name for name, _ in columns] == ["table", "mix"]
    chosen = [np.random.default_rng(0).permutation(len(utterances)) for _, utterances in columns]
    expected = [
        [(utterances[int(row)].text, utterances[int(row)].id) for row in rows]
        for (_, utterances), rows in zip(columns, chosen, strict=True)
    ]

    def refuse(*_: Any) -> None:
        raise AssertionError("a row was made into an utterance")

    monkeypatch.setattr(TableUtterances, "__getitem__", refuse)
    monkeypatch.setattr("tiny_audio.sources._index_table._ROWS_READ", 3)
    found = [
        list(zip(texts_of(utterances, rows), ids_of(utterances, rows), strict=True))
        for (_, utterances), rows in zip(columns, chosen, strict=True)
    ]
    assert found == expected
    assert list(texts_of(columns[0][1], np.empty(0, np.int64))) == []


def test_durations_after_augmentation_follow_the_ids_of_clips(mixed: ClipSet) -> None:
    clips, config = mixed.clips, BatchingConfig(pool_batches=1000)
    augmentation = AugmentationConfig(speed=(0.8, 1.0, 1.25))
    ids = [clip.id for clip in clips]
    durations_s = [
        augmentation.duration_s(duration_s, clip_seed(3, 1, clip_id), 10.0)
        for duration_s, clip_id in zip(clips.durations_s.tolist(), ids, strict=True)
    ]
    plan = clips.plan(config, 3, 1, augmentation, 10.0)
    assert plan.hash == plan_epoch(durations_s, config, 3, 1, groups=clips.groups).hash
    assert plan.hash != clips.plan(config, 3, 1).hash
    assert clips.plan(config, 3, 1, AugmentationConfig(), 10.0).hash == clips.plan(config, 3, 1).hash


# --- reading and learning only once


def test_a_restored_tokenizer_equals_the_trained_one(document: Document, tmp_path: Path) -> None:
    decoder = parse(document).decoder
    trained = build_tokenizer(decoder, ["it's a dog", "stop now", "go on", "é <|end|>"])
    restored = restore_tokenizer(trained.backend_tokenizer.to_str())
    for name, tokenizer in (("trained", trained), ("restored", restored)):
        tokenizer.save_pretrained(tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "trained").iterdir())
    assert "tokenizer.json" in names
    assert names == sorted(path.name for path in (tmp_path / "restored").iterdir())
    assert all(
        (tmp_path / "trained" / name).read_bytes() == (tmp_path / "restored" / name).read_bytes() for name in names
    )
    assert restored.encode("a stop é <|end|> x") == trained.encode("a stop é <|end|> x")


def test_a_stored_vocabulary_builds_the_same_model(document: Document) -> None:
    recipe = parse(document)
    clips = gather(recipe)
    spelling = TranscriptVocabulary.learn(recipe, clips, None)
    assert spelling.characters == "".join(sorted(set("".join(clips.texts))))
    learned, kept = assemble(recipe, clips, None), assemble(recipe, clips, None, spelling)
    assert learned[2].ctc == kept[2].ctc
    assert learned[1].get_vocab() == kept[1].get_vocab()
    assert all(torch.equal(*pair) for pair in zip(learned[0].parameters(), kept[0].parameters(), strict=True))


def test_transcripts_are_not_read_if_nothing_is_learned_from_them(
    document: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse(document)
    clips = gather(recipe)
    monkeypatch.setattr(ClipSet, "texts", property(_refused))
    alone = recipe.model_copy(update={"ctc": None, "decoder": recipe.decoder.model_copy(update={"tokenizer": None})})
    assert TranscriptVocabulary.learn(alone, clips, None) == TranscriptVocabulary(None, None)
    with pytest.raises(AssertionError, match="transcripts were read"):
        TranscriptVocabulary.learn(recipe, clips, None)


def _refused(_: ClipSet) -> Iterator[str]:
    raise AssertionError("transcripts were read")


def test_a_continued_run_does_not_read_the_transcripts(
    document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, folder = parse(changed(document, data__evaluation={})), tmp_path / "run"
    Run(recipe, "run", folder, RecordingCallback()).complete()
    model = (folder / "model" / "model.safetensors").read_bytes()
    tokenizer = (folder / "model" / "tokenizer.json").read_bytes()
    (folder / "model").rename(tmp_path / "away")
    monkeypatch.setattr(ClipSet, "texts", property(_refused))
    Run(recipe, "run", folder, RecordingCallback()).complete()
    assert (folder / "model" / "model.safetensors").read_bytes() == model
    assert (folder / "model" / "tokenizer.json").read_bytes() == tokenizer


def test_only_the_main_process_reads_the_transcripts(document: Document, tmp_path: Path) -> None:
    recipe, folder = parse(changed(document, data__evaluation={})), tmp_path / "run"

    def work(rank: int) -> bool:
        if rank:
            ClipSet.texts = property(_refused)  # type: ignore[assignment, method-assign]  # in this process only
        return Run(recipe, "run", folder, RecordingCallback()).complete() is not None

    assert in_processes(2, work) == [True, False]


def test_the_vocabulary_is_learned_again_if_texts_change_before_training(document: Document, tmp_path: Path) -> None:
    manifest, folder = tmp_path / "manifest.jsonl", tmp_path / "run"
    good = manifest.read_text()
    (tmp_path / "bad.wav").write_text("no audio")
    manifest.write_text(good + manifest_row(tmp_path / "bad.wav", "zzz", 1.0))
    recipe = parse(changed(document, data__max_dropped_share=0.0, batching__max_clips=9, data__evaluation={}))
    with pytest.raises(UserError, match="1 of 9 training clips are unusable"):
        Run(recipe, "run", folder, RecordingCallback()).complete()
    assert latest(folder / "checkpoints") is None
    assert "z" in json.loads((folder / "state.json").read_text())["training"]["spelling"]["characters"]
    manifest.write_text(good)
    Run(recipe, "run", folder, RecordingCallback()).complete()
    config = json.loads((folder / "model" / "config.json").read_text())
    assert "z" not in config["ctc_characters"]


def test_the_labels_are_chosen_again_if_the_decoder_changes_before_training(tmp_path: Path) -> None:
    document, folder = recipe_on(tmp_path), tmp_path / "run"
    rows = (tmp_path / "manifest.jsonl").read_text()
    (tmp_path / "bad.wav").write_text("no audio")
    (tmp_path / "manifest.jsonl").write_text(rows + manifest_row(tmp_path / "bad.wav", "yes", 1.0))
    document = changed(document, alignment={}, data__max_dropped_share=0.0, batching__max_clips=9)
    with pytest.raises(UserError, match="1 of 9 training clips are unusable"):
        run(document, folder)
    (tmp_path / "bad.wav").write_bytes((tmp_path / "clip000.wav").read_bytes())
    tiny: Any = DECODERS.entry("smollm3").config.tiny()  # type: ignore[attr-defined]
    tokenizer = build_tokenizer(tiny, ["left yes", "xx stop now", "go on turn right"])
    decoder: Any = DECODERS.build(tiny, DecoderContext(tokenizer))
    decoder.model.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    run(document, folder)
    recipe = parse(document)
    expected = TranscriptVocabulary.learn(recipe, gather(recipe), None).token_ids
    assert json.loads((folder / "state.json").read_text())["training"]["spelling"]["token_ids"] == expected
