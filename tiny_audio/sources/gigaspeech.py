"""Source ``gigaspeech``: GigaSpeech, 10,000 hours of English (Chen et al., Interspeech 2021, arXiv 2106.06909)."""

from __future__ import annotations

from typing import Literal, Self

from tiny_audio.sources import SOURCES, Source, SourceContext
from tiny_audio.sources._columns import Columns
from tiny_audio.sources._hub.source import HubSourceConfig, hub_source

COLUMNS = Columns(
    audio="audio",
    text="text",
    duration="end_time",
    begin="begin_time",
    id="segment_id",
    speaker=None,
    metadata=("audio_id",),
    silence=("<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>"),
)
"""Few speakers are known, so the metadata has the recording (``audio_id``) instead."""


class GigaSpeechConfig(HubSourceConfig):
    """GigaSpeech on the Hugging Face hub: audiobooks, podcasts and YouTube.

    The corpus is gated: accept its terms at https://huggingface.co/datasets/speechcolab/gigaspeech. Then log in with
    `hf auth login`, or set HF_TOKEN. Transcripts are those of the corpus: upper case, with `<COMMA>`, `<PERIOD>`,
    `<QUESTIONMARK>` and `<EXCLAMATIONPOINT>`. `data.target_text` converts these markers to punctuation or removes them.
    Segments whose transcript is only `<SIL>`, `<MUSIC>`, `<NOISE>` or `<OTHER>` are listed as dropped. With
    `data.keep_empty`, they are kept for training, with an empty transcript. In evaluation sets they are always dropped.
    Metadata: `audio_id`, which names the recording. The metadata does not name speakers. To group clips by recording
    for confidence intervals, set `evaluation.group_by: audio_id`.
    """

    name: Literal["gigaspeech"] = "gigaspeech"
    config: Literal["xs", "s", "m", "l", "xl"] = "xl"
    """The size of the training split: 10, 250, 1,000, 2,500 or 10,000 hours. The dev and test splits are the same for
    all sizes."""
    split: Literal["train", "dev", "test"] = "train"
    """One of the splits. Use `dev` to compare models, and `test` once at the end."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a config for tests. The tests use a local server instead of the hub."""
        return cls(config="xs", split="dev")


@SOURCES.register
def build_gigaspeech(config: GigaSpeechConfig, context: SourceContext) -> Source:
    """Return the source of a split of the corpus."""
    # On the hub, dev and test are separate configs, and the split of the config dev is called "validation".
    subset = config.config if config.split == "train" else config.split
    split = "validation" if config.split == "dev" else config.split
    return hub_source(config, "speechcolab/gigaspeech", subset, split, COLUMNS, context)
