"""Source ``hub``: any dataset on the Hugging Face hub that holds its audio in parquet files."""

from __future__ import annotations

from typing import Literal, Self

from tiny_audio.sources import SOURCES, Source, SourceContext
from tiny_audio.sources._columns import Columns, ColumnsConfig
from tiny_audio.sources._hub.source import HubSourceConfig, hub_source
from tiny_audio.sources._shared import NonEmpty


class HubConfig(HubSourceConfig, ColumnsConfig):
    """A dataset on the Hugging Face hub. Audio is fetched when it is needed."""

    name: Literal["hub"] = "hub"
    repo: NonEmpty
    """The dataset, such as `speechbrain/LoquaciousSet`."""
    config: NonEmpty | None = None
    """One of the dataset's configs (the hub calls them subsets). If None, the default config is used."""
    split: NonEmpty = "train"
    """One of the config's splits."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a config for tests. The tests use a local server instead of the hub."""
        return cls(repo="tiny/clips", split="test")


@SOURCES.register
def build_hub(config: HubConfig, context: SourceContext) -> Source:
    """Return the source of a dataset on the hub."""
    return hub_source(config, config.repo, config.config, config.split, Columns.of(config), context)
