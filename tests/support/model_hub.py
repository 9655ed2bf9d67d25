"""A local server with the parts of the hub's protocol that are needed to read a checkpoint."""

from __future__ import annotations

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from typing import ClassVar


class Hub(BaseHTTPRequestHandler):
    """Serves the files of commits."""

    revisions: ClassVar[dict[str, str]] = {}
    """Branch or tag -> commit."""
    commits: ClassVar[dict[str, dict[str, bytes]]] = {}
    """Commit -> file -> content."""
    repository = "tiny/hubert"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0].strip("/")
        found = re.fullmatch(rf"(?:api/models/)?{self.repository}(?:/(resolve|revision|tree)/([^/]+)/?(.*))?", path)
        if found is None:
            self._send(404, {"X-Error-Code": "RepoNotFound"}, b"", body)
            return
        kind, revision, name = found.group(1), found.group(2) or "main", found.group(3) or ""
        commit = self.revisions.get(revision, revision)
        if commit not in self.commits:
            self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"", body)
            return
        files, headers = self.commits[commit], {"X-Repo-Commit": commit}
        if kind == "resolve":
            if name not in files:
                self._send(404, {**headers, "X-Error-Code": "EntryNotFound"}, b"", body)
                return
            headers["ETag"] = f'"{hashlib.sha256(files[name]).hexdigest()}"'
            self._send(200, headers, files[name], body)
        elif kind == "tree":
            rows = [
                {"type": "file", "path": name, "size": len(content), "oid": name} for name, content in files.items()
            ]
            self._send(200, headers, json.dumps(rows).encode(), body)
        else:
            siblings = [{"rfilename": name} for name in files]
            about = {"id": self.repository, "sha": commit, "siblings": siblings, "private": False, "tags": []}
            self._send(200, headers, json.dumps(about).encode(), body)

    def _send(self, status: int, headers: dict[str, str], content: bytes, body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Log nothing."""
