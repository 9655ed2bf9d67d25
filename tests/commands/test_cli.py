"""The command line: wrong arguments, help and exit codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import golden
from tests.commands.conftest import Output
from tests.conftest import (
    Document,
    changed,
)
from tests.support.paths import RECIPES
from tests.support.processes import in_a_process
from tiny_audio import commands

pytestmark = pytest.mark.usefixtures("one_thread")


def test_an_invalid_recipe_gives_one_message_and_exit_code_2(
    call: Output, document: Document, write_recipe: Callable[..., Path]
) -> None:
    path = write_recipe(changed(document, training__learning_rat=1e-3, data__max_duration_s=-1.0))
    code, out, err = call("run", path)
    assert (code, out) == (2, "")
    first, *others = err.splitlines()
    assert first.startswith(f"error: {path} ")
    assert len(others) == 2
    assert "data.max_duration_s" in err
    assert "training.learning_rat: " in err
    assert "'learning_rate'" in err


def test_the_installed_command_gives_the_same_output(call: Output) -> None:
    process = in_a_process("recipes", "no_such_recipe")
    assert (process.returncode, process.stdout, process.stderr) == call("recipes", "no_such_recipe")
    assert process.returncode == 2
    assert process.stderr.startswith("error: ")


@pytest.mark.parametrize("command", ["run", "validate", "show", "doctor"])
def test_a_missing_recipe_is_an_error(call: Output, tmp_path: Path, command: str) -> None:
    code, _, err = call(command, tmp_path / "none.yaml")
    assert code == 2
    assert err.startswith("error: ")
    assert "none.yaml" in err
    assert err.count("\n") == 1


def test_a_wrong_override_is_an_error(call: Output) -> None:
    code, out, err = call("validate", RECIPES / "quickstart.yaml", "training.step=5")
    assert (code, out) == (2, "")
    assert "training.step: unknown field; did you mean 'steps'?" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["walk"], "No such command 'walk'"),
        (["run"], "Missing argument 'RECIPE'"),
        (["list", "--jsn"], "No such option: --jsn"),
        (["transcribe", "model"], "Missing argument 'AUDIO'"),
        (["evaluate", "model"], "Missing option '--data'"),
    ],
)
def test_invalid_arguments_are_rejected(call: Output, arguments: list[str], message: str) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Usage: tiny-audio" in err


def test_every_command_has_help(call: Output) -> None:
    code, out, _ = call("--help")
    assert code == 0
    listed = out.split("Commands:")[1].split("\n\n")[0].strip().splitlines()
    assert "..." not in "".join(listed), "the first sentence of a help text is too long for the list of commands"
    names = {line.split()[0] for line in listed}
    assert {"run", "transcribe", "evaluate"} <= names
    files = {path.stem for path in Path(commands.__path__[0]).iterdir() if path.stem in names}
    assert names - files <= {"list", "schema"}, "each other command is in the file of its name"


@pytest.mark.parametrize(("path", "text"), [(golden.HELP, golden.help_texts), (golden.MISTAKES, golden.mistakes)])
def test_texts_equal_the_golden_files(path: Path, text: Callable[[], str]) -> None:
    """The golden files contain all help texts, and messages about wrong arguments. See :mod:`tests.commands.golden`."""
    assert text() == path.read_text(encoding="utf-8"), "run `make docs` and read the difference"


def test_an_unwritable_output_is_an_error(call: Output, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = call("run", trained / "recipe.yaml", "--output-dir", tmp_path / "file" / "run")
    assert code == 2
    assert err == f"error: Not a directory: {tmp_path / 'file' / 'run'}\n"


def test_the_version(call: Output) -> None:
    assert call("--version") == (0, "tiny-audio 0.1.0\n", "")
