"""Requests to the Hugging Face hub: retries, and error messages that say what to do."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from tiny_audio.config import UserError
from tiny_audio.runtime.retries import RetryPolicy, TransientError, asked_wait_s, is_transient

ResultT = TypeVar("ResultT")

POLICY = RetryPolicy(max_retries=8, base_wait_s=1.0, max_wait_s=8.0, log_level=logging.WARNING)
"""When to retry requests to the hub. Each wait is logged as a warning, because the waits of one request can add up
to more than half a minute."""
_MAX_CONNECT_RETRIES = 2
"""Maximum number of retries if the hub cannot be reached. The number is small, so that a missing network is reported
soon."""


def retried(call: Callable[[], ResultT], *, connect_retries: int = _MAX_CONNECT_RETRIES) -> ResultT:
    """Call a function that sends requests to the hub, and return its result. Retry after transient failures.

    Args:
        connect_retries: maximum number of retries if the hub cannot be reached.

    Raises:
        OSError, httpx2.HTTPError: the error of the last attempt.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    def attempt() -> ResultT:
        try:
            return call()
        except HfHubHTTPError as error:
            if not is_transient(error.response.status_code):
                raise
            reason = f"the hub answers HTTP {error.response.status_code}"
            raise TransientError(reason, asked_wait_s(error.response.headers, time.time())) from error
        except httpx2.TransportError as error:
            unreachable = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
            raise TransientError(f"the hub: {error}", max_retries=connect_retries if unreachable else None) from error

    try:
        return POLICY.call(attempt)
    except TransientError as error:
        raise error.__cause__ or error from None


def explained(error: Exception, repo: str, revision: str) -> UserError:
    """Return an error whose message says what to do, for an error of huggingface_hub or of the network.

    Other errors are raised again.
    """
    import httpx2
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{constants.ENDPOINT}/datasets/{repo}"
    if isinstance(error, OfflineModeIsEnabled):
        return UserError(
            f"{repo} is not in the cache, and HF_HUB_OFFLINE prevents a download; unset HF_HUB_OFFLINE for the first "
            "run"
        )
    if isinstance(error, GatedRepoError):
        login = "" if get_token() else ", then log in with `hf auth login`, or set HF_TOKEN"
        return UserError(f"{repo} is gated: accept its terms at {page}{login or ' with the account of your token'}")
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"{repo} has no revision {revision!r}; see {page}/tree/main for its branches and commits")
    if isinstance(error, RepositoryNotFoundError):
        login = (
            "whether the account of your token has access"
            if get_token()
            else "if it is private, run `hf auth login` first"
        )
        return UserError(f"there is no dataset {repo!r} at {constants.ENDPOINT}; check its name, and {login}")
    if isinstance(error, DisabledRepoError):
        return UserError(f"{repo} is disabled on the hub; see {page}")
    if isinstance(error, HFValidationError):
        return UserError(
            f"{repo!r} cannot be the name of a dataset; write owner/name, such as speechbrain/LoquaciousSet"
        )
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 429:
            hint = "wait a few minutes" + ("" if get_token() else ", or log in with `hf auth login` for a higher limit")
            return UserError(f"the hub still limits your requests after {POLICY.max_retries} retries; {hint}")
        if status == 401:
            return UserError(f"the hub rejects your token for {repo}; log in again with `hf auth login`")
        if is_transient(status):
            return UserError(
                f"the hub answers HTTP {status} for {repo} after {POLICY.max_retries} retries; try later: {page}"
            )
        return UserError(f"the hub answers HTTP {status} for {repo}; see {page}")
    if isinstance(error, httpx2.TransportError):
        return UserError(
            f"{constants.ENDPOINT} cannot be reached ({error}); without a network, only cached data can be used"
        )
    raise error
