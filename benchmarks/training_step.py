"""What bucketed batches and logits at label positions save, against a plain loop on the same clips and weights.

    python benchmarks/training_step.py [--steps 30]

The baseline takes clips in random order and computes logits of the whole sequence; everything else is equal. Both run
in this process, in turns, so that a noisy machine disturbs them alike; read the ratio, not the seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from tiny_audio.ctc import CtcVocabulary
from tiny_audio.data.order import BatchingConfig, plan_epoch
from tiny_audio.decoders import DECODERS, build_tokenizer
from tiny_audio.encoders import ENCODERS
from tiny_audio.model import TinyAudioModel
from tiny_audio.projectors import PROJECTORS
from tiny_audio.prompt import PromptConfig, build_prompt

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CLIPS = 512
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=30)
    steps = parser.parse_args().steps
    rng = np.random.default_rng(0)
    # A log-normal with a median of 4 s and most clips between 1 and 12 s, cut at 0.5 and 15 s.
    durations = np.clip(rng.lognormal(np.log(4.0), 0.6, CLIPS), 0.5, 15.0)
    texts = [" ".join(rng.choice(WORDS, max(1, int(duration * 2)))) for duration in durations]
    plain = plan_epoch(durations, BatchingConfig(max_clips=BATCH, pool_batches=1), seed=0, epoch=0)
    bucketed = plan_epoch(durations, BatchingConfig(max_clips=BATCH), seed=0, epoch=0)
    model, tokenizer, end = build(texts)
    vocabulary = model.ctc_vocabulary
    assert vocabulary is not None

    def step(clips: list[int], full_logits: bool) -> float:
        lengths = torch.tensor([int(durations[clip] * 16_000) for clip in clips])
        waveforms = torch.randn(len(clips), int(lengths.max()))
        targets = [torch.tensor([*tokenizer.encode(texts[clip], add_special_tokens=False), end]) for clip in clips]
        model.decoder.compute_all = full_logits  # type: ignore[assignment]
        started = time.perf_counter()
        scores = model(waveforms, lengths, targets, [vocabulary.encode(texts[clip]) or [] for clip in clips])
        (scores.decoder_loss.sum() + scores.ctc_loss.sum()).backward()
        model.zero_grad()
        return time.perf_counter() - started

    forward = model.decoder.forward

    def forward_all(embeddings: torch.Tensor, mask: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Logits everywhere, of which ``keep`` are then used, as a loss with ignored labels does."""
        if not model.decoder.compute_all:
            return forward(embeddings, mask, keep)
        logits = forward(embeddings, mask, torch.ones_like(keep))
        return logits.view(*keep.shape, -1)[keep]

    model.decoder.forward = forward_all  # type: ignore[method-assign]
    order = rng.permutation(min(len(plain), len(bucketed)))[: steps + 2]
    rates: dict[str, list[float]] = {"plain": [], "ours": []}
    padding = {name: share(plan, durations) for name, plan in (("plain", plain), ("ours", bucketed))}
    for number, index in enumerate(order):
        for name, plan in (("plain", plain), ("ours", bucketed)):
            seconds = step(plan[index], full_logits=name == "plain")
            if number >= 2:  # warm-up
                rates[name].append(float(sum(durations[clip] for clip in plan[index])) / seconds)
    print(f"{'':8}{'padding':>10}{'audio s/s':>12}")
    for name, values in rates.items():
        print(f"{name:8}{padding[name]:>10.1%}{statistics.harmonic_mean(values):>12.1f}")
    ratio = statistics.harmonic_mean(rates["ours"]) / statistics.harmonic_mean(rates["plain"])
    print(f"ours / plain: {ratio:.2f} (bound by padding alone: {(1 - padding['ours']) / (1 - padding['plain']):.2f})")


def build(texts: list[str]) -> tuple[TinyAudioModel, object, int]:
    torch.manual_seed(0)
    decoder = DECODERS.entry("smollm3").config.tiny()
    tokenizer = build_tokenizer(decoder, texts)
    prompt = build_prompt(PromptConfig(), tokenizer)
    model = TinyAudioModel.assemble(
        ENCODERS.entry("whisper").config.tiny(),
        PROJECTORS.entry("swiglu").config.tiny(),
        decoder,
        tokenizer=tokenizer,
        prompt=prompt,
        ctc_vocabulary=CtcVocabulary.of(texts),
    )
    return model.train(), tokenizer, prompt.end_id


def share(plan: list[list[int]], durations: np.ndarray) -> float:
    """Padding as a share of all samples of an epoch."""
    audio = float(durations.sum())
    return 1 - audio / sum(len(batch) * float(durations[batch].max()) for batch in plan)


if __name__ == "__main__":
    main()
