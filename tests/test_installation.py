"""Installations in new virtual environments, like those of users: without the source folder and without constraints.

With the versions that pip selects, everything can be imported, and a model can be trained.

Each slow test creates a virtual environment, which takes minutes. To run the tests of one Python version, use
``pytest -m slow tests/test_installation.py -k 3.11``.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import soundfile
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import write_clips
from tests.support.environments import PROJECT, Environment, build_wheel, lowest, pythons
from tests.support.models import assemble
from tests.support.paths import RECIPES, ROOT
from tiny_audio.audio.load import load_audio
from tiny_audio.export.formats.huggingface import export_model
from tiny_audio.export.load import load_model
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.runtime.requirements import REQUIREMENTS

MODULES = {
    "synthetic": "espeakng_loader",
    "pocketsphinx": "pocketsphinx",
    "liger": "liger_kernel",
    "energy": "pynvml",
    "wandb": "wandb",
    "quantization": "bitsandbytes",
    "multilingual": "num2words",
    "bench": "pytest_benchmark",
    "serve": "fastapi",
    "dev": "hypothesis",
}
"""One module that each extra installs. flash-attn is left out, because its installation needs CUDA's compiler."""
MORE_OF_SERVE = {"prometheus_client", "starlette", "uvicorn"}
PYTHONS = pythons()
HERE = next(iter(PYTHONS))
INSTALLATIONS = [(HERE, ""), *((version, ",".join(MODULES)) for version in PYTHONS)]
EXPORTS = [(HERE, "oldest"), *((version, "newest") for version in PYTHONS)]

IMPORT_ALL = """
import importlib, json, pkgutil, sys, tiny_audio
extras, left_out = json.loads(sys.argv[1])
names = [module.name for module in pkgutil.walk_packages(tiny_audio.__path__, "tiny_audio.")]
for name in [name for name in names if not name.endswith("._cases")] + extras:  # only a benchmark can import its cases
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in left_out:
            raise
print(len(names), tiny_audio.__file__)
"""
LOAD = """
import json, sys
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, pipeline
AutoModelForSpeechSeq2Seq.from_pretrained(sys.argv[1], trust_remote_code=True)
AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
recognizer = pipeline("automatic-speech-recognition", model=sys.argv[1], trust_remote_code=True)
print(json.dumps(recognizer(sys.argv[2])["text"]))
"""
FEW_STEPS = [
    "training.steps=5",
    "training.warmup_steps=0",
    "execution.evaluate_every=null",
    "execution.evaluate_set=null",
]

Create = Callable[..., Environment]


def test_exports_require_what_this_package_requires() -> None:
    ours = set(PROJECT["dependencies"])
    assert set(REQUIREMENTS) <= ours


def test_constraints_pin_every_requirement() -> None:
    """The requirements of all extras are pinned, except flash-attn, because its installation needs CUDA's compiler."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(pin.name): pin.specifier for pin in map(Requirement, lines[1:])}
    assert all(str(pin).startswith("==") for pin in pins.values())
    extras = {name: texts for name, texts in PROJECT["optional-dependencies"].items() if name != "flash-attn"}
    for requirement in map(Requirement, chain(PROJECT["dependencies"], *extras.values())):
        name = canonicalize_name(requirement.name)
        assert name in pins, f"pin {name} in constraints.txt"
        (pin,) = pins[name]
        assert pin.version in requirement.specifier, name


def test_every_extra_is_installed_somewhere() -> None:
    assert set(MODULES) | {"flash-attn"} == set(PROJECT["optional-dependencies"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def create(tmp_path: Path) -> Iterator[Create]:
    """Yield a function that creates a virtual environment. At the end of the test, all its environments are removed."""
    created = []

    def create(version: str, *requirements: str) -> Environment:
        created.append(Environment.create(PYTHONS[version], tmp_path / "environment", *requirements))
        return created[-1]

    yield create
    for environment in created:
        environment.remove()


def check(environment: Environment, *modules: str) -> None:
    """Import all modules in the environment, train for five steps, and transcribe with the trained model."""
    left_out = sorted((set(MODULES.values()) | MORE_OF_SERVE) - set(modules))
    path = environment.run("python", "-c", IMPORT_ALL, json.dumps([modules, left_out])).split()[1]
    assert Path(path).is_relative_to(environment.folder)
    assert "quickstart" in environment.run("tiny-audio", "recipes")
    manifest = write_clips(environment.folder / "clips", 8)
    source = f"{{name: manifest, path: {manifest}}}"
    data = [f"data.train={{clips: {source}}}", f"data.evaluation={{again: {source}}}", "data.min_duration_s=0.1"]
    environment.run("tiny-audio", "run", "quickstart", *data, *FEW_STEPS, "--output-dir", "run")
    report = json.loads((environment.folder / "work" / "run" / "report.json").read_text())
    assert report["training"]["steps"] == 5
    environment.run("tiny-audio", "transcribe", "run", str(manifest.parent / "clip000.wav"))


@pytest.mark.slow
def test_a_wheel_contains_the_recipes_and_the_web_page(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"tiny_audio/recipes/{path.relative_to(RECIPES)}" for path in RECIPES.rglob("*.yaml")} <= names
    page = ROOT / "tiny_audio" / "serving" / "page"
    assert {f"tiny_audio/serving/page/{path.name}" for path in page.iterdir() if path.is_file()} <= names
    assert not [name for name in names if not name.startswith(("tiny_audio/", "tiny_audio-"))]


@pytest.mark.slow
def test_a_wheel_trains_the_quickstart_by_name(wheel: Path, create: Create) -> None:
    environment = create(HERE, f"{wheel}[synthetic]")
    assert "valid" in environment.run("tiny-audio", "validate", "quickstart")
    fewer = [f"data.{place}.num_utterances=30" for place in ("train.voices", "evaluation.unseen_voices")]
    fewer.append("data.evaluation.unseen_accents.num_utterances=30")
    environment.run("tiny-audio", "run", "quickstart", *fewer, *FEW_STEPS, "--output-dir", "run")
    soundfile.write(environment.folder / "silence.wav", np.zeros(16_000), 16_000)
    environment.run("tiny-audio", "transcribe", "run", "../silence.wav")


@pytest.mark.slow
@pytest.mark.parametrize(("version", "extras"), INSTALLATIONS)
def test_an_installation_trains(wheel: Path, create: Create, version: str, extras: str) -> None:
    environment = create(version, f"{wheel}[{extras}]" if extras else str(wheel))
    check(environment, *(MODULES[extra] for extra in extras.split(",") if extra))


@pytest.mark.slow
def test_the_lowest_versions_train(wheel: Path, create: Create) -> None:
    check(create(HERE, str(wheel), *lowest(PROJECT["dependencies"])))


@pytest.mark.slow
@pytest.mark.parametrize(("version", "transformers"), EXPORTS)
def test_an_export_loads_with_its_requirements(create: Create, tmp_path: Path, version: str, transformers: str) -> None:
    model, recording = tmp_path / "model", tmp_path / "clip.wav"
    export_model(*assemble(lora=True), model)
    rng = np.random.default_rng(0)
    soundfile.write(recording, 0.2 * rng.standard_normal(22_050) * np.sin(np.arange(22_050) / 900), 22_050)
    oldest = lowest([requirement for requirement in REQUIREMENTS if requirement.startswith("transformers")])
    pins = oldest if transformers == "oldest" else []
    environment = create(version, "-r", str(model / "requirements.txt"), *pins)
    text = json.loads(environment.run("python", "-c", LOAD, str(model), str(recording)).splitlines()[-1])
    assert text == Transcriber(*load_model(model)).transcribe([load_audio(recording, max_duration_s=10.0)])[0].text
