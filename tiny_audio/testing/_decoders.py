"""The Decoder contract, check by check."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tiny_audio.decoders import DECODERS, Decoder, DecoderConfig, DecoderContext, build_tokenizer
from tiny_audio.frames import length_mask
from tiny_audio.model.drafting import decode_drafted
from tiny_audio.pretrained.packing import VARLEN
from tiny_audio.testing._checks import (
    NOISE,
    changed,
    expect,
    expect_adapters_only,
    expect_equal,
    expect_equal_gradients,
    expect_finite,
    expect_gradients,
    generator,
    lora_for,
    reload,
    shake,
)

TRANSCRIPTS = ("one two three", "four five six", "the quick brown fox jumps over the lazy dog")
LENGTHS = (9, 1, 17, 4)


def tokenizer_of(config: DecoderConfig) -> Any:
    """Trained on a few words."""
    expect(config.tokenizer is not None, config, "the checks need a config with a tokenizer to train")
    return build_tokenizer(config, TRANSCRIPTS)


def build(config: DecoderConfig, seed: int = 0) -> Decoder:
    """The decoder, with the same random weights every time."""
    tokenizer = tokenizer_of(config)
    torch.manual_seed(seed)
    return DECODERS.build(config, DecoderContext(tokenizer))


def talkative(config: DecoderConfig) -> Decoder:
    """With matrices so large that it says something: as initialized, a small model repeats one token."""
    decoder = build(config).eval()
    numbers = generator(3)
    with torch.no_grad():
        for tensor in decoder.parameters():
            if tensor.ndim == 2:
                tensor.copy_(2 / math.sqrt(tensor.shape[1]) * torch.randn(tensor.shape, generator=numbers))
    return decoder


def rows_of(decoder: Decoder, lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    """Embeddings ``[L, H]`` as loud as the decoder's own."""
    rms = decoder.embedding_rms()
    return [rms * torch.randn(length, decoder.dim, generator=generator(length)) for length in lengths]


def padded(rows: list[Tensor], *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Rows in one ``[B, L, H]`` full of noise, and the mask."""
    sizes = torch.tensor([len(row) for row in rows])
    size = int(sizes.max())
    embeddings = NOISE * torch.randn(len(rows), size, rows[0].shape[1], generator=generator(96))
    for target, row in zip(embeddings, rows, strict=True):
        target[size - len(row) if left else 0 :][: len(row)] = row
    mask = length_mask(sizes, size)
    return embeddings, mask.flip(1) if left else mask


def check_embeddings(config: DecoderConfig) -> None:
    """``embed`` gives ``dim`` channels for ids of any shape, and ``embedding_rms`` is theirs."""
    decoder = build(config)
    ids = torch.arange(len(tokenizer_of(config)))
    with torch.no_grad():
        table, square = decoder.embed(ids), decoder.embed(ids[:4].reshape(2, 2))
        empty = decoder.embed(ids[:0])
    for found, shape in ((table, [len(ids), decoder.dim]), (square, [2, 2, decoder.dim]), (empty, [0, decoder.dim])):
        expect(list(found.shape) == shape, config, f"embed gave the shape {list(found.shape)}, not {shape}")
    rms, told = float(table.pow(2).mean().sqrt()), decoder.embedding_rms()
    expect(abs(rms - told) <= 0.05 * rms, config, f"embedding_rms says {told:.3g}, and embed's output has {rms:.3g}")


def check_logits(config: DecoderConfig) -> None:
    """Logits of the kept positions alone, in row-major order, equal to those of a full forward, and causal."""
    decoder = build(config).eval()
    shake(decoder)
    embeddings, mask = padded(rows_of(decoder))
    keep = mask & (torch.rand(mask.shape, generator=generator()) < 0.4)
    later = embeddings.clone()
    later[2, 10:] += 1.0
    with torch.no_grad():
        full, kept = decoder(embeddings, mask, mask), decoder(embeddings, mask, keep)
        none = decoder(embeddings, mask, torch.zeros_like(mask))
        changed_later = decoder(later, mask, mask)
    vocabulary = len(tokenizer_of(config))
    expect(
        full.ndim == 2 and len(full) == int(mask.sum()) and full.shape[1] >= vocabulary,
        config,
        f"logits have shape {list(full.shape)}, not [{int(mask.sum())} kept positions, {vocabulary} token ids]",
    )
    expect_equal(config, "logits at kept positions and in a full forward", kept, full[keep[mask]])
    expect(len(none) == 0, config, "nothing kept, and there are logits")
    row, position = (index[mask] for index in torch.meshgrid(*map(torch.arange, mask.shape), indexing="ij"))
    before = ~((row == 2) & (position >= 10))
    expect_equal(config, "logits before a change in later embeddings", changed_later[before], full[before])
    expect(not torch.equal(changed_later[~before], full[~before]), config, "embeddings do not change the logits")


def check_invariance(config: DecoderConfig) -> None:
    """A row's logits are the same alone and right-padded beside others, whatever the padding holds."""
    decoder = build(config).eval()
    shake(decoder)
    rows = rows_of(decoder)
    embeddings, mask = padded(rows)
    with torch.no_grad():
        together = decoder(embeddings, mask, mask).split([len(row) for row in rows])
        for row, found in zip(rows, together, strict=True):
            everything = torch.ones(1, len(row), dtype=torch.bool)
            alone = decoder(row[None], everything, everything)
            expect_equal(config, f"logits of a row of {len(row)} positions alone and in a batch", found, alone)


def check_generation(config: DecoderConfig) -> None:
    """Greedy ids are those of an argmax over ``forward``, and left padding changes no id, greedy or with beams."""
    decoder = talkative(config)
    rows, end = rows_of(decoder), tokenizer_of(config).eos_token_id
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": end, "pad_token_id": end}
    with torch.no_grad():
        embeddings, mask = padded(rows, left=True)
        for num_beams in (1, 3):
            together = decoder.generate(embeddings, mask, **settings, num_beams=num_beams)
            for row, found in zip(rows, together, strict=True):
                everything = torch.ones(1, len(row), dtype=torch.bool)
                (alone,) = decoder.generate(row[None], everything, **settings, num_beams=num_beams).tolist()
                said = found.tolist()
                longest = max(len(said), len(alone))
                said, alone = (ids + [end] * (longest - len(ids)) for ids in (said, alone))
                what = f"a row of {len(row)} positions, {num_beams} beams"
                expect(said == alone, config, f"{what}: left-padded in a batch it generates {said}, and alone {alone}")
                if num_beams == 1:
                    told = _by_hand(decoder, row, end, settings["max_new_tokens"])
                    expect(alone[: len(told)] == told, config, f"{what}: generate says {alone}, and forward {told}")


def _by_hand(decoder: Decoder, row: Tensor, end: int, max_new_tokens: int) -> list[int]:
    ids: list[int] = []
    while len(ids) < max_new_tokens and end not in ids:
        embeddings = torch.cat([row, decoder.embed(torch.tensor(ids, dtype=torch.long))])[None]
        mask = torch.ones(embeddings.shape[:2], dtype=torch.bool)
        keep = torch.zeros_like(mask)
        keep[0, -1] = True
        ids.append(int(decoder(embeddings, mask, keep).argmax()))
    return ids


def check_cache(config: DecoderConfig) -> None:
    """Rows read piece by piece, with others, and partly forgotten in between, have the logits of one forward pass."""
    adapters = lora_for(build(config).named_modules())
    for fields in ({}, {"freeze": True, "lora": adapters}):
        decoder = build(changed(config, **fields)).eval()
        shake(decoder)
        cache = decoder.cache()
        if cache is None:
            return
        rows = rows_of(decoder, (23, 15, 30))
        with torch.no_grad():
            wanted = [decoder(row[None], every := torch.ones(1, len(row), dtype=torch.bool), every) for row in rows]
            wrong = [NOISE * torch.randn_like(row) for row in rows]
            # [start, end) of what is read, and after it how much of that is wrong and taken back
            read, order = [0, 0, 0], [0, 1, 2]
            for sizes, taken_back, stay in (
                ([9, 2, 17], [0, 0, 0], [0, 1, 2]),
                ([3, 1, 5], [4, 0, 1], [2, 0, 1]),
                ([5, 1, 1], [0, 3, 3], [0, 1]),
                ([2, 6], [2, 2], [1]),
            ):
                pieces = []
                for row, size, extra in zip(order, sizes, taken_back, strict=True):
                    read[row] += size
                    pieces.append(torch.cat([rows[row][read[row] - size : read[row]], wrong[row][:extra]]))
                first = read[order[0]] == sizes[0]
                embeddings, mask = padded(pieces, left=first)
                logits = cache.extend(embeddings, mask, embeddings.shape[1])
                for place, (row, size, extra) in enumerate(zip(order, sizes, taken_back, strict=True)):
                    start = embeddings.shape[1] - size - extra if first else 0
                    found = logits[place, start : start + size]
                    what = f"logits of positions {read[row] - size} to {read[row]} of a row, by cache and by forward"
                    expect_equal(config, what, found, wanted[row][read[row] - size : read[row]])
                cache.keep(torch.tensor(stay), torch.tensor([read[order[place]] for place in stay]))
                order = [order[place] for place in stay]


class _Given:
    """A draft of ids that are there, with some of them wrong."""

    def __init__(self, ids: list[int], wrong: float) -> None:
        spoiled = torch.rand(len(ids), generator=generator(len(ids))) < wrong
        self._ids = [ids[0] if bad else token for token, bad in zip(ids, spoiled.tolist(), strict=True)]

    def after(self, ids: Sequence[int]) -> list[int]:
        return self._ids[len(ids) :]


def check_drafting(config: DecoderConfig) -> None:
    """Whatever the draft, what is decoded is what ``generate`` says; and a draft that is right takes one pass."""
    decoder, end = talkative(config), tokenizer_of(config).eos_token_id
    if decoder.cache() is None:
        return
    embeddings, mask = padded(rows_of(decoder), left=True)
    settings = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": end, "pad_token_id": end}
    with torch.no_grad():
        said = decoder.generate(embeddings, mask, **settings).tolist()
        said = [ids[: ids.index(end) + 1] if end in ids else ids for ids in said]
        for wrong in (0.0, 0.3, 1.0):
            cache = decoder.cache()
            assert cache is not None
            drafts = [_Given(ids, wrong) for ids in said]
            found = decode_drafted(decoder, cache, embeddings, mask, drafts, max_new_tokens=24, end_id=end)
            ids = [row.ids for row in found]
            expect(ids == said, config, f"by drafts of which {wrong:.0%} are wrong it says {ids}, and by steps {said}")
            passes = [row.num_passes for row in found]
            right = wrong > 0 or passes == [1] * len(said)
            expect(right, config, f"a right draft takes {passes} passes of the decoder, not 1")


def check_finite(config: DecoderConfig) -> None:
    """No NaN comes out, in fp32 or bf16, right- or left-padded."""
    for dtype in (torch.float32, torch.bfloat16):
        decoder = build(config).eval().to(dtype)
        for left in (False, True):
            embeddings, mask = padded(rows_of(decoder), left=left)
            with torch.no_grad():
                logits = decoder(embeddings.to(dtype), mask, mask)
            expect_finite(config, f"logits in {dtype}, {'left' if left else 'right'}-padded", logits)


def check_gradients(config: DecoderConfig) -> None:
    """They reach every trainable tensor, no frozen one, and always the embeddings, which the projector made."""
    adapters = lora_for(build(config).named_modules())
    ids = torch.arange(len(tokenizer_of(config)))
    for what, fields in (
        ("freeze: false", {"freeze": False, "lora": None}),
        ("freeze: true", {"freeze": True, "lora": None}),
        ("lora", {"freeze": True, "lora": adapters}),
    ):
        decoder = build(changed(config, **fields)).train()
        shake(decoder)
        audio, mask = padded(rows_of(decoder))
        audio.requires_grad_()
        embeddings = torch.cat([audio, decoder.embed(ids).expand(len(audio), -1, -1)], dim=1)
        # [B, L] -> [B, L + V], the row without padding only, so that every position counts
        longest = mask.sum(1).argmax()
        embeddings, keep = embeddings[longest, None], torch.ones(1, embeddings.shape[1], dtype=torch.bool)
        logits = decoder(embeddings, keep, keep)
        weights = torch.randn(logits.shape, generator=generator())
        expect_gradients(config, what, decoder, (logits * weights).sum())
        reached = audio.grad is not None and bool(audio.grad.any())
        expect(reached, config, f"{what}: no gradient reaches the embeddings, so the projector could not train")
        if what == "lora":
            expect_adapters_only(config, decoder)
        elif what == "freeze: false":
            trains = any(tensor.requires_grad for tensor in decoder.parameters())
            expect(trains, config, "freeze: false, and nothing trains")


def check_save_load(config: DecoderConfig) -> None:
    """Rebuilt from ``architecture()`` and its saved tensors, it puts out the same, bit for bit."""
    adapters = lora_for(build(config).named_modules())
    for fields in ({}, {"freeze": True, "lora": adapters}):
        variant = changed(config, **fields)
        decoder = build(variant).eval()
        shake(decoder)
        torch.manual_seed(1)
        architecture = json.loads(json.dumps(decoder.architecture()))
        rebuilt = DECODERS.build(variant, DecoderContext(None, architecture)).eval()
        reload(config, decoder, rebuilt)
        embeddings, mask = padded(rows_of(decoder))
        with torch.no_grad():
            first, second = decoder(embeddings, mask, mask), rebuilt(embeddings, mask, mask)
        same = decoder.dim == rebuilt.dim and torch.equal(first, second)
        expect(same, config, "saved and loaded, it puts out other logits")


def check_determinism(config: DecoderConfig) -> None:
    """Without dropout, training mode is no different; with it, it is."""
    outputs = []
    for dropout, training in ((0.0, False), (0.0, True), (0.5, False), (0.5, True)):
        decoder = build(changed(config, dropout=dropout)).train(training)
        embeddings, mask = padded(rows_of(decoder))
        torch.manual_seed(2)
        with torch.no_grad():
            outputs.append(decoder(embeddings, mask, mask))
    still, trained, still_too, noisy = outputs
    expect(torch.equal(still, trained), config, "dropout: 0, and training mode changes the logits")
    expect(torch.equal(still, still_too), config, "dropout changes the logits outside of training")
    expect(not torch.equal(still, noisy), config, "dropout: 0.5 changes nothing in training mode")


def check_linear_layers(config: DecoderConfig) -> None:
    """``linear_layers`` are all but the head (``lm_head``), and an adapter on any of them takes part."""
    if config.linear_layers is None:
        return
    decoder = build(changed(config, lora=None))
    linear = [path for path, module in decoder.named_modules() if isinstance(module, nn.Linear)]
    # The head may share its weights with the embeddings, and then cannot be adapted alone.
    names = {path.rsplit(".", 1)[-1] for path in linear} - {"lm_head"}
    expect(
        set(config.linear_layers) == names,
        config,
        f"linear_layers are {sorted(config.linear_layers)}, and the decoder has {sorted(names)}",
    )
    decoder = build(changed(config, freeze=True, lora={"rank": 2, "alpha": 4.0, "targets": sorted(names)})).train()
    shake(decoder)
    expect_gradients(config, "lora on all linear layers", decoder, _noisy_sum(decoder))


def check_attentions(config: DecoderConfig) -> None:
    """All of ``attentions`` put out the same, but for Flash Attention, which needs a GPU."""
    wanted: Tensor | None = None
    for attention in ("auto", *config.attentions):
        if attention == "flash_attention_2":
            continue
        decoder = build(changed(config, attention=attention)).eval()
        embeddings, mask = padded(rows_of(decoder))
        with torch.no_grad():
            logits = decoder(embeddings, mask, mask)
        wanted = logits if wanted is None else wanted
        expect_equal(config, f"attention: {attention}, and auto", logits, wanted)


def check_packing(config: DecoderConfig) -> None:
    """``attention: varlen``: no row reads another, gradients are those of padded rows, and generation works as ever."""
    if VARLEN not in config.attentions:
        return
    config = changed(config, dropout=0.0)
    check_invariance(changed(config, attention=VARLEN))
    check_generation(changed(config, attention=VARLEN))
    adapters = lora_for(build(config).named_modules())
    for fields in ({"freeze": False, "lora": None}, {"freeze": True, "lora": adapters}):
        for checkpointing in (False, True):
            settings = fields | {"gradient_checkpointing": checkpointing}
            # Sums in another order differ in the last digits of fp32, and cancel in some gradients.
            _, wanted = _count_and_gradients(changed(config, **settings), torch.float64)
            _, found = _count_and_gradients(changed(config, **settings, attention=VARLEN), torch.float64)
            expect_equal_gradients(config, f"attention: varlen with {settings}", found, wanted)


def check_checkpointing(config: DecoderConfig) -> None:
    """``gradient_checkpointing`` computes layers again in the backward pass, and changes no gradient."""
    adapters = lora_for(build(config).named_modules())
    for fields in ({"freeze": False, "lora": None}, {"freeze": True, "lora": adapters}):
        plain, wanted = _count_and_gradients(changed(config, **fields, gradient_checkpointing=False))
        checkpointed, found = _count_and_gradients(changed(config, **fields, gradient_checkpointing=True))
        what = f"gradient_checkpointing with freeze: {str(fields['freeze']).lower()}"
        expect(checkpointed > plain, config, f"{what} computes nothing again in the backward pass")
        expect_equal_gradients(config, what, found, wanted)


def _count_and_gradients(config: DecoderConfig, dtype: torch.dtype = torch.float32) -> tuple[int, dict[str, Tensor]]:
    """How often linear layers run in a forward and a backward pass, and the gradients."""
    decoder = build(config).train().to(dtype)
    shake(decoder)
    calls: list[nn.Module] = []
    for module in decoder.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda module, *_: calls.append(module))
    torch.autograd.backward(_noisy_sum(decoder))
    return len(calls), {name: tensor.grad for name, tensor in decoder.named_parameters() if tensor.grad is not None}


def _noisy_sum(decoder: Decoder) -> Tensor:
    """A scalar to go back from, to which each logit contributes differently."""
    embeddings, mask = padded(rows_of(decoder))
    embeddings = embeddings.to(next(decoder.parameters()).dtype).requires_grad_()
    logits: Tensor = decoder(embeddings, mask, mask)
    return (logits * torch.randn(logits.shape, generator=generator())).sum()


CHECKS = (
    check_embeddings,
    check_logits,
    check_invariance,
    check_generation,
    check_cache,
    check_drafting,
    check_finite,
    check_gradients,
    check_save_load,
    check_determinism,
    check_linear_layers,
    check_attentions,
    check_packing,
    check_checkpointing,
)
