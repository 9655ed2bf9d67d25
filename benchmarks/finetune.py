"""Compare our fine-tuning of pretrained parts with a plain variant, and with a loop that trains transformers' decoder.

    python benchmarks/finetune.py                       small random checkpoints and noise; takes a minute
    python benchmarks/finetune.py --encoder whisper-tiny.en --decoder SmolLM2-135M-Instruct --manifest train.jsonl

The model has a frozen Whisper encoder, a SwiGLU projector and a causal language model with LoRA on q_proj and v_proj.
It is trained in three ways, in fp32, on the same planned batches of at most 60 s of audio, including padding:

- ours: the start of the prompt is computed once per batch, decoder rows have no padding, and the encoder's frames are
  kept on disk;
- plain: every row contains the whole prompt and padding, and the frames are computed in every epoch;
- transformers: like plain, but the decoder is transformers' AutoModelForCausalLM with peft, with logits at every
  position and with its own loss.

All three ways start from the same weights, and their losses must agree within 1e-4 in every step. The ways alternate
step by step, so that other work on the machine affects them equally. For each step, the fastest of several epochs
counts. The first epoch, in which ours writes the frames to disk, is shown separately. Compare the ratios, not the
seconds.

A profile shows where the time of a step goes. The time of the matrix products, which cannot be avoided, limits the
possible speedup.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from record import Record, spread
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from tiny_audio.data.batches import Batch, PlannedBatches
from tiny_audio.data.clips import ClipSet
from tiny_audio.decoders import DECODERS, build_tokenizer
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.recipe import Recipe
from tiny_audio.sources import SOURCES, SourceContext
from tiny_audio.training.assembly import assemble
from tiny_audio.training.frame_cache import FrameCache
from tiny_audio.training.optimization import build_optimizer
from tiny_audio.training.precision import place

LARGEST_DIFFERENCE = 1e-4
LORA = {"rank": 16, "alpha": 32.0, "targets": ["q_proj", "v_proj"]}
TEXTS = ["turn on the light in the kitchen", "what time is it", "call me tomorrow at nine", "yes"]
INSTRUCTION = " ".join(TEXTS)
"""The instruction in the prompt of the random decoder. The tokenizer of this decoder knows no other words."""
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "convolution", "linear"),
    "attention": ("scaled_dot_product", "flash_attention"),
}
"""Kind of operation -> parts of the names of its operations. All other operations are elementwise or copies."""


def random_checkpoints(folder: Path) -> tuple[Path, Path]:
    """Write a small Whisper and a small Llama with random weights."""
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        WhisperConfig,
        WhisperForConditionalGeneration,
    )

    torch.manual_seed(0)
    fields = {"d_model": 128, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 512}
    tokens = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    whisper = WhisperConfig(**fields, decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=64, **tokens)
    WhisperForConditionalGeneration(whisper).save_pretrained(folder / "whisper")
    trained = {"tokenizer": {"kind": "bpe", "vocab_size": 200}, "init": "random", "freeze": False}
    tokenizer: PreTrainedTokenizerFast = build_tokenizer(DECODERS.parse({"name": "llama", **trained}), TEXTS)
    llama = LlamaConfig(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(llama).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    return folder / "whisper", folder / "llama"


def noise_manifest(folder: Path) -> Path:
    """Write clips of noise of 1 to 4 seconds and their manifest. Return the manifest's path."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(120):
        path, duration_s = folder / f"{number}.wav", float(rng.uniform(1, 4))
        soundfile.write(path, 0.1 * rng.standard_normal(int(duration_s * SAMPLE_RATE)), SAMPLE_RATE)
        row = {"audio_filepath": str(path), "duration": duration_s, "text": TEXTS[number % len(TEXTS)]}
        rows.append(json.dumps(row) + "\n")
    (folder / "noise.jsonl").write_text("".join(rows))
    return folder / "noise.jsonl"


def recipe_of(arguments: argparse.Namespace, attention: str) -> Recipe:
    document = {
        "encoder": {"name": "whisper", "pretrained": str(arguments.encoder)},
        "projector": {"name": "swiglu", "stack": 5, "hidden_dim": 1024},
        "decoder": {"name": "llama", "pretrained": str(arguments.decoder), "lora": LORA, "attention": attention},
        "prompt": {} if arguments.real else {"user": INSTRUCTION + "{audio}"},
        "data": {"target_text": "lower", "train": {"speech": {"name": "manifest", "path": str(arguments.manifest)}}},
        "batching": {"max_clips": 1000, "max_padded_s": arguments.padded_s},
        # The learning rate is tiny, because Adam's first steps amplify rounding errors, and the losses must agree.
        "training": {"steps": 100, "learning_rate": 1e-6, "schedule": "constant"},
        "execution": {"device": "cpu"},
    }
    return Recipe.model_validate_json(json.dumps(document))


class Way:
    """A model, with the data and the optimizer to train it in one of the three ways."""

    def __init__(self, arguments: argparse.Namespace, attention: str, keeps_frames: bool) -> None:
        self.recipe = recipe_of(arguments, attention)
        data, sources = self.recipe.data, {}
        for name, source in data.train.items():
            sources[name] = SOURCES.build(source, SourceContext(arguments.folder))
        self.clips = ClipSet.gather(sources, data.min_duration_s, data.max_duration_s, data.target_text)
        self.model, _, self.target_encoder = assemble(self.recipe, self.clips, None)
        place(self.model, self.recipe, torch.device("cpu"))
        self.module: nn.Module = self.model.train()
        self.optimizer: torch.optim.Optimizer = build_optimizer(self.model, self.recipe)
        self.cache = FrameCache(self.model.encoder, 2**34, arguments.folder) if keeps_frames else None
        self.seconds: list[list[float]] = []

    def batches(self, count: int) -> list[Batch]:
        """Return the first batches of an epoch."""
        plan = self.clips.clips.plan(self.recipe.batching, 0, 0)
        augmentation, longest = self.recipe.augmentation, self.recipe.data.max_duration_s
        planned = PlannedBatches(self.clips.clips, plan, self.target_encoder, augmentation, longest, 0, 0)
        return [planned[k] for k in range(min(count, len(plan)))]

    def loss(self, batch: Batch) -> Tensor:
        """Return the summed loss."""
        frames = self.cache.frames(batch.waveforms, batch.lengths) if self.cache else None
        total: Tensor = self.model(batch.waveforms, batch.lengths, batch.targets, frames=frames).decoder_loss.sum()
        return total

    def step(self, batch: Batch) -> tuple[float, float]:
        """Take a step, and return its seconds and the mean loss."""
        started = time.perf_counter()
        loss = self.loss(batch) / sum(map(len, batch.targets))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - started, float(loss.detach())


class OfTransformers(Way):
    """A model with transformers' own decoder, trained by the plain loop."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import peft
        from transformers import AutoModelForCausalLM

        super().__init__(arguments, "sdpa", keeps_frames=False)
        self.encoder, self.projector = self.model.encoder, self.model.projector
        decoder = AutoModelForCausalLM.from_pretrained(arguments.decoder, dtype=torch.float32)
        adapters = peft.LoraConfig(r=LORA["rank"], lora_alpha=LORA["alpha"], target_modules=LORA["targets"])
        self.decoder = peft.get_peft_model(decoder, adapters).train()
        own = {name: tensor for name, tensor in self.model.decoder.model.named_parameters() if tensor.requires_grad}
        for name, tensor in self.decoder.named_parameters():
            if tensor.requires_grad:
                tensor.data.copy_(own[name.removeprefix("base_model.model.")].data)
        self.prompt = (self.model.config.prompt_prefix_ids, self.model.config.prompt_suffix_ids)
        self.module = nn.ModuleList([self.projector, self.decoder])
        del self.model
        trained = [tensor for tensor in self.module.parameters() if tensor.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, weight_decay=0.0)

    def loss(self, batch: Batch) -> Tensor:
        """Return the summed loss."""
        with torch.no_grad():
            frames = self.encoder(batch.waveforms, batch.lengths)
        audio, sizes = self.projector(frames)
        embed = self.decoder.get_input_embeddings()
        prefix, suffix = (embed(torch.tensor(ids, dtype=torch.long)) for ids in self.prompt)
        rows, labels = [], []
        for clip, size, ids in zip(audio, sizes.tolist(), batch.targets, strict=True):
            rows.append(torch.cat([prefix, clip[:size], suffix, embed(ids)]))
            labels.append(torch.cat([torch.full((len(rows[-1]) - len(ids),), -100), ids]))
        lengths = torch.tensor([len(row) for row in rows])
        inputs = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = (torch.arange(inputs.shape[1]) < lengths[:, None]).long()
        padded = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
        mean: Tensor = self.decoder(inputs_embeds=inputs, attention_mask=mask, labels=padded).loss
        return mean * sum(map(len, batch.targets))


def kinds_of(step: Callable[[], Any]) -> Counter[str]:
    """Return the CPU seconds of the operations in a step, by kind."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    seconds: Counter[str] = Counter()
    for event in profiled.key_averages():
        name = event.key.removeprefix("aten::")
        kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other")
        seconds[kind] += event.self_cpu_time_total / 1e6
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--encoder", type=Path, help="folder of a Whisper checkpoint")
    parser.add_argument("--decoder", type=Path, help="folder of a checkpoint with the Llama architecture")
    parser.add_argument("--manifest", type=Path, help="training clips")
    parser.add_argument("--padded-s", type=float, default=60.0, help="seconds of audio in a batch, including padding")
    parser.add_argument("--batches", type=int, default=6, help="batches of an epoch")
    parser.add_argument("--epochs", type=int, default=3, help="measured epochs, after one epoch that fills the cache")
    parser.add_argument("--output", type=Path, help="also write the results to this page")
    arguments = parser.parse_args()
    arguments.real = arguments.decoder is not None
    record = Record("Fine-tuning: shared prompts and kept frames against the plain way", arguments.output)
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder)
        random = (None, None) if arguments.encoder and arguments.decoder else random_checkpoints(arguments.folder)
        arguments.encoder = arguments.encoder or random[0]
        arguments.decoder = arguments.decoder or random[1]
        arguments.manifest = arguments.manifest or noise_manifest(arguments.folder)
        compare(arguments, record)
    return record.write()


def compare(arguments: argparse.Namespace, record: Record) -> None:
    ways = {
        "transformers": OfTransformers(arguments),
        "plain": Way(arguments, "sdpa", keeps_frames=False),
        "ours": Way(arguments, "auto", keeps_frames=True),
    }
    batches = ways["ours"].batches(arguments.batches)
    for way in ways.values():  # warm-up, with a batch that no way uses later
        way.loss(Batch(batches[0].waveforms * 0.5, batches[0].lengths, batches[0].targets, None, []))
    seconds = {name: np.zeros((arguments.epochs + 1, len(batches))) for name in ways}
    largest = 0.0
    for epoch in range(arguments.epochs + 1):
        for index, batch in enumerate(batches):
            losses = []
            for name, way in ways.items():
                seconds[name][epoch, index], loss = way.step(batch)
                losses.append(loss)
            largest = max(largest, max(losses) - min(losses))
    audio_s = sum(batch.audio_s for batch in batches)
    clips = sum(len(batch.lengths) for batch in batches)
    record.say(
        f"{len(batches)} batches with {clips} clips and {audio_s:.0f} s of audio, {arguments.epochs + 1} epochs:"
    )
    record.say()
    best = {name: values[1:].min(0).sum() for name, values in seconds.items()}
    rows = []
    for name, values in seconds.items():
        ratios = (seconds["plain"][1:].sum(1) / values[1:].sum(1)).tolist()
        first = seconds["plain"][0].sum() / values[0].sum()
        speed = audio_s / best[name]
        rows.append((name, f"{speed:.1f}", f"{best['plain'] / best[name]:.2f}", spread(ratios), f"{first:.2f}"))
    head = ("", "audio hours per hour", "speed / plain", "by epoch", "first epoch")
    record.table(head, rows)
    record.say(f"Ours / transformers: {best['transformers'] / best['ours']:.2f}.")
    record.say()
    record.bar(f"largest difference of the losses {largest:.1e}, at most {LARGEST_DIFFERENCE}", largest < 1e-4)
    record.say("## Where the time of a step goes, in seconds")
    record.say()
    kinds = {name: kinds_of(lambda way=way: way.step(batches[-1])) for name, way in ways.items()}
    names = [*KINDS, "other"]
    record.table(("", *names), [(name, *(f"{kinds[name][kind]:.2f}" for kind in names)) for name in ways])
    bound = kinds["plain"].total() / kinds["ours"]["matrix products"]
    record.say(f"If ours took only the time of its matrix products, it would be {bound:.2f} times as fast as plain.")


if __name__ == "__main__":
    sys.exit(main())
