"""Limits of clips and transcripts, computed from the configs of the parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conftest import Document, changed
from tests.support.encoder_checkpoints import original
from tests.support.training import parse
from tiny_audio.decoders import DECODERS
from tiny_audio.encoders import ENCODERS, EncoderConfig, EncoderContext
from tiny_audio.recipe.limits import ContextLimits, limit_errors


def known(name: str, **fields: Any) -> tuple[EncoderConfig, Any]:
    """Return a config with the architecture of a checkpoint, and an encoder with the same architecture."""
    fields = original(name, **fields).config.to_dict()
    config = ENCODERS.parse({"name": name, "pretrained": "some/where"})
    with torch.device("meta"):
        return config.with_architecture(fields), ENCODERS.build(config, EncoderContext(fields))


@pytest.mark.parametrize(
    ("name", "fields", "rate"),
    [
        ("hubert", {"conv_stride": [5, 2, 2, 2, 2, 2, 4]}, 25.0),
        ("wav2vec2", {"conv_stride": [5, 2, 2, 2, 2, 2, 1]}, 100.0),
        ("wavlm", {"conv_kernel": [10, 3, 3, 3, 3, 3, 3], "conv_stride": [4, 2, 2, 2, 2, 2, 2]}, 62.5),
        ("parakeet", {"subsampling_factor": 4}, 25.0),
        ("qwen3-asr", {"n_window": 25}, 14.0),
    ],
)
def test_frames_are_counted_with_the_checkpoints_architecture(name: str, fields: dict[str, Any], rate: float) -> None:
    config, encoder = known(name, **fields)
    assert encoder.frame_rate == rate
    for num_samples in (1, 400, 639, 640, 641, 16_000, 33_333, 479_999):
        assert config.num_frames(num_samples) == int(encoder.num_frames(torch.tensor(num_samples))), num_samples


@pytest.mark.parametrize(("positions", "seconds"), [(100, 2.0), (750, 15.0), (3_000, 60.0)])
def test_whispers_limit_depends_on_its_positions(positions: int, seconds: float) -> None:
    config, _ = known("whisper", max_source_positions=positions)
    assert config.max_duration_s() == seconds


def test_limits_of_published_checkpoints_need_no_network() -> None:
    assert ENCODERS.parse({"name": "whisper", "pretrained": "openai/whisper-tiny"}).max_duration_s() == 30.0
    decoder = DECODERS.parse({"name": "llama", "pretrained": "lmsys/vicuna-7b-v1.5"})
    assert (decoder.max_positions(), decoder.num_embeddings()) == (4_096, 32_000)
    assert DECODERS.parse({"name": "llama", "pretrained": "some/where"}).max_positions() is None


@pytest.mark.parametrize("field", ["max_position_embeddings", "n_positions", "max_seq_len"])
def test_the_number_of_positions_has_several_names(field: str) -> None:
    decoder = DECODERS.parse({"name": "causal_lm", "pretrained": "some/where"})
    assert decoder.with_architecture({field: 77}).max_positions() == 77


def with_positions(document: Document, positions: int, **changes: Any) -> ContextLimits:
    fields = {"max_position_embeddings": positions}
    recipe = parse(changed(document, **changes))
    decoder = recipe.decoder.with_architecture(recipe.decoder.overrides | fields)
    return ContextLimits(recipe.model_copy(update={"decoder": decoder}), num_prompt_ids=7)


def test_limits_follow_from_the_number_of_positions(document: Document) -> None:
    # 10 s of audio are 500 frames. The projector stacks 5 frames, so there are 100 audio embeddings.
    limits = with_positions(document, 140, generation__max_new_tokens=20)
    assert (limits.audio, limits.needed, limits.max_target_ids) == (100, 127, 33)
    assert limits.longest_evaluation_s == pytest.approx(11.3), (
        "140 positions - 7 for the prompt - 20 for the text = 113 embeddings of 0.1 s"
    )
    slowed = with_positions(document, 140, generation__max_new_tokens=20, augmentation__speed=[0.8, 1.0])
    assert (slowed.longest_training_s, slowed.audio) == (12.5, 125)
    roomy = with_positions(document, 4_000)
    assert roomy.longest_evaluation_s == roomy.recipe.encoder.max_duration_s()


def test_a_recipe_beyond_the_context_is_invalid(document: Document) -> None:
    overrides = document["decoder"]["overrides"] | {"max_position_embeddings": 110}
    recipe = parse(changed(document, decoder__overrides=overrides, generation__max_new_tokens=20))
    ((place, message),) = limit_errors(recipe)
    assert place == "decoder.smollm3"
    assert "110 positions" in message
    assert " 120 " in message


def test_the_suggested_duration_is_valid(document: Document) -> None:
    """At speed 0.7, clips of 21 s last 30 s, Whisper's limit. Rounding errors in 21 / 0.7 must not reject them."""
    encoder = {"name": "whisper", "pretrained": "openai/whisper-tiny"}
    recipe = parse(changed(document, encoder=encoder, data__max_duration_s=22.0, augmentation__speed=[0.7, 1.0]))
    ((place, message),) = limit_errors(recipe)
    assert place == "data.max_duration_s"
    assert message.endswith("set at most 21")
    recipe = parse(changed(document, encoder=encoder, data__max_duration_s=21.0, augmentation__speed=[0.7, 1.0]))
    assert list(limit_errors(recipe)) == []
