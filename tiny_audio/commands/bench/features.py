"""Feature cache: the frames of a frozen encoder, computed once for all variants and seeds of a benchmark.

Each combination of an encoder and a set of clips has its own folder. The folder's name is a hash of everything that
affects the frames. ``values.bin`` contains the concatenated frames of all clips. If the model has a CTC head,
``ctc_logits.bin`` contains its logits for these frames.

In shapes, D is the number of channels, and V the number of CTC labels.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tiny_audio import __version__
from tiny_audio.config import UserError
from tiny_audio.data.augmentation import AugmentationConfig
from tiny_audio.data.clips import Clip, ClipSet
from tiny_audio.evaluation.batches import loaded_batches
from tiny_audio.frames import Frames
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.recipe import Recipe, content_hash
from tiny_audio.runtime.files import new_folder
from tiny_audio.sources import Dropped
from tiny_audio.training.precision import autocast


def check_cacheable(recipe: Recipe) -> None:
    """Check that the frames of a clip stay the same during training.

    Raises:
        UserError: the frames would change, or a CTC head with random weights would not be trained.
    """
    encoder, start = recipe.encoder, recipe.training.init_from
    wrong = None
    if not encoder.freeze:
        wrong = (
            "the encoder is trained (encoder.freeze is false). Train an encoder with `tiny-audio run`, load it with "
            "training.init_from: {path: <that run>, parts: [encoder, ctc_head]}, and set encoder.freeze: true"
        )
    elif encoder.lora is not None:
        wrong = "the encoder's LoRA adapters are trained; remove encoder.lora"
    elif encoder.layer == "weighted":
        wrong = "the weights of encoder.layer: weighted are trained; set encoder.layer to one layer"
    elif encoder.dropout:
        wrong = f"encoder.dropout is {encoder.dropout}, so the frames of a clip change at every step; set it to 0"
    elif recipe.augmentation != AugmentationConfig():
        used = ", ".join(key for key, value in recipe.augmentation if value is not None)
        wrong = f"augmentation ({used}) changes each clip in each epoch; remove the section augmentation"
    elif recipe.ctc is not None and recipe.ctc.init == "random" and not (start and start.takes("ctc_head")):
        wrong = (
            "the CTC head has random weights and is frozen with the encoder; load a trained head with "
            "training.init_from.parts: [encoder, ctc_head] or ctc.init: pretrained, or remove the ctc section"
        )
    if wrong:
        raise UserError(
            f"features cannot be computed once for all variants: {wrong}. Or add --no-feature-cache to run the encoder "
            "at every step (not possible with --without-decoder)"
        )


@dataclass(frozen=True)
class Features:
    """The encoder's frames of a set of clips, memory-mapped from disk."""

    clips: tuple[Clip, ...]
    """The readable clips, in the order of their set."""
    dropped: tuple[Dropped, ...]
    num_samples: tuple[int, ...]
    """Number of samples of each clip."""
    spans: tuple[tuple[int, int], ...]
    """For each clip, the index of its first frame (in ``values`` and ``ctc_logits``), and its number of frames."""
    rate: float
    """Frames per second."""
    values: Tensor
    """``[all frames, D]``."""
    ctc_logits: Tensor | None
    """``[all frames, V]``."""

    def frames(self, indices: Sequence[int], device: torch.device) -> Frames:
        """Return the frames of the clips at ``indices`` as a padded batch."""
        spans = [self.spans[index] for index in indices]
        lengths = torch.tensor([length for _, length in spans], device=device)

        def padded(tensor: Tensor) -> Tensor:
            return pad_sequence([tensor[start : start + length] for start, length in spans], batch_first=True).to(
                device
            )

        logits = None if self.ctc_logits is None else padded(self.ctc_logits)
        return Frames(padded(self.values), lengths, self.rate, logits)


class FeatureCache:
    """Computes and stores the features of one encoder.

    Args:
        model: provides the encoder and the CTC head.
        recipe: provides the encoder's settings, the precision and the maximum size of a batch.
        folder: parent of the feature folders.
        note: receives progress messages.
    """

    def __init__(self, model: TinyAudioModel, recipe: Recipe, folder: Path, note: Callable[[str], None]) -> None:
        trainable = [name for name, tensor in model.encoder.named_parameters() if tensor.requires_grad]
        assert not trainable, f"{trainable[0]} is trainable; check_cacheable should have rejected it"
        self.model, self.recipe, self.folder, self.note = model.eval(), recipe, folder, note
        self._encoder = _fingerprint(model)

    def get(self, clips: ClipSet) -> Features:
        """Load the features of ``clips``. Compute them first if they are not on disk.

        If several processes need the same features, one process computes them and the others wait.

        Raises:
            UserError: the features do not fit on the disk or are damaged, or no clip can be read.
        """
        folder = self.folder / self._key(clips)
        if not folder.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(f".{folder.name}.lock")):
                if not folder.exists():  # another benchmark may have computed them meanwhile
                    self._compute(clips, folder)
        return self._open(clips, folder)

    def _key(self, clips: ClipSet) -> str:
        """Return a hash of everything that affects the frames."""
        return content_hash(
            {
                "encoder": self._encoder,
                "config": self.recipe.encoder.model_dump(mode="json", exclude={"pretrained", "gradient_checkpointing"}),
                "architecture": self.model.config.encoder_architecture,
                "precision": self.recipe.training.precision,
                "device": self.model.device.type,
                "versions": [__version__, torch.__version__, transformers.__version__],
                "data": clips.fingerprint,
                "clips": [clip.id for clip in clips.clips],
                "max_duration_s": clips.max_duration_s,
            }
        )[:32]

    def _compute(self, clips: ClipSet, folder: Path) -> None:
        self._check_disk(clips)
        self.note(f"encoding {len(clips.clips)} clips, {clips.duration_s / 3600:.2f} hours, once for all variants")
        rows: dict[str, dict[str, int]] = {}
        dropped: list[Dropped] = []
        written, shape = 0, {}
        with new_folder(folder) as aside:
            with open(aside / "values.bin", "wb") as values, open(aside / "ctc_logits.bin", "wb") as logits:
                for batch, frames in self._encoded(clips, dropped):
                    for row, (clip, num_samples) in enumerate(batch):
                        length = int(frames.lengths[row])
                        values.write(_bytes(frames.values[row, :length]))
                        if frames.ctc_logits is not None:
                            logits.write(_bytes(frames.ctc_logits[row, :length]))
                        rows[clip.id] = {"start": written, "frames": length, "samples": num_samples}
                        written += length
                    shape = {
                        "rate": frames.rate,
                        "tensors": {
                            name: [tensor.shape[-1], str(tensor.dtype).removeprefix("torch.")]
                            for name, tensor in (("values", frames.values), ("ctc_logits", frames.ctc_logits))
                            if tensor is not None
                        },
                    }
            if not rows:
                raise UserError(f"none of {len(dropped)} clips could be read; the first error: {dropped[0].detail}")
            index = {"frames": written, **shape, "clips": rows, "dropped": [asdict(drop) for drop in dropped]}
            (aside / "index.json").write_text(json.dumps(index))

    def _encoded(self, clips: ClipSet, dropped: list[Dropped]) -> Iterator[tuple[list[tuple[Clip, int]], Frames]]:
        """Yield batches of readable clips, and their frames. Each clip is paired with its number of samples.

        Clips that cannot be read are added to ``dropped``.
        """
        device, max_padded_s = self.model.device, self.recipe.execution.evaluate_max_padded_s
        for batch in loaded_batches(clips.clips, max_duration_s=clips.max_duration_s, max_padded_s=max_padded_s):
            dropped += [Dropped(clip.id, error.reason, str(error)) for clip, error in batch.unread]
            if not batch.clips:
                continue
            waveforms = pad_sequence(batch.waveforms, batch_first=True).to(device)
            lengths = torch.tensor([len(waveform) for waveform in batch.waveforms], device=device)
            with torch.no_grad(), autocast(self.recipe.training.precision, device):
                frames = self.model.encode(waveforms, lengths)
            yield list(zip(batch.clips, map(len, batch.waveforms), strict=True)), frames

    def _check_disk(self, clips: ClipSet) -> None:
        channels = self.model.encoder.dim + (len(self.model.ctc_vocabulary) if self.model.ctc_vocabulary else 0)
        width = 2 if self.recipe.training.precision == "bf16" else 4
        seconds = clips.duration_s
        needed = seconds * self.model.encoder.frame_rate * channels * width
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                f"the features of {seconds / 3600:.1f} hours need {needed / 1e9:.1f} GB in {self.folder}, but "
                f"only {free / 1e9:.1f} GB are free; set TINY_AUDIO_CACHE to a folder on a larger disk, use "
                "less data, or add --no-feature-cache"
            )

    def _open(self, clips: ClipSet, folder: Path) -> Features:
        index: dict[str, Any] = json.loads((folder / "index.json").read_text())
        rows = index["clips"]
        kept = tuple(clip for clip in clips.clips if clip.id in rows)
        total = index["frames"]

        def mapped(name: str) -> Tensor:
            channels, type_name = index["tensors"][name]
            dtype: torch.dtype = getattr(torch, type_name)
            path = folder / f"{name}.bin"
            if path.stat().st_size != total * channels * dtype.itemsize:
                raise UserError(
                    f"{folder} is damaged (the size of {path.name} does not match index.json); delete that folder"
                )
            return torch.from_file(str(path), size=total * channels, dtype=dtype).view(total, channels)

        return Features(
            kept,
            tuple(Dropped(**drop) for drop in index["dropped"]),
            tuple(rows[clip.id]["samples"] for clip in kept),
            tuple((rows[clip.id]["start"], rows[clip.id]["frames"]) for clip in kept),
            index["rate"],
            mapped("values"),
            mapped("ctc_logits") if "ctc_logits" in index["tensors"] else None,
        )


def _fingerprint(model: TinyAudioModel) -> str:
    """Return the SHA-256 hash of the weights of the encoder and the CTC head."""
    digest = hashlib.sha256()
    heads = {} if model.ctc_head is None else model.ctc_head.state_dict(prefix="ctc_head.")
    for name, tensor in sorted({**model.encoder.state_dict(), **heads}.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    """Return the raw bytes of a tensor. NumPy has no bfloat16, so the tensor is viewed as uint8."""
    return tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
