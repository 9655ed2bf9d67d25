"""Extract sentences from texts for the source ``synthetic``: one per line, in lower case, without punctuation.

    sudo apt-get install bible-kjv dict-gcide dict-wn fortunes      # texts in Debian and Ubuntu
    bible -f gen1:1-rev22:21 > verses.txt
    python examples/sentences.py verses.txt debian:dict-gcide debian:dict-wn debian:fortunes book.txt.gz \\
        --most 10000 --exclude test.jsonl --output sentences.txt

``debian:NAME`` means the texts of an installed Debian package. A sentence is unusable if it has too many words, or if
it contains digits, symbols, letters other than a to z, or single letters such as initials. An unusable sentence is
divided into its clauses, and its usable clauses are kept. Sentences and clauses with too few words are left out.
Repeated sentences are written once. ``--exclude`` takes manifests (JSON lines with the key ``text``). Sentences that
share five consecutive words with a transcript in such a manifest are left out, too. Exclude the sets that you evaluate
on.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

_SHARED_WORDS = 5
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\n\s*\n|\n%\n")
_CLAUSE_END = re.compile(r"[;:\"]|--|–|—")
_REFERENCE = re.compile(r"^\S+\d+:\d+\s", re.MULTILINE)
"""Chapter and verse at the start of a line, as printed by ``bible``."""
_REMARK = re.compile(r"\[[^\]]*\]|\([^)]*\)|\\[^\\]*\\")
"""Remarks in brackets, and pronunciations between backslashes, as in the dictionary GCIDE."""
_TITLES = {"Mr": "mister", "Mrs": "missus", "Dr": "doctor", "Messrs": "messieurs"}
"""Titles as they are spoken. A period after a title does not end a sentence."""
_TITLE = re.compile(rf"\b({'|'.join(_TITLES)})\.?(?=\s)")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")


def texts(source: str) -> Iterator[str]:
    """Yield the texts of a file or of a Debian package."""
    if not source.startswith("debian:"):
        yield _read(Path(source))
        return
    package = source.removeprefix("debian:")
    if shutil.which("dpkg-query") is None:
        sys.exit(f"{source}: this is not Debian or Ubuntu, because there is no dpkg-query; give text files instead")
    listed = subprocess.run(["dpkg-query", "-L", package], capture_output=True, text=True)
    if listed.returncode:
        sys.exit(f"the Debian package {package} is not installed; run: sudo apt-get install {package}")
    for path in map(Path, listed.stdout.splitlines()):
        is_text = path.suffix in (".gz", ".dz", ".txt", ".u8", "") and "doc" not in path.parts
        if is_text and path.is_file() and not path.is_symlink():
            yield _read(path)


def _read(path: Path) -> str:
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    return "" if b"\0" in content else content.decode("utf-8", errors="replace")


def sentences(text: str, fewest: int, most: int) -> Iterator[str]:
    """Yield the usable sentences of a text: those with ``fewest`` to ``most`` words that :func:`clean` accepts.

    If :func:`clean` rejects a sentence, its usable clauses are yielded instead.
    """
    text = _TITLE.sub(lambda match: _TITLES[match[1]], text.replace("_", ""))  # In plain text, "_" marks italics.
    for sentence in _SENTENCE_END.split(_REMARK.sub(" ", _REFERENCE.sub("\n\n", text))):
        whole = clean(sentence, most)
        for part in [whole] if whole else (clean(clause, most) for clause in _CLAUSE_END.split(sentence)):
            if part and len(part.split()) >= fewest:
                yield part


def clean(text: str, most: int) -> str | None:
    """Return the words of a sentence in lower case, separated by spaces.

    Return None if the sentence has digits, symbols, letters other than a to z, single letters other than a, i and o, or
    more than ``most`` words.
    """
    words = [word.strip("'") for word in re.sub(r"[-\s.,!?;:\"()]+", " ", _lower(text)).split()]
    # The words "a", "i" and "o" are single letters. Other single letters are abbreviations.
    usable = all(_WORD.fullmatch(word) and (len(word) > 1 or word in "aio") for word in words)
    return " ".join(words) if usable and len(words) <= most else None


def _lower(text: str) -> str:
    return unicodedata.normalize("NFC", text).replace("’", "'").lower()


def runs(sentence: str) -> Iterator[tuple[str, ...]]:
    """Yield all sequences of five consecutive words. A sentence with fewer words is one sequence."""
    words = sentence.split()
    for start in range(max(1, len(words) - _SHARED_WORDS + 1)):
        yield tuple(words[start : start + _SHARED_WORDS])


def excluded_runs(manifests: Iterable[Path]) -> set[tuple[str, ...]]:
    """Return all sequences of :func:`runs` in the transcripts of manifests.

    A transcript is used even if :func:`clean` rejects it. Its digits and symbols are left out.
    """
    found: set[tuple[str, ...]] = set()
    for manifest in manifests:
        with manifest.open(encoding="utf-8") as lines:
            for line in filter(str.strip, lines):
                found.update(runs(" ".join(_WORD.findall(_lower(json.loads(line)["text"])))))
    return found


def main() -> int:
    """Write the sentences to ``--output``, and print their number for each source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", help="text files, which may be compressed with gzip, or debian:PACKAGE")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--most", type=int, default=10_000, help="maximum number of sentences of each source")
    parser.add_argument("--words", type=int, nargs=2, default=(3, 20), help="minimum and maximum number of words")
    parser.add_argument("--exclude", type=Path, nargs="*", default=(), help="manifests of evaluation sets")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for path in (*(Path(source) for source in options.sources if not source.startswith("debian:")), *options.exclude):
        if not path.is_file():
            parser.error(f"there is no file {path}")
    excluded, rng = excluded_runs(options.exclude), random.Random(options.seed)
    chosen: dict[str, None] = {}
    for source in options.sources:
        found = {sentence: None for text in texts(source) for sentence in sentences(text, *options.words)}
        usable = [one for one in found if one not in chosen and excluded.isdisjoint(runs(one))]
        own = rng.sample(usable, min(options.most, len(usable)))
        chosen.update(dict.fromkeys(own))
        print(f"{source}: {len(found):,} sentences, {len(found) - len(usable):,} excluded, {len(own):,} chosen")
    lines = list(chosen)
    rng.shuffle(lines)
    options.output.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"{options.output}: {len(lines):,} sentences, {sum(len(line.split()) for line in lines):,} words")
    return 0


if __name__ == "__main__":
    sys.exit(main())
