"""Transcribe clips with vLLM and with the export itself, and print both texts of each clip.

Usage: ``python -m tiny_audio_vllm.compare EXPORT CLIP...``. vLLM and the export decode greedily in float32. The clips
must be mono, at 16 kHz, and not longer than the model accepts. The exit code is 1 if a text differs.
"""

from __future__ import annotations

import sys
from typing import Any

import soundfile
import torch
from transformers import AutoProcessor

from tiny_audio_vllm.config import TinyAudioConfig
from tiny_audio_vllm.parts import SAMPLE_RATE

_MAX_NEW_TOKENS = 60


def texts_of_export(folder: str, clips: list[Any]) -> list[str]:
    """Return the texts of the export, decoded by the code that it contains."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    model_class = get_class_from_dynamic_module("modeling_tiny_audio.TinyAudioModel", folder)
    model = model_class.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    ids = [model.generate(**processor(clip), num_beams=1, max_new_tokens=_MAX_NEW_TOKENS)[0] for clip in clips]
    return [processor.tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]


def texts_of_vllm(folder: str, clips: list[Any], **options: Any) -> list[str]:
    """Return the texts that vLLM decodes."""
    from vllm import LLM, SamplingParams

    model = LLM(folder, trust_remote_code=True, dtype="float32", enforce_eager=True, **options)
    prompt_ids = TinyAudioConfig.from_pretrained(folder).prompt_ids
    prompts = [{"prompt_token_ids": prompt_ids, "multi_modal_data": {"audio": (clip, SAMPLE_RATE)}} for clip in clips]
    outputs = model.generate(prompts, SamplingParams(temperature=0.0, max_tokens=_MAX_NEW_TOKENS))
    return [output.outputs[0].text.strip() for output in outputs]


def main(folder: str, *paths: str) -> int:
    """Print both texts of each clip, and return the exit code."""
    clips = [soundfile.read(path, dtype="float32")[0] for path in paths]
    expected, found = texts_of_export(folder, clips), texts_of_vllm(folder, clips)
    for path, own, other in zip(paths, expected, found, strict=True):
        print(f"{'same' if own == other else 'DIFFERENT'}\t{path}\t{own}\t{other}")
    return int(expected != found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
