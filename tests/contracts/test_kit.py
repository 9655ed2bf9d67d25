"""The contract checks find violations and name them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.registered_parts import Change, named, rebuilt_by
from tiny_audio import testing
from tiny_audio.decoders import DECODERS
from tiny_audio.encoders import ENCODERS, Encoder, EncoderConfig
from tiny_audio.frames import Frames
from tiny_audio.registry import Registry
from tiny_audio.testing import DECODER_CHECKS, ENCODER_CHECKS, check_decoder, check_encoder

# --- encoders


def replaced(part: Any, method: str, change: Change) -> None:
    """Replace a method of the part by ``change``, which gets the original method as its first argument."""
    original = getattr(part, method)
    setattr(part, method, lambda *args, **kwargs: change(original, *args, **kwargs))


def normalizes_over_the_batch(part: Encoder, config: EncoderConfig) -> None:
    def change(encode: Change, features: Frames) -> Frames:
        frames = encode(features)
        return replace(frames, values=frames.values + 1e-3 * features.values.std())

    replaced(part, "encode", change)


def ignores_the_transform(part: Encoder, config: EncoderConfig) -> None:
    part.forward = lambda waveforms, lengths, transform=None: part.encode(  # type: ignore[method-assign]
        part.features(waveforms, lengths)
    )


def one_frame_too_many(part: Encoder, config: EncoderConfig) -> None:
    replaced(part, "num_frames", lambda original, samples: original(samples) + 1)


def trains_frozen_weights(part: Encoder, config: EncoderConfig) -> None:
    part.requires_grad_(True)


def wrong_rate(part: Encoder, config: EncoderConfig) -> None:
    part.frame_rate = 40.0


def does_not_save_a_weight(part: Encoder, config: EncoderConfig) -> None:
    part.register_buffer("fresh", torch.rand(1))
    replaced(part, "encode", lambda encode, features: scaled(encode(features), part.get_buffer("fresh")))
    part._non_persistent_buffers_set.add("fresh")


def scaled(frames: Frames, factor: Tensor) -> Frames:
    return replace(frames, values=frames.values * factor)


def differs_when_rebuilt(part: Encoder, config: EncoderConfig) -> None:
    extra = nn.Linear(2, 2 + torch.initial_seed(), bias=False).requires_grad_(not config.freeze)
    part.add_module("extra", extra)
    replaced(part, "encode", lambda encode, features: scaled(encode(features), 1 + extra.weight.pow(2).sum()))


def always_drops_out(part: Encoder, config: EncoderConfig) -> None:
    def change(encode: Change, features: Frames) -> Frames:
        frames = encode(features)
        return replace(frames, values=nn.functional.dropout(frames.values, 0.1, part.training))

    replaced(part, "encode", change)


def reads_its_neighbors(part: Any, config: EncoderConfig) -> None:
    """Let frames attend to other clips, as if the lengths of packed rows were ignored."""
    whole = dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), lambda given: given[[0, -1]])
    if part.packs:
        for layer in part.model.encoder.layers:
            replaced(layer, "forward", lambda forward, *args, **kwargs: forward(*args, **merged(kwargs, whole)))


def merged(settings: dict[str, Any], changes: dict[str, Change]) -> dict[str, Any]:
    return settings | {name: change(settings[name]) for name, change in changes.items()}


def never_drops_out(part: Any, config: EncoderConfig) -> None:
    for module in part.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif "dropout" in vars(module) and isinstance(module.dropout, float):
            module.dropout = 0.0


@pytest.mark.parametrize(
    ("mistake", "check", "message"),
    [
        (normalizes_over_the_batch, "invariance", r"a clip of \d+ samples .*: values differ by up to .* of their RMS"),
        (ignores_the_transform, "transform", r"the transform was called 0 times, not once"),
        (one_frame_too_many, "lengths", r"1 samples: config\.num_frames is 1, but encoder\.num_frames is 2"),
        (wrong_rate, "lengths", r"frames\.rate 50\.0 is not frame_rate|a minute has .* but frame_rate is 40"),
        (trains_frozen_weights, "gradients", r"freeze: true, .*gradients"),
        (does_not_save_a_weight, "save_load", r"after saving and loading, .*frames"),
        (
            differs_when_rebuilt,
            "save_load",
            r"extra\.weight has a different shape in the part rebuilt from architecture\(\)",
        ),
        (always_drops_out, "determinism", r"dropout: 0, .*changes the frames"),
        (reads_its_neighbors, "packing", r"a clip of \d+ samples in a batch with longer .*: values differ"),
        (never_drops_out, "determinism", r"dropout: 0\.5 changes nothing in training mode"),
    ],
)
def test_errors_of_encoders_are_found(
    mistake: Change, check: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = rebuilt_by(ENCODERS, "hubert", mistake, monkeypatch)
    with pytest.raises(AssertionError, match=rf"^hubert: .*({message})"):
        named(ENCODER_CHECKS, check)(config)


# --- decoders


def adds_an_offset_to_kept(part: Any, config: Any) -> None:
    replaced(part, "forward", lambda forward, embeddings, mask, keep: forward(embeddings, mask, keep) + keep.sum())


def ignores_the_padding(part: Any, config: Any) -> None:
    replaced(
        part, "generate", lambda generate, embeddings, mask, **settings: generate(embeddings, mask | True, **settings)
    )


def ignores_its_input(part: Any, config: Any) -> None:
    replaced(part, "forward", lambda forward, embeddings, mask, keep: forward(0 * embeddings + 0.1, mask, keep))


def quiet_embeddings(part: Any, config: Any) -> None:
    replaced(part, "embed", lambda embed, ids: 0.5 * embed(ids))


def full_logits(part: Any, config: Any) -> None:
    replaced(part, "forward", lambda forward, embeddings, mask, keep: forward(embeddings, mask, mask | True))


def continues_positions(part: Any, config: Any) -> None:
    """Give packed rows positions that do not restart in each row."""
    if part.packs:
        numbered = {"position_ids": lambda given: torch.arange(given.shape[1])[None] // 2}
        replaced(part.model, "forward", lambda forward, **kwargs: forward(**merged(kwargs, numbered)))


def forgets_the_prefix(part: Any, config: Any) -> None:
    """Let only the first row attend to the shared prefix."""
    replaced(
        part.model,
        "forward",
        lambda forward, **kwargs: forward(**kwargs | {"cu_seq_lens_k": kwargs.get("cu_seq_lens_q")}),
    )


def hides_the_gradient(part: Any, config: Any) -> None:
    def change(forward: Change, embeddings: Tensor, mask: Tensor, keep: Tensor) -> Tensor:
        return forward(embeddings.detach() if config.freeze else embeddings, mask, keep)

    replaced(part, "forward", change)


@pytest.mark.parametrize(
    ("mistake", "check", "message"),
    [
        (adds_an_offset_to_kept, "logits", r"logits at kept positions, compared with .*: values differ"),
        (ignores_the_padding, "generation", r"a row of \d+ positions, 1 beams: left-padded in a batch it generates "),
        (ignores_its_input, "logits", r"embeddings do not change the logits"),
        (quiet_embeddings, "embeddings", r"embedding_rms is 0\.0\d+, but the RMS of embed's output is 0\.0\d+"),
        (continues_positions, "packing", r"a row of \d+ positions .*: values differ|.*values differ by up to"),
        (forgets_the_prefix, "shared_prefix", r"logits with a shared prefix, compared with separate rows"),
        (full_logits, "logits", r"logits have shape \[68, \d+\], not \[31 kept positions, "),
        (
            hides_the_gradient,
            "gradients",
            r"freeze: true: no gradient reaches the embeddings, so the projector could not train",
        ),
    ],
)
def test_errors_of_decoders_are_found(
    mistake: Change, check: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = rebuilt_by(DECODERS, "smollm3", mistake, monkeypatch)
    with pytest.raises(AssertionError, match=rf"^smollm3: .*({message})"):
        named(DECODER_CHECKS, check)(config)


def test_a_decoder_needs_a_tokenizer_to_train() -> None:
    config = DECODERS.entry("smollm3").config.tiny().model_copy(update={"tokenizer": None})  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="smollm3: the checks need a config with a tokenizer to train"):
        check_decoder(config)


@pytest.mark.parametrize("kind", ["encoder", "projector", "decoder"])
def test_all_checks_of_a_kind_are_run(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[tuple[int, object]] = []
    checks = [partial(lambda number, config: run.append((number, config)), number) for number in range(3)]
    monkeypatch.setattr(testing, f"{kind.upper()}_CHECKS", checks)
    getattr(testing, f"check_{kind}")("config")
    assert run == [(number, "config") for number in range(3)]


@pytest.mark.parametrize(
    ("check", "name", "error"),
    [
        (check_encoder, "whisper", "the frames require no gradients"),
        pytest.param(check_decoder, "smollm3", "no parameter is trainable", marks=pytest.mark.slow),
    ],
)
def test_errors_are_found_by_the_complete_checks(
    check: Change, name: str, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry: Registry[Any, Any] = ENCODERS if check is check_encoder else DECODERS

    def never_trains(part: nn.Module, config: Any) -> None:
        part.requires_grad_(False)

    with pytest.raises(AssertionError, match=f"^{name}: freeze: false.*{error}$"):
        check(rebuilt_by(registry, name, never_trains, monkeypatch))
