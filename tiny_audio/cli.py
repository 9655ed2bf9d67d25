"""The command line: reads arguments, calls the library, maps what it raises to exit codes.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tiny_audio import __version__
from tiny_audio.config import FollowedError, RegistryError, RunFailed, Stopped, UserError

DONE, FAILED, USERS_MISTAKE, STOPPED = 0, 1, 2, 3

app = typer.Typer(
    name="tiny-audio",
    help="Build speech recognizers out of swappable parts: encoder, projector, decoder.",
    epilog="Start here: tiny-audio run recipes/quickstart.yaml",
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
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and leave.")
    ] = False,
) -> None:
    """What holds before any command."""


RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, such as recipes/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Changes to the recipe: training.steps=100 sets a field, projector=swiglu a whole section.",
    ),
]
ModelDir = Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A run's model/ folder, or an exported one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Where the run goes. Default: runs/<recipe>-<content hash>.", file_okay=False)
    ] = None,
) -> None:
    """Train, export, evaluate and report. The same command continues an interrupted run.

    Example: tiny-audio run recipes/quickstart.yaml training.seed=1 --output-dir runs/seed1
    """
    from tiny_audio.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    folder = output_dir or Path("runs") / f"{recipe.stem}-{loaded.run_id()}"
    from tiny_audio.commands.console import ConsoleCallback
    from tiny_audio.commands.run import Run
    from tiny_audio.training.world import launched_first

    with ConsoleCallback(loaded.training.steps) as callback:
        if launched_first():
            callback.note(f"run {loaded.run_id()} in {folder}")
        report = Run(loaded, recipe.stem, folder, callback).complete()
        if report is not None:
            callback.finish(report, folder)


@app.command()
def sweep(
    recipe: RecipePath,
    overrides: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE,VALUE...",
            help="Every combination is a run: projector=swiglu,conv training.seed=0,1. A key with one value holds for "
            "all. Commas in brackets or quotes are part of a value.",
        ),
    ],
    output_dir: Annotated[
        Path | None, typer.Option(help="Where the runs go. Default: sweeps/<recipe>-<content hash>.", file_okay=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs, and start none.")] = False,
) -> None:
    """Run a grid of overrides, then compare. The same command continues an interrupted sweep.

    Example: tiny-audio sweep recipes/quickstart.yaml projector=swiglu,conv,qformer training.seed=0,1,2
    """
    from tiny_audio.commands.sweep import Sweep

    planned = Sweep(recipe, overrides, output_dir)
    if dry_run:
        print(planned.listing())
    else:
        planned.complete()


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders; the first is the baseline.")],
    set_name: Annotated[
        str | None, typer.Option("--set", help="The evaluation set. Default: all that every run was scored on.")
    ] = None,
    common: Annotated[
        bool, typer.Option("--common", help="Where sets hold different clips, use those that all runs have.")
    ] = False,
    normalizer: Annotated[
        str | None,
        typer.Option(
            help="none, lower, basic, whisper_english or open_asr_leaderboard. Default: as the runs were scored."
        ),
    ] = None,
    group_by: Annotated[
        str | None, typer.Option(help="Column whose groups are resampled whole. Default: as the runs were scored.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page there too: plots, slices, sentences.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether one run is better than another. Paired differences of word error rates, and what changed.

    Example: tiny-audio compare runs/swiglu runs/conv --html comparison.html
    """
    from tiny_audio.analysis.compare import compare_folders, comparison_table
    from tiny_audio.analysis.report import render_comparison

    if html is not None and not html.absolute().parent.is_dir():
        raise UserError(f"--html {html}: there is no folder {html.absolute().parent}; make it first")
    comparison = compare_folders(runs, set_name=set_name, common=common, normalizer_name=normalizer, group_by=group_by)
    if html is not None:
        html.write_text(render_comparison(comparison), encoding="utf-8")
    print(json.dumps(comparison, indent=1, ensure_ascii=False) if as_json else comparison_table(comparison))


bench = typer.Typer(help="Compare parts: what they cost, and whether one is better.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command("projectors")
def bench_projectors(
    recipe: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RECIPE]", help="Says what the projectors stand between; default 1280 to 2048 channels."
        ),
    ] = None,
    overrides: Overrides = None,
    variants: Annotated[
        str | None,
        typer.Option(
            help="swiglu,conv:hidden_dim=512,wide=swiglu:stack=4+hidden_dim=16384, or a YAML file with a section "
            "`variants`. Default: every projector there is."
        ),
    ] = None,
    do_train: Annotated[
        bool, typer.Option("--train", help="Train every variant under the recipe, and compare word error rates.")
    ] = False,
    durations: Annotated[str | None, typer.Option(help="Seconds of a clip. Default: 5,20.")] = None,
    batch_sizes: Annotated[str | None, typer.Option(help="Clips in a batch. Default: 1,4.")] = None,
    max_time: Annotated[float | None, typer.Option(help="Seconds of rounds for each case. Default: 1.", min=0)] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda. Default: auto.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="With --train: steps of each. Default: the recipe's.", min=1)
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="With --train: seconds of training of each, instead of steps.", min=1)
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="With --train. Default: 0,1,2.")] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="With --train: whom the others are compared with. Default: the recipe's own projector."),
    ] = None,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls",
            help="With --train: try the benchmark itself, on the baseline again and on what is made worse on purpose.",
        ),
    ] = False,
    no_feature_cache: Annotated[
        bool, typer.Option("--no-feature-cache", help="With --train: run the encoder at every step.")
    ] = False,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where results go. Default: runs/bench-<recipe> with --train, otherwise nowhere.", file_okay=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare projectors. Their cost alone, or with --train their word error rates under one recipe and budget.

    Example: tiny-audio bench projectors recipes/bench_projectors.yaml --variants benchmarks/projectors.yaml --train
    """
    from tiny_audio.commands.bench.command import Options, benchmark_projectors
    from tiny_audio.commands.bench.tables import results_table, timings_table

    options = Options(
        variants, durations, batch_sizes, max_time, device, steps, seconds, seeds, baseline, controls, no_feature_cache
    )
    results = benchmark_projectors(recipe, overrides or [], options, do_train, output_dir)
    if as_json:
        print(json.dumps(results, indent=1, ensure_ascii=False))
    else:
        print(results_table(results) if do_train else timings_table(results))


@app.command()
def validate(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Check a recipe, anywhere: no network, no data, no GPU needed.

    Names every mistake at once, with its place and what is allowed there.
    """
    from tiny_audio.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    parts = ", ".join(part.name for part in (loaded.encoder, loaded.projector, loaded.decoder))
    print(f"{recipe} is valid: {parts}; {loaded.training.steps} steps; run id {loaded.run_id()}")


@app.command()
def doctor(
    recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE]")] = None, overrides: Overrides = None
) -> None:
    """Look at this machine and at what a recipe needs of it. Its real data and checkpoints are read."""
    from tiny_audio.commands.doctor import examine
    from tiny_audio.recipe import load_recipe

    healthy = True
    for finding in examine(load_recipe(recipe, overrides or []) if recipe else None):
        print(finding, flush=True)
        healthy = healthy and not finding.is_problem
    if not healthy:
        raise UserError("mend what is marked ✗ before running this recipe here")


@app.command()
def show(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print the resolved recipe and what it builds. Of each part: class, parameters, trainable ones, width and rate."""
    from tiny_audio.commands.show import describe_recipe, print_description
    from tiny_audio.recipe import load_recipe

    description = describe_recipe(load_recipe(recipe, overrides or []))
    if as_json:
        print(json.dumps(description, indent=1))
    else:
        print_description(description)


@app.command()
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    gpu: Annotated[
        str | None, typer.Option(help="One machine: a40, h100, …, or cpu for this one. Default: compare all GPUs.")
    ] = None,
    price_per_hour: Annotated[float | None, typer.Option(help="US dollars. Default: a list price.")] = None,
    utilization: Annotated[float, typer.Option(help="Share of the peak speed that training reaches.")] = 0.4,
    mean_clip_s: Annotated[
        float | None, typer.Option(help="Mean duration of the clips. Default: half of data.max_duration_s.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a recipe costs before it runs: memory, time, money. No weights, no network, no GPU needed.

    Example: tiny-audio plan recipes/tiny_audio.yaml --gpu a40
    """
    from tiny_audio.plan import plan_recipe
    from tiny_audio.plan.table import print_plan
    from tiny_audio.recipe import load_recipe

    planned = plan_recipe(
        load_recipe(recipe, overrides or []),
        gpu=gpu,
        price_per_hour=price_per_hour,
        utilization=utilization,
        mean_clip_s=mean_clip_s,
    )
    if as_json:
        print(json.dumps(planned.as_json(), indent=1))
    else:
        print_plan(planned)


@app.command()
def probe(
    recipe: RecipePath,
    overrides: Overrides = None,
    memory_gb: Annotated[
        float | None, typer.Option(help="GiB to fit into. Default: all of the GPU's; a CPU has no default.")
    ] = None,
    margin: Annotated[float, typer.Option(help="Share of the memory to leave free.")] = 0.1,
    durations: Annotated[
        str | None, typer.Option(help="Seconds of clips to try. Default: data.max_duration_s, halved three times.")
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Read no checkpoint's weights; they take as much memory.")
    ] = False,
    num_processes: Annotated[
        int, typer.Option(help="Processes that will train together, such as one per GPU; a batch is of all of them.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Find the largest batches that fit, by trying. Prints the budget to put into the recipe.

    Example: tiny-audio probe recipes/tiny_audio_buckets.yaml --random-weights
    """
    from tiny_audio.commands.probe import probe_recipe, probe_table
    from tiny_audio.recipe import load_recipe

    try:
        seconds = None if durations is None else [float(duration) for duration in durations.split(",")]
    except ValueError:
        raise UserError(f"--durations {durations!r} are no numbers of seconds; give some such as 5,10,20") from None
    probed = probe_recipe(
        load_recipe(recipe, overrides or []),
        memory_gb=memory_gb,
        margin=margin,
        durations_s=seconds,
        random_weights=random_weights,
        num_processes=num_processes,
    )
    print(json.dumps(probed.as_json(), indent=1) if as_json else probe_table(probed))


@app.command("list")
def list_parts(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help="encoders, projectors, decoders or sources; default all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the parts there are, those of installed plugins included."""
    from tiny_audio.commands.show import list_registered, print_registered

    registered = list_registered(kind)
    if as_json:
        print(json.dumps(registered, indent=1))
    else:
        print_registered(registered)


@app.command()
def reference(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help="encoders, projectors, decoders or sources; default all.")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Write <kind>.md files there instead of printing.", file_okay=False)
    ] = None,
) -> None:
    """Print what a recipe can say about each part, as Markdown. Plugins included."""
    from tiny_audio.commands.reference import reference_page, write_reference
    from tiny_audio.commands.show import registries_of

    registries = registries_of(kind)
    if output_dir is not None:
        for page in write_reference(registries, output_dir):
            print(page)
    else:
        print("\n".join(reference_page(*item) for item in registries.items()), end="")


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes. For editors that complete and check YAML."""
    from tiny_audio.recipe import recipe_schema

    print(json.dumps(recipe_schema(), indent=1))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or that of an exported model.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where it goes; an earlier export is replaced.")],
    merge_lora: Annotated[
        bool, typer.Option("--merge-lora", help="Fold adapters into the weights; loading then needs no peft.")
    ] = False,
    weights: Annotated[
        str,
        typer.Option(
            help="all: the folder needs nothing else. trained: only what was trained, and the commits of the base "
            "models, which are fetched on loading."
        ),
    ] = "all",
) -> None:
    """Write a run's model as a Hugging Face folder. It loads without this package.

    Example: tiny-audio export runs/mine my-model --merge-lora
    """
    from tiny_audio.export.command import export_run

    done = export_run(run, folder, merge_lora=merge_lora, weights=weights)
    merged = f"; adapters of {done['merged_layers']} layers merged" if merge_lora else ""
    print(f"{folder}: {done['files']} files, {done['bytes'] / 1e6:,.1f} MB{merged}")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An exported model, or a finished run.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the Hugging Face hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Upload an exported model to the Hugging Face hub. The token is that of HF_TOKEN, or of `hf auth login`.

    Example: HF_TOKEN=hf_... tiny-audio push my-model me/my-model --private
    """
    from tiny_audio.export.push import push_folder

    print(push_folder(folder, repo, private=private))


@app.command()
def transcribe(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A run's folder, or that of an exported model.")],
    audio: Annotated[
        list[Path],
        typer.Argument(
            metavar="AUDIO...",
            help="Files of any length, folders of files, - for standard input. wav, flac, ogg, opus and mp3; with the "
            "FFmpeg program also m4a, mp4 and others.",
        ),
    ],
    output_format: Annotated[
        str | None, typer.Option("--format", help="text, json, srt, vtt or tsv. Default: text.", show_default=False)
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            help="Write a file there for each recording; what is there already is not done again.", file_okay=False
        ),
    ] = None,
    words: Annotated[
        bool, typer.Option("--words", help="Time each word; needs a model with a CTC head. Not for text.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do again what is in --output-dir.")] = False,
    no_guards: Annotated[
        bool, typer.Option("--no-guards", help="Write what the model writes, also in silence, noise and loops.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
) -> None:
    """Write what is said in audio files. As text, tables or subtitles; what cannot be read is named, the rest is done.

    Example: tiny-audio transcribe runs/mine recordings --format srt --output-dir subtitles
    """
    from tiny_audio.commands.transcribe import Options
    from tiny_audio.commands.transcribe import transcribe as transcribe_all

    if as_json and output_format not in (None, "json"):
        raise UserError(f"--json and --format {output_format} are both given; leave one out")
    options = Options("json" if as_json else output_format or "text", output_dir, words, not no_guards, overwrite)
    outcome = transcribe_all(model, audio, options, lambda text: print(text, end="", flush=True))
    if output_dir is not None:
        already = f", {outcome.skipped} were there already" if outcome.skipped else ""
        print(f"{outcome.done} written to {output_dir}{already}")
    for name in outcome.truncated:
        print(f"{name}: a text was cut at max_new_tokens, and words may be missing", file=sys.stderr)
    if outcome.errors:
        raise UserError("\n".join(outcome.errors))


@app.command()
def evaluate(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET...",
            help="A run's folder, a model's, a model on the hub (openai/whisper-small:language=en), or "
            "provider:NAME:key=value,... such as provider:deepgram:model=nova-3. Keys come from the environment.",
        ),
    ],
    data: Annotated[
        list[str],
        typer.Option(
            help="A manifest of JSON lines, a YAML file with sources, SOURCE:key=value,... such as "
            "librispeech:split=test.clean, or leaderboard or leaderboard/ami, ... Can be given again.",
        ),
    ],
    max_samples: Annotated[
        int | None, typer.Option(help="Clips of each set, drawn by their ids. Default: all.", min=1)
    ] = None,
    output_dir: Annotated[
        Path, typer.Option(help="Where hypotheses and scores go, for each target and set.", file_okay=False)
    ] = Path("runs/evaluation"),
    normalizer: Annotated[
        str,
        typer.Option(
            help="none, lower, basic, whisper_english or open_asr_leaderboard; for references and hypotheses alike."
        ),
    ] = "whisper_english",
    group_by: Annotated[
        str | None, typer.Option(help="Column, such as speaker, whose groups are resampled whole for the interval.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score models and providers on the same clips. The same command goes on, and asks again only for what failed.

    Example: tiny-audio evaluate runs/mine provider:pocketsphinx --data leaderboard/ami --max-samples 200
    """
    from tiny_audio.analysis.scoring import normalizer as normalizer_called
    from tiny_audio.evaluation.data import read_data
    from tiny_audio.evaluation.harness import comparison_commands, comparison_table, evaluate_targets
    from tiny_audio.evaluation.resolve import resolve_targets

    rule = normalizer_called(normalizer)
    found = resolve_targets(targets)
    sets = read_data(data, max_samples)
    errors: dict[str, Exception] = {}
    results = evaluate_targets(
        found,
        sets,
        output_dir,
        rule,
        group_by=group_by,
        note=lambda text: print(text, file=sys.stderr, flush=True),
        failed=lambda label, error: errors.update({label: error}),
    )
    if as_json:
        print(json.dumps(results, indent=1, ensure_ascii=False))
    elif results:
        print(comparison_table(results))
    for command in comparison_commands(results, output_dir):
        print(f"who is better, and where: {command}", file=sys.stderr)
    if errors:
        whose_fault = UserError if all(isinstance(error, UserError) for error in errors.values()) else RunFailed
        raise whose_fault("\n".join(str(error) for error in errors.values()))


@app.command()
def rescore(
    hypotheses: Annotated[
        list[Path],
        typer.Argument(
            metavar="HYPOTHESES...",
            help="JSON lines with audio_filepath, duration, text and pred_text; of several, the first is the baseline.",
        ),
    ],
    normalizer: Annotated[
        str, typer.Option(help="none, lower, basic, whisper_english or open_asr_leaderboard.")
    ] = "whisper_english",
    cost: Annotated[
        str, typer.Option(help="Of an edit: unit (1 each, as jiwer) or sclite (4/3/3, as NIST's sclite).")
    ] = "unit",
    group_by: Annotated[
        str | None, typer.Option(help="Column whose groups are resampled whole. Default: speaker, where there is one.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page there too, with the worst clips to hear.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score raw hypotheses, of one system or of several. No model is needed.

    Example: tiny-audio rescore runs/a/evaluation/test.jsonl other.jsonl --html page.html
    """
    from tiny_audio.analysis.rescore import audio_reader, rescore_table
    from tiny_audio.analysis.rescore import rescore as rescore_files

    if html is not None and not html.absolute().parent.is_dir():
        raise UserError(f"--html {html}: there is no folder {html.absolute().parent}; make it first")
    found = rescore_files(hypotheses, normalizer_name=normalizer, cost=cost, group_by=group_by)
    if html is not None:
        from tiny_audio.analysis.report import render_targets

        page = render_targets(found.summary, found.rows, found.alignments, audio_reader(hypotheses))
        html.write_text(page, encoding="utf-8")
    print(json.dumps(found.summary, indent=1, ensure_ascii=False) if as_json else rescore_table(found))


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 our failure, 2 the user's mistake, 3 stopped, state saved."""
    try:
        result: Any = app(args=arguments, prog_name="tiny-audio", standalone_mode=False)
    except FollowedError as error:  # the first process says why
        return _code(error.kind)
    except UserError as error:
        return _fail(f"error: {error}", USERS_MISTAKE)
    except (RunFailed, RegistryError) as error:
        return _fail(f"failed: {error}", FAILED)
    except (Stopped, KeyboardInterrupt) as error:
        return _fail(str(error) or "stopped", STOPPED)
    except OSError as error:  # a full disk, a folder that may not be written
        if error.filename is None and error.errno is None:
            raise
        return _fail(f"error: {error.strerror or error}: {error.filename or ''}".rstrip(": "), USERS_MISTAKE)
    except typer.Abort:
        return _fail("stopped", STOPPED)
    except Exception as error:
        # Click's own errors (an unknown option, a missing argument) carry their message and exit code.
        show_usage = getattr(error, "show", None)
        if show_usage is None:
            raise
        show_usage()
        return int(getattr(error, "exit_code", USERS_MISTAKE))
    return result if isinstance(result, int) else DONE


def _code(kind: type[Exception]) -> int:
    if issubclass(kind, Stopped):
        return STOPPED
    return USERS_MISTAKE if issubclass(kind, (UserError, OSError)) else FAILED


def _fail(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
