"""Checkpoints such as Vicuna, whose tokenizer has only the file ``tokenizer.model`` of the library sentencepiece."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.chat_tokenizers import CORPUS
from tiny_audio.config import UserError
from tiny_audio.decoders import load_tokenizer
from tiny_audio.model.prompt import PromptConfig, build_prompt

SETTINGS = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": True,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "legacy": False,
}


def write(folder: Path) -> Any:
    """Train a tokenizer with sentencepiece and write its ``tokenizer.model``. Return the tokenizer as this library
    loads it."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        pad_id=-1,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def test_a_tokenizer_with_only_its_model_can_be_loaded(tmp_path: Path) -> None:
    original = write(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    for text in ("hello there", "how are you", "größer, 字"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == original.encode(text)
        assert tokenizer.decode(ids) == text
    prompt = build_prompt(PromptConfig(user="USER: {audio} Transcribe speech to text. ASSISTANT:"), tokenizer)
    assert (prompt.prefix_ids[0], prompt.end_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    tokenizer.save_pretrained(tmp_path / "export")
    assert (tmp_path / "export" / "tokenizer.json").is_file(), "an export must not need sentencepiece"


def test_a_damaged_model_is_an_error(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"tokenizer\.model"):
        load_tokenizer(str(tmp_path))
