"""Outputs of encoders equal those of the transformers models, with weights loaded from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    ParakeetFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from tests.support.encoder_checkpoints import (
    GROUP_NORM,
    SAMPLE_RATE,
    WAVEFORM_FAMILIES,
    bare,
    build,
    original,
    speech,
)
from tests.support.equality import assert_close
from tests.support.fast import fast_ones
from tiny_audio.encoders import ENCODERS, Encoder, EncoderConfig, EncoderContext
from tiny_audio.encoders.whisper import WhisperConfig
from tiny_audio.frames import Frames
from tiny_audio.testing import ENCODER_CHECKS

SECONDS = (1.0, 0.31, 0.7301, 0.105)


def batch(clips: list[np.ndarray[Any, Any]]) -> tuple[Tensor, Tensor]:
    """Return waveforms ``[B, S]`` and lengths."""
    waveforms = pad_sequence([torch.from_numpy(clip) for clip in clips], batch_first=True)
    return waveforms, torch.tensor([len(clip) for clip in clips])


def clips_of(*seconds: float) -> list[np.ndarray[Any, Any]]:
    return [speech(length, seed) for seed, length in enumerate(seconds)]


def quiet_speech() -> np.ndarray[Any, Any]:
    """Return speech with half a second of zeros. In the zeros, the log features have their lower limit."""
    return np.concatenate([speech(0.5), np.zeros(SAMPLE_RATE // 2, np.float32), 0.1 * speech(0.6, 1)])


# --- raw waveforms: HuBERT, wav2vec 2.0, WavLM


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # raised by WavLM in transformers
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", WAVEFORM_FAMILIES)
def test_masked_batches_of_mixed_lengths(tmp_path: Path, name: str, training: bool) -> None:
    whole = original(name)
    whole.save_pretrained(tmp_path)
    model, encoder = bare(name, whole), build(name, tmp_path)
    clips = clips_of(*SECONDS[:3], 0.025)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    inputs = extractor(clips, sampling_rate=SAMPLE_RATE, padding=True, return_tensors="pt")
    with torch.no_grad():
        frames = encoder.train(training)(*batch(clips))
        wanted = model(**inputs).last_hidden_state
    assert frames.lengths.tolist() == model._get_feat_extract_output_lengths(inputs.attention_mask.sum(-1)).tolist()
    assert frames.rate == pytest.approx(50)
    for row, length in enumerate(frames.lengths):
        assert_close(frames.values[row, :length], wanted[row, :length])


@pytest.mark.parametrize("name", WAVEFORM_FAMILIES)
def test_encoders_with_group_norm_clip_by_clip(tmp_path: Path, name: str) -> None:
    whole = original(name, **GROUP_NORM)
    whole.save_pretrained(tmp_path)
    model, encoder = bare(name, whole), build(name, tmp_path)
    clips = clips_of(*SECONDS)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)
    with torch.no_grad():
        frames = encoder(*batch(clips))
        for row, clip in enumerate(clips):
            wanted = model(**extractor(clip, sampling_rate=SAMPLE_RATE, return_tensors="pt")).last_hidden_state[0]
            assert len(wanted) == frames.lengths[row]
            assert_close(frames.values[row, : len(wanted)], wanted)


@pytest.mark.parametrize("name", WAVEFORM_FAMILIES)
def test_encoders_without_normalization(tmp_path: Path, name: str) -> None:
    whole = original(name)
    whole.save_pretrained(tmp_path)
    encoder = build(name, tmp_path, normalize=False)
    audio = torch.from_numpy(speech(0.5))[None]
    with torch.no_grad():
        wanted = bare(name, whole)(audio).last_hidden_state
        assert_close(encoder(audio, torch.tensor([audio.shape[1]])).values, wanted)


def test_normalization_has_no_effect_before_a_group_norm(tmp_path: Path) -> None:
    original("wavlm", **GROUP_NORM).save_pretrained(tmp_path)
    audio, lengths = batch(clips_of(1.0, 0.31))
    with torch.no_grad():
        plain, normalized = (build("wavlm", tmp_path, normalize=value)(audio, lengths) for value in (False, True))
    difference = (plain.values - normalized.values)[plain.mask()].abs().max()
    assert float(difference) <= 1e-3 * float(plain.values[plain.mask()].pow(2).mean().sqrt())


# --- W2v-BERT


def seamless(clips: list[np.ndarray[Any, Any]]) -> dict[str, Tensor]:
    """Return features ``[B, T, 160]`` and their mask, computed by transformers."""
    extractor = SeamlessM4TFeatureExtractor(padding_value=1.0)  # the setting of the released checkpoint
    return dict(extractor(clips, sampling_rate=SAMPLE_RATE, return_tensors="pt"))


@pytest.fixture(scope="module", params=["relative_key", "relative", "rotary"])
def w2v_bert(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Encoder]:
    whole = original("w2v-bert", feature_projection_input_dim=160, position_embeddings_type=request.param)
    folder = tmp_path_factory.mktemp("w2v_bert")
    whole.save_pretrained(folder)
    return bare("w2v-bert", whole), build("w2v-bert", folder)


@pytest.mark.parametrize("clip", [speech(1.0), speech(0.7301), speech(0.035), quiet_speech()])
def test_w2v_berts_features(w2v_bert: tuple[Any, Encoder], clip: np.ndarray[Any, Any]) -> None:
    inputs = seamless([clip])
    features = w2v_bert[1].features(*batch([clip]))
    count = int(inputs["attention_mask"].sum())
    assert features.lengths.tolist() == [2 * count]
    assert features.rate == 100
    wanted = inputs["input_features"][0, :count]
    found = features.values[0].reshape(count, 160)
    assert float((found - wanted).abs().max()) < 5e-4  # transformers computes in float64; features have variance 1


def test_w2v_bert_on_mixed_lengths(w2v_bert: tuple[Any, Encoder]) -> None:
    model, encoder = w2v_bert
    inputs = seamless(clips_of(*SECONDS))
    lengths = inputs["attention_mask"].sum(-1)
    with torch.no_grad():
        wanted = model(**inputs).last_hidden_state
        frames = encoder.encode(Frames(inputs["input_features"].reshape(len(lengths), -1, 80), 2 * lengths, 100.0))
        own = encoder(*batch(clips_of(*SECONDS)))
    assert frames.lengths.tolist() == own.lengths.tolist() == lengths.tolist()
    for row, length in enumerate(lengths):
        assert_close(frames.values[row, :length], wanted[row, :length])
        difference = (own.values[row, :length] - wanted[row, :length]).abs().max()
        assert float(difference) <= 1e-3 * float(wanted[row, :length].pow(2).mean().sqrt())


# --- Parakeet


@pytest.fixture(scope="module")
def parakeet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Encoder]:
    whole = original("parakeet")
    folder = tmp_path_factory.mktemp("parakeet")
    whole.save_pretrained(folder)
    return bare("parakeet", whole), build("parakeet", folder)


@pytest.mark.parametrize("clip", [speech(1.0), speech(0.7301), speech(0.035), quiet_speech()])
def test_parakeets_features(parakeet: tuple[Any, Encoder], clip: np.ndarray[Any, Any]) -> None:
    extractor = ParakeetFeatureExtractor(feature_size=40)
    wanted = extractor(clip, sampling_rate=SAMPLE_RATE, return_tensors="pt")
    features = parakeet[1].features(*batch([clip]))
    assert features.lengths.tolist() == wanted.attention_mask.sum(-1).tolist()
    difference = features.values[0] - wanted.input_features[0, : int(features.lengths)]
    assert float(difference.abs().max()) < 1e-4


@pytest.mark.parametrize("training", [False, True])
def test_parakeet_on_mixed_lengths(parakeet: tuple[Any, Encoder], training: bool) -> None:
    model, encoder = parakeet
    clips = clips_of(*SECONDS)
    inputs = ParakeetFeatureExtractor(feature_size=40)(clips, sampling_rate=SAMPLE_RATE, return_tensors="pt")
    lengths = inputs.attention_mask.sum(-1)
    with torch.no_grad():
        output = model(**inputs)
        frames = encoder.train(training).encode(Frames(inputs.input_features, lengths, 100.0))
        own = encoder(*batch(clips))
    assert frames.lengths.tolist() == own.lengths.tolist() == output.attention_mask.sum(-1).tolist()
    assert own.rate == 12.5
    for row, length in enumerate(frames.lengths):
        wanted = output.last_hidden_state[row, :length]
        assert_close(frames.values[row, :length], wanted)
        difference = (own.values[row, :length] - wanted).abs().max()
        assert float(difference) <= 1e-4 * float(wanted.pow(2).mean().sqrt())


# --- Whisper


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Encoder]:
    whole = original("whisper", num_mel_bins=80, max_source_positions=1500)
    folder = tmp_path_factory.mktemp("whisper")
    whole.save_pretrained(folder)
    return bare("whisper", whole), build("whisper", folder)


def mel(clip: np.ndarray[Any, Any]) -> Tensor:
    """Return the features ``[mels, 3000]``, computed by transformers."""
    extractor = WhisperFeatureExtractor(feature_size=80)
    features: Tensor = extractor(clip, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
    return features[0]


def assert_same_mel(found: Tensor, wanted: Tensor) -> None:
    """Compare features. Each is log10 of a power, divided by 4, so the tolerance of 1e-4 is 0.004 dB."""
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) < 1e-4


def test_whispers_features_of_30_s_that_end_in_silence(whisper: tuple[Any, Encoder]) -> None:
    clip = np.concatenate([speech(24.0), np.zeros(6 * SAMPLE_RATE, np.float32)])
    features = whisper[1].features(*batch([clip]))
    assert features.lengths.tolist() == [3000]
    assert_same_mel(features.values[0], mel(clip).T)


@pytest.mark.parametrize("seconds", [0.05, 1.0, 3.2101, 11.999])
def test_whispers_features_of_shorter_clips_are_the_start_of_its_window(
    whisper: tuple[Any, Encoder], seconds: float
) -> None:
    clip = speech(seconds)
    features = whisper[1].features(*batch([clip]))
    assert_same_mel(features.values[0], mel(clip).T[: int(features.lengths)])


def test_whisper_at_30_s(whisper: tuple[Any, Encoder]) -> None:
    model, encoder = whisper
    features = mel(np.concatenate([speech(24.0), np.zeros(6 * SAMPLE_RATE, np.float32)]))[None]
    with torch.no_grad():
        wanted = model(features).last_hidden_state
        frames = encoder.encode(Frames(features.transpose(1, 2), torch.tensor([3000]), 100.0))
    assert frames.lengths.tolist() == [1500]
    assert_close(frames.values, wanted)


def test_shorter_clips_equal_whispers_layers_called_one_by_one(whisper: tuple[Any, Encoder]) -> None:
    model, encoder = whisper
    clips = clips_of(2.0, 0.31, 1.0501)
    with torch.no_grad():
        frames = encoder(*batch(clips))
        for row, clip in enumerate(clips):
            features = encoder.features(*batch([clip])).values
            hidden = F.gelu(model.conv2(F.gelu(model.conv1(features.transpose(1, 2))))).transpose(1, 2)
            hidden = hidden + model.embed_positions.weight[: hidden.shape[1]]
            for layer in model.layers:
                hidden = layer(hidden, None)
            wanted = model.layer_norm(hidden)[0]
            assert len(wanted) == frames.lengths[row]
            assert_close(frames.values[row, : len(wanted)], wanted)


def test_whisper_rejects_clips_longer_than_its_positions(whisper: tuple[Any, Encoder]) -> None:
    audio = torch.zeros(1, 31 * SAMPLE_RATE)
    with pytest.raises(ValueError, match=r"a clip of 31\.0 s is longer than the 30 s that"):
        whisper[1](audio, torch.tensor([audio.shape[1]]))


# --- Whisper's front end with level_invariant


@pytest.fixture(scope="module")
def invariant() -> Encoder:
    tiny = WhisperConfig.tiny().model_copy(update={"level_invariant": True})
    return ENCODERS.build(tiny, EncoderContext()).eval()


@pytest.mark.parametrize("gain_db", [-60.0, -40.0, -6.0, 6.0])
def test_quiet_and_loud_speech_have_the_same_features(invariant: Encoder, gain_db: float) -> None:
    waveforms, lengths = batch([quiet_speech(), speech(0.3101, 2)])
    wanted = invariant.features(waveforms, lengths)
    found = invariant.features(waveforms * 10 ** (gain_db / 20), lengths)
    assert torch.equal(found.lengths, wanted.lengths)
    assert float((found.values - wanted.values)[wanted.mask()].abs().max()) < 1e-5


def test_features_of_loud_speech_equal_whispers_plus_a_constant(invariant: Encoder) -> None:
    plain = ENCODERS.build(WhisperConfig.tiny(), EncoderContext()).eval()
    clips = batch([5 * speech(1.0)])
    difference = invariant.features(*clips).values - plain.features(*clips).values
    assert float(difference.max() - difference.min()) < 1e-5
    assert float(invariant.features(*clips).values.max()) == pytest.approx(1.25, abs=1e-6)


def test_silence_has_the_features_of_silence(invariant: Encoder) -> None:
    features = invariant.features(torch.zeros(1, SAMPLE_RATE), torch.tensor([SAMPLE_RATE]))
    assert bool((features.values == -0.75).all())


# The checks in the fast run. level_invariant changes only the front end, so only checks of the front end are needed.
# tests/contracts/test_encoders.py runs all checks without level_invariant.
FRONT_END = [
    check
    for check in ENCODER_CHECKS
    if check.__name__ in ("check_lengths", "check_finite", "check_invariance", "check_transform", "check_save_load")
]


@pytest.mark.parametrize("check", fast_ones(ENCODER_CHECKS, *FRONT_END), ids=lambda check: check.__name__)
def test_the_contract_holds_with_level_invariance(check: Callable[[EncoderConfig], None]) -> None:
    check(WhisperConfig.tiny().model_copy(update={"level_invariant": True}))
