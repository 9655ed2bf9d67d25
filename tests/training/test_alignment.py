"""The alignment loss: CTC between audio embeddings and the decoder's token embeddings."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from tests.conftest import Document, changed, tiny_recipe, write_clips
from tests.support.models import assemble, batch
from tests.support.training import ActingCallback, gather, logged, make_trainer, parse, recipe_on
from tiny_audio.commands.run.state import LearnedVocabulary, RunState, TrainingInputs, TrainingState
from tiny_audio.ctc import AlignmentConfig
from tiny_audio.decoders import TrainedTokenizerConfig, train_tokenizer
from tiny_audio.model.alignment import AlignmentLoss
from tiny_audio.recipe._cross_field_rules import cross_field_errors
from tiny_audio.training.alignment_labels import choose_labels
from tiny_audio.training.final_weights import Selection
from tiny_audio.training.progress import Progress
from tiny_audio.training.transcript_vocabulary import TranscriptVocabulary

MODEL, TOKENIZER = assemble()
SIZES = (16_000, 9_000)
TEXTS = ("one", "four")
TARGETS = [
    torch.tensor([*TOKENIZER.encode(text, add_special_tokens=False), MODEL.config.end_token_id]) for text in TEXTS
]
IDS = sorted({int(token) for target in TARGETS for token in target[:-1]})


def embeddings(num: int, seed: int = 0) -> Tensor:
    return torch.randn(2, num, MODEL.decoder.dim, generator=torch.Generator().manual_seed(seed))


def by_hand(audio: Tensor, target: list[int], config: AlignmentConfig) -> float:
    """Return the CTC loss of one clip ``[N, H]``, computed by listing all paths."""
    similarity = F.cosine_similarity(audio[:, None], MODEL.decoder.embed(torch.tensor(IDS)).detach()[None], dim=-1)
    blanks = torch.full((len(audio), 1), config.blank_similarity)
    log_probs = (torch.cat([blanks, similarity], 1) / config.temperature).log_softmax(-1)
    total = 0.0
    for path in product(range(len(IDS) + 1), repeat=len(audio)):
        merged = [label for index, label in enumerate(path) if index == 0 or label != path[index - 1]]
        if [IDS[label - 1] for label in merged if label] == target:
            total += math.exp(sum(float(log_probs[index, label]) for index, label in enumerate(path)))
    return -math.log(total)


def test_the_loss_equals_the_sum_over_all_paths() -> None:
    config = AlignmentConfig(temperature=0.3, blank_similarity=0.2)
    audio, lengths = embeddings(5), torch.tensor([4, 5])
    losses, fits = AlignmentLoss(config, IDS)(MODEL.decoder, audio, lengths, TARGETS)
    assert fits.tolist() == [True, True]
    wanted = [
        by_hand(row[:length], target[:-1].tolist(), config)
        for row, length, target in zip(audio, lengths.tolist(), TARGETS, strict=True)
    ]
    assert losses.tolist() == pytest.approx(wanted, rel=1e-4)


def test_audio_embeddings_equal_to_token_embeddings_have_a_small_loss() -> None:
    audio = torch.stack([MODEL.decoder.embed(target[[0, 1, 2]]) for target in TARGETS]).detach()
    short = [torch.cat([target[:3], target[-1:]]) for target in TARGETS]
    loss = AlignmentLoss(AlignmentConfig(temperature=0.02), IDS)
    aligned, _ = loss(MODEL.decoder, 5 * audio, torch.tensor([3, 3]), short)
    other, _ = loss(MODEL.decoder, embeddings(3), torch.tensor([3, 3]), short)
    assert float(aligned.max()) < 0.1 < 10 < float(other.min())


def test_nearest_tokens_leave_out_repeats_and_blanks() -> None:
    one, two = IDS[:2]
    audio = MODEL.decoder.embed(torch.tensor([[one, one, one, two, two]])).detach()
    audio[0, 1] *= -1  # similar to no token
    assert AlignmentLoss(AlignmentConfig(), IDS).nearest(MODEL.decoder, audio, torch.tensor([4])) == [[one, one, two]]


def test_tokens_without_a_label_are_spelled() -> None:
    one, two, three = IDS[:3]
    spelled = AlignmentLoss(AlignmentConfig(), [one, two], {three: [two, one]})
    audio, lengths = embeddings(6), torch.tensor([6, 5])
    end = torch.tensor([MODEL.config.end_token_id])
    targets = [torch.cat([torch.tensor(ids), end]) for ids in ([one, three], [three, three])]
    losses, fits = spelled(MODEL.decoder, audio, lengths, targets)
    pieces = [torch.cat([torch.tensor(ids), end]) for ids in ([one, two, one], [two, one, two, one])]
    assert torch.equal(losses, AlignmentLoss(AlignmentConfig(), [one, two])(MODEL.decoder, audio, lengths, pieces)[0])
    assert fits.tolist() == [True, True]
    assert spelled(MODEL.decoder, audio, torch.tensor([6, 3]), targets)[1].tolist() == [True, False]


def test_a_clip_with_too_few_embeddings_is_left_out() -> None:
    audio = embeddings(6).requires_grad_()
    losses, fits = AlignmentLoss(AlignmentConfig(), IDS)(MODEL.decoder, audio, torch.tensor([6, 3]), TARGETS)
    assert fits.tolist() == [True, False]
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert audio.grad is not None
    assert losses.detach().sign().tolist() == [1, 0]
    assert audio.grad.isfinite().all()
    assert audio.grad[0].abs().sum() > 0
    assert not audio.grad[1].any()
    assert MODEL.decoder.embed(torch.tensor([0])).requires_grad
    assert all(tensor.grad is None for tensor in MODEL.decoder.parameters())


def test_the_loss_is_computed_only_in_training_and_adds_no_weights() -> None:
    model, _ = assemble(ctc=False)
    names = set(model.state_dict())
    model.alignment = AlignmentLoss(AlignmentConfig(), IDS)
    assert set(model.state_dict()) == names
    with torch.no_grad():
        assert model(*batch(*SIZES), TARGETS).alignment_loss is None
        scores = model.train()(*batch(*SIZES), TARGETS)
    assert scores.alignment_loss is not None
    halved = scores.weighted(0.5)
    assert torch.equal(halved.alignment_loss, 0.5 * scores.alignment_loss)
    assert torch.equal(halved.decoder_loss, 0.5 * scores.decoder_loss)


def test_the_weight_falls_to_zero() -> None:
    config = AlignmentConfig(weight=0.5, steps=10)
    assert [config.weight_at(step) for step in (0, 5, 10, 50)] == [0.5, 0.25, 0.0, 0.0]
    assert AlignmentConfig(weight=0.5).weight_at(10**6) == 0.5


def test_the_weight_falls_after_the_steps_without_the_decoder() -> None:
    config = AlignmentConfig(weight=0.5, steps=10, alone_steps=4)
    assert [config.weight_at(step) for step in (0, 3, 4, 9, 14)] == [0.5, 0.5, 0.5, 0.25, 0.0]


# --- runs


@pytest.fixture
def document(tmp_path: Path) -> Document:
    write_clips(tmp_path / "data", 6)
    settings = {"training__steps": 4, "training__warmup_steps": 0, "execution__log_every": 1}
    return changed(tiny_recipe(tmp_path / "data"), data__evaluation={}, **settings)


def test_the_alignment_loss_is_logged(document: Document, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    make_trainer(changed(document, alignment={"weight": 0.5}), folder).run()
    total, decoder, ctc, aligned = (
        logged(folder, key) for key in ("loss", "decoder_loss", "ctc_loss", "alignment_loss")
    )
    assert min(aligned) > 0
    assert len(total) == 4
    assert total == pytest.approx([one + 0.5 * other for one, other in zip(decoder, aligned, strict=True)])
    assert ctc == [None] * 4
    assert logged(folder, "unaligned_clips") == sorted(logged(folder, "unaligned_clips"))


def test_first_steps_leave_out_the_decoder(tmp_path: Path) -> None:
    document = changed(recipe_on(tmp_path), training__steps=4, execution__log_every=3, alignment={"alone_steps": 2})
    moved: set[str] = set()
    callback = ActingCallback(2, lambda: moved.update(name for name in initial if changes(name)))
    trainer = make_trainer(document, tmp_path / "run", callback=callback)
    initial = {name: tensor.clone() for name, tensor in trainer.bare_model.named_parameters() if tensor.requires_grad}

    def changes(name: str) -> bool:
        return not torch.equal(trainer.bare_model.get_parameter(name), initial[name])

    trainer.run()
    assert [step for step, _ in callback.steps] == [2, 3, 4]
    assert {name.split(".")[0] for name in initial} == {"encoder", "projector", "decoder"}
    assert {name.split(".")[0] for name in moved} == {"encoder", "projector"}
    assert any(changes(name) for name in initial if name.startswith("decoder"))
    assert [loss is None for loss in logged(tmp_path / "run", "decoder_loss")] == [True, False, False]
    assert min(logged(tmp_path / "run", "alignment_loss")) > 0


def test_evaluations_before_the_decoder_is_trained_do_not_stop_training(document: Document) -> None:
    best = {"set": "held_out", "patience": 2}
    execution = {"device": "cpu", "evaluate_every": 2, "evaluate_set": "held_out"}
    settings: dict[str, Any] = {"training__steps": 12, "training__keep_best": best, "execution": execution}
    recipe = parse(changed(document, alignment={"alone_steps": 5}, **settings))
    selection, progress, stops = Selection(recipe), Progress(), {}
    for step in (2, 4, 6, 8):
        progress.step = step
        selection.add(progress, {"wer": 1.0})
        stops[step] = selection.stops_early(progress)
    assert stops == {2: False, 4: False, 6: False, 8: True}


def test_the_decoder_must_be_trained_in_some_steps(document: Document) -> None:
    for alone_steps, expected in ((3, []), (4, ["alignment.alone_steps"])):
        recipe = parse(changed(document, alignment={"alone_steps": alone_steps}))
        assert [place for place, _ in cross_field_errors(recipe)] == expected


def test_recipes_without_the_section_keep_their_identity(document: Document) -> None:
    plain, aligned = parse(document), parse(changed(document, alignment={}))
    assert "alignment" not in plain.training_identity()
    assert plain.run_id() != aligned.run_id()


def test_labels_are_the_tokens_of_the_transcripts(document: Document) -> None:
    recipe = parse(changed(document, alignment={}))
    clips = gather(recipe)
    learned = TranscriptVocabulary.learn(recipe, clips, None)
    encode = learned.decoder_tokenizer(recipe, None).encode
    assert learned.token_ids == sorted({token for text in clips.texts for token in encode(text)})
    assert TranscriptVocabulary.learn(parse(document), clips, None).token_ids is None


def test_tokens_without_an_embedding_are_not_labels(document: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parse(changed(document, alignment={}))
    clips = gather(recipe)
    ids = TranscriptVocabulary.learn(recipe, clips, None).token_ids
    assert ids
    monkeypatch.setattr(type(recipe.decoder), "num_embeddings", lambda _: ids[-1])
    assert TranscriptVocabulary.learn(recipe, clips, None).token_ids == ids[:-1]


def test_the_most_frequent_pieces_of_words_become_labels() -> None:
    words = [
        f"{start}{middle}{end}"
        for start in ("be", "so", "ta")
        for middle in ("rk", "nd", "ll")
        for end in ("ing", "ed", "er", "ly")
    ]
    tokenizer = train_tokenizer(TrainedTokenizerConfig(vocab_size=300), words * 3)
    counts = Counter(token for word in words for token in tokenizer.encode(word, add_special_tokens=False))
    assert len(counts) == len(words)  # each word is a token
    labels, pieces = choose_labels(tokenizer, counts, most=30)
    assert len(labels) <= 30
    assert pieces.keys() == counts.keys()
    assert {piece for row in pieces.values() for piece in row} == set(labels)
    for token, row in pieces.items():
        assert 2 <= len(row) <= 4
        assert "".join(tokenizer.convert_ids_to_tokens(row)) == tokenizer.convert_ids_to_tokens(token)
    assert (
        choose_labels(tokenizer, counts, most=None) == choose_labels(tokenizer, counts, most=36) == (sorted(counts), {})
    )


def test_tokens_that_cannot_be_spelled_stay_labels() -> None:
    tokenizer = train_tokenizer(TrainedTokenizerConfig(vocab_size=60), ["banana", "bandana", "cabana"])
    counts = Counter(range(len(tokenizer)))
    labels, pieces = choose_labels(tokenizer, counts, most=8)
    assert set(tokenizer.all_special_ids) <= set(labels)
    assert counts.keys() == set(labels) | pieces.keys()


def tokenizer_of(*names: str) -> PreTrainedTokenizerFast:
    words = models.WordLevel({name: index for index, name in enumerate(names)})
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))


def test_frequent_words_decide_the_pieces() -> None:
    tokenizer = tokenizer_of("ab", "cd", "abab", "cdcd", "abcd", "cdab", "a", "b", "c", "d")
    for frequent, rare, letters in ((0, 1, [8, 9]), (1, 0, [6, 7])):
        counts = Counter(dict.fromkeys(range(6), 1)) + Counter({frequent: 50})
        labels, pieces = choose_labels(tokenizer, counts, most=5)
        assert labels == sorted([frequent, *letters])
        assert pieces[rare] == letters
        assert pieces[4 + frequent] == [frequent, *letters]


def test_a_token_with_a_letter_that_is_no_token_stays_a_label() -> None:
    tokenizer = tokenizer_of("xab", "ab", "a", "b")
    assert choose_labels(tokenizer, Counter({0: 5, 1: 5}), most=1) == ([0, 2, 3], {1: [2, 3]})


def test_bytes_are_not_spelled() -> None:
    tokenizer = tokenizer_of("<0x41>", "ab", "a", "b", *"<0x41>")
    assert choose_labels(tokenizer, Counter({0: 5, 1: 5}), most=1) == ([0, 2, 3], {1: [2, 3]})


def test_tokens_are_not_spelled_with_pieces_that_have_no_embedding() -> None:
    tokenizer = tokenizer_of("ab", "ba", "a", "b")
    counts = Counter({0: 5, 1: 5})
    assert choose_labels(tokenizer, counts, most=1) == ([2, 3], {0: [2, 3], 1: [3, 2]})
    assert choose_labels(tokenizer, counts, most=1, rows=2) == ([0, 1], {})


def test_a_run_keeps_the_spelling(document: Document, tmp_path: Path) -> None:
    tokens = {"kind": "bpe", "vocab_size": 60}
    document = changed(document, decoder__tokenizer=tokens, alignment={"max_labels": 8})
    recipe = parse(document)
    learned = TranscriptVocabulary.learn(recipe, gather(recipe), None)
    assert learned.pieces
    spelling = LearnedVocabulary("x", **asdict(learned))
    RunState({}, "now", training=TrainingState(TrainingInputs("x"), spelling=spelling)).write(tmp_path)
    read = RunState.read(tmp_path)
    assert read is not None
    assert read.training is not None
    assert read.training.spelling is not None
    assert read.training.spelling.vocabulary == learned
    make_trainer(document, tmp_path / "run").run()
    assert min(logged(tmp_path / "run", "alignment_loss")) > 0
