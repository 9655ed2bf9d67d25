"""Write ``sclite_golden.json.gz``: texts, and the results of NIST's sclite and sc_stats for them.

Debian's package ``sctk`` must be installed. Run ``python -m tests.support.make_sclite_golden``. The texts are always
the same, because the seed is fixed. The sentences come from our own grammars, so the file contains no text by others.
"""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.support.sclite import corrupted, run_mapsswe, run_sclite
from tiny_audio.analysis.scoring import NormalizerName, normalizer
from tiny_audio.sources._synthetic.grammar import dates, home, numbers, phone

GOLDEN = Path(__file__).with_name("sclite_golden.json.gz")
NORMALIZERS: tuple[NormalizerName, ...] = ("none", "whisper_english", "open_asr_leaderboard_2025_04")
_PARTS = [(0, 650), *((start, start + 50) for start in range(0, 650, 50))]
"""Ranges of rows for the matched-pairs test. For all rows, p is too small to be printed, so parts are also tested."""
_FILLERS = (
    "uh",
    "um",
    "Mr.",
    "colour",
    "kinda",
    "can't",
    "I'm",
    "U.S.A.",
    "well,",
    "twenty-one",
    "café",
    "$5",
    "naïve",
)


def sentences(rng: random.Random, size: int) -> list[str]:
    """Create sentences with capitals, commas, fillers and numbers."""
    made = []
    for _ in range(size):
        words = " ".join(
            rng.choice((home, phone, dates, numbers))(rng) for _ in range(rng.choice((1, 1, 2, 3)))
        ).split()
        for _ in range(rng.choice((0, 0, 1, 2))):
            words.insert(rng.randrange(len(words) + 1), rng.choice(_FILLERS))
        text = " ".join(words)
        made.append(f"{text[:1].upper()}{text[1:]}{rng.choice(('.', '?', '', '...'))}")
    return made


def tokens(rng: random.Random, size: int) -> list[str]:
    """Create strings of at most eight different words, so that many alignments have the same number of errors."""
    words = "abcdefgh"
    return [" ".join(rng.choices(words[: rng.randint(1, 8)], k=rng.randint(1, 14))) for _ in range(size)]


def rows() -> list[dict[str, str]]:
    """Return 400 sentences and 250 strings of tokens, each with two hypotheses."""
    rng = random.Random(2026)
    made = []
    for texts in (sentences(rng, 400), tokens(rng, 250)):
        words = sorted({word for text in texts for word in text.split()})
        for text in texts:
            hypotheses = [corrupted(text, rng, rate, words) for rate in (0.25, 0.22)]
            made.append(dict(zip(("reference", "baseline", "other"), (text, *hypotheses), strict=True)))
    return made


def golden() -> dict[str, Any]:
    """Return the content of the golden file."""
    made = rows()
    content: dict[str, Any] = {
        "made_by": subprocess.run(
            ["dpkg-query", "-W", "sctk"], capture_output=True, text=True, check=True
        ).stdout.split(),
        "rows": made,
        "sets": {},
    }
    for name in NORMALIZERS:
        rule = normalizer(name)
        texts = [[rule(row[key]) for row in made] for key in ("reference", "baseline", "other")]
        with tempfile.TemporaryDirectory() as folder:
            baseline, other = run_sclite(Path(folder), *texts)
            content["sets"][name] = {
                "normalizer_version": rule.version,
                "texts": texts if name != "none" else None,
                "baseline": baseline,
                "other": other,
                "mapsswe": [
                    {"rows": part, **run_mapsswe(Path(folder), *(column[slice(*part)] for column in texts))}
                    for part in _PARTS
                ],
            }
    return content


if __name__ == "__main__":
    # Leave the time out of the gzip header, so that the same content gives the same bytes.
    GOLDEN.write_bytes(gzip.compress(json.dumps(golden(), ensure_ascii=False).encode(), mtime=0))
