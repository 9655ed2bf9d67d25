"""The golden files with texts of the command line. To regenerate them, run ``python -m tests.commands.golden``."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from tests.support.golden import without_part_names
from tests.support.paths import ROOT
from tiny_audio.cli import app, main

HELP, MISTAKES = (Path(__file__).with_name(name) for name in ("help.txt", "mistakes.txt"))

COMMANDS = (
    "walk",
    "run",
    "run nowhere.yaml",
    "run recipes",
    "run recipes/quickstart.yaml training.step=5",
    "run recipes/quickstart.yaml training.steps=-5",
    "run recipes/quickstart.yaml training.steps",
    "run recipes/tiny_audio.yaml training.steps.more=5",
    "validate recipes/quickstart.yaml encoder.name=wisper",
    "validate recipes/quickstart.yaml projector.stack=9000",
    "validate recipes/quickstart.yaml execution.device=tpu training.learning_rate=0 data.train={}",
    "list projector",
    "list --jsn",
    "reference projector",
    "plan recipes/tiny_audio.yaml --gpu a4",
    "probe recipes/quickstart.yaml --durations long",
    "sweep recipes/quickstart.yaml projector=swiglu,",
    "compare runs/one",
    "compare runs/one runs/two --html nowhere/page.html",
    "rescore nowhere.jsonl",
    "bench projectors --seeds 1",
    "bench projectors --device tpu",
    "transcribe model",
    "transcribe nowhere clip.wav",
    "transcribe nowhere clip.wav --words",
    "transcribe nowhere clip.wav --format pdf",
    "transcribe nowhere clip.wav --json --format srt",
    "transcribe nowhere clip.wav --overwrite",
    "evaluate model",
    "evaluate provider:deepgrm --data recipes/quickstart.yaml",
    "export nowhere model",
    "export nowhere model --weights some",
    "push nowhere me/model",
)


def help_texts() -> str:
    """Return what ``--help`` prints for every command, 100 columns wide."""
    return "\n\n".join(_help(typer.main.get_command(app), "tiny-audio")) + "\n"


def _help(command: Any, name: str) -> Iterator[str]:
    context = command.make_context(name, [], resilient_parsing=True, terminal_width=100)
    yield f"$ {name} --help\n{command.get_help(context)}"
    for own, subcommand in getattr(command, "commands", {}).items():
        yield from _help(subcommand, f"{name} {own}")


def mistakes() -> str:
    """Return the messages and exit codes of commands with wrong arguments."""
    return without_part_names("\n".join(f"$ tiny-audio {command}\n{_run(command)}" for command in COMMANDS))


def _run(command: str) -> str:
    before, output = os.getcwd(), io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stderr(output),
        contextlib.redirect_stdout(output),
    ):
        (Path(folder) / "recipes").symlink_to(ROOT / "recipes")
        os.chdir(folder)
        try:
            code = main(command.split())
        finally:
            os.chdir(before)
    return f"{output.getvalue().replace(folder, 'FOLDER')}[exit code {code}]\n"


if __name__ == "__main__":
    HELP.write_text(help_texts(), encoding="utf-8")
    MISTAKES.write_text(mistakes(), encoding="utf-8")
