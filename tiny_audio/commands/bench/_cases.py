"""The benchmark that :mod:`tiny_audio.commands.bench.timing` runs with pytest, once for each case.

A case is a combination of a projector, a clip duration and a batch size, without or with a backward pass.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tiny_audio.commands.bench._measure import peak_bytes, random_frames
from tiny_audio.commands.bench.timing import CASES_VARIABLE
from tiny_audio.projectors import PROJECTORS, ProjectorContext
from tiny_audio.runtime.device import synchronize
from tiny_audio.training.precision import autocast

_CASES: list[dict[str, Any]] = json.loads(Path(os.environ[CASES_VARIABLE]).read_text())
_EMBEDDING_RMS = 0.03  # arbitrary, because the RMS does not affect the cost of a projector


def _name(case: dict[str, Any]) -> str:
    return f"{case['label']}, {case['duration_s']:g} s x {case['batch_size']}, {case['which']}"


@pytest.mark.parametrize("case", _CASES, ids=_name)
def test_projector(case: dict[str, Any], benchmark: BenchmarkFixture) -> None:
    """Measure one case. The function is written as a test, because pytest-benchmark can only measure tests."""
    torch.manual_seed(0)
    device = torch.device(case["device"])
    context = ProjectorContext(case["in_dim"], case["out_dim"], case["frame_rate"], _EMBEDDING_RMS)
    projector = PROJECTORS.build(PROJECTORS.parse(case["section"]), context).to(device)
    num_frames = int(case["duration_s"] * case["frame_rate"])
    frames = random_frames(case["batch_size"], num_frames, case["in_dim"], case["frame_rate"], device)
    backward = case["which"] == "forward_backward"

    def step() -> Tensor:
        with torch.set_grad_enabled(backward), autocast(case["precision"], device):
            embeddings: Tensor
            lengths: Tensor
            embeddings, lengths = projector(frames)
        if backward:
            embeddings.backward(torch.ones_like(embeddings))  # type: ignore[no-untyped-call]
            projector.zero_grad(set_to_none=True)
        synchronize(device)
        return lengths

    lengths = step()
    # FlopCounterMode does not count fused attention on a CPU, so compute attention with plain matrix products here.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    peak = peak_bytes(step, device)
    benchmark(step)
    benchmark.extra_info |= {
        key: case[key] for key in ("label", "section", "duration_s", "batch_size", "which", "precision")
    } | {
        "parameters": sum(tensor.numel() for tensor in projector.parameters()),
        "embeddings_per_s": float(lengths.sum()) / (case["batch_size"] * case["duration_s"]),
        "flops": counter.get_total_flops(),
        "peak_bytes": peak,
    }
