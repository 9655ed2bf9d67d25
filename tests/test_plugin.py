"""A third-party package adds a projector. The package is one installed file, which Tiny Audio does not mention."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.tutorial import ROOT, call, python, tiny_audio
from tiny_audio.cli import main

PACKAGE = ROOT / "examples" / "tiny-audio-conv-projector"
MODULE = "tiny_audio_conv_projector"
RECIPE = ROOT / "recipes" / "quickstart.yaml"


def build_wheel(folder: Path) -> Path:
    """Write the package's wheel without a build backend, which would have to be downloaded. Return its path."""
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
    """Install the third-party package into a new folder. Return the folder."""
    folder = tmp_path_factory.mktemp("plugin")
    wheel, site = build_wheel(folder), folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", str(site), str(wheel)], check=True, capture_output=True, timeout=300)
    assert (site / f"{MODULE}.py").is_file()
    return site


def validate(*overrides: str) -> list[str]:
    return ["validate", str(RECIPE), "projector=strided_conv", *overrides]


def test_an_installed_plugin_is_listed_and_validated(site: Path) -> None:
    """A recipe can set the plugin's fields. Errors in these fields are reported with their location."""
    listed, valid, misspelled, too_long = tiny_audio(
        site,
        [
            ["list", "projectors", "--json"],
            validate("projector.stride=4"),
            validate("projector.strid=4", "projector.stride=four"),
            validate("projector.stride=40"),
        ],
    )
    assert listed.returncode == 0, listed.stderr
    part = {part["name"]: part for part in json.loads(listed.stdout)["projectors"]}["strided_conv"]
    assert part["module"] == MODULE
    assert part["summary"].startswith("Strided convolution ")
    assert (valid.returncode, valid.stderr) == (0, "")
    assert "is valid: whisper, strided_conv, smollm3;" in valid.stdout
    assert misspelled.returncode == too_long.returncode == 2
    for field, value in (("strid", "'stride'"), ("stride", '"four"')):
        assert re.search(rf"^ *projector\.strided_conv\.{field}: .*{value}", misspelled.stderr, re.MULTILINE)
    assert re.search(r"projector\.strided_conv: .*80 encoder frames.* 0\.3 s has 15", too_long.stderr)


def test_without_the_plugin_its_name_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "projectors", "--json"]) == 0
    assert "strided_conv" not in {part["name"] for part in json.loads(capsys.readouterr().out)["projectors"]}
    assert main(validate()) == 2
    assert "projector: unknown projector 'strided_conv'; " in capsys.readouterr().err


def test_the_plugin_passes_the_contract_checks(site: Path) -> None:
    code = (
        "import warnings; warnings.simplefilter('error'); "
        f"from tiny_audio.testing import check_projector; from {MODULE} import StridedConvConfig as Config; "
        "check_projector(Config.tiny()); check_projector(Config(stride=2, hidden_dim=16)); print('kept')"
    )
    done = python(site, code)
    assert done.stdout == "kept\n", done.stderr


@pytest.mark.slow
@pytest.mark.skipif(find_spec("espeakng_loader") is None, reason="needs espeak-ng: pip install 'tiny-audio[synthetic]'")
def test_the_plugin_trains_and_is_part_of_the_export(site: Path, tmp_path: Path) -> None:
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
    done = call(site, "-m", "tiny_audio.cli", "run", str(RECIPE), *changes, "--output-dir", str(folder), **cache)
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in steps) == 6
    bundled = (folder / "model" / f"{MODULE}.py").read_text()
    assert "class StridedConvProjector(Projector)" in bundled
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["projector"] == {"name": "strided_conv", "output_rms": None, "stride": 4, "hidden_dim": 64}
    # Load the model without the plugin. The model's folder contains the plugin's code.
    code = (
        "import sys, torch; from transformers import AutoModel; "
        "model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True); "
        "print(type(model.projector).__name__, tuple(model.generate(torch.zeros(1, 16000)).shape) > (0,))"
    )
    offline = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    loaded = call(None, "-c", code, str(folder / "model"), **offline)
    assert loaded.stdout == "StridedConvProjector True\n", loaded.stderr
