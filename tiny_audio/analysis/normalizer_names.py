"""Names of the text normalizers. Recipes, scoring and the command line's help read them here; nothing is imported."""

from __future__ import annotations

from typing import Literal, get_args

NormalizerName = Literal["none", "lower", "basic", "whisper_english", "open_asr_leaderboard"]
"""See :func:`tiny_audio.analysis.scoring.normalizer`."""
NORMALIZER_NAMES: tuple[NormalizerName, ...] = get_args(NormalizerName)
