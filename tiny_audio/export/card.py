"""The card of an exported model, ``README.md``: what it is, how well it does, what it took. All of it is the run's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tiny_audio.ledger import ledger_rows

_USE = """\
```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("path/of/this/folder", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("path/of/this/folder", trust_remote_code=True)
batch = processor(waveform, sampling_rate=16_000)  # float32, mono
print([heard.text for heard in model.transcribe(**batch, tokenizer=processor.tokenizer)])
```"""


def model_card(report: Mapping[str, Any]) -> str:
    """Markdown, with the front matter that Hugging Face's hub reads.

    Args:
        report: ``report.json`` of the run.
    """
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    recipe, name = report["recipe"], _text(report["name"])
    bases = [part["pretrained"] for part in (recipe["encoder"], recipe["decoder"]) if part["init"] == "pretrained"]
    yield from ("---", "library_name: transformers", "pipeline_tag: automatic-speech-recognition")
    yield "tags: [tiny-audio, automatic-speech-recognition]"
    hub = [base for base in bases if not Path(base).exists()]
    if hub:
        yield from ("base_model:", *(f"  - {base}" for base in hub))
    yield from ("---", "", f"# {name}", "")
    yield (
        "A speech recogniser: audio of speech in, its text out. Trained with Tiny Audio, run "
        f"`{report['run_id']}`; this page is generated from that run."
    )
    yield from ("", "## Word error rate", "")
    yield from _scores(report["evaluation"])
    yield from ("", "## Parts", "")
    yield from _parts(report)
    yield from ("", "## Data", "")
    yield from _data(report)
    yield from ("", "## What training took", "")
    yield from _table(("what", "value", "how it is known"), ledger_rows(report["ledger"]))
    yield from ("", "## Use", "", _USE)
    yield from ("", "## Limits", "")
    yield from (f"- {limit}" for limit in _limits(report))


def _scores(evaluation: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    if not evaluation:
        yield "Not measured: the run scored no set."
        return
    rows = []
    for name, scores in evaluation.items():
        low, high = scores["wer_interval"]
        interval = f"[{100 * low:.1f}, {100 * high:.1f}]"
        stamp = f"{scores['normalizer']} ({scores['normalizer_version']})"
        rows.append([name, f"{scores['wer']:.1%}", interval, f"{scores['cer']:.1%}", scores["num_utterances"], stamp])
    yield from _table(("set", "WER", "95 % interval", "CER", "utterances", "normaliser"), rows)


def _parts(report: Mapping[str, Any]) -> Iterator[str]:
    recipe, rows = report["recipe"], []
    for part in report["parts"]:
        section = recipe.get(part["part"]) or {}
        start = section.get("pretrained") if section.get("init") == "pretrained" else "random weights"
        rows.append([part["part"], part["name"] or "", start, f"{part['total']:,}", f"{part['trainable']:,}"])
    sums = (f"{sum(part[key] for part in report['parts']):,}" for key in ("total", "trainable"))
    yield from _table(("part", "kind", "began as", "parameters", "trained"), [*rows, ["all", "", "", *sums]])
    start = recipe["training"]["init_from"]
    if start:
        yield from ("", "Weights of an earlier run were put over these before training.")


def _data(report: Mapping[str, Any]) -> Iterator[str]:
    data, training = report["recipe"]["data"], report["training"]
    yield from _table(
        ("set", "source", "from", "used for"),
        [
            [name, source["name"], _origin(source), used]
            for used, sets in (("training", data["train"]), ("scoring", data["evaluation"]))
            for name, source in sets.items()
        ],
    )
    yield ""
    bounds = f"clips of {data['min_duration_s']:g} to {data['max_duration_s']:g} s"
    yield (
        f"Trained for {training['steps']:,} steps on {training['audio_hours']:,.3g} hours of audio, repetitions "
        f"included; {bounds}; text as `data.target_text: {data['target_text']}` makes it. Clips left out, by training "
        f"or scoring: {sum(report['dropped'].values()):,}."
    )


def _origin(source: Mapping[str, Any]) -> str:
    """Of the hub the repository; of this machine a file's name, and none of its folders."""
    if source.get("repo"):
        return str(source["repo"])
    return Path(source["path"]).name if source.get("path") else ""


def _limits(report: Mapping[str, Any]) -> Iterator[str]:
    sets = report["evaluation"]
    yield "It knows the languages, voices and recording conditions of its training data; others were not tried" + (
        f" beyond the set{'s' * (len(sets) > 1)} above." if sets else "."
    )
    longest = report["recipe"]["data"]["max_duration_s"]
    yield f"It was trained on clips of at most {longest:g} s; longer audio must be cut."
    for name, scores in sets.items():
        looping, empty = scores["looping_hypotheses"], scores["empty_hypotheses"]
        yield f"On {_text(name)}, {looping} of {scores['num_utterances']} hypotheses loop and {empty} are empty."
    yield (
        "Its decoder is a language model, which can write words that nobody said. Do not use it unchecked where an "
        "error does harm."
    )
    yield "No licence is stated here: those of the base models and of the data apply."


def _table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    yield f"| {' | '.join(map(_text, head))} |"
    yield f"|{' --- |' * len(head)}"
    yield from (f"| {' | '.join(map(_text, row))} |" for row in rows)


def _text(value: object) -> str:
    """On one line, and no markup of its own."""
    text = " ".join(str(value).split())
    for special in "\\|<>*_`[]#":
        text = text.replace(special, f"\\{special}")
    return text
