"""``run`` compares the trained model with recognizers that use its encoder, but not its decoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.commands.conftest import Output
from tests.conftest import Document, changed, tiny_recipe, write_clips
from tests.support.recognizers import save_ctc_model, save_whisper

pytestmark = pytest.mark.usefixtures("one_thread")


def recipe(folder: Path) -> Document:
    """Return a recipe with a CTC head and a pretrained encoder whose checkpoint is a recognizer."""
    write_clips(folder, 6)
    encoder = {"name": "wav2vec2", "pretrained": str(save_ctc_model(folder / "tiny-wav2vec2"))}
    return changed(
        tiny_recipe(folder),
        encoder=encoder,
        ctc={"weight": 0.5},
        training__steps=2,
        training__warmup_steps=0,
        generation__max_new_tokens=4,
        evaluation__encoder_system_clips=3,
    )


def read(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "report.json").read_text())["decoder_gain"]
    return found


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_compares_its_model_with_the_encoder_alone(
    call: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiny_audio.commands.run.encoder_systems.NUM_TIMED", 1)
    path, folder = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(json.dumps(recipe(tmp_path)))
    code, out, _ = call("run", path, "--output-dir", folder)
    assert code == 0
    assert "without the decoder, for comparison" in out
    head, own = read(folder)
    assert [(entry["system"], entry["num_utterances"]) for entry in (head, own)] == [
        ("CTC head", 6),
        ("tiny-wav2vec2", 3),
    ]
    assert own["normalizer"] == "whisper_english"
    assert all(speed["flops_per_s"] > 0 for entry in (head, own) for speed in entry["speed"].values())
    assert out.count(" with the model: ") == 2
    assert "What the decoder adds" in (folder / "report.html").read_text()
    evaluation = folder / "evaluation"
    files = evaluation / "held_out.encoder.jsonl", evaluation / "held_out.jsonl"
    assert [row["id"] for row in rows(files[0])] == [row["id"] for row in rows(files[1])][::2]
    code, out, _ = call("rescore", *files)
    assert code == 0
    # The same command, given again, repeats no work.
    before = (folder / "report.json").read_bytes(), (folder / "model" / "model.safetensors").stat().st_mtime_ns
    assert "for comparison" not in call("run", path, "--output-dir", folder)[1]
    assert (folder / "report.json").read_bytes() == before[0]
    # With another number of clips, only the comparison is repeated. If a recognizer cannot be loaded, the command
    # prints the reason and continues.
    (tmp_path / "tiny-wav2vec2" / "vocab.json").unlink()
    code, out, _ = call("run", path, "evaluation.encoder_system_clips=2", "--output-dir", folder)
    assert code == 0
    assert "scoring" not in out
    assert "held_out: a recognizer without the decoder is left out of the comparison: " in out
    assert [entry["system"] for entry in read(folder)] == ["CTC head"]
    _, out, _ = call("run", path, "evaluation.encoder_system_clips=0", "--output-dir", folder)
    assert "What the decoder adds" not in out
    assert read(folder) == []
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == before[1]


def test_a_checkpoints_own_decoder_runs_in_full_precision(call: Output, tmp_path: Path) -> None:
    """The checkpoint's own recognizer does not use the recipe's bf16, because Whisper's feature extractor in
    transformers fails under autocast."""
    path, folder = tmp_path / "recipe.yaml", tmp_path / "run"
    encoder = {"name": "whisper", "pretrained": str(save_whisper(tmp_path / "tiny-whisper"))}
    path.write_text(json.dumps(changed(recipe(tmp_path), encoder=encoder, training__precision="bf16")))
    code, out, err = call("run", path, "--output-dir", folder)
    assert code == 0, out + err
    assert [entry["system"] for entry in read(folder)] == ["CTC head", "tiny-whisper"]
