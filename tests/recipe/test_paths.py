"""``~`` and environment variables are expanded in all paths. Paths occur in recipes, overrides, arguments of commands
and environment variables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tests.conftest import Document, changed
from tiny_audio.cli import main
from tiny_audio.commands.arguments import expanded
from tiny_audio.config import expand_path
from tiny_audio.data.augmentation.noise import NoiseConfig
from tiny_audio.data.augmentation.reverberation import ReverberationConfig
from tiny_audio.decoders import DECODERS
from tiny_audio.encoders import ENCODERS
from tiny_audio.recipe import InitFrom, load_recipe
from tiny_audio.runtime.files import cache_dir
from tiny_audio.sources import SOURCES

PATHS = {"path", "folder", "pretrained"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    for name, value in {"HOME": folder, "USERPROFILE": folder, "CORPORA": tmp_path / "corpora"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("NOT_SET", raising=False)
    return folder


def configs() -> Iterator[Any]:
    for registry in (ENCODERS, DECODERS, SOURCES):
        for entry in registry.entries():
            yield pytest.param(entry.config, id=entry.name)
    for config in (InitFrom, NoiseConfig, ReverberationConfig):
        yield pytest.param(config, id=config.__name__)


@pytest.mark.parametrize("config", list(configs()))
def test_paths_of_every_config_are_expanded(config: type[BaseModel], tmp_path: Path) -> None:
    fields = config.model_fields.keys() & PATHS
    if not fields:
        pytest.skip("has no path")
    others = {"name": config.model_fields["name"].default} if "name" in config.model_fields else {}
    required = {"snr_db": (5.0, 20.0)} if "snr_db" in config.model_fields else {}
    for text, path in {"~/a b": tmp_path / "home" / "a b", "${CORPORA}/x": tmp_path / "corpora" / "x"}.items():
        built = config.model_validate({**others, **required, **dict.fromkeys(fields, text)}, strict=False)
        assert {getattr(built, name) for name in fields} == {str(path)}


@pytest.mark.parametrize("text", ["owner/name", "./a", "a~b", "$NOT_SET/a", "${NOT_SET}", "~nobody-of-that-name/a", ""])
def test_other_texts_are_not_expanded(text: str) -> None:
    assert expand_path(text) == text


def test_an_existing_file_is_not_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("~", "$CORPORA", "price_$HOME"):
        (tmp_path / name).mkdir()
        assert expand_path(name) == name


def test_paths_of_recipes_and_overrides_are_expanded(
    document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setenv("RECIPES", str(tmp_path))
    (home / "base.yaml").write_text(json.dumps(changed(document, data__train__clips__path="$CORPORA/train.jsonl")))
    (tmp_path / "mine.yaml").write_text("extends: ~/base.yaml\n")
    recipe = load_recipe("$RECIPES/mine.yaml", ["data.evaluation.held_out.path=~/dev.jsonl"])
    sources: Any = recipe.data
    assert sources.train["clips"].path == str(tmp_path / "corpora" / "train.jsonl")
    assert sources.evaluation["held_out"].path == str(home / "dev.jsonl")
    elsewhere = load_recipe("$RECIPES/mine.yaml", ["data.train.clips.path=$NOT_SET/train.jsonl"])
    assert elsewhere.run_id() == recipe.run_id(), "paths are not part of a run's identity"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("~/a.wav", "{home}/a.wav"),
        ("--output-dir=~/runs", "--output-dir={home}/runs"),
        ("--html=$HOME/page.html", "--html={home}/page.html"),
        ("decoder.pretrained=~/lm", "decoder.pretrained=~/lm"),
        ("--normalizer=none", "--normalizer=none"),
        ("-", "-"),
    ],
)
def test_arguments_of_the_command_line_are_expanded(word: str, expected: str, home: Path) -> None:
    assert expanded(word) == expected.format(home=home)


def test_a_command_finds_a_recipe_in_the_home_folder(
    document: Document, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "recipe.yaml").write_text(json.dumps(document))
    assert main(["validate", "~/recipe.yaml"]) == 0


def test_the_cache_folder_is_expanded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_AUDIO_CACHE", "$HOME/cache")
    assert cache_dir() == home / "cache"
    monkeypatch.delenv("TINY_AUDIO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/other")
    assert cache_dir() == home / "other" / "tiny-audio"
