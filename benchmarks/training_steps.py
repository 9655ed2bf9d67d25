"""Part of ``benchmarks/training.py``: a model and its training steps, with logits at labels or at all positions."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from plan_memory import build
from torch.nn import functional as F

from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.recipe import Recipe

CHARACTERS_PER_S, CHARACTERS_PER_TOKEN = 15, 4.5


class Bench:
    """A model and clips. A step computes the loss in our way (``ours``) or like a plain loop (``plain``)."""

    def __init__(self, document: dict[str, Any], device: str, durations_s: np.ndarray) -> None:
        self.recipe = Recipe.model_validate_json(json.dumps(document))
        self.device = torch.device(device)
        self.durations_s = durations_s
        self.in_half = self.recipe.training.precision == "bf16"
        torch.manual_seed(0)
        self.model, tokenizer, _ = build(self.recipe, device)
        self.vocabulary = len(tokenizer)
        for tensor in self.model.parameters():
            if not tensor.requires_grad and self.in_half:
                tensor.data = tensor.data.to(torch.bfloat16)
        trained = [tensor for tensor in self.model.parameters() if tensor.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=device == "cuda")
        self.trained = trained
        self.model.train()
        self.noise = torch.randn(int((durations_s.max() + 1) * SAMPLE_RATE))

    def tokens(self, duration_s: float) -> int:
        """Return the number of tokens of a clip's text, including the end token."""
        return max(2, round(duration_s * CHARACTERS_PER_S / CHARACTERS_PER_TOKEN) + 1)

    def batch(self, durations_s: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Return a batch: noise as waveforms ``[B, S]``, lengths ``[B]``, and random ids as targets."""
        lengths = [int(duration * SAMPLE_RATE) for duration in durations_s]
        waveforms = torch.zeros(len(lengths), max(lengths))
        for row, length in enumerate(lengths):
            waveforms[row, :length] = self.noise[:length]
        targets = [torch.randint(3, self.vocabulary, (self.tokens(duration),)) for duration in durations_s]
        return (
            waveforms.to(self.device),
            torch.tensor(lengths, device=self.device),
            [row.to(self.device) for row in targets],
        )

    def ours(self, waveforms: torch.Tensor, lengths: torch.Tensor, targets: list[torch.Tensor]) -> torch.Tensor:
        """Return the summed loss, computed by the model's own forward pass."""
        loss: torch.Tensor = self.model(waveforms, lengths, targets).decoder_loss.sum()
        return loss

    def plain(self, waveforms: torch.Tensor, lengths: torch.Tensor, targets: list[torch.Tensor]) -> torch.Tensor:
        """Return the summed loss, from fp32 logits at every position. Positions without a label are ignored."""
        model = self.model
        audio, audio_lengths = model.projector(model.encode(waveforms, lengths))
        embeddings, mask = model.splice(audio, audio_lengths, [row[:-1] for row in targets], padding_side="right")
        labels = torch.full(mask.shape, -100, device=self.device)
        for row, (end, ids) in enumerate(zip(mask.sum(1).tolist(), targets, strict=True)):
            labels[row, end - len(ids) : end] = ids
        logits = model.decoder(embeddings, mask, torch.ones_like(mask))
        return F.cross_entropy(logits.float(), labels.flatten(), ignore_index=-100, reduction="sum")

    def step(self, way: str, durations_s: Sequence[float]) -> float:
        """Take one optimizer step, and return its seconds."""
        batch = self.batch(durations_s)
        self._synchronize()
        started = time.perf_counter()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.in_half):
            loss = getattr(self, way)(*batch) / sum(map(len, batch[2]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._synchronize()
        return time.perf_counter() - started

    def peak_bytes(self, way: str, clips: int, duration_s: float) -> int:
        """Return the peak memory of a step with equally long clips, minus the memory that is in use between steps."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.step(way, [duration_s] * clips)
            return torch.cuda.max_memory_allocated() - before
        with torch.autograd.profiler.profile(profile_memory=True) as profile:
            self.step(way, [duration_s] * clips)
        assert profile.kineto_results is not None
        held = peak = 0
        for event in sorted(profile.kineto_results.events(), key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                held += event.nbytes()
                peak = max(peak, held)
        return peak

    def check_equal(self) -> None:
        """Check that both ways give the same loss."""
        batch = self.batch([1.0, 2.0, 3.1])
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.in_half):
            ours, plain = self.ours(*batch), self.plain(*batch)
        torch.testing.assert_close(ours, plain, rtol=2e-2 if self.in_half else 1e-4, atol=0.0)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
