"""Compare the memory that `tiny-audio plan` predicts for a training step with the memory of real steps.

    python benchmarks/plan_memory.py                    on a CPU: models with about 50 M parameters; takes minutes
    python benchmarks/plan_memory.py --device cuda      on a GPU: the model card's recipe at full size, random weights
    python benchmarks/plan_memory.py full lora          only some of the cases

Each case trains for three steps with the real trainer, in its own process. On a CPU, the measured memory is the peak of
the process's resident memory, as reported by the kernel, minus the resident memory before the model was built. On a
GPU, the measured memory is the peak that PyTorch's allocator reports. The exit code is 1 if a prediction is off by more
than 15 %.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BOUND = 0.15
STEPS = 3
GIB = 2**30
Document = dict[str, Any]


def merged(base: Any, changes: Any) -> Any:
    """Apply ``changes`` to ``base``. Mappings are merged, but a mapping with a ``name`` replaces the old mapping."""
    if not isinstance(base, dict) or not isinstance(changes, dict) or "name" in changes:
        return changes
    return {key: merged(base.get(key, {}), changes.get(key, base.get(key))) for key in (base | changes)}


HUBERT = {
    "name": "hubert",
    "init": "random",
    "freeze": False,
    "overrides": {
        "hidden_size": 384,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
        "conv_dim": [128] * 7,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "conv_bias": True,
    },
}
WHISPER = {
    "name": "whisper",
    "init": "random",
    "freeze": False,
    "overrides": {
        "d_model": 384,
        "encoder_layers": 6,
        "encoder_attention_heads": 6,
        "encoder_ffn_dim": 1536,
        "num_mel_bins": 80,
    },
}
SMALL: Document = {
    "encoder": HUBERT,
    "projector": {"name": "swiglu", "hidden_dim": 1024},
    "decoder": {
        "name": "smollm3",
        "init": "random",
        "freeze": False,
        "tokenizer": {"kind": "bpe", "vocab_size": 8000},
        "overrides": {
            "hidden_size": 512,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "intermediate_size": 1536,
            "tie_word_embeddings": True,
        },
    },
    "data": {"train": {"noise": {"name": "manifest", "path": "manifest.jsonl"}}, "max_duration_s": 8.0},
    "batching": {"max_clips": 8, "pool_batches": 1},
    "training": {"steps": STEPS, "learning_rate": 1e-4},
    "execution": {"device": "cpu", "log_every": 1},
}
FROZEN_WITH_LORA: Document = {
    "encoder": {"freeze": True, "lora": {"rank": 8, "alpha": 8, "targets": ["q_proj", "k_proj"]}},
    "decoder": {"freeze": True, "lora": {"rank": 16, "alpha": 16, "targets": ["q_proj", "v_proj"]}},
}
CHECKPOINTED: Document = {"encoder": {"gradient_checkpointing": True}, "decoder": {"gradient_checkpointing": True}}
CPU_CASES: dict[str, Document] = {
    "full": {},
    "full, two long clips": {"batching": {"max_clips": 2}, "data": {"max_duration_s": 24.0}},
    "full, accumulated": {"batching": {"max_clips": 4}, "training": {"accumulation": 2}},
    "full, checkpointed": CHECKPOINTED,
    "lora": FROZEN_WITH_LORA,
    "lora, checkpointed": merged(FROZEN_WITH_LORA, CHECKPOINTED),
    "frozen encoder": {"encoder": {"freeze": True}, "batching": {"max_clips": 16}},
    "eager attention": {"encoder": {"attention": "eager"}, "decoder": {"attention": "eager"}},
    "trained front end, ctc": {"encoder": {"train_front_end": True}, "ctc": {"weight": 0.5}},
    "whisper, ctc": {"encoder": WHISPER, "ctc": {"weight": 0.5}},
    "whisper, q-former": {"encoder": WHISPER, "projector": {"name": "qformer"}},
}

CARD_RANKS: Document = {
    "encoder": {"lora": {"rank": 8, "alpha": 8, "targets": ["q_proj", "k_proj"]}},
    "decoder": {"lora": {"rank": 64, "alpha": 32, "targets": ["q_proj", "v_proj"]}},
}
CARD: Document = {
    "encoder": {"name": "hubert", "pretrained": "facebook/hubert-xlarge-ls960-ft"},
    "projector": {"name": "swiglu"},
    "decoder": {"name": "smollm3", "pretrained": "HuggingFaceTB/SmolLM3-3B"},
    "data": {"train": {"noise": {"name": "manifest", "path": "manifest.jsonl"}}, "max_duration_s": 20.0},
    "batching": {"max_clips": 5, "pool_batches": 1},
    "training": {"steps": STEPS, "learning_rate": 1e-4, "precision": "bf16", "tf32": True, "accumulation": 2},
    "execution": {"device": "cuda", "log_every": 1},
}
CUDA_CASES: dict[str, Document] = {
    "card": CARD_RANKS,
    "card, 10 clips of 8 s": merged(CARD_RANKS, {"batching": {"max_clips": 10}, "data": {"max_duration_s": 8.0}}),
    "card, checkpointed": merged(CARD_RANKS, CHECKPOINTED),
    "card, eager": merged(CARD_RANKS, {"encoder": {"attention": "eager"}, "decoder": {"attention": "eager"}}),
    "card, frozen parts": {},
}


@dataclass
class StandInTokenizer:
    """A tokenizer that needs no network. Its vocabulary size and characters per token are those of a real tokenizer."""

    size: int
    characters_per_token: float
    pad_token_id: int = 0
    bos_token_id: int | None = None
    eos_token_id: int = 2
    unk_token_id: int | None = None
    all_special_ids: tuple[int, ...] = (0, 2)

    def __len__(self) -> int:
        return self.size

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Return about as many ids as a real tokenizer would. Their values have no meaning."""
        return [3] * round(len(text) / self.characters_per_token)


def predict(document: Document) -> int:
    """Return the peak bytes of a step, predicted from the recipe."""
    from tiny_audio.plan import plan_recipe
    from tiny_audio.recipe import Recipe

    recipe = Recipe.model_validate_json(json.dumps(document))
    gpu = "h200" if recipe.execution.device == "cuda" else "cpu"
    return int(plan_recipe(recipe, gpu=gpu).as_json()["memory_bytes"]["peak"])


def measure(document: Document) -> int:
    """Return the measured peak bytes of three training steps."""
    import torch

    from tiny_audio.data.clips import ClipSet
    from tiny_audio.data.target_encoder import TargetEncoder
    from tiny_audio.recipe import Recipe
    from tiny_audio.sources import SOURCES, SourceContext
    from tiny_audio.training.signals import StopSignal
    from tiny_audio.training.trainer import Trainer

    torch.set_num_threads(1)
    recipe = Recipe.model_validate_json(json.dumps(document))
    on_gpu = recipe.execution.device == "cuda"
    source = SOURCES.build(recipe.data.train["noise"], SourceContext(Path("unused")))
    clips = ClipSet.gather({"noise": source}, 0.1, 60.0)
    peaks: list[int] = []

    class Listener:
        def note(self, message: str) -> None:
            print(message, file=sys.stderr)

        def step(self, step: int, values: dict[str, Any]) -> None:
            peaks.append(torch.cuda.max_memory_allocated() if on_gpu else status("VmHWM"))

    warm_up()
    baseline = 0 if on_gpu else status("VmRSS")
    model, tokenizer, vocabulary = build(recipe, "cuda" if on_gpu else "cpu")
    target_encoder = TargetEncoder(tokenizer, tokenizer.eos_token_id, vocabulary, recipe.encoder)
    trainer = Trainer(recipe, model, clips, target_encoder, Path.cwd(), StopSignal(), Listener())
    # Reset the peak, because building the model needs more memory for a moment.
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    trainer.run()
    return max(peaks) - baseline


def warm_up() -> None:
    """Load all libraries that training steps need, so that their memory is not measured."""
    import torch
    import transformers.models.hubert.modeling_hubert
    import transformers.models.smollm3.modeling_smollm3
    import transformers.models.whisper.modeling_whisper  # noqa: F401
    from torch import nn

    convolution, linear = nn.Conv1d(8, 8, 3), nn.Linear(8, 8)
    linear(convolution(torch.randn(2, 8, 32)).transpose(1, 2)).sum().backward()


def build(recipe: Any, device: str) -> Any:
    """Return three values: the recipe's model with random weights, a tokenizer, and the CTC vocabulary, if any."""
    import torch

    from tiny_audio.ctc import CtcVocabulary
    from tiny_audio.model.config import TinyAudioConfig
    from tiny_audio.model.model import TinyAudioModel
    from tiny_audio.model.parts import build_parts
    from tiny_audio.pretrained.checkpoints import known_architecture

    trained = recipe.decoder.tokenizer
    known = known_architecture(recipe.decoder) or {"vocab_size": trained and trained.vocab_size}
    tokenizer = StandInTokenizer(known["vocab_size"], 2.0 if trained else 4.5)
    characters = [chr(97 + number) for number in range(28)]
    with torch.device(device):
        parts = build_parts(
            *(recipe.encoder, recipe.projector, recipe.decoder, tokenizer),
            encoder_architecture=known_architecture(recipe.encoder),
            decoder_architecture=known_architecture(recipe.decoder),
            embedding_rms=1.0,
        )
        config = TinyAudioConfig(
            encoder={"name": recipe.encoder.name},
            projector={"name": recipe.projector.name},
            decoder={"name": recipe.decoder.name},
            ctc_characters=characters if recipe.ctc else None,
            prompt_prefix_ids=[1] * (3 if trained else 30),
        )
        model = TinyAudioModel(config, parts)
    return model, tokenizer, CtcVocabulary(tuple(characters)) if recipe.ctc else None


def status(field: str) -> int:
    """Return a memory field of ``/proc/self/status``, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def write_clips(document: Document, folder: Path) -> None:
    """Write noise of the maximum duration or slightly shorter, with transcripts of 15 characters per second."""
    import numpy as np

    longest = document["data"]["max_duration_s"]
    count = document["batching"]["max_clips"] * document["training"].get("accumulation", 1) * STEPS
    rows = []
    for number in range(count):
        duration = longest if number % 4 else longest - 0.1
        noise = np.random.default_rng(number).normal(0, 3000, int(duration * 16_000)).astype("<i2")
        with wave.open(str(folder / f"{number}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(noise.tobytes())
        text = "abcdefg"[number % 7 :] + "hijklmnop" * math.ceil(longest * 15 / 9)
        rows.append({"audio_filepath": f"{number}.wav", "duration": duration, "text": text[: int(duration * 15)]})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def in_a_process(document: Document) -> int:
    """Measure in a new process, in which nothing was allocated before."""
    environment = os.environ | {
        # Resident memory must not include freed blocks: return them to the kernel at once, and use a single arena.
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "OMP_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        write_clips(document, Path(folder))
        done = subprocess.run(
            [sys.executable, __file__, "--measure", json.dumps(document)],
            cwd=folder,
            env=environment | {"PYTHONPATH": os.environ.get("PYTHONPATH", str(Path(__file__).parents[1]))},
            stdout=subprocess.PIPE,
            check=True,
        )
    return int(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="names of cases, or the beginnings of names; default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(measure(json.loads(arguments.measure)))
        return 0
    base, cases = (CARD, CUDA_CASES) if arguments.device == "cuda" else (SMALL, CPU_CASES)
    for start in arguments.cases:
        if not any(name.startswith(start) for name in cases):
            parser.error(f"no case starts with {start!r}; the cases are: {'; '.join(cases)}")
    worst = 0.0
    print(f"{'case':26}{'predicted':>12}{'measured':>12}{'error':>8}   GiB")
    for name, changes in cases.items():
        if arguments.cases and not name.startswith(tuple(arguments.cases)):
            continue
        document = merged(base, changes)
        predicted, measured = predict(document), in_a_process(document)
        error = predicted / measured - 1
        worst = max(worst, abs(error))
        print(f"{name:26}{predicted / GIB:12.3f}{measured / GIB:12.3f}{error:+8.1%}", flush=True)
    print(f"largest error {worst:.1%}; the bound of {BOUND:.0%} {'holds' if worst <= BOUND else 'FAILS'}")
    return int(worst > BOUND)


if __name__ == "__main__":
    sys.exit(main())
