"""Tables of images in hub datasets and local folders: which files hold which split, and only those are read.

A dataset of the hub is asked for its commit and its list of files; of these the files of the splits that are needed
are downloaded into the cache of ``huggingface_hub``, where every later call finds them, with or without a network.
Its code is never run.
"""

from __future__ import annotations

import fnmatch
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attndrift.data.errors import DataError, DatasetUnavailable, some
from attndrift.data.webdataset import about_files, tar_splits
from attndrift.files import sha256

# Imports inside functions: these packages take time to load, which only who needs them pays.

README = "README.md"

_SHARD = re.compile(r"(?:^|/)([A-Za-z][\w.]*?)(?:-\d+-of-\d+(?:-[0-9a-f]+)?)?\.parquet$")


@contextmanager
def _no_bars() -> Iterator[None]:
    import datasets

    silent = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not silent:
            datasets.enable_progress_bars()


# Which files hold which split


def read_card(readme: Path) -> dict[str, Any]:
    """The metadata at the head of a dataset's README; empty where there is none."""
    import yaml

    try:
        head = re.match(r"\s*---\r?\n(.*?)\r?\n---", readme.read_text(encoding="utf-8"), re.DOTALL)
        card = yaml.safe_load(head[1]) if head else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return card if isinstance(card, dict) else {}


def _entry(entries: Any, config: str | None, where: str) -> dict[str, Any] | None:
    """The entry of the configuration ``config`` in a card's list; without a name, the default one."""
    listed = [entry for entry in ([entries] if isinstance(entries, dict) else entries or []) if isinstance(entry, dict)]
    named = {str(entry.get("config_name", "default")): entry for entry in listed}
    if not named:
        return None
    if config is not None:
        if config not in named:
            raise DataError(f"{where}: no configuration `{config}` (config). There are {some(named)}")
        return named[config]
    chosen = [entry for entry in listed if entry.get("default")] or [named[name] for name in named if name == "default"]
    if not chosen and len(named) > 1:
        raise DataError(f"{where}: there are several configurations ({some(named)}); name one as `config`")
    return chosen[0] if chosen else listed[0]


def split_files(
    files: Sequence[str], card: Mapping[str, Any], config: str | None, where: str
) -> dict[str, tuple[str, ...]] | None:
    """Parquet or tar files by split, from the card's ``configs`` or the files' names; None where neither says it.

    Raises :class:`DataError` for a configuration that is not there.
    """
    entry = _entry(card.get("configs"), config, where)
    if entry is not None and isinstance(entry.get("data_files"), list):
        found: dict[str, tuple[str, ...]] = {}
        for item in entry["data_files"]:
            if not isinstance(item, dict) or "path" not in item:
                return None
            patterns = [item["path"]] if isinstance(item["path"], str) else item["path"]
            matched = tuple(sorted(f for f in files if any(fnmatch.fnmatchcase(f, str(p)) for p in patterns)))
            found[str(item.get("split", "train"))] = matched
        found = {split: matched for split, matched in found.items() if matched}
        return found if found and all(f.endswith(".parquet") for m in found.values() for f in m) else None
    parquet = sorted(f for f in files if f.endswith(".parquet") and not f.startswith("."))
    if not parquet:
        return tar_splits(files)
    if config is not None:
        parquet = [f for f in parquet if config in f.split("/")[:-1]] or parquet
    if len({f.rpartition("/")[0] for f in parquet}) != 1:
        return None
    by_split: dict[str, list[str]] = {}
    for file in parquet:
        match = _SHARD.search(file)
        if match is None:
            return None
        by_split.setdefault(match[1], []).append(file)
    return {split: tuple(found) for split, found in by_split.items()}


# What the hub says of a dataset


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the hub at one commit.

    Attributes:
        name, config: as asked for.
        commit: the commit that the hub, or the cache, has for the revision.
        splits: files by split; None where they could not be told, and everything is downloaded.
        sizes: bytes by file.
        checksums: SHA-256 of the large files, as the hub states them.
        card: the metadata of its README.
        from_cache: the hub was not asked, or is out of reach.
    """

    name: str
    commit: str
    config: str | None = None
    splits: Mapping[str, tuple[str, ...]] | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
    from_cache: bool = False

    def files(self, splits: Sequence[str] | None = None) -> list[str]:
        """Files of ``splits`` (all by default), or every file where splits could not be told."""
        if self.splits is None:
            return list(self.sizes)
        return [file for split in splits or list(self.splits) for file in self.splits.get(split, ())]

    @property
    def in_tars(self) -> bool:
        """Whether the images are in tar files."""
        return bool(self.splits) and all(file.endswith(".tar") for file in self.files())

    def cached(self, file: str) -> Path | None:
        """Where ``file`` is on this machine, or None."""
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.name, file, repo_type="dataset", revision=self.commit)
        return Path(path) if isinstance(path, str) and Path(path).exists() else None

    def missing(self, splits: Sequence[str] | None = None) -> dict[str, int]:
        """Bytes by file of what is still to be downloaded for ``splits``."""
        about = about_files(list(self.sizes), splits or list(self.splits or ())) if self.in_tars else []
        return {file: self.sizes.get(file, 0) for file in [*self.files(splits), *about] if self.cached(file) is None}

    def read_column(self, split: str, column: str) -> NDArray[np.int64]:
        """One column of integers of ``split`` without its download: the hub sends the parts of the files that hold it."""
        import pyarrow.parquet as pq
        from huggingface_hub import HfFileSystem

        from attndrift import hub_client

        def read() -> NDArray[np.int64]:
            system, parts = HfFileSystem(), []
            for file in (self.splits or {})[split]:
                with system.open(f"datasets/{self.name}@{self.commit}/{file}", block_size=2**18) as stream:
                    parts.append(pq.read_table(stream, columns=[column]).column(0).to_numpy())
            return np.concatenate(parts)

        return hub_client.within(3 * hub_client.SILENCE, read)

    def info(self) -> Mapping[str, Any]:
        """What the card says of this configuration: ``features``, and ``splits`` with their ``num_examples``."""
        try:
            return _entry(self.card.get("dataset_info"), self.config, self.name) or {}
        except DataError:
            return {}


_answers: dict[tuple[object, ...], HubDataset] = {}


def find_hub(name: str, *, config: str | None, revision: str | None, where: str) -> HubDataset:
    """Ask the hub for a dataset's commit and files: one request, and its README. Where it is out of reach, the cache.

    A dataset is asked for once in a process, so that all runs of a study have one commit. Raises :class:`DatasetUnavailable` within seconds where neither has it, and :class:`DataError` for a
    configuration that is not there.
    """
    from huggingface_hub import constants

    key = (name, config, revision, constants.ENDPOINT, constants.HF_HUB_CACHE)
    if key not in _answers:
        _answers[key] = _find(name, config, revision, where)
    return _answers[key]


def forget_answers() -> None:
    """Ask the hub again for what it was asked in this process."""
    _answers.clear()


def _find(name: str, config: str | None, revision: str | None, where: str) -> HubDataset:
    from huggingface_hub import HfApi

    from attndrift import hub_client

    hub_client.bound_requests()
    if hub_client.why_unreachable() is not None:
        return _find_cached(name, config, revision, where)
    try:
        info = HfApi().dataset_info(name, revision=revision, files_metadata=True, timeout=hub_client.SILENCE)
        commit = str(info.sha)
        sizes = {item.rfilename: item.size or 0 for item in info.siblings or ()}
        readme = _download(name, README, revision or "main", commit) if README in sizes else None
    except Exception as error:
        # The client raises its own, the transport's and the standard errors.
        if isinstance(error, hub_client.HubUnreachable):
            return _find_cached(name, config, revision, where)
        raise DatasetUnavailable(
            f"{where}: the hub dataset {name!r} cannot be had: {hub_client.explain(error)}"
        ) from error
    card = read_card(readme) if readme is not None else {}
    if not _data_files(sizes):
        raise DataError(f"{where}: the hub dataset {name!r} holds no data files")
    checksums = {item.rfilename: item.lfs.sha256 for item in info.siblings or () if item.lfs is not None}
    return HubDataset(name, commit, config, split_files(list(sizes), card, config, where), sizes, checksums, card)


def _download(name: str, file: str, revision: str, commit: str) -> Path:
    """Download one file at ``commit``. By another revision than a commit, so that its name is known offline too."""
    from huggingface_hub import hf_hub_download

    path = Path(hf_hub_download(name, file, repo_type="dataset", revision=revision))
    if commit in path.parts:
        return path
    # The branch has moved since it was asked.
    return Path(hf_hub_download(name, file, repo_type="dataset", revision=commit))


def _find_cached(name: str, config: str | None, revision: str | None, where: str) -> HubDataset:
    from huggingface_hub import snapshot_download

    from attndrift import hub_client

    try:
        folder = Path(
            snapshot_download(
                name, repo_type="dataset", revision=revision, local_files_only=True, allow_patterns=README
            )
        )
    except Exception as error:
        raise DatasetUnavailable(
            f"{where}: the hub is out of reach ({hub_client.why_unreachable()}) and {name!r} is not in its cache on this "
            f"machine. Put a copy into the folder named by ATTNDRIFT_DATA (as `{where}/`), give its `path`, or connect"
        ) from error
    files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [file for file in files if _has_all_shards(file, files)]
    card = read_card(folder / README)
    sizes = {file: (folder / file).stat().st_size for file in files}
    splits = split_files(files, card, config, where)
    stated = _stated_splits(card, config, where)
    if splits is None and not _data_files(files):
        splits = {}
    if splits is not None:
        # A split that was not downloaded is one that is missing, not one that the dataset does not have.
        splits = {**stated, **splits}
        if not splits:
            raise DatasetUnavailable(
                f"{where}: of {name!r} only the description is in the cache on this machine, and the hub is out of "
                f"reach ({hub_client.why_unreachable()})"
            )
    return HubDataset(name, folder.name, config, splits, sizes, {}, card, from_cache=True)


def _data_files(files: Iterable[str]) -> list[str]:
    """Files that can hold images."""
    return [file for file in files if file != README and not file.startswith(".")]


def _stated_splits(card: Mapping[str, Any], config: str | None, where: str) -> dict[str, tuple[str, ...]]:
    """Patterns of the Parquet files by split, as the card states them; empty where it states none."""
    entry = _entry(card.get("configs"), config, where)
    stated = entry.get("data_files") if entry is not None else None
    found: dict[str, tuple[str, ...]] = {}
    for item in stated if isinstance(stated, list) else []:
        if not isinstance(item, dict) or "path" not in item:
            return {}
        patterns = [item["path"]] if isinstance(item["path"], str) else item["path"]
        if not all(str(pattern).endswith(("*", ".parquet")) for pattern in patterns):
            return {}
        found[str(item.get("split", "train"))] = tuple(str(pattern) for pattern in patterns)
    return found


def _has_all_shards(file: str, files: Sequence[str]) -> bool:
    """Whether ``files`` hold all the pieces that ``file`` is one of; a download may have been broken off."""
    match = re.search(r"-\d+-of-(\d+)", file)
    head = file[: match.start()] if match else ""
    return match is None or sum(one.startswith(f"{head}-") for one in files) == int(match[1])


# Reading


class Tables(Mapping[str, Any]):
    """Tables (``datasets.Dataset``) by split, each read when it is first asked for."""

    def __init__(self, splits: Sequence[str]) -> None:
        self._names = list(splits)
        self._read: dict[str, Any] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, split: str) -> Any:
        if split not in self._names:
            raise KeyError(split)
        if split not in self._read:
            self._read[split] = self.read(split)
        return self._read[split]

    @abstractmethod
    def read(self, split: str) -> Any:
        """Read the table of ``split``."""


class FolderTables(Tables):
    """Splits of a local folder."""

    def __init__(self, folder: Path, splits: Mapping[str, tuple[str, ...]], cache_dir: Path | None, where: str) -> None:
        super().__init__(list(splits))
        self._folder, self._files, self._cache, self._where = folder, splits, cache_dir, where

    def read(self, split: str) -> Any:
        """Read the table of ``split``."""
        paths = [self._folder / file for file in self._files[split]]
        return _read_parquet(split, paths, {}, self._cache, f"{self._where}: {self._folder}")


class HubTables(Tables):
    """Splits of a hub dataset; a split's files are downloaded when it is first asked for."""

    def __init__(self, dataset: HubDataset, revision: str | None, cache_dir: Path | None, where: str) -> None:
        super().__init__(list(dataset.splits or ()))
        self.dataset, self._revision, self._cache, self._where = dataset, revision, cache_dir, where

    def read(self, split: str) -> Any:
        """Download the files of ``split`` that are missing, and read its table."""
        paths = fetch(self.dataset, [split], self._revision, self._where)
        return _read_parquet(split, paths, self.dataset.info(), self._cache, f"{self._where}: {self.dataset.name}")


def fetch(dataset: HubDataset, splits: Sequence[str] | None, revision: str | None, where: str) -> list[Path]:
    """Download what is missing of ``splits``, and return the files. Raises :class:`DatasetUnavailable`."""
    return fetch_files(dataset, dataset.files(splits), revision, where)


def fetch_files(dataset: HubDataset, files: Sequence[str], revision: str | None, where: str) -> list[Path]:
    """The same of some ``files``."""
    from attndrift import hub_client

    paths = []
    for file in files:
        path = dataset.cached(file)
        if path is None:
            try:
                path = _download(dataset.name, file, revision or "main", dataset.commit)
            except Exception as error:
                raise DatasetUnavailable(
                    f"{where}: {file} of the hub dataset {dataset.name!r} could not be downloaded: "
                    f"{hub_client.explain(error)}. What has arrived is kept; the same command goes on from there"
                ) from error
            _check_whole(dataset, file, path, where)
        paths.append(path)
    return paths


def _check_whole(dataset: HubDataset, file: str, path: Path, where: str) -> None:
    """Raise :class:`DatasetUnavailable`, and remove the file, where it is not what the hub said that it is."""
    expected = dataset.checksums.get(file)
    if expected is not None and sha256(path) != expected:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise DatasetUnavailable(
            f"{where}: {file} of the hub dataset {dataset.name!r} arrived damaged (its SHA-256 is another than the hub "
            "states) and was removed; run the same command again"
        )


def _read_parquet(split: str, paths: Sequence[Path], info: Mapping[str, Any], cache_dir: Path | None, what: str) -> Any:
    import datasets

    options: dict[str, Any] = {} if cache_dir is None else {"cache_dir": str(cache_dir)}
    try:
        features = _card_features(paths[0], info)
        if features is not None:
            options["features"] = features
        with _no_bars():
            return datasets.load_dataset("parquet", data_files={split: [str(p) for p in paths]}, split=split, **options)
    except Exception as error:
        raise _unreadable(error, what) from error


def _card_features(path: Path, info: Mapping[str, Any]) -> Any:
    """The features that a card describes, for a file that does not hold its own."""
    import datasets
    import pyarrow.parquet as pq

    if not info.get("features") or b"huggingface" in (pq.read_schema(path).metadata or {}):
        return None
    from huggingface_hub import DatasetCardData

    described = datasets.info.DatasetInfosDict.from_dataset_card_data(DatasetCardData(dataset_info=dict(info)))
    return next(iter(described.values())).features


def _unreadable(error: Exception, what: str) -> DataError:
    # The library raises its own, pyarrow's and the standard errors, some with the cause only inside.
    cause = error.__cause__ or error
    first = (str(cause).splitlines() or [type(cause).__name__])[0]
    return DataError(
        f"{what} cannot be read as a dataset: {first}. Expected: Parquet files "
        "(`data/train-*.parquet`, `data/test-*.parquet`), or folders of images "
        "(`train/CLASS/*.jpg`, `test/CLASS/*.jpg`)"
    )


def load_hub(
    name: str, *, config: str | None, revision: str | None, cache_dir: Path | None, where: str
) -> tuple[Mapping[str, Any], HubDataset]:
    """Splits of a hub dataset, and the commit they are of; each split is downloaded when it is first asked for.

    Raises :class:`DatasetUnavailable` within seconds where the hub is out of reach and nothing is cached.
    """
    found = find_hub(name, config=config, revision=revision, where=where)
    if found.splits is not None:
        return HubTables(found, revision, cache_dir, where), found
    paths = fetch(found, None, revision, where)
    if not paths:
        raise DataError(f"{where}: the hub dataset {name!r} holds no files")
    folder = next(parent for parent in paths[0].parents if parent.name == found.commit)
    return load_folder(folder, config=config, cache_dir=cache_dir, where=where), found


def local_splits(path: Path, *, config: str | None, where: str) -> dict[str, tuple[str, ...]] | None:
    """Parquet files of a local folder by split; None where it holds its images otherwise."""
    files = [file.relative_to(path).as_posix() for file in path.rglob("*.parquet")]
    return split_files(files, read_card(path / README), config, where)


def load_folder(path: Path, *, config: str | None, cache_dir: Path | None, where: str) -> Mapping[str, Any]:
    """Splits of a local folder of Parquet files (or what else ``datasets.load_dataset(PATH)`` reads)."""
    import datasets

    splits = local_splits(path, config=config, where=where)
    if splits is not None:
        return FolderTables(path, splits, cache_dir, where)
    options: dict[str, Any] = {"name": config}
    if cache_dir is not None:
        options["cache_dir"] = str(cache_dir)
    try:
        with _no_bars():
            if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
                loaded = datasets.load_from_disk(str(path))
                return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
            return dict(datasets.load_dataset(str(path), **options))
    except Exception as error:
        raise _unreadable(error, f"{where}: {path}") from error
