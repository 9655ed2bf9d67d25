"""`tiny-audio evaluate` with Whisper models, models on the hub, and clips that are too long for one pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from tests.conftest import write_clips
from tests.support.hub_server import Hub, Repo, running_hub, use_hub
from tests.support.models import assemble
from tests.support.recognizers import save_whisper
from tiny_audio.cli import main
from tiny_audio.evaluation._transformers import TransformersOptions, TransformersTarget
from tiny_audio.evaluation.resolve import resolve_target
from tiny_audio.export.formats.huggingface import export_model
from tiny_audio.frames import SAMPLE_RATE

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT = 4
"""Number of clips."""
Output = Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whisper(tmp_path_factory.mktemp("whisper") / "tiny-whisper")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder, COUNT)
    return folder / "manifest.jsonl"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """Start a local hub, and use an empty cache for its files."""
    from huggingface_hub import constants

    with running_hub() as server:
        use_hub(monkeypatch, server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield server


@pytest.fixture
def evaluated(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Output:
    """Return a function that evaluates one target on one manifest, and returns its scores and hypotheses."""

    def run(target: object, manifest: Path, *arguments: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        capsys.readouterr()
        output = tmp_path / f"results-{len(list(tmp_path.iterdir()))}"
        code = main(["evaluate", str(target), "--data", str(manifest), "--output-dir", str(output), *arguments])
        errors = capsys.readouterr().err
        assert code == 0, errors
        # Leave out the download progress.
        messages = [line for line in errors.splitlines() if line and not line.startswith("Fetching ")]
        assert len(messages) == 1, errors  # the only message states the loading time
        (folder,) = (path.parent for path in output.rglob("hypotheses.jsonl"))
        lines = (folder / "hypotheses.jsonl").read_text().splitlines()
        return json.loads((folder / "scores.json").read_text()), [json.loads(line) for line in lines]

    return run


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def texts(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["id"]: row["pred_text"] for row in rows}


def test_whisper_can_be_evaluated_from_a_folder(evaluated: Output, whisper: Path, clips: Path) -> None:
    from transformers import pipeline

    scores, rows = evaluated(whisper, clips)
    assert (scores["num_clips"], scores["num_failed"]) == (COUNT, 0)
    pipe = pipeline("automatic-speech-recognition", model=str(whisper))
    wanted = {}
    for row in rows:
        samples, rate = soundfile.read(row["audio_filepath"], dtype="float32")
        wanted[row["id"]] = pipe({"raw": samples, "sampling_rate": rate}, generate_kwargs={"num_beams": 1})["text"]
    assert texts(rows) == {key: text.strip() for key, text in wanted.items()}
    assert any(wanted.values())
    assert len(set(wanted.values())) > 1


def test_options_after_the_name_are_passed_to_whisper(whisper: Path, clips: Path) -> None:
    asked: list[dict[str, Any]] = []
    target: Any = resolve_target(f"{whisper}:language=de,num_beams=2,max_new_tokens=3")
    target.load()
    generate = target._pipeline.model.generate

    def watched(**settings: Any) -> Any:
        asked.append(settings)
        return generate(**settings)

    target._pipeline.model.generate = watched
    (transcript,) = target.transcribe_batch([torch.zeros(SAMPLE_RATE)])
    (settings,) = asked
    assert (settings["language"], settings["num_beams"], settings["max_new_tokens"]) == ("de", 2, 3)
    assert len(transcript.text) <= 3


@pytest.mark.parametrize(
    ("option", "problem"), [("language=xx", "Unsupported language: xx"), ("max_new_tokens=9999", "")]
)
def test_options_that_transformers_rejects_are_user_errors(
    option: str, problem: str, whisper: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = [f"{whisper}:{option}", str(whisper)]
    assert main(["evaluate", *targets, "--data", str(clips), "--output-dir", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    name = option.partition("=")[0]
    (message,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert f"tiny-whisper-{option}: transformers cannot transcribe: {problem}" in message
    assert message.endswith(f"; check {name}")
    assert " tiny-whisper " in out, "the other target is scored"


def test_models_without_a_pad_token_get_clips_one_by_one(whisper: Path) -> None:
    target: Any = resolve_target(str(whisper))
    target.load()
    noise = [0.1 * torch.randn(size, generator=torch.Generator().manual_seed(size)) for size in (8000, 16000)]
    wanted = target.transcribe_batch(noise)
    target._pipeline.tokenizer.pad_token = None
    assert target.transcribe_batch(noise) == wanted


def test_a_cpu_computes_in_fp32(whisper: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSpeechSeq2Seq

    half = shutil.copytree(whisper, tmp_path / "half")
    AutoModelForSpeechSeq2Seq.from_pretrained(whisper, dtype=torch.float16).save_pretrained(half)
    assert json.loads((half / "config.json").read_text())["dtype"] == "float16"
    target = TransformersTarget("half", half, "whisper", TransformersOptions(), {}, "cpu")
    target.load()
    assert {parameter.dtype for parameter in target._pipeline.model.parameters()} == {torch.float32}
    assert len(target.transcribe_batch([torch.zeros(SAMPLE_RATE)])) == 1


def test_whisper_transcribes_clips_longer_than_its_window(evaluated: Output, whisper: Path, tmp_path: Path) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(33 * SAMPLE_RATE)
    soundfile.write(tmp_path / "long.flac", noise, SAMPLE_RATE)
    manifest = tmp_path / "long.jsonl"
    manifest.write_text(json.dumps({"audio_filepath": "long.flac", "duration": 33.0, "text": "a long one"}) + "\n")
    _, rows = evaluated(whisper, manifest)
    assert [(row["error"], row["duration"]) for row in rows] == [(None, 33.0)]
    target: Any = resolve_target(str(whisper))
    target.load()
    samples, _ = soundfile.read(tmp_path / "long.flac", dtype="float32")
    waves = [torch.from_numpy(samples[:size]) for size in (8000, len(samples), 16_000)]
    first, long, last = target.transcribe_batch(waves)
    assert long.text == rows[0]["pred_text"]
    assert [first, last] == [target.transcribe_batch([wave])[0] for wave in (waves[0], waves[2])]


def test_a_transformers_model_can_be_evaluated_from_the_hub(
    evaluated: Output, hub: Hub, whisper: Path, clips: Path
) -> None:
    hub.repos["acme/tiny-whisper"] = Repo(files_of(whisper))
    scores, rows = evaluated("acme/tiny-whisper:language=en", clips)
    assert (len(rows), scores["num_failed"]) == (COUNT, 0)
    assert texts(rows) == texts(evaluated(f"{whisper}:language=en", clips)[1])


def test_our_models_on_the_hub_are_loaded_without_their_code(
    evaluated: Output, hub: Hub, clips: Path, tmp_path: Path
) -> None:
    export_model(*assemble(), tmp_path / "model")
    hub.repos["acme/ours"] = Repo(files_of(tmp_path / "model"))
    scores, rows = evaluated("acme/ours", clips)
    assert scores["num_failed"] == 0
    assert texts(rows) == texts(evaluated(tmp_path / "model", clips)[1])
    assert any(texts(rows).values())
    assert not [request.path for request in hub.requests if request.path.endswith(".py")]


def test_revisions_are_different_models(hub: Hub, whisper: Path) -> None:
    older = Repo(files_of(whisper))
    newer = {**older.files, "config.json": older.files["config.json"] + b"\n"}
    hub.repos["acme/tiny-whisper"] = Repo(newer, before=older)
    now, then = (resolve_target(f"acme/tiny-whisper{suffix}") for suffix in ("", f":revision={older.commit}"))
    assert (now.identity["commit"], then.identity["commit"]) == (hub.repos["acme/tiny-whisper"].commit, older.commit)
    assert now.label != then.label
    then.load()
    asked = {request.path.split("/")[4] for request in hub.requests if request.path.endswith("/model.safetensors")}
    assert asked == {older.commit}


def test_a_revision_of_digits_is_read_as_text(hub: Hub, whisper: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.repos["acme/tiny-whisper"] = Repo(files_of(whisper))
    for revision in ("1234567", "12e4567"):
        assert main(["evaluate", f"acme/tiny-whisper:revision={revision}", "--data", "none.jsonl"]) == 2
        assert "the model cannot be downloaded from the Hugging Face hub: " in capsys.readouterr().err


@pytest.mark.usefixtures("pauses_by_loudness")
def test_long_clips_get_the_text_of_transcribe(
    evaluated: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_model(*assemble(), tmp_path / "model")
    rng = np.random.default_rng(0)
    parts = [np.concatenate([np.zeros(SAMPLE_RATE), 0.1 * rng.standard_normal(SAMPLE_RATE)]) for _ in range(20)]
    soundfile.write(tmp_path / "long.flac", np.concatenate(parts), SAMPLE_RATE)
    manifest = tmp_path / "long.jsonl"
    manifest.write_text(json.dumps({"audio_filepath": "long.flac", "duration": 40.0, "text": "a long one"}) + "\n")
    _, (row,) = evaluated(tmp_path / "model", manifest)
    capsys.readouterr()
    assert main(["transcribe", str(tmp_path / "model"), str(tmp_path / "long.flac"), "--no-filters", "--json"]) == 0
    (transcript,) = json.loads(capsys.readouterr().out)
    assert len(transcript["segments"]) == 20
    assert (row["pred_text"], row["ctc_text"], row["truncated"]) == (
        transcript["text"],
        transcript["ctc_text"],
        transcript["truncated"],
    )
    assert row["pred_text"]
