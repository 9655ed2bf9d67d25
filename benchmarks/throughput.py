"""Compare packed rows and compiled layers with padded rows and plain layers, with the same weights and clips.

    python benchmarks/throughput.py                    on a CPU; takes some minutes
    python benchmarks/throughput.py --compile          also with compiled layers, which takes longer
    python benchmarks/throughput.py --device cuda      on a GPU, in bf16

In packed rows (attention `varlen`), the clips of a batch are in one row without padding. In padded rows (`sdpa`), each
clip has its own row. The durations of the clips are log-normal. Batches have random clips or clips of similar length.
The variants alternate, so that other work on the machine affects them equally. Their losses must agree, except for
rounding. Compare the ratios, not the seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch

from tiny_audio.data.order import BatchingConfig, plan_epoch
from tiny_audio.decoders import DECODERS, build_tokenizer
from tiny_audio.encoders import ENCODERS
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.model.prompt import PromptConfig, build_prompt
from tiny_audio.projectors import PROJECTORS
from tiny_audio.training.compilation import compile_layers

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CLIPS, BATCH = 512, 8
ENCODER: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "conv_dim": [32] * 7,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}
DECODER: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 1024,
}


def build(attention: str, texts: list[str], device: str) -> tuple[TinyAudioModel, Any, int]:
    torch.manual_seed(0)
    encoder = ENCODERS.parse(
        {"name": "hubert", "init": "random", "freeze": False, "overrides": ENCODER, "attention": attention}
    )
    tokens = {"kind": "bpe", "vocab_size": 300}
    decoder = DECODERS.parse(
        {"name": "smollm3", "init": "random", "freeze": False, "overrides": DECODER, "attention": attention}
        | {"tokenizer": tokens}
    )
    tokenizer = build_tokenizer(decoder, texts)
    prompt = build_prompt(PromptConfig(), tokenizer)
    projector = PROJECTORS.parse({"name": "swiglu", "hidden_dim": 768})
    model = TinyAudioModel.assemble(encoder, projector, decoder, tokenizer=tokenizer, prompt=prompt)
    return model.train().to(device), tokenizer, prompt.end_id


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    durations = np.clip(rng.lognormal(np.log(4.0), 0.6, CLIPS), 0.5, 15.0)
    texts = [" ".join(rng.choice(WORDS, max(1, int(duration * 2)))) for duration in durations]
    variants: dict[str, tuple[TinyAudioModel, Any, int]] = {
        name: build(name, texts, arguments.device) for name in ("sdpa", "varlen")
    }
    if arguments.compile:
        for name in ("sdpa", "varlen"):
            variants[f"{name}, compiled"] = build(name, texts, arguments.device)
            compile_layers(variants[f"{name}, compiled"][0], torch.device(arguments.device))
    print(f"{'batches':10}{'padding':>9}  {'':18}{'ms/step':>9}{'audio s/s':>11}{'against sdpa':>14}")
    for kind, pool in (("random", 1), ("bucketed", 50)):
        plan = plan_epoch(durations, BatchingConfig(max_clips=BATCH, pool_batches=pool), seed=0, epoch=0)
        batches = [plan[number] for number in range(arguments.steps + 2)]
        padded_s = sum(len(batch) * float(durations[batch].max()) for batch in batches[2:])
        audio_s = sum(float(durations[batch].sum()) for batch in batches[2:])
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for number, batch in enumerate(batches):
            losses = []
            for name, variant in variants.items():
                loss, took = step(variant, [(durations[clip], texts[clip]) for clip in batch], arguments.device)
                losses.append(loss)
                if number >= 2:  # warm-up
                    seconds[name].append(took)
            assert max(losses) - min(losses) < (0.02 if arguments.device == "cuda" else 1e-4) * max(losses)
        for name, times in seconds.items():
            ratio = statistics.median(ours / base for ours, base in zip(times, seconds["sdpa"], strict=True))
            rate = audio_s / sum(times)
            print(
                f"{kind:10}{1 - audio_s / padded_s:>9.1%}  {name:18}{1e3 * statistics.mean(times):>9.0f}{rate:>11.1f}"
                f"{1 / ratio:>13.2f}x",
                flush=True,
            )


def step(variant: tuple[TinyAudioModel, Any, int], clips: list[tuple[float, str]], device: str) -> tuple[float, float]:
    model, tokenizer, end = variant
    lengths = torch.tensor([int(duration * 16_000) for duration, _ in clips])
    waveforms = torch.randn(len(clips), int(lengths.max()), generator=torch.Generator().manual_seed(0))
    targets = [
        torch.tensor([*tokenizer.encode(text, add_special_tokens=False), end], device=device) for _, text in clips
    ]
    started = time.perf_counter()
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        scores = model(waveforms.to(device), lengths.to(device), targets)
    scores.decoder_loss.sum().backward()
    model.zero_grad()
    if device == "cuda":
        torch.cuda.synchronize()
    return float(scores.decoder_loss.detach().sum()), time.perf_counter() - started


if __name__ == "__main__":
    main()
