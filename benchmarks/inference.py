"""Measure the speed of transcription: clip by clip, in batches, with drafts, and in batches with drafts.

    python benchmarks/inference.py --model runs/quickstart/model       a trained model, on its recipe's evaluation data
    python benchmarks/inference.py --model … --compile                 also with compiled layers
    python benchmarks/inference.py                                     random weights, about 50 M parameters
    python benchmarks/inference.py --device cuda --full-size           the model card's recipe, random weights, bf16

Plain decoding is transformers' generate. In assisted decoding, the decoder verifies a draft. A trained model's draft is
the text of its CTC head. All variants decode greedily, because only greedy decoding uses drafts. Except in half
precision, assisted decoding must give the same tokens as plain decoding for every clip, alone and in batches. Plain
decoding must need at least ``FEWER_PASSES`` times as many passes of the decoder as assisted decoding, including passes
over prompts.

The measured time starts with waveforms in memory and ends with texts, or with tokens if the weights are random. RTFx is
the seconds of audio divided by this time. Batches have clips of similar length and at most ``--padded-s`` seconds of
audio, including padding. All variants run once in each round, in random order. Medians and ranges are over rounds.
Compare the ratios, not the seconds.

With random weights, the text of the CTC head is useless as a draft. So the draft is the result of plain decoding, with
a share of its tokens replaced by wrong tokens. The model with random weights is measured twice: with adapters that are
not merged, and with merged adapters.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plan_memory import CARD, CARD_RANKS, SMALL, build, merged
from record import ROOT, Record, spread
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from training import SIZES

from tiny_audio.data.clips import ClipSet
from tiny_audio.export.load import load_model
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.model.assisted import decode_assisted
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.recipe import Recipe, load_recipe
from tiny_audio.recipe.limits import ContextLimits
from tiny_audio.runtime.files import cache_dir
from tiny_audio.sources import SOURCES, SourceContext
from tiny_audio.training.compilation import compile_layers, uncompiled

FEWER_PASSES, CLIPS = 1.8, 500
"""The minimum of the passes in plain decoding per pass in assisted decoding, and the minimum number of clips."""
RANDOM_TOKENS, WRONG = 40, (0.0, 0.1, 0.3)


@dataclass
class Passes:
    """Counts the forward calls of a decoder."""

    calls: int = 0
    rows: int = 0
    """Total number of rows in these calls, including rows of clips that have ended."""


@contextmanager
def counted(model: TinyAudioModel) -> Iterator[Passes]:
    passes = Passes()

    def count(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        read = inputs["inputs_embeds"] if inputs.get("inputs_embeds") is not None else inputs["input_ids"]
        passes.calls, passes.rows = passes.calls + 1, passes.rows + len(read)

    handle = model.decoder.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()


def batches_of(clips: Sequence[Tensor], max_padded_s: float | None) -> list[list[int]]:
    """Return batches of clip indices, longest clips first.

    Args:
        max_padded_s: maximum seconds of audio in a batch, including padding. If None, each clip is a batch of its own.
    """
    order = sorted(range(len(clips)), key=lambda number: -len(clips[number]))
    found = []
    while order:
        size = 1 if max_padded_s is None else max(1, int(max_padded_s * SAMPLE_RATE / len(clips[order[0]])))
        found.append(order[:size])
        order = order[size:]
    return found


def padded(clips: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return waveforms ``[B, S]`` and lengths ``[B]``."""
    lengths = torch.tensor([len(clip) for clip in clips], device=device)
    return pad_sequence(list(clips), batch_first=True).to(device), lengths


def until_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids


def timed(contenders: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Return the seconds of each contender in each round. The order of contenders changes in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        names = list(contenders)
        random.Random(number).shuffle(names)
        for name in names:
            start = time.perf_counter()
            with nullcontext() if name.endswith("compiled") else uncompiled():
                contenders[name]()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def evaluation_clips(recipe: Recipe, count: int | None) -> list[Tensor]:
    """Return the waveforms of a recipe's evaluation sets. If ``count`` is given, return evenly spaced clips of them."""
    sources = {name: SOURCES.build(part, SourceContext(cache_dir())) for name, part in recipe.data.evaluation.items()}
    limit = ContextLimits(recipe).longest_evaluation_s
    clips = ClipSet.gather(sources, 0.0, limit).clips
    numbers = range(len(clips)) if count is None else np.linspace(0, len(clips) - 1, min(count, len(clips))).astype(int)
    return [clips[int(number)].load(limit) for number in numbers]


def trained(arguments: argparse.Namespace, record: Record) -> None:
    """Measure a trained model with its own drafts."""
    device = torch.device(arguments.device)
    model, tokenizer = load_model(arguments.model)
    model.to(device, torch.bfloat16 if arguments.bf16 else None)
    recipe = load_recipe(arguments.recipe)
    clips = evaluation_clips(recipe, arguments.clips)
    audio_s = sum(map(len, clips)) / SAMPLE_RATE
    greedy = {"max_new_tokens": recipe.generation.max_new_tokens}
    record.say(
        f"{arguments.recipe.name}: {len(clips)} clips of {', '.join(recipe.data.evaluation)}, {audio_s:.0f} s; decoder "
        f"{sum(tensor.numel() for tensor in model.decoder.parameters()) / 1e6:.1f} M parameters, "
        f"{str(model.dtype).removeprefix('torch.')}; batches of at most {arguments.padded_s:g} s of audio, including "
        "padding."
    )
    ways = {
        "plain, one by one": ("none", None),
        "plain, batched": ("none", arguments.padded_s),
        "assisted, one by one": ("ctc", None),
        "assisted, batched": ("ctc", arguments.padded_s),
    }

    def transcribe(way: str, chosen: Sequence[Tensor]) -> None:
        draft, budget = ways[way]
        model.config.generation = greedy | {"draft": draft}
        for indices in batches_of(chosen, budget):
            model.transcribe(*padded([chosen[index] for index in indices], device), tokenizer)

    def tokens(way: str) -> tuple[list[list[int]], list[int]]:
        """Return the token ids of each clip, and the number of decoder passes in which the clip took part."""
        draft, budget = ways[way]
        model.config.generation = greedy | {"draft": draft}
        ids: list[list[int]] = [[]] * len(clips)
        taken = [0] * len(clips)
        for indices in batches_of(clips, budget):
            batch = padded([clips[index] for index in indices], device)
            with torch.no_grad(), counted(model) as passes:
                if draft == "none":
                    found = [until_end(row, model.config.end_token_id) for row in model.generate(*batch).tolist()]
                    each = [passes.calls] * len(indices)
                else:
                    frames = model.encode(*batch)
                    decoded = model.verify(*model.projector(frames), model.ctc_texts(frames), tokenizer)
                    found, each = [clip.ids for clip in decoded], [clip.num_passes for clip in decoded]
                    assert max(each) == passes.calls, "the hook and the search counted different numbers of passes"
            for index, row, calls in zip(indices, found, each, strict=True):
                ids[index], taken[index] = row, calls
        return ids, taken

    results = {way: tokens(way) for way in ways}
    plain_ids, plain_passes = results["plain, one by one"]
    step = max(1, len(clips) // arguments.timed_clips)
    chosen = [clips[index] for (index,) in batches_of(clips, None)[::step]]
    chosen_s = sum(map(len, chosen)) / SAMPLE_RATE
    contenders = {way: partial(transcribe, way, chosen) for way in ways}
    if arguments.compile:
        record.say(f"{compile_layers(model, device)} layers are compiled, for the rows that say so.")
        contenders |= {f"{way}, compiled": work for way, work in contenders.items() if way.startswith("assisted")}
    timed(contenders, 1, device)  # warm-up
    seconds = timed(contenders, arguments.rounds, device)
    base = np.array(seconds["plain, one by one"])
    rows = []
    for way in contenders:
        ids, taken = results[way.removesuffix(", compiled")]
        same = np.mean([mine == plain for mine, plain in zip(ids, plain_ids, strict=True)])
        rates = [chosen_s / value for value in seconds[way]]
        gains = (base / np.array(seconds[way])).tolist()
        rows.append((way, spread(rates, 1), spread(gains), f"{np.mean(taken):.2f}", f"{same:.1%}"))
    record.table(
        ("", "RTFx", "speed relative to the first row", "decoder passes per clip", "clips with the same tokens"), rows
    )
    all_right = np.mean(np.array(results["assisted, one by one"][1]) == 1)
    record.say(
        f"Times over {len(chosen)} clips ({chosen_s:.0f} s), {arguments.rounds} rounds. In a plain batch, each clip "
        "takes part in every pass until all clips have ended. In assisted decoding, a clip leaves the batch when it "
        f"ends. One by one, {all_right:.0%} of the drafts were entirely right."
    )
    record.say()
    record.bar(f"{len(clips)} clips, at least {CLIPS}", len(clips) >= CLIPS)
    if not arguments.bf16:
        for way in ways:
            same = sum(mine == plain for mine, plain in zip(results[way][0], plain_ids, strict=True))
            record.bar(f"{way}: {same} of {len(clips)} clips have the same tokens as one by one", same == len(clips))
    fewer = sum(plain_passes) / sum(results["assisted, one by one"][1])
    record.bar(f"{fewer:.2f} times fewer passes of the decoder, at least {FEWER_PASSES:g}", fewer >= FEWER_PASSES)


class WrongDraft:
    """A draft that consists of the correct ids, except for a share of wrong ids."""

    def __init__(self, ids: list[int], wrong: float, seed: int) -> None:
        rng = random.Random(seed)
        self._ids = [token - 1 if token and rng.random() < wrong else token for token in ids]

    def after(self, ids: Sequence[int]) -> list[int]:
        """Return the rest of the draft after the decoded ``ids``."""
        return self._ids[len(ids) :]


def random_weights(arguments: argparse.Namespace, record: Record) -> None:
    """Measure a model with random weights: plain decoding, drafts with some wrong tokens, and merged adapters."""
    device = torch.device(arguments.device)
    base = CARD
    if not arguments.full_size:
        base = merged(SMALL, SIZES["tiny"]) if arguments.tiny else SMALL
        base = merged(base, {"encoder": {"freeze": True}, "decoder": {"freeze": True}})
    base = merged(base, CARD_RANKS)
    recipe = Recipe.model_validate_json(json.dumps(merged(base, {"execution": {"device": arguments.device}})))
    torch.manual_seed(0)
    model, _, _ = build(recipe, arguments.device)
    dtype = torch.bfloat16 if arguments.full_size else torch.float32
    model.to(device, dtype).eval()
    rng = np.random.default_rng(0)
    clips = [0.1 * torch.randn(int(size)) for size in rng.uniform(2, 8, arguments.clips or 24) * SAMPLE_RATE]
    audio_s = sum(map(len, clips)) / SAMPLE_RATE
    record.say(
        f"Random weights: {sum(tensor.numel() for tensor in model.parameters()) / 1e6:.0f} M parameters, {dtype}; "
        f"{len(clips)} clips of noise, {audio_s:.0f} s; {RANDOM_TOKENS} tokens each."
    )
    settings = {"max_new_tokens": RANDOM_TOKENS, "eos_token_id": None}

    @torch.no_grad()
    def plain(budget: float | None) -> list[list[int]]:
        ids: list[list[int]] = [[]] * len(clips)
        for indices in batches_of(clips, budget):
            batch = padded([clips[index] for index in indices], device)
            for index, row in zip(indices, model.generate(*batch, **settings).tolist(), strict=True):
                ids[index] = row
        return ids

    @torch.no_grad()
    def assisted(budget: float | None, wrong: float) -> int:
        """Return the number of clips with the same tokens as in plain decoding."""
        same = 0
        for indices in batches_of(clips, budget):
            audio, lengths = model.projector(model.encode(*padded([clips[index] for index in indices], device)))
            nothing = torch.empty(0, dtype=torch.long, device=device)
            prompts = model.splice(audio, lengths, [nothing] * len(indices), padding_side="left")
            drafts = [WrongDraft(known[index], wrong, index) for index in indices]
            cache = model.decoder.cache()
            assert cache is not None
            found = decode_assisted(model.decoder, cache, *prompts, drafts, max_new_tokens=RANDOM_TOKENS, end_id=-1)
            same += sum(clip.ids == known[index] for index, clip in zip(indices, found, strict=True))
        return same

    known = plain(None)
    contenders: dict[str, Callable[[], Any]] = {}
    for name, budget in (("one by one", None), ("batched", arguments.padded_s)):
        contenders[f"plain, {name}"] = partial(plain, budget)
        for wrong in WRONG:
            contenders[f"assisted, {wrong:.0%} of the tokens wrong, {name}"] = partial(assisted, budget, wrong)
    results: dict[str, tuple[float, list[float]]] = {}
    for state in ("adapters not merged", "adapters merged"):
        if state == "adapters merged":
            from peft.tuners.tuners_utils import BaseTunerLayer

            for module in model.modules():
                if isinstance(module, BaseTunerLayer):
                    module.merge()
        calls = {}
        for name, work in contenders.items():  # warm-up, and the number of passes
            with counted(model) as passes:
                work()
            calls[name] = passes.rows / len(clips)
        for name, values in timed(contenders, arguments.rounds, device).items():
            results[f"{name}, {state}"] = (calls[name], values)
    first = np.array(results["plain, one by one, adapters not merged"][1])
    record.table(
        ("", "RTFx", "speed relative to the first row", "decoder passes per clip"),
        [
            (
                name,
                spread([audio_s / value for value in values], 1),
                spread((first / np.array(values)).tolist()),
                f"{calls:.2f}",
            )
            for name, (calls, values) in results.items()
        ],
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="an exported model with a CTC head")
    parser.add_argument(
        "--recipe",
        type=Path,
        default=ROOT / "recipes" / "quickstart.yaml",
        help="recipe whose evaluation sets are transcribed",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--full-size", action="store_true", help="the model card's recipe with random weights")
    parser.add_argument("--tiny", action="store_true", help="a very small model, only to test the script")
    parser.add_argument("--bf16", action="store_true", help="the trained model in half precision")
    parser.add_argument("--compile", action="store_true", help="also measure assisted decoding with compiled layers")
    parser.add_argument("--clips", type=int, help="number of clips; default: all, or 24 with random weights")
    parser.add_argument("--timed-clips", type=int, default=200, help="approximate number of timed clips")
    parser.add_argument("--padded-s", type=float, default=60.0, help="seconds of audio in a batch, including padding")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="also write the results to this page")
    arguments = parser.parse_args()
    record = Record("Transcription: one by one, batched, assisted", arguments.output)
    if arguments.model is None:
        random_weights(arguments, record)
    else:
        trained(arguments, record)
    return record.write()


if __name__ == "__main__":
    sys.exit(main())
