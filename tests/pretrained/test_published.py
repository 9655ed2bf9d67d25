"""Parts with the architectures of the package's table have the published numbers of parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from tiny_audio.decoders import DECODERS, DecoderContext
from tiny_audio.encoders import ENCODERS, EncoderContext
from tiny_audio.pretrained import published
from tiny_audio.pretrained.checkpoints import known_architecture, read_architecture
from tiny_audio.registry import Registry

ENCODER_MILLIONS = {
    "facebook/hubert-base-ls960": ("hubert", 94.4),
    "facebook/hubert-large-ll60k": ("hubert", 315.4),
    "facebook/hubert-large-ls960-ft": ("hubert", 315.4),
    "facebook/hubert-xlarge-ll60k": ("hubert", 962.5),
    "facebook/hubert-xlarge-ls960-ft": ("hubert", 962.5),
    "facebook/wav2vec2-base": ("wav2vec2", 94.4),
    "facebook/wav2vec2-base-960h": ("wav2vec2", 94.4),
    "facebook/wav2vec2-large-960h-lv60-self": ("wav2vec2", 315.4),
    "facebook/wav2vec2-xls-r-300m": ("wav2vec2", 315.4),
    "microsoft/wavlm-base-plus": ("wavlm", 94.4),
    "microsoft/wavlm-large": ("wavlm", 315.5),
    "openai/whisper-tiny": ("whisper", 8.2),
    "openai/whisper-tiny.en": ("whisper", 8.2),
    "openai/whisper-base": ("whisper", 20.6),
    "openai/whisper-base.en": ("whisper", 20.6),
    "openai/whisper-small": ("whisper", 88.2),
    "openai/whisper-small.en": ("whisper", 88.2),
    "openai/whisper-medium": ("whisper", 307.2),
    "openai/whisper-medium.en": ("whisper", 307.2),
    "openai/whisper-large-v2": ("whisper", 636.8),
    "openai/whisper-large-v3": ("whisper", 637.0),
    "openai/whisper-large-v3-turbo": ("whisper", 637.0),
    "facebook/w2v-bert-2.0": ("w2v-bert", 580.5),
    "nvidia/parakeet-ctc-0.6b": ("parakeet", 608.0),
    "nvidia/parakeet-ctc-1.1b": ("parakeet", 1_062.0),
    # The encoder alone. The whole model has 2.3 billion parameters, including the language model and the Q-Former.
    "ibm-granite/granite-4.0-1b-speech": ("granite-speech", 440.0),
    "ibm-granite/granite-speech-4.1-2b": ("granite-speech", 440.0),
    # The whole models have 782.4 and 2,038.1 million parameters. The encoder is the rest after subtracting the language
    # model (596.0 and 1,720.6 million) and the projector (1.7 and 3.1 million).
    "Qwen/Qwen3-ASR-0.6B": ("qwen3-asr", 184.7),
    "Qwen/Qwen3-ASR-1.7B": ("qwen3-asr", 314.3),
    "Qwen/Qwen3-ASR-0.6B-hf": ("qwen3-asr", 184.7),
    "Qwen/Qwen3-ASR-1.7B-hf": ("qwen3-asr", 314.3),
}
DECODER_MILLIONS = {
    "HuggingFaceTB/SmolLM3-3B": ("smollm3", 3_075.1),
    "HuggingFaceTB/SmolLM3-3B-Base": ("smollm3", 3_075.1),
    "HuggingFaceTB/SmolLM2-135M": ("smollm2", 134.5),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("smollm2", 134.5),
    "HuggingFaceTB/SmolLM2-360M": ("smollm2", 361.8),
    "HuggingFaceTB/SmolLM2-360M-Instruct": ("smollm2", 361.8),
    "HuggingFaceTB/SmolLM2-1.7B": ("smollm2", 1_711.4),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": ("smollm2", 1_711.4),
    "lmsys/vicuna-7b-v1.5": ("llama", 6_738.4),
    "meta-llama/Llama-3.2-1B": ("llama", 1_235.8),
    "meta-llama/Llama-3.2-1B-Instruct": ("llama", 1_235.8),
    "meta-llama/Llama-3.2-3B": ("llama", 3_212.7),
    "meta-llama/Llama-3.2-3B-Instruct": ("llama", 3_212.7),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama", 8_030.3),
    "Qwen/Qwen3-0.6B": ("qwen3", 596.0),
    "Qwen/Qwen3-1.7B": ("qwen3", 1_720.6),
    "Qwen/Qwen3-4B": ("qwen3", 4_022.5),
    "Qwen/Qwen3-8B": ("qwen3", 8_190.7),
    "google/gemma-3-270m-it": ("gemma3", 268.1),
    "google/gemma-3-1b-it": ("gemma3", 999.9),
}


Context = Callable[[dict[str, Any]], object]


def parameters(registry: Registry[Any, Any], name: str, checkpoint: str, context: Context) -> float:
    """Build a part on the meta device. Return its number of parameters in millions. Shared parameters count once."""
    config = registry.parse({"name": name, "pretrained": checkpoint})
    architecture = known_architecture(config)
    assert architecture is not None
    with torch.device("meta"):
        part = registry.build(config, context(architecture))
    return sum(tensor.numel() for tensor in part.parameters()) / 1e6


def first_of_each_family(millions: dict[str, tuple[str, float]]) -> list[Any]:
    """Return each checkpoint with its values. Only the first checkpoint of each family is in the fast run."""
    first = {name: checkpoint for checkpoint, (name, _) in reversed(millions.items())}
    return [
        pytest.param(checkpoint, *value, marks=[] if first[value[0]] == checkpoint else [pytest.mark.slow])
        for checkpoint, value in millions.items()
    ]


@pytest.mark.parametrize(("checkpoint", "name", "millions"), first_of_each_family(ENCODER_MILLIONS))
def test_encoders_have_the_published_number_of_parameters(checkpoint: str, name: str, millions: float) -> None:
    assert parameters(ENCODERS, name, checkpoint, EncoderContext) == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(("checkpoint", "name", "millions"), first_of_each_family(DECODER_MILLIONS))
def test_decoders_have_the_published_number_of_parameters(checkpoint: str, name: str, millions: float) -> None:
    context = partial(DecoderContext, None)
    assert parameters(DECODERS, name, checkpoint, context) == pytest.approx(millions, rel=0.001)


def test_every_entry_of_the_table_is_checked() -> None:
    assert published._table().keys() == ENCODER_MILLIONS.keys() | DECODER_MILLIONS.keys()


@pytest.mark.parametrize("checkpoint", DECODER_MILLIONS)
def test_the_number_of_positions_of_a_decoder_is_known(checkpoint: str) -> None:
    fields = published._table()[checkpoint]
    assert fields["max_position_embeddings"] >= 4_096
    assert fields["vocab_size"] >= 32_000


def test_all_fields_are_known_to_transformers() -> None:
    """Old names of rotary settings are also allowed, because transformers still reads them."""
    from transformers import CONFIG_MAPPING

    older = {"model_type", "rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern"}
    for checkpoint, fields in published._table().items():
        known = set(vars(CONFIG_MAPPING[fields["model_type"]]()))
        assert not fields.keys() - known - older, checkpoint


def test_rotary_settings_are_read() -> None:
    def rope(checkpoint: str) -> Any:
        from transformers import CONFIG_MAPPING

        fields = published._table()[checkpoint]
        return CONFIG_MAPPING[fields["model_type"]].from_dict(dict(fields)).rope_parameters

    assert rope("HuggingFaceTB/SmolLM3-3B")["rope_theta"] == 5_000_000
    llama = rope("meta-llama/Llama-3.2-1B-Instruct")
    assert (llama["rope_type"], llama["factor"], llama["rope_theta"]) == ("llama3", 32.0, 500_000.0)
    gemma = rope("google/gemma-3-1b-it")
    assert gemma["full_attention"]["rope_theta"] == 1_000_000
    assert gemma["sliding_attention"]["rope_theta"] == 10_000


@pytest.mark.parametrize(
    ("registry", "name"),
    [(registry, entry.name) for registry in (ENCODERS, DECODERS) for entry in registry.entries()],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_default_checkpoints_are_in_the_table(registry: Registry[Any, Any], name: str) -> None:
    default = registry.entry(name).config.model_fields["pretrained"].default
    if default:  # `causal_lm` has no default
        assert known_architecture(registry.parse({"name": name, "pretrained": default})) is not None


def test_other_checkpoints_and_revisions_are_unknown() -> None:
    known = {"name": "smollm3", "pretrained": "HuggingFaceTB/SmolLM3-3B"}
    architecture = known_architecture(DECODERS.parse(known))
    assert architecture == read_architecture(DECODERS.parse(known))
    assert architecture is not None
    architecture["hidden_size"] = 1
    assert known_architecture(DECODERS.parse(known)) != architecture, "the table must not change"
    assert known_architecture(DECODERS.parse(known | {"revision": "v2"})) is None
    assert known_architecture(DECODERS.parse(known | {"pretrained": "somebody/else"})) is None
    assert known_architecture(DECODERS.entry("smollm3").config.tiny()) is None  # type: ignore[attr-defined]
