"""The memory of a process: freed memory is returned to the system, and the peak is measured."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from tiny_audio.runtime.memory import peak_resident_bytes, release_freed_memory


def resident_bytes() -> int:
    return int(re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory")
def test_freed_memory_is_returned() -> None:
    blocks = [bytes(50_000) for _ in range(2_000)]
    kept = blocks[1::100]  # between the freed blocks, so that glibc keeps the freed memory
    before = resident_bytes()
    del blocks
    release_freed_memory()
    assert before - resident_bytes() > 50_000_000
    assert len(kept) == 20


def test_the_peak_is_known_if_proc_does_not_contain_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In some sandboxes, ``/proc/self/status`` has no line ``VmHWM``."""
    assert peak_resident_bytes() > 10_000_000
    monkeypatch.setattr(Path, "read_text", lambda path: "Name:\tpython\nVmSize:\t1000 kB\nVmRSS:\t900 kB\n")
    assert peak_resident_bytes() > 10_000_000
