"""Write ``leaderboard_golden.json.gz``: texts, and the results of the Open ASR Leaderboard's scorer for them.

Run it as ``python -m tests.support.make_leaderboard_golden CLONE HYPOTHESES…`` with a clone of
github.com/huggingface/open_asr_leaderboard and the quickstart's files of hypotheses. The environment needs kaldialign,
num2words and regex. The sentences come from our own grammars and word lists, so the file contains no text by others.
"""

from __future__ import annotations

import gzip
import importlib
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.make_sclite_golden import sentences
from tests.support.sclite import corrupted

GOLDEN = Path(__file__).with_name("leaderboard_golden.json.gz")
_SETS = {
    "english": "hf-audio-open-asr-leaderboard_ami_cleaned_test",
    "chunked": "ArtificialAnalysis-Earnings22-Cleaned-AA-chunked_earnings22_cleaned_aa_chunked_test",
    **{language: f"hf-audio-multilingual_fleurs_{language}_test" for language in ("de", "es", "fr", "it", "pt")},
}
_FORMS = (
    *(("white paper", "whitepaper"), ("some times", "sometimes"), ("book store", "bookstore"), ("e-mail", "email")),
    *(("wi-fi", "wifi"), ("all right", "alright"), ("B B C", "BBC"), ("5 G", "5G"), ("U.S.", "US"), ("a.m.", "am")),
    *(("colour", "color"), ("travelled", "traveled"), ("theatre", "theater"), ("OK", "okay"), ("grey", "gray")),
    *(("don't", "do not"), ("it's", "it is"), ("we've", "we have"), ("can't", "cannot"), ("John's", "Johns")),
    *(("going to", "gonna"), ("want to", "wanna"), ("because", "cause"), ("kind of", "kinda"), ("who's", "whose")),
    *(("twenty one", "21"), ("five dollars", "$5"), ("two percent", "2%"), ("ten thousand", "10,000")),
    *(("one oh one", "101"), ("nineteen ninety", "1990"), ("half past 7", "7:30"), ("first", "1st")),
    *(
        ("Stephen", "Steven"),
        ("Katherine", "Catherine"),
        ("Mr. Philip", "mister Phillip"),
        ("Dr. Kelly", "doctor Kelli"),
    ),
    *(
        ("uh", ""),
        ("hmm,", "huh"),
        ("um well", "well"),
        ("aha", ""),
        ("café", "cafe"),
        ("[noise]", ""),
        ("(laughs)", ""),
    ),
)
_WORDS = {
    "de": "die Bahn hof Bahnhof fährt um 12 Uhr nach Köln ab und kostet 1 500 Euro , nicht wahr ? Straße über",
    "es": "el niño tiene 3 años , y vive en la calle número 1 200 ; ¿ sabes por qué ? más mediodía medio día",
    "fr": "l' école est fermée aujourd'hui , il y a 80 élèves et 1 000 livres ; porte-monnaie portemonnaie où ça ?",
    "it": "il treno parte alle 7 , però costa 45 euro e c'è molta gente ; pomeriggio dopo pranzo dopopranzo più 2 000",
    "pt": "o avião sai às 9 horas , não há lugar para 150 pessoas ; guarda-chuva guardachuva é 1 000 000 coração",
}


def rewritten(text: str, rng: random.Random) -> str:
    """Insert up to three words or phrases of ``_FORMS``. The leaderboard's rules may treat their spellings as equal."""
    words = text.split()
    for _ in range(rng.randint(0, 3)):
        words.insert(rng.randrange(len(words) + 1), rng.choice(rng.choice(_FORMS)))
    return " ".join(words)


def english(hypotheses: Sequence[Path]) -> list[tuple[str, str]]:
    """Return pairs of reference and hypothesis: a model's hypotheses, and sentences with changed spellings and
    errors."""
    rng = random.Random(2026)
    rows = [json.loads(line) for path in hypotheses for line in path.read_text(encoding="utf-8").splitlines()]
    pairs = [(row["text"], row["pred_text"]) for row in rng.sample(rows, 200)]
    for text in sentences(rng, 500):
        reference = rewritten(text, rng)
        hypothesis = reference
        for form in rng.sample(_FORMS, len(_FORMS)):
            before, after = rng.sample(form, 2)
            if before and before in hypothesis and rng.random() < 0.7:
                hypothesis = hypothesis.replace(before, after, 1)
        if rng.random() < 0.5:
            hypothesis = corrupted(hypothesis, rng, 0.1, [form for forms in _FORMS for form in forms if form])
        pairs.append((reference, rng.choice((hypothesis, hypothesis.lower(), hypothesis.upper()))))
    return pairs


def other_language(language: str) -> list[tuple[str, str]]:
    """Return pairs of random words of the language. Hypotheses have errors, and many of them lack a space."""
    rng = random.Random(language)
    words = _WORDS[language].split()
    pairs = []
    for _ in range(60):
        reference = rng.choices(words, k=rng.randint(2, 14))
        hypothesis = corrupted(" ".join(reference), rng, 0.15, words)
        if rng.random() < 0.6 and " " in hypothesis:
            position = rng.choice([index for index, character in enumerate(hypothesis) if character == " "])
            hypothesis = hypothesis[:position] + hypothesis[position + 1 :]
        pairs.append((" ".join(reference), hypothesis))
    return pairs


def chunks(pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return rows of six recordings in chunks, out of order. Every row has the reference of the whole recording."""
    rng = random.Random(6)
    rows = []
    for number in range(6):
        part = pairs[200 + 20 * number : 220 + 20 * number]
        whole = " ".join(reference for reference, _ in part)
        rows += [
            {"text": whole, "pred_text": hypothesis, "parent_id": f"call-{number}", "chunk_index": index}
            for index, (_, hypothesis) in enumerate(part)
        ]
    return rng.sample(rows, len(rows))


def scored(clone: Path, sets: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Run the leaderboard's scorer on manifests of the sets."""
    sys.path.insert(0, str(clone))
    scorer = importlib.import_module("normalizer.eval_utils")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in sets.items():
            place = Path(folder) / name / f"MODEL_a-b_DATASET_{_SETS[name]}.jsonl"
            place.parent.mkdir()
            times = {"duration": 2.0, "time": 0.5}
            lines = [json.dumps({"audio_filepath": str(index), **times, **row}) for index, row in enumerate(rows)]
            place.write_text("\n".join(lines) + "\n", encoding="utf-8")
            language = name if len(name) == 2 else "en"
            _, result = scorer.score_results(str(place.parent), None, language != "en", True, language)
            (found[name],) = result.values()
    return found


def per_row(rows: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Return insertions, deletions, substitutions and reference words of each English row, counted by the leaderboard's
    scorer."""
    scorer, data = (importlib.import_module(f"normalizer.{name}") for name in ("eval_utils", "data_utils"))
    found = []
    for row in rows:
        words = [[tuple(data.normalizer(row[key]).split())] for key in ("text", "pred_text")]
        counts = scorer.batch_error_rate(*words, merge_compounds=True)
        found.append([counts[key] for key in ("ins", "del", "sub", "ref_len")])
    return found


def golden(clone: Path, hypotheses: Sequence[Path]) -> dict[str, Any]:
    """Return the content of the golden file."""
    pairs = {"english": english(hypotheses), **{name: other_language(name) for name in _WORDS}}
    sets = {
        name: [{"text": reference, "pred_text": hypothesis} for reference, hypothesis in rows]
        for name, rows in pairs.items()
    }
    sets["chunked"] = chunks(pairs["english"])
    commit = subprocess.run(["git", "-C", clone, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "commit": commit.stdout.strip(),
        "sets": sets,
        "scores": scored(clone, sets),
        "english": per_row(sets["english"]),
    }


if __name__ == "__main__":
    content = golden(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
    # Leave the time out of the gzip header, so that the same content gives the same bytes.
    GOLDEN.write_bytes(gzip.compress(json.dumps(content, ensure_ascii=False).encode(), mtime=0))
