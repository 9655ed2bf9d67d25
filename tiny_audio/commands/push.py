"""``tiny-audio push``: upload an exported folder to the Hugging Face hub."""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tiny_audio.config import UserError, first_line
from tiny_audio.export import EXPORTS, ExportConfig
from tiny_audio.export.load import model_folder

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi


def push_folder(folder: Path, repo: str, *, private: bool, space: bool = False) -> Iterator[str]:
    """Upload an exported model in one commit, and create the repository if it does not exist.

    The token comes from ``HF_TOKEN`` or ``hf auth login``.

    Args:
        folder: folder of an exported model or of a finished run.
        repo: ``owner/name``.
        private: make a new repository private. An existing repository keeps its visibility.
        space: also upload a Space of the same name, in which visitors can try the model.

    Yields:
        the URLs of the commits: first the model's, then the Space's.

    Raises:
        UserError: the export is incomplete, there is no token, the hub rejects the upload, or the hub does not answer.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    source, export = _format_of(folder)
    export.check_pushable(source)
    if space and not (source / "requirements.txt").is_file():
        raise UserError(f"{source}: a Space needs requirements.txt, which is missing; export the model again")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo!r} is not a repository name: {error}; give owner/name") from error
    if "/" not in repo:
        raise UserError(f"{repo!r} has no owner; give owner/name")
    if get_token() is None:
        raise UserError(
            "there is no token for the hub; set HF_TOKEN to a token with write access "
            "(https://huggingface.co/settings/tokens), or run `hf auth login`"
        )
    api = HfApi()
    with _hub_errors(api, repo):
        api.create_repo(repo, private=private or None, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=source,
            allow_patterns=_patterns(source, export),
            commit_message="A model that tiny-audio exported",
        )
    yield commit.commit_url
    if space:
        with _hub_errors(api, f"the Space {repo}"):
            yield _push_space(api, repo, commit, source / "requirements.txt", private=private).commit_url


def _patterns(folder: Path, export: type[ExportConfig]) -> list[str]:
    """Return a pattern for each file and folder of an export.

    The patterns ``export.files`` cannot be used: in the hub's patterns, ``*`` also matches slashes, so these patterns
    would also match files in folders that are not part of the export.
    """
    entries = [entry for entry in folder.iterdir() if export.has_file(entry.name)]
    return [glob.escape(entry.name) + ("/*" if entry.is_dir() else "") for entry in entries]


def _push_space(api: HfApi, repo: str, model: CommitInfo, requirements: Path, *, private: bool) -> CommitInfo:
    """Upload a Space that runs the model at the commit ``model``. Return the Space's commit."""
    from tiny_audio.serving.space import write_space

    api.create_repo(repo, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write_space(Path(folder), repo, model.oid, requirements.read_text(encoding="utf-8"))
        return api.upload_folder(
            repo_id=repo, repo_type="space", folder_path=folder, commit_message=f"An app for {repo}"
        )


@contextmanager
def _hub_errors(api: HfApi, repo: str) -> Iterator[None]:
    """Turn the errors of an upload into a UserError that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise UserError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it") from error
    except HfHubHTTPError as error:
        raise UserError(_rejection(repo, error)) from error
    except (httpx.HTTPError, OSError) as error:
        raise UserError(
            f"the hub at {api.endpoint} cannot be reached: {first_line(error)}; check the network and HF_ENDPOINT"
        ) from error
    # huggingface_hub raises these errors if an upload fails or the hub rejects the model card.
    except (RuntimeError, ValueError) as error:
        cause = f" {first_line(error.__cause__)}" if error.__cause__ else ""
        raise UserError(f"the upload to {repo} failed: {first_line(error)}{cause}") from error


def _format_of(folder: Path) -> tuple[Path, type[ExportConfig]]:
    """Find the exported model and its format. If ``folder`` is a run folder, the export is inside it."""
    for entry in EXPORTS.entries():
        if entry.config.is_export(folder):
            return folder, entry.config
    return model_folder(folder), EXPORTS.entry("huggingface").config


def _rejection(repo: str, error: Exception) -> str:
    answer = getattr(error, "response", None)
    status = getattr(answer, "status_code", None)
    reason = getattr(error, "server_message", None) or first_line(error)
    todo = {
        401: "the token is not valid; create a new one and set HF_TOKEN",
        403: f"the token may not write to {repo}; give it write access, or choose another owner",
        404: "there is no such owner or repository",
        409: "the repository was changed meanwhile, or the name is taken; try again, or choose another name",
        412: "the repository was changed meanwhile; try again",
        429: "too many requests; wait, and try again",
    }.get(status or 0, "try again later")
    return f"the hub rejects the upload ({status}): {reason}; {todo}"
