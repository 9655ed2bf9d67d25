"""Measure the memory of the machine and of this process on Linux, macOS and Windows, and release freed memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path


def machine_bytes() -> int:
    """Return the physical memory of this machine in bytes."""
    if sys.platform == "win32":
        kib = ctypes.c_ulonglong()
        ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kib))
        return kib.value * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_resident_bytes() -> int:
    """Return the peak resident memory of this process in bytes."""
    if sys.platform == "win32":
        # The struct PROCESS_MEMORY_COUNTERS has two 32-bit fields (its own size, and the number of page faults), then
        # the peak, and then seven more fields of the size of `size_t`.
        counters = (ctypes.c_size_t * 9)(9 * ctypes.sizeof(ctypes.c_size_t))
        process = ctypes.c_void_p(ctypes.windll.kernel32.GetCurrentProcess())
        ctypes.windll.kernel32.K32GetProcessMemoryInfo(process, counters, ctypes.sizeof(counters))
        return counters[1]
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    # macOS, and sandboxes whose /proc lacks this line
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def release_freed_memory() -> None:
    """Return freed memory to the system.

    On Linux, glibc keeps freed memory that lies between blocks in use. If the sizes of tensors vary, this memory grows
    over time. On other systems, this function does nothing.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # other C libraries do not have this function
            ctypes.CDLL(None).malloc_trim(0)
