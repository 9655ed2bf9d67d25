"""``doctor``, ``run`` and ``export`` accept valid checkpoint folders. ``doctor`` and ``run`` reject invalid folders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.commands.conftest import Output
from tests.conftest import changed, tiny_recipe, write_clips
from tests.support.checkpoint_folders import Case, rejected, whole, write_once
from tests.support.encoder_checkpoints import speech
from tests.support.training import parse
from tiny_audio.decoders import DECODERS, DecoderContext
from tiny_audio.encoders import ENCODERS, EncoderContext
from tiny_audio.export.load import load_model
from tiny_audio.inference.transcriber import Transcriber

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = (
    "whisper of 75 positions",
    "llama with a pad token beyond its rows",
    "an adapter beside the weights",
    "a pickle that is cut off",
    "a missing shard",
    "NaN in a decoder",
    "a template with a token beyond the rows",
    "an encoder for audio as it is",
    "too few positions",
)
"""Cases that are not marked ``slow``."""


def cases(every: Iterator[Case]) -> list[object]:
    return [pytest.param(case, id=case.name, marks=() if case.name in QUICK else pytest.mark.slow) for case in every]


def test_the_matrix_is_large_enough() -> None:
    names = [case.name for case in (*whole(), *rejected())]
    assert len(names) >= 40
    assert len(set(names)) == len(names)
    assert set(QUICK) <= set(names)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of clips. Checkpoint folders are added to it when a test needs them."""
    folder = tmp_path_factory.mktemp("folders")
    write_clips(folder, 4)
    return folder


def recipe(case: Case, folders: Path, tmp_path: Path) -> Path:
    """Write a recipe that trains for two steps with the case's checkpoint folder, and return its path."""
    section = {"name": case.part, "pretrained": str(write_once(case, folders))}
    document = changed(
        tiny_recipe(folders),
        **{case.kind: section, "prompt": {"system": None}},
        data__evaluation={},
        training__steps=2,
        training__warmup_steps=0,
    )
    document = changed(document, **case.changes)
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.usefixtures("pauses_by_loudness")
@pytest.mark.parametrize("case", cases(whole()))
def test_valid_folders_can_be_checked_trained_exported_and_loaded(
    case: Case, folders: Path, tmp_path: Path, call: Output
) -> None:
    path = recipe(case, folders, tmp_path)
    code, out, err = call("doctor", path)
    assert code == 0, out + err
    assert f"✓ {case.kind}: " in out
    code, _, err = call("run", path, "--output-dir", tmp_path / "run")
    assert code == 0, err
    state = json.loads((tmp_path / "run" / "state.json").read_text())
    assert state["training"]["summary"]["skipped_steps"] == 0
    checkpoint = write_once(case, folders)
    part = parse(json.loads(path.read_text()))
    if case.kind == "encoder":
        wanted: nn.Module = ENCODERS.build(part.encoder, EncoderContext())
    else:
        wanted = DECODERS.build(part.decoder, DecoderContext(None))
    # Rename the checkpoint folder, because exporting and loading must not need it.
    away = checkpoint.with_name("away")
    checkpoint.rename(away)
    try:
        code, _, err = call("export", tmp_path / "run", tmp_path / "copy")
        assert code == 0, err
        model, tokenizer = load_model(tmp_path / "copy", types_as_saved=True)
    finally:
        away.rename(checkpoint)
    found = getattr(model, case.kind).state_dict()
    assert found.keys() == wanted.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.state_dict().items())
    model, _ = load_model(tmp_path / "copy")
    # The recording is longer than some models accept. These models transcribe it in chunks.
    recording = torch.from_numpy(speech(9.0))
    (transcription,) = Transcriber(model, tokenizer, filter_hallucinations=False).transcribe([recording])
    assert transcription.segments


@pytest.mark.parametrize("case", cases(rejected()))
def test_invalid_folders_are_rejected(case: Case, folders: Path, tmp_path: Path, call: Output) -> None:
    path = recipe(case, folders, tmp_path)
    code, out, _ = call("doctor", path)
    assert code == 2
    problems = [line for line in out.splitlines() if line.startswith("✗")]
    assert_in_order("\n".join(problems), case.rejected)
    code, _, err = call("run", path, "--output-dir", tmp_path / "run")
    assert code == 2, err
    assert err.count("error: ") == 1
    message = err.partition("error: ")[2]
    assert_in_order(message, case.rejected)
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "model").exists()


def assert_in_order(message: str, words: tuple[str, ...]) -> None:
    start = 0
    for word in words:
        found = message.find(word, start)
        assert found >= 0, f"{word!r} is not in {message[start:]!r}"
        start = found + len(word)
