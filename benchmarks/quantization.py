"""Compare a decoder in fp32 with the same decoder in nf4 and int8: memory, training loss, and texts.

    python benchmarks/quantization.py --encoder openai/whisper-tiny.en \\
        --decoder HuggingFaceTB/SmolLM2-135M-Instruct \\
        --manifest ../shared/speech/an4/train.jsonl --held-out ../shared/speech/an4/dev.jsonl

All three decoders start from the same weights and train on the same batches. The size of the decoder's linear layers in
bytes is compared with the size that `tiny-audio plan` predicts. For nf4 and int8, held-out clips are transcribed with
quantized weights. These texts are compared with the texts of dequantized weights, with and without merged adapters.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from tiny_audio.audio.load import load_audio
from tiny_audio.data.clips import ClipSet
from tiny_audio.export.merge import merge_adapters
from tiny_audio.model.processor import TinyAudioProcessor
from tiny_audio.plan.meta import build_on_meta
from tiny_audio.pretrained.quantization import dequantize, quantizable
from tiny_audio.recipe import Recipe, load_recipe
from tiny_audio.sources import SOURCES, SourceContext
from tiny_audio.training.assembly import assemble
from tiny_audio.training.metrics import read_metrics
from tiny_audio.training.signals import StopSignal
from tiny_audio.training.trainer import Trainer


class Notes:
    """A callback of the trainer that prints its notes, but no metrics of steps."""

    def step(self, step: int, values: dict[str, Any]) -> None:
        """See :class:`tiny_audio.training.trainer.Callback`."""

    def note(self, message: str) -> None:
        """See :class:`tiny_audio.training.trainer.Callback`."""
        print(f"  {message}", flush=True)


def recipe_of(options: argparse.Namespace, kind: str | None) -> Recipe:
    return load_recipe(
        "laptop",
        changes={
            "encoder.pretrained": options.encoder,
            "decoder.pretrained": options.decoder,
            "decoder.quantization": kind,
            "data.train": {"clips": {"name": "manifest", "path": str(options.manifest)}},
            "data.evaluation": {},
            "batching.max_padded_s": 30.0,
            "training.steps": options.steps,
            "training.warmup_steps": 1,
            "training.learning_rate": 5e-4,
            "generation.max_new_tokens": 24,
            "execution.device": "cpu",
            "execution.num_workers": 0,
            "execution.log_every": 1,
            "execution.checkpoint_every": options.steps,
            "execution.evaluate_every": None,
            "execution.evaluate_set": None,
        },
    )


def bytes_of_linear_layers(decoder: Any) -> int:
    """Return the bytes of the linear layers that are or can be quantized."""
    layers = quantizable(decoder).values()
    return sum(tensor.nbytes for layer in layers for tensor in (*layer.parameters(), *layer.buffers()))


def texts_of(model: Any, tokenizer: Any, options: argparse.Namespace) -> tuple[list[str], float]:
    """Return the texts of held-out clips, and the CPU time of decoding in seconds."""
    rows = [json.loads(line) for line in options.held_out.read_text().splitlines()[: options.clips]]
    waveforms = [load_audio(options.held_out.parent / row["audio_filepath"], max_duration_s=15.0) for row in rows]
    inputs = TinyAudioProcessor(tokenizer)([waveform.numpy() for waveform in waveforms])
    started = time.process_time()
    found = model.transcribe(**inputs, tokenizer=tokenizer)
    return [one.text for one in found], time.process_time() - started


def measure(options: argparse.Namespace, kind: str | None, folder: Path) -> None:
    recipe = recipe_of(options, kind)
    sources = {name: SOURCES.build(source, SourceContext(folder)) for name, source in recipe.data.train.items()}
    data = recipe.data
    clips = ClipSet.gather(sources, data.min_duration_s, data.max_duration_s, data.target_text)
    model, tokenizer, target_encoder = assemble(recipe, clips, None)
    folder.mkdir()
    trainer = Trainer(recipe, model, clips, target_encoder, folder, StopSignal(), Notes())
    planned = build_on_meta(recipe).model.float()
    print(
        f"{kind or 'fp32'}: linear layers of the decoder: {bytes_of_linear_layers(model.decoder):,} bytes, "
        f"predicted by plan: {bytes_of_linear_layers(planned.decoder):,}",
        flush=True,
    )
    started = time.process_time()
    trainer.run()
    losses = [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]
    print(
        f"  loss of step 1: {losses[0]:.4f}; mean of the last 5 of {len(losses)} steps: {sum(losses[-5:]) / 5:.4f}; "
        f"CPU time: {time.process_time() - started:.0f} s",
        flush=True,
    )
    if kind is None:
        return
    model.eval()
    quantized, quantized_s = texts_of(model, tokenizer, options)
    dequantize(model.decoder)
    dequantized, dequantized_s = texts_of(model, tokenizer, options)
    merge_adapters(model)
    merged, _ = texts_of(model, tokenizer, options)
    print(
        f"  of {len(quantized)} texts with quantized weights, "
        f"{sum(map(str.__ne__, quantized, dequantized))} are different with dequantized weights, and "
        f"{sum(map(str.__ne__, quantized, merged))} are different with dequantized weights and merged adapters\n"
        f"  CPU time of decoding: {quantized_s:.1f} s with quantized weights, {dequantized_s:.1f} s with dequantized "
        "weights",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--decoder", required=True)
    parser.add_argument("--manifest", type=Path, required=True, help="clips to train on")
    parser.add_argument("--held-out", type=Path, required=True, help="clips to transcribe")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--clips", type=int, default=8, help="number of clips to transcribe")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for kind in (None, "nf4", "int8"):
            measure(options, kind, Path(folder) / str(kind))


if __name__ == "__main__":
    main()
