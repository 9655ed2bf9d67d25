"""A third-party package with one file is installed beside the project, and nothing here is edited for it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "examples" / "tiny-audio-conv-projector"
MODULE = "tiny_audio_conv_projector"
RECIPE = ROOT / "recipes" / "quickstart.yaml"


def build_wheel(folder: Path) -> Path:
    """The package's wheel, by hand: a build backend would have to be fetched."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    stem = f"{project['name'].replace('-', '_')}-{project['version']}"
    entry_points = "\n".join(
        f"[{group}]\n" + "\n".join(f"{name} = {value}" for name, value in points.items())
        for group, points in project["entry-points"].items()
    )
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    files = {
        f"{MODULE}.py": (PACKAGE / f"{MODULE}.py").read_text(),
        f"{stem}.dist-info/METADATA": metadata,
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{stem}.dist-info/entry_points.txt": entry_points,
    }
    record = f"{stem}.dist-info/RECORD"
    rows = [f"{name},sha256={_digest(text)},{len(text.encode())}" for name, text in files.items()]
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in {**files, record: "\n".join([*rows, f"{record},,"])}.items():
            wheel.writestr(name, text)
    return path


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages that holds this one."""
    folder = tmp_path_factory.mktemp("plugin")
    wheel, site = build_wheel(folder), folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", str(site), str(wheel)], check=True, capture_output=True, timeout=300)
    assert (site / f"{MODULE}.py").is_file()
    return site


def python(site: Path | None, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = [str(site)] if site else []
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*paths, str(ROOT)]), **environment},
        timeout=900,
    )


def tiny_audio(site: Path | None, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return python(site, "-m", "tiny_audio.cli", *arguments, **environment)


def listed(site: Path | None) -> dict[str, dict[str, Any]]:
    done = tiny_audio(site, "list", "projectors", "--json")
    assert done.returncode == 0, done.stderr
    return {part["name"]: part for part in json.loads(done.stdout)["projectors"]}


def test_it_is_listed_where_it_is_installed(site: Path) -> None:
    assert "strided_conv" not in listed(None)
    part = listed(site)["strided_conv"]
    assert part["module"] == MODULE
    assert part["summary"].startswith("Strided convolution: a window that slides")


def test_its_fields_are_typed_in_a_recipe(site: Path) -> None:
    done = tiny_audio(site, "validate", str(RECIPE), "projector=strided_conv", "projector.stride=4")
    assert (done.returncode, done.stderr) == (0, "")
    assert "is valid: whisper, strided_conv, smollm3;" in done.stdout


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (
            ["projector.strid=4", "projector.stride=four"],
            [
                "projector.strided_conv.strid: unknown field; did you mean 'stride'? "
                "Allowed: hidden_dim, name, output_rms, stride",
                'projector.strided_conv.stride: should be a valid integer, not "four"',
            ],
        ),
        (
            ["projector.stride=40"],
            ["projector.strided_conv: needs 80 encoder frames, and a clip of data.min_duration_s 0.3 s has 15"],
        ),
    ],
)
def test_its_mistakes_are_located(site: Path, overrides: list[str], messages: list[str]) -> None:
    done = tiny_audio(site, "validate", str(RECIPE), "projector=strided_conv", *overrides)
    assert done.returncode == 2
    for message in messages:
        assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_package_its_name_is_unknown() -> None:
    done = tiny_audio(None, "validate", str(RECIPE), "projector=strided_conv")
    assert done.returncode == 2
    assert "projector: unknown projector 'strided_conv'; " in done.stderr


def test_it_keeps_the_contract(site: Path) -> None:
    code = (
        f"from tiny_audio.testing import check_projector; from {MODULE} import StridedConvConfig as Config; "
        "check_projector(Config.tiny()); check_projector(Config(stride=2, hidden_dim=16)); print('kept')"
    )
    done = python(site, "-W", "error", "-c", code)
    assert done.stdout == "kept\n", done.stderr


@pytest.mark.skipif(find_spec("espeakng_loader") is None, reason="needs espeak-ng: pip install 'tiny-audio[synthetic]'")
def test_it_trains_in_the_quickstart_and_travels_with_the_model(site: Path, tmp_path: Path) -> None:
    changes = [
        "projector=strided_conv",
        "projector.stride=4",
        "projector.hidden_dim=64",
        "data.train.voices.num_utterances=40",
        "data.evaluation.unseen_voices.num_utterances=8",
        "data.evaluation.unseen_accents.num_utterances=8",
        "batching.max_clips=4",
        "training.steps=6",
        "training.warmup_steps=1",
        "generation.max_new_tokens=6",
        "execution.evaluate_every=6",
        "execution.evaluate_utterances=4",
        "execution.device=cpu",
    ]
    folder, cache = tmp_path / "run", {"TINY_AUDIO_CACHE": str(tmp_path / "cache")}
    done = tiny_audio(site, "run", str(RECIPE), *changes, "--output-dir", str(folder), **cache)
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in steps) == 6
    bundled = (folder / "model" / f"{MODULE}.py").read_text()
    assert "class StridedConvProjector(Projector)" in bundled
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["projector"] == {"name": "strided_conv", "output_rms": None, "stride": 4, "hidden_dim": 64}
    # From its folder alone, the plugin not installed.
    code = (
        "import sys, torch; from transformers import AutoModel; "
        "model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True); "
        "print(type(model.projector).__name__, tuple(model.generate(torch.zeros(1, 16000)).shape) > (0,))"
    )
    offline = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    loaded = python(None, "-c", code, str(folder / "model"), **offline)
    assert loaded.stdout == "StridedConvProjector True\n", loaded.stderr
