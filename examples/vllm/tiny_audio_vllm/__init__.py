"""A vLLM plugin that serves exports of Tiny Audio."""

from __future__ import annotations


def register() -> None:
    """Register the config and the model. vLLM calls this in each of its processes, sometimes more than once."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from tiny_audio_vllm.config import TinyAudioConfig

    AutoConfig.register("tiny_audio", TinyAudioConfig, exist_ok=True)
    # The class is given by its name, so that it is imported later. An import now could initialize CUDA, which must not
    # happen before vLLM starts its workers.
    ModelRegistry.register_model("TinyAudioModel", "tiny_audio_vllm.model:TinyAudioForConditionalGeneration")
