"""Build prompts. Training and inference both use this module, so their prompts cannot differ."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date
from typing import Annotated, Any, Self

from pydantic import Field, NonNegativeInt, PositiveInt, StringConstraints, field_validator, model_validator

from tiny_audio.config import Config, UserError
from tiny_audio.decoders import unknown_id

AUDIO = "{audio}"
# Placeholders for the audio and the reply while a template is rendered. Templates do not strip these private-use
# characters, and transcripts do not contain them.
_SENTINEL, _REPLY = "\ue000", "\ue001"
# Templates that print today's date get Llama 3's default date instead, so that a prompt does not change every day.
_DAY = date(2024, 7, 26)
_DAY_PARTS = {f"%{code}": _DAY.strftime(f"%{code}") for code in "aAbBdFHIjmMpSyY"}
_DAY_PARTS |= {f"%-{code}": _DAY_PARTS[f"%{code}"].lstrip("0") or "0" for code in "dHIjmMSy"}
# Prepended to templates that call strftime_now, to replace transformers' own function. Jinja removes a line break
# directly after a block (`{% … %}`). A template may start with a line break, so this text ends with an expression
# (`{{- '' }}`) instead of a block.
_CLOCK = (
    "{%- macro strftime_now(format) -%}{%- set shown = namespace(text=format) -%}"
    "{%- for code, part in day_parts.items() -%}{%- set shown.text = shown.text.replace(code, part) -%}{%- endfor -%}"
    "{{- shown.text -}}{%- endmacro -%}{{- '' }}"
)
# The reply of a thinking model starts with `<think>`. To turn thinking off, the prompt ends with an empty thought:
# "<think>\n\n</think>\n\n". This is `_THINK`, an additional line break and `_THOUGHT`.
_THINK, _THOUGHT = "<think>", "\n</think>\n\n"


_NonEmpty = Annotated[str, StringConstraints(min_length=1)]
_Probability = Annotated[float, Field(gt=0, le=1)]
_BETWEEN_WORDS = re.compile(r"[,;\n\r\u3001\uff0c\uff1b]")


class HotwordsConfig(Config):
    """Lists of hotwords for training clips: a few words of the transcript among words of other transcripts."""

    probability: _Probability = 0.5
    """Share of the clips that get a list."""
    num_words: tuple[PositiveInt, PositiveInt] = (5, 100)
    """Minimum and maximum length of a list. A list is shorter if it would exceed ``prompt.context.max_tokens``."""
    num_spoken: tuple[PositiveInt, PositiveInt] = (1, 3)
    """Minimum and maximum number of words of the transcript in a list, except in the lists of ``none_spoken``. If the
    transcript has fewer words that can be hotwords, the list contains all of them."""
    none_spoken: float = Field(default=0.3, ge=0, lt=1)
    """Share of the lists that have no word of the transcript. These lists teach the model to ignore a list. If
    the transcript of a clip has no rare word, its list is always of this kind."""
    num_common: NonNegativeInt = 1000
    """This many of the most frequent words in the training transcripts are never used as hotwords."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("num_words", "num_spoken"):
            least, most = getattr(self, name)
            if least > most:
                raise ValueError(f"{name} is [{least}, {most}]; write the minimum first")
        if self.num_spoken[1] > self.num_words[1]:
            raise ValueError(
                f"num_spoken allows {self.num_spoken[1]} words of the transcript in a list of at most "
                f"{self.num_words[1]}; lower num_spoken, or raise num_words"
            )
        return self


class PreviousTextConfig(Config):
    """Previous text for training clips: the transcript of the preceding clip."""

    probability: _Probability = 0.5
    """Share of the clips that get their previous text, among the clips that have a previous text."""
    same: _NonEmpty
    """Metadata column, such as ``chapter``. If a clip and the preceding clip of its source have the same value in this
    column, the transcript of the preceding clip is the previous text. Otherwise the clip has no previous text. The
    clips of a source must be in the order in which they were spoken."""
    max_words: PositiveInt = 50
    """Maximum number of words. If the text is longer, its last words are used."""


class LanguageConfig(Config):
    """The language of training clips, stated in the prompt."""

    probability: _Probability = 0.5
    """Share of the clips whose language is stated, among the clips whose language is one of ``codes``."""
    codes: tuple[_NonEmpty, ...] = Field(min_length=1, strict=False)
    """The languages that the model accepts, such as ``[en, de]``."""
    column: _NonEmpty = "language"
    """Metadata column with the language of a clip."""


class ContextConfig(Config):
    """Context for training clips, so that the model learns when to use it and when to ignore it."""

    max_tokens: PositiveInt = 512
    """Maximum number of tokens of a context in training and at inference. The same number of positions is
    reserved in the decoder."""
    hotwords: HotwordsConfig | None = None
    previous_text: PreviousTextConfig | None = None
    language: LanguageConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hotwords is None and self.previous_text is None and self.language is None:
            raise ValueError("has none of hotwords, previous_text and language; add one, or remove context")
        return self

    def columns(self) -> list[str]:
        """Return the metadata columns that the contexts of training clips depend on."""
        previous, language = self.previous_text, self.language
        return [*([previous.same] if previous else []), *([language.column] if language else [])]


class PromptConfig(Config):
    """The text around the audio in the decoder's input."""

    system: str | None = None
    """System message. If None, no system message is given, and the chat template may add its own. If the chat template
    does not support system messages, the system message is put at the start of the user message. ``/no_think
    /system_override`` removes SmolLM3's long header."""
    user: str = AUDIO
    """User message. ``{audio}`` marks the position of the audio embeddings. The context of a clip, if any, is inserted
    directly before the audio."""
    context: ContextConfig | None = None
    """The context that clips get in training. A context is information about a clip that is known in advance: words
    that may be spoken (hotwords), the text before the clip, and the language. If None, the model is trained without
    context."""

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


@dataclass(frozen=True)
class Context:
    """Information about a clip that is known in advance. It is part of the prompt, directly before the audio."""

    hotwords: tuple[str, ...] = ()
    """Names and other rare words that may be spoken."""
    previous_text: str = ""
    """Text that was spoken before the clip."""
    language: str | None = None
    """Code of the language, such as ``en``. It must be one of the languages that the model accepts."""

    def __post_init__(self) -> None:
        if not isinstance(self.hotwords, tuple):
            raise UserError(
                f"hotwords is a {type(self.hotwords).__name__}; give a tuple of strings, or use Context.of, which also "
                "takes lists and strings"
            )

    @classmethod
    def of(
        cls, hotwords: str | Iterable[str] | None = None, previous_text: str | None = None, language: str | None = None
    ) -> Context | None:
        """Return a context, or None if nothing is given. A string of hotwords is split by :func:`hotwords_in`.

        Raises:
            UserError: a value has a wrong type.
        """
        for name, value in (("previous_text", previous_text), ("language", language)):
            if not isinstance(value, str | None):
                raise UserError(f"{name} is {value!r}; give a string")
        if not isinstance(hotwords, Iterable | None):
            raise UserError(f"hotwords is {hotwords!r}; give a list of strings, or one string with commas")
        words = hotwords_in(hotwords) if isinstance(hotwords, str) else tuple(hotwords or ())
        if wrong := [word for word in words if not isinstance(word, str)]:
            raise UserError(f"hotwords contains {wrong[0]!r}; give strings only")
        context = cls(tuple(_distinct(words)), " ".join((previous_text or "").split()), language or None)
        return None if context == cls() else context

    def for_later_chunks(self) -> Context:
        """Return the context for the later chunks of a recording. Only the first chunk has previous text."""
        return replace(self, previous_text="")


def hotwords_in(text: str) -> tuple[str, ...]:
    """Split a text at commas, semicolons and line breaks, and return the hotwords."""
    return tuple(_distinct(_BETWEEN_WORDS.split(text)))


def _distinct(words: Iterable[str]) -> Iterable[str]:
    """Return the words without surplus spaces, empty words and repetitions, in the same order."""
    return dict.fromkeys(plain for word in words if (plain := " ".join(word.split())))


def build_prompt(config: PromptConfig, tokenizer: Any) -> Prompt:
    """Return the prompt, rendered with the tokenizer's chat template, or as plain text if there is no template.

    If the template prints a date, a fixed date is used. Thinking is switched off.

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
            f"prompt: the chat template shows the user message {text.count(_SENTINEL)} times, so the "
            f"position of the audio is not clear; rendered: {text.replace(_SENTINEL, AUDIO)!r}"
        )
    if text.rstrip().endswith(_THINK):  # the template ignores enable_thinking=False
        text = text.rstrip() + "\n" + _THOUGHT
    before, after = text.split(_SENTINEL)
    prefix = tuple(tokenizer.encode(before, add_special_tokens=False))
    suffix = encode_inside(tokenizer, after)
    unknown = unknown_id(tokenizer)
    if unknown is not None and unknown in prefix + suffix:
        raise UserError(
            f"prompt: the tokenizer has no token for a part of {text.replace(_SENTINEL, AUDIO)!r}; a tokenizer that is "
            "trained on the transcripts has tokens only for their characters; leave out prompt.system and the words in "
            "prompt.user"
        )
    return Prompt(prefix, suffix, end_id)


Messages = list[dict[str, str]]


def _accepted_messages(tokenizer: Any, system: str | None, user: str) -> Messages:
    """Return the messages in a form that the template supports. Some templates reject or drop system messages."""
    alone = [{"role": "user", "content": user}]
    if system is None:
        return alone
    both = [{"role": "system", "content": system}, *alone]
    # Put the system message at the start of the user message, as Gemma 3's template does.
    folded = [{"role": "user", "content": f"{system}\n\n{user}"}]
    # Words such as `/no_think` are switches for the template, which may leave them out of the text. A system message
    # that has only such words may be missing from the text, although the template supports it.
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
    """Return the id of the token that ends a reply, or None if the template shows no such token.

    The token often differs from the end-of-text token.
    """
    try:
        text = _render(tokenizer, [*messages, {"role": "assistant", "content": _REPLY}], add_generation_prompt=False)
    except UserError:
        return None
    _, found, after = text.rpartition(_REPLY)
    ids = tokenizer.encode(after.lstrip(), add_special_tokens=False) if found else []
    # A plain word after the reply, such as the next speaker's name, cannot end it: transcripts may contain this word.
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    return int(ids[0]) if ids and ids[0] in special else None


def encode_inside(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Encode text without the space that SentencePiece tokenizers add at the start of a text."""
    letter = tokenizer.encode("a", add_special_tokens=False)
    if letter and str(tokenizer.convert_ids_to_tokens(letter[0])).startswith("▁"):
        ids = tokenizer.encode(f"a{text}", add_special_tokens=False)
        if ids[: len(letter)] == letter:
            return tuple(ids[len(letter) :])
    return tuple(tokenizer.encode(text, add_special_tokens=False))
