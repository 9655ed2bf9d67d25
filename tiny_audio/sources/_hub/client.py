"""Calls to the Hugging Face hub: again where it makes sense, and in words that say what to do where it does not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from tiny_audio.config import UserError

ResultT = TypeVar("ResultT")

_LOG = logging.getLogger(__name__)

MAX_RETRIES = 8
"""Of one request; the waits add up to three quarters of a minute, and more where the hub says how long to wait."""
BASE_WAIT_S, MAX_WAIT_S = 1.0, 8.0
_MAX_CONNECT_RETRIES = 2
"""Without a network, nobody wants to wait for the message."""
_TRANSIENT = (408, 429, 500, 502, 503, 504)


def retried(call: Callable[[], ResultT]) -> ResultT:
    """What ``call`` gives, which asks the hub something that the library itself asks only once.

    Waits are doubled each time, and are as long as the hub's rate limit says.

    Raises:
        OSError, httpx2.HTTPError: the last answer, where no try succeeded or another would not help.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    for attempt in range(MAX_RETRIES + 1):
        try:
            return call()
        except HfHubHTTPError as error:
            if error.response.status_code not in _TRANSIENT or attempt == MAX_RETRIES:
                raise
            wait_s = _asked_wait_s(error.response.headers)
            reason: object = f"HTTP {error.response.status_code}"
        except httpx2.TransportError as error:
            refused = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
            if attempt == (_MAX_CONNECT_RETRIES if refused else MAX_RETRIES):
                raise
            wait_s, reason = None, error
        if wait_s is None:
            wait_s = min(MAX_WAIT_S, BASE_WAIT_S * 2**attempt)
        _LOG.warning("the hub answers %s; trying again in %.0f s", reason, wait_s)
        time.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def explained(error: Exception, repo: str, revision: str) -> UserError:
    """What the user can do about an error of the hub's library.

    Anything that is no answer of the hub, and no failure to reach it, is raised again.
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
            f"{repo} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it; unset it for the first run"
        )
    if isinstance(error, GatedRepoError):
        login = "" if get_token() else ", then log in with `hf auth login`, or set HF_TOKEN"
        return UserError(f"{repo} is gated: accept its terms at {page}{login or ' with the account of your token'}")
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"{repo} has no revision {revision!r}; see {page}/tree/main for its branches and commits")
    if isinstance(error, RepositoryNotFoundError):
        login = (
            "the account of your token may lack access"
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
            return UserError(f"the hub limits your requests and still does after {MAX_RETRIES} retries; {hint}")
        if status == 401:
            return UserError(f"the hub refuses your token for {repo}; log in again with `hf auth login`")
        if status in _TRANSIENT:
            return UserError(
                f"the hub answers HTTP {status} for {repo}, after {MAX_RETRIES} retries; try later: {page}"
            )
        return UserError(f"the hub answers HTTP {status} for {repo}; see {page}")
    if isinstance(error, httpx2.TransportError):
        return UserError(
            f"{constants.ENDPOINT} cannot be reached ({error}); connect to the network for the first run, "
            "after which what is in the cache is used without it"
        )
    raise error


def _asked_wait_s(headers: object) -> float | None:
    """Seconds until the hub answers again, where it says so."""
    from huggingface_hub.utils import parse_ratelimit_headers

    assert hasattr(headers, "get")
    limit = parse_ratelimit_headers(headers)  # type: ignore[arg-type]
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1.0
    after = str(headers.get("retry-after") or "")
    return float(after) if after.isdecimal() else None
