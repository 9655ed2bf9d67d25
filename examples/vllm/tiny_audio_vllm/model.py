"""The model class for vLLM. The encoder and the projector are those of the export, and the decoder is vLLM's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from vllm.config import ModelConfig, SpeechToTextConfig, VllmConfig
from vllm.config.speech_to_text import SpeechToTextParams
from vllm.inputs import PromptType, TokensPrompt
from vllm.model_executor.models.interfaces import SupportsMultiModal, SupportsPP, SupportsTranscription
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.sequence import IntermediateTensors

from tiny_audio_vllm.config import TinyAudioConfig
from tiny_audio_vllm.parts import SAMPLE_RATE, build_parts, longest_clip_s
from tiny_audio_vllm.processing import TinyAudioDummyInputs, TinyAudioInfo, TinyAudioProcessor


@MULTIMODAL_REGISTRY.register_processor(TinyAudioProcessor, info=TinyAudioInfo, dummy_inputs=TinyAudioDummyInputs)
class TinyAudioForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsPP, SupportsTranscription):
    """An export of Tiny Audio in vLLM.

    vLLM shards, caches and batches the decoder. Every worker runs the whole encoder and projector.
    """

    hf_to_vllm_mapper = WeightsMapper(
        # The CTC head is not used: vLLM decodes without drafts.
        orig_to_new_prefix={"decoder.model.": "language_model.", "ctc_head.": None}
    )
    packed_modules_mapping = {  # noqa: RUF012  # as in vLLM's models
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    # vLLM needs a list of languages. English stands for any language: an export states no languages, not even in its
    # prompt.
    supported_languages = {"en": "English"}  # noqa: RUF012

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        model_config = vllm_config.model_config
        config: TinyAudioConfig = model_config.hf_config
        if not model_config.trust_remote_code:
            raise ValueError("the encoder's code is part of the export; add --trust-remote-code")
        self.config = config
        with self._mark_tower_model(vllm_config, "audio"):
            parts = build_parts(config, model_config.model, model_config.revision)
            self.encoder, self.projector = parts.encoder, parts.projector
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config, hf_config=config.text_config, prefix=maybe_prefix(prefix, "language_model")
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Refuse chat messages.

        Raises:
            ValueError: always, because an export was trained with one fixed prompt.
        """
        raise ValueError("exports of Tiny Audio have a fixed prompt, so they do not chat; use /v1/audio/transcriptions")

    def get_mm_mapping(self) -> MultiModelKeys:
        """Return, for each part, the prefix of its weights' names."""
        return MultiModelKeys.from_string_field(
            language_model="language_model.", connector="projector.", tower_model="encoder."
        )

    @torch.inference_mode()
    def embed_multimodal(self, **kwargs: Any) -> tuple[Tensor, ...]:
        """Return the audio embeddings ``[N, H]`` of each clip.

        Args:
            kwargs: ``waveforms``: B clips of float32 ``[S]`` or ``[1, S]`` at 16 kHz. ``num_embeddings``: the expected
                number of audio embeddings of each clip.

        Raises:
            ValueError: the projector returned a different number of embeddings than expected.
        """
        waveforms = kwargs.get("waveforms")
        if waveforms is None:
            return ()
        clips = [clip.reshape(-1) for clip in waveforms]
        lengths = torch.tensor([len(clip) for clip in clips], device=clips[0].device)
        embeddings, counts = self.projector(self.encoder(pad_sequence(clips, batch_first=True), lengths))
        expected = torch.as_tensor(kwargs["num_embeddings"]).reshape(-1).tolist()
        if counts.tolist() != expected:
            name = self.config.projector["name"]
            raise ValueError(
                f"the projector {name!r} returned {counts.tolist()} embeddings instead of {expected}; vLLM needs a "
                "projector whose number of embeddings depends only on the duration"
            )
        dtype = self.language_model.embed_input_ids(lengths.new_zeros(1)).dtype
        return tuple(row[:count].to(dtype) for row, count in zip(embeddings, expected, strict=True))

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor | IntermediateTensors:
        """Return the decoder's hidden states."""
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.language_model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Return logits. The logits of ids without a text in the tokenizer are -inf, so they are never generated."""
        logits = self.language_model.compute_logits(hidden_states)
        if logits is not None and self.config.undecodable_ids:
            logits[..., self.config.undecodable_ids] = -torch.inf
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the tensors of ``model.safetensors``."""
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)

    @classmethod
    def get_speech_to_text_config(cls, model_config: ModelConfig, task_type: str) -> SpeechToTextConfig:
        """Return the sampling rate, and the duration above which vLLM splits a recording."""
        longest_s = longest_clip_s(model_config.model, model_config.revision, model_config.max_model_len)
        return SpeechToTextConfig(sample_rate=SAMPLE_RATE, max_audio_clip_s=longest_s)

    @classmethod
    def get_generation_prompt(cls, stt_params: SpeechToTextParams) -> PromptType:
        """Return the prompt of the export, as token ids.

        Raises:
            ValueError: the request asks for a translation, or has a prompt.
        """
        if stt_params.task_type != "transcribe":
            raise ValueError("this model transcribes and does not translate; use /v1/audio/transcriptions")
        if stt_params.request_prompt:
            raise ValueError("this model has a fixed prompt; leave out the field prompt")
        config: TinyAudioConfig = stt_params.model_config.hf_config
        return TokensPrompt(prompt_token_ids=config.prompt_ids, multi_modal_data={"audio": stt_params.audio})

    @classmethod
    def post_process_output(cls, text: str) -> str:
        """Remove white space at both ends of the text, as Tiny Audio does."""
        return text.strip()
