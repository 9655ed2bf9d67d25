"""The command line: read arguments and return exit codes. The commands are implemented in ``tiny_audio/commands/``.

Large libraries are imported only when a command runs, so that ``--help`` is fast.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from tiny_audio import __version__
from tiny_audio.commands import arguments as arg
from tiny_audio.commands.bench.cli import bench_app
from tiny_audio.commands.exit_codes import exit_code_of
from tiny_audio.commands.model_cli import model_app
from tiny_audio.runtime.streams import prepare_streams

app = typer.Typer(
    name="tiny-audio",
    help="Build speech recognizers from an encoder, a projector and a decoder.",
    epilog="Start here: tiny-audio run quickstart",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tiny-audio {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the name of a command."""


@app.command()
def run(recipe: arg.RecipePath, overrides: arg.Overrides = None, output_dir: arg.RunFolder = None) -> None:
    """Train, export, evaluate and report. The same command continues an interrupted run.

    Example: tiny-audio run quickstart training.seed=1 --output-dir runs/seed1
    """
    from tiny_audio.commands.console import run

    run(recipe, overrides or [], output_dir)


@app.command()
def sweep(
    recipe: arg.RecipePath,
    overrides: arg.Grid,
    output_dir: arg.SweepFolder = None,
    dry_run: Annotated[bool, Option("--dry-run", help="List the runs without starting them.")] = False,
) -> None:
    """Run a grid of overrides, then compare the runs. The same command continues an interrupted sweep.

    Example: tiny-audio sweep quickstart projector=swiglu,conv,qformer training.seed=0,1,2
    """
    from tiny_audio.commands.sweep import Sweep

    planned = Sweep(recipe, overrides, output_dir)
    if dry_run:
        print(planned.listing())
    else:
        planned.complete()


@app.command()
def compare(
    runs: arg.Runs,
    set_name: Annotated[
        str | None, Option("--set", help="Evaluation set. Default: all sets that the runs have in common.")
    ] = None,
    common: Annotated[bool, Option("--common", help="Use only the clips that all runs have.")] = False,
    normalizer: Annotated[
        str | None, Option(help=f"Text normalizer: {arg.NORMALIZERS}. Default: that of the runs.")
    ] = None,
    group_by: arg.GroupBy = None,
    html: arg.HtmlPage = None,
    as_json: arg.AsJson = False,
) -> None:
    """Compare runs on the same clips. Prints paired differences of WER with confidence intervals.

    Example: tiny-audio compare runs/swiglu runs/conv --html comparison.html
    """
    from tiny_audio.commands.compare import compare

    compare(runs, set_name, common=common, normalizer=normalizer, group_by=group_by, html=html, as_json=as_json)


@app.command()
def validate(recipe: arg.RecipePath, overrides: arg.Overrides = None) -> None:
    """Check a recipe and report all errors in it. Needs no network, data or GPU."""
    from tiny_audio.commands.validate import validate

    validate(recipe, overrides or [])


@app.command()
def doctor(recipe: arg.OptionalRecipe = None, overrides: arg.Overrides = None) -> None:
    """Check this machine. With a recipe, also check its checkpoints and data."""
    from tiny_audio.commands.doctor import doctor

    doctor(recipe, overrides or [])


@app.command()
def show(recipe: arg.RecipePath, overrides: arg.Overrides = None, as_json: arg.AsJson = False) -> None:
    """Print a recipe with all defaults, then a table of its parts.

    The table lists the parameters, dimensions and frame rates of the parts.
    """
    from tiny_audio.commands.show import show

    show(recipe, overrides or [], as_json=as_json)


@app.command()
def plan(
    recipe: arg.RecipePath,
    overrides: arg.Overrides = None,
    gpu: Annotated[
        str | None, Option(help="A GPU (a40, h100, ...), or cpu for the CPU of this machine. Default: all known GPUs.")
    ] = None,
    price_per_hour: Annotated[
        float | None, Option(help="US dollars per hour. Default: an approximate price of the GPU.")
    ] = None,
    utilization: Annotated[float, Option(help="Share of the peak speed that training reaches.")] = 0.4,
    mean_clip_s: Annotated[
        float | None,
        Option(help="Mean clip duration in seconds. Default: max(data.max_duration_s / 2, data.min_duration_s)."),
    ] = None,
    as_json: arg.AsJson = False,
) -> None:
    """Estimate memory, time and money for a run. Needs no weights and no GPU.

    Example: tiny-audio plan tiny_audio --gpu a40
    """
    from tiny_audio.commands.plan import plan

    plan(recipe, overrides or [], gpu, price_per_hour, utilization, mean_clip_s, as_json=as_json)


@app.command()
def probe(
    recipe: arg.RecipePath,
    overrides: arg.Overrides = None,
    memory_gb: Annotated[float | None, Option(help="Memory limit in GiB. Default: the GPU's memory.")] = None,
    margin: Annotated[float, Option(help="Share of the memory to leave free.")] = 0.1,
    durations: Annotated[
        str | None,
        Option(
            help="Clip durations to try, in seconds, such as 5,10,20. Default: data.max_duration_s and 1/2, 1/4 and "
            "1/8 of it."
        ),
    ] = None,
    random_weights: Annotated[
        bool, Option("--random-weights", help="Use random weights instead of reading those of checkpoints.")
    ] = False,
    num_processes: Annotated[int, Option(help="Training processes, usually one per GPU.")] = 1,
    as_json: arg.AsJson = False,
) -> None:
    """Find the largest batches that fit into memory. Trains on synthetic batches.

    Prints a `batching` section for the recipe. On a CPU, --memory-gb is required.

    Example: tiny-audio probe tiny_audio_buckets --random-weights
    """
    from tiny_audio.commands.probe import probe

    probe(recipe, overrides or [], memory_gb, margin, durations, random_weights, num_processes, as_json=as_json)


@app.command()
def recipes(name: arg.ShippedRecipe = None, copy: arg.RecipeCopy = None, as_json: arg.AsJson = False) -> None:
    """List the recipes that ship with tiny-audio. With NAME, print that recipe or copy it for editing.

    Example: tiny-audio recipes laptop --copy mine.yaml
    """
    from tiny_audio.commands.recipes import recipes

    recipes(name, copy, as_json=as_json)


@app.command("list")
def list_parts(kind: arg.PartKind = None, as_json: arg.AsJson = False) -> None:
    """List the registered parts, including plugins."""
    from tiny_audio.commands.show import list_parts

    list_parts(kind, as_json=as_json)


@app.command()
def reference(
    kind: arg.PageKind = None,
    output_dir: Annotated[Path | None, Option(help="Write <kind>.md files there.", file_okay=False)] = None,
) -> None:
    """Print the reference pages as Markdown. They list all fields of recipes and parts, and all command options."""
    from tiny_audio.commands.reference import reference

    reference(kind, output_dir, app)


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes. Editors can use it to complete and check YAML."""
    from tiny_audio.commands.validate import print_schema

    print_schema()


# Added last, so that `tiny-audio --help` lists these commands last.
app.add_typer(model_app)
app.add_typer(bench_app, name="bench")


@functools.cache
def _command() -> Any:
    """Return the Click command of the whole program. It is built only once, because building it is slow."""
    return typer.main.get_command(app)


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code; see :func:`tiny_audio.commands.exit_codes.exit_code_of`."""
    # With this variable, PyTorch uses the CPU for operations that an Apple GPU does not support. PyTorch reads the
    # variable on import.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    prepare_streams()
    # Expand `~` here, because shells do not expand it in `--output-dir=~/a`.
    words = map(arg.expanded, sys.argv[1:] if arguments is None else arguments)
    return exit_code_of(lambda: _command()(args=list(words), prog_name="tiny-audio", standalone_mode=False))


if __name__ == "__main__":
    sys.exit(main())
