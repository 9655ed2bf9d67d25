"""``tiny-audio recipes``: list, print or copy the recipes that ship with the package."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import asdict
from pathlib import Path

from tiny_audio.commands._output import print_json
from tiny_audio.config import UserError
from tiny_audio.runtime.shipped_recipes import read_header, shipped_recipes, text_to_edit


def recipes(name: str | None, copy: Path | None, *, as_json: bool) -> None:
    """List all recipes, or print or copy one.

    Raises:
        UserError: no recipe of this name ships with the package, or the copy cannot be written.
    """
    if name is None:
        if copy is not None:
            raise UserError(f"--copy {copy} needs the name of a recipe: tiny-audio recipes NAME --copy {copy}")
        _list(as_json=as_json)
    elif as_json:
        raise UserError(f"--json lists all recipes; to print or copy {name}, remove --json")
    elif copy is None:
        print(text_to_edit(name), end="")
    else:
        path = _copy(name, copy)
        print(f"{path} is a copy of {name}; edit it, then: tiny-audio run {path}")


def _list(*, as_json: bool) -> None:
    headers = [read_header(name, path) for name, path in shipped_recipes().items()]
    if as_json:
        print_json([asdict(header) for header in headers])
        return
    indent = 2 + max(len(header.name) for header in headers)
    width = shutil.get_terminal_size().columns
    for header in headers:
        print(textwrap.fill(header.name.ljust(indent) + header.claim, width, subsequent_indent=" " * indent))
        hardware = f"Hardware: {header.hardware}"
        print(textwrap.fill(hardware, width, initial_indent=" " * indent, subsequent_indent=" " * indent))


def _copy(name: str, to: Path) -> Path:
    """Write the recipe to the new file ``to``, or to a new file in the folder ``to``. Return the file's path."""
    text = text_to_edit(name)
    path = to / f"{Path(name).stem}.yaml" if to.is_dir() else to
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{path} already exists; give another path after --copy") from None
    except FileNotFoundError:
        raise UserError(f"--copy {to}: the folder {path.absolute().parent} does not exist; create it first") from None
    return path
