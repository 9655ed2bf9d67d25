"""In fp64, packed rows give the same results as padded rows, and no layer gets padding.

If a family cannot use packed rows, the error names the family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.messages import assert_names
from tiny_audio.config import UserError
from tiny_audio.ctc import CtcVocabulary
from tiny_audio.decoders import DECODERS, DecoderContext, build_tokenizer
from tiny_audio.encoders import ENCODERS
from tiny_audio.model.decoding import GenerationConfig
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.model.prompt import PromptConfig, build_prompt
from tiny_audio.pretrained import packing
from tiny_audio.pretrained.packing import Packing
from tiny_audio.projectors import PROJECTORS

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["one two", "four", "six"]
"""Short texts, because CTC needs at least one frame per character, and one encoder has only 13 frames per second."""
SIZES = (16_000, 3_000, 9_111)
ENCODER_FAMILIES = [entry.name for entry in ENCODERS.entries() if "varlen" in entry.config.attentions]
SLOW = pytest.mark.slow
DECODER_FAMILIES = [entry.name for entry in DECODERS.entries() if "varlen" in entry.config.attentions]
LORA = {"rank": 2, "alpha": 4.0, "targets": ("q_proj", "v_proj")}
EXACT = 1e-12


def test_the_usual_families_support_packing() -> None:
    assert {"hubert", "wav2vec2", "whisper"} <= set(ENCODER_FAMILIES)
    assert {"smollm3", "smollm2", "llama", "qwen3", "gemma3", "causal_lm"} <= set(DECODER_FAMILIES)


# --- rows


@pytest.mark.parametrize("left", [False, True])
def test_packing_can_be_undone(left: bool) -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]).bool()
    mask = mask.flip(1) if left else mask
    values = torch.randn(3, 4, 2)
    packed = Packing.of(mask)
    assert packed.offsets.tolist() == [0, 4, 5, 7]
    assert packed.offsets.dtype == torch.int32
    assert packed.longest == 4
    assert torch.equal(packed.pack(values), values[mask][None])
    assert packed.positions().tolist() == [[0, 1, 2, 3, 0, 0, 1]]
    assert torch.equal(packed.unpack(values[mask][None]), values * mask[..., None])


def test_a_shared_prefix_is_packed_once() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    packed = Packing.of(mask, num_shared=2)
    assert packed.offsets.tolist() == [0, 4, 7, 8]
    assert packed.key_offsets.tolist() == [0, 4, 9, 12]
    assert packed.longest == 5
    assert packed.positions().tolist() == [[0, 1, 2, 3, 2, 3, 4, 2]]


# --- attention


class Layer(nn.Module):
    is_causal = True
    num_key_value_groups = 2


def segments(queries: Tensor, keys: Tensor, values: Tensor, sizes: list[int], window: int | None) -> Tensor:
    """Compute attention over all packed rows at once, with a mask that separates the rows."""
    row = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    position = torch.cat([torch.arange(size) for size in sizes])
    distance = position[:, None] - position
    mask = (row[:, None] == row) & (distance >= 0) & (distance < (window or 10**6))
    keys, values = keys.repeat_interleave(2, 1), values.repeat_interleave(2, 1)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=0.3).transpose(1, 2)


def random_rows(sizes: list[int], **kind: Any) -> tuple[Tensor, Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(0)
    shapes = [(1, heads, sum(sizes), 16) for heads in (4, 2, 2)]
    queries, keys, values = (torch.randn(shape, generator=numbers, dtype=torch.double) for shape in shapes)
    return tuple(tensor.to(**kind).requires_grad_() for tensor in (queries, keys, values))  # type: ignore[return-value]


@pytest.mark.parametrize("window", [None, 1, 3, 50])
def test_each_row_attends_only_to_itself(window: int | None) -> None:
    sizes = [5, 1, 9, 3]
    inputs = random_rows(sizes)
    offsets = F.pad(torch.tensor(sizes).cumsum(0), (1, 0)).int()
    attended, weights = packing.attend(
        Layer(), *inputs, None, scaling=0.3, sliding_window=window, cu_seq_lens_q=offsets, max_length_q=9
    )
    wanted = segments(*inputs, sizes, window)
    assert weights is None
    assert torch.allclose(attended, wanted, rtol=0, atol=EXACT)
    noise = torch.randn_like(wanted)
    for found, right in zip(
        *(torch.autograd.grad((out * noise).sum(), inputs) for out in (attended, wanted)), strict=True
    ):
        assert torch.allclose(found, right, rtol=0, atol=EXACT)


def test_the_shapes_of_the_kernel_are_correct() -> None:
    """On the meta device, torch computes the kernel's output shapes. Computing its values needs a GPU."""
    query = torch.empty(18, 4, 16, device="meta", dtype=torch.bfloat16, requires_grad=True)
    key = torch.empty(18, 2, 16, device="meta", dtype=torch.bfloat16, requires_grad=True)
    offsets = torch.tensor([0, 5, 18], dtype=torch.int32, device="meta")
    attended = packing.attend_by_kernel(query, key, key, offsets, 13, True, 0.3, 4)
    assert attended.shape == query.shape
    attended.sum().backward()  # type: ignore[no-untyped-call]
    assert query.grad is not None and query.grad.shape == query.shape  # noqa: PT018
    assert key.grad is not None and key.grad.shape == key.shape  # noqa: PT018


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel runs on a GPU only")
@pytest.mark.parametrize("window", [None, 3])
def test_the_kernel_equals_row_by_row(window: int | None) -> None:
    sizes = [5, 1, 90, 33]
    offsets = F.pad(torch.tensor(sizes).cumsum(0), (1, 0)).int().cuda()
    settings: dict[str, Any] = {"scaling": 0.3, "sliding_window": window, "cu_seq_lens_q": offsets, "max_length_q": 90}
    found, wanted = (
        packing.attend(Layer(), *random_rows(sizes, device="cuda", dtype=dtype), None, **settings)[0]
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert (found - wanted).abs().max() < 0.03 * wanted.abs().max()


@pytest.mark.parametrize(("size", "taken"), [(8, True), (80, True), (256, True), (12, False), (264, False)])
def test_sizes_of_heads_that_the_kernel_supports(size: int, taken: bool) -> None:
    assert packing.takes_heads(size) is taken


def test_unsupported_scores_are_rejected() -> None:
    with pytest.raises(UserError, match=r"^attention: varlen .*softcap"):
        packing.attend(Layer(), *random_rows([3]), None, softcap=30.0)


# --- parts


def assemble(encoder: str, decoder: str, fields: dict[str, Any]) -> tuple[TinyAudioModel, Any]:
    torch.manual_seed(0)

    def config(registry: Any, name: str) -> Any:
        tiny = registry.entry(name).config.tiny()
        return type(tiny).model_validate(tiny.model_dump() | fields)

    parts = config(ENCODERS, encoder), config(DECODERS, decoder)
    tokenizer = build_tokenizer(parts[1], TEXTS)
    model = TinyAudioModel.assemble(
        parts[0],
        PROJECTORS.entry("swiglu").config.tiny(),  # type: ignore[attr-defined]
        parts[1],
        tokenizer=tokenizer,
        prompt=build_prompt(PromptConfig(), tokenizer),
        ctc_vocabulary=CtcVocabulary.of(TEXTS),
        generation=GenerationConfig(max_new_tokens=6, num_beams=3, ctc_weight=0.3),
    )
    for tensor in model.parameters():
        if tensor.ndim == 2 and not tensor.requires_grad:
            nn.init.normal_(tensor, std=0.3)
    return model.double(), tokenizer


def scored(model: TinyAudioModel, tokenizer: Any) -> tuple[Tensor, Tensor]:
    waveforms = torch.randn(len(SIZES), max(SIZES), generator=torch.Generator().manual_seed(1))
    targets = [torch.tensor([*tokenizer.encode(text), model.config.end_token_id]) for text in TEXTS]
    labels = [(model.ctc_vocabulary or CtcVocabulary(())).encode(text) or [] for text in TEXTS]
    scores = model(waveforms, torch.tensor(SIZES), targets, labels)
    assert scores.ctc_loss is not None
    return scores.decoder_loss, scores.ctc_loss


def pairs() -> Iterator[Any]:
    """Yield pairs that contain every encoder and every decoder, each with full training and with LoRA.

    The fast run trains each encoder fully, and each decoder with LoRA. It leaves out wav2vec 2.0 and SmolLM2, because
    they share their code with HuBERT and Llama.
    """
    kinds = {"full": {"freeze": False}, "lora": {"freeze": True, "lora": LORA}}
    for number, name in enumerate(ENCODER_FAMILIES):
        decoder = DECODER_FAMILIES[number % len(DECODER_FAMILIES)]
        yield from (
            pytest.param(
                name,
                decoder,
                fields,
                id=f"{name}-{decoder}-{kind}",
                marks=SLOW if kind == "lora" or name == "wav2vec2" else (),
            )
            for kind, fields in kinds.items()
        )
    for name in DECODER_FAMILIES:
        yield from (
            pytest.param(
                "whisper",
                name,
                fields,
                id=f"whisper-{name}-{kind}",
                marks=SLOW if kind == "full" or name == "smollm2" else (),
            )
            for kind, fields in kinds.items()
        )


@pytest.mark.parametrize(("encoder", "decoder", "fields"), list(pairs()))
def test_losses_gradients_and_hypotheses_equal_those_of_padded_rows(
    encoder: str, decoder: str, fields: dict[str, Any]
) -> None:
    found: list[tuple[dict[str, Tensor], list[str]]] = []
    for attention in ("auto", "varlen"):
        model, tokenizer = assemble(encoder, decoder, {**fields, "attention": attention})
        losses = torch.stack(scored(model.train(), tokenizer))
        losses.sum().backward()  # type: ignore[no-untyped-call]
        tensors = {name: tensor.grad for name, tensor in model.named_parameters() if tensor.grad is not None}
        waveforms = torch.randn(len(SIZES), max(SIZES), generator=torch.Generator().manual_seed(1))
        texts = [row.text for row in model.eval().transcribe(waveforms, torch.tensor(SIZES), tokenizer)]
        found.append((tensors | {"losses": losses.detach()}, texts))
    (padded, padded_texts), (packed, packed_texts) = found
    assert padded.keys() == packed.keys()
    assert len(padded) > 10
    largest = max(float(tensor.abs().max()) for tensor in padded.values())
    for name, wanted in padded.items():
        # Gemma's norms compute in fp32 even if the weights are in fp64.
        allowed = 1e-6 if decoder == "gemma3" and "norm" in name else EXACT
        assert (packed[name] - wanted).abs().max() <= allowed * max(float(wanted.abs().max()), 1e-3 * largest), name
    assert padded_texts == packed_texts


def test_no_layer_gets_padding_or_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = assemble("hubert", "gemma3", {"attention": "varlen"})
    seen: dict[str, set[int]] = {"encoder": set(), "decoder": set()}
    for part, rows in seen.items():
        for path, module in getattr(model, part).named_modules():
            if path.endswith(("q_proj", "intermediate_dense", "up_proj")):
                module.register_forward_hook(lambda _, inputs, __, rows=rows: rows.add(inputs[0].shape[:2].numel()))
    masks: list[Tensor | None] = []
    original: Callable[..., Any] = packing.attend

    def look(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any) -> Any:
        masks.append(mask)
        return original(module, query, key, value, mask, **settings)

    from transformers import AttentionInterface

    monkeypatch.setitem(AttentionInterface._global_mapping, "varlen", look)
    scored(model, tokenizer)
    frames = model.encoder.num_frames(torch.tensor(SIZES))
    embeddings = int(model.projector.max_embeddings(frames).sum())
    prompt = len(model.config.prompt_prefix_ids) + len(model.config.prompt_suffix_ids)
    text = sum(len(tokenizer.encode(text)) for text in TEXTS)
    assert seen == {"encoder": {int(frames.sum())}, "decoder": {embeddings + len(SIZES) * prompt + text}}
    assert masks == [None] * len(masks)
    assert masks


def test_packed_rows_work_in_half_precision() -> None:
    for encoder, decoder in (("whisper", "qwen3"), ("hubert", "smollm3")):
        padded, packed = (assemble(encoder, decoder, {"attention": attention}) for attention in ("auto", "varlen"))
        losses = []
        for model, tokenizer in (padded, packed):
            with torch.autocast("cpu", torch.bfloat16):
                losses.append(scored(model.float(), tokenizer)[0])
        assert torch.allclose(*losses, rtol=0.03)


# --- prefixes that all rows share


def decoded_positions(fields: dict[str, Any], num_shared: int, decoder: str = "llama") -> torch.Size:
    """Return the first two dimensions ``[B, L]`` of a layer's input. The decoder gets three rows of 20, 15 and 18
    positions, of which the first ``num_shared`` positions are the same."""
    tiny = DECODERS.entry(decoder).config.tiny()
    config = type(tiny).model_validate(tiny.model_dump() | fields)
    built = DECODERS.build(config, DecoderContext(build_tokenizer(config, TEXTS)))
    seen: list[torch.Size] = []
    path, linear = next((path, module) for path, module in built.named_modules() if path.endswith("up_proj"))
    linear.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[:2]))
    mask = torch.arange(20) < torch.tensor([20, 15, 18])[:, None]
    built(torch.zeros(3, 20, built.dim), mask, mask & (torch.arange(20) > 12), num_shared=num_shared)
    assert len(seen) == 1, path
    return seen[0]


@pytest.mark.parametrize("name", sorted({*DECODER_FAMILIES} - {"causal_lm"}))
def test_families_compute_a_long_prefix_once(name: str) -> None:
    assert decoded_positions({}, 10, name) == (1, 20 + 5 + 8)


def test_the_shared_prefix_is_computed_once_if_possible() -> None:
    lora = {"freeze": True, "lora": LORA}
    assert decoded_positions(lora, 10) == (1, 33)
    assert decoded_positions(lora | {"gradient_checkpointing": True}, 10) == (1, 33)
    assert decoded_positions({"attention": "varlen"}, 10, "causal_lm") == (1, 33)
    assert decoded_positions({"attention": "varlen"}, 3) == (1, 53)
    for fields in ({"attention": "sdpa"}, {"dropout": 0.1}, {"freeze": True, "lora": LORA | {"dropout": 0.1}}):
        assert decoded_positions(fields, 10) == (3, 20), fields
    assert decoded_positions({}, 3) == (3, 20)
    assert decoded_positions({}, 10, "causal_lm") == (3, 20)


# --- errors


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("wavlm", "sdpa"), ("w2v-bert", "sdpa, eager"), ("parakeet", "sdpa, eager"), ("granite-speech", "sdpa")],
)
def test_families_without_packing_are_rejected(name: str, allowed: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ENCODERS.parse({"name": name, "attention": "varlen"})
    assert_names(caught.value, f"attention: {name} varlen; auto, {allowed}")


@pytest.mark.parametrize("registry", [ENCODERS, DECODERS])
def test_dropout_is_rejected(registry: Any) -> None:
    name = "hubert" if registry is ENCODERS else "llama"
    with pytest.raises(ValidationError, match=r"attention: varlen .*dropout: 0"):
        registry.parse({"name": name, "attention": "varlen", "dropout": 0.1})


@pytest.mark.parametrize(
    ("model_type", "overrides", "values"),
    [
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, "BloomForCausalLM varlen; auto"),
        (
            "lfm2",
            {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "intermediate_size": 64, "layer_types": ["conv", "full_attention"]},
            "Lfm2ForCausalLM varlen; auto,",
        ),
        (
            "gemma2",
            {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "intermediate_size": 64, "head_dim": 8},
            "varlen softcap",
        ),
    ],
)  # fmt: skip
def test_language_models_without_packing_are_rejected(model_type: str, overrides: dict[str, Any], values: str) -> None:
    tiny: Any = DECODERS.entry("causal_lm").config.tiny()  # type: ignore[attr-defined]
    fields = {"model_type": model_type, "overrides": overrides, "attention": "varlen"}
    config = type(tiny).model_validate(tiny.model_dump() | fields)
    with pytest.raises(UserError) as caught:
        DECODERS.build(config, DecoderContext(build_tokenizer(config, TEXTS)))
    assert_names(caught.value, f"attention: {values}")


def test_language_models_with_learned_positions_support_packing() -> None:
    tiny: Any = DECODERS.entry("causal_lm").config.tiny()  # type: ignore[attr-defined]
    fields = {"model_type": "gpt2", "overrides": {"n_embd": 32, "n_layer": 2, "n_head": 4}}
    rows = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(7) < torch.tensor([[7], [2], [4]])
    logits = []
    for attention in ("auto", "varlen"):
        config = type(tiny).model_validate(tiny.model_dump() | fields | {"attention": attention})
        torch.manual_seed(0)
        decoder = DECODERS.build(config, DecoderContext(build_tokenizer(config, TEXTS))).double().eval()
        logits.append(decoder(rows.double(), mask, mask))
    assert torch.allclose(*logits, rtol=0, atol=EXACT)
