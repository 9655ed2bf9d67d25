"""Source ``loquacious``: the Loquacious Set, 25,000 hours of English (Parcollet et al., arXiv 2505.21578)."""

from __future__ import annotations

from typing import Literal, Self

from tiny_audio.sources import SOURCES, Source, SourceContext
from tiny_audio.sources._columns import Columns
from tiny_audio.sources._hub.source import HubSourceConfig, hub_source

COLUMNS = Columns(audio="wav", text="text", duration="duration", id="ID", speaker="spk_id", metadata=("sex",))
"""Unknown speakers and sexes are null, and are left out of the metadata."""


class LoquaciousConfig(HubSourceConfig):
    """The Loquacious Set on the Hugging Face hub: read, spontaneous, clean and noisy English.

    Transcripts are those of the corpus: upper case, A to Z, spaces and apostrophes only, numbers as words. Set
    `data.target_text` to train on another form. Metadata: `speaker` and `sex`. Some clips last 100 s.
    """

    name: Literal["loquacious"] = "loquacious"
    config: Literal["small", "medium", "large", "clean"] = "large"
    """The training split: 250 (`small`), 2,500 (`medium`) or 25,000 hours (`large`), or only the clean part of the
    corpus (`clean`). The dev and test splits are the same for all four."""
    split: Literal["train", "dev", "test"] = "train"
    """One of the splits. Use `dev` to compare models, and `test` once at the end."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a config for tests. The tests use a local server instead of the hub."""
        return cls(config="small", split="dev", max_shards=1)


@SOURCES.register
def build_loquacious(config: LoquaciousConfig, context: SourceContext) -> Source:
    """Return the source of a split of the corpus."""
    return hub_source(config, "speechbrain/LoquaciousSet", config.config, config.split, COLUMNS, context)
