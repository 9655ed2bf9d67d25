"""Compute the probability of speech in each frame, with silero-vad's network and weights.

The weights are in the wheel of silero-vad (https://github.com/snakers4/silero-vad, MIT license). The package itself is
not imported, because it sets the number of threads of the whole process. Its TorchScript model takes one frame per
call. The network below uses the same weights, takes many frames per call, and is several times as fast.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import conv1d, pad

FRAME = 512
"""Samples in a frame of 32 ms. Each frame has one probability."""
START, CONTINUE = 0.5, 0.35
"""Speech starts when the probability reaches the first value, and ends when it falls below the second. These are
silero-vad's defaults."""
MARGIN_S = 0.1
"""Seconds of audio that are kept before and after speech, because they may contain soft consonants."""
_CONTEXT = 64
"""Number of samples before each frame that the network receives together with the frame."""
_WEIGHTS = "silero_vad.jit"
_PREFIX = "_model."
"""Prefix of the names of the weights for 16 kHz."""
_SHAPES = {
    "stft.forward_basis_buffer": (258, 1, 256),
    **{
        f"encoder.{layer}.reparam_conv.weight": shape
        for layer, shape in enumerate([(128, 129, 3), (64, 128, 3), (64, 64, 3), (128, 64, 3)])
    },
    "decoder.rnn.weight_ih": (512, 128),
    "decoder.rnn.weight_hh": (512, 128),
    "decoder.decoder.2.weight": (1, 128, 1),
}
"""Shapes of the weights of silero-vad 6. They are checked, because another version may have another network."""


@dataclass(frozen=True)
class _State:
    """The network's memory of earlier audio."""

    context: Tensor
    """``[64]``, the samples before the next frame."""
    hidden: Tensor
    """``[1, 128]``"""
    cell: Tensor
    """``[1, 128]``"""


class SileroNetwork:
    """silero-vad's network for 16 kHz.

    Args:
        weights: the network's tensors by name.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self._weights = weights

    def initial_state(self) -> _State:
        """Return the state before the first frame of a recording."""
        return _State(torch.zeros(_CONTEXT), torch.zeros(1, 128), torch.zeros(1, 128))

    def __call__(self, samples: Tensor, state: _State) -> tuple[list[float], _State]:
        """Return the probability of speech of each frame, and the state after the last one.

        Args:
            samples: float32 ``[T * 512]`` at 16 kHz, on the CPU.
            state: the state after the previous frame.
        """
        # The caller may have enabled autocast for the speech recognizer. Autocast would round these weights.
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            frames = torch.cat([state.context, samples]).unfold(0, _CONTEXT + FRAME, FRAME)  # [T, 576]
            features = conv1d(
                pad(frames, (0, 64), "reflect")[:, None], self._weights["stft.forward_basis_buffer"], stride=128
            )
            features = (features[:, :129] ** 2 + features[:, 129:] ** 2).sqrt()  # [T, 129, 4]
            for layer, stride in enumerate((1, 2, 2, 1)):
                weight, bias = (self._weights[f"encoder.{layer}.reparam_conv.{name}"] for name in ("weight", "bias"))
                features = conv1d(features, weight, bias, stride, padding=1).relu()
            outputs, memory = self._lstm(features[:, :, 0], (state.hidden, state.cell))
            logits = conv1d(
                outputs[:, :, None].relu(),
                self._weights["decoder.decoder.2.weight"],
                self._weights["decoder.decoder.2.bias"],
            )
        return logits.sigmoid().flatten().tolist(), _State(samples[-_CONTEXT:].clone(), *memory)

    def _lstm(self, rows: Tensor, memory: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the outputs ``[T, 128]`` for rows ``[T, 128]``, and the hidden and the cell state after the last."""
        weights = [self._weights[f"decoder.rnn.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        if len(rows) == 1:
            # torch.lstm converts the weights in each call, which takes longer than the computation of one row.
            memory = torch.lstm_cell(rows, memory, *weights)
            return memory[0], memory
        hidden, cell = (one[:, None] for one in memory)  # [1, 1, 128]
        outputs, hidden, cell = torch.lstm(rows[:, None], (hidden, cell), weights, True, 1, 0.0, False, False, False)
        return outputs[:, 0], (hidden[0], cell[0])


@functools.cache
def silero() -> SileroNetwork | None:
    """Return silero-vad's network. None if its weights are not installed or do not have the expected shapes."""
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "data" / _WEIGHTS
    if not path.is_file():
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", FutureWarning)
        weights = torch.jit.load(str(path), map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    weights = {name.removeprefix(_PREFIX): value for name, value in weights.items() if name.startswith(_PREFIX)}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    return SileroNetwork(weights) if _SHAPES.items() <= found.items() else None


class SpeechProbabilities:
    """The probabilities of speech of a recording that arrives in blocks.

    The probabilities do not depend on the sizes of the blocks.

    Args:
        network: from :func:`silero`.
        frames_per_step: number of frames that are computed together. With 1, the delay is shortest. With more, each
            frame takes less time.
    """

    def __init__(self, network: SileroNetwork, frames_per_step: int = 32) -> None:
        self._network, self._state = network, network.initial_state()
        self._step = frames_per_step * FRAME
        self._held = torch.zeros(0)

    def add(self, samples: Tensor) -> list[float]:
        """Add samples ``[S]`` at 16 kHz, and return the probabilities that are now known."""
        self._held = torch.cat([self._held, samples.detach().to("cpu", torch.float32)])
        found: list[float] = []
        while len(self._held) >= self._step:
            probabilities, self._state = self._network(self._held[: self._step], self._state)
            found += probabilities
            self._held = self._held[self._step :]
        return found

    def end(self) -> list[float]:
        """Return the probabilities of the remaining frames. An incomplete last frame is padded with zeros."""
        if not len(self._held):
            return []
        num_frames = -(-len(self._held) // FRAME)
        # Always compute a full step, because the results for another number of frames could be rounded differently.
        probabilities, _ = self._network(pad(self._held, (0, self._step - len(self._held))), self._state)
        self._held = self._held[:0]
        return probabilities[:num_frames]
