"""Losses with a clip's own audio and with the audio of another clip."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import write_clips
from tests.support.models import assemble
from tiny_audio.analysis.audio_bits import ClipLosses
from tiny_audio.data.clips import Clips, ClipSet
from tiny_audio.data.target_encoder import TargetEncoder
from tiny_audio.data.text import TargetText
from tiny_audio.encoders import ENCODERS
from tiny_audio.evaluation.audio_bits import choose_partners, measure_losses, spread
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.sources import SOURCES, SourceContext

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = ["yes", "no", "stop now", "go on", "left", "turn right"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    folder = tmp_path_factory.mktemp("clips")
    config = SOURCES.parse({"name": "manifest", "path": str(write_clips(folder, 9))})
    return ClipSet.gather({"set": SOURCES.build(config, SourceContext(folder))}, 0.1, 9.0).clips


@pytest.fixture(scope="module")
def model() -> tuple[TinyAudioModel, TargetEncoder]:
    model, tokenizer = assemble(transcripts=TEXTS, prompt="{audio}")
    encoder = ENCODERS.parse(model.config.encoder)
    return model, TargetEncoder(tokenizer, model.config.end_token_id, None, encoder)


def measure(model: tuple[TinyAudioModel, TargetEncoder], clips: Clips, max_padded_s: float) -> dict[str, ClipLosses]:
    return measure_losses(*model, clips, TargetText.of("none"), max_duration_s=9.0, max_padded_s=max_padded_s)


def test_partners_have_other_texts_and_similar_durations() -> None:
    texts = [TEXTS[index % 5] for index in range(40)]
    found = choose_partners(texts)
    assert found == choose_partners(texts) != choose_partners(texts, seed=1)
    for own, other in enumerate(found):
        assert other is not None
        assert texts[own] != texts[other]
        assert abs(own - other) <= 10
    assert choose_partners(["yes"] * 3) == [None] * 3
    assert choose_partners([]) == []


def test_measured_clips_are_spread_over_the_set(clips: Clips) -> None:
    assert [clip.id for clip in spread(clips, 3)] == [clips[index].id for index in (0, 3, 6)]
    assert len(spread(clips, 100)) == 9
    assert spread([], 3) == []


def test_losses_equal_those_of_the_model(model: tuple[TinyAudioModel, TargetEncoder], clips: Clips) -> None:
    """The losses do not depend on the batch size. ``other_loss`` is the loss with another clip's audio."""
    found = measure(model, clips, 99.0)
    assert found.keys() == {clip.id for clip in clips}
    waves = {clip.id: clip.load(9.0) for clip in clips}
    recognizer, targets = model
    clip = clips[2]
    target = torch.tensor(targets.encode(clip.utterance.text, 16_000).ids)
    with torch.no_grad():
        direct = {
            name: float(recognizer(wave[None], torch.tensor([len(wave)]), [target], [[1]]).decoder_loss)
            for name, wave in waves.items()
        }
    losses = found[clip.id]
    assert losses.tokens == len(target)
    assert losses.loss == pytest.approx(direct[clip.id], rel=1e-4)
    others = [loss for name, loss in direct.items() if name != clip.id]
    assert min(abs(losses.other_loss - loss) for loss in others) < 1e-3
    for name, one in measure(model, clips, 1.0).items():
        assert (one.loss, one.other_loss) == pytest.approx((found[name].loss, found[name].other_loss), rel=1e-4)


def test_a_model_that_ignores_audio_has_zero_bits(clips: Clips) -> None:
    model, tokenizer = assemble(transcripts=TEXTS, prompt="{audio}")
    model.projector.register_forward_hook(lambda module, args, output: (output[0] * 0, torch.ones_like(output[1])))
    targets = TargetEncoder(tokenizer, model.config.end_token_id, None, ENCODERS.parse(model.config.encoder))
    found = measure((model, targets), clips, 99.0)
    assert all(one.other_loss == pytest.approx(one.loss, abs=1e-4) for one in found.values())


def test_clips_without_a_target_or_partner_are_left_out(
    model: tuple[TinyAudioModel, TargetEncoder], clips: Clips
) -> None:
    short = TargetEncoder(model[1].tokenizer, model[1].end_id, None, model[1].encoder, max_ids=5)
    found = measure((model[0], short), clips, 99.0)
    assert 0 < len(found) < len(clips)
    assert all(one.tokens <= 5 for one in found.values())
    assert measure(model, clips[:1], 99.0) == {}
