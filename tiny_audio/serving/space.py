"""Write a Hugging Face Space: a Gradio app that lets visitors try a model."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import yaml

GRADIO_VERSION = "6.31.0"
"""The version of Gradio that the app was tested with. The hub installs it."""
_PYTHON_VERSION = "3.12"


def write_space(folder: Path, model: str, revision: str | None, requirements: str) -> None:
    """Write the files of a Space that runs a model.

    Args:
        folder: an existing folder.
        model: the model's repository on the hub, or a local folder.
        revision: the commit of the model's repository that the Space runs. If None, the Space runs the newest commit at
            each start.
        requirements: the model's ``requirements.txt``.
    """
    app = files("tiny_audio.serving").joinpath("_space_app.py").read_text(encoding="utf-8")
    for line, value in (('MODEL = "owner/name"', model), ("REVISION: str | None = None", revision)):
        assert line in app
        app = app.replace(line, f"{line.partition(' = ')[0]} = {value!r}")
    (folder / "app.py").write_text(app, encoding="utf-8")
    (folder / "requirements.txt").write_text(requirements, encoding="utf-8")
    header = {
        "title": model.rpartition("/")[2],
        "emoji": "🎙️",
        "colorFrom": "green",
        "colorTo": "gray",
        "sdk": "gradio",
        "sdk_version": GRADIO_VERSION,
        "python_version": _PYTHON_VERSION,
        "app_file": "app.py",
        "models": [model],
    }
    text = f"Speech to text with [{model}](https://huggingface.co/{model}), a model that was trained with Tiny Audio."
    card = f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\n{text}\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
