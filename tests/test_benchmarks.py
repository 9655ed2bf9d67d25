"""The benchmark scripts run, with sizes that are too small to measure speed."""

from __future__ import annotations

import ast
import importlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.conftest import changed, tiny_recipe, write_clips
from tests.support.models import assemble
from tests.support.processes import finish, fork
from tests.support.training import RecordingCallback
from tiny_audio.commands.run import Run
from tiny_audio.export.formats.huggingface import export_model
from tiny_audio.model.context import ContextSettings
from tiny_audio.recipe import Recipe

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> str:
    """Run a benchmark in a new process, and return its output. The benchmark may miss its targets."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    return printed_by(done.returncode, done.stdout, done.stderr)


def printed_by(code: int, out: str, err: str) -> str:
    assert code in (0, 1), err
    assert "Traceback" not in err, err
    return out


def run_in_a_fork(script: str, *arguments: str) -> str:
    """Run a benchmark in a fork of this process, and return its output. A fork need not import PyTorch again."""

    def work() -> int:
        sys.argv = [script, *arguments]
        sys.path.insert(0, str(Path(script).parent))
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return printed_by(*finish(fork(work, cwd=ROOT)))


@pytest.mark.slow
def test_training(tmp_path: Path) -> None:
    page = tmp_path / "results" / "training.md"
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps({"duration": 0.5 + 0.1 * number}) + "\n" for number in range(20)))
    small = ["--tiny", "--clips", "2", "--batches", "2", "--rounds", "1", "--memory-gib", "0.02"]
    small += ["--manifest", str(manifest)]
    printed = run("benchmarks/training.py", *small, "--output", str(page))
    assert "| quantile | 1% | 5% | 25% | 50% | 75% | 95% | 99% | mean |" in printed
    assert "## 2 clips in every step" in printed
    assert "of the bound is reached, at least 95%" in printed
    assert "padding of ours" in printed
    assert "times the audio, at least 2.5" in printed
    assert "from manifest.jsonl" in printed
    text = page.read_text()
    assert text.startswith(
        "# Training: planned batches and logits only at labels, compared with a plain loop\n\nMeasured on 20"
    )
    assert printed.strip() in text


@pytest.mark.slow
def test_context(tmp_path: Path) -> None:
    export_model(*assemble(context=ContextSettings(max_tokens=40, hotwords=True)), tmp_path / "model")
    manifest = str(write_clips(tmp_path, 4))
    page = tmp_path / "context.md"
    small = ["--words", "3", "--num-common", "2", "--sounds", "1"]
    arguments = [str(tmp_path / "model"), "--data", manifest, "--text", manifest, *small, "--output", str(page)]
    printed = run("benchmarks/context.py", *arguments)
    assert printed.count("| list | ") == 1
    assert "other words against no list, in points: rare words " in printed
    assert "| loud noise, filters | " in printed
    assert printed.strip() in page.read_text()


@pytest.mark.slow
def test_open_vocabulary(tmp_path: Path) -> None:
    """Step 1 trains without the decoder (``alone_steps``). For its model, only projector and CTC head are scored."""
    document = changed(
        tiny_recipe(write_clips(tmp_path / "data", 6).parent),
        alignment={"alone_steps": 1},
        ctc={},
        training__steps=2,
        training__warmup_steps=0,
        execution__checkpoint_every=1,
        execution__keep_checkpoints=2,
        generation__max_new_tokens=5,
        data__evaluation={},
    )
    Run(Recipe.model_validate_json(json.dumps(document)), "run", tmp_path / "run", RecordingCallback()).complete()
    kept, image = tmp_path / "kept.jsonl", tmp_path / "plot.svg"
    data = ["--data", str(tmp_path / "data/manifest.jsonl"), "--clips", "4", "--kept", str(kept), "--plot", str(image)]
    printed = run_in_a_fork("benchmarks/open_vocabulary.py", f"first={tmp_path / 'run'}:1,2", *data)
    assert printed.count("| first | ") == 2
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [("wer" in row, "projector_wer" in row) for row in rows] == [(False, True), (True, True)]
    assert all("ctc_wer" in row for row in rows)
    assert image.read_text().count("<circle") == 2 + 1 + 1, "the rates of the projector alone, a rate, and the bits"


def test_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = runpy.run_path(str(ROOT / "benchmarks/open_vocabulary.py"))
    rows = [{"name": "a<b", "step": 1, "set": "s", "clips": 2, "measured": 2, "hours": 0.5, "minutes": 3.0}]
    rows += [{**rows[0], "wer": 0.25, "wer_interval": (0.2, 0.3)}]
    assert script["shown"](rows[0])[-6:] == ("", "", "", "", "", "")
    assert script["shown"](rows[1])[-6:] == ("25.0 % [20.0, 30.0]", "", "", "", "", "")
    alone = {"projector_wer": 0.5, "projector_wer_interval": (0.4, 0.6), "projector_cer": 0.25}
    assert script["shown"](rows[0] | alone)[-6:] == ("", "50.0 % [40.0, 60.0]", "25.0 %", "", "", "")
    ctc = {"ctc_wer": 0.75, "ctc_wer_interval": (0.7, 0.8), "ctc_cer": 0.125}
    assert script["shown"](rows[0] | ctc)[-6:] == ("", "", "", "75.0 % [70.0, 80.0]", "12.5 %", "")
    image = ElementTree.fromstring(script["plot"](rows, "s"))
    assert [element.text for element in image.iter("{http://www.w3.org/2000/svg}title")] == ["a<b"]


@pytest.mark.slow
def test_finetune(tmp_path: Path) -> None:
    page = tmp_path / "finetune.md"
    small = ["--padded-s", "20", "--batches", "1", "--epochs", "1"]
    printed = run("benchmarks/finetune.py", *small, "--output", str(page))
    for way in ("transformers", "plain", "ours"):
        assert printed.count(f"| {way} | ") == 2
    assert "at most 0.0001: holds" in printed
    assert "as fast as plain" in printed
    assert printed.strip() in page.read_text()


@pytest.mark.slow
def test_data(tmp_path: Path) -> None:
    page = tmp_path / "data.md"
    small = ["--clips", "40", "--rounds", "1", "--plan-clips", "3000"]
    printed = run("benchmarks/data.py", *small, "--output", str(page))
    for contender in ("decoding alone", "ours", "datasets, streaming"):
        assert f"\n| {contender} | " in printed
    assert "\n| Ogg Opus | " in printed
    assert "## Planning 3,000 clips" in printed
    assert "peak of 0." in printed
    assert printed.strip() in page.read_text()


@pytest.mark.slow
def test_inference_of_a_trained_model(tmp_path: Path) -> None:
    model, tokenizer = assemble()
    export_model(model, tokenizer, tmp_path / "model")
    write_clips(tmp_path, 4)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(changed(tiny_recipe(tmp_path), generation__max_new_tokens=8)))
    page = tmp_path / "page.md"
    small = ["--clips", "4", "--timed-clips", "2", "--rounds", "1", "--padded-s", "3", "--output", str(page)]
    printed = run_in_a_fork(
        "benchmarks/inference.py", "--model", str(tmp_path / "model"), "--recipe", str(recipe), *small
    )
    assert "4 clips of held_out" in printed
    assert "| plain, one by one | " in printed
    for way in ("plain, batched", "assisted, one by one", "assisted, batched"):
        assert f"- {way}: 4 of 4 clips have the same tokens as one by one: holds" in printed
    assert "- 4 clips, at least 500: FAILS" in printed
    assert "times fewer passes of the decoder, at least 1.8" in printed
    assert printed.strip() in page.read_text()


@pytest.mark.slow
def test_live(tmp_path: Path) -> None:
    model, tokenizer = assemble()
    export_model(model, tokenizer, tmp_path / "model")
    page = tmp_path / "live.md"
    printed = run("benchmarks/live.py", str(tmp_path / "model"), "--clips", "3", "--output", str(page))
    assert "3 clips in streams of" in printed
    assert "| a decoding | 0." in printed
    assert "final texts equal those of the transcriber: holds" in printed
    assert printed.strip() in page.read_text()


@pytest.mark.slow
def test_inference_of_random_weights() -> None:
    printed = run("benchmarks/inference.py", "--tiny", "--clips", "2", "--rounds", "1")
    for line in printed.splitlines():
        if line.startswith("| assisted, 0% of the tokens wrong"):
            assert line.endswith("| 1.00 |"), "one pass verifies a draft that is right"
        if line.startswith("| plain, one by one"):
            assert line.endswith("| 40.00 |")
    assert "| assisted, 30% of the tokens wrong, batched, adapters merged | " in printed


@pytest.mark.slow
def test_serving(tmp_path: Path) -> None:
    export_model(*assemble(), tmp_path / "model")
    page = tmp_path / "serving.md"
    small = ["--clients", "4", "--seconds", "0", "--requests", "100", "--clips", "8", "--output", str(page)]
    printed = run("benchmarks/serving.py", str(tmp_path / "model"), *small)
    assert "4 clients, 10" in printed
    assert "- no errors but 429 (0: []): holds" in printed
    assert "- the same texts as `transcribe` (0 differ: []): holds" in printed
    assert printed.strip() in page.read_text()


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda script: script.stem)
def test_imports_from_the_package_exist(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tiny_audio":
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
