"""Which transcripts can be training targets. This depends on the decoder's limits and its tokenizer's vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.chat_tokenizers import chat_tokenizer
from tiny_audio.data.target_encoder import TargetEncoder, TargetError, too_many_characters
from tiny_audio.encoders import ENCODERS

SECOND = 16_000


def target_encoder(tokenizer: Any, **limits: int) -> TargetEncoder:
    return TargetEncoder(tokenizer, 0, None, ENCODERS.entry("whisper").config.tiny(), **limits)  # type: ignore[attr-defined]


def reason(encoder: TargetEncoder, text: str, num_samples: int = SECOND) -> str:
    with pytest.raises(TargetError) as caught:
        encoder.encode(text, num_samples)
    return caught.value.reason


class Untouched:
    """A tokenizer that fails if it is used."""

    unk_token_id = None

    def encode(self, text: str, **settings: Any) -> list[int]:
        raise AssertionError("tokenized")


@pytest.mark.parametrize(("text", "seconds"), [("one two three " * 3_200, 1), ("a" * 2_500, 12), ("字" * 6_001, 30)])
def test_a_text_that_is_too_long_to_be_spoken_is_not_tokenized(text: str, seconds: int) -> None:
    assert reason(target_encoder(Untouched()), text, seconds * SECOND) == "text_too_long"


@pytest.mark.parametrize(("characters", "duration_s"), [(1_000, 0.2), (1_000, 5.0), (2_000, 10.0)])
def test_a_text_of_200_characters_per_second_is_allowed(characters: int, duration_s: float) -> None:
    assert too_many_characters("a" * characters, duration_s) is None
    assert too_many_characters("a" * (characters + 1), duration_s) is not None


def test_a_text_that_does_not_fit_the_context_is_dropped(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer("smollm2", tmp_path)
    text = "hello there"
    size = len(tokenizer.encode(text, add_special_tokens=False))
    assert len(target_encoder(tokenizer, max_ids=size + 1).encode(text, SECOND).ids) == size + 1, "with the end token"
    assert reason(target_encoder(tokenizer, max_ids=size), text) == "text_too_long"


def test_a_text_with_a_token_without_an_embedding_is_dropped(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer("smollm2", tmp_path)
    rows = len(tokenizer)
    tokenizer.add_tokens(["hello"])
    encoder = target_encoder(tokenizer, num_embeddings=rows)
    assert reason(encoder, "hello there") == "unknown_token"
    assert encoder.encode("there", SECOND).ids


@pytest.mark.parametrize("name", ["unk_token", "unk_token bos_token", "unk_token pad_token"])
def test_the_end_token_can_also_be_the_unknown_token(name: str, tmp_path: Path) -> None:
    """GPT-2 and Pythia have one special token. It is the end token and the unknown token."""
    tokenizer = chat_tokenizer("pythia", tmp_path)
    tokenizer.add_special_tokens(dict.fromkeys(name.split(), "<|endoftext|>"))
    encoder = target_encoder(tokenizer)
    assert encoder.unknown is None
    assert encoder.encode("größer, 字", SECOND).ids[-1] == 0, "the tokenizer encodes any text as bytes"
    assert reason(encoder, "a<|endoftext|>b") == "special_token"


def test_the_pad_token_can_also_be_the_unknown_token(tmp_path: Path) -> None:
    """Users of Llama 2 often set the unknown token as pad token. It still marks texts that cannot be encoded."""
    tokenizer = chat_tokenizer("zephyr", tmp_path)
    tokenizer.pad_token = tokenizer.unk_token
    assert target_encoder(tokenizer).unknown == tokenizer.unk_token_id
