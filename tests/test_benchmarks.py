"""The benchmarks' scripts run to their end, at sizes that say nothing about speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> str:
    """What a benchmark prints; its bars may break, since nothing here is as fast as it will be."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


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
    assert text.startswith("# Training: planned batches and labelled logits against a plain loop\n\nMeasured on 20")
    assert printed.strip() in text


def test_data(tmp_path: Path) -> None:
    page = tmp_path / "data.md"
    small = ["--clips", "40", "--rounds", "1", "--plan-clips", "3000"]
    printed = run("benchmarks/data.py", *small, "--output", str(page))
    for contender in ("decoding alone", "ours", "datasets, streaming"):
        assert f"\n| {contender} | " in printed
    assert "## Planning 3,000 clips" in printed
    assert "peak of 0." in printed
    assert printed.strip() in page.read_text()
