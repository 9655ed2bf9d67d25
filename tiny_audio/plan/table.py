"""Print a plan as text tables."""

from __future__ import annotations

from collections.abc import Iterator

from tiny_audio.plan import Plan, Row
from tiny_audio.plan._hardware import CONTEXT_BYTES, FRAGMENTATION, GIB, GPUS, PROCESS_BYTES
from tiny_audio.plan._order import SPREAD
from tiny_audio.plan._step import CHARACTERS_PER_S
from tiny_audio.runtime.columns import in_columns

_KINDS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer (two moments, fp32)",
    "activations_encoder": "activations of the encoder",
    "activations_projector": "activations of the projector",
    "activations_decoder": "activations of the decoder",
    "activations_ctc_head": "activations of the CTC head",
    "logits": "logits and losses",
    "backward": "backward pass, at the peak",
    "workspace": "workspace of convolutions and norms",
}


def print_plan(plan: Plan) -> None:
    """Print tables of parts, memory and machines.

    For a single machine, also print whether the recipe fits, and which changes would make it fit.
    """
    print("\n".join(_lines(plan)))


def _lines(plan: Plan) -> Iterator[str]:
    yield _parts(plan)
    yield ""
    yield _memory(plan)
    yield ""
    yield from _time(plan)
    if len(plan.rows) == 1:
        yield ""
        yield from _verdict(plan, plan.rows[0])


def _parts(plan: Plan) -> str:
    flops = plan.flops_per_audio_s()
    total = plan.total_parameters()
    whole = {way: sum(counts[way] for counts in flops.values()) for way in ("forward", "backward")}
    rows = [["part", "name", "parameters", "trainable", "GFLOP per s of audio: forward", "backward", "both"]]
    for part in [*plan.worst.parts, {"part": "total", "name": "", **total}]:
        work = whole if part["part"] == "total" else flops.get(part["part"], dict.fromkeys(whole, 0.0))
        counts = [f"{part['total']:,}", f"{part['trainable']:,}"]
        gflops = [f"{count / 1e9:,.1f}" for count in (*work.values(), sum(work.values()))]
        rows.append([part["part"], part["name"] or "", *counts, *gflops])
    table = in_columns(rows, num_texts=2)
    unread = "\nTranscripts were not read, so counts that depend on a vocabulary are estimates."
    return table + unread if plan.worst.approximate else table


def _memory(plan: Plan) -> str:
    worst, machine = plan.worst, plan.rows[0].machine
    shape = worst.shape
    clips = f"{shape.num_clips} clip{'s' if shape.num_clips > 1 else ''} of {shape.duration_s:g} s"
    rows = [[f"largest batch: {clips}, {worst.num_tokens} text tokens each", "GiB"]]
    rows += [
        [f"  {name}", _gib(worst.memory[kind])] for kind, name in _KINDS.items() if worst.memory[kind] >= GIB / 200
    ]
    rows.append(["  peak", _gib(worst.peak_bytes)])
    overhead = "CUDA context and libraries" if machine.device == "cuda" else "Python and libraries"
    rows.append([f"  {overhead} (allowance)", _gib(CONTEXT_BYTES if machine.device == "cuda" else PROCESS_BYTES)])
    rows.append([f"  fragmentation (allowance, {FRAGMENTATION:.0%})", _gib(FRAGMENTATION * worst.peak_bytes)])
    rows.append(["  needed", _gib(machine.needed_bytes(worst.peak_bytes))])
    return in_columns(rows, num_texts=1)


def _time(plan: Plan) -> Iterator[str]:
    rows = [["", "memory GiB", "", "audio h per h", "wall time", "$/h", "cost $"]]
    for row in plan.rows:
        price = (
            ["", ""]
            if row.price_per_hour is None or row.cost is None
            else [_money(row.price_per_hour), _money(row.cost)]
        )
        verdict = "fits" if row.fits else "does not fit"
        numbers = [f"{row.audio_hours_per_hour:,.0f}", _duration(row.wall_hours), *price]
        rows.append([row.machine.name, f"{row.machine.memory_bytes / GIB:.1f}", verdict, *numbers])
    yield in_columns(rows, num_texts=1)
    yield (
        f"{plan.training_audio_hours:,.0f} hours of audio in all, in clips of {plan.mean.shape.duration_s:g} s on "
        f"average (--mean-clip-s), at {plan.utilization:.0%} of the peak speed (--utilization)."
    )
    yield (
        f"Padding is {plan.padding_share:.0%} of the processed audio, if durations are log-normal with sigma {SPREAD}."
    )
    if any(row.price_per_hour is not None for row in plan.rows):
        yield "Prices are approximate; set yours with --price-per-hour."
    prompt, mean = plan.worst.prompt_tokens, plan.mean.prompt_tokens
    most = f"at most {prompt} tokens, {mean} on average" if mean < prompt else f"{prompt} tokens"
    yield f"Assumed: {CHARACTERS_PER_S} characters of text per second of audio, and a prompt of {most}."


def _verdict(plan: Plan, row: Row) -> Iterator[str]:
    worst, memory = plan.worst, plan.worst.memory
    has, needs = f"{row.machine.memory_bytes / GIB:.1f} GiB", f"{row.needed_bytes / GIB:.1f}"
    fixed = memory["weights"] + memory["gradients"] + memory["optimizer"]
    each = (worst.peak_bytes - fixed) / worst.shape.num_clips
    why = f"weights, gradients and optimizer {_gib(fixed)}, each clip {_gib(each)}"
    if row.fits:
        yield f"{row.machine.name}: fits; {needs} of {has} ({why}). Room for about {row.room_for_clips} clips."
        return
    yield f"{row.machine.name}: does not fit; it needs {needs} GiB and has {has} ({why})."
    if row.changes:
        yield "To make it fit, append one of these lines:" if len(row.changes) > 1 else "To make it fit, append:"
        for change in row.changes:
            yield f"  {' '.join(change.overrides)}    ({change.needed_bytes / GIB:.1f} GiB)"
    else:
        yield (
            "No change was found that makes it fit (attention, precision, gradient checkpointing, batch, clip "
            "duration, LoRA rank, quantization). Choose smaller checkpoints."
        )
    larger = [gpu.name for gpu in GPUS.values() if gpu.memory_bytes >= row.needed_bytes]
    yield (
        f"To keep the recipe unchanged, choose a larger GPU: --gpu {', '.join(larger)}"
        if larger
        else "No known GPU is large enough for the unchanged recipe."
    )


def _gib(count: float) -> str:
    return f"{count / GIB:.2f}"


def _money(dollars: float) -> str:
    return f"{dollars:,.2f}" if dollars < 1000 else f"{dollars:,.0f}"


def _duration(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} d"
