"""A new export format needs only one module: its options, its writer, and a function that recognizes its exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest

from tests.support.models import assemble
from tiny_audio.cli import main
from tiny_audio.config import UserError
from tiny_audio.export import EXPORTS, ExportConfig, Exporter
from tiny_audio.export.formats.huggingface import export_model


class ArraysConfig(ExportConfig):
    """An export format of these tests. It writes the projector's weights as NumPy arrays."""

    name: Literal["arrays"] = "arrays"
    half: bool = False
    files: ClassVar[tuple[str, ...]] = ("projector.npz",)

    @classmethod
    def is_export(cls, folder: Path) -> bool:
        return (folder / "projector.npz").is_file()

    @classmethod
    def check_pushable(cls, folder: Path) -> None:
        raise UserError(f"{folder}: arrays are not for the hub")


def build_arrays(config: ArraysConfig) -> Exporter:
    def write(model: object, tokenizer: object, folder: Path, card: str | None) -> None:
        folder.mkdir(exist_ok=True)
        arrays = {name: tensor.numpy() for name, tensor in model.projector.state_dict().items()}  # type: ignore[attr-defined]
        kept = {name: array.astype("float16") if config.half else array for name, array in arrays.items()}
        np.savez(folder / "projector.npz", **kept)

    return write


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("formats") / "model"
    export_model(*assemble(), folder)
    return folder


@pytest.fixture
def _arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    EXPORTS.discover()
    monkeypatch.setattr(EXPORTS, "_entries", dict(EXPORTS._entries))
    EXPORTS.register(build_arrays)


@pytest.mark.usefixtures("_arrays")
def test_a_new_format_is_one_module(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "arrays"
    assert main(["export", str(model), str(folder), "--format", "arrays"]) == 0
    assert {array.dtype for array in np.load(folder / "projector.npz").values()} == {np.dtype("float32")}
    assert main(["export", str(model), str(folder), "--format", "arrays:half=true"]) == 0
    assert {array.dtype for array in np.load(folder / "projector.npz").values()} == {np.dtype("float16")}
    (folder / "thesis.tex").touch()
    assert main(["export", str(model), str(folder), "--format", "arrays"]) == 2
    assert main(["push", str(folder), "me/arrays"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "thesis.tex" in errors[0]
    assert errors[1] == f"error: {folder}: arrays are not for the hub"


@pytest.mark.usefixtures("_arrays")
def test_a_format_does_not_replace_exports_of_other_formats(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    assert main(["export", str(model), str(folder), "--format", "arrays"]) == 0
    assert main(["export", str(model), str(folder)]) == 2
    assert (folder / "projector.npz").is_file()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--format", "hugingface"], "'huggingface'"),
        (["--format", "huggingface:weigths=all"], "'weights'"),
        (["--weights", "some"], "'trained'"),
    ],
)
def test_wrong_formats_and_options_are_rejected(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], named: str
) -> None:
    assert main(["export", str(model), str(tmp_path / "new"), *options]) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_options_can_be_given_to_the_format_or_the_command(model: Path, tmp_path: Path) -> None:
    for index, options in enumerate((["--weights", "trained"], ["--format", "huggingface:weights=trained"])):
        folder = tmp_path / str(index)
        assert main(["export", str(model), str(folder), *options]) == 0
        assert "base_weights" in json.loads((folder / "config.json").read_text())
