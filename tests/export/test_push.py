"""``tiny-audio push`` uploads to a local server that implements the Hugging Face hub's protocol for uploads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

from tests.support.hub_uploads import TOKEN, UploadHub, upload_hub
from tests.support.models import assemble
from tests.support.tutorial import tiny_audio
from tiny_audio.cli import main
from tiny_audio.export.formats.huggingface import export_model

# When huggingface_hub uploads large files, its HTTP library warns that a deprecated argument is used.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")


FOREIGN = ("optimizer.pt", ".env.json", "private/notes.txt")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("push") / "model"
    model, tokenizer = assemble()
    export_model(model, tokenizer, folder, card="---\nlibrary_name: transformers\n---\n# A model\n")
    for name in FOREIGN:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"a file that is not part of an export")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    with upload_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the test's hub does not implement Xet
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def test_the_command_uploads_exactly_the_files_of_an_export(exported: Path, tmp_path: Path) -> None:
    """Here, the command reads HF_ENDPOINT, as for a user. In the other tests, a constant is replaced instead."""
    with upload_hub() as hub:
        env = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path)}
        env["HF_HUB_OFFLINE"] = "0"  # the command would inherit a 1 from the tests
        command = ["push", str(exported), "me/my-model", "--private"]
        (done,) = tiny_audio(None, [command], anew=["huggingface_hub"], **env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{hub.endpoint}/me/my-model/commit/")
    paths = {path.relative_to(exported).as_posix(): path for path in exported.rglob("*") if path.is_file()}
    files = {name: path.read_bytes() for name, path in paths.items() if name not in FOREIGN}
    assert hub.repos == {"me/my-model": files}
    assert hub.private == {"me/my-model": True}
    assert [commit["summary"] for commit in hub.commits] == ["A model that tiny-audio exported"]


def test_an_existing_repository_gets_a_commit(hub: UploadHub, exported: Path) -> None:
    hub.repos["me/there"] = {"LICENSE": b"mine"}
    assert main(["push", str(exported), "me/there"]) == 0
    assert {"LICENSE", "model.safetensors", "README.md"} <= hub.repos["me/there"].keys()
    assert not hub.private


def test_a_space_uses_the_commit_of_its_model(
    hub: UploadHub, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(exported), "me/x", "--space", "--private"]) == 0
    model, space = capsys.readouterr().out.split()
    assert model.startswith(f"{hub.endpoint}/me/x/commit/")
    assert space.startswith(f"{hub.endpoint}/spaces/me/x/commit/")
    assert hub.private == {"me/x": True, "spaces/me/x": True}
    files = {name: content.decode() for name, content in hub.repos["spaces/me/x"].items()}
    assert files.keys() == {"README.md", "app.py", "requirements.txt"}
    assert f"REVISION: str | None = {model.rpartition('/')[2]!r}" in files["app.py"]
    assert files["requirements.txt"] == (exported / "requirements.txt").read_text()
    header = yaml.safe_load(files["README.md"].split("---")[1])
    assert header["models"] == ["me/x"]
    assert (header["sdk"], header["app_file"]) == ("gradio", "app.py")


def test_a_rejected_space_is_named(hub: UploadHub, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.refused_spaces = True
    capsys.readouterr()
    assert main(["push", str(exported), "me/x", "--space"]) == 2
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{hub.endpoint}/me/x/commit/")  # the model was uploaded
    assert "(403)" in printed.err
    assert "the Space me/x" in printed.err


def rejected(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["push", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("error: ") == 1
    return printed.err


@pytest.mark.parametrize(
    ("action", "status", "words", "message"),
    [
        (
            "create",
            401,
            "Invalid username or password.",
            r"(401): Invalid username or password.; the token is not valid",
        ),
        (
            "create",
            403,
            "You don't have the rights",
            "(403): You don't have the rights; the token may not write to me/x",
        ),
        (
            "commit",
            409,
            "A commit has happened since",
            "(409): A commit has happened since; the repository was changed",
        ),
        ("commit", 412, "Precondition", "(412): Precondition; the repository was changed meanwhile; try again"),
        ("preupload", 404, "Repository not found", "there is no such owner or repository"),
    ],
)
def test_refusals_of_the_hub_are_explained(
    hub: UploadHub,
    exported: Path,
    capsys: pytest.CaptureFixture[str],
    action: str,
    status: int,
    words: str,
    message: str,
) -> None:
    hub.refusals[action] = (status, words)
    printed_error = rejected(capsys, str(exported), "me/x")
    assert "the hub rejects" in printed_error
    assert message in printed_error


def test_an_invalid_token_is_an_error(
    hub: UploadHub, exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    assert "(401): Invalid credentials in Authorization header" in rejected(capsys, str(exported), "me/x")
    assert not hub.repos


def test_a_missing_token_is_an_error(
    hub: UploadHub, exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    assert "HF_TOKEN" in rejected(capsys, str(exported), "me/x")
    assert not hub.requests


def test_an_unavailable_hub_is_an_error(
    hub: UploadHub, exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert "the hub at http://127.0.0.1:1 cannot be reached: " in rejected(capsys, str(exported), "me/x")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in rejected(capsys, str(exported), "me/x")


@pytest.mark.parametrize(
    ("repo", "message"),
    [
        ("model", "'model'"),
        ("a/b/c", "'a/b/c'"),
    ],
)
def test_invalid_names_are_rejected(
    exported: Path, capsys: pytest.CaptureFixture[str], repo: str, message: str
) -> None:
    assert message in rejected(capsys, str(exported), repo)


def test_folders_without_an_export_are_rejected(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nowhere: no such folder" in rejected(capsys, str(tmp_path / "nowhere"), "me/x")
    assert "no config.json" in rejected(capsys, str(tmp_path), "me/x")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert "model_type 'llama'" in rejected(capsys, str(tmp_path), "me/x")
    (tmp_path / "config.json").write_bytes((exported / "config.json").read_bytes())
    assert "*.safetensors" in rejected(capsys, str(tmp_path), "me/x")
    weights = (exported / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:100])
    assert "model.safetensors: the weights cannot be read: " in rejected(capsys, str(tmp_path), "me/x")
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert "the code that runs the model is missing" in rejected(capsys, str(tmp_path), "me/x")
    (tmp_path / "modeling_tiny_audio.py").touch()
    config = json.loads((exported / "config.json").read_text())
    config["encoder"]["pretrained"] = str(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"base_weights": {"encoder": {"tensors": 1}}}))
    assert f"the encoder's weights are in the local folder {tmp_path}" in rejected(capsys, str(tmp_path), "me/x")
    (tmp_path / "config.json").unlink()
    (tmp_path / "state.json").touch()
    assert "this run has no model yet" in rejected(capsys, str(tmp_path), "me/x")
    for name in ("step-000000004", "step-000000004 (copy)"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert "(saved steps: 4)" in rejected(capsys, str(tmp_path), "me/x")
