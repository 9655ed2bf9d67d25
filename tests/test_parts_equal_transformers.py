"""Parts that wrap a transformers model put out what that model puts out, on weights that went through a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    HubertConfig,
    HubertForCTC,
    HubertModel,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from tiny_audio.decoders import DECODERS, Decoder, DecoderContext
from tiny_audio.encoders import ENCODERS, Encoder, EncoderContext
from tiny_audio.frames import Frames

SAMPLE_RATE = 16_000
TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def speech(seconds: float, seed: int = 0) -> np.ndarray[Any, Any]:
    """A swelling noise with an offset, which normalisation has to take out."""
    samples = np.arange(round(seconds * SAMPLE_RATE))
    noise = np.random.default_rng(seed).normal(0, 0.1, len(samples))
    return (0.05 + noise * (1.1 + np.sin(samples / 1000))).astype(np.float32)


def assert_equal(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.pow(2).mean().sqrt())


def randomised(model: Any) -> Any:
    """As initialised, norms are ones and biases zeros, which would hide that they are not loaded."""
    numbers = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.requires_grad and "masked_spec_embed" not in name:
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=numbers))
    return model.eval()


def built(name: str, folder: Path) -> Encoder:
    config = ENCODERS.entry(name).config.model_validate({"name": name, "pretrained": str(folder)})
    return ENCODERS.build(config, EncoderContext()).eval()


# --- HuBERT


def hubert(folder: Path, *, group_norm: bool) -> tuple[HubertModel, Encoder]:
    torch.manual_seed(0)
    config = HubertConfig(
        **TRANSFORMER,
        conv_dim=[16] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="group" if group_norm else "layer",
        do_stable_layer_norm=not group_norm,
        conv_bias=not group_norm,
        vocab_size=12,
    )
    model = randomised(HubertForCTC(config))
    model.save_pretrained(folder)
    return model.hubert, built("hubert", folder)


@pytest.mark.parametrize("training", [False, True])
def test_hubert_with_a_mask_on_mixed_lengths(tmp_path: Path, training: bool) -> None:
    model, encoder = hubert(tmp_path, group_norm=False)
    clips = [speech(seconds, seed) for seed, seconds in enumerate((1.0, 0.31, 0.7301, 0.025))]
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    inputs = extractor(clips, sampling_rate=SAMPLE_RATE, padding=True, return_tensors="pt")
    waveforms = pad_sequence([torch.from_numpy(clip) for clip in clips], batch_first=True)
    with torch.no_grad():
        wanted = model(**inputs).last_hidden_state
        frames = encoder.train(training)(waveforms, torch.tensor([len(clip) for clip in clips]))
    assert frames.lengths.tolist() == model._get_feat_extract_output_lengths(inputs.attention_mask.sum(-1)).tolist()
    assert frames.rate == pytest.approx(50)
    for row, length in enumerate(frames.lengths):
        assert_equal(frames.values[row, :length], wanted[row, :length])


def test_hubert_with_group_norm_clip_by_clip(tmp_path: Path) -> None:
    model, encoder = hubert(tmp_path, group_norm=True)
    clips = [speech(seconds, seed) for seed, seconds in enumerate((1.0, 0.31, 0.7301))]
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)
    waveforms = pad_sequence([torch.from_numpy(clip) for clip in clips], batch_first=True)
    with torch.no_grad():
        frames = encoder(waveforms, torch.tensor([len(clip) for clip in clips]))
        for row, clip in enumerate(clips):
            wanted = model(**extractor(clip, sampling_rate=SAMPLE_RATE, return_tensors="pt")).last_hidden_state[0]
            assert len(wanted) == frames.lengths[row]
            assert_equal(frames.values[row, : len(wanted)], wanted)


def test_hubert_that_wants_raw_audio(tmp_path: Path) -> None:
    model, _ = hubert(tmp_path, group_norm=False)
    fields = {"name": "hubert", "pretrained": str(tmp_path), "normalize": False}
    config = ENCODERS.entry("hubert").config.model_validate(fields)
    encoder = ENCODERS.build(config, EncoderContext()).eval()
    audio = torch.from_numpy(speech(0.5))[None]
    with torch.no_grad():
        assert_equal(encoder(audio, torch.tensor([audio.shape[1]])).values, model(audio).last_hidden_state)


# --- Whisper


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Encoder]:
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        vocab_size=60,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        dropout=0.1,
    )
    model = randomised(WhisperForConditionalGeneration(config))
    folder = tmp_path_factory.mktemp("whisper")
    model.save_pretrained(folder)
    return model.model.encoder, built("whisper", folder)


def mel(clip: np.ndarray[Any, Any]) -> Tensor:
    """``[mels, 3000]`` as transformers computes it."""
    extractor = WhisperFeatureExtractor(feature_size=80)
    features: Tensor = extractor(clip, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
    return features[0]


def assert_same_mel(found: Tensor, wanted: Tensor) -> None:
    """float32 against float64: a thousandth of what a decibel is on this scale."""
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) < 1e-4


def test_whispers_features_of_30_s_that_end_in_silence(whisper: tuple[Any, Encoder]) -> None:
    clip = np.concatenate([speech(24.0), np.zeros(6 * SAMPLE_RATE, np.float32)])
    features = whisper[1].features(torch.from_numpy(clip)[None], torch.tensor([len(clip)]))
    assert features.lengths.tolist() == [3000]
    assert_same_mel(features.values[0], mel(clip).T)


@pytest.mark.parametrize("seconds", [0.05, 1.0, 3.2101, 11.999])
def test_whispers_features_of_shorter_clips_are_the_start_of_its_window(
    whisper: tuple[Any, Encoder], seconds: float
) -> None:
    clip = speech(seconds)
    features = whisper[1].features(torch.from_numpy(clip)[None], torch.tensor([len(clip)]))
    assert_same_mel(features.values[0], mel(clip).T[: int(features.lengths)])


def test_whisper_at_30_s(whisper: tuple[Any, Encoder]) -> None:
    model, encoder = whisper
    features = mel(np.concatenate([speech(24.0), np.zeros(6 * SAMPLE_RATE, np.float32)]))[None]
    with torch.no_grad():
        wanted = model(features).last_hidden_state
        frames = encoder.encode(Frames(features.transpose(1, 2), torch.tensor([3000]), 100.0))
    assert frames.lengths.tolist() == [1500]
    assert_equal(frames.values, wanted)


def test_shorter_clips_are_whispers_layers_run_by_hand(whisper: tuple[Any, Encoder]) -> None:
    model, encoder = whisper
    clips = [speech(seconds, seed) for seed, seconds in enumerate((2.0, 0.31, 1.0501))]
    waveforms = pad_sequence([torch.from_numpy(clip) for clip in clips], batch_first=True)
    with torch.no_grad():
        frames = encoder(waveforms, torch.tensor([len(clip) for clip in clips]))
        for row, clip in enumerate(clips):
            features = encoder.features(torch.from_numpy(clip)[None], torch.tensor([len(clip)])).values
            hidden = F.gelu(model.conv2(F.gelu(model.conv1(features.transpose(1, 2))))).transpose(1, 2)
            hidden = hidden + model.embed_positions.weight[: hidden.shape[1]]
            for layer in model.layers:
                hidden = layer(hidden, None)
            wanted = model.layer_norm(hidden)[0]
            assert len(wanted) == frames.lengths[row]
            assert_equal(frames.values[row, : len(wanted)], wanted)


def test_whisper_refuses_more_than_its_positions(whisper: tuple[Any, Encoder]) -> None:
    audio = torch.zeros(1, 31 * SAMPLE_RATE)
    with pytest.raises(ValueError, match=r"a clip of 31\.0 s is longer than this encoder's 30 s; split it"):
        whisper[1](audio, torch.tensor([audio.shape[1]]))


# --- SmolLM3


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def smollm3(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Decoder]:
    torch.manual_seed(0)
    config = SmolLM3Config(
        **TRANSFORMER | {"num_hidden_layers": 4},  # the fourth has no positions
        num_key_value_heads=2,
        vocab_size=60,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=request.param,
    )
    assert config.no_rope_layers == [1, 1, 1, 0]
    model = SmolLM3ForCausalLM(config).eval()
    with torch.no_grad():
        for tensor in model.parameters():  # so large that it says more than one token
            tensor.copy_(torch.randn(tensor.shape) * (0.35 if tensor.ndim == 2 else 1))
    folder = tmp_path_factory.mktemp("smollm3")
    model.save_pretrained(folder)
    part = DECODERS.entry("smollm3").config.model_validate({"name": "smollm3", "pretrained": str(folder)})
    return model, DECODERS.build(part, DecoderContext(None)).eval()


def ids(*lengths: int) -> tuple[Tensor, Tensor]:
    """Right-padded token ids and their bool mask."""
    rows = [torch.randint(3, 60, (length,), generator=torch.Generator().manual_seed(length)) for length in lengths]
    return pad_sequence(rows, batch_first=True), pad_sequence([row >= 0 for row in rows], batch_first=True)


def test_smollm3s_logits(smollm3: tuple[Any, Decoder]) -> None:
    model, decoder = smollm3
    tokens, mask = ids(12, 5, 9)
    keep = mask & (torch.arange(12) % 2 == 0)
    with torch.no_grad():
        wanted = model(input_ids=tokens, attention_mask=mask.long()).logits
        assert_equal(decoder(decoder.embed(tokens), mask, mask), wanted[mask])
        assert_equal(decoder(decoder.embed(tokens), mask, keep), wanted[keep])
        alone = model(input_ids=tokens[1:2, :5]).logits[0]
        assert_equal(decoder(decoder.embed(tokens[1:2, :5]), mask[1:2, :5], mask[1:2, :5]), alone)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_smollm3_generates(smollm3: tuple[Any, Decoder], settings: dict[str, Any]) -> None:
    model, decoder = smollm3
    tokens, _ = ids(9)
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": 2, "pad_token_id": 2, **settings}
    embeddings, mask = decoder.embed(tokens), torch.ones_like(tokens, dtype=torch.bool)
    found = decoder.generate(embeddings, mask, **settings)
    from_embeddings = model.generate(inputs_embeds=embeddings, attention_mask=mask.long(), **settings)
    from_ids = model.generate(input_ids=tokens, attention_mask=mask.long(), **settings)[:, tokens.shape[1] :]
    assert found.tolist() == from_embeddings.tolist() == from_ids.tolist()
    assert len(set(found[0].tolist())) > 2, "a model that repeats itself shows little"


def test_smollm3s_embedding_rms(smollm3: tuple[Any, Decoder]) -> None:
    model, decoder = smollm3
    wanted = model.model.embed_tokens.weight.pow(2).mean().sqrt().item()
    assert decoder.embedding_rms() == pytest.approx(wanted)
    assert decoder.dim == 32
