"""Arguments of ``tiny-audio bench``. This file has no slow imports, because ``--help`` imports it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from tiny_audio.commands.arguments import AsJson, Overrides, warn_of_local_recipe

bench_app = typer.Typer(help="Compare parts: their costs, and which one is better.", no_args_is_help=True)


@bench_app.command("projectors")
def bench_projectors(
    recipe: Annotated[
        Path | None,
        Argument(
            metavar="RECIPE",
            callback=warn_of_local_recipe,
            help="Provides the encoder and the decoder. Required with --train. Optional without --train: if it is left "
            "out, frames have 1280 channels and embeddings have 2048 channels.",
        ),
    ] = None,
    overrides: Overrides = None,
    variants: Annotated[
        str | None,
        Option(
            help="Projectors to compare, separated by commas. Each has one of three forms: a name (swiglu), a name "
            "with settings (conv:hidden_dim=512), or a label with a name and settings "
            "(wide=swiglu:stack=4+hidden_dim=16384). Or give a YAML file with a section `variants`, such as "
            "variants/projectors. Default: every registered projector."
        ),
    ] = None,
    do_train: Annotated[bool, Option("--train", help="Train every variant and compare word error rates.")] = False,
    durations: Annotated[str | None, Option(help="Clip durations in seconds. Default: 5,20.")] = None,
    batch_sizes: Annotated[str | None, Option(help="Numbers of clips in a batch. Default: 1,4.")] = None,
    max_time: Annotated[
        float | None,
        Option(
            help="Seconds to measure each case. A case is a projector, a clip duration, a batch size, and a forward "
            "pass with or without a backward pass. Default: 1.",
            min=0,
        ),
    ] = None,
    device: Annotated[str | None, Option(help="auto, cpu, cuda or mps. Default: auto.")] = None,
    steps: Annotated[
        int | None, Option(help="With --train: steps per variant and seed. Default: training.steps.", min=1)
    ] = None,
    seconds: Annotated[
        float | None, Option(help="With --train: seconds of training per variant and seed, instead of steps.", min=1)
    ] = None,
    seeds: Annotated[str | None, Option(help="With --train: seeds. Default: 0,1,2.")] = None,
    baseline: Annotated[
        str | None,
        Option(
            help="With --train: the variant that the others are compared with. Default: the recipe's projector if it "
            "is a variant, else the first variant."
        ),
    ] = None,
    controls: Annotated[
        bool,
        Option(
            "--controls",
            help="With --train: also check the benchmark itself. The baseline, trained again with other seeds, must "
            "not differ significantly. Degraded variants must be worse.",
        ),
    ] = False,
    no_feature_cache: Annotated[
        bool,
        Option(
            "--no-feature-cache", help="With --train: run the encoder at every step, instead of storing its frames."
        ),
    ] = False,
    without_decoder: Annotated[
        bool,
        Option(
            "--without-decoder",
            help="With --train: train with the alignment loss alone, and score the tokens that are most similar to the "
            "audio embeddings. This is much faster.",
        ),
    ] = False,
    output_dir: Annotated[
        Path | None,
        Option(help="Folder for results. Default: runs/bench-<recipe> with --train, otherwise none.", file_okay=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare projectors. Without --train, measures the costs of each projector. With --train, trains every projector
    with the same recipe and budget, and compares their word error rates.

    In the example below, bench_projectors is a recipe, and variants/projectors is a file with projectors to compare.
    Both ship with tiny-audio.

    Example: tiny-audio bench projectors bench_projectors --variants variants/projectors --train
    """
    from tiny_audio.commands.bench.command import Options, bench_projectors

    options = Options(
        variants,
        durations,
        batch_sizes,
        max_time,
        device,
        steps,
        seconds,
        seeds,
        baseline,
        controls,
        no_feature_cache,
        without_decoder,
    )
    bench_projectors(recipe, overrides or [], options, train=do_train, output_dir=output_dir, as_json=as_json)
