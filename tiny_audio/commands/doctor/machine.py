"""Describe this machine for ``tiny-audio doctor``: everything that a bug report needs, without secrets."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from tiny_audio import __version__
from tiny_audio.commands._commit import git_commit
from tiny_audio.commands.doctor.finding import Finding
from tiny_audio.runtime.device import device_bytes, device_name, device_of
from tiny_audio.runtime.files import cache_dir
from tiny_audio.runtime.memory import machine_bytes
from tiny_audio.runtime.requirements import audio_pair_problem, installed_version

_PACKAGES = (
    *("torch", "torchaudio", "transformers", "tokenizers", "peft", "accelerate", "datasets", "pyarrow"),
    *("huggingface_hub", "safetensors", "numpy", "pydantic", "soundfile", "typer"),
)
_VARIABLES = re.compile(
    r"(HF|HUGGINGFACE|HUGGING_FACE|TRANSFORMERS|TORCH|PYTORCH|CUDA|NVIDIA|NCCL|OMP|MKL|KMP|TOKENIZERS|TINY_AUDIO|XDG|LC)_\w+"
    r"|TORCHINDUCTOR\w+|LANG|TERM|PYTHON\w+|LD_LIBRARY_PATH|LD_PRELOAD|VIRTUAL_ENV|CONDA_PREFIX"
    r"|RANK|LOCAL_RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT|(https?|no)_proxy",
    re.IGNORECASE,
)
_SECRET = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PROXY)(_|$)", re.IGNORECASE)
_LITTLE_DISK_GB = 5
"""``doctor`` warns if less disk space is free, because only small recipes need less."""
_TOO_LITTLE_DISK_GB = 0.5
"""``doctor`` reports a problem if less disk space is free, because training and downloads are then likely to fail."""


def examine_machine() -> Iterator[Finding]:
    """Yield findings about versions, hardware and settings. The message of a problem says how to correct it."""
    commit = git_commit()
    yield Finding("tiny-audio", __version__ + (f", commit {commit}" if commit else ""))
    yield Finding("Python", f"{platform.python_version()} on {platform.platform()}, in {sys.prefix}")
    yield Finding("packages", ", ".join(f"{name} {installed_version(name) or 'missing'}" for name in _PACKAGES))
    if problem := audio_pair_problem():
        yield Finding("torchaudio", problem, is_problem=True)
    yield _cpu()
    yield _gpu()
    yield _libsndfile()
    yield Finding("FFmpeg", _ffmpeg())
    flash = "installed" if find_spec("flash_attn") else "not installed (pip install 'tiny-audio[flash-attn]')"
    yield Finding("Flash Attention 2", flash)
    quantization = find_spec("bitsandbytes") is not None
    yield Finding(
        "bitsandbytes", "installed" if quantization else "not installed (pip install 'tiny-audio[quantization]')"
    )
    espeak = find_spec("espeakng_loader") is not None
    yield Finding("espeak-ng", "installed" if espeak else "not installed (pip install 'tiny-audio[synthetic]')")
    yield Finding("Hugging Face cache", _hub_cache())
    yield _disk()
    encoding = f"{sys.stdout.encoding} to {'a terminal' if sys.stdout.isatty() else 'a file or pipe'}"
    yield Finding("output", f"{encoding}, file names in {sys.getfilesystemencoding()}")
    yield Finding("environment", ", ".join(_environment()) or "no relevant variables")


def _disk() -> Finding:
    folder = cache_dir()
    existing = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(existing).free / 1e9
    detail = f"{free:.{0 if free >= 10 else 1}f} GB free for the cache in {folder}"
    if free < _LITTLE_DISK_GB:
        detail += "; delete files, or set TINY_AUDIO_CACHE to a folder on another disk"
    is_problem = free < _TOO_LITTLE_DISK_GB
    return Finding("disk", detail, is_problem, is_warning=free < _LITTLE_DISK_GB)


def _cpu() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    memory = f"{machine_bytes() / 2**30:.0f} GiB of memory"
    return Finding("CPU", f"{_cpu_name()}, {os.cpu_count()} cores ({usable} usable), torch: {threads}, {memory}")


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _gpu() -> Finding:
    built = f"torch {torch.__version__}, CUDA {torch.version.cuda or 'not built in'}"
    device = device_of("auto")
    if device.type == "cpu":
        return Finding("GPU", f"none usable ({built}); the CPU can train small models")
    count = f"{torch.cuda.device_count()} × " if device.type == "cuda" else ""
    memory = device_bytes(device) / 2**30
    return Finding("GPU", f"{count}{device_name(device)} ({device.type}), {memory:.0f} GiB; {built}")


def _libsndfile() -> Finding:
    try:
        import soundfile
    except (ImportError, OSError) as error:
        return Finding("libsndfile", f"{error}; install it: pip install --force-reinstall soundfile", is_problem=True)
    return Finding("libsndfile", f"{soundfile.__libsndfile_version__}, by soundfile")


def _ffmpeg() -> str:
    program = shutil.which("ffmpeg")
    if program is None:
        return "not installed; m4a, mp4 and others need it (apt install ffmpeg; brew install ffmpeg)"
    try:
        output = subprocess.run([program, "-version"], capture_output=True, text=True, errors="replace", timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{program} does not start: {error}"
    words = output.stdout.split()
    return f"{words[2] if len(words) > 2 else 'of unknown version'}, {program}"


def _hub_cache() -> str:
    from huggingface_hub import constants

    offline = "; offline" if constants.HF_HUB_OFFLINE else ""
    return f"{constants.HF_HUB_CACHE}{offline}"


def _environment() -> Iterator[str]:
    """Yield the environment variables that change how this package behaves, without values that may be secrets."""
    for name, value in sorted(os.environ.items()):
        if _VARIABLES.fullmatch(name):
            yield f"{name} is set" if _SECRET.search(name) or "@" in value else f"{name}={value}"
