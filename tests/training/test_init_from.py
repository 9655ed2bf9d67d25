"""``training.init_from``: start from the weights of another run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Document, changed, tiny_recipe, write_clips
from tests.support.training import (
    RecordingCallback,
    gather,
    parse,
)
from tiny_audio.commands.run import Run
from tiny_audio.config import UserError
from tiny_audio.training.assembly import assemble
from tiny_audio.training.initialize import StartingPoint

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def earlier(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run with a CTC head. Its transcripts have letters that ``document`` lacks."""
    folder = tmp_path_factory.mktemp("earlier")
    write_clips(folder, 8)
    (folder / "manifest.jsonl").write_text((folder / "manifest.jsonl").read_text().replace('"yes"', '"why quiz"'))
    steps = {"training__steps": 1, "training__warmup_steps": 0}
    document = changed(tiny_recipe(folder), ctc={"weight": 0.5}, **steps, data__evaluation={})
    Run(parse(document), "earlier", folder / "run", RecordingCallback()).complete()
    return folder / "run"


def starting(document: Document, path: Path, parts: Sequence[str] | None = None, **changes: Any) -> Any:
    """Return the initial model, tokenizer and target encoder of a run that starts from ``path``."""
    document = changed(document, training__init_from={"path": str(path), "parts": parts}, **changes)
    recipe = parse(document)
    assert recipe.training.init_from is not None
    return assemble(recipe, gather(recipe), StartingPoint(recipe.training.init_from))


def test_all_parts_are_loaded(document: Document, earlier: Path) -> None:
    for path in (earlier, earlier / "model"):
        model, tokenizer, target_encoder = starting(document, path)
        saved = load_file(earlier / "model" / "model.safetensors")
        assert saved
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in saved.items())
        assert tokenizer.unk_token_id not in tokenizer.encode("quiz", add_special_tokens=False)
        assert "q" in target_encoder.ctc.characters


def test_only_the_listed_parts_are_loaded(document: Document, earlier: Path) -> None:
    model, tokenizer, target_encoder = starting(document, earlier, ["encoder", "projector"])
    saved = load_file(earlier / "model" / "model.safetensors")
    taken = {name for name in saved if name in (own := model.state_dict()) and torch.equal(own[name], saved[name])}
    assert {name for name in saved if name.startswith(("encoder.", "projector."))} <= taken
    assert "ctc_head.weight" not in taken
    assert "q" not in target_encoder.ctc.characters
    assert tokenizer.unk_token_id in tokenizer.encode("quiz", add_special_tokens=False)


def test_the_report_records_the_initial_weights(document: Document, earlier: Path, tmp_path: Path) -> None:
    start = {"path": str(earlier), "parts": None}
    report = Run(parse(changed(document, training__init_from=start)), "x", tmp_path, RecordingCallback()).complete()
    assert len(report["provenance"]["init_from"]) == 64


def test_a_folder_without_a_model_is_an_error(document: Document, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        starting(document, tmp_path)
    assert str(refusal.value).startswith(f"training.init_from.path: {tmp_path} ")


def test_a_damaged_model_is_an_error(document: Document, earlier: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 50)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"training\.init_from: .*config\.json is damaged"):
        starting(document, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"training\.init_from: cannot read the weights in"):
        starting(document, tmp_path, ["encoder"])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"projector__hidden_dim": 48},
            r"projector\.down\.weight is \[32, 64\] in that model and \[32, 48\] in this recipe's model",
        ),
        ({"ctc": None}, r"ctc_head\.bias is not in this recipe's model"),
    ],
)
def test_parts_that_do_not_fit_are_an_error(document: Document, earlier: Path, changes: Document, problem: str) -> None:
    with pytest.raises(UserError, match=problem) as refusal:
        starting(document, earlier, **changes)
    message = str(refusal.value)
    assert message.startswith(f"training.init_from: {earlier / 'model'} ")
    assert "training.init_from.parts" in message


def test_a_long_list_of_problems_is_shortened(document: Document, earlier: Path) -> None:
    overrides = document["encoder"]["overrides"] | {"encoder_layers": 3}
    with pytest.raises(UserError, match=r"\n  … and \d+ more\n"):
        starting(document, earlier, encoder__overrides=overrides)


def test_a_missing_ctc_head_is_an_error(document: Document, data: Path, tmp_path: Path) -> None:
    plain = {**changed(document, training__steps=1), "ctc": None}
    Run(parse(plain), "plain", tmp_path, RecordingCallback()).complete()
    with pytest.raises(UserError) as refusal:
        starting(document, tmp_path)
    assert str(refusal.value).startswith(f"training.init_from: {tmp_path / 'model'} ")
    assert "ctc_head" in str(refusal.value)
    starting(document, tmp_path, ["encoder", "projector", "decoder"])
