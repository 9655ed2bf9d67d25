"""Recognizers that use the encoder, but not the decoder: which checkpoints contain one, and measurements of speed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.encoder_checkpoints import original
from tests.support.models import assemble
from tests.support.recognizers import save_whisper
from tiny_audio.encoders import ENCODERS
from tiny_audio.evaluation.encoder_systems import checkpoint_recognizer, ctc_head, measure_speed
from tiny_audio.inference.transcriber import Transcriber

pytestmark = pytest.mark.usefixtures("one_thread")


def encoder(name: str, folder: Path) -> Any:
    return ENCODERS.parse({"name": name, "pretrained": str(folder)})


def test_only_published_recognizers_are_used(ctc_model: Path, tmp_path: Path) -> None:
    whisper = save_whisper(tmp_path / "tiny-whisper")
    for name, folder in (("wav2vec2", ctc_model), ("whisper", whisper)):
        target = checkpoint_recognizer(encoder(name, folder), "cpu")
        assert target is not None
        assert target.label == folder.name
        target.check()
    original("hubert", "HubertModel").save_pretrained(tmp_path / "hubert")
    assert checkpoint_recognizer(encoder("hubert", tmp_path / "hubert"), "cpu") is None
    assert checkpoint_recognizer(ENCODERS.entry("whisper").config.tiny(), "cpu") is None  # type: ignore[attr-defined]
    shutil.copytree(whisper, tmp_path / "part")
    config = json.loads((whisper / "config.json").read_text())
    (tmp_path / "part" / "config.json").write_text(json.dumps(config | {"architectures": ["WhisperModel"]}))
    assert checkpoint_recognizer(encoder("whisper", tmp_path / "part"), "cpu") is None


def test_speed_is_measured() -> None:
    model, tokenizer = assemble()
    waves = [0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    head = measure_speed(ctc_head(model), waves)
    whole = measure_speed(Transcriber(model, tokenizer, filter_hallucinations=False).transcribe, waves)
    assert head.num_clips == whole.num_clips == 2
    assert 0 < head.flops_per_s < whole.flops_per_s
    assert head.latency_s > 0
    doubled = measure_speed(ctc_head(model), [torch.cat(waves)])
    assert head.flops_per_s < doubled.flops_per_s < 2 * head.flops_per_s, "attention is quadratic"
