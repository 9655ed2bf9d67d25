"""The device that ``execution.device`` selects, and batches that do not fit the GPU's memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import write_clips
from tests.support.models import assemble
from tiny_audio.config import RunFailed, UserError
from tiny_audio.data.clips import ClipSet
from tiny_audio.evaluation import transcribe_clips
from tiny_audio.frames import SAMPLE_RATE, Frames
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.runtime.device import device_of, in_parts_that_fit
from tiny_audio.runtime.memory import machine_bytes, peak_resident_bytes
from tiny_audio.sources import SOURCES, SourceContext

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("setting", "cuda", "mps", "chosen"),
    [
        ("auto", True, True, "cuda"),
        ("auto", False, True, "mps"),
        ("auto", False, False, "cpu"),
        ("cpu", True, True, "cpu"),
        ("cuda", True, True, "cuda"),
        ("mps", True, True, "mps"),
        ("cuda", False, True, None),
        ("mps", True, False, None),
    ],
)
def test_settings_select_the_device(
    monkeypatch: pytest.MonkeyPatch, setting: str, cuda: bool, mps: bool, chosen: str | None
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)
    if chosen is None:
        with pytest.raises(UserError, match=rf"^execution\.device is {setting}\b"):
            device_of(setting)
    else:
        assert device_of(setting) == torch.device(chosen)


def test_memory_is_measured() -> None:
    code = (
        "from tiny_audio.runtime.memory import peak_resident_bytes as peak\n"
        "before = peak(); block = bytearray(b'x' * 2**28); print(before, peak())"
    )  # in a new process, because this process may have had a higher peak before
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 2**20 < before < before + 2**27 < after < machine_bytes()
    assert 2**20 < peak_resident_bytes() < machine_bytes()


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("MPS backend out of memory (MPS …).")],
    ids=["cuda", "mps"],
)
@pytest.mark.parametrize("room", [1, 2, 3, 7, 8])
def test_batches_are_split_until_they_fit(room: int, error: RuntimeError) -> None:
    sizes = []

    def run(items: Sequence[int]) -> list[int]:
        if len(items) > room:
            raise error
        sizes.append(len(items))
        return [10 * item for item in items]

    assert in_parts_that_fit(run, range(7)) == [0, 10, 20, 30, 40, 50, 60]
    assert max(sizes) <= room
    assert len(sizes) == {1: 7, 2: 4, 3: 3, 7: 1, 8: 1}[room]


def test_a_single_item_that_is_too_large_is_an_error() -> None:
    def run(items: Sequence[int]) -> list[int]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation")

    with pytest.raises(RunFailed) as caught:
        in_parts_that_fit(run, range(5))
    assert "CUDA out of memory. Tried to allocate 2.00 GiB." in str(caught.value)
    assert "See the documentation" not in str(caught.value)


def small_memory(model: TinyAudioModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make batches of more than two clips run out of memory. Return a list that collects the sizes of the others."""
    encode, sizes = model.encode, list[int]()

    def limited(waveforms: Tensor, lengths: Tensor) -> Frames:
        if len(waveforms) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sizes.append(len(waveforms))
        return encode(waveforms, lengths)

    monkeypatch.setattr(model, "encode", limited)
    return sizes


def test_transcription_and_evaluation_continue_in_smaller_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = assemble()
    write_clips(tmp_path, 5)
    source = SOURCES.build(
        SOURCES.parse({"name": "manifest", "path": str(tmp_path / "manifest.jsonl")}), SourceContext(tmp_path)
    )
    clips = ClipSet.gather({"set": source}, 0.1, 9.0).clips
    waves = [0.1 * torch.randn(SAMPLE_RATE, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    rows, _ = transcribe_clips(model, tokenizer, clips, max_duration_s=9.0, max_padded_s=99.0)
    transcripts = Transcriber(model, tokenizer, filter_hallucinations=False).transcribe(waves)
    sizes = small_memory(model, monkeypatch)
    assert transcribe_clips(model, tokenizer, clips, max_duration_s=9.0, max_padded_s=99.0) == (rows, [])
    texts: dict[int, str] = {}
    events = Transcriber(model, tokenizer, filter_hallucinations=False).stream(
        ([wave] for wave in waves), on_text=lambda number, _, text: texts.update({number: text})
    )
    assert [event.text for _, event in events if hasattr(event, "segments")] == [one.text for one in transcripts]
    assert texts == {number: one.text for number, one in enumerate(transcripts)}
    assert sizes
    assert max(sizes) == 2


def test_other_errors_are_not_treated_as_a_lack_of_memory() -> None:
    def run(items: Sequence[int]) -> list[int]:
        raise RuntimeError("a shape does not fit")

    with pytest.raises(RuntimeError, match="a shape does not fit"):
        in_parts_that_fit(run, range(5))
