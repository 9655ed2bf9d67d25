"""Selection of an encoder's layer, for all families of checkpoints. The contract checks reject faulty encoders."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.encoder_checkpoints import DEPTH_FIELDS, FAMILIES, bare, build, original, speech
from tests.support.equality import assert_close
from tests.support.fast import fast_ones
from tests.support.messages import assert_names
from tiny_audio.config import UserError
from tiny_audio.encoders import ENCODERS, Encoder, EncoderConfig, EncoderContext
from tiny_audio.registry import Entry
from tiny_audio.testing import ENCODER_CHECKS

DEPTH = 3


@pytest.fixture(scope="module", params=fast_ones(FAMILIES, *(name for name in FAMILIES if name != "wav2vec2")))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Path]:
    """Return the family's name, the original model with three layers, and the folder of its checkpoint."""
    name = request.param
    whole = original(name, **{DEPTH_FIELDS.get(name, "num_hidden_layers"): DEPTH})
    folder = tmp_path_factory.mktemp(name)
    whole.save_pretrained(folder)
    return name, bare(name, whole), folder


def audio() -> tuple[Tensor, Tensor]:
    """Return a single clip, so that the original models need no mask."""
    clip = torch.from_numpy(speech(0.7301))[None]
    return clip, torch.tensor([clip.shape[1]])


def hidden_states(name: str, model: Any, encoder: Encoder) -> list[Tensor]:
    """Return the hidden states of the transformers model: the input of the first layer, and the output of each layer.

    For two models, this function calls the layers one by one. transformers' Whisper accepts only 30 s, and its last
    hidden state includes the final norm. transformers' Granite Speech changes a hidden state after recording it.
    """
    features = encoder.features(*audio())
    if name == "whisper":
        hidden = nn.functional.gelu(model.conv1(features.values.transpose(1, 2)))
        hidden = nn.functional.gelu(model.conv2(hidden)).transpose(1, 2)
        states = [hidden + model.embed_positions.weight[: hidden.shape[1]]]
        for layer in model.layers:
            states.append(layer(states[-1], None))
        return states
    if name == "granite-speech":
        states = [model.input_linear(features.values.unflatten(1, (-1, 2)).flatten(2))]
        for index, layer in enumerate(model.layers):
            predicted = model.out_mid(model.out(states[-1]).softmax(-1)) if index == DEPTH // 2 else 0
            states.append(layer(states[-1] + predicted, attention_dists=model.attention_dists))
        return states
    if name == "qwen3-asr":
        mel = nn.functional.pad(features.values, (0, 0, 0, 100 - features.values.shape[1])).transpose(1, 2)
        mask = (torch.arange(100) < features.lengths[:, None]).long()
        return [state[None] for state in model(mel, mask, output_hidden_states=True).hidden_states]
    if name in ("w2v-bert", "parakeet"):
        values = features.values.unflatten(1, (-1, 2)).flatten(2) if name == "w2v-bert" else features.values
        mask = torch.ones(values.shape[:2], dtype=torch.bool)
        return list(model(values, attention_mask=mask, output_hidden_states=True).hidden_states)
    clip = audio()[0]
    normalized = (clip - clip.mean()) / torch.sqrt(clip.var(unbiased=False) + 1e-7)
    return list(model(normalized, output_hidden_states=True).hidden_states)


def test_a_layer_can_be_selected_by_number(family: tuple[str, Any, Path]) -> None:
    name, model, folder = family
    with torch.no_grad():
        wanted = hidden_states(name, model, build(name, folder))
        assert len(wanted) == DEPTH + 1
        for number in range(1, DEPTH + 1):
            encoder = build(name, folder, layer=number)
            assert_close(encoder(*audio()).values, wanted[number])
            kept = {key.split("layers.")[1][0] for key in encoder.state_dict() if re.search(r"(?<!conv_)layers\.", key)}
            if name != "parakeet":  # the names of Parakeet's convolutions also contain "layers."
                assert kept == {str(layer) for layer in range(number)}, "the layers above are not kept"


def test_the_last_layer_equals_the_models_output(family: tuple[str, Any, Path]) -> None:
    """The output of ``layer: last`` includes the final norm. The output of a numbered layer does not, because the
    norm was trained only on the output of the last layer. Layer 3, the last layer here, is no exception."""
    name, model, folder = family
    with torch.no_grad():
        last, numbered = (build(name, folder, layer=layer)(*audio()).values for layer in ("last", DEPTH))
    normed = name not in ("w2v-bert", "parakeet", "granite-speech")
    assert torch.equal(last, numbered) is not normed
    if normed:
        special = {"whisper": "layer_norm", "qwen3-asr": "ln_post"}
        norm = model.get_submodule(special.get(name, "encoder.layer_norm"))
        with torch.no_grad():
            assert_close(last, norm(numbered))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_weighted_sum_of_layers(family: tuple[str, Any, Path], checkpointing: bool) -> None:
    name, model, folder = family
    encoder: Any = build(name, folder, layer="weighted", gradient_checkpointing=checkpointing).train(checkpointing)
    names = [key for key, tensor in encoder.named_parameters() if tensor.requires_grad]
    assert names == ["weighted.weights"]
    with torch.no_grad():
        states = torch.stack(hidden_states(name, model, encoder))
        assert_close(encoder(*audio()).values, states.mean(0))
        encoder.weighted.weights.copy_(torch.tensor([0.3, -1.0, 2.0, 0.5]))
    frames = encoder(*audio()).values
    shares = encoder.weighted.weights.detach().clone().requires_grad_()
    wanted = (shares.softmax(0)[:, None, None, None] * states).sum(0)
    assert_close(frames.detach(), wanted.detach())
    frames.square().sum().backward()
    wanted.square().sum().backward()
    assert shares.grad is not None
    assert_close(encoder.weighted.weights.grad, shares.grad)


@pytest.mark.parametrize("layer", [2, "weighted"])
def test_an_encoder_can_be_rebuilt_without_its_checkpoint(family: tuple[str, Any, Path], layer: int | str) -> None:
    name, _, folder = family
    encoder = build(name, folder, layer=layer)
    config = ENCODERS.parse({"name": name, "pretrained": "moved/away", "layer": layer})
    rebuilt = ENCODERS.build(config, EncoderContext(json.loads(json.dumps(encoder.architecture())))).eval()
    rebuilt.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt(*audio()).values, encoder(*audio()).values)


def test_a_missing_layer_is_an_error(family: tuple[str, Any, Path]) -> None:
    name, _, folder = family
    with pytest.raises(UserError) as caught:
        build(name, folder, layer=4)
    assert_names(caught.value, f"encoder.layer 4, {name} 3 layers; 1 to 3, last or weighted")


def test_missing_tensors_below_the_selected_layer_are_named(family: tuple[str, Any, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    name, _, folder = family
    tensors = load_file(folder / "model.safetensors")
    key = next(key for key in tensors if "layers.1." in key and "decoder" not in key and "conv_layers" not in key)
    del tensors[key]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UserError, match=r"; 1 missing: \S*layers\.1\."):
        build(name, tmp_path, layer=2)


# --- the contract checks


def rebuilt_by(name: str, change: Callable[[Any, Any], Any], patch: pytest.MonkeyPatch) -> EncoderConfig:
    """Return the ``tiny()`` config of an encoder. Every encoder built from the config is changed by ``change(part,
    config)``."""
    entry = ENCODERS.entry(name)

    def built(config: Any, context: Any) -> Any:
        part = entry.build(config, context)
        return change(part, config) or part

    patch.setitem(ENCODERS._entries, name, Entry(entry.name, entry.config, built))
    tiny: EncoderConfig = entry.config.tiny()
    return tiny


def freezes_the_sum(part: Any, config: EncoderConfig) -> None:
    if part.weighted is not None:
        part.weighted.requires_grad_(False)


def keeps_an_extra_layer(part: Any, config: EncoderConfig) -> None:
    if config.layer == 1:
        part.model.encoder.unused = nn.Linear(200, 200).requires_grad_(not config.freeze)


WAVLM = ENCODERS.entry("wavlm").build


def ignores_the_layer(part: Any, config: EncoderConfig) -> Any:
    return WAVLM(config.model_copy(update={"layer": 2}), EncoderContext()) if config.layer == 1 else None


def changes_numbered_layers(part: Any, config: EncoderConfig) -> None:
    if isinstance(config.layer, int):
        part.model.encoder.layers[0].register_forward_hook(lambda module, args, output: (output[0] + 1, output[1]))


def another_linear_layer(part: Any, config: EncoderConfig) -> None:
    part.spare = nn.Linear(1, 1)


def attends_past_adapters(part: Any, config: EncoderConfig) -> None:
    """Compute attention without the adapters, as WavLM in transformers does."""
    for layer in part.model.encoder.layers:
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            project = getattr(layer.attention, name)
            if hasattr(project, "base_layer"):
                project.forward = project.base_layer.forward


def differs_by_attention(part: Any, config: EncoderConfig) -> None:
    if config.attention == "sdpa":
        part.model.encoder.layers[0].register_forward_hook(lambda module, args, output: (1.001 * output[0], output[1]))


def ignores_checkpointing(part: Any, config: EncoderConfig) -> None:
    part.model.activation_checkpointing_disable()


@pytest.mark.parametrize(
    ("mistake", "check", "message"),
    [
        (freezes_the_sum, "layers", r"layer: weighted, .* \[\]"),
        (keeps_an_extra_layer, "layers", r"layer: weighted .* layer: 1 has: model\.encoder\.unused"),
        (
            ignores_the_layer,
            "layers",
            r"layer: 1, compared with layer: weighted and all weight on this layer: values differ",
        ),
        (
            changes_numbered_layers,
            "layers",
            r"layer: 1, compared with layer: weighted and all weight on this layer: values differ",
        ),
        (another_linear_layer, "linear_layers", r"linear_layers are \[.*\], but the part has \[.*'spare'"),
        (attends_past_adapters, "linear_layers", r"no gradient reaches \S*attention\.\w_proj\.lora_"),
        (differs_by_attention, "attentions", r"attention: sdpa, compared with auto: values differ"),
        (ignores_checkpointing, "checkpointing", r"gradient_checkpointing with freeze: false"),
    ],
)
def test_the_checks_find_errors(
    mistake: Callable[[Any, Any], Any], check: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = rebuilt_by("wavlm", mistake, monkeypatch)
    (run,) = [found for found in ENCODER_CHECKS if found.__name__ == f"check_{check}"]
    with pytest.raises(AssertionError, match=f"^wavlm: .*{message}"):
        run(config)
