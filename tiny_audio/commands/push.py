"""``tiny-audio push``: upload an exported folder to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from tiny_audio.config import UserError
from tiny_audio.export import EXPORTS, ExportConfig
from tiny_audio.export.load import model_folder


def push_folder(folder: Path, repo: str, *, private: bool) -> str:
    """Upload an exported model in one commit, and create the repository if it does not exist.

    The token comes from ``HF_TOKEN`` or ``hf auth login``.

    Args:
        folder: folder of an exported model or of a finished run.
        repo: ``owner/name``.
        private: make a new repository private. An existing one is not changed.

    Returns:
        the URL of the commit.

    Raises:
        UserError: the export is incomplete, there is no token, or the hub rejects the upload or does not answer.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx, validate_repo_id

    source, export = _format_of(folder)
    export.check_pushable(source)
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo!r} is not a repository name: {error}; give owner/name") from error
    if "/" not in repo:
        raise UserError(f"{repo!r} has no owner; give owner/name")
    if get_token() is None:
        raise UserError(
            "there is no token for the hub; set HF_TOKEN to one with write access "
            "(https://huggingface.co/settings/tokens), or run `hf auth login`"
        )
    api = HfApi()
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=source,
            allow_patterns=list(export.files),
            commit_message="A model that tiny-audio exported",
        )
    except OfflineModeIsEnabled as error:
        raise UserError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it") from error
    except HfHubHTTPError as error:
        raise UserError(_rejection(repo, error)) from error
    except (httpx.HTTPError, OSError) as error:
        raise UserError(
            f"the hub at {api.endpoint} cannot be reached: {_first_line(error)}; check the network and HF_ENDPOINT"
        ) from error
    # huggingface_hub raises these errors if an upload fails or the hub rejects the model card.
    except (RuntimeError, ValueError) as error:
        cause = error.__cause__
        raise UserError(f"the upload to {repo} failed: {_first_line(error)} {_first_line(cause)}".rstrip()) from error
    return commit.commit_url


def _format_of(folder: Path) -> tuple[Path, type[ExportConfig]]:
    """Find the exported model and its format. If ``folder`` is a run folder, the export is inside it."""
    for entry in EXPORTS.entries():
        if entry.config.is_export(folder):
            return folder, entry.config
    return model_folder(folder), EXPORTS.entry("huggingface").config


def _rejection(repo: str, error: Exception) -> str:
    answer = getattr(error, "response", None)
    status = getattr(answer, "status_code", None)
    reason = getattr(error, "server_message", None) or _first_line(error)
    todo = {
        401: "the token is not valid; create a new one and set HF_TOKEN",
        403: f"the token may not write to {repo}; give it write access, or choose another owner",
        404: "there is no such owner or repository",
        409: "the repository was changed meanwhile, or the name is taken; try again, or choose another name",
        412: "the repository was changed meanwhile; try again",
        429: "too many requests; wait, and try again",
    }.get(status or 0, "try again later")
    return f"the hub rejects the upload ({status}): {reason}; {todo}"


def _first_line(error: BaseException | None) -> str:
    return next(iter(str(error).strip().splitlines()), "") if error is not None else ""
