"""Prepare requests for the model: keep the waveforms, and put one placeholder per audio embedding into the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import MultiModalDataItems, MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    ProcessorInputs,
    PromptReplacement,
    PromptUpdate,
)

from tiny_audio_vllm.config import TinyAudioConfig
from tiny_audio_vllm.parts import SAMPLE_RATE, longest_clip_s, parts_for_counting


class TinyAudioInfo(BaseProcessingInfo):
    """Properties of the model that the processor needs."""

    def get_hf_config(self) -> TinyAudioConfig:
        """Return the config of the export."""
        return self.ctx.get_hf_config(TinyAudioConfig)

    def get_data_parser(self) -> MultiModalDataParser:
        """Return a parser that converts audio to mono at 16 kHz."""
        return MultiModalDataParser(target_sr=SAMPLE_RATE, target_channels=1)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Return the maximum number of clips in a prompt: one, as in training."""
        return {"audio": 1}

    def num_embeddings(self, num_samples: int) -> int:
        """Return the number of audio embeddings of a clip."""
        model = self.ctx.model_config
        return parts_for_counting(model.model, model.revision).num_embeddings(num_samples)

    def longest_clip_s(self) -> int:
        """Return the duration in seconds of the longest clip that the model accepts."""
        model = self.ctx.model_config
        return longest_clip_s(model.model, model.revision, model.max_model_len)


class TinyAudioDummyInputs(BaseDummyInputsBuilder[TinyAudioInfo]):
    """The largest request. vLLM uses it to measure how much memory the model needs."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Return an empty text, because :class:`TinyAudioProcessor` builds the prompt from token ids."""
        return ""

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]) -> Any:
        """Return clips of the longest duration."""
        length = self.info.longest_clip_s() * SAMPLE_RATE
        return {"audio": self._get_dummy_audios(length=length, num_audios=mm_counts.get("audio", 0))}


class TinyAudioProcessor(BaseMultiModalProcessor[TinyAudioInfo]):
    """Passes waveforms on unchanged, because the encoder computes its own features."""

    def get_dummy_inputs(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]
    ) -> ProcessorInputs:
        """Return the largest request: clips, and a prompt with a placeholder for each of them."""
        data = self.dummy_inputs.get_dummy_mm_data(seq_len, mm_counts, mm_options)
        prompt = [self.info.get_hf_config().audio_token_id] * mm_counts.get("audio", 0)
        return ProcessorInputs(prompt=prompt, mm_data_items=self.info.parse_mm_data(data, validate=False))

    def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        clips = [torch.as_tensor(clip, dtype=torch.float32) for clip in hf_data.get("audio", [])]
        if not clips:
            return BatchFeature()
        counts = torch.tensor([self.info.num_embeddings(len(clip)) for clip in clips])
        return BatchFeature({"waveforms": clips, "num_embeddings": counts})

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {
            "waveforms": MultiModalFieldConfig.batched("audio"),
            "num_embeddings": MultiModalFieldConfig.batched("audio", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        placeholder = self.info.get_hf_config().audio_token_id
        counts: Any = out_mm_kwargs.get_data().get("num_embeddings", [])
        return [
            PromptReplacement(
                modality="audio",
                target=[placeholder],
                replacement=lambda index: [placeholder] * int(counts[index]),
            )
        ]
