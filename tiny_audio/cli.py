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
from tiny_audio.config import RegistryError, RunFailed, Stopped, UserError

DONE, FAILED, USERS_MISTAKE, STOPPED = 0, 1, 2, 3

app = typer.Typer(
    name="tiny-audio",
    help="Build speech recognisers out of swappable parts: encoder, projector, decoder.",
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
        Path | None, typer.Option(help="Where the run goes. Default: runs/<recipe>-<content hash>.")
    ] = None,
) -> None:
    """Train, export, evaluate and report. The same command continues an interrupted run.

    Example: tiny-audio run recipes/quickstart.yaml training.seed=1 --output-dir runs/seed1
    """
    from tiny_audio.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    folder = output_dir or Path("runs") / f"{recipe.stem}-{loaded.run_id()}"
    from tiny_audio.console import ConsoleWatcher
    from tiny_audio.run import Run

    with ConsoleWatcher(loaded.training.steps) as watcher:
        watcher.note(f"run {loaded.run_id()} in {folder}")
        report = Run(loaded, recipe.stem, folder, watcher).complete()
        watcher.finish(report, folder)


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
    from tiny_audio.doctor import examine
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
    from tiny_audio.recipe import load_recipe
    from tiny_audio.show import describe_recipe, print_description

    description = describe_recipe(load_recipe(recipe, overrides or []))
    if as_json:
        print(json.dumps(description, indent=1))
    else:
        print_description(description)


@app.command("list")
def list_parts(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help="encoders, projectors, decoders or sources; default all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the parts there are, those of installed plugins included."""
    from tiny_audio.show import list_registered, print_registered

    registered = list_registered(kind)
    if as_json:
        print(json.dumps(registered, indent=1))
    else:
        print_registered(registered)


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes. For editors that complete and check YAML."""
    from tiny_audio.recipe import recipe_schema

    print(json.dumps(recipe_schema(), indent=1))


@app.command()
def transcribe(
    model_dir: ModelDir,
    audio: Annotated[list[Path], typer.Argument(metavar="AUDIO...", help="wav, flac, ogg or mp3 files.")],
    as_json: AsJson = False,
) -> None:
    """Write what is said in audio files. One line each; files that cannot be read are named, the rest is done."""
    from tiny_audio.transcribe import transcribe_files

    rows = transcribe_files(model_dir, audio)
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        for row in rows:
            if row["error"] is None:
                print(f"{row['audio_filepath']}\t{row['text']}")
    failed = [row for row in rows if row["error"] is not None]
    if failed:
        raise UserError("\n".join(row["error"] for row in failed))


@app.command()
def evaluate(
    model_dir: ModelDir,
    manifest: Annotated[
        Path, typer.Argument(metavar="MANIFEST", help="JSON lines with audio_filepath, duration and text.")
    ],
    normalizer: Annotated[
        str, typer.Option(help="none, lower, basic or whisper_english; applied to references and hypotheses alike.")
    ] = "whisper_english",
    group_by: Annotated[
        str | None, typer.Option(help="Column, such as speaker, whose groups are resampled whole for the interval.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the raw hypotheses there, as JSON lines.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a model on a manifest. WER and CER with a 95 % interval, by the same scorer as at training."""
    from tiny_audio.transcribe import evaluate_manifest, print_scores

    if output is not None and not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.absolute().parent}; make it first")
    scores, hypotheses = evaluate_manifest(model_dir, manifest, normalizer, group_by)
    if output is not None:
        output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in hypotheses))
    if as_json:
        print(json.dumps(scores, indent=1))
    else:
        print_scores(manifest.stem, scores)


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 our failure, 2 the user's mistake, 3 stopped, state saved."""
    try:
        result: Any = app(args=arguments, prog_name="tiny-audio", standalone_mode=False)
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


def _fail(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
