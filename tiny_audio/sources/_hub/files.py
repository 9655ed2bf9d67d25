"""Find the commit and the files of a dataset split on the hub. The results are cached."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiny_audio.config import UserError
from tiny_audio.registry import did_you_mean
from tiny_audio.runtime.files import write_atomically
from tiny_audio.sources._hub.client import explained, retried
from tiny_audio.sources._shared import cache_key

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo

_LOG = logging.getLogger(__name__)
_SUFFIX = ".parquet"
_CONVERTED = "refs/convert/parquet"
"""The branch to which the hub writes its own conversion of a dataset: files such as ``config/split/0000.parquet``."""
_TRY_CONVERTED = f"the hub converts many datasets to parquet; try revision: {_CONVERTED}"


@dataclass(frozen=True, slots=True)
class Split:
    """A split of a dataset on the hub, such as ``train``."""

    repo: str
    config: str | None
    """One of the dataset's configs (subsets). If None, the default config is used."""
    split: str
    revision: str
    """A branch, a tag or a commit."""

    def __str__(self) -> str:
        return "/".join([self.repo, *([self.config] if self.config else []), f"{self.split}@{self.revision}"])


@dataclass(frozen=True, slots=True)
class Shards:
    """The files of a split at a commit."""

    commit: str
    paths: tuple[str, ...]
    """Paths in the repository."""


def pinned_shards(split: Split, cache_dir: Path, commit: str | None) -> Shards:
    """Return the shards of a split: its parquet files at a commit.

    The commit and the list of shards are looked up once and stored in ``cache_dir``. Later runs on the same machine
    then use the same shards, and need no network to find them.

    Args:
        commit: the commit to use. If None, the stored commit is used. If no commit is stored either, the newest commit
            of ``split.revision`` is looked up.

    Raises:
        UserError: the split does not exist, or the hub cannot be reached.
    """
    from huggingface_hub import constants

    def pin_of(*identity: Any) -> Path:
        key = cache_key(json.dumps([constants.ENDPOINT, *identity], sort_keys=True))
        return cache_dir / split.repo.replace("/", "--") / f"{key}.json"

    pin = pin_of(asdict(split))
    shards = _kept(pin)
    if commit is not None and (shards is None or shards.commit != commit):
        pin = pin_of(asdict(split), commit)  # a separate file, because the first file may contain another commit
        shards = _kept(pin)
    if shards is not None:
        return shards
    shards = _asked(split, commit or split.revision)
    _LOG.info("%s is pinned to commit %s; to use the newest commit, delete %s", split.repo, shards.commit, pin)
    try:
        pin.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(pin, json.dumps({**asdict(split), "commit": shards.commit, "paths": shards.paths}, indent=1))
    except OSError as error:
        raise UserError(f"the cache folder {pin.parent} cannot be written: {error}") from error
    return shards


def _kept(pin: Path) -> Shards | None:
    if not pin.exists():
        return None
    try:
        kept = json.loads(pin.read_text(encoding="utf-8"))
        return Shards(kept["commit"], tuple(kept["paths"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{pin} is damaged; delete it to ask the hub again") from error


def _asked(split: Split, revision: str) -> Shards:
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        info = retried(lambda: HfApi().dataset_info(split.repo, revision=revision))
        assert info.sha is not None
        return Shards(info.sha, _paths(split, info, info.sha))
    except (OSError, httpx2.HTTPError, HFValidationError) as error:
        raise explained(error, split.repo, revision) from error


def _paths(split: Split, info: DatasetInfo, commit: str) -> tuple[str, ...]:
    """Return the paths of the split's parquet files.

    As in the ``datasets`` library, the dataset card may list the files of each split. If the card lists no files, the
    names of the files and folders determine the split of each file.
    """
    from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns, sanitize_patterns

    if split.revision == _CONVERTED:
        return _converted_paths(split, info)
    root = f"hf://datasets/{split.repo}@{commit}"
    config = _config(split, info)
    folder = f"{root}/{config['data_dir']}" if config.get("data_dir") else root
    try:
        if config.get("data_files") is not None:
            patterns = sanitize_patterns(config["data_files"])
        else:
            patterns = retried(lambda: get_data_patterns(folder))
    except EmptyDatasetError as error:
        raise UserError(
            f"{split.repo} has no data files that the datasets library recognizes; {_TRY_CONVERTED}"
        ) from error
    names = [str(name) for name in patterns]
    if split.split not in names:
        which = f" of config {split.config!r}" if split.config else ""
        raise UserError(f"{split.repo} has no split {split.split!r}{which}; {did_you_mean(split.split, names)}")
    wanted = {split.split: patterns[split.split]}
    try:
        found = retried(lambda: DataFilesDict.from_patterns(wanted, base_path=folder, allowed_extensions=[_SUFFIX]))
        files = sorted(found[split.split])
    except FileNotFoundError:
        files = []
    if not files:
        raise UserError(f"the split {split.split!r} of {split.repo} has no {_SUFFIX} files; {_TRY_CONVERTED}")
    return tuple(file.removeprefix(f"{root}/") for file in files)


def _converted_paths(split: Split, info: DatasetInfo) -> tuple[str, ...]:
    tree: dict[str, dict[str, list[str]]] = {}
    for file in info.siblings or ():
        steps = file.rfilename.split("/")
        if len(steps) == 3 and file.rfilename.endswith(_SUFFIX):
            tree.setdefault(steps[0], {}).setdefault(steps[1], []).append(file.rfilename)
    name = split.config or (next(iter(tree)) if len(tree) == 1 else None)
    if name is None:
        raise UserError(f"{split.repo} has several configs; set config to one of {', '.join(tree)}")
    if name not in tree:
        raise UserError(f"{split.repo} has no config {name!r} at {_CONVERTED}; {did_you_mean(name, tree)}")
    if split.split not in tree[name]:
        raise UserError(
            f"{split.repo} has no split {split.split!r} of config {name!r} at {_CONVERTED}; "
            f"{did_you_mean(split.split, tree[name])}"
        )
    return tuple(sorted(tree[name][split.split]))


def _config(split: Split, info: DatasetInfo) -> dict[str, Any]:
    """Return the config of the split from the dataset card. Return an empty dict if the dataset has no configs."""
    from datasets.utils.metadata import MetadataConfigs

    card = info.card_data
    configs: Any = MetadataConfigs.from_dataset_card_data(card) if card is not None else {}
    if not configs:
        if split.config not in (None, "default"):
            raise UserError(
                f"{split.repo} has no configs, but config is {split.config!r}; remove config, or try revision: "
                f"{_CONVERTED}, the hub's conversion to parquet"
            )
        return {}
    name = split.config or configs.get_default_config_name()
    if name is None:
        raise UserError(f"{split.repo} has several configs; set config to one of {', '.join(configs)}")
    if name not in configs:
        raise UserError(f"{split.repo} has no config {name!r}; {did_you_mean(name, configs)}")
    config: dict[str, Any] = configs[name]
    return config
