"""Tokenizers: a checkpoint's own tokenizer or, for decoders with random weights, a small one trained on transcripts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import PositiveInt

from tiny_audio.config import Config, UserError, first_line

PAD, UNKNOWN, END, USER, ASSISTANT = "<|pad|>", "<|unknown|>", "<|end|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, UNKNOWN, END, USER, ASSISTANT)

# This template is similar to the chat templates of large models, so that one prompt builder works for all tokenizers.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% if message.role == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class TrainedTokenizerConfig(Config):
    """A tokenizer that is trained on the training transcripts."""

    kind: Literal["characters", "bpe"] = "bpe"
    """``characters``: one token per character. ``bpe``: byte-pair encoding."""
    vocab_size: PositiveInt = 256
    """Vocabulary size of ``bpe``, including special tokens. The vocabulary contains every character of the transcripts,
    so it may be larger than this number. Not used by ``characters``."""


def train_tokenizer(config: TrainedTokenizerConfig, transcripts: Iterable[str]) -> Any:
    """Train a tokenizer on ``transcripts``. The order of the transcripts does not change the result.

    Returns:
        A ``transformers.PreTrainedTokenizerFast`` with a chat template. Its pad token differs from its end token.

    Raises:
        UserError: there are no transcripts.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    texts = sorted(transcripts)
    alphabet = sorted({character for text in texts for character in text} | {" "})
    if not any(texts):
        raise UserError("decoder.tokenizer: there is no transcript to train a tokenizer on; check data.train")
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    # The space before a word is part of the word's first token, so that decoding restores the text exactly.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size if config.kind == "bpe" else len(alphabet) + len(SPECIAL_TOKENS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=[character.replace(" ", "▁") for character in alphabet],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer)


def restore_tokenizer(trained: str) -> Any:
    """Restore a tokenizer that :func:`train_tokenizer` returned, from its ``backend_tokenizer.to_str()``."""
    from tokenizers import Tokenizer

    return _wrapped(Tokenizer.from_str(trained))


def _wrapped(tokenizer: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(folder_or_id: str, revision: str | None = None) -> Any:
    """Load a checkpoint's tokenizer.

    Raises:
        UserError: the tokenizer cannot be read, or the checkpoint has no tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder_or_id, revision=revision, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain Exceptions
        reason = first_line(error)
        if "tiktoken" in reason:  # transformers tries tiktoken if sentencepiece cannot read the file
            reason = "its tokenizer.model is damaged, or the sentencepiece package is not installed"
        raise _no_tokenizer(folder_or_id, reason) from error
    # If there are no tokenizer files, transformers creates a tokenizer that has only special tokens.
    if not tokenizer.get_vocab().keys() - {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}:
        raise _no_tokenizer(folder_or_id, "it has no tokenizer.json, tokenizer.model or vocab.json")
    return tokenizer


def _no_tokenizer(folder_or_id: str, reason: str) -> UserError:
    return UserError(
        f"cannot read the tokenizer of {folder_or_id!r}: {reason.rstrip('.')}. Give a hub id or a folder with "
        "tokenizer files. With init: random, you can instead set decoder.tokenizer to train a small one."
    )


def unknown_id(tokenizer: Any) -> int | None:
    """Return the id of the token for unknown text, or None if the tokenizer can encode every text.

    GPT-2, Pythia and similar models can encode every text as bytes. Their config names the end token as the unknown
    token, so a token with both roles is ignored.
    """
    unknown: int | None = tokenizer.unk_token_id
    return None if unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id) else unknown
