"""Run NIST's sclite and sc_stats on texts, for the golden file and for tests."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

AVAILABLE = shutil.which("sctk") is not None

_PATH = re.compile(r'<PATH id="\(\w+_u(\d+)\)"[^>]*>\n(.*?)\n?</PATH>', re.DOTALL)
_WORD = r'(?:"(?:[^"\\]|\\.)*")?'
_EDIT = re.compile(rf"([CSDI]),{_WORD},{_WORD}")
_RESULT = re.compile(
    r"# segs: (\d+)\).*\(mean: +(\S+)\) \(std dev: +(\S+)\) \(Z Stat: +(\S+)\)",
)


def run_sclite(folder: Path, references: Sequence[str], *hypotheses: Sequence[str]) -> list[list[str]]:
    """Return the edits of each system: one string per utterance, and one letter per word. The letters are C (correct),
    S (substitution), I (insertion) and D (deletion). Case matters (``-s``)."""
    command = _sclite(folder, references, hypotheses)
    found = []
    for page in _run(f"{command} -o sgml stdout", folder).split("<SYSTEM ")[1:]:
        edits = {int(number): "".join(_EDIT.findall(path)) for number, path in _PATH.findall(page)}
        assert sorted(edits) == list(range(len(references)))
        found.append([edits[number] for number in range(len(references))])
    assert len(found) == len(hypotheses)
    return found


def run_mapsswe(
    folder: Path, references: Sequence[str], baseline: Sequence[str], other: Sequence[str]
) -> dict[str, float]:
    """Return ``num_segments, mean, standard_deviation, z, p_value`` with the three decimals that sc_stats prints. A
    ``p_value`` of 0 means less than 0.001."""
    command = f"{_sclite(folder, references, (baseline, other))} -o sgml stdout -f 0 | sctk sc_stats -p -t mapsswe"
    segments, *values = map(float, _RESULT.findall(_run(f"{command} -v -n -", folder))[0])
    p_value = re.findall(r"\|\s+MP\s+\|\|.*?[~\w.]+\s+(<?\d\.\d+)", _run(f"{command} -u -n -", folder))[0]
    names = ("mean", "standard_deviation", "z")
    return {
        "num_segments": int(segments),
        **dict(zip(names, values, strict=True)),
        "p_value": 0.0 if p_value.startswith("<") else float(p_value),
    }


def _sclite(folder: Path, references: Sequence[str], hypotheses: Sequence[Sequence[str]]) -> str:
    files = []
    for name, texts in (("reference", references), *((f"system{n}", texts) for n, texts in enumerate(hypotheses))):
        path = folder / f"{name}.trn"
        path.write_text("".join(f"{text} (s{n % 7}_u{n})\n" for n, text in enumerate(texts)), encoding="utf-8")
        files.append(path)
    systems = " ".join(f"-h {path} trn {path.stem}" for path in files[1:])
    return f"sctk sclite -s -e utf-8 -r {files[0]} trn {systems} -i spu_id"


def _run(command: str, folder: Path) -> str:
    """Run a command in the folder, because the programs leave files in their working folder."""
    return subprocess.run(command, shell=True, capture_output=True, text=True, check=True, cwd=folder).stdout


def corrupted(text: str, rng: random.Random, rate: float, words: Sequence[str]) -> str:
    """Return a hypothesis with errors: words replaced, deleted, repeated, split or joined. It may be empty."""
    if rng.random() < rate / 10:
        return ""
    hypothesis: list[str] = []
    for word in text.split():
        chance = rng.random() / rate
        if chance < 0.4:
            hypothesis.append(rng.choice(words))
        elif chance < 0.55:
            hypothesis.append(word[:-1] or word * 2)
        elif chance < 0.7 and hypothesis:
            hypothesis[-1] += word
        elif chance > 0.85:
            hypothesis.append(word)
        if rng.random() < rate / 6:
            hypothesis += rng.choices([word, *words], k=rng.choice((1, 1, 2, 4)))
    return " ".join(hypothesis)
