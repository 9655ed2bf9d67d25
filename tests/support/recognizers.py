"""Tiny recognizers with random weights, saved by transformers."""

from __future__ import annotations

import json
from pathlib import Path

import torch


def save_whisper(folder: Path) -> Path:
    """Save a tiny Whisper of two languages with random weights, and return its folder."""
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    folder.mkdir()
    letters = [*"abcdefghijklmnopqrstuvwxyz", "Ġ"]
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>"]
    special += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    times = [f"<|{0.02 * step:.2f}|>" for step in range(1501)]
    ids = {token: number for number, token in enumerate([*letters, *special, *times])}
    tokenizer = WhisperTokenizer(vocab={letter: ids[letter] for letter in letters}, merges=[])
    tokenizer.add_tokens([*special, *times], special_tokens=True)
    tokenizer.pad_token = "<|endoftext|>"
    processor = WhisperProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer)
    end = ids["<|endoftext|>"]
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(ids),
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            max_target_positions=40,
            pad_token_id=end,
            bos_token_id=end,
            eos_token_id=end,
            decoder_start_token_id=ids["<|startoftranscript|>"],
            suppress_tokens=[],
            begin_suppress_tokens=[],
        )
    )
    model.generation_config = GenerationConfig(
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        is_multilingual=True,
        lang_to_id={"<|en|>": ids["<|en|>"], "<|de|>": ids["<|de|>"]},
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        return_timestamps=False,
        max_length=24,
        max_initial_timestamp_index=50,
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "positions" not in name:
            torch.nn.init.normal_(parameter, std=0.4)  # large enough to generate text
    with torch.no_grad():  # prefer letters to the many other tokens
        model.get_input_embeddings().weight[: len(letters)] *= 3
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_ctc_model(folder: Path) -> Path:
    """Save a tiny CTC model of transformers with random weights, and return its folder."""
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    folder.mkdir()
    names = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    processor = Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer)
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=len(names),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8, 8, 8, 8, 8, 8),
        num_conv_pos_embedding_groups=2,
        pad_token_id=0,
    )
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
