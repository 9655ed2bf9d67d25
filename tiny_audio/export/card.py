"""Generate the model card (``README.md``) of an exported model from the report of its run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tiny_audio import __version__
from tiny_audio.analysis.ledger import ledger_rows, three_digits
from tiny_audio.analysis.scoring.metrics import metric_columns
from tiny_audio.analysis.warnings import comparison_of, warnings_of
from tiny_audio.inference.transcriber import LONGEST_CHUNK_S

_USE = """\
```python
from transformers import pipeline

recognizer = pipeline("automatic-speech-recognition", model="path/of/this/folder", trust_remote_code=True)
print(recognizer("clip.mp3")["text"])
```

Install the packages that the model needs with `pip install -r path/of/this/folder/requirements.txt`. The model reads
wav, flac, ogg and mp3 without FFmpeg, at any sample rate and length. If the model has a CTC head,
`return_timestamps="word"` returns the time of each word. `AutoModelForSpeechSeq2Seq` and `AutoProcessor` can also load
this folder."""


def base_licenses(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return the licenses of the recipe's base checkpoints, by checkpoint, from their model cards.

    If a request to the hub fails, the license is omitted, so a card can be written without a network.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.repocard import metadata_load
    from huggingface_hub.utils import httpx
    from yaml import YAMLError

    found = {}
    for base in _bases(recipe):
        try:
            if Path(base).is_dir():
                metadata: Any = metadata_load(Path(base) / "README.md") or {}
            else:
                card: Any = HfApi().model_info(base, timeout=5).card_data
                metadata = card.to_dict() if card else {}
        # The file or repository does not exist, there is no network, or the YAML is invalid.
        except (OSError, ValueError, YAMLError, httpx.HTTPError):  # errors of huggingface_hub are subclasses of these
            continue
        license = metadata.get("license_name" if metadata.get("license") == "other" else "license")
        if isinstance(license, str):
            found[base] = license
    return found


def model_card(report: Mapping[str, Any], licenses: Mapping[str, str] | None = None) -> str:
    """Return the card as Markdown, with the front matter that Hugging Face's hub reads.

    Args:
        report: ``report.json`` of the run.
        licenses: licenses of the base checkpoints, from :func:`base_licenses`.
    """
    return "\n".join(_lines(report, licenses or {})) + "\n"


def _bases(recipe: Mapping[str, Any]) -> list[str]:
    return [part["pretrained"] for part in (recipe["encoder"], recipe["decoder"]) if part["init"] == "pretrained"]


def _lines(report: Mapping[str, Any], licenses: Mapping[str, str]) -> Iterator[str]:
    recipe, name = report["recipe"], _text(report["name"])
    yield from ("---", _front_matter(report), "---", "", f"# {name}", "")
    yield (
        f"A speech recognizer, trained with Tiny Audio in run `{report['run_id']}`. This page was generated from that "
        "run."
    )
    if "step" in report:
        yield from ("", f"The weights are those of step {report['step']:,} of {recipe['training']['steps']:,}.")
    else:
        yield from _final_weights(report["training"])
    yield from ("", "## Word error rate", "")
    yield from _scores(report["evaluation"])
    for row in report.get("monitored", ()):
        if row["wer"] is None:
            continue
        measured = f"{row['wer']:.1%} on {row['utterances']:,} clips of {_text(row['set'])}"
        yield from ("", f"During training, the word error rate at this step was {measured}.")
    yield from ("", "## Parts", "")
    yield from _parts(report)
    yield from ("", "## Data", "")
    yield from _data(report)
    if report["ledger"] is not None:
        yield from ("", "## Resources for training", "")
        yield from _table(("resource", "value", "source"), ledger_rows(report["ledger"]))
    yield from ("", "## Use", "", _USE)
    yield from ("", "## Limits", "")
    yield from (f"- {limit}" for limit in _limits(report))
    yield from ("", "## Licenses", "")
    yield from _licenses(recipe, licenses)
    yield from ("", "## Citation", "")
    yield from _citation(report)


def _final_weights(training: Mapping[str, Any]) -> Iterator[str]:
    """If the report has an entry ``final_weights``, yield a sentence on the steps that the weights come from."""
    final = training.get("final_weights")
    if final is None:
        return
    last, steps = training["steps"], ", ".join(f"{step:,}" for step in final["steps"])
    weights = f"averages over the steps {steps}" if len(final["steps"]) > 1 else f"those of step {steps}"
    took = "stopped early, after" if final["stopped_early"] else "took"
    text = f"Training {took} {last:,} steps. The weights are {weights}"
    if final["selected_on"] is not None:
        text += f", the best of {final['num_evaluations']:,} evaluations by {final['metric']} on "
        text += _text(final["selected_on"])
    yield from ("", f"{text}.")


def _front_matter(report: Mapping[str, Any]) -> str:
    """Return the YAML front matter, with the results as a ``model-index``."""
    from huggingface_hub import EvalResult, ModelCardData

    hub = [base for base in _bases(report["recipe"]) if not Path(base).exists()]
    results = [
        EvalResult(
            task_type="automatic-speech-recognition",
            task_name="Automatic Speech Recognition",
            dataset_type=str(source.get("repo") or source["name"]),
            dataset_name=name,
            # huggingface_hub merges sets with the same dataset_type and dataset_split, so each set gets its own split.
            dataset_split=name,
            metric_type=metric,
            metric_name=metric.upper(),
            metric_value=round(100 * scores[metric], 2),
            metric_args=_how(scores, metric),
        )
        for name, scores in report["evaluation"].items()
        for source in [report["recipe"]["data"]["evaluation"][name]]
        for metric in ("wer", "cer")
        if scores[metric] is not None
    ]
    card = ModelCardData(
        base_model=hub or None,
        library_name="transformers",
        pipeline_tag="automatic-speech-recognition",
        tags=["tiny-audio", "automatic-speech-recognition"],
        # The model's name is part of the model-index in the hub's metadata. Without results, there is no model-index.
        model_name=str(report["name"]) if results else None,
        eval_results=results or None,
    )
    return card.to_yaml()


def _how(scores: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Return how an error rate was measured: normalizer, number of utterances and, for the WER, its 95% interval."""
    arguments: dict[str, Any] = {
        "normalizer": f"{scores['normalizer']} ({scores['normalizer_version']})",
        "num_utterances": scores["num_utterances"],
    }
    if metric == "wer":
        arguments["interval_95"] = [round(100 * bound, 2) for bound in scores["wer_interval"]]
    return arguments


def _scores(evaluation: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    if not evaluation:
        yield "Not measured: the run evaluated no set."
        return
    columns = list(metric_columns(list(evaluation.values()), interval=_interval))
    rows = []
    for index, (name, scores) in enumerate(evaluation.items()):
        stamp = f"{scores['normalizer']} ({scores['normalizer_version']})"
        rows.append([name, *(column.cells[index] for column in columns), scores["num_utterances"], stamp])
    yield from _table(("set", *(column.head for column in columns), "utterances", "normalizer"), rows)
    yield ""
    named = (f"{column.head}: {column.label}" for column in columns if column.head != "95 % interval")
    yield f"{'; '.join(map(_text, named))}."
    for name, scores in evaluation.items():
        for warning in warnings_of(scores):
            yield from ("", f"**Warning:** {_text(name)}: {_text(warning)}.")
        if compared := comparison_of(scores):
            yield from ("", f"{_text(name)}: {compared}.")


def _interval(ends: Sequence[float]) -> str:
    low, high = ends
    return f"[{100 * low:.2f}, {100 * high:.2f}]"


def _parts(report: Mapping[str, Any]) -> Iterator[str]:
    recipe, rows = report["recipe"], []
    for part in report["parts"]:
        section = recipe.get(part["part"]) or {}
        start = section.get("pretrained") if section.get("init") == "pretrained" else "random weights"
        rows.append([part["part"], part["name"] or "", start, f"{part['total']:,}", f"{part['trainable']:,}"])
    sums = (f"{sum(part[key] for part in report['parts']):,}" for key in ("total", "trainable"))
    yield from _table(("part", "kind", "initialized from", "parameters", "trained"), [*rows, ["all", "", "", *sums]])
    if recipe["training"]["init_from"]:
        yield from ("", "Before training, the weights of some or all parts were replaced by those of another model.")


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
    bounds = f"Training clips last {data['min_duration_s']:g} to {data['max_duration_s']:g} s."
    yield (
        f"Trained for {training['steps']:,} steps on {three_digits(training['audio_hours'])} hours of audio, including "
        f"repetitions. {bounds} Transcripts were prepared with `data.target_text: {data['target_text']}`. Clips that "
        f"were left out of training or evaluation: {sum(report['dropped'].values()):,}."
    )


def _origin(source: Mapping[str, Any]) -> str:
    """Return the repository on the hub, or the name of a local file. The file's path is left out, because it may be
    private."""
    if source.get("repo"):
        return str(source["repo"])
    return Path(source["path"]).name if source.get("path") else ""


def _limits(report: Mapping[str, Any]) -> Iterator[str]:
    sets = report["evaluation"]
    yield "The model learned the languages, voices and recording conditions of its training data. Others were not " + (
        f"tested, except in the set{'s' * (len(sets) > 1)} above." if sets else "tested."
    )
    durations = report["training"].get("clip_durations")
    bounds = f"at most {report['recipe']['data']['max_duration_s']:g} s"
    if durations:
        bounds = f"{durations['min_s']:g} to {durations['max_s']:g} s (median {durations['median_s']:g} s)"
    yield (
        f"The model was trained on clips of {bounds}. A recording is split at pauses if it is longer than the longest "
        f"of these clips, longer than {LONGEST_CHUNK_S:g} s, or longer than the encoder accepts."
    )
    for name, scores in sets.items():
        looping, empty = scores["looping_hypotheses"], scores["empty_hypotheses"]
        yield f"On {_text(name)}, {looping} of {scores['num_utterances']} hypotheses loop and {empty} are empty."
    yield (
        "The decoder is a language model and can write words that nobody spoke. Check the transcripts if errors "
        "could do harm."
    )


def _licenses(recipe: Mapping[str, Any], licenses: Mapping[str, str]) -> Iterator[str]:
    """Yield the licenses of the base models. For a local folder, only the last part of its path is shown."""
    rows = []
    for base in dict.fromkeys(_bases(recipe)):
        name = Path(base).name if Path(base).exists() else base
        rows.append((name, licenses.get(base, f"see {name}")))
    if rows:
        yield from _table(("base model", "license"), rows)
        yield ""
    yield (
        "This card does not state a license for the model itself. The licenses of the base models and of the data "
        "apply."
    )


def _citation(report: Mapping[str, Any]) -> Iterator[str]:
    version = report["provenance"].get("tiny-audio", __version__)
    finished = str(report["provenance"].get("finished", ""))
    yield from (
        "```bibtex",
        f"@misc{{tiny_audio_{report['run_id']},",
        f"  title = {{{_text(report['name'])}: a speech recognizer trained with Tiny Audio {version}}},",
        *([f"  year = {{{finished[:4]}}},"] if finished else []),
        f"  note = {{Run {report['run_id']}}}",
        "}",
        "```",
    )
    bases = [base for base in dict.fromkeys(_bases(report["recipe"])) if not Path(base).exists()]
    if bases:
        yield from ("", f"Please cite the base models too: {', '.join(map(_text, bases))}.")


def _table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    yield f"| {' | '.join(map(_text, head))} |"
    yield f"|{' --- |' * len(head)}"
    yield from (f"| {' | '.join(map(_text, row))} |" for row in rows)


def _text(value: object) -> str:
    """Return the value on one line, with Markdown characters escaped."""
    text = " ".join(str(value).split())
    for special in "\\|<>*_`[]#":
        text = text.replace(special, f"\\{special}")
    return text
