"""Arguments and options of the commands, in the order in which the help lists the commands.

A short declaration that only one command uses is in the signature of this command instead. This file has no slow
imports, because ``--help`` imports it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from tiny_audio.analysis.normalizer_names import NORMALIZER_NAMES
from tiny_audio.config import expand_path

NORMALIZERS = f"{', '.join(NORMALIZER_NAMES[:-1])} or {NORMALIZER_NAMES[-1]}"


def warn_of_local_recipe(recipe: Path | None) -> Path | None:
    """Print a message if a local file is used instead of the shipped recipe with the same name."""
    from tiny_audio.runtime.shipped_recipes import local_instead_of_shipped

    if recipe is not None and (local := local_instead_of_shipped(str(recipe))):
        print(
            f"using the file {local}, not the recipe {recipe} that ships with tiny-audio",
            file=sys.stderr,
        )
    return recipe


# used by several commands
RecipePath = Annotated[
    Path,
    Argument(
        metavar="RECIPE",
        callback=warn_of_local_recipe,
        help="A recipe file, or the name of one that ships with tiny-audio, such as quickstart.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    Argument(
        metavar="KEY=VALUE",
        help="Changes to the recipe: training.steps=100 sets a field, projector=swiglu replaces a section.",
    ),
]
Model = Annotated[Path, Argument(metavar="MODEL", help="Folder of a run or of an exported model.")]
Normalizer = Annotated[str, Option(help=f"Text normalizer: {NORMALIZERS}.")]
GroupBy = Annotated[
    str | None,
    Option(
        help="Metadata column, such as speaker, that groups clips. Confidence intervals and significance tests "
        "resample whole groups. Default: the recipe's evaluation.group_by. If it is not set: speaker if every clip has "
        "a speaker and there are several speakers, otherwise no groups."
    ),
]
GroupByOfHypotheses = Annotated[
    str | None,
    Option(
        help="Metadata column, such as speaker, that groups clips. Confidence intervals and significance tests "
        "resample whole groups. Default for comparisons: speaker if every clip has a speaker and there are several "
        "speakers, otherwise no groups."
    ),
]
HtmlPage = Annotated[Path | None, Option(help="Also write an HTML page to this file.")]
AsJson = Annotated[bool, Option("--json", help="Print JSON, for scripts.")]

# run, sweep and compare
RunFolder = Annotated[Path | None, Option(help="The run's folder. Default: runs/<recipe>-<run id>.", file_okay=False)]
Grid = Annotated[
    list[str],
    Argument(
        metavar="KEY=VALUE,VALUE",
        help="Values for fields of the recipe. Every combination of the values becomes a run: projector=swiglu,conv "
        "training.seed=0,1 gives four runs. A key with one value applies to all runs. Commas in brackets or quotes "
        "belong to the value.",
    ),
]
SweepFolder = Annotated[
    Path | None, Option(help="The sweep's folder. Default: sweeps/<recipe>-<hash of the runs>.", file_okay=False)
]
Runs = Annotated[list[Path], Argument(metavar="RUN", help="Run folders. The first is the baseline.")]

# doctor, recipes, list and reference
OptionalRecipe = Annotated[
    Path | None, Argument(metavar="RECIPE", callback=warn_of_local_recipe, help="Also check what this recipe needs.")
]
ShippedRecipe = Annotated[str | None, Argument(metavar="NAME", help="Print this recipe. Default: list all recipes.")]
RecipeCopy = Annotated[
    Path | None, Option("--copy", help="Write the recipe to this new file, or to a new file in this folder.")
]
PartKind = Annotated[
    str | None,
    Argument(metavar="KIND", help="encoders, projectors, decoders, sources, providers or exports. Default: all."),
]
PageKind = Annotated[
    str | None,
    Argument(
        metavar="KIND",
        help="encoders, projectors, decoders, sources, providers, exports, fields or commands. Default: all.",
    ),
]

# export and push
ExportFolder = Annotated[Path, Argument(metavar="DIR", help="Output folder. An earlier export in it is replaced.")]
ExportFormat = Annotated[str, Option("--format", help="Format of the export. To set its options: NAME:key=value,...")]
MergeLora = Annotated[
    bool, Option("--merge-lora", help="Merge LoRA adapters into the weights. Loading then needs no peft.")
]
Weights = Annotated[
    str | None,
    Option(
        help="Weights to write: all, or trained (only the trained weights). With trained, the export is smaller, but "
        "loading it downloads the base models. Default: all."
    ),
]
Step = Annotated[
    int | None,
    Option(help="Export the checkpoint of this step. The run need not be finished. Default: the trained model.", min=1),
]
Repo = Annotated[str, Argument(metavar="REPO", help="owner/name on the Hugging Face hub.")]

# transcribe
Recordings = Annotated[
    list[Path],
    Argument(
        metavar="AUDIO",
        help="Audio files of any length, folders of them, or - for standard input. Reads wav, flac, ogg, opus and "
        "mp3. With the FFmpeg program installed, also m4a, mp4 and others.",
    ),
]
TranscriptFormat = Annotated[
    str | None, Option("--format", help="text, json, srt, vtt or tsv. Default: text.", show_default=False)
]
TranscriptFolder = Annotated[
    Path | None,
    Option(
        help="Write one file per recording to this folder. A recording is skipped if its transcript is already in this "
        "folder and the recording has not changed since.",
        file_okay=False,
    ),
]
Words = Annotated[
    bool, Option("--words", help="Add word timestamps. Needs a model with a CTC head. Not with --format text.")
]
Hotwords = Annotated[
    Path | None,
    Option(
        help="A file of names and rare words that may be spoken, one on each line. Needs a model that was trained with "
        "prompt.context.",
        show_default=False,
    ),
]
PreviousText = Annotated[str | None, Option(help="Text that was spoken before each recording.", show_default=False)]
Language = Annotated[
    str | None,
    Option(
        help="Language of the recordings, such as en. Needs a model that was trained with prompt.context.language.",
        show_default=False,
    ),
]
AudioTrack = Annotated[
    int | None,
    Option(
        metavar="N",
        help="Number of the audio track, from 1. Default: the file's default track, else the first.",
        min=1,
        show_default=False,
    ),
]
Channel = Annotated[
    str | None,
    Option(
        metavar="CHANNEL",
        help="Use one channel: left, right, or its number from 1. Default: the mean of all channels, or the stronger "
        "channel if they have opposite phases.",
        show_default=False,
    ),
]
NoFilters = Annotated[
    bool, Option("--no-filters", help="Turn off the hallucination filters: transcribe all audio, and keep all text.")
]
NoSearch = Annotated[
    bool, Option("--no-search", help="Do not let the model search for better cuts in speech without pauses.")
]

# serve
ApiKeys = Annotated[
    list[str] | None,
    Option(
        metavar="KEY",
        help="A key that clients must send. Can be repeated. Other users of this machine can see keys in arguments, so "
        "prefer the environment variable or --api-key-file. Default: no key is needed.",
        envvar="TINY_AUDIO_API_KEY",
        show_default=False,
    ),
]
ApiKeyFile = Annotated[Path | None, Option(help="A file with one key per line.", dir_okay=False)]
AllowedOrigins = Annotated[
    list[str] | None,
    Option(
        metavar="ORIGIN",
        help="Allow requests from web pages of this origin, such as https://example.com. Can be repeated.",
        show_default=False,
    ),
]

# evaluate and rescore
Targets = Annotated[
    list[str],
    Argument(
        metavar="TARGET",
        help="The folder of a run or of a model, a model on the hub such as openai/whisper-small, or provider:NAME. "
        "Options follow after a colon: runs/mine:hotwords=names.txt, openai/whisper-small:language=en or "
        "provider:deepgram:model=nova-3. API keys are read from environment variables.",
    ),
]
EvaluationData = Annotated[
    list[str],
    Option(
        help="A manifest of JSON lines; a YAML file with sources; SOURCE:key=value,... such as "
        "librispeech:split=test.clean; a track of the Open ASR Leaderboard (leaderboard, leaderboard_long or "
        "leaderboard_multilingual); or one set of a track, such as leaderboard/ami_cleaned. Can be repeated."
    ),
]
EvaluationFolder = Annotated[
    Path, Option(help="Folder for hypotheses and scores of each target and set.", file_okay=False)
]
TrainingData = Annotated[
    list[str],
    Option(
        "--data",
        help="Clips: a manifest of JSON lines, a YAML file with sources, or SOURCE:key=value,... Can be repeated.",
    ),
]
ExcerptFolder = Annotated[
    Path, Option("--output-dir", help="Folder for the audio files and train.jsonl.", file_okay=False)
]
Hypotheses = Annotated[
    list[Path],
    Argument(
        metavar="HYPOTHESES",
        help="Files of JSON lines with audio_filepath, duration, text and pred_text. The first is the baseline.",
    ),
]
Cost = Annotated[
    str | None,
    Option(
        help="Costs of edits. unit: 1 each, as in jiwer. sclite: substitutions 4, deletions and insertions 3, as in "
        "NIST's sclite. compounds: as unit, but 'white paper' matches 'whitepaper', as on the Open ASR Leaderboard for "
        "English. joined: as compounds, but a matched 'white paper' in the reference counts as one word, as on this "
        "leaderboard for other languages. Default: the costs of the normalizer."
    ),
]


def expanded(word: str) -> str:
    """Replace ``~`` and environment variables in a command-line argument ``path`` or ``--option=path``."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{option}{equals}{expand_path(value)}" if value.startswith(("~", "$")) else word
