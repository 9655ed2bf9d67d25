"""Encode the context of a clip as token ids. In the prompt, these ids are directly before the audio.

A context is information about a clip that is known in advance. Its text has a line for each kind of information that is
given::

    Language: en
    Words: Ada Lovelace, Babbage
    Previous text: The first program was written in

Without context, the prompt is the same as for a model that was trained without context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from pydantic import PositiveInt

from tiny_audio.config import Config, UserError
from tiny_audio.decoders import unknown_id
from tiny_audio.model.prompt import Context, encode_inside

_SHOWN = 5
"""Maximum number of omitted hotwords that a warning names."""


class ContextSettings(Config):
    """The kinds of context that a model was trained with. Stored in the ``config.json`` of an export."""

    max_tokens: PositiveInt = 512
    """Maximum number of tokens of a context."""
    hotwords: bool = False
    """Whether the model was trained with hotwords."""
    previous_text: bool = False
    """Whether the model was trained with previous text."""
    languages: tuple[str, ...] = ()
    """Languages that the model accepts. Empty if it was not trained with a stated language."""
    lower_case: bool = False
    """Whether the model writes lower case. If so, hotwords and previous text are converted to lower case, too."""


@dataclass(frozen=True)
class EncodedContext:
    """The token ids of a context, and warnings for the user."""

    ids: tuple[int, ...] = ()
    """Token ids between the prompt's prefix and the audio. Empty without context."""
    num_hotwords: int = 0
    """Number of hotwords in ``ids``."""
    left_out: tuple[str, ...] = ()
    """The hotwords that were left out."""
    warnings: tuple[str, ...] = ()
    """Messages about words that were left out, and about kinds of context that the model was not trained with."""


def context_text(hotwords: Sequence[str] = (), previous_text: str = "", language: str | None = None) -> str:
    """Return the text of a context as the decoder reads it."""
    lines = {"Language": language, "Words": ", ".join(hotwords), "Previous text": previous_text}
    return "".join(f"{name}: {value}\n" for name, value in lines.items() if value)


CONTEXT_CHARACTERS = context_text(("a", "b"), "a", "a")
"""A text with all characters of the fixed parts of a context, such as ``Words: ``. A tokenizer that is trained on
transcripts also needs tokens for these characters."""


@dataclass(frozen=True)
class ContextEncoder:
    """Encodes contexts for one model. The last 256 results are cached. Instances can be pickled."""

    tokenizer: Any
    settings: ContextSettings
    max_tokens: int
    """Maximum number of tokens of a context: ``settings.max_tokens``, or less if the decoder has too few positions."""

    @cached_property
    def encode(self) -> Callable[[Context | None], EncodedContext]:
        """A cached function that encodes a context as token ids.

        Hotwords and previous text that do not fit, or that the tokenizer cannot encode, are left out with a warning.
        The last hotwords of the list are left out first. Of the previous text, the first words are left out first.

        Raises:
            UserError: the model does not accept the language, the language alone does not fit, a text contains a
                special token, or the tokenizer cannot encode the fixed parts of a context.
        """
        return lru_cache(maxsize=256)(self._encode)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "encode"}

    def _encode(self, context: Context | None) -> EncodedContext:
        context = context and Context.of(context.hotwords, context.previous_text, context.language)
        if context is None:
            return EncodedContext()
        self._check_language(context.language)
        if not self._knows_alphabet:
            raise UserError(
                "this model accepts no context: its tokenizer was trained on transcripts without context, and cannot "
                "encode the fixed text of a context, such as 'Words: '; train the model with prompt.context, or give "
                "no context"
            )
        previous, language = context.previous_text.split(), context.language
        given = {word.lower() if self.settings.lower_case else word: word for word in context.hotwords}
        if self.settings.lower_case:
            previous = [word.lower() for word in previous]
        # Each hotword has at least one token, so the hotwords in `rest` cannot fit. Encoding a huge list would be slow.
        hotwords, rest = tuple(given)[: self.max_tokens], tuple(given)[self.max_tokens :]
        warnings = list(self._untrained(context))
        ids = self._ids(context_text(hotwords, " ".join(previous), language))
        if not rest and len(ids) <= self.max_tokens and self._unknown not in ids:
            return EncodedContext(ids, len(hotwords), warnings=tuple(warnings))
        if unspelled := [word for word in hotwords if not self._can_spell(word)]:
            warnings.append(f"{_named(unspelled)}: left out, because the tokenizer has no token for some character")
            hotwords = tuple(word for word in hotwords if word not in unspelled)
        if previous and not self._can_spell(" ".join(previous)):
            warnings.append("the previous text is left out, because the tokenizer has no token for some character")
            previous = []

        def fits(num_hotwords: int, num_previous: int) -> bool:
            text = context_text(hotwords[:num_hotwords], " ".join(previous[len(previous) - num_previous :]), language)
            return len(self._ids(text)) <= self.max_tokens

        kept = _most(len(hotwords), lambda number: fits(number, 0))
        rest = (*hotwords[kept:], *rest)
        if rest:
            warnings.append(
                f"{_named(rest)}: left out, because a context of this model has at most "
                f"{self.max_tokens:,} tokens; shorten the list"
            )
        num_previous = _most(len(previous), lambda number: fits(kept, number))
        if num_previous < len(previous):
            warnings.append(
                f"the first {len(previous) - num_previous} words of the previous text are left out, because a context "
                f"of this model has at most {self.max_tokens:,} tokens"
            )
        text = context_text(hotwords[:kept], " ".join(previous[len(previous) - num_previous :]), language)
        ids = self._ids(text)
        if len(ids) > self.max_tokens:  # not even the language fits
            raise UserError(
                f"a context with only the language {language!r} has {len(ids)} tokens, but this model accepts at most "
                f"{self.max_tokens}; leave the language out"
            )
        return EncodedContext(ids, kept, tuple(given[word] for word in (*unspelled, *rest)), tuple(warnings))

    def _check_language(self, language: str | None) -> None:
        known = self.settings.languages
        if language is None or language in known:
            return
        if not known:
            raise UserError(
                f"language {language!r}: this model was not trained with a stated language; leave the language out"
            )
        raise UserError(f"language {language!r}: this model accepts {', '.join(known)}; choose one, or leave it out")

    def _untrained(self, context: Context) -> list[str]:
        given = {"hotwords": context.hotwords, "previous text": context.previous_text}
        trained = {"hotwords": self.settings.hotwords, "previous text": self.settings.previous_text}
        return [
            f"{name}: this model was not trained with {name}, so it may write {'them' if name == 'hotwords' else 'it'} "
            f"instead of the speech; train a model with prompt.context.{name.replace(' ', '_')}, or leave the "
            f"{name} out"
            for name, value in given.items()
            if value and not trained[name]
        ]

    @cached_property
    def _knows_alphabet(self) -> bool:
        return self._can_spell(CONTEXT_CHARACTERS)

    @cached_property
    def _unknown(self) -> int | None:
        return unknown_id(self.tokenizer)

    def _can_spell(self, text: str) -> bool:
        return self._unknown not in self._ids(text)

    def _ids(self, text: str) -> tuple[int, ...]:
        ids = encode_inside(self.tokenizer, text) if text else ()
        special = self._special_ids.intersection(ids)
        if special:
            name = self.tokenizer.convert_ids_to_tokens(min(special))
            raise UserError(f"the context contains the special token {name!r} of the decoder; remove this token")
        return ids

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        # The added tokens of some tokenizers, such as Gemma's, include ordinary line breaks and spaces, which a context
        # may contain.
        added = {index for token, index in self.tokenizer.get_added_vocab().items() if token.strip(" \t\r\n\u2581")}
        return frozenset({*self.tokenizer.all_special_ids, *added} - {self._unknown})


def _most(number: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number of words for which ``fits`` returns True, at most ``number``. 0 if none fits."""
    # Binary search works, because more words never need fewer tokens.
    low, high = 0, number
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _named(words: Sequence[str]) -> str:
    shown = ", ".join(map(repr, words[:_SHOWN]))
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return f"{len(words)} hotwords ({shown}{more})" if len(words) > 1 else f"the hotword {shown}"
