"""Memory of this process."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from tiny_audio.runtime.memory import release_freed_memory


def resident_bytes() -> int:
    return int(re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory")
def test_freed_memory_is_returned() -> None:
    blocks = [bytes(50_000) for _ in range(2_000)]
    kept = blocks[1::100]  # the freed memory is between these blocks
    before = resident_bytes()
    del blocks
    release_freed_memory()
    assert before - resident_bytes() > 50_000_000
    assert len(kept) == 20
