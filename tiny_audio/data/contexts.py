"""Draw random contexts for training clips.

A context is a part of the prompt. It can contain hotwords (words that may be spoken in the clip), the previous text,
and the language. Contexts do not depend on the number of loader processes or on restarts.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tiny_audio.config import UserError
from tiny_audio.data.clips import Clip, Clips, ClipSet
from tiny_audio.data.text import TargetText
from tiny_audio.model.context import ContextEncoder, ContextSettings
from tiny_audio.model.prompt import Context, ContextConfig, HotwordsConfig

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def context_settings(config: ContextConfig | None, rewrite: TargetText) -> ContextSettings | None:
    """Return the context settings of a model that is trained with this config, or None without a config.

    Args:
        config: the recipe's section ``prompt.context``.
        rewrite: the function that rewrites the training transcripts. The settings record whether its output is lower
            case.
    """
    if config is None:
        return None
    return ContextSettings(
        max_tokens=config.max_tokens,
        hotwords=config.hotwords is not None,
        previous_text=config.previous_text is not None,
        languages=config.language.codes if config.language else (),
        lower_case=rewrite("Ab") == "ab",
    )


@dataclass(frozen=True)
class TrainingContexts:
    """Draws random contexts for training clips. Instances can be pickled."""

    config: ContextConfig
    encoder: ContextEncoder
    rare_words: tuple[str, ...]
    """Sorted words of the training transcripts that can be hotwords. Empty if the config has no hotwords."""

    @classmethod
    def learn(cls, config: ContextConfig, clips: ClipSet, tokenizer: Any) -> TrainingContexts:
        """Return an instance whose hotwords are rare words of the transcripts.

        Args:
            config: the recipe's section ``prompt.context``.
            tokenizer: the decoder's tokenizer.

        Raises:
            UserError: no word is rare enough to be a hotword, no clip has the metadata that the config needs, or the
                tokenizer cannot encode contexts.
        """
        settings = context_settings(config, clips.clips.target_text)
        assert settings is not None
        rare = rare_words(clips.texts, config.hotwords) if config.hotwords else ()
        _check_metadata(config, clips.clips)
        encoder = ContextEncoder(tokenizer, settings, settings.max_tokens)
        encoder.encode(Context(rare[:1], "a"))  # raises UserError if the tokenizer cannot encode contexts
        return cls(config, encoder, rare)

    @cached_property
    def _can_be_hotwords(self) -> frozenset[str]:
        return frozenset(self.rare_words)

    def ids(self, clips: Clips, index: int, seed: int) -> tuple[int, ...]:
        """Return the token ids of a random context for a clip.

        The result is empty if the context is empty or cannot be encoded, for example because it contains a special
        token of the decoder.

        Args:
            seed: seed of the clip in this epoch.
        """
        rng, clip = random.Random(f"context/{seed}"), clips[index]
        hotwords, spoken = self._hotwords(clip.utterance.text, rng)
        previous, language = self._previous_text(clips, index, rng), self._language(clip, rng)
        try:
            found = self.encoder.encode(Context(tuple(hotwords), previous, language))
            while (excess := len(hotwords) - found.num_hotwords) > 0:
                # Not all hotwords fit, so leave out words that are not in the transcript.
                others = [word for word in hotwords if word not in spoken]
                if not others:
                    break
                left_out = {*others[-excess:]}
                hotwords = [word for word in hotwords if word not in left_out]
                found = self.encoder.encode(Context(tuple(hotwords), previous, language))
        except UserError:
            return ()
        return found.ids

    def _hotwords(self, text: str, rng: random.Random) -> tuple[list[str], set[str]]:
        """Return hotwords in random order, and the set of those hotwords that are in the transcript."""
        config = self.config.hotwords
        if config is None or rng.random() >= config.probability:
            return [], set()
        words = dict.fromkeys(_WORD.findall(text))
        candidates = [word for word in words if word in self._can_be_hotwords]
        number = rng.randint(*config.num_words)
        wanted = 0 if rng.random() < config.none_spoken else rng.randint(*config.num_spoken)
        spoken = rng.sample(candidates, min(wanted, len(candidates), number))
        in_text = {word.casefold() for word in words}
        drawn = rng.sample(self.rare_words, min(len(self.rare_words), number + len(words)))
        others = [word for word in drawn if word.casefold() not in in_text][: number - len(spoken)]
        hotwords = [*spoken, *others]
        rng.shuffle(hotwords)
        return hotwords, set(spoken)

    def _previous_text(self, clips: Clips, index: int, rng: random.Random) -> str:
        config = self.config.previous_text
        if config is None or rng.random() >= config.probability:
            return ""
        return " ".join(clips.text_before(index, config.same).split()[-config.max_words :])

    def _language(self, clip: Clip, rng: random.Random) -> str | None:
        config = self.config.language
        if config is None or rng.random() >= config.probability:
            return None
        language = clip.utterance.metadata.get(config.column)
        return language if language in config.codes else None


def rare_words(texts: Iterable[str], config: HotwordsConfig) -> tuple[str, ...]:
    """Return the sorted words of all texts, except the ``num_common`` most frequent words.

    Raises:
        UserError: no word is left.
    """
    counts = Counter[str]()
    for text in texts:
        counts.update(_WORD.findall(text))
    frequency = Counter[str]()  # case is ignored
    for word, count in counts.items():
        frequency[word.casefold()] += count
    order = sorted(frequency, key=lambda word: (-frequency[word], word))
    rare = {*order[config.num_common :]}
    found = tuple(sorted(word for word in counts if word.casefold() in rare))
    if not found:
        raise UserError(
            f"prompt.context.hotwords.num_common: {config.num_common:,} leaves no hotword, because the training "
            f"transcripts have only {len(frequency):,} different words; lower num_common"
        )
    return found


def _check_metadata(config: ContextConfig, clips: Clips) -> None:
    """Check that at least one clip has the metadata that the config needs.

    Raises:
        UserError: no clip has the column ``previous_text.same``, or none has one of the languages.
    """
    previous, language = config.previous_text, config.language
    if previous is not None and not any(previous.same in row for row in clips.metadata()):
        raise UserError(
            f"prompt.context.previous_text.same: no training clip has the metadata column {previous.same!r}; "
            f"{_columns_of(clips)}"
        )
    if language is not None and not any(row.get(language.column) in language.codes for row in clips.metadata()):
        raise UserError(
            f"prompt.context.language: no training clip has one of the languages {', '.join(language.codes)} in the "
            f"metadata column {language.column!r}; {_columns_of(clips)}"
        )


def _columns_of(clips: Clips) -> str:
    names = sorted({name for row in clips.metadata() for name in row})
    return f"the clips have the columns {', '.join(names)}" if names else "the clips have no metadata"
