"""Compression of audio embeddings by their most similar labels (``alignment.compress``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import Document, changed
from tests.support.models import assemble, batch
from tests.support.training import make_trainer, parse, recipe_on
from tiny_audio.ctc import AlignmentConfig
from tiny_audio.model.alignment import AlignmentLoss, compressed
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.recipe._cross_field_rules import cross_field_errors

MODEL, TOKENIZER = assemble(ctc=False)
IDS = TOKENIZER.encode("four", add_special_tokens=False)
SETTINGS = {"token_ids": sorted(set(IDS)), "blank_similarity": 0.5}


def embeddings(*tokens: int | None) -> Tensor:
    """Return scaled token embeddings ``[N, H]``. None is a vector that is similar to no token."""
    table = MODEL.decoder.embed(torch.tensor(SETTINGS["token_ids"])).detach()
    rows = [-table.sum(0) if token is None else MODEL.decoder.embed(torch.tensor(token)).detach() for token in tokens]
    scales = torch.arange(1, len(rows) + 1)  # so that averages differ from single rows
    return torch.stack(rows) * scales[:, None]


def test_runs_of_a_label_are_averaged_and_blanks_are_left_out() -> None:
    one, two = SETTINGS["token_ids"][:2]
    first, second = embeddings(None, one, one, None, one, two, None), embeddings(None, None, two, two, one)
    padded = torch.stack([first, torch.cat([second, torch.full((2, MODEL.decoder.dim), torch.nan)])])
    found, lengths = compressed(MODEL.decoder, (padded, torch.tensor([7, 4])), SETTINGS)
    assert lengths.tolist() == [3, 1]
    torch.testing.assert_close(found[0], torch.stack([first[1:3].mean(0), first[4], first[5]]))
    torch.testing.assert_close(found[1], torch.stack([second[2:4].mean(0), *torch.zeros(2, MODEL.decoder.dim)]))


def test_a_clip_with_only_blanks_becomes_one_embedding() -> None:
    audio = embeddings(None, None, None)
    found, lengths = compressed(MODEL.decoder, (audio[None], torch.tensor([2])), SETTINGS)
    assert lengths.tolist() == [1]
    torch.testing.assert_close(found[0], audio[:2].mean(0, keepdim=True))


def test_without_settings_nothing_changes() -> None:
    audio = embeddings(None, IDS[0])[None], torch.tensor([2])
    assert compressed(MODEL.decoder, audio, None) is audio


@pytest.fixture
def model() -> TinyAudioModel:
    """A model that compresses. Its threshold is so low that its untrained embeddings are not all blanks."""
    model, _ = assemble(ctc=False)
    model.config.compression = SETTINGS | {"blank_similarity": 0.05}
    return model


def test_the_decoder_gets_the_compressed_embeddings_and_the_loss_all(model: TinyAudioModel) -> None:
    targets = [torch.tensor([*IDS, model.config.end_token_id])] * 2
    alignment = AlignmentLoss(AlignmentConfig(), SETTINGS["token_ids"])
    with torch.no_grad():
        frames = model.encode(*batch(16_000, 9_000))
        full, short = model.projector(frames), model.embed_audio(frames)
        model.alignment = alignment
        scores = model.train().score_frames(frames, targets)
        assert (short[1] < full[1]).all()
        torch.testing.assert_close(scores.decoder_loss, model.score_embeddings(*short, targets))
        torch.testing.assert_close(scores.alignment_loss, alignment(model.decoder, *full, targets)[0])


def test_decoding_uses_the_compressed_embeddings(model: TinyAudioModel, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Tensor] = []
    splice = model.splice

    def record(audio: Tensor, lengths: Tensor, *args: Any, **settings: Any) -> Any:
        found.append(lengths)
        return splice(audio, lengths, *args, **settings)

    monkeypatch.setattr(model, "splice", record)
    waveforms, lengths = batch(16_000, 9_000)
    model.transcribe(waveforms, lengths, TOKENIZER)
    model.generate(waveforms, lengths)
    expected = model.embed_audio(model.encode(waveforms, lengths))[1]
    assert [sizes.tolist() for sizes in found] == [expected.tolist()] * 2


def test_a_saved_model_compresses_with_the_same_labels(model: TinyAudioModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = TinyAudioModel.from_pretrained(tmp_path)
    assert loaded.config.compression == model.config.compression
    frames = model.encode(*batch(16_000, 9_000))
    expected, found = model.embed_audio(frames), loaded.embed_audio(frames)
    assert torch.equal(expected[0], found[0])
    assert torch.equal(expected[1], found[1])


def test_a_run_compresses_with_the_labels_of_its_loss(tmp_path: Path) -> None:
    document = changed(recipe_on(tmp_path), training__steps=3, alignment={"alone_steps": 1, "compress": True})
    trainer = make_trainer(document, tmp_path / "run")
    trainer.run()
    model = trainer.bare_model
    assert isinstance(model.alignment, AlignmentLoss)
    assert model.config.compression == {"token_ids": model.alignment.token_ids.tolist(), "blank_similarity": 0.5}


def test_compression_needs_an_aligned_projector(tmp_path: Path) -> None:
    document: Document = recipe_on(tmp_path)
    for alignment, expected in (({"alone_steps": 2}, []), ({}, ["alignment.compress"])):
        recipe = parse(changed(document, training__steps=3, alignment={"compress": True, **alignment}))
        assert [place for place, _ in cross_field_errors(recipe)] == expected
    taken = changed(document, alignment={"compress": True}, training__init_from={"path": str(tmp_path)})
    assert "alignment.compress" not in [place for place, _ in cross_field_errors(parse(taken))]


def test_recipes_without_compression_keep_their_identity(tmp_path: Path) -> None:
    document = changed(recipe_on(tmp_path), training__steps=3, alignment={"alone_steps": 1})
    assert "compress" not in parse(document).training_identity()["alignment"]
