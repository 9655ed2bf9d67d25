"""The one prompt builder: training and inference both use what it returns, so they cannot drift apart."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

from pydantic import field_validator

from tiny_audio.config import Config, UserError

AUDIO = "{audio}"
# Private-use characters: no template strips them, no transcript holds them.
_SENTINEL, _REPLY = "\ue000", "\ue001"
# Some headers hold the day's date, and a prompt has to be the same tomorrow. This is what Llama 3's falls back on.
_DAY = date(2024, 7, 26)
_DAY_PARTS = {f"%{code}": _DAY.strftime(f"%{code}") for code in "aAbBdFHIjmMpSyY"}
_DAY_PARTS |= {f"%-{code}": _DAY_PARTS[f"%{code}"].lstrip("0") or "0" for code in "dHIjmMSy"}
# Put in front of a template that asks for the time, in place of what transformers would answer. Its last, empty
# expression keeps a line break at the template's start, which a block would swallow.
_CLOCK = (
    "{%- macro strftime_now(format) -%}{%- set said = namespace(text=format) -%}"
    "{%- for code, part in day_parts.items() -%}{%- set said.text = said.text.replace(code, part) -%}{%- endfor -%}"
    "{{- said.text -}}{%- endmacro -%}{{- '' }}"
)
# What a thinking model writes where it has nothing to think about, after `<think>` and a line break.
_THINK, _THOUGHT = "<think>", "\n</think>\n\n"


class PromptConfig(Config):
    """What the decoder reads around the audio."""

    system: str | None = None
    """System message; None sends none. Where a chat template knows no such message, it goes in front of the user's.
    ``/no_think /system_override`` takes SmolLM3's long header away."""
    user: str = AUDIO
    """User message; ``{audio}`` stands where the audio embeddings go."""

    @field_validator("user")
    @classmethod
    def _check_audio(cls, user: str) -> str:
        if user.count(AUDIO) != 1:
            raise ValueError(f"must contain {AUDIO} exactly once, and contains it {user.count(AUDIO)} times: {user!r}")
        return user


@dataclass(frozen=True)
class Prompt:
    """Token ids on both sides of the audio, and the one that ends a transcript."""

    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    end_id: int


def build_prompt(config: PromptConfig, tokenizer: Any) -> Prompt:
    """Render the messages with the tokenizer's chat template, or as plain text where it has none.

    Dates in a template's header are fixed and its thinking is switched off; the template says whether the text starts
    with a token of its own, and which token ends a reply.

    Raises:
        UserError: the tokenizer has no end token, or its template refuses or loses the user's message.
    """
    user = config.user.replace(AUDIO, _SENTINEL)
    if tokenizer.chat_template:
        messages = _accepted_messages(tokenizer, config.system, user)
        text = _render(tokenizer, messages, add_generation_prompt=True)
        end_id = _end_of_turn(tokenizer, messages)
    else:
        text = "".join(part for part in (tokenizer.bos_token, config.system, user) if part)
        end_id = None
    end_id = tokenizer.eos_token_id if end_id is None else end_id
    if end_id is None:
        raise UserError(
            "prompt: the tokenizer has no end-of-text token, so generation could not stop; use one that has"
        )
    if text.count(_SENTINEL) != 1:
        raise UserError(
            f"prompt: the chat template shows the user message {text.count(_SENTINEL)} times, so the audio has no "
            f"single place; rendered: {text.replace(_SENTINEL, AUDIO)!r}"
        )
    if text.rstrip().endswith(_THINK):  # a template that opens a thought whatever it is told
        text = text.rstrip() + "\n" + _THOUGHT
    before, after = text.split(_SENTINEL)
    prefix = tuple(tokenizer.encode(before, add_special_tokens=False))
    suffix = _encode_inside(tokenizer, after)
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in prefix + suffix:
        raise UserError(
            f"prompt: the tokenizer has no token for a part of {text.replace(_SENTINEL, AUDIO)!r}; one trained on the "
            "transcripts knows their characters only: leave prompt.system and other words out"
        )
    return Prompt(prefix, suffix, end_id)


Messages = list[dict[str, str]]


def _accepted_messages(tokenizer: Any, system: str | None, user: str) -> Messages:
    """The messages in a form that the template takes: some refuse a system message, and some leave it out."""
    alone = [{"role": "user", "content": user}]
    if system is None:
        return alone
    both = [{"role": "system", "content": system}, *alone]
    # What Gemma 3's template does by itself.
    folded = [{"role": "user", "content": f"{system}\n\n{user}"}]
    # Words such as `/no_think` are switches, which show in what else is rendered, or not at all.
    spoken = any(not word.startswith("/") for word in system.split())
    try:
        rendered = _render(tokenizer, both, add_generation_prompt=True)
        lost = spoken and rendered == _render(tokenizer, alone, add_generation_prompt=True)
    except UserError:
        lost = True
    if not lost:
        return both
    _render(tokenizer, folded, add_generation_prompt=True)
    return folded


def _render(tokenizer: Any, messages: Messages, *, add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError

    try:
        template = tokenizer.get_chat_template()
        text: str = tokenizer.apply_chat_template(
            messages,
            chat_template=_CLOCK + template if "strftime_now" in template else template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=False,
            date_string=_DAY.strftime("%d %b %Y"),
            day_parts=_DAY_PARTS,
        )
    except (TemplateError, TypeError, ValueError) as error:  # the template's own, and Python's in its expressions
        raise UserError(
            f"prompt: the chat template refuses the messages: {error}; change prompt.system or "
            "prompt.user, or use another checkpoint"
        ) from error
    return text


def _end_of_turn(tokenizer: Any, messages: Messages) -> int | None:
    """The token that a reply ends with, which is often not the one that ends a text; None where there is none."""
    try:
        text = _render(tokenizer, [*messages, {"role": "assistant", "content": _REPLY}], add_generation_prompt=False)
    except UserError:
        return None
    _, found, after = text.rpartition(_REPLY)
    ids = tokenizer.encode(after.lstrip(), add_special_tokens=False) if found else []
    # A word, such as that of the next speaker, ends nothing: transcripts may hold it.
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    return int(ids[0]) if ids and ids[0] in special else None


def _encode_inside(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Ids of text that does not start a document, where a SentencePiece tokenizer would put a space in front."""
    letter = tokenizer.encode("a", add_special_tokens=False)
    if letter and str(tokenizer.convert_ids_to_tokens(letter[0])).startswith("▁"):
        ids = tokenizer.encode(f"a{text}", add_special_tokens=False)
        if ids[: len(letter)] == letter:
            return tuple(ids[len(letter) :])
    return tuple(tokenizer.encode(text, add_special_tokens=False))
