"""``doctor``: findings about the machine, checkpoints and data."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.commands.conftest import Output
from tests.conftest import manifest_row
from tests.support.hub_cache import COMMIT, repository_in, use_cache
from tests.support.part_checkpoints import hubert

WHAT = (
    *("tiny-audio", "Python", "packages", "CPU", "GPU", "libsndfile", "FFmpeg", "Flash Attention 2"),
    *("bitsandbytes", "espeak-ng", "Hugging Face cache", "disk", "output", "environment"),
)
pytestmark = pytest.mark.usefixtures("one_thread")


def set_free_space(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=num_bytes))


def test_doctor_checks_the_machine(call: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free_space(monkeypatch, 10**12)
    code, out, _ = call("doctor")
    assert code == 0
    found = [line.split(":")[0] for line in out.splitlines()]
    assert found == [f"✓ {what}" for what in WHAT]
    lines = dict(line[2:].split(": ", 1) for line in out.splitlines())
    assert lines["tiny-audio"].startswith("0.1.0")
    assert f"torch {torch.__version__.partition('+')[0]}, torchaudio " in lines["packages"]
    assert "missing" not in lines["packages"]


@pytest.mark.parametrize(("num_bytes", "mark", "expected"), [(10**10, "✓", 0), (3 * 10**9, "!", 0), (10**8, "✗", 2)])
def test_doctor_checks_free_space(
    call: Output, monkeypatch: pytest.MonkeyPatch, num_bytes: int, mark: str, expected: int
) -> None:
    set_free_space(monkeypatch, num_bytes)
    code, out, _ = call("doctor")
    (line,) = [line for line in out.splitlines() if " disk: " in line]
    assert line[0] == mark
    assert ("TINY_AUDIO_CACHE" in line) == (mark != "✓")
    assert code == expected


def test_doctor_shows_settings_and_no_secrets(call: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "OMP_NUM_THREADS": "3",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_TOKEN": "hf_secret",
        "HUGGING_FACE_HUB_TOKEN": "hf_secret",
        "HF_ENDPOINT": "https://me:secret@mirror",
        "https_proxy": "http://secret:8080",
        "DEEPGRAM_API_KEY": "secret",
        "EDITOR": "not ours",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    line = call("doctor")[1].splitlines()[-1]
    assert "OMP_NUM_THREADS=3" in line
    assert "TOKENIZERS_PARALLELISM=false" in line
    assert "HF_TOKEN is set" in line
    assert "secret" not in line
    assert "EDITOR" not in line


def test_doctor_checks_that_weights_can_be_quantized(
    call: Output, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    frozen = ["decoder.freeze=true", f"training.init_from={{path: {trained}}}"]
    _, out, _ = call("doctor", trained / "recipe.yaml", *frozen, "decoder.quantization=nf4")
    assert "✗ decoder: decoder.quantization: nf4 needs bitsandbytes" in out


def test_doctor_checks_a_recipes_data(call: Output, trained: Path) -> None:
    code, out, _ = call("doctor", trained / "recipe.yaml")
    assert code == 0
    assert "✓ encoder: whisper " in out
    assert "✓ data.train.clips: 8 clips, 0.00 h\n" in out
    assert "! data.evaluation.held_out: 8 of 8 clips are also training clips (clips), such as held_out/clip000" in out
    assert "✓ clips/clip000.wav: 1.10 s, 55 frames: 'yes'\n" in out


def test_doctor_shows_how_transcripts_are_normalized(call: Output, trained: Path, tmp_path: Path) -> None:
    texts = ["<noise> I'M HERE", "<MUSIC>", "YES", "NO [laughter] NO <noise>"]
    shutil.copy(trained / "clip000.wav", tmp_path)
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(manifest_row(tmp_path / "clip000.wav", text, 1.1) for text in texts))
    source = [f"data.train.clips.path={manifest}", "data.evaluation={}"]
    steps = "data.target_text={name: lower, remove_markers: true}"
    code, out, _ = call("doctor", trained / "recipe.yaml", *source, steps)
    assert code == 0
    place = "✓ data.train.clips"
    assert f"""{place} target: "<noise> I'M HERE" → "i'm here"\n{place} target: '<MUSIC>' → ''\n""" in out
    assert out.count(" → ") == 3, "doctor shows at most three examples"
    assert f"{place}: data.target_text removes all text of 1 of 4 " in out
    assert "markers" not in out
    _, out, _ = call("doctor", trained / "recipe.yaml", *source)
    assert " → " not in out
    (line,) = [line for line in out.splitlines() if "markers" in line]
    assert line.startswith(f"{place}: ")
    assert "'<noise>' in 2, '<MUSIC>' in 1, '[laughter]' in 1 of 4" in line
    assert "data.target_text" in line


def test_doctor_finds_problems(call: Output, trained: Path, tmp_path: Path) -> None:
    for name in ("nan.wav", "stereo.wav", "cut_off.flac"):
        shutil.copy(trained / name, tmp_path)
    rows = [("nan.wav", "yes"), ("stereo.wav", "far too much text for one second " * 3), ("cut_off.flac", "")]
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(manifest_row(tmp_path / name, text, 1.0) for name, text in rows))
    code, out, err = call("doctor", trained / "recipe.yaml", f"data.train.clips.path={manifest}", "data.evaluation={}")
    assert code == 2
    assert err.startswith("error: ")
    assert "✓ data.train.clips: 2 clips, 0.00 h, 1 dropped\n" in out
    assert "✗ clips/nan.wav: " in out
    assert [line for line in out.splitlines() if line.startswith("✗ clips/stereo.wav: 1.00 s, ")]
    missing = call("doctor", trained / "recipe.yaml", "data.train.clips.path=/nowhere.jsonl")
    assert "✗ data.train.clips: " in missing[1]
    assert "/nowhere.jsonl" in missing[1]


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write ``somebody/hubert``, with more than one weight file, to a hub cache, and return the folder of its files."""
    snapshot = repository_in(tmp_path / "hub", "somebody/hubert") / "snapshots" / COMMIT
    hubert(snapshot).save_pretrained(snapshot, max_shard_size="100KB")
    (snapshot / "model.safetensors").unlink(missing_ok=True)
    use_cache(monkeypatch, tmp_path / "hub")
    return snapshot


def not_finite(path: Path) -> None:
    save_file({name: tensor / 0 for name, tensor in load_file(path).items()}, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "code", "expected"),
    [
        (
            lambda path: None,
            0,
            "✓ encoder: somebody/hubert can be read, and its 0.0 million parameters are complete (hub",
        ),
        (Path.unlink, 0, "✓ encoder: somebody/hubert: its config can be read; its weights are not checked, because "),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), 2, "✗ encoder: hubert: PATH is cut off: "),
        (lambda path: path.write_text("<html>"), 2, "✗ encoder: hubert: PATH is a web page"),
        (not_finite, 2, "✗ encoder: hubert: "),
    ],
    ids=["complete", "not downloaded", "cut off", "web page", "not finite"],
)
def test_doctor_checks_weights_in_the_hubs_cache(
    call: Output, trained: Path, cached: Path, change: Callable[[Path], object], code: int, expected: str
) -> None:
    weights = sorted(cached.glob("*.safetensors"))
    assert len(weights) > 1
    change(weights[-1])
    section = "encoder={name: hubert, pretrained: somebody/hubert, freeze: true}"
    found, out, err = call("doctor", trained / "recipe.yaml", section)
    assert (found, expected.replace("PATH", str(weights[-1])) in out) == (code, True), out + err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_doctor_reports_a_missing_gpu(call: Output, trained: Path) -> None:
    code, out, _ = call("doctor", trained / "recipe.yaml", "execution.device=cuda")
    assert code == 2
    assert "✗ execution.device: cuda" in out
