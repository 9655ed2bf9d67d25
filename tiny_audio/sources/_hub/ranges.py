"""A file on the hub, read by range requests.

The hub answers a request for a file with the file's location: a URL from which the content can be read for some time.
The hub limits the number of such requests (a few thousand in five minutes), but not the number of reads from a
location. The file system of huggingface_hub requests the location for every range. This module requests the location
once, and again only after it has expired.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from tiny_audio.config import UserError
from tiny_audio.runtime.files import SeekableBytes
from tiny_audio.sources import HubFile
from tiny_audio.sources._hub.client import POLICY, explained, retried

if TYPE_CHECKING:
    import httpx2

ResultT = TypeVar("ResultT")

_EXPIRED = (401, 403)
"""HTTP status codes of a location that has expired."""
_TIMEOUT_S = 60.0


class RangeFile(SeekableBytes):
    """A file of a dataset at a commit. Each read is one range request.

    Raises:
        UserError: the hub cannot be reached or rejects the request. Opening and reading can raise this error.
    """

    def __init__(self, file: HubFile) -> None:
        super().__init__(0)
        self._file = file
        self._resolve()

    def _resolve(self) -> None:
        import httpx2
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError, HFValidationError
        from huggingface_hub.utils import build_hf_headers

        try:
            url = hf_hub_url(self._file.repo, self._file.path, repo_type="dataset", revision=self._file.revision)
            headers = build_hf_headers()
            found = self._retried(lambda: get_hf_file_metadata(url, headers=headers, timeout=_TIMEOUT_S))
        except EntryNotFoundError as error:
            raise UserError(
                f"{self._file.repo} has no file {self._file.path} at commit {self._file.revision}"
            ) from error
        except (OSError, httpx2.HTTPError, HFValidationError) as error:
            raise explained(error, self._file.repo, self._file.revision) from error
        assert found.size is not None, "the hub states the size of every file"
        self.size, self._location = found.size, found.location
        # A location on another host is a signed URL, which needs no token. Do not send the token to that host.
        same_host = urlsplit(url).netloc == urlsplit(found.location).netloc
        self._headers = headers if same_host else {}

    def read(self, size: int = -1) -> bytes:
        """Read ``size`` bytes, or fewer at the end of the file. A negative size reads the whole rest of the file."""
        end = self.size if size < 0 else min(self.size, self.position + size)
        if end <= self.position:
            return b""
        content = self._fetched(self.position, end)
        self.position = end
        return content

    def _fetched(self, start: int, end: int) -> bytes:
        import httpx2
        from huggingface_hub.utils import hf_raise_for_status

        try:
            response = self._retried(lambda: self._request(start, end))
            if response.status_code in _EXPIRED:
                self._resolve()
                response = self._retried(lambda: self._request(start, end))
            hf_raise_for_status(response)
        except (OSError, httpx2.HTTPError) as error:
            raise explained(error, self._file.repo, self._file.revision) from error
        content = response.content
        if len(content) != end - start:
            raise UserError(
                f"the hub sent {len(content):,} bytes of {self._file.path} instead of the requested {end - start:,}; "
                "perhaps a proxy does not support range requests"
            )
        return content

    def _request(self, start: int, end: int) -> httpx2.Response:
        from huggingface_hub.utils import get_session, hf_raise_for_status

        ranges = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        response = get_session().request("GET", self._location, headers=self._headers | ranges, timeout=_TIMEOUT_S)
        if response.status_code not in _EXPIRED:
            hf_raise_for_status(response)
        return response

    def _retried(self, call: Callable[[], ResultT]) -> ResultT:
        """Call :func:`retried` with more retries than by default, so that a run survives a short network failure."""
        return retried(call, connect_retries=POLICY.max_retries)
