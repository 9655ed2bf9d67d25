"""Names of the text normalizers. Only the standard library is imported, so that ``--help`` is fast."""

from __future__ import annotations

from typing import Literal, get_args

NormalizerName = Literal[
    "none",
    "lower",
    "basic",
    "whisper_english",
    "open_asr_leaderboard",
    "open_asr_leaderboard_2025_04",
    "open_asr_leaderboard_de",
    "open_asr_leaderboard_es",
    "open_asr_leaderboard_fr",
    "open_asr_leaderboard_it",
    "open_asr_leaderboard_pt",
]
"""The name of a normalizer. :func:`tiny_audio.analysis.scoring.normalizer` describes all normalizers."""
NORMALIZER_NAMES: tuple[NormalizerName, ...] = get_args(NormalizerName)
