"""Arguments of the commands that use a trained model or its hypotheses.

This file has no slow imports, because ``--help`` imports it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from tiny_audio.commands import arguments as arg
from tiny_audio.config import UserError

model_app = typer.Typer()


@model_app.command()
def export(
    model: arg.Model,
    folder: arg.ExportFolder,
    output_format: arg.ExportFormat = "huggingface",
    merge_lora: arg.MergeLora = False,
    weights: arg.Weights = None,
    step: arg.Step = None,
) -> None:
    """Write a model as a Hugging Face folder or in another format. A Hugging Face folder loads without this package.

    MODEL may also be a checkpoint, such as runs/mine/checkpoints/step-000000500.

    Example: tiny-audio export runs/mine my-model --merge-lora
    """
    from tiny_audio.commands.export import export

    export(model, folder, output_format, merge_lora=merge_lora, weights=weights, step=step)


@model_app.command()
def cut(
    model: arg.Model,
    data: arg.TrainingData,
    output_dir: arg.ExcerptFolder,
    num_clips: Annotated[int | None, Option(help="Number of excerpts. Default: the number of clips.", min=1)] = None,
    seed: Annotated[int, Option(help="Seed for all random choices.", min=0)] = 0,
) -> None:
    """Cut clips between words, as training data for long recordings. The model's CTC head finds the words.

    Each excerpt is a part of one clip, or of several joined clips of one speaker. Clips without a speaker are joined
    with each other.

    Example: tiny-audio cut runs/mine --data train.jsonl --output-dir data/excerpts
    """
    from tiny_audio.commands.cut import cut

    cut(model, data, output_dir, num_clips, seed)


@model_app.command()
def push(
    model: arg.Model,
    repo: arg.Repo,
    private: Annotated[bool, Option("--private", help="Make a new repository private.")] = False,
    space: Annotated[bool, Option("--space", help="Also push a Space: a Gradio app to try the model.")] = False,
) -> None:
    """Upload an exported model to the Hugging Face hub. The token comes from HF_TOKEN or `hf auth login`.

    Example: HF_TOKEN=hf_... tiny-audio push my-model me/my-model --private
    """
    from tiny_audio.commands.push import push_folder

    for url in push_folder(model, repo, private=private, space=space):
        print(url)


@model_app.command()
def transcribe(
    model: arg.Model,
    audio: arg.Recordings,
    output_format: arg.TranscriptFormat = None,
    output_dir: arg.TranscriptFolder = None,
    words: arg.Words = False,
    hotwords: arg.Hotwords = None,
    previous_text: arg.PreviousText = None,
    language: arg.Language = None,
    audio_track: arg.AudioTrack = None,
    channel: arg.Channel = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace existing transcripts in --output-dir.")] = False,
    no_filters: arg.NoFilters = False,
    no_search: arg.NoSearch = False,
    as_json: Annotated[bool, Option("--json", help="Short for --format json.")] = False,
) -> None:
    """Transcribe audio files to text, tables or subtitles. Unreadable files are reported and skipped.

    Example: tiny-audio transcribe runs/mine recordings --format srt --output-dir subtitles
    """
    from tiny_audio.audio.channels import parse_channel
    from tiny_audio.commands.transcribe import Options, transcribe_and_print
    from tiny_audio.inference.hotwords_file import read_hotwords
    from tiny_audio.model.prompt import Context

    if as_json and output_format not in (None, "json"):
        raise UserError(f"--json and --format {output_format} exclude each other; remove one of them")
    options = Options(
        format="json" if as_json else output_format or "text",
        output_dir=output_dir,
        words=words,
        filter_hallucinations=not no_filters,
        search_cuts=not no_search,
        overwrite=overwrite,
        track=audio_track,
        channel=None if channel is None else parse_channel(channel),
        context=Context.of(None if hotwords is None else read_hotwords(hotwords), previous_text, language),
    )
    transcribe_and_print(model, audio, options)


@model_app.command()
def serve(
    model: arg.Model,
    host: Annotated[
        str, Option(help="Address to listen on. With 0.0.0.0, other machines can connect; add --api-key.")
    ] = "127.0.0.1",
    port: Annotated[int, Option(help="Port to listen on. 0 chooses a free port.", min=0, max=65535)] = 8000,
    api_key: arg.ApiKeys = None,
    api_key_file: arg.ApiKeyFile = None,
    allow_origin: arg.AllowedOrigins = None,
    model_name: Annotated[str | None, Option(help="Name for clients. Default: the folder's name.")] = None,
    max_padded_s: Annotated[float, Option(help="Maximum seconds of audio in a batch, with padding.", min=1)] = 120.0,
    max_upload_mb: Annotated[float, Option(help="Maximum size of an upload in MB.", min=0.001)] = 100.0,
    max_duration_s: Annotated[float, Option(help="Maximum seconds of audio in a recording.", min=1)] = 7200.0,
    max_requests: Annotated[
        int, Option(help="Maximum requests at a time. Further requests get status 429.", min=1)
    ] = 128,
    max_streams: Annotated[int, Option(help="Maximum live streams at a time.", min=1)] = 32,
    request_timeout_s: Annotated[float, Option(help="Maximum seconds for a transcription.", min=1)] = 600.0,
    hotwords: arg.Hotwords = None,
    no_filters: arg.NoFilters = False,
    no_search: arg.NoSearch = False,
    log_transcripts: Annotated[bool, Option("--log-transcripts", help="Write transcripts to the log.")] = False,
) -> None:
    """Serve a model over HTTP, for clients of OpenAI's audio API. Concurrent requests are batched together.

    Example: tiny-audio serve runs/mine --port 8000
    """
    from tiny_audio.commands.serve import serve

    serve(
        model,
        host=host,
        port=port,
        api_keys=api_key or [],
        api_key_file=api_key_file,
        allowed_origins=allow_origin or [],
        model_name=model_name,
        max_padded_s=max_padded_s,
        max_upload_mb=max_upload_mb,
        max_duration_s=max_duration_s,
        max_requests=max_requests,
        max_streams=max_streams,
        request_timeout_s=request_timeout_s,
        filter_hallucinations=not no_filters,
        search_cuts=not no_search,
        hotwords=hotwords,
        log_transcripts=log_transcripts,
    )


@model_app.command()
def evaluate(
    targets: arg.Targets,
    data: arg.EvaluationData,
    max_samples: Annotated[int | None, Option(help="Maximum clips per set. Default: all.", min=1)] = None,
    output_dir: arg.EvaluationFolder = Path("runs/evaluation"),
    normalizer: arg.Normalizer = "whisper_english",
    group_by: arg.GroupByOfHypotheses = None,
    as_json: arg.AsJson = False,
) -> None:
    """Score models and providers on the same clips. Run the command again to continue, or to retry failed clips.

    Example: tiny-audio evaluate runs/mine provider:pocketsphinx --data leaderboard/ami --max-samples 200
    """
    from tiny_audio.commands.evaluate import evaluate

    evaluate(targets, data, max_samples, output_dir, normalizer=normalizer, group_by=group_by, as_json=as_json)


@model_app.command()
def rescore(
    hypotheses: arg.Hypotheses,
    normalizer: arg.Normalizer = "whisper_english",
    cost: arg.Cost = None,
    group_by: arg.GroupByOfHypotheses = None,
    html: arg.HtmlPage = None,
    as_json: arg.AsJson = False,
) -> None:
    """Score saved hypotheses of one or more systems. Needs no model.

    Example: tiny-audio rescore runs/a/evaluation/test.jsonl other.jsonl --html page.html
    """
    from tiny_audio.commands.rescore import rescore

    rescore(hypotheses, normalizer=normalizer, cost=cost, group_by=group_by, html=html, as_json=as_json)
