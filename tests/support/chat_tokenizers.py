"""Small tokenizers and chat templates that work like those of published models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tiny_audio.decoders import load_tokenizer

CORPUS = (
    "You are a helpful assistant. Listen.",
    "Transcribe: hello there, how are you?",
    "user system model Knowledge Cutoff",
)

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM3 = (
    "{%- if messages[0].role == 'system' -%}{%- set system = messages[0].content -%}{%- set rest = messages[1:] -%}"
    "{%- else -%}{%- set system = '' -%}{%- set rest = messages -%}{%- endif -%}"
    "{%- set quiet = '/no_think' in system or not (enable_thinking | default(true)) -%}"
    "{%- set words = system.replace('/no_think', '').rstrip() -%}"
    "{{- '<|im_start|>system\n' -}}"
    "{%- if '/system_override' in system -%}{{- words.replace('/system_override', '').rstrip() + '<|im_end|>\n' -}}"
    "{%- else -%}{{- 'Today Date: ' + strftime_now('%d %B %Y') + '\nReasoning Mode: ' -}}"
    "{{- ('/no_think' if quiet else '/think') + '\n\n' + words + '<|im_end|>\n' -}}{%- endif -%}"
    "{%- set opening = '<|im_start|>assistant\n' + ('<think>\n\n</think>\n' if quiet else '') -%}"
    "{%- for message in rest -%}{%- if message.role == 'user' -%}"
    "{{ '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}"
    "{%- else -%}{{ opening + message.content.lstrip('\n') + '<|im_end|>\n' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ opening }}{%- endif -%}"
)
QWEN3 = (
    "{%- for message in messages %}{%- if message.role == 'assistant' %}"
    "{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + message.content.split('</think>')[-1].lstrip('\n') }}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content }}{%- endif %}{{- '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
LLAMA3 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}"
    "{%- endif %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' + system + '<|eot_id|>' }}"
    "{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
_GEMMA_TURNS = (
    "{%- for message in messages -%}{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}{{ message['content'] | trim }}"
    "{{ '<end_of_turn>\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
GEMMA3 = (
    "{{ bos_token }}{%- set first = '' -%}{%- if messages[0]['role'] == 'system' -%}"
    "{%- set first = messages[0]['content'] + '\n\n' -%}{%- set messages = messages[1:] -%}{%- endif -%}" + _GEMMA_TURNS
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{%- set first = '' -%}" + _GEMMA_TURNS
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR_WITHOUT_SYSTEM = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
R1 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
)


def _byte_level(special: Sequence[str]) -> Tokenizer:
    """Create a tokenizer like those of GPT-2, SmolLM, Qwen and Llama 3."""
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r"'s|'t| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def _sentencepiece(special: Sequence[str], *, prefix: bool) -> Tokenizer:
    """Create a tokenizer with ``▁`` for spaces and bytes for unknown characters. With ``prefix``, it adds a space at
    the start, as in Llama 2 and Mistral. Gemma adds none."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", *special, *pieces], show_progress=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # no token spans several words
    tokenizer.train_from_iterator([line.replace(" ", "▁") for line in (*CORPUS, "[INST] a [/INST]")], trainer)
    # The trainer has made the tokens for bytes special. Make them ordinary entries of the vocabulary.
    fields = json.loads(tokenizer.to_str())
    fields["pre_tokenizer"] = None
    fields["added_tokens"] = [token for token in fields["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(fields))


def _finish(tokenizer: Tokenizer, template: str | None, *, adds_bos: bool = False, **special: str) -> Any:
    if adds_bos:
        bos = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=template, clean_up_tokenization_spaces=False, **special
    )


@cache
def _built(family: str) -> Any:
    turn = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    headers = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    gemma = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    match family:
        case "smollm2":  # the pad token is the end of turn
            tokens = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
            return _finish(_byte_level(turn), CHATML, **tokens)
        case "smollm3":
            tokens = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
            return _finish(_byte_level([*turn, "<think>", "</think>"]), SMOLLM3, **tokens)
        case "qwen3":
            tokens = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
            return _finish(_byte_level([*turn, "<think>", "</think>"]), QWEN3, **tokens)
        case "llama":  # no pad token, and the end of text is not the end of turn
            tokens = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
            return _finish(_byte_level(headers), LLAMA3, adds_bos=True, **tokens)
        case "gemma3" | "gemma2":
            template = GEMMA3 if family == "gemma3" else GEMMA2
            tokens = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
            return _finish(_sentencepiece(gemma, prefix=False), template, adds_bos=True, **tokens)
        case "mistral":
            tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
            return _finish(_sentencepiece(["<s>", "</s>"], prefix=True), MISTRAL, adds_bos=True, **tokens)
        case "zephyr":
            tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
            return _finish(_sentencepiece(["<s>", "</s>"], prefix=True), ZEPHYR_WITHOUT_SYSTEM, adds_bos=True, **tokens)
        case "r1":
            tokens = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
            return _finish(_byte_level(["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"]), R1, **tokens)
        case "pythia":  # no template, and only one special token
            return _finish(_byte_level(turn[:1]), None, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    raise AssertionError(family)


def chat_tokenizer(family: str, folder: Path) -> Any:
    """Write the tokenizer of a model family to ``folder``, and load it like a checkpoint's tokenizer."""
    _built(family).save_pretrained(folder)
    return load_tokenizer(str(folder))
