"""Build prompts. Training and inference both use this module, so their prompts cannot differ."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

from pydantic import field_validator

from tiny_audio.config import Config, UserError
from tiny_audio.decoders import unknown_id

AUDIO = "{audio}"
# Private-use characters. No template strips them, and no transcript contains them.
_SENTINEL, _REPLY = "\ue000", "\ue001"
# Some templates print today's date, but a prompt must not change from day to day. They print this date instead, which
# is the default date of Llama 3's template.
_DAY = date(2024, 7, 26)
_DAY_PARTS = {f"%{code}": _DAY.strftime(f"%{code}") for code in "aAbBdFHIjmMpSyY"}
_DAY_PARTS |= {f"%-{code}": _DAY_PARTS[f"%{code}"].lstrip("0") or "0" for code in "dHIjmMSy"}
# Prepended to templates that call strftime_now, to replace transformers' own function. A line break at the start of the
# template is kept, because this text ends in an empty expression. After a block, Jinja would remove the line break.
_CLOCK = (
    "{%- macro strftime_now(format) -%}{%- set shown = namespace(text=format) -%}"
    "{%- for code, part in day_parts.items() -%}{%- set shown.text = shown.text.replace(code, part) -%}{%- endfor -%}"
    "{{- shown.text -}}{%- endmacro -%}{{- '' }}"
)
# A thinking model generates the second text after `<think>` and a line break if thinking is off.
_THINK, _THOUGHT = "<think>", "\n</think>\n\n"


class PromptConfig(Config):
    """The text around the audio in the decoder's input."""

    system: str | None = None
    """System message, or None. If the chat template does not support system messages, this text is put at the start of
    the user message. ``/no_think /system_override`` removes SmolLM3's long header."""
    user: str = AUDIO
    """User message. ``{audio}`` marks the position of the audio embeddings."""

    @field_validator("user")
    @classmethod
    def _check_audio(cls, user: str) -> str:
        if user.count(AUDIO) != 1:
            raise ValueError(f"must contain {AUDIO} exactly once, but contains it {user.count(AUDIO)} times: {user!r}")
        return user


@dataclass(frozen=True)
class Prompt:
    """Token ids before and after the audio, and the id that ends a transcript."""

    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    end_id: int


def build_prompt(config: PromptConfig, tokenizer: Any) -> Prompt:
    """Render the messages with the tokenizer's chat template, or as plain text if it has none.

    The template shows a fixed date, and thinking is switched off. The template determines whether the text starts with
    a special token, and which token ends a reply.

    Raises:
        UserError: the tokenizer has no end token or lacks a token of the prompt, or its template rejects, drops or
            repeats the user message.
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
            "prompt: the tokenizer has no end-of-text token, so generation could not stop; use a tokenizer that has one"
        )
    if text.count(_SENTINEL) != 1:
        raise UserError(
            f"prompt: the chat template shows the user message {text.count(_SENTINEL)} times, so the position of "
            f"the audio is ambiguous; rendered: {text.replace(_SENTINEL, AUDIO)!r}"
        )
    if text.rstrip().endswith(_THINK):  # the template ignores enable_thinking=False
        text = text.rstrip() + "\n" + _THOUGHT
    before, after = text.split(_SENTINEL)
    prefix = tuple(tokenizer.encode(before, add_special_tokens=False))
    suffix = _encode_inside(tokenizer, after)
    unknown = unknown_id(tokenizer)
    if unknown is not None and unknown in prefix + suffix:
        raise UserError(
            f"prompt: the tokenizer has no token for a part of {text.replace(_SENTINEL, AUDIO)!r}; a tokenizer that is "
            "trained on the transcripts has only their characters: leave out prompt.system and other words"
        )
    return Prompt(prefix, suffix, end_id)


Messages = list[dict[str, str]]


def _accepted_messages(tokenizer: Any, system: str | None, user: str) -> Messages:
    """Return the messages in a form that the template supports. Some templates reject or drop system messages."""
    alone = [{"role": "user", "content": user}]
    if system is None:
        return alone
    both = [{"role": "system", "content": system}, *alone]
    # The system message becomes the start of the user message, as in Gemma 3's template.
    folded = [{"role": "user", "content": f"{system}\n\n{user}"}]
    # Words such as `/no_think` are switches, which the rendered text need not contain.
    has_words = any(not word.startswith("/") for word in system.split())
    try:
        rendered = _render(tokenizer, both, add_generation_prompt=True)
        lost = has_words and rendered == _render(tokenizer, alone, add_generation_prompt=True)
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
    except (
        TemplateError,
        TypeError,
        ValueError,
    ) as error:  # from the template itself, and from Python code in its expressions
        raise UserError(
            f"prompt: the chat template rejects the messages: {error}; change prompt.system or "
            "prompt.user, or use another checkpoint"
        ) from error
    return text


def _end_of_turn(tokenizer: Any, messages: Messages) -> int | None:
    """Return the token that ends a reply, which often differs from the end-of-text token, or None."""
    try:
        text = _render(tokenizer, [*messages, {"role": "assistant", "content": _REPLY}], add_generation_prompt=False)
    except UserError:
        return None
    _, found, after = text.rpartition(_REPLY)
    ids = tokenizer.encode(after.lstrip(), add_special_tokens=False) if found else []
    # Only a special token can end a reply. Transcripts may contain a plain word, such as the next speaker's name.
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    return int(ids[0]) if ids and ids[0] in special else None


def _encode_inside(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Encode text as in the middle of a document. SentencePiece tokenizers add a space at the start of a document."""
    letter = tokenizer.encode("a", add_special_tokens=False)
    if letter and str(tokenizer.convert_ids_to_tokens(letter[0])).startswith("▁"):
        ids = tokenizer.encode(f"a{text}", add_special_tokens=False)
        if ids[: len(letter)] == letter:
            return tuple(ids[len(letter) :])
    return tuple(tokenizer.encode(text, add_special_tokens=False))
