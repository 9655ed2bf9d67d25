"""Find the recipes that ship with the package, in an installed package or in the folder ``recipes/`` of a clone."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tiny_audio.config import UserError
from tiny_audio.registry import did_you_mean

_SUFFIX = ".yaml"
_EXTENDS = re.compile(r"^extends: (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class RecipeHeader:
    """The content of the comment at the top of a recipe."""

    name: str
    claim: str
    """The first line of the comment."""
    hardware: str
    """The text after ``Hardware:`` in the comment. Empty if there is none."""


def shipped_files() -> dict[str, Path]:
    """Return the paths of the shipped recipes and of the files that they use, by name (``projectors/linear``)."""
    package = Path(__file__).parents[1]
    folder = next((one for one in (package / "recipes", package.parent / "recipes") if one.is_dir()), None)
    if folder is None:
        return {}
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob(f"*{_SUFFIX}"))}


def shipped_recipes() -> dict[str, Path]:
    """Return the paths of the recipes by name, without the files in ``variants/``."""
    return {name: path for name, path in shipped_files().items() if not name.startswith("variants/")}


def find_file(given: str, folder: Path = Path(), but: Path | None = None) -> Path:
    """Find the file with this path, or else the shipped file with this name. The suffix may be omitted.

    Args:
        given: a path or a name.
        folder: the folder to which relative paths refer.
        but: the file that contains ``extends: given``. It is skipped, so that a file with the name of a shipped recipe
            can extend that recipe.

    Returns:
        the path of the file. If no file is found, the path is ``folder / given``.
    """
    for path in (folder / given, folder / f"{given}{_SUFFIX}"):
        if os.path.isfile(path) and not (but and _is_shipped(given) and os.path.samefile(path, but)):
            return path
    return shipped_files().get(given.removesuffix(_SUFFIX), folder / given)


def _is_shipped(name: str) -> bool:
    return name.removesuffix(_SUFFIX) in shipped_files()


def nearest_recipes(path: Path) -> str:
    """Return the end of an error message about a missing recipe, with the names of the shipped recipes."""
    name = path.stem if path.is_absolute() else path.as_posix().removeprefix("recipes/").removesuffix(_SUFFIX)
    return f"no recipe of that name ships with tiny-audio; {did_you_mean(name, shipped_recipes())}"


def local_instead_of_shipped(given: str) -> Path | None:
    """Return the local file that has priority over the shipped file of the same name; None if there is no such file."""
    found, shipped = find_file(given), shipped_files().get(given)
    if shipped is None or os.path.samefile(found, shipped):
        return None
    return found


def read_header(name: str, path: Path) -> RecipeHeader:
    """Read the comment at the top of a recipe."""
    claim, hardware = "", ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").strip()
        claim = claim or text
        if text.startswith("Hardware:"):
            hardware = text.removeprefix("Hardware:").strip()
    return RecipeHeader(name, claim, hardware)


def text_to_edit(name: str) -> str:
    """Return the text of a shipped recipe.

    The path after ``extends`` is replaced by the name of the recipe at that path. A copy of the text then works in
    every folder.

    Raises:
        UserError: no recipe of this name ships with the package.
    """
    shipped = shipped_recipes()
    path = shipped.get(name.removesuffix(_SUFFIX))
    if path is None:
        raise UserError(f"{name}: {nearest_recipes(Path(name))}")
    names = {os.path.realpath(file): one for one, file in shipped.items()}
    base = path.parent
    return _EXTENDS.sub(
        lambda found: f"extends: {names[os.path.realpath(base / found[1])]}", path.read_text(encoding="utf-8")
    )
