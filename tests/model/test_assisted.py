"""Assisted decoding generates the tokens of greedy decoding in fewer passes, whether drafts are right or wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.conftest import Document, changed
from tests.support.fast import fast_ones
from tests.support.models import assemble, batch
from tiny_audio.config import UserError
from tiny_audio.decoders import DECODERS, Decoder, DecoderContext, build_tokenizer
from tiny_audio.decoders._tokenizer import TrainedTokenizerConfig, train_tokenizer
from tiny_audio.model.assisted import TextDraft, decode_assisted
from tiny_audio.model.decoding import GenerationConfig
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.recipe import content_hash, load_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["turn on the kitchen light", "turn off the kitchen light please", "set a timer for nine minutes"]
SIZES = (16_000, 5_000, 11_111, 24_000)


def words_tokenizer() -> Any:
    """Return a tokenizer whose tokens are whole words."""
    return train_tokenizer(TrainedTokenizerConfig(kind="bpe", vocab_size=300), [*TEXTS, "TURN ON"])


def assisted_model(
    ctc: bool = True, decoder: dict[str, Any] | None = None, **generation: Any
) -> tuple[TinyAudioModel, Any]:
    settings = GenerationConfig(max_new_tokens=20, **generation)
    return assemble(decoder=decoder or "smollm3", transcripts=TEXTS, prompt="{audio}", ctc=ctc, generation=settings)


def set_draft(model: TinyAudioModel, draft: str | None, **others: Any) -> None:
    model.config.generation = {**model.config.generation, "draft": draft, **others}


def passes_of(model: TinyAudioModel, *inputs: Any) -> int:
    """Return the number of forward passes of the language model in a transcription."""
    calls = []
    language_model: Any = model.decoder.model
    handle = language_model.register_forward_hook(lambda *_: calls.append(1))
    model.transcribe(*inputs)
    handle.remove()
    return len(calls)


# --- equal texts with and without drafts


@pytest.mark.parametrize("max_new_tokens", fast_ones([1, 2, 12, 20], 1, 12))
def test_assisted_decoding_equals_greedy_decoding_alone_and_in_batches(max_new_tokens: int) -> None:
    model, tokenizer = assisted_model()
    set_draft(model, "none", max_new_tokens=max_new_tokens)
    plain = [model.transcribe(*batch(size), tokenizer)[0] for size in SIZES]
    assert len({transcript.text for transcript in plain}) > 1
    set_draft(model, "ctc", max_new_tokens=max_new_tokens)
    assert [model.transcribe(*batch(size), tokenizer)[0] for size in SIZES] == plain
    assert model.transcribe(*batch(*SIZES), tokenizer) == plain
    assert model.transcribe(*batch(*SIZES[::-1]), tokenizer) == plain[::-1]


def test_rows_that_end_early_do_not_affect_other_rows() -> None:
    model, tokenizer = assisted_model()
    set_draft(model, None, max_new_tokens=12)
    ids = model.generate(*batch(*SIZES))
    seen: list[set[int]] = [set(row.tolist()) for row in ids]
    # Choose an end token that is in the middle of one row and in no other row, so that only one row ends early.
    model.config.end_token_id = next(
        token for row in ids for token in row[3:10].tolist() if sum(token in ids for ids in seen) == 1
    )
    plain = model.generate(*batch(*SIZES)).tolist()
    end = model.config.end_token_id
    plain = [row[: row.index(end) + 1] if end in row else row for row in plain]
    assert len({len(row) for row in plain}) > 1
    frames = model.encode(*batch(*SIZES))
    audio, lengths = model.projector(frames)
    texts = [tokenizer.decode(row) for row in plain]
    for guesses in (texts, texts[::-1], [""] * len(texts), ["turn on the light"] * len(texts)):
        decoded = model.verify(audio, lengths, guesses, tokenizer)
        assert [clip.ids for clip in decoded] == plain
        alone = [
            model.verify(audio[row : row + 1], lengths[row : row + 1], [guess], tokenizer)[0]
            for row, guess in enumerate(guesses)
        ]
        assert alone == decoded, "neither the tokens nor the number of passes depend on the batch"


def test_a_right_draft_takes_one_pass_and_an_empty_draft_one_per_token() -> None:
    model, tokenizer = assisted_model()
    (plain,) = model.generate(*batch(SIZES[0])).tolist()
    frames = model.encode(*batch(SIZES[0]))
    audio, lengths = model.projector(frames)
    text = tokenizer.decode(plain)
    assert tokenizer.encode(text, add_special_tokens=False) == plain, "encoding the text must give the generated tokens"
    (right,) = model.verify(audio, lengths, [text], tokenizer)
    assert (right.ids, right.num_passes) == (plain, 1)

    class EmptyDraft:
        def after(self, ids: Sequence[int]) -> list[int]:
            return []

    prompts = model.splice(audio, lengths, [torch.empty(0, dtype=torch.long)], padding_side="left")
    cache = model.decoder.cache()
    assert cache is not None
    with torch.no_grad():
        (slow,) = decode_assisted(model.decoder, cache, *prompts, [EmptyDraft()], max_new_tokens=20, end_id=-1)
    assert (slow.ids, slow.num_passes) == (plain, len(plain))


# --- decoders that can or cannot use drafts


def language_model(model_type: str, overrides: dict[str, Any]) -> Decoder:
    fields = {"name": "causal_lm", "init": "random", "model_type": model_type, "freeze": False, "overrides": overrides}
    config = DECODERS.parse({**fields, "tokenizer": {"kind": "characters"}})
    torch.manual_seed(0)
    return DECODERS.build(config, DecoderContext(build_tokenizer(config, TEXTS))).eval()


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


class WrongDraft:
    def __init__(self, ids: list[int]) -> None:
        self._ids = [token if index % 4 else 3 for index, token in enumerate(ids)]

    def after(self, ids: Sequence[int]) -> list[int]:
        return self._ids[len(ids) :]


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
        ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4}),
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
        (
            "opt",
            {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "ffn_dim": 64,
                "word_embed_proj_dim": 32,
            },
        ),
        ("gpt_neox", SMALL),
        ("mixtral", SMALL | {"num_key_value_heads": 2, "num_local_experts": 2, "sliding_window": 5}),
        ("gemma2", SMALL | {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 5}),
        ("phi3", SMALL | {"num_key_value_heads": 2}),
    ],
)
def test_assisted_decoding_works_with_other_positions_and_windows(model_type: str, overrides: dict[str, Any]) -> None:
    """The families have learned positions, rotary positions or attention biases. Some have a window of five tokens."""
    decoder = language_model(model_type, overrides)
    numbers = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in decoder.parameters():
            if tensor.ndim == 2:
                tensor.copy_(0.4 * torch.randn(tensor.shape, generator=numbers))
        rms = decoder.embedding_rms()
        embeddings = rms * torch.randn(3, 12, decoder.dim, generator=numbers)
        mask = torch.arange(12).flip(0) < torch.tensor([[12], [3], [7]])
        settings: dict[str, Any] = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        plain = decoder.generate(embeddings, mask, **settings).tolist()
        cache = decoder.cache()
        assert cache is not None
        drafts = [WrongDraft(row) for row in plain]
        found = decode_assisted(decoder, cache, embeddings, mask, drafts, max_new_tokens=16, end_id=-1)
    assert [row.ids for row in found] == plain
    assert all(row.num_passes < 10 for row in found)


MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
MAMBA_PART = {"name": "causal_lm", "init": "random", "model_type": "mamba", "freeze": False, "overrides": MAMBA}


def test_decoders_that_cannot_rewind_use_no_drafts() -> None:
    decoder = MAMBA_PART | {"tokenizer": {"kind": "characters"}}
    model, tokenizer = assisted_model(decoder=decoder)
    assert model.decoder.cache() is None
    assert not model.uses_ctc_draft()
    plain = model.transcribe(*batch(SIZES[0]), tokenizer)
    assert passes_of(model, *batch(SIZES[0]), tokenizer) == 20
    set_draft(model, "none")
    assert model.transcribe(*batch(SIZES[0]), tokenizer) == plain
    with pytest.raises(UserError, match=r"generation\.draft: .*rewound"):
        assisted_model(decoder=decoder, draft="ctc")


# --- when drafts are used


def test_drafts_are_used_by_default_if_they_change_nothing() -> None:
    model, tokenizer = assisted_model()
    plain_passes = 20
    assert model.uses_ctc_draft()
    assert passes_of(model, *batch(SIZES[0]), tokenizer) <= plain_passes
    set_draft(model, "none")
    assert not model.uses_ctc_draft()
    assert passes_of(model, *batch(SIZES[0]), tokenizer) == plain_passes
    set_draft(model, None, num_beams=3)
    assert not model.uses_ctc_draft()
    set_draft(model, None, num_beams=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert not model.uses_ctc_draft()
    model.to(torch.bfloat16)
    assert not model.uses_ctc_draft()
    set_draft(model, "ctc")
    assert model.uses_ctc_draft()
    assert not assisted_model(ctc=False)[0].uses_ctc_draft()


def test_impossible_drafts_are_rejected(document: Document, write_recipe: Callable[..., Path]) -> None:
    with pytest.raises(ValidationError, match=r"draft: ctc .* num_beams is 3"):
        GenerationConfig(num_beams=3, draft="ctc")
    with pytest.raises(UserError, match=r"generation\.draft: ctc"):
        assisted_model(ctc=False, draft="ctc")
    with pytest.raises(UserError, match=r"generation\.draft: ctc .*`ctc`"):
        load_recipe(write_recipe(changed(document, generation={"draft": "ctc"})))


def test_scores_do_not_depend_on_drafts(document: Document, write_recipe: Callable[..., Path]) -> None:
    recipes = [
        load_recipe(write_recipe(changed(document, ctc={"weight": 0.5}, generation={"draft": draft})))
        for draft in ("ctc", "none", None)
    ]
    assert len({content_hash(recipe.evaluation_identity()) for recipe in recipes}) == 1
    assert [recipe.generation.draft for recipe in recipes] == ["ctc", "none", None]


# --- drafts from a text


def drafts_after(text: str, *verified: str) -> list[str]:
    """Return the draft that continues each verified text."""
    tokenizer = words_tokenizer()
    draft = TextDraft(text, tokenizer, 1)
    guesses = []
    for whole in verified:
        *ids, end = draft.after(tokenizer.encode(whole, add_special_tokens=False))
        assert end == 1
        guesses.append(tokenizer.decode(ids))
    return guesses


def test_the_draft_continues_where_the_verified_words_end() -> None:
    text = "turn on the kitchen light"
    assert drafts_after(text, "", "turn", "turn on") == [text, " on the kitchen light", " the kitchen light"]
    # The verified text has a different word, an extra word, or a missing word.
    assert drafts_after(text, "turn off", "turn off the") == [" the kitchen light", " kitchen light"]
    assert drafts_after(text, "turn on please the", "turn on please the kitchen") == [" kitchen light", " light"]
    assert drafts_after(text, "turn the", "turn the kitchen") == [" kitchen light", " light"]
    assert drafts_after(text, text) == [""]


def test_case_is_ignored_in_the_comparison_with_the_draft() -> None:
    assert drafts_after("turn on the light", "TURN ON") == [" the light"]


def test_the_verified_text_may_change() -> None:
    """If the last token has only some bytes of a character, the next token changes the end of the decoded text."""
    assert drafts_after("turn on the light", "turn the", "turn on")[1] == " the light"
