"""A local server with the parts of the Hugging Face hub's protocol that are needed to upload files.

It creates repositories, validates cards, receives large files through Git LFS, and reads commits as lines of JSON. It
rejects requests that the client in huggingface_hub would not send.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.support.hub_server import serving

TOKEN = "hf_atoken"


@dataclass
class UploadHub:
    """Repositories, and simulated refusals."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files by repository. Names of Spaces start with ``spaces/``."""
    private: dict[str, bool] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)
    """Headers of the commits, with ``summary`` and ``description``."""
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Status and message of each refusal, by a part of the request's path, such as ``create`` or ``commit``."""
    refused_spaces: bool = False
    """Whether the server refuses to create Spaces."""
    stored: dict[str, bytes] = field(default_factory=dict)
    """LFS objects by SHA-256."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: UploadHub

    def log_message(self, *_: object) -> None:
        pass

    def do_PUT(self) -> None:
        body = self._body()
        steps = self._steps("PUT")
        oid = steps[-1]
        if steps[0] != "lfs" or hashlib.sha256(body).hexdigest() != oid:
            self._send(400, {"error": "these bytes are not that object"})
            return
        self.hub.stored[oid] = body
        self._send(200, {})

    def do_POST(self) -> None:
        body = self._body()
        steps = self._steps("POST")
        action = next(
            (step for step in steps if step in ("create", "preupload", "commit", "batch", "validate-yaml")), ""
        )
        if action in self.hub.refusals:
            status, words = self.hub.refusals[action]
            self._send(status, {"error": words})
        elif action == "validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._send(401, {"error": "Invalid credentials in Authorization header"})
        elif action == "create":
            self._create(json.loads(body))
        elif action == "preupload":
            files = [
                {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular"}
                for one in json.loads(body)["files"]
            ]
            self._send(200, {"files": [one | {"shouldIgnore": False} for one in files]})
        elif action == "batch":
            objects = [
                one | {"actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self._send(200, {"transfer": "basic", "objects": objects})
        elif action == "commit":
            name = "/".join(steps[2:4])
            self._commit(f"spaces/{name}" if steps[1] == "spaces" else name, body)
        else:
            self._send(404, {"error": f"nothing at {self.path}"})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if asked.get("type") == "space":
            assert asked["sdk"] == "gradio"
            if self.hub.refused_spaces:
                self._send(403, {"error": "No Spaces here"})
                return
            name = f"spaces/{name}"
        if name in self.hub.repos:
            self._send(409, {"error": "You already created this model repo", "url": f"{self.hub.endpoint}/{name}"})
            return
        self.hub.repos[name] = {}
        self.hub.private[name] = asked.get("visibility") == "private"
        self._send(200, {"url": f"{self.hub.endpoint}/{name}", "name": name})

    def _commit(self, name: str, body: bytes) -> None:
        files = self.hub.repos[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.hub.commits.append(value)
            elif line["key"] == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert (line["key"], value["algo"]) == ("lfsFile", "sha256")
                files[value["path"]] = self.hub.stored[value["oid"]]
        commit = hashlib.sha1(body).hexdigest()
        url = f"{self.hub.endpoint}/{name}/commit/{commit}"
        self._send(200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def _steps(self, method: str) -> list[str]:
        self.hub.requests.append((method, self.path))
        return [unquote(step) for step in urlsplit(self.path).path.strip("/").split("/")]

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def upload_hub() -> Iterator[UploadHub]:
    """Start a hub. Its address is ``hub.endpoint``."""
    hub = UploadHub()
    with serving(type("Handler", (_Handler,), {"hub": hub})) as hub.port:
        yield hub
