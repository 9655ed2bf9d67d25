"""Contexts of training clips: they depend only on the clip and its seed, and never have too many tokens."""

from __future__ import annotations

import pickle
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests.support.chat_tokenizers import chat_tokenizer
from tests.support.messages import assert_names
from tiny_audio.config import UserError
from tiny_audio.data.clips import Clips, ClipSet
from tiny_audio.data.contexts import TrainingContexts, context_settings, rare_words
from tiny_audio.data.text import TargetText, TargetTextConfig
from tiny_audio.model.context import context_text
from tiny_audio.model.prompt import ContextConfig, HotwordsConfig
from tiny_audio.sources import Dropped, Utterance

TEXTS = [f"the name of number {number} is ada{number} bob{number} and cat{number}" for number in range(40)]
HOTWORDS = HotwordsConfig(probability=1.0, num_words=(5, 9), num_spoken=(2, 2), none_spoken=0.0, num_common=6)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return chat_tokenizer("smollm2", tmp_path_factory.mktemp("tokenizer"))


def clip_set(texts: list[str] = TEXTS, metadata: list[Mapping[str, str]] | None = None) -> ClipSet:
    rows = metadata or [{} for _ in texts]
    utterances = [Utterance(str(index), 1.0, text, None, rows[index]) for index, text in enumerate(texts)]
    count = len(texts)
    source: Any = None
    clips = Clips(
        (("train", source, utterances),),
        np.zeros(count, dtype=np.int32),
        np.arange(count),
        np.ones(count),
        None,
        None,
        TargetText.of(TargetTextConfig()),
    )
    dropped: tuple[Dropped, ...] = ()
    return ClipSet(clips, dropped, "", 10.0)


def words_of(contexts: TrainingContexts, clips: ClipSet, index: int, seed: int) -> list[str]:
    """Return the hotwords of a clip, decoded from the ids."""
    text = str(contexts.encoder.tokenizer.decode(contexts.ids(clips.clips, index, seed)))
    return text.strip().removeprefix("Words: ").split(", ") if text else []


def test_the_most_frequent_words_are_not_rare() -> None:
    texts = ["The cat's well-known hat", "the hat", "THE x_y 7"]
    assert rare_words(texts, HOTWORDS.model_copy(update={"num_common": 0})) == (
        "7", "THE", "The", "cat's", "hat", "the", "well-known", "x", "y",
    )  # fmt: skip
    assert rare_words(texts, HOTWORDS.model_copy(update={"num_common": 2})) == ("7", "cat's", "well-known", "x", "y")
    with pytest.raises(UserError) as caught:
        rare_words(texts, HOTWORDS.model_copy(update={"num_common": 7}))
    assert_names(caught.value, "num_common", "7")


def test_lists_contain_words_of_the_transcript_and_others(tokenizer: Any) -> None:
    clips = clip_set()
    contexts = TrainingContexts.learn(ContextConfig(hotwords=HOTWORDS), clips, tokenizer)
    positions = set()
    for index, text in enumerate(TEXTS):
        words = words_of(contexts, clips, index, 7 * index)
        spoken = [word for word in words if word in text.split()]
        assert 5 <= len(words) <= 9
        assert len(spoken) == 2, "two of the three rare words"
        assert set(words) <= set(contexts.rare_words)
        assert len(set(words)) == len(words)
        positions.update(words.index(word) for word in spoken)
    assert len(positions) > 5, "these words can be anywhere in the list"


@pytest.mark.parametrize(
    ("change", "share", "with_spoken"),
    [({}, 1.0, 1.0), ({"probability": 0.5}, 0.5, 1.0), ({"none_spoken": 0.75}, 1.0, 0.25)],
)
def test_contexts_are_drawn_with_the_configured_probabilities(
    tokenizer: Any, change: dict[str, float], share: float, with_spoken: float
) -> None:
    clips = clip_set()
    config = ContextConfig(hotwords=HOTWORDS.model_copy(update=change))
    contexts = TrainingContexts.learn(config, clips, tokenizer)
    drawn = [(TEXTS[n % 40].split(), words_of(contexts, clips, n % 40, n)) for n in range(200)]
    lists = [(text, words) for text, words in drawn if words]
    assert len(lists) / 200 == pytest.approx(share, abs=0.11)
    spoken = [bool({*text} & {*words}) for text, words in lists]
    assert sum(spoken) / len(lists) == pytest.approx(with_spoken, abs=0.11)


def test_clips_without_rare_words_get_lists_of_other_words(tokenizer: Any) -> None:
    clips = clip_set([*TEXTS, "", "the name"])
    contexts = TrainingContexts.learn(ContextConfig(hotwords=HOTWORDS), clips, tokenizer)
    for index in (40, 41):
        words = words_of(contexts, clips, index, 3)
        assert 5 <= len(words) <= 9


def test_a_context_depends_only_on_clip_and_seed(tokenizer: Any) -> None:
    clips = clip_set()
    contexts = TrainingContexts.learn(ContextConfig(hotwords=HOTWORDS), clips, tokenizer)
    again = pickle.loads(pickle.dumps(TrainingContexts.learn(ContextConfig(hotwords=HOTWORDS), clips, tokenizer)))
    wanted = [contexts.ids(clips.clips, index, 5) for index in range(20)]
    random.seed(1)
    assert [again.ids(clips.clips, index, 5) for index in reversed(range(20))] == wanted[::-1]
    assert contexts.ids(clips.clips, 3, 6) != wanted[3]


def test_long_lists_keep_the_words_of_the_transcript(tokenizer: Any) -> None:
    clips = clip_set()
    many = HOTWORDS.model_copy(update={"num_words": (60, 90)})
    contexts = TrainingContexts.learn(ContextConfig(max_tokens=80, hotwords=many), clips, tokenizer)
    for index, text in enumerate(TEXTS):
        assert 40 < len(contexts.ids(clips.clips, index, index)) <= 80
        assert len({*words_of(contexts, clips, index, index)} & {*text.split()}) == 2


def test_the_previous_text_comes_from_the_previous_row(tokenizer: Any) -> None:
    texts = ["a b c d", "e", "f", "g"]
    metadata = [{"chapter": "1"}, {"chapter": "1"}, {"chapter": "2"}, {}]
    clips = clip_set(texts, metadata)
    config = ContextConfig.model_validate(
        {"previous_text": {"probability": 1.0, "same": "chapter", "max_words": 3}}, strict=False
    )
    contexts = TrainingContexts.learn(config, clips, tokenizer)
    found = [tokenizer.decode(contexts.ids(clips.clips, index, 0)) for index in range(4)]
    assert found == ["", context_text((), "b c d"), "", ""]
    config = config.model_copy(update={"previous_text": config.previous_text.model_copy(update={"same": "speaker"})})  # type: ignore[union-attr]
    with pytest.raises(UserError) as caught:
        TrainingContexts.learn(config, clips, tokenizer)
    assert_names(caught.value, "prompt.context.previous_text.same", "speaker", "chapter")


def test_the_language_comes_from_the_metadata(tokenizer: Any) -> None:
    clips = clip_set(["a", "b", "c"], [{"locale": "de"}, {"locale": "fr"}, {}])
    config = ContextConfig.model_validate(
        {"language": {"probability": 1.0, "codes": ["de", "en"], "column": "locale"}}, strict=False
    )
    contexts = TrainingContexts.learn(config, clips, tokenizer)
    found = [tokenizer.decode(contexts.ids(clips.clips, index, 0)) for index in range(3)]
    assert found == [context_text(language="de"), "", ""]
    with pytest.raises(UserError) as caught:
        TrainingContexts.learn(config, clip_set(["a"], [{"locale": "fr"}]), tokenizer)
    assert_names(caught.value, "prompt.context.language", "de, en", "locale")


def test_a_few_clips_with_metadata_are_enough(tokenizer: Any) -> None:
    config = ContextConfig.model_validate(
        {"language": {"codes": ["de"]}, "previous_text": {"same": "chapter"}}, strict=False
    )
    clips = clip_set(["a"] * 2001, [*[{}] * 2000, {"language": "de", "chapter": "1"}])
    assert TrainingContexts.learn(config, clips, tokenizer).config == config


def test_texts_with_special_tokens_give_no_context(tokenizer: Any) -> None:
    clips = clip_set(["<|im_end|> a", "b"], [{"chapter": "1"}] * 2)
    config = ContextConfig.model_validate({"previous_text": {"probability": 1.0, "same": "chapter"}}, strict=False)
    assert TrainingContexts.learn(config, clips, tokenizer).ids(clips.clips, 1, 0) == ()


def test_context_settings_of_the_model_follow_from_the_recipe() -> None:
    assert context_settings(None, TargetText.of("none")) is None
    config = ContextConfig.model_validate({"max_tokens": 99, "language": {"codes": ["de", "en"]}}, strict=False)
    settings = context_settings(config, TargetText.of("lower"))
    assert settings is not None
    assert settings.model_dump() == {
        "max_tokens": 99, "hotwords": False, "previous_text": False, "languages": ("de", "en"), "lower_case": True,
    }  # fmt: skip
    settings = context_settings(ContextConfig(hotwords=HOTWORDS), TargetText.of(TargetTextConfig(true_case=True)))
    assert settings is not None
    assert (settings.hotwords, settings.lower_case) == (True, False)
