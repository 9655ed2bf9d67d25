"""The plugin in vLLM: registration, prompt expansion, weight names, and the texts of an export.

``TINY_AUDIO_EXPORT=my-model pytest examples/vllm`` runs these tests on an export, in an environment with vLLM.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")
EXPORT = os.environ.get("TINY_AUDIO_EXPORT", "")
pytestmark = pytest.mark.skipif(not EXPORT, reason="TINY_AUDIO_EXPORT does not name the folder of an export")
SECOND = 16_000


@pytest.fixture(scope="module")
def model_config() -> Any:
    """Return vLLM's config of the export."""
    from vllm.config import ModelConfig
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    return ModelConfig(model=EXPORT, trust_remote_code=True, dtype="float32")


def test_vllm_knows_the_model(model_config: Any) -> None:
    """vLLM finds the plugin, and reads from the config that the model is multimodal and how wide the decoder is."""
    from tiny_audio_vllm.config import TinyAudioConfig
    from vllm import ModelRegistry

    assert "TinyAudioModel" in ModelRegistry.get_supported_archs()
    assert isinstance(model_config.hf_config, TinyAudioConfig)
    assert model_config.is_multimodal_model
    assert model_config.get_hidden_size() == model_config.hf_config.text_config.hidden_size


@pytest.mark.parametrize("num_samples", [SECOND // 2, SECOND, 2 * SECOND + 77])
def test_a_prompt_has_a_placeholder_for_each_embedding(model_config: Any, num_samples: int) -> None:
    """The placeholder is repeated for each audio embedding, and the rest of the prompt does not change."""
    from tiny_audio_vllm.parts import parts_for_counting
    from vllm.multimodal import MULTIMODAL_REGISTRY

    processor = MULTIMODAL_REGISTRY.create_processor(model_config)
    config = model_config.hf_config
    items = processor.info.parse_mm_data({"audio": (np.zeros(num_samples, np.float32), SECOND)})
    found = processor(config.prompt_ids, items)
    count = parts_for_counting(EXPORT, None).num_embeddings(num_samples)
    prefix, suffix = config.prompt_prefix_ids, config.prompt_suffix_ids
    assert found["prompt_token_ids"] == [*prefix, *[config.audio_token_id] * count, *suffix]
    (place,) = found["mm_placeholders"]["audio"]
    assert (place.offset, place.length) == (len(prefix), count)


def test_every_tensor_has_a_name_in_vllm() -> None:
    """Only the CTC head's tensors are left out. All other names get the prefix of one of the three parts in vLLM."""
    from safetensors import safe_open
    from tiny_audio_vllm.model import TinyAudioForConditionalGeneration

    with safe_open(f"{EXPORT}/model.safetensors", "pt") as file:
        names = list(file.keys())
    mapped = {name: TinyAudioForConditionalGeneration.hf_to_vllm_mapper.map_name(name) for name in names}
    assert {name.split(".")[0] for name, new in mapped.items() if new is None} <= {"ctc_head"}
    assert {str(new).split(".")[0] for new in mapped.values() if new} == {"encoder", "projector", "language_model"}


def test_texts_equal_those_of_the_export() -> None:
    """Clips of several lengths in one batch have the same texts as with the export, so all weights are loaded."""
    from tiny_audio_vllm.compare import texts_of_export, texts_of_vllm

    random = np.random.default_rng(0)
    clips = [0.1 * random.standard_normal(size).astype(np.float32) for size in (SECOND, 2 * SECOND, SECOND // 2)]
    expected = texts_of_export(EXPORT, clips)  # before vLLM runs, because vLLM changes classes of transformers
    assert texts_of_vllm(EXPORT, clips) == expected
