"""Tables of images through the ``datasets`` library: hub names and local folders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attndrift.data.errors import DataError, DatasetUnavailable

REACH_TIMEOUT = 5.0
"""Seconds after which the hub counts as out of reach."""


def _reachable() -> bool:
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=REACH_TIMEOUT)
    except Exception:
        # What the client raises depends on its transport; any failure means that it cannot be used.
        return False
    return True


@contextmanager
def _only_cached() -> Iterator[None]:
    """The library's offline mode: a download that is there is found, and nothing is tried for minutes."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


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


def load_hub(
    name: str, *, config: str | None, revision: str | None, cache_dir: Path | None, where: str
) -> dict[str, Any]:
    """Splits of a hub dataset, downloaded or from the library's cache; its code is never run.

    Raises :class:`DatasetUnavailable` within seconds where the hub is out of reach and nothing is cached.
    """
    import datasets

    options: dict[str, Any] = {"name": config, "revision": revision}
    if cache_dir is not None:
        options["cache_dir"] = str(cache_dir)
    reachable = _reachable()
    try:
        if reachable:
            return dict(datasets.load_dataset(name, **options))
        with _only_cached():
            return dict(datasets.load_dataset(name, **options))
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        if not reachable:
            raise DatasetUnavailable(
                f"{where}: the hub is out of reach and {name!r} is not in the cache of `datasets`. Put a "
                f"copy into the folder named by ATTNDRIFT_DATA (as `{where}/`), give its `path`, or connect"
            ) from error
        absent = isinstance(error, (ConnectionError, FileNotFoundError))
        kind = DatasetUnavailable if absent else DataError
        raise kind(f"{where}: the hub dataset {name!r} cannot be loaded: {first}") from error


def load_folder(path: Path, *, config: str | None, cache_dir: Path | None, where: str) -> dict[str, Any]:
    """Splits of a local folder of Parquet files (or what else ``datasets.load_dataset(PATH)`` reads)."""
    import datasets

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
        # The library raises its own, pyarrow's and the standard errors, some with the cause only inside.
        cause = error.__cause__ or error
        first = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise DataError(
            f"{where}: {path} cannot be read as a dataset: {first}. Expected: Parquet files "
            "(`data/train-*.parquet`, `data/test-*.parquet`), or folders of images "
            "(`train/CLASS/*.jpg`, `test/CLASS/*.jpg`)"
        ) from error
