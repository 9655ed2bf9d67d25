"""The benchmark of projectors: what it times, what it trains, and what it dares to call different."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Document, changed, tiny_recipe, write_clips
from tests.support.html import EVIL, Page
from tiny_audio.analysis.report import render_benchmark
from tiny_audio.analysis.report._scatter import name_heights
from tiny_audio.analysis.scoring import normalizer
from tiny_audio.cli import main
from tiny_audio.commands.bench._measure import peak_bytes, random_frames
from tiny_audio.commands.bench.analysis import Outcome, Scoring, analyze
from tiny_audio.commands.bench.command import Options, benchmark_projectors
from tiny_audio.commands.bench.features import FeatureCache, check_cacheable
from tiny_audio.commands.bench.tables import results_table, timings_table
from tiny_audio.commands.bench.timing import Effort, Neighbors, time_projectors
from tiny_audio.commands.bench.training import Plan, TrainedBenchmark
from tiny_audio.commands.bench.units import CachedMaterial, WaveformMaterial, train
from tiny_audio.commands.bench.variants import Variant, Variants, read_variants
from tiny_audio.config import UserError
from tiny_audio.data.clips import ClipSet
from tiny_audio.projectors import PROJECTORS
from tiny_audio.recipe import load_recipe
from tiny_audio.sources import SOURCES, SourceContext
from tiny_audio.training.assembly import assemble
from tiny_audio.training.initialize import StartingPoint
from tiny_audio.training.loop import Budget
from tiny_audio.training.precision import place

pytestmark = pytest.mark.usefixtures("one_thread")

SHIPPED = Path(__file__).parents[2] / "benchmarks" / "projectors.yaml"
SMALL = Variants(
    (
        Variant("swiglu", {"name": "swiglu", "hidden_dim": 64}),
        Variant("conv", {"name": "conv", "hidden_dim": 16}),
        Variant("compressed", {"name": "ctc_compress", "hidden_dim": 16}),
    ),
    (Variant("deaf", {"name": "swiglu", "hidden_dim": 1, "stack": 14}),),
)


# --- variants


def test_every_projector_is_a_variant_by_default() -> None:
    assert [variant.label for variant in read_variants(None).compared] == PROJECTORS.names()


def test_variants_from_text() -> None:
    found = read_variants("swiglu, conv:hidden_dim=16, wide=swiglu:stack=4+hidden_dim=512").compared
    assert [(variant.label, dict(variant.section)) for variant in found] == [
        ("swiglu", {"name": "swiglu"}),
        ("conv hidden_dim=16", {"name": "conv", "hidden_dim": 16}),
        ("wide", {"name": "swiglu", "stack": 4, "hidden_dim": 512}),
    ]


def test_the_shipped_variants_are_all_there_are_at_equal_size_and_rate() -> None:
    from tiny_audio.projectors import ProjectorContext

    variants = read_variants(str(SHIPPED))
    assert sorted(variant.section["name"] for variant in variants.compared) == PROJECTORS.names()
    assert len(variants.controls) == 1
    minute = torch.tensor([3000])
    for variant in variants.compared:
        projector = PROJECTORS.build(variant.config(), ProjectorContext(128, 128, 50.0, 0.05))
        size = sum(tensor.numel() for tensor in projector.parameters())
        assert size == pytest.approx(295_000, rel=0.01), variant.label
        if variant.label != "ctc_compress":
            assert int(projector.max_embeddings(minute)) == 750, variant.label


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("swigloo", "unknown projector 'swigloo'; did you mean 'swiglu'?"),
        ("swiglu:stack", "--variants: 'swiglu:stack' is not of the form name, name:field=value+field=value"),
        ("swiglu,,conv", "--variants: '' is not of the form"),
        ("swiglu,swiglu", "--variants: 'swiglu' comes twice; give one of them a label"),
        ("there/is/none.yaml", "there/is/none.yaml"),
    ],
)
def test_messages_about_variants(text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        read_variants(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"variant": {"a": "conv"}}, "unknown section 'variant'; did you mean 'variants'?"),
        ({"controls": {"a": "conv"}}, "the section `variants` is missing"),
        ({"variants": ["conv"]}, "variants must map labels to projectors"),
        ({"variants": {"a": 3}}, "a must be a projector's name or its section, not 3"),
        ({"variants": {"a": {"name": "conv", "hiden_dim": 3}}}, "variant a: hiden_dim: Extra inputs are not permitted"),
        ({"variants": {"a": "conv"}, "controls": {"a": "conv"}}, "--variants: 'a' comes twice"),
    ],
)
def test_messages_about_a_file_of_variants(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "variants.yaml"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=re.escape(message)):
        read_variants(str(path))


# --- timing


def test_peak_memory_is_what_is_held_at_once() -> None:
    def step() -> None:
        first = torch.empty(1 << 20)  # 4 MiB
        second = torch.empty(1 << 18)
        del first
        torch.empty(1 << 19)
        del second

    assert peak_bytes(step, torch.device("cpu")) == pytest.approx(5 * 2**20, rel=0.01)


def test_random_frames_have_runs_of_labels() -> None:
    torch.manual_seed(0)
    frames = random_frames(4, 1000, 8, 50.0, torch.device("cpu"))
    assert frames.ctc_logits is not None
    labels = frames.ctc_logits.argmax(-1)
    changes = (labels[:, 1:] != labels[:, :-1]).float().mean()
    assert 0.45 < float(changes) < 0.55


def test_timings_are_measured_by_pytest_benchmark(capfd: pytest.CaptureFixture[str]) -> None:
    variants = read_variants(
        "swiglu:hidden_dim=64+stack=4,transformer:dim=32+num_heads=4+num_layers=1+feedforward_dim=64"
    ).compared
    effort = Effort(durations_s=(1.0,), batch_sizes=(2,), max_time_s=0.01)
    measured = time_projectors(variants, Neighbors(in_dim=32, out_dim=48), effort, "cpu")
    assert "4 passed" in capfd.readouterr().err
    assert measured["versions"]["pytest-benchmark"]
    forward, both, attention, _ = measured["cases"]
    assert (forward["which"], both["which"]) == ("forward", "forward_backward")
    assert forward["rounds"] >= 3
    assert 0 < forward["min_s"] <= forward["median_s"]
    assert both["median_s"] > 0
    # 13 stacks of each of two clips: gate and up from 4 · 32 to 64 channels, down to 48.
    products = 2 * 13 * (2 * 4 * 32 * 64 + 64 * 48)
    assert forward["flops"] == 2 * products
    # Backward: the gradients of weights and of inputs, which the norm below the first layers wants too.
    assert both["flops"] == 3 * forward["flops"]
    assert forward["parameters"] == 2 * 4 * 32 * 64 + 64 * 48 + 4 * 32 + 48
    assert forward["embeddings_per_s"] == 13
    assert both["peak_bytes"] > 4 * forward["parameters"] > 0
    # Attention counts too: products of queries with keys and of weights with values, 10 by 10 for each of two clips.
    linear = 2 * 10 * (5 * 32 * 32 + 4 * 32 * 32 + 2 * 32 * 64 + 32 * 48)
    assert attention["flops"] == 2 * (linear + 2 * 2 * 10 * 10 * 32)
    table = timings_table(measured).splitlines()
    assert table[1].split()[:3] == ["swiglu", "hidden_dim=64", "stack=4"]
    assert "32 → 48 channels at 50 frames/s, fp32, cpu" in table[-1]


def test_neighbors_come_from_the_recipe(document: Document, write_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(write_recipe(document))
    found = Neighbors.of(recipe)
    assert (found.frame_rate, found.precision) == (50.0, "fp32")
    assert found.in_dim == recipe.encoder.overrides["d_model"]
    assert found.out_dim == recipe.decoder.overrides["hidden_size"]


@pytest.mark.parametrize("field", ["hidden_dim=99999999999", "hidden_dim=9999999999999999"])
def test_a_projector_that_no_memory_holds_is_refused(field: str) -> None:
    with pytest.raises(UserError, match=r"^--variants: swiglu hidden_dim=9+ .*; shrink its sizes$"):
        time_projectors(read_variants(f"swiglu:{field}").compared, Neighbors(), Effort(max_time_s=0.0))


def test_a_length_that_is_too_short_is_refused() -> None:
    with pytest.raises(UserError, match=re.escape("--durations: 0.1 s are 5 frames, and swiglu stack=9 needs 9")):
        time_projectors(read_variants("swiglu:stack=9").compared, Neighbors(), Effort(durations_s=(0.1,)), "cpu")


def test_without_pytest_benchmark_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pytest_benchmark" else find(name))
    with pytest.raises(UserError, match=re.escape("bench needs pytest_benchmark; pip install 'tiny-audio[bench]'")):
        time_projectors(read_variants("swiglu").compared, Neighbors(), Effort(), "cpu")


@pytest.mark.parametrize(
    ("options", "train", "message"),
    [
        (Options(steps=3), False, "--steps needs --train"),
        (Options(controls=True), False, "--controls needs --train"),
        (Options(max_time=1.0), True, "--max-time is for timing projectors alone; leave out it or --train"),
        (Options(device="cpu"), True, "a recipe's device is execution.device"),
        (Options(device="tpu"), False, "--device: 'tpu' is none of auto, cpu, cuda"),
        (Options(durations="5,x"), False, "--durations: '5,x' must be numbers above 0, with commas between them"),
        (Options(batch_sizes="1.5"), False, "--batch-sizes: '1.5' must be whole numbers above 0"),
        (Options(), True, "--train needs a recipe, such as recipes/bench_projectors.yaml"),
    ],
)
def test_messages_about_options(options: Options, train: bool, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        benchmark_projectors(None, [], options, train, None)


# --- features and training


@pytest.fixture(scope="module")
def home(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, an encoder trained on them, and ``recipe.yaml``, which freezes it."""
    folder = tmp_path_factory.mktemp("bench")
    write_clips(folder, 24)
    document = changed(tiny_recipe(folder), ctc={"weight": 0.5}, generation__max_new_tokens=12, batching__max_clips=8)
    document["training"] |= {"learning_rate": 5e-3, "steps": 30}
    (folder / "encoder.yaml").write_text(json.dumps(document))
    assert main(["run", str(folder / "encoder.yaml"), "--output-dir", str(folder / "run")]) == 0
    frozen = copy.deepcopy(document)
    frozen["encoder"]["freeze"] = True
    frozen["training"]["init_from"] = {"path": str(folder / "run"), "parts": ["encoder", "ctc_head"]}
    (folder / "recipe.yaml").write_text(json.dumps(frozen))
    return folder


@pytest.fixture(autouse=True)
def own_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_AUDIO_CACHE", str(home / "cache"))


def gathered(recipe: Any) -> ClipSet:
    sources = {name: SOURCES.build(config, SourceContext(Path())) for name, config in recipe.data.train.items()}
    return ClipSet.gather(sources, recipe.data.min_duration_s, recipe.data.max_duration_s)


def built(home: Path, *overrides: str) -> tuple[Any, ClipSet, Any, Any]:
    recipe = load_recipe(home / "recipe.yaml", overrides)
    clips = gathered(recipe)
    model, _, target_encoder = assemble(recipe, clips, StartingPoint(recipe.training.init_from))
    place(model, recipe, torch.device("cpu"))
    return recipe, clips, model, target_encoder


def test_features_are_the_encoder_s_own_frames(home: Path, tmp_path: Path) -> None:
    recipe, clips, model, _ = built(home)
    notes: list[str] = []
    features = FeatureCache(model, recipe, tmp_path, notes.append).get(clips)
    assert [clip.id for clip in features.clips] == [clip.id for clip in clips.clips]
    batch = features.frames([3, 0], torch.device("cpu"))
    for row, index in enumerate((3, 0)):
        waveform = clips.clips[index].load(10.0)
        with torch.no_grad():
            alone = model.encode(waveform[None], torch.tensor([len(waveform)]))
        assert features.num_samples[index] == len(waveform)
        size = int(alone.lengths)
        assert int(batch.lengths[row]) == size
        rms = alone.values.pow(2).mean().sqrt()
        assert (batch.values[row, :size] - alone.values[0]).abs().max() <= 1e-5 * rms
        assert alone.ctc_logits is not None
        assert batch.ctc_logits is not None
        torch.testing.assert_close(batch.ctc_logits[row, :size], alone.ctc_logits[0], rtol=1e-4, atol=1e-5)
    assert len(notes) == 1


def test_features_are_computed_once_for_each_encoder_and_set(home: Path, tmp_path: Path) -> None:
    recipe, clips, model, _ = built(home)
    notes: list[str] = []
    first = FeatureCache(model, recipe, tmp_path, notes.append).get(clips)
    again = FeatureCache(model, recipe, tmp_path, notes.append).get(clips)
    assert len(notes) == len(list(tmp_path.iterdir())) == 1
    assert torch.equal(first.values, again.values)
    fewer = replace(clips, clips=clips.clips[:5], dropped=())
    assert len(FeatureCache(model, recipe, tmp_path, notes.append).get(fewer).clips) == 5
    with torch.no_grad():
        next(iter(model.encoder.parameters())).add_(0.01)
    other = FeatureCache(model, recipe, tmp_path, notes.append).get(clips)
    assert len(notes) == len(list(tmp_path.iterdir())) == 3
    assert not torch.equal(first.values, other.values)


def test_what_cannot_be_read_is_left_out_of_the_features(home: Path, tmp_path: Path) -> None:
    recipe, clips, model, _ = built(home)
    copied = tmp_path / "clips"
    shutil.copytree(home, copied, ignore=shutil.ignore_patterns("run", "cache"))
    (copied / "clip005.flac").write_bytes(b"no audio")
    moved = load_recipe(home / "recipe.yaml", [f"data.train.clips.path={copied / 'manifest.jsonl'}"])
    features = FeatureCache(model, recipe, tmp_path / "features", lambda note: None).get(gathered(moved))
    assert len(features.clips) == len(clips.clips) - 1
    assert [drop.reason for drop in features.dropped] == ["undecodable"]


def test_damaged_features_and_full_disks_are_named(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, clips, model, _ = built(home)
    cache = FeatureCache(model, recipe, tmp_path, lambda note: None)
    cache.get(clips)
    (values,) = tmp_path.glob("*/values.bin")
    values.write_bytes(values.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"is damaged \(values.bin has another size than its index says\); delete it"):
        cache.get(clips)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="point TINY_AUDIO_CACHE to a larger disk, train on less, or give"):
        FeatureCache(model, recipe, tmp_path / "else", lambda note: None).get(clips)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["encoder.freeze=false"], "the encoder trains (encoder.freeze is false). Train one first, with `tiny-audio"),
        (["encoder.lora={rank: 2, alpha: 2, targets: [q_proj]}"], "the encoder's LoRA trains; remove encoder.lora"),
        (["encoder.layer=weighted"], "the weights of encoder.layer: weighted train; name one layer"),
        (["encoder.dropout=0.1"], "encoder.dropout is 0.1, so each look at a clip differs; set it to 0"),
        (["augmentation.white_noise={}"], "augmentation (white_noise) changes each clip in each epoch"),
        (["augmentation.spec_augment={}"], "augmentation (spec_augment) changes each clip"),
        (["training.init_from.parts=[encoder]"], "the CTC head is random and is frozen along with the encoder"),
    ],
)
def test_features_that_would_be_wrong_are_refused(home: Path, overrides: list[str], message: str) -> None:
    recipe = load_recipe(home / "recipe.yaml", overrides)
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        check_cacheable(recipe)
    assert "give --no-feature-cache, which runs the encoder at every step" in str(refused.value)


def test_cached_frames_train_as_encoded_ones_do(home: Path, tmp_path: Path) -> None:
    """The decoder's losses, since a CTC head that trains has no part in them."""
    curves = []
    for cached in (True, False):
        recipe, clips, model, target_encoder = built(home, "execution.log_every=1", "training.steps=6")
        material: Any = WaveformMaterial(clips, {})
        if cached:
            cache = FeatureCache(model, recipe, tmp_path, lambda note: None)
            material = CachedMaterial(cache.get(clips), {})
        material.prepare(model)

        epoch_batches = partial(material.epoch, model, recipe, target_encoder)
        trained = train(model, recipe, epoch_batches, Budget(steps=6))
        assert trained.steps == 6
        curves.append([loss for _, loss in trained.curve])
    # Gradients are clipped together with those of the head, where it trains, so later steps drift apart.
    assert curves[0][0] == pytest.approx(curves[1][0], rel=1e-5)
    assert curves[0] == pytest.approx(curves[1], rel=0.05)
    assert curves[0][-1] < curves[0][0]


def test_every_variant_sees_the_same_clips_in_the_same_order(home: Path, tmp_path: Path) -> None:
    orders = []
    for projector in ("swiglu", "conv"):
        recipe, clips, model, target_encoder = built(home, f"projector={projector}", "training.seed=3")
        cache = FeatureCache(model, recipe, tmp_path, lambda note: None)
        batches = CachedMaterial(cache.get(clips), {}).epoch(model, recipe, target_encoder, 1)
        orders.append([[row.tolist() for row in batch.targets] for batch in batches])
    assert orders[0] == orders[1]
    assert sum(map(len, orders[0])) == 24


def test_a_budget_of_seconds_is_kept(home: Path, tmp_path: Path) -> None:
    recipe, clips, model, target_encoder = built(home, "training.steps=1000")
    material = CachedMaterial(FeatureCache(model, recipe, tmp_path, lambda note: None).get(clips), {})
    trained = train(
        model, recipe, lambda epoch: material.epoch(model, recipe, target_encoder, epoch), Budget(seconds=0.5)
    )
    assert trained.steps > 1
    assert 0.5 <= trained.wall_s < 5


def plan(home: Path, **changes: Any) -> Plan:
    given: dict[str, Any] = {"overrides": (), "variants": SMALL, "seeds": (0, 1), "budget": Budget(steps=6)}
    return Plan(home / "recipe.yaml", **(given | changes))


@pytest.fixture(scope="module")
def finished(home: Path, one_thread: None) -> Path:
    """A whole benchmark, controls included."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_AUDIO_CACHE", str(home / "cache"))
        TrainedBenchmark(plan(home, controls=True), home / "bench", lambda note: None).complete()
    return home / "bench"


def test_results_hold_every_variant_seed_and_comparison(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert results["baseline"] == "swiglu"  # the recipe's own
    assert results["budget"] == {"steps": 6, "seconds": None}
    labels = ["swiglu", "conv", "compressed", "swiglu, other seeds", "deaf"]
    assert [variant["label"] for variant in results["variants"]] == labels
    assert [variant["seeds"] for variant in results["variants"]] == [[0, 1]] * 3 + [[2, 3]] + [[0, 1]]
    for variant in results["variants"]:
        assert variant["steps"] == [6, 6]
        found = variant["sets"]["held_out"]
        assert found["num_utterances"] == 24
        assert found["wer"] == pytest.approx(sum(found["by_seed"]) / 2)
        assert found["interval"][0] <= found["wer"] <= found["interval"][1]
    assert [(row["label"], row["set"]) for row in results["comparisons"]] == [
        (label, "held_out") for label in labels[1:]
    ]
    assert {control["label"]: control["expected"] for control in results["controls"]} == {
        "swiglu, other seeds": "no difference shown",
        "deaf": "worse",
    }
    assert len(list((finished / "units").iterdir())) == 10
    table = results_table(results)
    assert "6 steps each, seeds 0, 1" in table
    assert "against swiglu" in table
    assert "control holds: swiglu, other seeds should be called 'no difference shown'" in table


def test_the_same_command_trains_nothing_twice_and_another_seed_adds(
    home: Path, finished: Path, tmp_path: Path
) -> None:
    finished = Path(shutil.copytree(finished, tmp_path / "bench"))
    notes: list[str] = []
    before = {path: path.stat().st_mtime_ns for path in (finished / "units").rglob("*")}
    results = json.loads((finished / "results.json").read_text())
    again = TrainedBenchmark(plan(home, controls=True), finished, notes.append).complete()
    assert {path: path.stat().st_mtime_ns for path in (finished / "units").rglob("*")} == before
    assert notes == ["10 of 10 units are done already"]
    assert again["variants"] == results["variants"]
    assert again["comparisons"] == results["comparisons"]
    notes.clear()
    # Seed 2 of the baseline was trained as a control, which is the same unit.
    TrainedBenchmark(plan(home, seeds=(0, 2)), finished, notes.append).complete()
    assert notes[0] == "4 of 6 units are done already"
    assert [note.split(":")[0] for note in notes[1:]] == ["[1/2] conv, seed 2", "[2/2] compressed, seed 2"]


def test_the_page_stands_alone(finished: Path) -> None:
    html = (finished / "results.html").read_text()
    page = Page(html)
    for label in ("swiglu", "conv", "compressed", "deaf", "no difference shown", "made worse on purpose"):
        assert label in page.words
    for title in ("parameters of the projector", "training time", "embeddings per second of audio"):
        assert f"Word error rate and {title}" in page.words
    assert not page.all("script")
    assert "http:" not in html.replace("http-equiv", "")
    assert "https:" not in html


def test_the_page_escapes_what_it_is_given(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    text = json.dumps(results).replace('"conv"', json.dumps(EVIL))
    page = Page(render_benchmark(json.loads(text)))
    assert not page.all("script")
    assert not page.all("img")
    assert EVIL in page.words


@given(st.lists(st.tuples(st.floats(60, 500), st.floats(15, 285)), min_size=1, max_size=16))
def test_names_in_a_plot_do_not_lie_over_each_other(places: list[tuple[float, float]]) -> None:
    heights = name_heights(places, 12.0, 290.0)
    assert all(12 <= height <= 290 for height in heights)
    for (first_x, first), (second_x, second) in combinations(zip([x for x, _ in places], heights, strict=True), 2):
        assert abs(first_x - second_x) >= 120 or abs(first - second) >= 14 - 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": (0,)}, "--seeds: needs at least 2 different seeds to tell a difference from luck, not 0"),
        ({"seeds": (1, 1)}, "--seeds: needs at least 2 different seeds to tell a difference from luck, not 1, 1"),
        ({"baseline": "swigl"}, "--baseline: there is no variant 'swigl'; did you mean 'swiglu'?"),
        ({"variants": Variants(SMALL.compared[:1])}, "--variants: one alone has nothing to be compared with"),
        (
            {"variants": Variants(SMALL.compared), "controls": True},
            "--controls: a variant that is made worse on purpose is missing; give --variants a YAML file",
        ),
        (
            {"variants": Variants((SMALL.compared[0], Variant("far", {"name": "swiglu", "stack": 99})))},
            "variant far: ",
        ),
        ({"overrides": ("encoder.freeze=false",)}, "features cannot be computed once for all variants"),
        ({"overrides": ("data.evaluation={}",)}, "data.evaluation is empty, so nothing can be compared; add a set"),
        ({"overrides": ("execution.compile=true",)}, "execution.compile: a benchmark trains without it; set it to f"),
    ],
)
def test_messages_about_a_plan(home: Path, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        TrainedBenchmark(plan(home, **changes), tmp_path, lambda note: None)


def test_the_command_prints_json(
    home: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = Path(shutil.copytree(finished, tmp_path / "bench"))
    (home / "variants.yaml").write_text(
        json.dumps({"variants": {variant.label: dict(variant.section) for variant in SMALL.compared}})
    )
    command = ["bench", "projectors", str(home / "recipe.yaml"), "--variants", str(home / "variants.yaml"), "--train"]
    command += ["--steps", "6", "--seeds", "0,1", "--output-dir", str(finished), "--json"]
    capsys.readouterr()
    assert main(command) == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == json.loads((finished / "results.json").read_text())
    assert "6 of 6 units are done already" in output.err
    assert main([*command, "--seconds", "3"]) == 2
    assert "--steps and --seconds are two budgets; give one of them" in capsys.readouterr().err


@pytest.mark.slow
def test_a_crippled_projector_is_called_worse_and_the_same_one_is_not(home: Path, tmp_path: Path) -> None:
    """With an encoder that has learned to tell the clips apart."""
    encoder = tmp_path / "run"
    command = ["run", str(home / "encoder.yaml"), "training.steps=150", "--output-dir", str(encoder)]
    assert main(command) == 0
    chosen = plan(
        home,
        overrides=(f"training.init_from.path={encoder}",),
        variants=Variants(SMALL.compared[:1], SMALL.controls),
        seeds=tuple(range(6)),
        budget=Budget(steps=150),
        controls=True,
    )
    found = TrainedBenchmark(chosen, tmp_path / "bench", print).complete()
    assert {control["label"]: control["held"] for control in found["controls"]} == {
        "swiglu, other seeds": True,
        "deaf": True,
    }


# --- verdicts


def outcome(label: str, error_rates: list[float], control: Any = None, seed: int = 0) -> Outcome:
    """Hypotheses of 300 utterances of 5 words, with about so many of the words wrong under each seed."""
    rng = torch.Generator().manual_seed(seed)
    words = ["one", "two", "three", "four", "five"]
    hypotheses = []
    for rate in error_rates:
        rows = []
        for number in range(300):
            wrong = torch.rand(5, generator=rng) < rate
            heard = " ".join("x" if bad else word for bad, word in zip(wrong, words, strict=True))
            rows.append(
                {"id": str(number), "text": " ".join(words), "pred_text": heard, "truncated": False, "metadata": {}}
            )
        hypotheses.append({"dev": rows})
    result = {"parameters": 1, "embeddings_per_s": 10.0, "train_s": 1.0, "curve": []}
    results = [{**result, "seed": number, "steps": 5} for number in range(len(error_rates))]
    return Outcome(label, {"name": "swiglu"}, control, results, hypotheses)


def verdicts(*outcomes: Outcome) -> dict[str, str]:
    found = analyze(outcomes, outcomes[0].label, Scoring(normalizer("lower"), 500, None))
    return {label: entry.verdict for (label, _), entry in found.differences.items()}


def test_a_clear_difference_is_called_by_its_sign() -> None:
    base = outcome("base", [0.2, 0.21, 0.2], seed=1)
    found = verdicts(base, outcome("bad", [0.5, 0.52, 0.49], seed=2), outcome("good", [0.02, 0.03, 0.02], seed=3))
    assert found == {"bad": "worse", "good": "better"}


def test_a_difference_of_the_means_that_seeds_explain_is_a_tie() -> None:
    """Utterances alone would call it different: 3000 words, 10 points apart; but the seeds are 30 points apart."""
    base = outcome("base", [0.2, 0.35, 0.5], seed=1)
    assert verdicts(base, outcome("other", [0.3, 0.45, 0.6], seed=2)) == {"other": "no difference shown"}


def test_the_same_variant_under_other_seeds_is_a_tie() -> None:
    rates = [[0.20, 0.23, 0.26], [0.27, 0.22, 0.24], [0.21, 0.25, 0.22]]
    outcomes = [outcome(f"v{number}", rate, seed=number) for number, rate in enumerate(rates)]
    assert set(verdicts(*outcomes).values()) == {"no difference shown"}


def test_controls_are_a_family_of_their_own_and_say_whether_they_hold() -> None:
    base = outcome("base", [0.2, 0.22, 0.21], seed=1)
    others = [outcome(f"v{number}", [0.21, 0.2, 0.22], seed=number) for number in range(2, 5)]
    again = outcome("again", [0.21, 0.22, 0.2], "again", seed=9)
    crippled = outcome("crippled", [0.9, 0.91, 0.92], "crippled", seed=10)
    found = analyze([base, *others, again, crippled], "base", Scoring(normalizer("lower"), 500, None)).to_json()
    assert [control["held"] for control in found["controls"]] == [True, True]
    by_label = {row["label"]: row for row in found["comparisons"]}
    assert by_label["crippled"]["p_holm"] == pytest.approx(2 * by_label["crippled"]["p_value"])
    blind = analyze(
        [base, outcome("crippled", [0.2, 0.22, 0.21], "crippled", seed=11)],
        "base",
        Scoring(normalizer("lower"), 500, None),
    ).to_json()
    assert [control["held"] for control in blind["controls"]] == [False]
    assert "control FAILS" in results_table(
        {**blind, "baseline": "base", "seeds": [0], "budget": {"steps": 1, "seconds": None}, "group_by": None}
    )
