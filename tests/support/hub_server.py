"""A local server with the parts of the Hugging Face hub's protocol that are needed to read datasets and models.

It serves repository information, file trees, ``resolve`` with redirects to signed addresses on another host, byte
ranges, and gated repositories. On demand, it simulates faults: rate limits with reset headers, errors, cut connections
and expired signatures.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

Fault = Literal["limit", "error", "cut", "stall"]

LOQUACIOUS_NAME = "speechbrain/LoquaciousSet"
LOQUACIOUS_CARD = {"configs": [{"config_name": "small", "data_files": [{"split": "train", "path": "small/*"}]}]}


@dataclass
class Repo:
    """A repository at one commit."""

    files: dict[str, bytes]
    card: dict[str, Any] = field(default_factory=dict)
    """The YAML at the top of its README."""
    gated: bool = False
    """Whether files need a token."""
    converted: Repo | None = None
    """The hub's conversion to Parquet, on its own branch."""
    before: Repo | None = None
    """The previous commit."""

    def at(self, revision: str) -> Repo | None:
        if revision in ("main", self.commit):
            return self
        if self.converted is not None and revision in ("refs/convert/parquet", self.converted.commit):
            return self.converted
        return None if self.before is None or revision == "main" else self.before.at(revision)

    @property
    def commit(self) -> str:
        digest = hashlib.sha1(json.dumps(self.card).encode())
        for path, content in sorted(self.files.items()):
            digest.update(path.encode() + sha256(content).encode())
        return digest.hexdigest()


@lru_cache(maxsize=256)
def sha256(content: bytes) -> str:
    """Return the digest of a file. It is cached, because each request needs the digests of all files."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Request:
    """A request and its response."""

    method: str
    path: str
    token: str | None
    status: int
    sent: int
    """Bytes of the response body."""
    range: tuple[int, int] | None = None

    @property
    def is_place(self) -> bool:
        return self.path.startswith("/places/")


class Hub:
    """Repositories, received requests, and simulated faults."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.fault: Callable[[int, str], Fault | None] = lambda number, path: None
        """Maps the number and path of a request to its fault."""
        self.signature = 0
        """Signature of file addresses. Changing it invalidates the addresses that were given out."""
        self.reset_s = 0
        """Seconds until the rate limit resets, as sent in its headers."""
        self.refusal: tuple[int, bytes, dict[str, str]] | None = None
        """The response to all requests about repositories, if set."""
        self.knows_ranges = True
        self.released = threading.Event()
        """Ends stalled responses. Until it is set, they send nothing and keep the connection open."""
        self.port = 0
        self._lock = threading.Lock()
        self._count = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def count(self) -> int:
        with self._lock:
            self._count += 1
            return self._count

    def forget_requests(self) -> None:
        """Restart the numbering of requests, so that faults do not depend on earlier tests."""
        with self._lock:
            self.requests.clear()
            self._count = 0

    def bytes_sent(self) -> int:
        """Return the number of bytes of files that were sent."""
        return sum(request.sent for request in self.requests if request.is_place)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        fault = self.hub.fault(self.hub.count(), self.path)
        if fault == "limit":
            reset = {"ratelimit": f'"resolvers";r=0;t={self.hub.reset_s}'}
            self._send(429, b"", reset | {"ratelimit-policy": '"fixed window";"resolvers";q=3000;w=300'})
        elif fault == "error":
            self._send(500, b"broken")
        elif fault == "stall":
            self.hub.released.wait()
            self.close_connection = True
        else:
            self._route(cut=fault == "cut")

    def _route(self, *, cut: bool) -> None:
        url = urlsplit(self.path)
        steps = [unquote(step) for step in url.path.strip("/").split("/")]
        if steps[0] == "places":
            self._place("/".join(steps[1:3]), "/".join(steps[3:]), parse_qs(url.query), cut)
            return
        before = {"api": 2, "datasets": 1}.get(steps[0], 0)  # a model's path has no prefix: /owner/name/resolve/...
        name = "/".join(steps[before : before + 2])
        repo = self.hub.repos.get(name)
        if repo is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            return
        rest = steps[before + 2 :]
        if self.hub.refusal is not None:
            self._send(*self.hub.refusal)
            return
        repo = repo.at(rest[1]) if len(rest) > 1 else repo
        if repo is None:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif not rest or rest[0] == "revision":
            self._json(_info(name, repo), cut)
        elif rest[0] == "tree":
            self._json(_tree(repo, "/".join(rest[2:]), parse_qs(url.query)), cut)
        else:
            self._resolve(name, repo, "/".join(rest[2:]))

    def _resolve(self, name: str, repo: Repo, path: str) -> None:
        if path not in repo.files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif repo.gated and "authorization" not in self.headers:
            self._send(401, b"", {"X-Error-Code": "GatedRepo"})
        else:
            place = f"http://localhost:{self.hub.port}/places/{name}/{path}"
            place += f"?signature={self.hub.signature}&commit={repo.commit}"
            etag = sha256(repo.files[path])
            linked = {"X-Linked-Size": str(len(repo.files[path])), "X-Linked-Etag": f'"{etag}"'}
            self._send(302, b"", {"Location": place, "X-Repo-Commit": repo.commit, **linked})

    def _place(self, name: str, path: str, query: dict[str, list[str]], cut: bool) -> None:
        if int(query["signature"][0]) != self.hub.signature:
            self._send(403, b"expired")
            return
        repo = self.hub.repos[name].at(query["commit"][0])
        assert repo is not None
        content = repo.files[path]
        if not self.hub.knows_ranges or "range" not in self.headers:
            self._send(200, content)
            return
        first, last = self.headers["range"].removeprefix("bytes=").split("-")
        start, end = int(first), min(int(last) + 1, len(content))
        headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        self._send(206, content[start:end], headers, cut=cut, span=(start, end))

    def _json(self, value: object, cut: bool) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, cut=cut)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        *,
        cut: bool = False,
        span: tuple[int, int] | None = None,
    ) -> None:
        sent = len(body) // 2 if cut else len(body)
        token = self.headers.get("authorization")
        self.hub.requests.append(Request(self.command, self.path, token, status, sent, span))
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
        if cut:
            self.close_connection = True


def _info(name: str, repo: Repo) -> dict[str, Any]:
    siblings = [{"rfilename": path} for path in sorted(repo.files)]
    facts = {"id": name, "sha": repo.commit, "siblings": siblings, "cardData": repo.card}
    return facts | {"private": False, "gated": "auto" if repo.gated else False, "tags": [], "downloads": 0}


def _tree(repo: Repo, folder: str, query: dict[str, list[str]]) -> list[dict[str, Any]]:
    prefix = f"{folder}/" if folder else ""
    recursive = query.get("recursive", ["false"])[0].lower() == "true"
    files, folders = [], set()
    for path, content in sorted(repo.files.items()):
        below = path.removeprefix(prefix)
        if not path.startswith(prefix):
            continue
        steps = below.split("/")
        if recursive or len(steps) == 1:
            files.append({"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()})
        deepest = len(steps) if recursive else 2
        folders |= {prefix + "/".join(steps[:depth]) for depth in range(1, min(deepest, len(steps)))}
    return [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)] + files


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Start a hub. Its address is ``hub.endpoint``."""
    hub = Hub()
    with serving(type("Handler", (_Handler,), {"hub": hub})) as hub.port:
        try:
            yield hub
        finally:
            hub.released.set()


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """Start a local server with this handler, and yield its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Stalls:
    """A fault of a hub: the first ``count`` requests for file contents stall."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self, number: int, path: str) -> Fault | None:
        if not self.left or not path.startswith("/places/"):
            return None
        self.left -= 1
        return "stall"


def use_hub(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Use a hub in all libraries, with short waits between retries."""
    from tiny_audio.sources._hub import client, ranges

    point_to_hub(monkeypatch, endpoint)
    policy = replace(client.POLICY, base_wait_s=0.01, max_wait_s=0.05)
    for module in (client, ranges):
        monkeypatch.setattr(module, "POLICY", policy)
    forget()


def point_to_hub(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Make all libraries use a hub, without a token. Constants are patched, as they read ``HF_ENDPOINT`` at import."""
    import datasets.config
    import transformers.utils.hub
    from huggingface_hub import HfFileSystem, constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    # The library transformers caches a client that keeps its endpoint.
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", endpoint)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    HfFileSystem.clear_instance_cache()


def forget() -> None:
    """Clear the caches that a new process would not have."""
    from tiny_audio.sources import _row_groups
    from tiny_audio.sources._hub import source

    source._pinned.cache_clear()
    _row_groups._opened_for_audio.cache_clear()
    _row_groups.read_row_group.cache_clear()
