"""The prompt, with real tokenizers: one with the chat template of trained ones, one without any, and broken ones."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tiny_audio.config import UserError
from tiny_audio.decoders import DecoderConfig, build_tokenizer
from tiny_audio.decoders.smollm3 import SmolLM3Config
from tiny_audio.prompt import AUDIO, Prompt, PromptConfig, build_prompt

TEXTS = ["one two three", "Transcribe: now", "system says hello /no_think"]


@pytest.fixture
def tokenizer() -> Any:
    config: DecoderConfig = SmolLM3Config.tiny()
    return build_tokenizer(config, TEXTS)


def rendered(prompt: Prompt, tokenizer: Any) -> str:
    prefix, suffix = (tokenizer.decode(list(ids)) for ids in (prompt.prefix_ids, prompt.suffix_ids))
    return f"{prefix}{AUDIO}{suffix}"


def test_the_audio_stands_where_the_template_puts_the_user(tokenizer: Any) -> None:
    prompt = build_prompt(PromptConfig(), tokenizer)
    assert rendered(prompt, tokenizer) == "<|user|>{audio}<|assistant|>"
    assert prompt.end_id == tokenizer.eos_token_id != tokenizer.pad_token_id


def test_words_go_around_the_audio(tokenizer: Any) -> None:
    prompt = build_prompt(PromptConfig(user="Transcribe: {audio} now"), tokenizer)
    assert rendered(prompt, tokenizer) == "<|user|>Transcribe: {audio} now<|assistant|>"


def test_a_system_message_comes_first(tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|system|>"]}, replace_extra_special_tokens=False)
    prompt = build_prompt(PromptConfig(system="/no_think"), tokenizer)
    assert rendered(prompt, tokenizer) == "<|system|>/no_think<|user|>{audio}<|assistant|>"


def test_no_token_is_added_on_the_way(tokenizer: Any) -> None:
    before = len(tokenizer)
    prompt = build_prompt(PromptConfig(), tokenizer)
    special = tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"])
    assert [*prompt.prefix_ids, *prompt.suffix_ids] == special
    assert len(tokenizer) == before


def test_the_same_prompt_twice(tokenizer: Any) -> None:
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
def test_a_tokenizer_without_a_template_takes_plain_text(tokenizer: Any, config: PromptConfig, text: str) -> None:
    tokenizer.chat_template = None
    assert rendered(build_prompt(config, tokenizer), tokenizer) == text


def test_plain_text_starts_with_the_token_that_starts_texts(tokenizer: Any) -> None:
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
def test_a_template_without_one_place_for_the_audio_is_refused(tokenizer: Any, template: str, times: int) -> None:
    tokenizer.chat_template = template
    with pytest.raises(
        UserError, match=rf"^prompt: the chat template shows the user message {times} times, so the audio has no single"
    ):
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
def test_a_template_that_fails_is_the_users_to_mend(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=r"^prompt: the chat template"):
        build_prompt(PromptConfig(system="hello"), tokenizer)


def test_a_tokenizer_without_an_end_is_refused(tokenizer: Any) -> None:
    tokenizer.eos_token = None
    with pytest.raises(
        UserError, match=r"^prompt: the tokenizer has no end-of-text token, so generation could not stop"
    ):
        build_prompt(PromptConfig(), tokenizer)


@pytest.mark.parametrize(("user", "times"), [("", 0), ("hello", 0), ("{Audio}", 0), ("{audio} {audio}", 2)])
def test_the_audio_comes_once(user: str, times: int) -> None:
    with pytest.raises(ValidationError, match=rf"must contain {{audio}} exactly once, and contains it {times} times"):
        PromptConfig(user=user)


def test_a_prompt_that_a_small_tokenizer_cannot_spell_is_refused(tokenizer: Any) -> None:
    with pytest.raises(
        UserError, match=r"^prompt: the tokenizer has no token for a part of .*TRANSCRIBE.*; one trained"
    ):
        build_prompt(PromptConfig(user="TRANSCRIBE {audio}"), tokenizer)
