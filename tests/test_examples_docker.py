"""The files of the Docker image in examples/docker. The image is not built."""

from __future__ import annotations

import re

from tests.support.paths import ROOT

FOLDER = ROOT / "examples" / "docker"


def test_files_that_the_image_copies_exist_and_are_not_ignored() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    copied = {name for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for name in line.split()[:-1]}
    assert "tiny_audio" in copied
    assert all((ROOT / name).exists() for name in copied)
    ignore = (FOLDER / "Dockerfile.dockerignore").read_text().split("\n")
    assert {line.removeprefix("!") for line in ignore if line.startswith("!")} == copied
