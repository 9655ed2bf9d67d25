"""Prompts with tokenizers that are trained here, tokenizers of published families, and broken tokenizers."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from transformers.utils import chat_template_utils

from tests.support.chat_tokenizers import chat_tokenizer
from tiny_audio.config import UserError
from tiny_audio.decoders import DecoderConfig, build_tokenizer
from tiny_audio.decoders.families import SmolLM3Config
from tiny_audio.model.prompt import AUDIO, Prompt, PromptConfig, build_prompt

TEXTS = ["one two three", "Transcribe: now", "system says hello /no_think"]


@pytest.fixture
def tokenizer() -> Any:
    config: DecoderConfig = SmolLM3Config.tiny()
    return build_tokenizer(config, TEXTS)


def rendered(prompt: Prompt, tokenizer: Any) -> str:
    prefix, suffix = (tokenizer.decode(list(ids)) for ids in (prompt.prefix_ids, prompt.suffix_ids))
    return f"{prefix}{AUDIO}{suffix}"


def test_the_audio_is_where_the_template_puts_the_user_message(tokenizer: Any) -> None:
    prompt = build_prompt(PromptConfig(), tokenizer)
    assert rendered(prompt, tokenizer) == "<|user|>{audio}<|assistant|>"
    assert prompt.end_id == tokenizer.eos_token_id != tokenizer.pad_token_id


def test_the_user_message_can_have_text_around_the_audio(tokenizer: Any) -> None:
    prompt = build_prompt(PromptConfig(user="Transcribe: {audio} now"), tokenizer)
    assert rendered(prompt, tokenizer) == "<|user|>Transcribe: {audio} now<|assistant|>"


def test_the_system_message_is_first(tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|system|>"]}, replace_extra_special_tokens=False)
    prompt = build_prompt(PromptConfig(system="/no_think"), tokenizer)
    assert rendered(prompt, tokenizer) == "<|system|>/no_think<|user|>{audio}<|assistant|>"


def test_no_token_is_added_to_the_vocabulary(tokenizer: Any) -> None:
    before = len(tokenizer)
    prompt = build_prompt(PromptConfig(), tokenizer)
    special = tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"])
    assert [*prompt.prefix_ids, *prompt.suffix_ids] == special
    assert len(tokenizer) == before


def test_the_prompt_is_deterministic(tokenizer: Any) -> None:
    config = PromptConfig(user="Transcribe: {audio}")
    assert build_prompt(config, tokenizer) == build_prompt(config, tokenizer)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (PromptConfig(), "{audio}"),
        (PromptConfig(user="Transcribe: {audio} now"), "Transcribe: {audio} now"),
        (PromptConfig(system="system "), "system {audio}"),
    ],
)
def test_without_a_template_the_prompt_is_plain_text(tokenizer: Any, config: PromptConfig, text: str) -> None:
    tokenizer.chat_template = None
    assert rendered(build_prompt(config, tokenizer), tokenizer) == text


def test_plain_text_starts_with_the_start_token(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    tokenizer.bos_token = "<|user|>"
    assert build_prompt(PromptConfig(), tokenizer).prefix_ids == (tokenizer.bos_token_id,)


@pytest.mark.parametrize(
    ("template", "times"),
    [
        ("fixed text", 0),
        ("{{ messages | length }}", 0),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", 2),
        ("{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}", 0),
    ],
)
def test_a_template_must_have_exactly_one_place_for_the_audio(tokenizer: Any, template: str, times: int) -> None:
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=rf"^prompt: .* {times} times"):
        build_prompt(PromptConfig(), tokenizer)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('System role not supported') }}",
        "{% for m in messages %}",
        "{{ nothing.there.is }}",
        "{{ messages[5].content }}",
    ],
)
def test_a_template_that_fails_is_an_error_of_the_user(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=r"^prompt: the chat template"):
        build_prompt(PromptConfig(system="hello"), tokenizer)


def test_a_tokenizer_without_an_end_token_is_rejected(tokenizer: Any) -> None:
    tokenizer.eos_token = None
    assert build_prompt(PromptConfig(), tokenizer).end_id == tokenizer.convert_tokens_to_ids("<|end|>")
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"^prompt: .*end-of-text"):
        build_prompt(PromptConfig(), tokenizer)


@pytest.mark.parametrize(("user", "times"), [("", 0), ("hello", 0), ("{Audio}", 0), ("{audio} {audio}", 2)])
def test_the_user_message_must_have_one_audio_placeholder(user: str, times: int) -> None:
    with pytest.raises(ValidationError, match=rf"{{audio}} .* {times} times"):
        PromptConfig(user=user)


def test_a_prompt_with_unknown_characters_is_rejected(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"^prompt: .*TRANSCRIBE"):
        build_prompt(PromptConfig(user="TRANSCRIBE {audio}"), tokenizer)


# --- published families

HELLO = "hello there"
FAMILIES = {
    # family: (system, rendered text around the audio, end of a turn)
    "smollm2": (
        "Listen.",
        "<|im_start|>system\nListen.<|im_end|>\n<|im_start|>user\nTranscribe: {audio}<|im_end|>\n"
        "<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "smollm3": (
        "/no_think /system_override",
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nTranscribe: {audio}<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n",
        "<|im_end|>",
    ),
    "qwen3": (
        None,
        "<|im_start|>user\nTranscribe: {audio}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "<|im_end|>",
    ),
    "llama": (
        "Listen.",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\nListen.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nTranscribe: {audio}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "gemma3": (
        "Listen.",
        "<bos><start_of_turn>user\nListen.\n\nTranscribe: {audio}<end_of_turn>\n<start_of_turn>model\n",
        "<end_of_turn>",
    ),
    "gemma2": (
        "Listen.",
        "<bos><start_of_turn>user\nListen.\n\nTranscribe: {audio}<end_of_turn>\n<start_of_turn>model\n",
        "<end_of_turn>",
    ),
    "mistral": ("Listen.", "<s>[INST] Listen.\n\nTranscribe: {audio} [/INST]", "</s>"),
    "zephyr": ("Listen.", "<|user|>\nListen.\n\nTranscribe: {audio}</s>\n<|assistant|>\n", "</s>"),
    "r1": (None, "<|begin|><|user|>Transcribe: {audio}<|assistant|><think>\n\n</think>\n\n", "<|end|>"),
    "pythia": ("Listen. ", "<|endoftext|>Listen. Transcribe: {audio}", "<|endoftext|>"),
}


def family_prompt(family: str, folder: Path) -> tuple[Any, PromptConfig, Prompt]:
    tokenizer = chat_tokenizer(family, folder)
    config = PromptConfig(system=FAMILIES[family][0], user="Transcribe: {audio}")
    return tokenizer, config, build_prompt(config, tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_published_families(family: str, tmp_path: Path) -> None:
    tokenizer, _, prompt = family_prompt(family, tmp_path)
    _, wanted, end = FAMILIES[family]
    found = spelled(tokenizer, prompt.prefix_ids) + AUDIO + spelled(tokenizer, prompt.suffix_ids)
    if family in ("mistral", "zephyr"):  # SentencePiece adds a space before a text and after a special token
        found = found.removeprefix(" ").replace("<s> ", "<s>").replace("</s> ", "</s>")
    assert found == wanted
    assert tokenizer.convert_ids_to_tokens(prompt.end_id) == end


def spelled(tokenizer: Any, ids: tuple[int, ...]) -> str:
    """Return the text of ids. Join the tokens as strings, because SentencePiece's decoder removes the first space."""
    if tokenizer.unk_token is None:
        return str(tokenizer.decode(list(ids)))
    pieces = "".join(tokenizer.convert_ids_to_tokens(list(ids)))
    for byte in {*range(32), *map(ord, "<|>")}:
        pieces = pieces.replace(f"<0x{byte:02X}>", chr(byte))
    return pieces.replace("▁", " ")


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("r1", "pythia")])
def test_prompt_reply_and_end_equal_the_rendered_template(family: str, tmp_path: Path) -> None:
    """r1 is left out, because its template removes thoughts from earlier replies, and pythia, which has no template."""
    tokenizer, config, prompt = family_prompt(family, tmp_path)
    speech = "how are you"  # takes the place of the audio
    user = config.user.replace(AUDIO, speech)
    messages = [{"role": "system", "content": config.system}] if config.system else []
    if family in ("gemma2", "mistral", "zephyr"):
        messages, user = [], f"{config.system}\n\n{user}"
    messages += [{"role": "user", "content": user}, {"role": "assistant", "content": HELLO}]
    whole = tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=False, date_string="26 Jul 2024")
    text = rendered(prompt, tokenizer).replace(AUDIO, speech) + HELLO + tokenizer.decode([prompt.end_id])
    assert squeezed(whole).startswith(squeezed(text))
    assert not squeezed(whole).removeprefix(squeezed(text)), "nothing but white space follows the end of the turn"


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_start_token_occurs_once(family: str, tmp_path: Path) -> None:
    tokenizer, _, prompt = family_prompt(family, tmp_path)
    starts = [*prompt.prefix_ids, *prompt.suffix_ids].count(tokenizer.bos_token_id)
    wanted = {"smollm2": 3, "smollm3": 0, "qwen3": 0, "zephyr": 0}.get(family, 1)  # SmolLM2: once in each turn
    assert starts == wanted
    if wanted == 1:
        assert prompt.prefix_ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("family", ["smollm3", "llama"])
@pytest.mark.parametrize("system", [None, "Listen.", "/no_think /system_override"])
def test_the_prompt_does_not_depend_on_the_date(
    family: str, system: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = chat_tokenizer(family, tmp_path)
    config = PromptConfig(system=system)
    today = build_prompt(config, tokenizer)
    naive = [{"role": "user", "content": "a"}]
    before = tokenizer.apply_chat_template(naive, tokenize=False)

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2031, 2, 3)

    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    assert tokenizer.apply_chat_template(naive, tokenize=False) != before, "the template prints today's date"
    assert build_prompt(config, tokenizer) == today


def test_removing_the_date_keeps_the_first_line_of_a_template(tokenizer: Any) -> None:
    tokenizer.chat_template = "\n{{ strftime_now('%Y-%m-%d, %-d/%-m %B %H:%M') }} {{ messages[0].content }}"
    tokenizer.unk_token = None
    text = rendered(build_prompt(PromptConfig(), tokenizer), tokenizer)
    assert (
        text == tokenizer.decode(tokenizer.encode("\n2024-07-26, 26/7 July 00:00 ", add_special_tokens=False)) + AUDIO
    )


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_space_before_the_audio_is_kept_by_templates_that_trim(family: str, tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(family, tmp_path)
    prompt = build_prompt(PromptConfig(user="  Transcribe:  {audio} "), tokenizer)
    assert "\nTranscribe:  {audio}<" in rendered(prompt, tokenizer)


def test_no_space_is_added_after_the_audio(tmp_path: Path) -> None:
    """Tokenizers like Llama 2's add a space at the start of a text. The suffix is not a start, so it gets no space."""
    tokenizer = chat_tokenizer("mistral", tmp_path)
    prompt = build_prompt(PromptConfig(), tokenizer)
    whole = tokenizer.encode("a [/INST]", add_special_tokens=False)
    assert tuple(whole[-len(prompt.suffix_ids) :]) == prompt.suffix_ids
    assert "".join(tokenizer.convert_ids_to_tokens(list(prompt.suffix_ids))) == "▁[/INST]"


def test_an_ordinary_word_is_not_used_as_end_token(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} now {% endfor %}"
    assert build_prompt(PromptConfig(), tokenizer).end_id == tokenizer.eos_token_id


def test_templates_without_replies_use_the_tokenizers_end_token(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    assert build_prompt(PromptConfig(), tokenizer).end_id == tokenizer.eos_token_id


def test_several_templates_without_a_default_are_an_error(tokenizer: Any) -> None:
    tokenizer.chat_template = {"rag": "{{ messages[0].content }}"}
    with pytest.raises(UserError, match=r"^prompt: .*rag"):
        build_prompt(PromptConfig(), tokenizer)
