"""List the libraries that a model needs, and check that torch and torchaudio work together."""

from __future__ import annotations

import functools
import importlib.metadata

from tiny_audio.config import UserError, first_line

AUDIO_PAIR = ("torch>=2.14,<2.15", "torchaudio>=2.11.1,<2.12")
"""Versions that work together. torchaudio does not declare which versions of torch it needs."""
SILERO = "silero-vad>=6.2.3"
"""Package with the weights for voice activity detection. Without it, an exported model finds pauses by loudness."""
REQUIREMENTS = (
    *AUDIO_PAIR,
    "transformers>=5.23,<6",
    "peft>=0.21",
    "numpy>=2",
    "pydantic>=2.12",
    "soundfile>=0.13",
    SILERO,
)
"""Requirements of an exported model. A test compares them with ``pyproject.toml``."""


@functools.cache  # reading metadata takes milliseconds
def installed_version(package: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache  # after a failed import, a second attempt may raise another error
def audio_pair_problem() -> str | None:
    """Return a message with the cause and the fix if torchaudio cannot be imported, else None."""
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        found = " and ".join(f"{name} {installed_version(name) or 'missing'}" for name in ("torch", "torchaudio"))
        pair = " ".join(f'"{requirement}"' for requirement in AUDIO_PAIR)
        return (
            f"the installed torch and torchaudio do not work together ({found}): {first_line(error)}\n"
            f"Install versions that work together: pip uninstall -y torch torchaudio && pip install {pair}"
        )
    return None


def check_audio_pair() -> None:
    """Check that torchaudio can be imported.

    Raises:
        UserError: torchaudio cannot be imported.
    """
    if problem := audio_pair_problem():
        raise UserError(problem)
