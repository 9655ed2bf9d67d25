"""Encoders of speech language models. Only the encoder's tensors are read. Its outputs equal the original encoder's."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GraniteSpeechFeatureExtractor, Qwen3ASRFeatureExtractor

from tests.support.encoder_checkpoints import SAMPLE_RATE, bare, build, original, speech
from tests.support.equality import assert_close
from tests.support.hub_server import Repo, running_hub, use_hub
from tiny_audio.config import UserError
from tiny_audio.encoders import ENCODERS, Encoder, EncoderContext
from tiny_audio.frames import Frames
from tiny_audio.pretrained import own_tensors

Clip = np.ndarray[Any, Any]
CLIPS = (speech(0.6), speech(1.0), speech(2.4301), np.concatenate([speech(0.9), np.zeros(20_000, np.float32)]))
NAMES = ("granite-speech", "qwen3-asr")


def granite_features(clip: Clip) -> Tensor:
    """Return features ``[F, mels]``."""
    features: Tensor = GraniteSpeechFeatureExtractor(n_mels=40)(clip)["input_features"]
    return features[0].reshape(-1, 40)


def granite_frames(model: Any, features: Tensor) -> Tensor:
    frames: Tensor = model(features.reshape(1, -1, 80)).last_hidden_state
    return frames[0]


def qwen_inputs(clip: Clip, n_window: int) -> tuple[Tensor, Tensor]:
    extract = Qwen3ASRFeatureExtractor(feature_size=8, n_window=n_window)
    inputs = extract([clip], sampling_rate=SAMPLE_RATE, padding="longest", return_attention_mask=True)
    return inputs["input_features"], inputs["attention_mask"]


def qwen_features(clip: Clip) -> Tensor:
    features, mask = qwen_inputs(clip, n_window=0)
    assert mask.all()
    return features[0].T


def qwen_frames(model: Any, features: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(features.T, (0, -len(features) % 100))[None]
    mask = torch.arange(padded.shape[2])[None] < len(features)
    frames: Tensor = model(padded, mask.long()).last_hidden_state
    return frames


EXTRACT: dict[str, Callable[[Clip], Tensor]] = {"granite-speech": granite_features, "qwen3-asr": qwen_features}
RUN: dict[str, Callable[[Any, Tensor], Tensor]] = {"granite-speech": granite_frames, "qwen3-asr": qwen_frames}


@pytest.fixture(scope="module", params=NAMES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Encoder, Path]:
    """Return the family's name, the original encoder, our encoder, and the folder of the sharded checkpoint from which
    our encoder was loaded."""
    folder = tmp_path_factory.mktemp("whole")
    deeper = {"num_layers": 5} if request.param == "granite-speech" else {}
    whole = original(request.param, **deeper)
    whole.save_pretrained(folder, max_shard_size="20KB")
    return request.param, bare(request.param, whole), build(request.param, folder), folder


@pytest.mark.parametrize("clip", CLIPS)
def test_features_equal_the_feature_extractors(family: tuple[str, Any, Encoder, Path], clip: Clip) -> None:
    name, _, encoder, _ = family
    wanted = EXTRACT[name](clip)
    found = encoder.features(torch.from_numpy(clip)[None], torch.tensor([len(clip)]))
    assert found.lengths.tolist() == [len(wanted)]
    assert float((found.values[0] - wanted).abs().max()) < 1e-5


def test_features_of_very_short_clips() -> None:
    """For a clip of 0.01 s, the feature extractor of Granite Speech fails. The feature extractor of Qwen3-ASR adds
    silence, and our encoder does the same."""
    with pytest.raises(RuntimeError):
        granite_features(speech(0.01))
    encoder = ENCODERS.build(ENCODERS.parse("qwen3-asr").tiny(), EncoderContext())  # type: ignore[attr-defined]
    clip = speech(0.01)
    wanted = qwen_features(clip)
    found = encoder.features(torch.from_numpy(clip)[None], torch.tensor([len(clip)]))
    assert found.lengths.tolist() == [len(wanted)] == [50]
    assert float((found.values[0] - wanted).abs().max()) < 1e-5


@pytest.mark.parametrize("training", [False, True])
def test_frames_of_mixed_lengths_equal_the_whole_models(family: tuple[str, Any, Encoder, Path], training: bool) -> None:
    name, model, encoder, _ = family
    waveforms = pad_sequence([torch.from_numpy(clip) for clip in CLIPS], batch_first=True)
    extracted = [EXTRACT[name](clip) for clip in CLIPS]
    lengths = torch.tensor([len(features) for features in extracted])
    with torch.no_grad():
        wanted = [RUN[name](model, features) for features in extracted]
        own = encoder.train(training)(waveforms, torch.tensor([len(clip) for clip in CLIPS]))
        frames = encoder.encode(Frames(pad_sequence(extracted, batch_first=True), lengths, 100.0))
    assert own.lengths.tolist() == frames.lengths.tolist() == [len(row) for row in wanted]
    for row, expected in enumerate(wanted):
        assert_close(frames.values[row, : len(expected)], expected)
        assert_close(own.values[row, : len(expected)], expected)


def test_layers_above_the_middle_use_the_middle_prediction(tmp_path: Path) -> None:
    whole = original("granite-speech", num_layers=5)
    whole.save_pretrained(tmp_path)
    model, features = bare("granite-speech", whole), granite_features(CLIPS[1])
    below, above = (build("granite-speech", tmp_path, layer=layer) for layer in (2, 3))
    assert not any(key.startswith("model.out") for key in below.state_dict())
    rebuilt = ENCODERS.build(
        ENCODERS.parse({"name": "granite-speech", "layer": 3}), EncoderContext(above.architecture())
    ).eval()
    rebuilt.load_state_dict(above.state_dict())
    with torch.no_grad():
        hidden = model.input_linear(features.reshape(1, -1, 80))
        for layer in model.layers[:2]:
            hidden = layer(hidden, attention_dists=model.attention_dists)
        assert_close(below.encode(Frames(features[None], torch.tensor([100]), 100.0)).values, hidden)
        hidden = hidden + model.out_mid(model.out(hidden).softmax(-1))
        hidden = model.layers[2](hidden, attention_dists=model.attention_dists)
        for encoder in (above, rebuilt):
            assert_close(encoder.encode(Frames(features[None], torch.tensor([100]), 100.0)).values, hidden)


# --- reading


def test_other_tensors_are_not_read(
    family: tuple[str, Any, Encoder, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files without a tensor of the encoder are not downloaded. In a local checkpoint, such files may be missing."""
    from huggingface_hub import constants

    name, model, _, folder = family
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    held = json.loads(files["model.safetensors.index.json"])["weight_map"]
    needed = {file for key, file in held.items() if key.startswith(("encoder.", "model.audio_tower."))}
    assert needed < set(held.values())
    read = own_tensors.read_own_tensors(ENCODERS.parse({"name": name, "pretrained": str(folder)}))
    assert set(read[0]) == set(model.state_dict())
    assert set(read[1]) == {key for key in held if not key.startswith(("encoder.", "model.audio_tower."))}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with running_hub() as hub:
        use_hub(monkeypatch, hub.endpoint)
        hub.repos[f"acme/{name}"] = Repo(files)
        config = ENCODERS.parse({"name": name, "pretrained": f"acme/{name}"})
        encoder = ENCODERS.build(config, EncoderContext())
        asked = {request.path.split("?")[0].rpartition("/")[2] for request in hub.requests if request.is_place}
    assert {file for file in asked if file.endswith(".safetensors")} == needed
    local = tmp_path / "local"
    local.mkdir()
    for file in files.keys() - (set(held.values()) - needed):
        (local / file).write_bytes(files[file])
    for found in (encoder.state_dict(), build(name, local).state_dict()):
        assert all(torch.equal(found[f"model.{key}"], tensor) for key, tensor in model.state_dict().items())


def test_checkpoints_in_qwens_own_format(tmp_path: Path) -> None:
    """Qwen's own checkpoints have other keys and another config than the checkpoints for transformers."""
    whole = original("qwen3-asr")
    whole.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    audio = fields.pop("audio_config") | {"model_type": "qwen3_asr_audio_encoder", "max_source_positions": 1500}
    del audio["max_position_embeddings"]
    thinker = {"audio_config": audio, "text_config": fields.pop("text_config"), "model_type": "qwen3_asr_thinker"}
    (tmp_path / "config.json").write_text(json.dumps(fields | {"thinker_config": thinker}))
    tensors = load_file(tmp_path / "model.safetensors")
    for old, new in (
        ("model.multi_modal_projector.linear_", "thinker.audio_tower.proj"),
        ("model.audio_tower.", "thinker.audio_tower."),
        ("model.language_model.", "thinker.model."),
    ):
        tensors = {key.replace(old, new, 1) if key.startswith(old) else key: tensors[key] for key in tensors}
    tensors["thinker.lm_head.weight"] = tensors["thinker.model.embed_tokens.weight"].clone()
    assert all(key.startswith("thinker.") for key in tensors)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    encoder = build("qwen3-asr", tmp_path)
    its = bare("qwen3-asr", whole).state_dict()
    assert encoder.state_dict().keys() == {f"model.{key}" for key in its}
    assert all(torch.equal(encoder.state_dict()[f"model.{key}"], tensor) for key, tensor in its.items())
    assert encoder.architecture()["model_type"] == "qwen3_asr_encoder"


def write_adapter(folder: Path, targets: object) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "target_modules": targets}))


def test_an_adapter_of_the_language_model_is_ignored(tmp_path: Path) -> None:
    """Granite Speech 3.3 is published with a LoRA adapter that changes only its language model."""
    original("granite-speech").save_pretrained(tmp_path)
    write_adapter(tmp_path, ["q_proj", "v_proj"])
    build("granite-speech", tmp_path)


@pytest.mark.parametrize("targets", [["q_proj", "to_q"], ["layers.1.attn.to_kv"], "all-linear", None])
def test_an_adapter_that_may_change_the_encoder_is_rejected(tmp_path: Path, targets: object) -> None:
    original("granite-speech").save_pretrained(tmp_path)
    write_adapter(tmp_path, targets)
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        build("granite-speech", tmp_path)


def to_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def index_without_file(folder: Path, content: str) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(content)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (to_pickle, "model.safetensors"),
        (partial(index_without_file, content='{"weight_map": {"encoder.out.bias": "model-2.safetensors"}}'), "model-2"),
        (partial(index_without_file, content="{}"), "model.safetensors.index.json"),
    ],
)
def test_unreadable_weights_are_an_error(tmp_path: Path, change: Callable[[Path], None], words: str) -> None:
    original("granite-speech").save_pretrained(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=words):
        build("granite-speech", tmp_path)
