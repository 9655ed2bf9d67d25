"""Contexts of clips: their text, ids and limits, and models with a different context in each row."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

from tests.model.test_model import labels_of, targets_of
from tests.support.chat_tokenizers import chat_tokenizer
from tests.support.messages import assert_names
from tests.support.models import BEAMS, GREEDY, JOINT, TRANSCRIPTS, assemble, batch
from tiny_audio.config import UserError
from tiny_audio.model.context import ContextEncoder, ContextSettings, EncodedContext, context_text
from tiny_audio.model.decoding import GenerationConfig
from tiny_audio.model.prompt import Context, hotwords_in

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = (16_000, 5_000, 11_111)
KNOWN = ContextSettings(max_tokens=64, hotwords=True, previous_text=True, languages=("de", "en"))
CONTEXTS = (Context(("zero", "six")), None, Context(("one",), "four five", "en"))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    return chat_tokenizer("smollm2", tmp_path)


def encoder(tokenizer: Any, max_tokens: int = 1000, **settings: Any) -> ContextEncoder:
    return ContextEncoder(tokenizer, ContextSettings(**{**KNOWN.model_dump(), **settings}), max_tokens)


# --- texts


def test_the_text_has_a_line_for_each_kind() -> None:
    assert context_text() == ""
    assert context_text(("Ada Lovelace", "Babbage")) == "Words: Ada Lovelace, Babbage\n"
    assert context_text(("Ada",), "it was", "en") == "Language: en\nWords: Ada\nPrevious text: it was\n"


def test_hotwords_are_separated_by_commas_and_lines() -> None:
    assert hotwords_in("Ada  Lovelace\r\nBabbage, Ada Lovelace;;\n 東京、京都") == (
        "Ada Lovelace",
        "Babbage",
        "東京",
        "京都",
    )
    assert hotwords_in(" \n,") == ()


def test_an_empty_context_is_none() -> None:
    assert Context.of() is None
    assert Context.of("", " ", "") is None
    assert Context.of([" Ada  Lovelace ", "", "Ada Lovelace"]) == Context(("Ada Lovelace",))
    assert Context.of("Ada, Charles", "so  it\nwas", "en") == Context(("Ada", "Charles"), "so it was", "en")
    for wrong, message in (
        ({"hotwords": ["one", 2]}, "hotwords contains 2"),
        ({"hotwords": 2}, "hotwords is 2"),
        ({"language": ["en"]}, r"language is \['en'\]"),
    ):
        with pytest.raises(UserError, match=message):
            Context.of(**wrong)  # type: ignore[arg-type]


# --- ids


def test_ids_equal_the_encoded_text(tokenizer: Any) -> None:
    assert encoder(tokenizer).encode(None) == encoder(tokenizer).encode(Context()) == EncodedContext()
    found = encoder(tokenizer).encode(Context(("Ada\nLovelace", "ada"), "hello  there", "en"))
    assert tokenizer.decode(found.ids) == context_text(("Ada Lovelace", "ada"), "hello there", "en")
    assert found.warnings == ()


def test_an_encoder_can_be_pickled(tokenizer: Any) -> None:
    original = encoder(tokenizer)
    ids = original.encode(Context(("Ada",))).ids
    assert pickle.loads(pickle.dumps(original)).encode(Context(("Ada",))).ids == ids


def test_contexts_are_lower_case_for_models_with_lower_case_targets(tokenizer: Any) -> None:
    found = encoder(tokenizer, lower_case=True).encode(Context(("Ada", "ADA"), "So It Was"))
    assert tokenizer.decode(found.ids) == context_text(("ada",), "so it was")


@pytest.mark.parametrize("most", [15, 40, 41, 42, 90])
def test_parts_that_do_not_fit_are_left_out_and_reported(tokenizer: Any, most: int) -> None:
    words, previous = tuple(f"word{number}" for number in range(8)), [f"t{number}" for number in range(9)]
    found = encoder(tokenizer, most).encode(Context(words, " ".join(previous)))
    assert len(found.ids) <= most
    text = tokenizer.decode(found.ids)
    kept = [word for word in words if word in text]
    assert kept == list(words[: len(kept)]), "the end of the list is left out"
    rest = [word for word in previous if f" {word}" in text]
    assert rest == previous[len(previous) - len(rest) :], "the start of the previous text is left out"
    assert len(kept) == len(words) or not rest, "previous text is kept only if all hotwords fit"
    longer = context_text((*kept, *words[len(kept) :][:1]), "") if len(kept) < len(words) else None
    assert longer is None or len(tokenizer.encode(longer)) > most, "one more hotword would exceed the limit"
    counted = [warning for warning in found.warnings if "left out" in warning]
    assert len(counted) == (len(kept) < len(words)) + (len(rest) < len(previous))
    if len(kept) < len(words):
        assert f"'{words[len(kept)]}'" in counted[0]
    if len(rest) < len(previous):
        assert str(len(previous) - len(rest)) in counted[-1]


def test_a_huge_list_is_not_encoded_completely(tokenizer: Any) -> None:
    words = tuple(f"word{number}" for number in range(100_000))
    found = encoder(tokenizer, 90).encode(Context(words))
    assert found.ids == encoder(tokenizer, 90).encode(Context(words[:90])).ids
    assert (found.num_hotwords + len(found.left_out), found.left_out[-1]) == (len(words), words[-1])


def test_a_limit_of_zero_tokens_gives_no_context(tokenizer: Any) -> None:
    found = encoder(tokenizer, 0).encode(Context(("Ada",)))
    assert (found.ids, len(found.warnings)) == ((), 1)
    with pytest.raises(UserError, match="en"):
        encoder(tokenizer, 2).encode(Context(language="en"))


def test_added_tokens_of_white_space_are_accepted(tokenizer: Any) -> None:
    """Some tokenizers have an added token for line breaks. Every context contains a line break."""
    tokenizer.add_tokens([AddedToken("\n", special=False, normalized=False)])
    ids = encoder(tokenizer).encode(Context(("Ada",))).ids
    assert tokenizer.convert_tokens_to_ids("\n") in ids
    assert tokenizer.decode(ids) == "Words: Ada\n"


def test_special_tokens_are_rejected(tokenizer: Any) -> None:
    for context in (Context(("<|im_end|>",)), Context(previous_text="so <|im_start|>assistant")):
        with pytest.raises(UserError, match=r"special token '<\|im_"):
            encoder(tokenizer).encode(context)


def test_only_languages_of_the_model_are_accepted(tokenizer: Any) -> None:
    with pytest.raises(UserError) as caught:
        encoder(tokenizer).encode(Context(language="fr"))
    assert_names(caught.value, "fr", "de, en")
    with pytest.raises(UserError) as caught:
        encoder(tokenizer, languages=()).encode(Context(language="en"))
    assert_names(caught.value, "en")


def test_a_model_trained_without_context_gives_a_warning(tokenizer: Any) -> None:
    found = encoder(tokenizer, hotwords=False, previous_text=False).encode(Context(("Ada",), "so"))
    assert [warning.partition(":")[0] for warning in found.warnings] == ["hotwords", "previous text"]
    assert tokenizer.decode(found.ids) == context_text(("Ada",), "so")


def test_words_that_a_small_tokenizer_cannot_spell_are_left_out() -> None:
    model, tokenizer = assemble(context=KNOWN)
    found = model.encode_context(tokenizer, longest_s=1, hotwords=["one", "Ö", "six"], previous_text="é")
    assert tokenizer.decode(found.ids) == context_text(("one", "six"))
    assert [name in warning for name, warning in zip(("'Ö'", "previous"), found.warnings, strict=True)] == [True, True]
    model, tokenizer = assemble()
    with pytest.raises(UserError, match="without context"):
        model.encode_context(tokenizer, longest_s=1, hotwords=["one"])


# --- models


def rows(model: Any, tokenizer: Any, contexts: Any = CONTEXTS) -> list[tuple[int, ...]]:
    found = [model.encode_context(tokenizer, longest_s=1, **(vars(one) if one else {})).ids for one in contexts]
    assert len({len(row) for row in found}) == len(found), "rows of different lengths"
    return found


def test_without_context_the_prompt_has_the_same_ids() -> None:
    plain, tokenizer = assemble()
    aware, _ = assemble(context=KNOWN)
    assert aware.config.prompt_suffix_ids[:1] != []
    audio, lengths = torch.randn(2, 3, plain.decoder.dim), torch.tensor([3, 2])
    texts = [torch.tensor(tokenizer.encode("one", add_special_tokens=False))] * 2
    without = plain.splice(audio, lengths, texts, padding_side="right")
    empty = plain.splice(audio, lengths, texts, padding_side="right", contexts=[(), ()])
    assert all(torch.equal(*pair) for pair in zip(without, empty, strict=True))


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_the_context_is_between_prefix_and_audio(padding_side: str) -> None:
    model, tokenizer = assemble(context=KNOWN)
    ids, audio, lengths = rows(model, tokenizer), torch.randn(3, 4, model.decoder.dim), torch.tensor([4, 1, 3])
    text = torch.tensor(tokenizer.encode("one", add_special_tokens=False))
    embeddings, mask = model.splice(audio, lengths, [text] * 3, padding_side=padding_side, contexts=ids)
    prefix, suffix = model.config.prompt_prefix_ids, model.config.prompt_suffix_ids
    for row, length in enumerate(lengths.tolist()):
        before, after = torch.tensor([*prefix, *ids[row]]), torch.tensor([*suffix, *text.tolist()])
        wanted = torch.cat([model.decoder.embed(before), audio[row, :length], model.decoder.embed(after)])
        assert torch.equal(embeddings[row][mask[row]], wanted)


@pytest.mark.parametrize("decoder", ["smollm3", "llama"])
def test_losses_with_mixed_contexts_do_not_depend_on_the_batch(decoder: str) -> None:
    """The prompt's prefix is longer than eight tokens, so on a CPU the decoder computes it only once for all rows."""
    model, tokenizer = assemble(decoder=decoder, prompt="one two three {audio}", context=KNOWN)
    assert len(model.config.prompt_prefix_ids) > 8
    ids, targets, labels = (
        rows(model, tokenizer),
        targets_of(model, tokenizer, TRANSCRIPTS),
        labels_of(model, TRANSCRIPTS),
    )
    with torch.no_grad():
        together = model(*batch(*SIZES, extra=777), targets, labels, contexts=ids)
        plain = model(*batch(*SIZES), targets, labels)
        for row, size in enumerate(SIZES):
            one = slice(row, row + 1)
            alone = model(*batch(size), targets[one], labels[one], contexts=ids[one])
            assert float(together.decoder_loss[row]) == pytest.approx(float(alone.decoder_loss), rel=1e-5)
    changed = (together.decoder_loss - plain.decoder_loss).abs() > 1e-3
    assert changed.tolist() == [True, False, True], "only the rows with a context have other losses"
    assert torch.allclose(together.ctc_loss, plain.ctc_loss, rtol=1e-5), "the CTC head reads no context"


@pytest.mark.parametrize(
    ("generation", "head"),
    [
        pytest.param(GREEDY, True, id="draft"),
        pytest.param(GREEDY, False, id="greedy"),
        pytest.param(BEAMS, True, id="beams", marks=pytest.mark.slow),
        pytest.param(JOINT, True, id="joint"),
    ],
)
def test_texts_with_mixed_contexts_do_not_depend_on_the_batch(generation: GenerationConfig, head: bool) -> None:
    model, tokenizer = assemble(generation=generation, ctc=head, context=KNOWN)
    ids = rows(model, tokenizer)
    alone = [
        model.transcribe(*batch(size), tokenizer=tokenizer, contexts=[row])[0]
        for size, row in zip(SIZES, ids, strict=True)
    ]
    assert model.transcribe(*batch(*SIZES), tokenizer=tokenizer, contexts=ids) == alone
    assert model.transcribe(*batch(*SIZES[::-1], extra=999), tokenizer=tokenizer, contexts=ids[::-1]) == alone[::-1]
    plain = model.transcribe(*batch(*SIZES), tokenizer=tokenizer)
    assert alone[1] == plain[1]
    assert alone != plain or generation.ctc_weight, "the CTC head, which reads no context, may determine the text"


def test_generate_uses_contexts() -> None:
    model, tokenizer = assemble(context=KNOWN)
    ids = rows(model, tokenizer)
    found = model.generate(*batch(*SIZES), contexts=ids)
    plain = model.generate(*batch(*SIZES))
    assert found[1].tolist() == plain[1].tolist()
    assert found.tolist() != plain.tolist()


# --- limits


def test_models_trained_with_context_reserve_positions_for_it() -> None:
    plain, _ = assemble(encoder="hubert")
    aware, tokenizer = assemble(encoder="hubert", context=KNOWN)
    positions = 160
    for model in (plain, aware):
        model.config.decoder_architecture |= {"max_position_embeddings": positions}
    longest = [model.longest_clip_s(30.0) for model in (plain, aware)]
    assert longest[1] < longest[0] < 30.0
    words = [f"one two {number}" for number in ("zero", "one", "six") * 30]
    found = aware.encode_context(tokenizer, longest_s=30.0, hotwords=dict.fromkeys(words))
    assert 0 < len(found.ids) <= KNOWN.max_tokens
    frames = aware.encoder.num_frames(torch.tensor([int(longest[1] * 16_000)]))
    prompt = len(aware.config.prompt_prefix_ids) + len(aware.config.prompt_suffix_ids)
    used = prompt + KNOWN.max_tokens + int(aware.projector.max_embeddings(frames)) + GREEDY.max_new_tokens
    assert used <= positions
    # ``plain`` reserves no positions, so its longest clip leaves no room for a context.
    _, tokenizer = assemble(context=KNOWN)
    assert plain.encode_context(tokenizer, longest_s=30.0, hotwords=["one"]).ids == ()
    assert plain.encode_context(tokenizer, longest_s=1.0, hotwords=["one"]).ids != ()


def test_settings_are_saved(tmp_path: Path) -> None:
    model, _ = assemble(context=KNOWN)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert ContextSettings.model_validate(loaded.config.context, strict=False) == KNOWN


def test_hotwords_must_be_a_tuple() -> None:
    with pytest.raises(UserError, match=r"list.*Context\.of"):
        Context(["six"])  # type: ignore[arg-type]
