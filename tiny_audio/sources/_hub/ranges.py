"""A file on the hub, read piece by piece.

The hub counts how often a file is resolved (a few thousand times in five minutes), not how often the place that it
resolves to is read: so a file is resolved once, where the hub's own file system does it for every piece.
"""

from __future__ import annotations

import io
from typing import Any
from urllib.parse import urlsplit

from tiny_audio.config import UserError
from tiny_audio.sources import HubFile
from tiny_audio.sources._hub.client import BASE_WAIT_S, MAX_RETRIES, MAX_WAIT_S, explained

_EXPIRED = (401, 403)
"""Answers of a place whose signature has run out."""
_TIMEOUT_S = 60.0


class RangeFile(io.RawIOBase):
    """A file of a dataset at a commit; each read is one range request.

    Raises:
        UserError: on opening and on reading, where the hub cannot be reached or refuses.
    """

    def __init__(self, file: HubFile) -> None:
        super().__init__()
        self._file = file
        self._position = 0
        self._resolve()

    def _resolve(self) -> None:
        import httpx2
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError
        from huggingface_hub.utils import build_hf_headers

        url = hf_hub_url(self._file.repo, self._file.path, repo_type="dataset", revision=self._file.revision)
        headers = build_hf_headers()
        try:
            found = get_hf_file_metadata(url, headers=headers, timeout=_TIMEOUT_S, retry_on_errors=True)
        except EntryNotFoundError as error:
            raise UserError(
                f"{self._file.repo} has no file {self._file.path} at commit {self._file.revision}"
            ) from error
        except (OSError, httpx2.HTTPError) as error:
            raise explained(error, self._file.repo, self._file.revision) from error
        assert found.size is not None, "the hub states the size of all that it stores"
        self._size, self._location = found.size, found.location
        # A signed place elsewhere needs no token, and must not get it.
        same_host = urlsplit(url).netloc == urlsplit(found.location).netloc
        self._headers = headers if same_host else {}

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Bytes before the next one."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See :meth:`io.IOBase.seek`."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        """All the bytes asked for, fewer at the end of the file only."""
        end = self._size if size < 0 else min(self._size, self._position + size)
        if end <= self._position:
            return b""
        content = self._fetched(self._position, end)
        self._position = end
        return content

    def _fetched(self, start: int, end: int) -> bytes:
        import httpx2
        from huggingface_hub.utils import hf_raise_for_status

        try:
            response = self._request(start, end)
            if response.status_code in _EXPIRED:
                self._resolve()
                response = self._request(start, end)
            hf_raise_for_status(response)
        except (OSError, httpx2.HTTPError) as error:
            raise explained(error, self._file.repo, self._file.revision) from error
        content: bytes = response.content
        if len(content) != end - start:
            raise UserError(
                f"the hub gives {len(content):,} bytes of {self._file.path} where {end - start:,} were asked for; "
                "a proxy on the way may not know range requests"
            )
        return content

    def _request(self, start: int, end: int) -> Any:
        from huggingface_hub.utils import http_backoff

        return http_backoff(
            "GET",
            self._location,
            headers={**self._headers, "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"},
            timeout=_TIMEOUT_S,
            max_retries=MAX_RETRIES,
            base_wait_time=BASE_WAIT_S,
            max_wait_time=MAX_WAIT_S,
        )
