"""``tiny-audio bench projectors``: check the options, then time the projectors or train them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tiny_audio.commands._output import print_json
from tiny_audio.commands.bench.tables import results_table, timings_table
from tiny_audio.commands.bench.timing import Effort, ProjectorShape, time_projectors
from tiny_audio.commands.bench.variants import Variants, read_variants
from tiny_audio.config import UserError
from tiny_audio.recipe import load_recipe
from tiny_audio.runtime.device import DEVICES
from tiny_audio.runtime.files import write_atomically
from tiny_audio.runtime.launch import check_alone
from tiny_audio.training.loop import Budget


@dataclass(frozen=True)
class Options:
    """The options of the command line. None or False means that an option was not given."""

    variants: str | None = None
    durations: str | None = None
    batch_sizes: str | None = None
    max_time: float | None = None
    device: str | None = None
    steps: int | None = None
    seconds: float | None = None
    seeds: str | None = None
    baseline: str | None = None
    controls: bool = False
    no_feature_cache: bool = False
    without_decoder: bool = False


_OF_TIMING = ("durations", "batch_sizes", "max_time", "device")
_OF_TRAINING = ("steps", "seconds", "seeds", "baseline", "controls", "no_feature_cache", "without_decoder")


def bench_projectors(
    recipe: Path | None,
    overrides: Sequence[str],
    options: Options,
    *,
    train: bool,
    output_dir: Path | None,
    as_json: bool,
) -> None:
    """Benchmark the variants and print the results."""
    results = benchmark_projectors(recipe, overrides, options, train, output_dir)
    if as_json:
        print_json(results)
    else:
        print(results_table(results) if train else timings_table(results))


def benchmark_projectors(
    recipe: Path | None, overrides: Sequence[str], options: Options, train: bool, output_dir: Path | None
) -> dict[str, Any]:
    """Time the variants, or train them.

    Returns:
        the content of ``timings.json`` or ``results.json``.

    Raises:
        UserError: an option does not apply to this kind of benchmark, or the benchmark cannot run.
    """
    for name in _OF_TIMING if train else _OF_TRAINING:
        given = getattr(options, name)
        if given is not None and given is not False:  # not `in (None, False)`, because 0 == False
            option = f"--{name.replace('_', '-')}"
            reason = "has no effect with --train; remove one of the two" if train else "needs --train"
            hint = "; with --train, set execution.device" if name == "device" else ""
            raise UserError(f"{option} {reason}{hint}")
    variants = read_variants(options.variants)
    if train:
        return _train(recipe, overrides, variants, options, output_dir)
    effort = Effort(
        durations_s=tuple(_numbers("--durations", options.durations, "5,20")),
        batch_sizes=tuple(map(int, _numbers("--batch-sizes", options.batch_sizes, "1,4", whole=True))),
        max_time_s=1.0 if options.max_time is None else options.max_time,
    )
    device = "auto" if options.device is None else options.device
    if device not in DEVICES:
        raise UserError(f"--device {device!r} is unknown; choose one of {', '.join(DEVICES)}")
    shape = ProjectorShape() if recipe is None else ProjectorShape.of(load_recipe(recipe, overrides))
    measured = time_projectors([*variants.compared, *variants.controls], shape, effort, device)
    if output_dir is not None:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(output_dir / "timings.json", json.dumps(measured, indent=1))
    return measured


def _train(
    recipe: Path | None, overrides: Sequence[str], variants: Variants, options: Options, output_dir: Path | None
) -> dict[str, Any]:
    from tiny_audio.commands.bench.training import Plan, TrainedBenchmark

    if recipe is None:
        raise UserError("--train needs a recipe, such as bench_projectors")
    check_alone("bench")
    if options.steps is not None and options.seconds is not None:
        raise UserError("--steps and --seconds both set the budget; give only one of them")
    budget = None
    if options.steps is not None or options.seconds is not None:
        budget = Budget(options.steps, options.seconds)
    seeds = _numbers("--seeds", options.seeds, "0,1,2", whole=True, least=0)
    plan = Plan(
        recipe,
        tuple(overrides),
        variants,
        tuple(map(int, seeds)),
        budget,
        options.baseline,
        options.controls,
        not options.no_feature_cache,
        options.without_decoder,
    )
    # Progress goes to stderr, because a script may read stdout.
    console = Console(stderr=True, emoji=False, highlight=False, soft_wrap=True, markup=False)
    folder = output_dir or Path("runs") / f"bench-{recipe.stem}"
    results = TrainedBenchmark(plan, folder, console.print).complete()
    console.print(f"results: {folder / 'results.json'}\npage:    {folder / 'results.html'}")
    return results


def _numbers(
    option: str, text: str | None, default: str, *, whole: bool = False, least: float | None = None
) -> list[float]:
    """Parse comma-separated numbers. If ``text`` is None, parse ``default``.

    Each number must be at least ``least``. If ``least`` is None, each number must be above 0 and below 1,000,000.
    """
    found = []
    text = default if text is None else text
    for item in text.split(","):
        try:
            number = int(item) if whole else float(item)
        except ValueError:
            number = -1
        if number < least if least is not None else not 0 < number < 1e6:
            kind = "whole numbers" if whole else "numbers"
            bound = "above 0 and below 1,000,000" if least is None else f"of at least {least:g}"
            raise UserError(f"{option}: {text!r} must be a comma-separated list of {kind} {bound}")
        found.append(number)
    return found
