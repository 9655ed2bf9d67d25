"""Predicted costs of a recipe, compared with real models, real forward passes and computed sizes of layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import Document, changed
from tests.plan.recipes import parse, part
from tiny_audio.ctc import CtcVocabulary
from tiny_audio.data.augmentation import AugmentationConfig
from tiny_audio.decoders import DECODERS
from tiny_audio.encoders import ENCODERS
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.model.prompt import Prompt
from tiny_audio.plan import Plan, _step, plan_recipe
from tiny_audio.plan._hardware import GIB
from tiny_audio.plan._step import DryRunResult, Shape, dry_run, dry_run_worst, worst_shapes
from tiny_audio.plan.meta import LETTERS
from tiny_audio.pretrained.quantization import quantize
from tiny_audio.projectors import PROJECTORS
from tiny_audio.recipe import Recipe, load_recipe
from tiny_audio.training.precision import set_types

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = Shape(3, 4.0)
ADAPTED = {
    "decoder__freeze": True,
    "decoder__lora": {"rank": 2, "alpha": 4.0, "targets": ["q_proj", "v_proj"], "dora": True},
}
NEEDS_BITSANDBYTES = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")


# --- the model card


def test_parameters_of_the_model_card(shallow_card: Plan) -> None:
    """The encoder and the decoder have only four layers each. tests/recipe/test_recipes.py plans all layers."""
    counts = {name: part["trainable"] for name, part in shallow_card.as_json()["parameters"].items()}
    encoder, projector, decoder = 1_966_080 * 4 // 48, 121_643_264, 15_335_424 * 4 // 36
    total = encoder + projector + decoder
    assert counts == {"encoder": encoder, "projector": projector, "decoder": decoder, "total": total}


@pytest.mark.slow
def test_the_batch_of_the_model_card_fits_its_gpu(card: Plan) -> None:
    (row,) = card.rows
    assert row.fits
    assert 20 * GIB < card.worst.peak_bytes < 30 * GIB
    assert card.worst.shape == Shape(5, 20.0)
    assert row.room_for_clips > 5
    assert row.changes is None


def test_weights_gradients_and_moments_of_the_model_card(shallow_card: Plan) -> None:
    memory, totals = shallow_card.worst.memory, shallow_card.total_parameters()
    frozen, trained = totals["total"] - totals["trainable"], totals["trainable"]
    assert memory["weights"] == pytest.approx(2 * frozen + 4 * trained, rel=1e-3)
    assert memory["gradients"] == pytest.approx(4 * trained, rel=1e-3)  # accumulated in the earlier batches of the step
    assert memory["optimizer"] == pytest.approx(8 * trained, rel=1e-3)


@pytest.mark.slow
def test_flops_of_the_model_card(card: Plan) -> None:
    """A forward pass takes two FLOPs per parameter and position. So does a backward pass through frozen weights."""
    flops = card.flops_per_audio_s()
    assert flops["encoder"]["forward"] == pytest.approx(2 * 0.945e9 * 50, rel=0.15)
    tokens_per_s = 10 + 3.4 + 3.8  # audio, text, and a prompt of 38 tokens per 10 s
    assert flops["decoder"]["forward"] == pytest.approx(2 * 2.83e9 * tokens_per_s, rel=0.1)
    assert flops["encoder"]["backward"] == pytest.approx(flops["encoder"]["forward"], rel=0.1)
    assert flops["projector"]["backward"] == pytest.approx(2 * flops["projector"]["forward"], rel=0.01)


def test_time_and_cost_of_the_model_card(shallow_card: Plan) -> None:
    (row,) = shallow_card.rows
    assert shallow_card.training_audio_hours == pytest.approx(25_000 * 25 * 10 / 3600)
    assert 0.25 < shallow_card.padding_share < 0.45, "batches of five random clips"
    total = sum(sum(counts.values()) for counts in shallow_card.flops_per_audio_s().values())
    assert row.audio_hours_per_hour == pytest.approx(0.4 * 149.7e12 / total * (1 - shallow_card.padding_share))
    assert row.wall_hours == pytest.approx(shallow_card.training_audio_hours / row.audio_hours_per_hour)
    assert row.price_per_hour is not None
    assert row.cost == pytest.approx(row.price_per_hour * row.wall_hours)


# --- compared with real models


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """Counts the storages that autograd saves for the backward pass, by type and size.

    Each storage counts once. Storages below a kilobyte are not counted.
    """

    def __init__(self) -> None:
        self.sizes: Counter[tuple[torch.dtype, int]] = Counter()
        self._seen: dict[int, Tensor] = {}  # keeps the tensors alive, so that addresses stay unique
        super().__init__(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.nbytes() >= 1024 and storage._cdata not in self._seen:
            self._seen[storage._cdata] = tensor
            self.sizes[tensor.dtype, storage.nbytes()] += 1
        return tensor


def real_step(recipe: Recipe, num_tokens: int, prompt_tokens: int) -> tuple[Saved, TinyAudioModel]:
    """Run a real forward pass. Return the storages that autograd saves, and the model."""

    class Tokenizer(SimpleNamespace):
        def __len__(self) -> int:
            return LETTERS + 5

    model = TinyAudioModel.assemble(
        recipe.encoder,
        recipe.projector,
        recipe.decoder,
        tokenizer=Tokenizer(pad_token_id=0, bos_token_id=None, eos_token_id=2),
        prompt=Prompt((), (0,) * prompt_tokens, 2),
        ctc_vocabulary=CtcVocabulary(tuple(map(chr, range(97, 97 + LETTERS)))) if recipe.ctc else None,
    ).train()
    if recipe.decoder.quantization:
        quantize(model.decoder, recipe.decoder.quantization)
    set_types(model, recipe.training.precision, torch.device("cpu"))
    lengths = torch.full((SHAPE.num_clips,), int(SHAPE.duration_s * 16_000))
    lengths[1:] -= 1600
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=recipe.training.precision == "bf16")
    saved = Saved()
    with saved, autocast:
        scores = model(
            torch.randn(SHAPE.num_clips, int(lengths.max())),
            lengths,
            [torch.ones(num_tokens, dtype=torch.long)] * SHAPE.num_clips,
            [[1] * 60] * SHAPE.num_clips if recipe.ctc else None,
        )
        assert scores.decoder_loss.sum().isfinite()
    return saved, model


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "bf16"])
@pytest.mark.parametrize(
    ("encoder", "changes"),
    [
        ("hubert", {}),
        ("whisper", {"training__precision": "fp32"}),
        ("hubert", {"encoder__attention": "eager", "decoder__attention": "eager"}),
        ("hubert", {"encoder__train_front_end": True, "encoder__dropout": 0.1}),
        ("whisper", {}),
        ("wavlm", {"encoder__layer": "weighted"}),
        ("parakeet", {}),
        pytest.param("whisper", {**ADAPTED, "decoder__quantization": "nf4"}, marks=NEEDS_BITSANDBYTES),
        pytest.param("whisper", {**ADAPTED, "decoder__quantization": "int8"}, marks=NEEDS_BITSANDBYTES),
    ],
)
def test_a_dry_run_saves_what_a_real_forward_pass_saves(
    document: Document, monkeypatch: pytest.MonkeyPatch, encoder: str, precision: str, changes: Document
) -> None:
    """Both save the same number of storages of each type and size. Storages below a kilobyte are not compared."""
    document = changed(document, encoder=part(ENCODERS, encoder), training__precision=precision, ctc={"weight": 1.0})
    recipe = parse(document, **changes)
    forward, planned_saves = _step._loss, Saved()

    def watched(*arguments: Any, **named: Any) -> Tensor:
        with planned_saves:
            return forward(*arguments, **named)

    monkeypatch.setattr(_step, "_loss", watched)
    planned = dry_run(recipe, SHAPE, "cpu")
    real, model = real_step(recipe, planned.num_tokens, planned.prompt_tokens)
    assert planned_saves.sizes.total() > 80
    assert planned_saves.sizes == real.sizes
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert planned.memory["weights"] == pytest.approx(size, rel=0.02)


def test_flops_of_the_projector_equal_those_of_its_matrices(document: Document) -> None:
    recipe = parse(document)
    planned = dry_run(recipe, SHAPE, "cpu")
    frames = recipe.encoder.num_frames(int(SHAPE.duration_s * 16_000))
    width, hidden = 5 * 32, 64
    matrices = 2 * width * hidden + hidden * 32
    assert planned.flops["projector"] == {
        "forward": 2 * matrices * SHAPE.num_clips * -(-frames // 5),
        "backward": 4 * matrices * SHAPE.num_clips * -(-frames // 5),
    }


def all_parts() -> Iterator[tuple[str, str]]:
    for kind, registry in (("encoder", ENCODERS), ("projector", PROJECTORS), ("decoder", DECODERS)):
        yield from ((kind, entry.name) for entry in registry.entries())


ALIKE = {"wav2vec2", "linear", "mlp", "moe", "llama", "qwen3", "smollm2", "smollm3"}
"""Parts that run the same operators as other parts, or are used in other tests. Their cases are marked as slow."""


@pytest.mark.parametrize(
    ("kind", "name"),
    [pytest.param(*row, marks=[pytest.mark.slow] if row[1] in ALIKE else []) for row in all_parts()],
)
def test_every_part_can_be_planned(document: Document, kind: str, name: str) -> None:
    registry: Any = {"encoder": ENCODERS, "projector": PROJECTORS, "decoder": DECODERS}[kind]
    needs_ctc = kind == "projector" and registry.entry(name).config.needs_ctc
    recipe = parse(document, **{kind: part(registry, name)}, ctc={} if needs_ctc else None, training__precision="bf16")
    planned = dry_run(recipe, SHAPE, "cuda")
    for part_name in ("encoder", "projector", "decoder"):
        assert planned.flops[part_name]["backward"] > planned.flops[part_name]["forward"] > 0
    assert planned.memory["activations_encoder"] > 0
    assert planned.peak_bytes > 8 * planned.parameters["projector"]["trainable"]


# --- settings that need more memory


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ({"batching__max_clips": 6}, {"batching__max_clips": 5}),
        ({"data__max_duration_s": 9.0}, {"data__max_duration_s": 6.0}),
        ({}, {"encoder__gradient_checkpointing": True}),
        ({}, {"decoder__gradient_checkpointing": True}),
        ({"training__accumulation": 2}, {}),
        ({"encoder__attention": "eager"}, {}),
        ({}, {"encoder__freeze": True}),
        ({"ctc": {"weight": 0.5}}, {}),
        ({"alignment": {}}, {"alignment": {"max_labels": 5}}),
        ({"augmentation__speed": [0.8, 1.0]}, {}),
        ({"projector__hidden_dim": 512}, {}),
    ],
)
def test_settings_that_need_more_memory(document: Document, more: Document, less: Document) -> None:
    document = changed(document, data__max_duration_s=6.0)
    peaks = [dry_run_worst(parse(document, **changes), "cuda").peak_bytes for changes in (more, less)]
    assert peaks[0] > peaks[1]


def test_memory_and_flops_of_adapters_depend_on_their_rank(document: Document) -> None:
    def planned(rank: int) -> DryRunResult:
        lora = {"rank": rank, "alpha": 8, "targets": ["q_proj", "v_proj"]}
        return dry_run(parse(document, decoder__freeze=True, decoder__lora=lora), SHAPE, "cuda")

    low, high = planned(4), planned(16)
    assert high.parameters["decoder"]["trainable"] == 4 * low.parameters["decoder"]["trainable"]
    assert high.memory["optimizer"] > low.memory["optimizer"]
    assert high.peak_bytes > low.peak_bytes


@pytest.mark.parametrize(("kind", "bits"), [("nf4", 4 + 8 / 64 + 32 / (64 * 256)), ("int8", 8)])
def test_memory_of_quantized_weights_depends_on_their_bits(document: Document, kind: str, bits: float) -> None:
    """Weights that are not quantized are in bf16."""
    wide = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 512}
    document = changed(document, **ADAPTED, decoder__overrides=document["decoder"]["overrides"] | wide)
    recipe = parse(document, training__precision="bf16")
    plain, quantized = (
        dry_run(one, SHAPE, "cuda")
        for one in (recipe, parse(document, training__precision="bf16", decoder__quantization=kind))
    )
    assert plain.parameters == quantized.parameters
    assert plain.flops == quantized.flops
    heads = 256 // 4 * 2  # channels of keys and values
    linear = 2 * (2 * 256 * 256 + 2 * 256 * heads + 3 * 256 * 512)
    saved = plain.memory["weights"] - quantized.memory["weights"]
    assert saved == pytest.approx(linear * (16 - bits) / 8, rel=0.02)
    assert plain.peak_bytes > quantized.peak_bytes


def test_flash_attention_can_be_planned_without_its_package(document: Document) -> None:
    document = changed(document, training__precision="bf16", execution__device="auto")
    document["encoder"]["overrides"]["encoder_layers"] = 8  # the layers, not the front end, need the most memory
    attentions = {"encoder__attention": "flash_attention_2", "decoder__attention": "flash_attention_2"}
    flash, sdpa = (dry_run(parse(document, **changes), SHAPE, "cuda") for changes in (attentions, {}))
    assert flash.peak_bytes < sdpa.peak_bytes
    assert flash.parameters == sdpa.parameters


def test_a_fused_loss_needs_memory_for_a_part_of_the_logits(document: Document) -> None:
    tokenizer = {"kind": "bpe", "vocab_size": 5000}
    recipe = parse(document, decoder__tokenizer=tokenizer, execution__device="auto")
    fused, plain = (
        dry_run(recipe.model_copy(update={"execution": execution}), SHAPE, "cuda")
        for execution in (recipe.execution.model_copy(update={"fused_cross_entropy": on}) for on in (True, False))
    )
    assert fused.memory["logits"] < 0.1 * plain.memory["logits"]
    assert fused.flops["decoder"]["backward"] > plain.flops["decoder"]["backward"], "logits are computed again"
    assert fused.parameters == plain.parameters


def test_packed_rows_need_no_flops_for_padding(document: Document) -> None:
    document = changed(document, training__precision="bf16", execution__device="auto", data__max_duration_s=1.5)
    flash, varlen, sdpa = (
        dry_run(parse(document, encoder__attention=name, decoder__attention=name), Shape(6, 1.5), device)
        for name, device in (("flash_attention_2", "cuda"), ("varlen", "cuda"), ("sdpa", "cuda"))
    )
    assert flash.flops == varlen.flops
    assert flash.memory == varlen.memory
    # In a dry run, all clips except the first are 0.1 s shorter, so a few percent of the FLOPs are for padding.
    for direction in ("forward", "backward"):
        for name in ("encoder", "decoder"):
            assert 0.8 < varlen.flops[name][direction] / sdpa.flops[name][direction] < 1
    packed = parse(document, encoder__attention="varlen", decoder__attention="varlen")
    on_cpu, padded = (dry_run(recipe, Shape(6, 1.5), "cpu").flops for recipe in (packed, parse(document)))
    assert on_cpu["encoder"]["forward"] == varlen.flops["encoder"]["forward"] < padded["encoder"]["forward"]


def test_a_budget_in_seconds_has_two_worst_shapes(document: Document) -> None:
    document = changed(document, batching={"max_clips": 32, "max_padded_s": 40.0}, data__max_duration_s=10.0)
    assert worst_shapes(parse(document)) == [Shape(4, 10.0), Shape(32, 1.25)]
    assert worst_shapes(parse(document, augmentation__speed=[0.5, 1.0])) == [Shape(2, 20.0), Shape(32, 1.25)]
    low = parse(document, augmentation__speed=[0.5, 1.0], batching__max_padded_s=12.0)
    assert worst_shapes(low) == [Shape(1, 20.0), Shape(32, 0.375)]
    silence = {"max_before_s": 0.5, "max_after_s": 0.25}
    assert worst_shapes(parse(document, augmentation__silence=silence)) == [Shape(4, 10.0), Shape(32, 1.25)]
    assert worst_shapes(parse(document, batching__max_clips=3)) == [Shape(3, 10.0)]
    unbounded = parse(document, batching__max_clips=10**9, data__min_duration_s=0.5)
    assert worst_shapes(unbounded) == [Shape(4, 10.0), Shape(80, 0.5)]
    faster = unbounded.model_copy(update={"augmentation": AugmentationConfig(speed=(1.0, 1.25))})
    assert worst_shapes(faster) == [Shape(4, 10.0), Shape(100, 0.4)]
    planned = plan_recipe(parse(document), mean_clip_s=2.0)
    assert planned.padding_share < 0.05
    # A batch has less audio than its budget of 40 s, because it also contains padding and is rarely full.
    assert 0.8 * 40 < planned.training_audio_hours * 3600 / 20 < 40


# --- verdicts


def test_the_row_says_how_many_clips_fit(document: Document, gpu: Callable[[float], str]) -> None:
    recipe = parse(document)
    (row,) = plan_recipe(recipe, gpu=gpu(3e8)).rows
    assert row.fits
    assert row.changes is None
    more = recipe.with_({"batching.max_clips": row.room_for_clips})
    assert plan_recipe(more, gpu="thimble").rows[0].needed_bytes == pytest.approx(3e8, rel=0.05)


def test_the_row_suggests_changes_if_the_batch_does_not_fit(
    document: Document, gpu: Callable[[float], str], write_recipe: Callable[..., Path]
) -> None:
    path = write_recipe(changed(document, data__max_duration_s=9.0))
    recipe = load_recipe(path)
    needed = plan_recipe(recipe, gpu=gpu(1e9)).rows[0].needed_bytes
    (row,) = plan_recipe(recipe, gpu=gpu(0.75 * needed)).rows
    assert not row.fits
    assert row.changes
    named = {change.overrides[0].split("=")[0] for change in row.changes}
    assert {"training.precision", "encoder.gradient_checkpointing"} <= named
    for change in row.changes:
        (applied,) = plan_recipe(load_recipe(path, change.overrides), gpu="thimble").rows
        assert applied.fits
        assert applied.needed_bytes == change.needed_bytes


def test_a_smaller_batch_keeps_the_clips_of_a_step(document: Document, gpu: Callable[[float], str]) -> None:
    saved = {"encoder__gradient_checkpointing": True, "decoder__gradient_checkpointing": True}
    recipe = parse(document, **saved, training__precision="bf16", batching__max_clips=12)
    needed = plan_recipe(recipe, gpu=gpu(1e9)).rows[0].needed_bytes
    (row,) = plan_recipe(recipe, gpu=gpu(0.6 * needed)).rows
    assert row.changes
    (change,) = row.changes
    clips, accumulation = (int(override.split("=")[1]) for override in change.overrides)
    assert [override.split("=")[0] for override in change.overrides] == ["batching.max_clips", "training.accumulation"]
    assert clips * accumulation == pytest.approx(12, abs=2)
    assert plan_recipe(recipe.with_(change.fields), gpu="thimble").rows[0].fits


@pytest.mark.slow
def test_several_changes_can_be_suggested(document: Document, gpu: Callable[[float], str]) -> None:
    recipe = parse(document, batching__max_clips=16, encoder__attention="eager", data__max_duration_s=14.0)
    all_savers = {
        "encoder.attention": "sdpa",
        "training.precision": "bf16",
        "encoder.gradient_checkpointing": True,
        "decoder.gradient_checkpointing": True,
    }
    lean = plan_recipe(recipe.with_(all_savers), gpu=gpu(1e9)).rows[0].needed_bytes
    (row,) = plan_recipe(recipe, gpu=gpu(1.02 * lean)).rows
    assert row.changes
    assert plan_recipe(recipe.with_(row.changes[0].fields), gpu="thimble").rows[0].fits


def test_nothing_is_suggested_if_nothing_fits(
    document: Document, gpu: Callable[[float], str], capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = plan_recipe(parse(document, data__max_duration_s=9.0), gpu=gpu(1000)).rows
    assert row.changes == ()
    assert row.room_for_clips == 0
