"""Run training steps on synthetic batches in a separate process, so that their memory can be measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tiny_audio.config import RunFailed, UserError
from tiny_audio.recipe import Recipe

if TYPE_CHECKING:
    from tiny_audio.model.splicing import TargetScores

GIB = 2**30
STEPS = 2
"""Steps per trial. The first step allocates the optimizer's moments, so the second step needs the most memory."""
_ALLOCATION = {
    # Settings of glibc's malloc: return freed blocks to the kernel at once, and use one arena for all threads. The
    # measured memory of the process is then close to the memory in use.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}


_TOO_LARGE = "probe: the model alone needs more memory than {} has; choose smaller checkpoints"


@dataclass(frozen=True)
class Measured:
    """Measurements of steps whose batches fit into memory."""

    peak_bytes: int
    """On a CPU: peak memory of the process, including libraries. On a GPU: peak memory of the GPU, including the CUDA
    context and other processes."""
    step_s: float
    """Seconds per optimizer step of ``batches`` batches."""
    batches: int
    """Number of batches per optimizer step, at most two. More batches would not need more memory."""


class Process:
    """A separate process whose memory is measured. It is restarted if it runs out of memory.

    The arguments are those of :func:`tiny_audio.commands.probe.probe_recipe`.
    """

    device_name: str
    memory_bytes: int
    allowed_bytes: int
    """``memory_bytes`` without the margin."""

    def __init__(self, recipe: Recipe, memory_gb: float | None, margin: float, random_weights: bool) -> None:
        self._order = {
            "recipe": recipe.model_dump(mode="json"),
            "memory_gb": memory_gb,
            "margin": margin,
            "random_weights": random_weights,
        }
        self._child: subprocess.Popen[str] | None = None

    def __enter__(self) -> Process:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._child is not None:
            self._child.kill()
            self._leave()

    def train(self, clips: int, duration_s: float) -> Measured | None:
        """Take two steps on batches of ``clips`` clips. Return None if the steps need more memory than allowed.

        Raises:
            RunFailed: the process ended for a reason other than memory.
        """
        if self._child is None:
            self._start()
        answer = self._ask({"clips": clips, "duration_s": duration_s})
        if answer is None or answer["peak_bytes"] is None or answer["peak_bytes"] > self.allowed_bytes:
            return None
        return Measured(**answer)

    def _start(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | _ALLOCATION,
        )
        answer = self._ask(self._order)
        if answer is None:
            raise UserError(_TOO_LARGE.format("this machine"))
        if "error" in answer:
            self._leave()
            raise UserError(answer["error"])
        self.device_name = answer["device"]
        self.memory_bytes, self.allowed_bytes = answer["memory_bytes"], answer["allowed_bytes"]

    def _ask(self, question: dict[str, Any]) -> dict[str, Any] | None:
        """Send a request to the process. Return its response, or None if it ran out of memory."""
        child = self._child
        assert child is not None
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(question) + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = self._leave()
        if code == -9:  # SIGKILL, which the kernel sends when memory runs out
            return None
        raise RunFailed(f"probe: the training process ended with exit code {code}; see its output above")

    def _leave(self) -> int:
        """Wait until the process ends, and return its exit code."""
        child, self._child = self._child, None
        assert child is not None
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # close() sends a buffered request, which fails if the process has ended
                pipe.close()
        return child.wait()


def serve() -> None:
    """Run the measured process: read requests from standard input, one per line, and write a response to each."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # so that output of libraries does not mix with the responses

    def say(**answer: Any) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    order = json.loads(sys.stdin.readline())
    try:
        bench = _Bench(order)
    except UserError as error:
        say(error=str(error))
        return
    except RuntimeError as error:
        from tiny_audio.runtime.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        say(error=_TOO_LARGE.format("the GPU"))
        return
    say(device=bench.device_name, memory_bytes=bench.memory_bytes, allowed_bytes=bench.allowed_bytes)
    for line in sys.stdin:
        say(**bench.train(**json.loads(line)))


class _Bench:
    """A model that is trained on synthetic batches, with its optimizer and memory limits."""

    def __init__(self, order: dict[str, Any]) -> None:
        import torch

        from tiny_audio.plan import prompt_tokens_of
        from tiny_audio.plan.meta import build_stand_in
        from tiny_audio.runtime.device import device_of
        from tiny_audio.training.compilation import compile_layers
        from tiny_audio.training.fused import fused_cross_entropy
        from tiny_audio.training.optimization import build_optimizer
        from tiny_audio.training.precision import place

        self.recipe = recipe = Recipe.model_validate_json(json.dumps(order["recipe"]))
        self.device = device_of(recipe.execution.device)
        self.fused = fused_cross_entropy(self.device) if recipe.execution.fused_cross_entropy else None
        torch.manual_seed(0)
        outside = 0
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info()
            outside = total - free  # used by the CUDA context and by other processes
            self.memory_bytes = int(order["memory_gb"] * GIB) if order["memory_gb"] else total
            self.device_name = torch.cuda.get_device_name()
        else:
            self.memory_bytes = int(order["memory_gb"] * GIB)
            self.device_name = "this machine's memory"
        self.outside_bytes = outside
        self.allowed_bytes = int(self.memory_bytes * (1 - order["margin"]))
        self.model = build_stand_in(
            recipe, self.device, prompt_tokens_of(recipe), random_weights=order["random_weights"]
        ).train()
        place(self.model, recipe, self.device)
        if self.device.type == "cuda":
            # The limit is set after the model is built, because building can briefly need more memory than the limit.
            torch.cuda.empty_cache()
            allowed = max(0, self.allowed_bytes - outside) / total
            torch.cuda.set_per_process_memory_fraction(min(1.0, allowed))
        self.optimizer = build_optimizer(self.model, recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0  # so that training on noise cannot make the weights infinite
        if recipe.execution.compile:
            compile_layers(self.model, self.device)

    def train(self, clips: int, duration_s: float) -> dict[str, Any]:
        """Take two steps. Return the fields of :class:`Measured`. If memory ran out, ``peak_bytes`` is None."""
        import torch

        from tiny_audio.training.step import OutOfMemory

        batches = min(2, self.recipe.training.accumulation)
        try:
            self._forget_peak()
            for _ in range(STEPS):
                started = time.monotonic()
                self._step(clips, duration_s, batches)
                peak = self._peak()  # also waits until the GPU has finished the step
            return {"peak_bytes": peak, "step_s": time.monotonic() - started, "batches": batches}
        except (OutOfMemory, torch.OutOfMemoryError):
            pass
        self.optimizer.zero_grad()
        return {"peak_bytes": None, "step_s": 0.0, "batches": batches}

    def _step(self, clips: int, duration_s: float, batches: int) -> None:
        from tiny_audio.runtime.world import World
        from tiny_audio.training.step import take_step

        config, ctc, alignment = self.recipe.training, self.recipe.ctc, self.recipe.alignment
        result = take_step(
            self.model,
            self.optimizer,
            [lambda: self._score(clips, duration_s)] * batches,
            num_tokens=clips,
            num_labels=clips,
            ctc_weight=ctc.weight if ctc else 0.0,
            max_gradient_norm=config.max_gradient_norm,
            world=World(),
            alignment_weight=alignment.weight if alignment else 0.0,
        )
        assert result.is_finite, "a skipped step does not allocate the optimizer's moments"

    def _score(self, clips: int, duration_s: float) -> TargetScores:
        from tiny_audio.training.precision import autocast

        with autocast(self.recipe.training.precision, self.device):
            scores: TargetScores = self.model(**self._batch(clips, duration_s))
        return scores

    def _batch(self, clips: int, duration_s: float) -> dict[str, Any]:
        """Return a batch of noise with some padding.

        The CTC targets alternate between two labels, because equal neighboring labels would need more frames.
        """
        import torch

        from tiny_audio.frames import SAMPLE_RATE
        from tiny_audio.plan import text_tokens_of

        recipe, num_samples = self.recipe, int(duration_s * SAMPLE_RATE)
        lengths = torch.full((clips,), num_samples, device=self.device)
        if num_samples > SAMPLE_RATE:
            lengths[1:] -= SAMPLE_RATE // 10
        targets = [torch.zeros(text_tokens_of(recipe, duration_s), dtype=torch.long, device=self.device)] * clips
        spell: Sequence[int] = ()
        if recipe.ctc is not None:
            # Speech has about 15 characters per second. CTC needs at least one frame for each character.
            letters = min(round(duration_s * 15), int(self.model.encoder.num_frames(lengths.min())))
            spell = [1 + index % 2 for index in range(letters)]
        return {
            "waveforms": 0.1 * torch.randn(clips, num_samples, device=self.device),
            "waveform_lengths": lengths,
            "targets": targets,
            "ctc_targets": [spell] * clips if recipe.ctc else None,
            "transform": recipe.augmentation.of_features(range(clips)),
            "label_smoothing": recipe.training.label_smoothing,
            "linear_cross_entropy": self.fused,
        }

    def _forget_peak(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak memory of this process

    def _peak(self) -> int:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return int(torch.cuda.max_memory_reserved()) + self.outside_bytes
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
