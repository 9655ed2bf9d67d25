"""Requests to providers over HTTP: keys, timeouts, retries and checked responses."""

from __future__ import annotations

import functools
import ipaddress
import os
import ssl
import threading
import time
from abc import ABC
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

import httpx2
from pydantic import BaseModel, Field, NonNegativeInt, PositiveFloat, ValidationError, field_validator

from tiny_audio.config import NO_IDENTITY, UserError, problems
from tiny_audio.providers import Price, Provider, ProviderConfig, ProviderError, ProviderRefusedError
from tiny_audio.runtime.retries import RetryPolicy, TransientError, asked_wait_s, is_transient

AnswerT = TypeVar("AnswerT", bound=BaseModel)

AUDIO_TYPE = "audio/flac"
_LONGEST_BACKOFF_S = 60.0
_LONGEST_CONNECT_S = 30.0

_HOPELESS = frozenset({401, 402, 403, 404, 405, 410})
"""HTTP statuses after which no clip can be transcribed."""
_EMPTY_ACCOUNT = "insufficient_quota"
"""OpenAI's error code, with status 429, for an account without money. A retry would not help."""
_MAX_SHOWN = 300
"""Maximum number of characters of a response that are shown in an error message."""


class HttpConfig(ProviderConfig):
    """Base of the configs of providers behind an HTTP API."""

    sends_key: ClassVar[bool] = True
    """Whether requests always contain a key. If so, they must be encrypted or stay on this machine."""
    usd_per_hour_of: ClassVar[Mapping[str, float]] = {}
    """List price of an hour of audio, by model."""
    price_source: ClassVar[str] = ""
    """Web page of the list prices, and the month in which they were read."""

    base_url: str
    """Address of the API."""
    model: str
    """Name of the provider's model."""
    language: str | None = "en"
    """Spoken language, as a code such as `en`. If None, the provider detects the language."""
    timeout_s: PositiveFloat = Field(default=300.0, json_schema_extra=NO_IDENTITY)
    """Maximum seconds to wait for a response, or for a transcript that the provider creates in the background."""
    max_retries: NonNegativeInt = Field(default=6, json_schema_extra=NO_IDENTITY)
    """Maximum number of retries after a temporary failure, such as a rate limit, a server error or a broken connection.
    """
    retry_wait_s: PositiveFloat = Field(default=0.5, json_schema_extra=NO_IDENTITY)
    """Seconds before the first retry. Each further pause is twice as long, up to a minute. Each pause is then shortened
    by a random amount. If the server asks for a longer pause, the pause lasts at least as long as the server asks."""
    max_wait_s: PositiveFloat = Field(default=120.0, json_schema_extra=NO_IDENTITY)
    """Longest pause, in seconds, that a server may ask for. A clip fails if the server asks for a longer pause."""

    @field_validator("base_url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            usable = False
        if not usable:
            raise ValueError(f"{value!r} is not a URL; write it as https://host/path")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "must be a plain address, without user, password, query or fragment: keys come from the environment"
            )
        if cls.sends_key and not is_private_enough(value):
            raise ValueError(f"{value!r} would send your key unencrypted; write it as https://host/path")
        return value.rstrip("/")

    def list_price(self) -> Price | None:
        """See :meth:`ProviderConfig.list_price`."""
        per_hour = self.usd_per_hour_of.get(self.model)
        return None if per_hour is None else Price(per_hour, self.price_source)


def read_key(variable: str, provider: str) -> str:
    """Return the API key in an environment variable.

    Raises:
        UserError: the variable is not set, or contains characters that no key has.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"provider {provider} needs a key, but the environment variable {variable} is not set; get a key from the "
            f"provider and run: export {variable}=..."
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"the environment variable {variable} contains characters that keys never have; set it again")
    return key


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Return an SSL context with the system's certificates. All clients share it, because it is slow to create."""
    return httpx2.create_ssl_context()


class Api:
    """One provider's API. Threads may share an instance. If the server asks one thread to wait, all threads wait."""

    def __init__(self, config: HttpConfig, headers: Mapping[str, str], secret: str | None) -> None:
        self.config = config
        self._secret = secret
        self._lock = threading.Lock()
        self._open_at = 0.0
        self._connect_s = min(_LONGEST_CONNECT_S, config.timeout_s)
        self._client = httpx2.Client(
            headers=dict(headers),
            verify=_certificates(),
            timeout=httpx2.Timeout(config.timeout_s, connect=self._connect_s),
            limits=httpx2.Limits(max_connections=config.concurrency),
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def ask(self, answer: type[AnswerT], method: str, path: str, **request: Any) -> AnswerT:
        """Send a request, with retries, and check the response.

        Args:
            answer: pydantic model of the JSON body of a successful response.
            method: the HTTP method, such as ``POST``.
            path: the path after ``base_url``.
            request: ``params``, ``json``, ``data``, ``files``, ``content`` and ``headers``, as for httpx.

        Raises:
            ProviderError, ProviderRefusedError: see :class:`tiny_audio.providers.Provider`.
        """
        config = self.config
        policy = RetryPolicy(config.max_retries, config.retry_wait_s, _LONGEST_BACKOFF_S, config.max_wait_s)
        try:
            response = policy.call(lambda: self._attempt(method, path, request))
        except TransientError as error:
            if (error.asked_wait_s or 0.0) > config.max_wait_s:
                raise ProviderError(
                    f"{error} (the server asks to wait {error.asked_wait_s:.0f} s; max_wait_s is {config.max_wait_s:g})"
                ) from None
            tries = config.max_retries + 1
            raise ProviderError(f"{error} (after {tries} {'try' if tries == 1 else 'tries'})") from None
        return self._checked(answer, response)

    def _attempt(self, method: str, path: str, request: Mapping[str, Any]) -> httpx2.Response:
        self._wait_until_open()
        try:
            response = self._client.request(method, self.config.base_url + path, **request)
        except httpx2.RequestError as error:  # also a damaged response body
            raise TransientError(self._broken(error)) from error
        if response.is_success:
            return response
        failure = self._failure(response)
        if not self._may_pass(response):
            hopeless = response.status_code in _HOPELESS or _EMPTY_ACCOUNT in response.text
            raise ProviderRefusedError(failure) if hopeless else ProviderError(failure)
        asked_s = asked_wait_s(response.headers, time.time())
        if asked_s is not None and asked_s <= self.config.max_wait_s:
            with self._lock:
                self._open_at = max(self._open_at, time.monotonic() + asked_s)
        raise TransientError(failure, asked_s)

    def problem(self, words: str) -> ProviderError:
        """Return an error whose message begins with the provider's name."""
        return ProviderError(f"{self.config.name}: {self._shown(words)}")

    def _wait_until_open(self) -> None:
        with self._lock:
            left = self._open_at - time.monotonic()
        if left > 0:
            time.sleep(left)

    def _may_pass(self, response: httpx2.Response) -> bool:
        retry_header = response.headers.get("x-should-retry")
        if retry_header in ("true", "false"):
            return retry_header == "true"
        return is_transient(response.status_code) and _EMPTY_ACCOUNT not in response.text

    def _failure(self, response: httpx2.Response) -> str:
        words = " ".join(response.text.split()) or response.reason_phrase
        where = f"{response.request.method} {response.request.url.copy_with(query=None)}"
        return f"{self.config.name}: {where} answered {response.status_code}: {self._shown(words)}"

    def _broken(self, error: httpx2.RequestError) -> str:
        url = self.config.base_url
        if isinstance(error, httpx2.TimeoutException):
            if isinstance(error, httpx2.ConnectTimeout):
                return f"{self.config.name}: no connection to {url} within {self._connect_s:g} s"
            return f"{self.config.name}: no answer from {url} within {self.config.timeout_s:g} s"
        unreachable = isinstance(error, httpx2.ConnectError)
        what = f"{url} cannot be reached" if unreachable else f"the connection to {url} broke off"
        return f"{self.config.name}: {what}: {self._shown(str(error) or type(error).__name__)}"

    def _checked(self, answer: type[AnswerT], response: httpx2.Response) -> AnswerT:
        try:
            body = response.json()
        except ValueError:
            raise self.problem(
                f"answered {response.status_code} without JSON: {self._shown(response.text)!r}"
            ) from None
        try:
            return answer.model_validate(body)
        except ValidationError as error:
            raise self.problem(
                f"returned a response that does not match its documentation: {problems(error)}"
            ) from None

    def _shown(self, words: str) -> str:
        """Shorten a long text, and hide the key, because some servers repeat a rejected key in their response."""
        words = words.replace(self._secret, "(the key)") if self._secret else words
        return words if len(words) <= _MAX_SHOWN else f"{words[:_MAX_SHOWN]} ..."


class HttpProvider(Provider, ABC):
    """A provider behind an HTTP API.

    Args:
        headers: HTTP headers of every request.
        key: the key to hide in error messages. None if requests contain no key.
    """

    def __init__(self, config: HttpConfig, headers: Mapping[str, str], key: str | None) -> None:
        self._api = Api(config, headers, key)

    def close(self) -> None:
        """See :meth:`Provider.close`."""
        self._api.close()


def is_private_enough(url: str) -> bool:
    """Whether a key may be sent to this URL: the connection is encrypted, or the server is on this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    return parts.scheme == "https" or local
