"""Checks of the Decoder contract."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tiny_audio.decoders import DECODERS, Decoder, DecoderCache, DecoderConfig, DecoderContext, build_tokenizer
from tiny_audio.frames import length_mask
from tiny_audio.model.assisted import decode_assisted
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
    perturb,
    weighted_sum,
)
from tiny_audio.testing._transformers_parts import Check, TransformersPartChecks

TRANSCRIPTS = ("one two three", "four five six", "the quick brown fox jumps over the lazy dog")
LENGTHS = (9, 1, 17, 4)


def tokenizer_of(config: DecoderConfig) -> Any:
    """Train a tokenizer on :data:`TRANSCRIPTS`."""
    expect(config.tokenizer is not None, config, "the checks need a config with a tokenizer to train")
    return build_tokenizer(config, TRANSCRIPTS)


def rows_of(decoder: Decoder, lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    """Return rows of random embeddings ``[L, H]`` with the RMS of the decoder's token embeddings."""
    rms = decoder.embedding_rms()
    return [rms * torch.randn(length, decoder.dim, generator=generator(length)) for length in lengths]


def padded(rows: list[Tensor], *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Return the rows as one batch ``[B, L, H]`` with noise as padding, and the mask ``[B, L]``."""
    sizes = torch.tensor([len(row) for row in rows])
    size = int(sizes.max())
    embeddings = NOISE * torch.randn(len(rows), size, rows[0].shape[1], generator=generator(96))
    for target, row in zip(embeddings, rows, strict=True):
        target[size - len(row) if left else 0 :][: len(row)] = row
    mask = length_mask(sizes, size)
    return embeddings, mask.flip(1) if left else mask


def greedy_ids(decoder: Decoder, row: Tensor, end: int, max_new_tokens: int) -> list[int]:
    """Decode greedily without a cache."""
    ids: list[int] = []
    while len(ids) < max_new_tokens and end not in ids:
        embeddings = torch.cat([row, decoder.embed(torch.tensor(ids, dtype=torch.long))])[None]
        mask = torch.ones(embeddings.shape[:2], dtype=torch.bool)
        keep = torch.zeros_like(mask)
        keep[0, -1] = True
        ids.append(int(decoder(embeddings, mask, keep).argmax()))
    return ids


class FixedDraft:
    """A draft for assisted decoding: ``ids``, with a random fraction ``wrong`` of the ids replaced by the first id."""

    def __init__(self, ids: list[int], wrong: float) -> None:
        is_wrong = torch.rand(len(ids), generator=generator(len(ids))) < wrong
        self._ids = [ids[0] if bad else token for token, bad in zip(ids, is_wrong.tolist(), strict=True)]

    def after(self, ids: Sequence[int]) -> list[int]:
        """Return the rest of the draft after the decoded ``ids``."""
        return self._ids[len(ids) :]


class DecoderChecks(TransformersPartChecks[DecoderConfig]):
    """Checks of a decoder."""

    output = "logits"

    def build(self, config: DecoderConfig, seed: int = 0) -> Decoder:
        tokenizer = tokenizer_of(config)
        torch.manual_seed(seed)
        return DECODERS.build(config, DecoderContext(tokenizer))

    def build_varied(self, config: DecoderConfig) -> Decoder:
        """Build the decoder with large random matrices, so that it does not generate the same token repeatedly."""
        decoder = self.build(config).eval()
        numbers = generator(3)
        with torch.no_grad():
            for tensor in decoder.parameters():
                if tensor.ndim == 2:
                    tensor.copy_(2 / math.sqrt(tensor.shape[1]) * torch.randn(tensor.shape, generator=numbers))
        return decoder

    def rebuild(self, config: DecoderConfig, architecture: dict[str, Any]) -> Decoder:
        return DECODERS.build(config, DecoderContext(None, architecture))

    def run(self, part: Decoder) -> Tensor:
        """Return the logits ``[K, V]`` at the K real positions of a few rows.

        The embeddings of the rows require gradients, like a projector's output.
        """
        embeddings, mask = padded(rows_of(part))
        logits: Tensor = part(embeddings.to(next(part.parameters()).dtype).requires_grad_(), mask, mask)
        return logits

    def checks(self) -> tuple[Check[DecoderConfig], ...]:
        return (
            self.check_embeddings,
            self.check_logits,
            self.check_invariance,
            self.check_generation,
            self.check_cache,
            self.check_assisted_decoding,
            self.check_finite,
            self.check_gradients,
            self.check_save_load,
            self.check_determinism,
            self.check_linear_layers,
            self.check_attentions,
            self.check_packing,
            self.check_shared_prefix,
            self.check_checkpointing,
        )

    def check_embeddings(self, config: DecoderConfig) -> None:
        """Check that ``embed`` accepts ids of any shape, and returns ``dim`` channels with RMS ``embedding_rms()``."""
        decoder = self.build(config)
        ids = torch.arange(len(tokenizer_of(config)))
        for rows in (ids, ids[:4].reshape(2, 2), ids[:0]):
            with torch.no_grad():
                shape, wanted = list(decoder.embed(rows).shape), [*rows.shape, decoder.dim]
            expect(shape == wanted, config, f"embed gave the shape {shape}, not {wanted}")
        with torch.no_grad():
            rms, stated = float(decoder.embed(ids).pow(2).mean().sqrt()), decoder.embedding_rms()
        close = abs(rms - stated) <= 0.05 * rms
        expect(close, config, f"embedding_rms is {stated:.3g}, but the RMS of embed's output is {rms:.3g}")

    def check_logits(self, config: DecoderConfig) -> None:
        """Check that logits at kept positions are in row-major order, and do not depend on which positions are kept.

        Logits must not depend on later positions.
        """
        decoder = self.build(config).eval()
        perturb(decoder)
        embeddings, mask = padded(rows_of(decoder))
        keep = mask & (torch.rand(mask.shape, generator=generator()) < 0.4)
        later = embeddings.clone()
        later[2, 10:] += 1.0
        with torch.no_grad():
            full, kept = decoder(embeddings, mask, mask), decoder(embeddings, mask, keep)
            none = decoder(embeddings, mask, torch.zeros_like(mask))
            changed_later = decoder(later, mask, mask)
        positions, vocabulary = int(mask.sum()), len(tokenizer_of(config))
        expect(
            full.ndim == 2 and len(full) == positions and full.shape[1] >= vocabulary,
            config,
            f"logits have shape {list(full.shape)}, not [{positions} kept positions, at least {vocabulary} token ids]",
        )
        expect_equal(
            config, "logits at kept positions, compared with a forward pass that keeps all", kept, full[keep[mask]]
        )
        expect(len(none) == 0, config, "there are logits although no position is kept")
        row, position = (index[mask] for index in torch.meshgrid(*map(torch.arange, mask.shape), indexing="ij"))
        before = ~((row == 2) & (position >= 10))
        expect_equal(config, "logits at positions before changed embeddings", changed_later[before], full[before])
        differs = not torch.equal(changed_later[~before], full[~before])
        expect(differs, config, "changed embeddings do not change the logits at their positions")

    def check_invariance(self, config: DecoderConfig) -> None:
        """Check that a row has the same logits alone and right-padded in a batch, for any content of the padding."""
        decoder = self.build(config).eval()
        perturb(decoder)
        rows = rows_of(decoder)
        embeddings, mask = padded(rows)
        with torch.no_grad():
            batch = decoder(embeddings, mask, mask).split([len(row) for row in rows])
            for row, found in zip(rows, batch, strict=True):
                everything = torch.ones(1, len(row), dtype=torch.bool)
                alone = decoder(row[None], everything, everything)
                expect_equal(config, f"logits of a row of {len(row)} positions alone and in a batch", found, alone)

    def check_generation(self, config: DecoderConfig, beams: Sequence[int] = (1, 3)) -> None:
        """Check that greedy decoding returns the argmax of ``forward``, and that left padding changes no id."""
        decoder = self.build_varied(config)
        rows, end = rows_of(decoder), tokenizer_of(config).eos_token_id
        settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": end, "pad_token_id": end}
        embeddings, mask = padded(rows, left=True)
        for num_beams in beams:
            with torch.no_grad():
                batch = decoder.generate(embeddings, mask, **settings, num_beams=num_beams).tolist()
            for row, found in zip(rows, batch, strict=True):
                everything = torch.ones(1, len(row), dtype=torch.bool)
                with torch.no_grad():
                    (alone,) = decoder.generate(row[None], everything, **settings, num_beams=num_beams).tolist()
                longest = max(len(found), len(alone))
                found, alone = (ids + [end] * (longest - len(ids)) for ids in (found, alone))
                what = f"a row of {len(row)} positions, {num_beams} beams"
                expect(found == alone, config, f"{what}: left-padded in a batch it generates {found}, alone {alone}")
                if num_beams == 1:
                    wanted = greedy_ids(decoder, row, end, settings["max_new_tokens"])
                    same = alone[: len(wanted)] == wanted
                    expect(same, config, f"{what}: generate gives {alone}, but forward gives {wanted}")

    def check_cache(self, config: DecoderConfig) -> None:
        """Check that the cache gives the same logits as one forward pass.

        The positions of each row are appended to the cache in chunks. Between two chunks, wrong positions are cropped,
        and rows are reordered or removed.
        """
        for fields in ({}, {"freeze": True, "lora": self.lora(config)}):
            decoder = self.build(changed(config, **fields)).eval()
            perturb(decoder)
            cache = decoder.cache()
            if cache is None:
                return
            with torch.no_grad():
                self._check_chunks(config, decoder, cache)

    def _check_chunks(self, config: DecoderConfig, decoder: Decoder, cache: DecoderCache) -> None:
        rows = rows_of(decoder, (23, 15, 30))
        wanted = [decoder(row[None], every := torch.ones(1, len(row), dtype=torch.bool), every) for row in rows]
        wrong = [NOISE * torch.randn_like(row) for row in rows]
        num_read, order = [0, 0, 0], [0, 1, 2]
        # For each step: the number of positions to append to each row, the number of wrong positions to append and then
        # crop, and the rows to keep.
        for sizes, cropped, kept in (
            ([9, 2, 17], [0, 0, 0], [0, 1, 2]),
            ([3, 1, 5], [4, 0, 1], [2, 0, 1]),
            ([5, 1, 1], [0, 3, 3], [0, 1]),
            ([2, 6], [2, 2], [1]),
        ):
            chunks = []
            for row, size, extra in zip(order, sizes, cropped, strict=True):
                num_read[row] += size
                chunks.append(torch.cat([rows[row][num_read[row] - size : num_read[row]], wrong[row][:extra]]))
            first = num_read[order[0]] == sizes[0]
            embeddings, mask = padded(chunks, left=first)
            logits = cache.extend(embeddings, mask, embeddings.shape[1])
            for index, (row, size, extra) in enumerate(zip(order, sizes, cropped, strict=True)):
                start = embeddings.shape[1] - size - extra if first else 0
                found, end = logits[index, start : start + size], num_read[row]
                what = f"logits of positions {end - size} to {end} of a row with the cache, compared with forward"
                expect_equal(config, what, found, wanted[row][end - size : end])
            cache.keep(torch.tensor(kept), torch.tensor([num_read[order[index]] for index in kept]))
            order = [order[index] for index in kept]

    def check_assisted_decoding(self, config: DecoderConfig) -> None:
        """Check that assisted decoding returns the ids of ``generate`` for any draft.

        If the draft is correct, one pass of the decoder must be enough.
        """
        decoder, end = self.build_varied(config), tokenizer_of(config).eos_token_id
        if decoder.cache() is None:
            return
        embeddings, mask = padded(rows_of(decoder), left=True)
        settings = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": end, "pad_token_id": end}
        with torch.no_grad():
            wanted = decoder.generate(embeddings, mask, **settings).tolist()
            wanted = [ids[: ids.index(end) + 1] if end in ids else ids for ids in wanted]
            for wrong in (0.0, 0.3, 1.0):
                cache = decoder.cache()
                assert cache is not None
                drafts = [FixedDraft(ids, wrong) for ids in wanted]
                rows = decode_assisted(decoder, cache, embeddings, mask, drafts, max_new_tokens=24, end_id=end)
                ids = [row.ids for row in rows]
                expect(
                    ids == wanted,
                    config,
                    f"with drafts that are {wrong:.0%} wrong, assisted decoding gives {ids}, not {wanted}",
                )
                passes = [row.num_passes for row in rows]
                once = wrong > 0 or passes == [1] * len(wanted)
                expect(once, config, f"a correct draft takes {passes} passes of the decoder, not 1")

    def check_finite(self, config: DecoderConfig) -> None:
        """Check that logits in fp32 and bf16 are finite, with right and left padding."""
        for dtype in (torch.float32, torch.bfloat16):
            decoder = self.build(config).eval().to(dtype)
            for left in (False, True):
                embeddings, mask = padded(rows_of(decoder), left=left)
                with torch.no_grad():
                    logits = decoder(embeddings.to(dtype), mask, mask)
                expect_finite(config, f"logits in {dtype}, {'left' if left else 'right'}-padded", logits)

    def check_gradients(self, config: DecoderConfig) -> None:
        """Check that gradients reach all trainable tensors and no frozen tensor.

        Gradients must also reach the audio embeddings, even if the decoder is frozen.
        """
        ids = torch.arange(len(tokenizer_of(config)))
        for what, fields in (
            ("freeze: false", {"freeze": False, "lora": None}),
            ("freeze: true", {"freeze": True, "lora": None}),
            ("lora", {"freeze": True, "lora": self.lora(config)}),
        ):
            decoder = self.build(changed(config, **fields)).train().double()
            perturb(decoder)
            audio, mask = padded(rows_of(decoder))
            audio = audio.double().requires_grad_()
            embeddings = torch.cat([audio, decoder.embed(ids).expand(len(audio), -1, -1)], dim=1)
            # [B, L + V, H] -> [1, L + V, H]: choose the longest row, which has no padding.
            longest = mask.sum(1).argmax()
            embeddings, keep = embeddings[longest, None], torch.ones(1, embeddings.shape[1], dtype=torch.bool)
            expect_gradients(config, what, decoder, weighted_sum(decoder(embeddings, keep, keep)))
            reached = audio.grad is not None and bool(audio.grad.any())
            expect(reached, config, f"{what}: no gradient reaches the embeddings, so the projector could not train")
            if what == "lora":
                expect_adapters_only(config, decoder)
            elif what == "freeze: false":
                trains = any(tensor.requires_grad for tensor in decoder.parameters())
                expect(trains, config, "freeze: false, but no parameter is trainable")

    def check_packing(self, config: DecoderConfig) -> None:
        """Check that rows do not attend to each other with ``attention: varlen``.

        Gradients must be the same as with padded rows, and beam search must work.
        """
        if VARLEN not in config.attentions:
            return
        config = changed(config, dropout=0.0)
        self.check_invariance(changed(config, attention=VARLEN))
        self.check_generation(changed(config, attention=VARLEN), beams=(3,))
        self.check_packed_gradients(config)

    def check_shared_prefix(self, config: DecoderConfig) -> None:
        """Check that logits and gradients stay the same if the rows' common prefix is computed only once."""
        lora = {"freeze": True, "lora": self.lora(config)}
        for fields in ({"freeze": False, "lora": None}, lora, lora | {"gradient_checkpointing": True}):
            decoder = self.build(changed(config, **fields, dropout=0.0)).train().double()
            perturb(decoder)
            embeddings, mask = padded(rows_of(decoder, (20, 13, 31)))
            embeddings[:, :12] = embeddings[0, :12]
            keep = mask.clone()
            keep[:, :12] = False
            results = []
            for num_shared in (0, 12):
                decoder.zero_grad()
                inputs = embeddings.double().requires_grad_()
                logits = decoder(inputs, mask, keep, num_shared=num_shared)
                weighted_sum(logits).backward()  # type: ignore[no-untyped-call]
                assert inputs.grad is not None
                gradients = {"the prefix": inputs.grad[:, :12].sum(0), "the rows": inputs.grad[:, 12:]}
                gradients |= {
                    name: tensor.grad.clone() for name, tensor in decoder.named_parameters() if tensor.grad is not None
                }
                results.append((logits.detach(), gradients))
            (wanted, in_each), (found, shared) = results
            expect_equal(config, f"logits with a shared prefix, compared with separate rows, {fields}", found, wanted)
            expect_equal_gradients(config, f"a shared prefix with {fields}", shared, in_each)


CHECKS = DecoderChecks().checks()
