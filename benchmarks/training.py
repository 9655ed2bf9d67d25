"""Compare a plain training loop with ours, which batches clips of similar length and computes fewer logits.

    python benchmarks/training.py                               on a CPU, a model with 20 M parameters; takes minutes
    python benchmarks/training.py --manifest all.jsonl          with the durations of real clips
    python benchmarks/training.py --device cuda --full-size     the model card's recipe, random weights, bf16

The plain loop takes a fixed number of random clips, pads them to the longest, and computes logits at every position in
fp32, like most training scripts. Our loop takes planned batches of clips of similar length, and computes logits only at
label positions. Both use the same model and optimizer. The loops alternate step by step, so that other work on the
machine affects them equally. For each step, the fastest of several rounds counts. Compare the ratios, not the seconds.

Same number of clips: in the first comparison, both loops take the same number of clips in each step. To find the
possible gain, each loop is also timed on batches of clips of equal length, for several lengths. A quadratic curve of
time against length is fitted for each loop. From this curve, the speed (audio per second) on the loop's own batches is
predicted. The bound is the predicted speed of our loop divided by that of the plain loop. The measured gain must be at
least 95 % of the bound.

Same memory: in the second comparison, each loop takes the largest batch whose step stays below a memory limit. The
limit does not include the weights. Any random batch may contain the longest clips, so the plain loop takes as many
clips as fit if all have the maximum duration. The batches of our loop have a maximum number of seconds of audio,
including padding. This number is the largest at which both batches of short clips and batches of long clips fit. Our
loop must process 2.5 times as much audio per second as the plain loop. A plain loop with single clips, which has no
padding, is also timed.

An epoch of either loop has 20,000 clips. These batches are sorted by their longest clip, and evenly spaced batches are
timed. The small model has 32,000 token ids but only 256 channels, so logits are a larger share of its work than in the
model card's model.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plan_memory import CARD, CARD_RANKS, HUBERT, SMALL, merged
from record import Record, spread
from training_steps import CHARACTERS_PER_S, CHARACTERS_PER_TOKEN, Bench

from tiny_audio.data.order import BatchingConfig, plan_epoch
from tiny_audio.plan.work import work_of
from tiny_audio.training.host import Host

GAIN_SHARE, SPEEDUP, PADDING = 0.95, 2.5, 0.05
CLIPS = 20_000
SHORTEST_S, LONGEST_S = 0.5, 30.0
MEDIAN_S, SIGMA = 6.0, 0.75
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
GIB = 2**30
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
PARTS = ("encoder", "projector", "decoder")


def hubert(**overrides: Any) -> dict[str, Any]:
    """Return the HuBERT encoder of plan_memory with some fields changed."""
    return {**HUBERT, "overrides": {**HUBERT["overrides"], **overrides}}


SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "encoder": hubert(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, conv_dim=[64] * 7),
        "projector": {"name": "swiglu", "hidden_dim": 512},
        "decoder": {
            "tokenizer": {"kind": "bpe", "vocab_size": 32_000},
            "overrides": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4},
        },
    },
    "tiny": {
        "encoder": hubert(hidden_size=48, num_hidden_layers=1, conv_dim=[16] * 7),
        "decoder": {"overrides": {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}},
    },
}
"""Changes that make ``plan_memory.SMALL``, a recipe with random weights, smaller."""


def drawn_durations(manifest: Path | None) -> np.ndarray:
    """Return the durations of 20,000 clips: log-normal, or drawn from a manifest with replacement."""
    rng = np.random.default_rng(0)
    if manifest is None:
        return np.clip(rng.lognormal(math.log(MEDIAN_S), SIGMA, CLIPS), SHORTEST_S, LONGEST_S)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    return rng.choice(np.array([row["duration"] for row in rows]), CLIPS)


def plan(durations_s: np.ndarray, **settings: Any) -> list[np.ndarray]:
    """Return the durations of the clips in every batch of an epoch."""
    planned = plan_epoch(durations_s, BatchingConfig(**settings), 0, 0)
    return [durations_s[list(planned[k])] for k in range(len(planned))]


def padding(batches: list[np.ndarray]) -> float:
    """Return padding as a share of all computed positions."""
    return 1 - sum(float(batch.sum()) for batch in batches) / sum(len(batch) * float(batch.max()) for batch in batches)


def sample(batches: list[np.ndarray], count: int) -> list[np.ndarray]:
    """Sort batches by their longest clip, and return ``count`` evenly spaced batches."""
    ordered = sorted(batches, key=lambda batch: float(batch.max()))
    places = (np.arange(count) + 0.5) * len(ordered) / count
    return [ordered[int(place)] for place in places]


Steps = dict[str, list[tuple[str, np.ndarray]]]
"""Name of a series of steps -> its steps. A step has a way (``plain`` or ``ours``) and the durations of its clips."""


def timed_rounds(bench: Bench, steps: Steps, rounds: int) -> dict[str, np.ndarray]:
    """Return the seconds ``[rounds, steps]`` of each series. In a round, the steps of all series alternate evenly."""
    for turns in steps.values():  # warm-up
        bench.step(*turns[len(turns) // 2])
    seconds = {name: np.zeros((rounds, len(turns))) for name, turns in steps.items()}
    for number in range(rounds):
        rng = np.random.default_rng(number)
        order = [
            ((turn + 0.5) / len(turns), name, index)
            for name, turns in steps.items()
            for turn, index in enumerate(rng.permutation(len(turns)))
        ]
        for _, name, index in sorted(order):
            seconds[name][number, index] = bench.step(*steps[name][index])
    return seconds


def minimum_of_rounds(seconds: np.ndarray) -> np.ndarray:
    """Return the fastest time of each step: ``[rounds, steps]`` -> ``[steps]``. Other work can only add time."""
    least: np.ndarray = seconds.min(0)
    return least


def same_clips(bench: Bench, record: Record, clips: int, count: int, rounds: int) -> None:
    """Compare steps with the same number of clips, and compute the possible gain."""
    record.say(f"## {clips} clips in every step")
    plans = {
        "plain": plan(bench.durations_s, max_clips=clips, pool_batches=1),
        "ours": plan(bench.durations_s, max_clips=clips),
    }
    sampled = {way: sample(batches, count) for way, batches in plans.items()}
    longest = float(bench.durations_s.max())
    grid = [longest * share for share in (0.04, 0.12, 0.25, 0.5, 0.75, 1.0)]
    steps: Steps = {way: [(way, batch) for batch in batches] for way, batches in sampled.items()}
    for way in plans:
        # One clip is slightly shorter, so that there is a mask as in other batches.
        steps[f"curve of {way}"] = [(way, np.array([top] * (clips - 1) + [0.95 * top])) for top in grid]
    seconds = timed_rounds(bench, steps, rounds)
    audio = {way: sum(float(batch.sum()) for batch in batches) for way, batches in sampled.items()}
    by_curve = {}
    for way, batches in sampled.items():
        least = minimum_of_rounds(seconds[f"curve of {way}"])
        # Fit relative errors, so that short and long steps have the same weight.
        curve = np.polyfit(grid, least, 2, w=1 / least)
        by_curve[way] = sum(float(np.polyval(curve, batch.max())) for batch in batches)
    rate = {way: audio[way] / float(minimum_of_rounds(seconds[way]).sum()) for way in plans}
    record.table(
        ("", "padding, 20,000 clips", "audio s/s, fastest of the rounds", "by round", "predicted by the curve"),
        [
            (
                way,
                f"{padding(plans[way]):.1%}",
                f"{rate[way]:.1f}",
                spread((audio[way] / seconds[way].sum(1)).tolist(), 1),
                f"{audio[way] / by_curve[way]:.1f}",
            )
            for way in plans
        ],
    )
    gain = rate["ours"] / rate["plain"]
    gains = (seconds["plain"].sum(1) / audio["plain"]) / (seconds["ours"].sum(1) / audio["ours"])
    bound = (by_curve["plain"] / audio["plain"]) / (by_curve["ours"] / audio["ours"])
    unpadded = (1 - padding(plans["ours"])) / (1 - padding(plans["plain"]))
    record.say(
        f"Speed of ours / plain: {gain:.2f}, by round {spread(gains.tolist())}; {rounds} rounds of {count} batches "
        f"each. The bound is {bound:.2f}. Of this bound, less padding alone allows a factor of about {unpadded:.2f}, "
        "and fewer logits allow the rest."
    )
    record.say()
    record.bar(f"{gain / bound:.1%} of the bound is reached, at least {GAIN_SHARE:.0%}", gain >= GAIN_SHARE * bound)
    share = padding(plans["ours"])
    record.bar(f"padding of ours {share:.1%}, at most {PADDING:.0%}", share <= PADDING)


def largest(bench: Bench, bound: float) -> tuple[int, float]:
    """Return the sizes of the largest batches whose steps fit into ``bound`` bytes.

    Returns:
        For the plain loop, the number of clips. For our loop, the seconds of audio, including padding.
    """
    longest = float(bench.durations_s.max())

    def bytes_of(way: str, duration_s: float, few: int, many: int) -> tuple[float, float]:
        """Return the bytes of a step that do not depend on the number of clips, and the bytes per clip."""
        low, high = bench.peak_bytes(way, few, duration_s), bench.peak_bytes(way, many, duration_s)
        return low - few * (high - low) / (many - few), (high - low) / (many - few)

    constant, each = bytes_of("plain", longest, 2, 4)
    clips = max(1, int((bound - constant) / each))
    while clips > 1 and bench.peak_bytes("plain", clips, longest) > bound:
        clips -= 1
    budgets = []
    # Test several durations, because the memory per second of audio differs: short clips have more prompts per second,
    # and long clips need more memory for attention.
    for share in (1.0, 0.35, 0.1):
        constant, each = bytes_of("ours", longest * share, 2, 6)
        budgets.append((bound - constant) / each * longest * share)
    budget = min(budgets)
    while budget >= 2 * longest and bench.peak_bytes("ours", int(budget / longest), longest) > bound:
        budget *= 0.97
    return clips, max(budget, longest)


def same_memory(bench: Bench, record: Record, bound: float, count: int, rounds: int) -> None:
    """Compare the loops with the largest batches that fit the same memory."""
    clips, budget = largest(bench, bound)
    record.say(f"## {bound / GIB:.2f} GiB for a step")
    record.say(
        f"Plain: {clips} clips per step, because at most {clips} clips of {bench.durations_s.max():g} s fit. Ours: "
        f"{budget:.0f} s of audio per step, including padding, with any number of clips."
    )
    plans = {
        "plain": plan(bench.durations_s, max_clips=clips, pool_batches=1),
        "ours": plan(bench.durations_s, max_clips=512, max_padded_s=budget),
        "plain, clip by clip": [np.array([duration]) for duration in bench.durations_s],
    }
    counts = {"plain": count, "ours": count, "plain, clip by clip": 4 * count}
    sampled = {name: sample(batches, counts[name]) for name, batches in plans.items()}
    steps: Steps = {
        name: [("ours" if name == "ours" else "plain", batch) for batch in batches] for name, batches in sampled.items()
    }
    seconds = timed_rounds(bench, steps, rounds)
    audio = {name: sum(float(batch.sum()) for batch in batches) for name, batches in sampled.items()}
    rate = {name: audio[name] / float(minimum_of_rounds(seconds[name]).sum()) for name in plans}
    host = Host.of(bench.device, bench.recipe.execution, bench.recipe.training)
    work = work_of(bench.recipe, "cuda" if bench.device.type == "cuda" else "cpu")
    flops = {
        name: sum(work.flops(batch, [bench.tokens(duration) for duration in batch]) for batch in batches)
        for name, batches in sampled.items()
    }
    record.table(
        ("", "clips per step", "padding", "audio hours per hour, fastest of the rounds", "by round", "MFU"),
        [
            (
                name,
                f"{np.mean([len(batch) for batch in batches]):.1f}",
                f"{padding(batches):.1%}",
                f"{rate[name]:.1f}",
                spread((audio[name] / seconds[name].sum(1)).tolist(), 1),
                f"{flops[name] * rate[name] / audio[name] / host.peak_flops:.1%}",
            )
            for name, batches in plans.items()
        ],
    )
    record.say(
        f"MFU is the share of the peak of {host.peak_flops / 1e12:.3g} TFLOPS ({host.peak_source}). FLOPs are counted "
        "as in tiny-audio plan, without padding and avoidable logits."
    )
    gain = rate["ours"] / rate["plain"]
    gains = (seconds["plain"].sum(1) / audio["plain"]) / (seconds["ours"].sum(1) / audio["ours"])
    record.say(
        f"Speed of ours / plain: {gain:.2f}, by round {spread(gains.tolist())}; {rounds} rounds of {count} batches "
        "each."
    )
    record.say()
    record.bar(f"{gain:.2f} times the audio, at least {SPEEDUP}", gain >= SPEEDUP)
    share = padding(plans["ours"])
    record.bar(f"padding of ours {share:.1%}, at most {PADDING:.0%}", share <= PADDING)
    if gain < SPEEDUP:
        for name in ("plain", "ours"):
            record.say(f"Where the time of a step goes, {name}:")
            record.say(profile(bench, *steps[name][len(steps[name]) // 2]))


def profile(bench: Bench, way: str, batch: np.ndarray) -> str:
    """Return the operations that take the most time, as an indented table."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if bench.device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds, acc_events=True) as profiled:
        bench.step(way, batch)
    key = f"self_{bench.device.type}_time_total"
    table = profiled.key_averages().table(sort_by=key, row_limit=12, max_name_column_width=40)
    return "\n".join(f"    {line}" for line in table.splitlines())


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory, like a GPU's allocator. Otherwise, zeroing new pages would take much time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def document_of(arguments: argparse.Namespace, longest_s: float) -> dict[str, Any]:
    """Return the recipe as a mapping. Its data is never read."""
    if arguments.full_size:
        kernel = {"attention": arguments.attention}
        base = merged(merged(CARD, CARD_RANKS), {"encoder": kernel, "decoder": kernel})
    else:
        base = merged(SMALL, SIZES["tiny" if arguments.tiny else "small"])
        base = merged(base, {"encoder": {"freeze": True}, "decoder": {"freeze": True}})
        base = merged(base, CARD_RANKS)
    device = {"device": arguments.device}
    return merged(base, {"data": {"max_duration_s": longest_s}, "execution": device})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--full-size", action="store_true", help="the model card's recipe instead of a small model")
    parser.add_argument("--attention", default="sdpa", help="at full size: sdpa or flash_attention_2")
    parser.add_argument("--tiny", action="store_true", help="a very small model, only to test the script")
    parser.add_argument("--manifest", type=Path, help="use the durations of the clips in this manifest")
    parser.add_argument("--clips", type=int, default=8, help="clips per step in the first comparison")
    parser.add_argument("--batches", type=int, default=6, help="batches of each loop in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-gib", type=float, default=1.0, help="memory of a step, without the weights")
    parser.add_argument("--output", type=Path, help="also write the results to this page")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        keep_freed_memory()
    durations_s = drawn_durations(arguments.manifest)
    bench = Bench(document_of(arguments, float(durations_s.max())), arguments.device, durations_s)
    bench.check_equal()
    record = Record("Training: planned batches and logits only at labels, compared with a plain loop", arguments.output)
    sizes = {part: sum(tensor.numel() for tensor in getattr(bench.model, part).parameters()) for part in PARTS}
    record.say(
        "Random weights: "
        + ", ".join(
            f"{part} {bench.recipe.model_dump()[part]['name']} {size / 1e6:.1f} M" for part, size in sizes.items()
        )
        + f" parameters, {sum(tensor.numel() for tensor in bench.trained) / 1e6:.1f} M of them trained; "
        f"{bench.vocabulary:,} token ids; {bench.recipe.training.precision}. Text: {CHARACTERS_PER_S} characters "
        f"per second, {CHARACTERS_PER_TOKEN} per token."
    )
    where = (
        arguments.manifest.name
        if arguments.manifest
        else (
            f"a log-normal distribution as in large mixed corpora (median {MEDIAN_S:g} s, sigma {SIGMA:g}), limited to "
            f"{SHORTEST_S:g} to {LONGEST_S:g} s"
        )
    )
    record.say(f"Durations of {CLIPS:,} clips, from {where}:")
    record.table(
        ("quantile", *(f"{quantile:.0%}" for quantile in QUANTILES), "mean"),
        [("s", *(f"{value:.1f}" for value in np.quantile(durations_s, QUANTILES)), f"{durations_s.mean():.1f}")],
    )
    same_clips(bench, record, arguments.clips, arguments.batches, arguments.rounds)
    same_memory(bench, record, arguments.memory_gib * GIB, arguments.batches, arguments.rounds)
    return record.write()


if __name__ == "__main__":
    sys.exit(main())
