"""Datasets by name or by description, as images by index with labels and ids.

Nothing is decoded before it is asked for. A registered dataset is taken from the data folder
(``data_dir``, else ``$ATTNDRIFT_DATA``) where that holds a copy, and from the hub otherwise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from attndrift.data import columns
from attndrift.data.dataset import Content, ImageDataset
from attndrift.data.derived import derive, whole_of
from attndrift.data.errors import DataError, some
from attndrift.data.hub import HubDataset, fetch_files, find_hub, load_folder, load_hub
from attndrift.data.readers import TableReader, class_folders, empty_folders, image_files, read_class_folders
from attndrift.data.registry import DATASETS, DatasetSpec, find_spec, row_of_hub
from attndrift.data.split_names import chosen_splits, is_split_name
from attndrift.data.webdataset import CLASS_NAMES, TEMPLATES, TarSet, about_files, check_shards, read_tars, tar_splits
from attndrift.extras import importing
from attndrift.registry import unknown_name

_TABLE_SUFFIXES = (".parquet", ".arrow", ".tar")


_MAPPING_KEYS = (
    "name", "path", "hub", "config", "revision", "image_column", "label_column", "id_column", "train_split",
    "test_split", "class_names", "origin", "licence", "train_size", "test_size", "derive",
)  # fmt: skip


def spec_of(source: str | DatasetSpec | Mapping[str, Any]) -> DatasetSpec:
    """The full description of a dataset given by name, by row or by a study file's mapping.

    In a mapping, ``path`` or ``hub`` says where the images are; whatever is not given (or None) is that of
    the registered dataset called ``name``, if there is one. Raises :class:`DataError` for unknown names
    and keys.
    """
    if isinstance(source, DatasetSpec):
        return source
    if isinstance(source, str):
        return find_spec(source)
    given = {key: value for key, value in source.items() if value is not None}
    for key in given:
        if key not in _MAPPING_KEYS:
            raise DataError(unknown_name("dataset key", key, _MAPPING_KEYS, f"allowed: {', '.join(_MAPPING_KEYS)}"))
    if "path" in given and "hub" in given:
        raise DataError("give `path` (a local folder) or `hub` (a hub name), not both")
    elsewhere = "path" in given or "hub" in given
    name = str(given.get("name") or Path(str(given.get("path") or given.get("hub") or "")).name)
    steps = tuple(given.pop("derive", ()))
    if name in DATASETS and not elsewhere:
        base = DATASETS[name]
    elif elsewhere:
        base = _elsewhere(name, given)
    else:
        base = find_spec(name)
    if "class_names" in given:
        given["class_names"] = _checked_names(given["class_names"], name)
    if "path" in given:
        given["path"] = Path(str(given["path"])).expanduser()
    own = {"name": "+".join([name, *steps]), "derive": (*base.derive, *steps), "id_required": "id_column" in given}
    return dataclasses.replace(base, **{**given, **own})


def _elsewhere(name: str, given: Mapping[str, Any]) -> DatasetSpec:
    if name in DATASETS:
        return dataclasses.replace(DATASETS[name], load=None, made="", hub=None, config=None, revision=None)
    if "hub" in given:
        row = row_of_hub(str(given["hub"]))
        return DatasetSpec(name, f"hub:{str(given['hub']).lower()}") if row is None else row
    return DatasetSpec(name=name, origin=f"path:{Path(str(given['path'])).expanduser().resolve()}")


def _checked_names(names: Any, where: str) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
        raise DataError(f"{where}: `class_names` must be a list of names, in label order")
    return tuple(names)


def find_local(spec: DatasetSpec, data_dir: str | Path | None = None) -> Path | None:
    """The folder of a local copy: ``spec.path``, else one of ``spec.folders`` in the data folder.

    Raises :class:`DataError` where a folder that was named does not exist.
    """
    if spec.path is not None:
        if not spec.path.is_dir():
            raise DataError(f"{spec.name}: the folder {spec.path} does not exist (`path`)")
        return spec.path
    named = data_dir if data_dir is not None else os.environ.get("ATTNDRIFT_DATA")
    if not named or spec.load is not None:
        return None
    root = Path(named).expanduser()
    if not root.is_dir():
        which = "data_dir" if data_dir is not None else "ATTNDRIFT_DATA"
        raise DataError(f"the data folder {root} does not exist ({which})")
    return next((root / folder for folder in spec.folders if (root / folder).is_dir()), None)


def load_dataset(
    source: str | DatasetSpec | Mapping[str, Any],
    *,
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> ImageDataset:
    """Open a dataset: a registered name, or a mapping such as a study file's ``source`` with a ``name``.

    ``data_dir`` replaces ``$ATTNDRIFT_DATA``; ``cache_dir`` is where ``datasets`` keeps its copies (default:
    its own). No image is decoded. Raises :class:`DataError` for what is missing, and
    :class:`DatasetUnavailable` for a hub dataset that is out of reach.
    """
    spec = spec_of(source)
    if spec.derive:
        return derive(load_dataset(whole_of(spec), data_dir=data_dir, cache_dir=cache_dir), spec)
    if spec.load is not None:
        return spec.make()
    with importing("study", f"the dataset `{spec.name}`"):
        return _read(spec, data_dir, cache_dir)


def _read(spec: DatasetSpec, data_dir: str | Path | None, cache_dir: str | Path | None) -> ImageDataset:
    cache = Path(cache_dir).expanduser() if cache_dir is not None else None
    local = find_local(spec, data_dir)
    if local is not None and is_image_folder(local):
        return _image_folder(spec, local)
    if local is not None and (splits := _local_tars(local)):
        about = {name: local / name for name in (CLASS_NAMES, TEMPLATES) if (local / name).is_file()}
        return _tars(spec, splits, about, lambda split: [local / file for file in splits[split]], {"path": str(local)})
    if local is not None:
        # A row's `config` is that of its hub repository; a local copy need not have it.
        config = spec.config if spec.path is not None else None
        tables = load_folder(local, config=config, cache_dir=cache, where=spec.name)
        return _tables(spec, tables, {"kind": "table", "path": str(local), "config": config})
    if spec.hub is None:
        raise DataError(f"{spec.name}: neither `path` nor `hub` says where the images are")
    asked = {"kind": "hub", "hub": spec.hub, "config": spec.config, "revision": spec.revision}
    found = find_hub(spec.hub, config=spec.config, revision=spec.revision, where=spec.name)
    if found.in_tars:
        assert found.splits is not None
        names = about_files(list(found.sizes), ())
        about = dict(zip(names, fetch_files(found, names, spec.revision, spec.name), strict=True))
        return _tars(spec, found.splits, about, partial(_fetched_tars, spec, found), {**asked, "commit": found.commit})
    tables, found = load_hub(spec.hub, config=spec.config, revision=spec.revision, cache_dir=cache, where=spec.name)
    return _tables(spec, tables, {**asked, "commit": found.commit})


def used_splits(spec: DatasetSpec, names: Collection[str]) -> list[str]:
    """The splits of ``names`` that train and test. Raises :class:`DataError` as :func:`chosen_splits` does."""
    return [name for name in chosen_splits(spec, names) if name is not None]


def _tables(spec: DatasetSpec, tables: Mapping[str, Any], source: Mapping[str, Any]) -> ImageDataset:
    # A split that nobody asks for is neither downloaded nor read.
    used = {name: tables[name] for name in used_splits(spec, tables)}
    features = next(iter(used.values())).features
    label = columns.label_column(spec, features, spec.name)
    image = columns.image_column(spec, features, spec.name)
    identity = columns.id_column(spec, features, spec.name)
    found = columns.classes_in(used, label, spec, spec.name)

    def opener(name: str) -> Callable[[], Content]:
        def open_split() -> Content:
            table, where = tables[name], f"{spec.name}, split `{name}`"
            for column in (image, label):
                if column not in table.features:
                    raise DataError(f"{where}: no column `{column}`. It has {', '.join(table.features)}")
            labels = columns.labels_of(table, label, found, where)
            if identity is not None and identity in table.features:
                ids = [str(value) for value in columns.values(table, identity)]
            else:
                ids = [f"{name}:{row}" for row in range(len(labels))]
            return TableReader(table, image), labels, ids

        return open_split

    used_columns = {"image_column": image, "label_column": label, "id_column": identity}
    return ImageDataset(spec, found, {name: opener(name) for name in tables}, {**source, **used_columns})


def _local_tars(path: Path) -> dict[str, tuple[str, ...]] | None:
    return tar_splits([file.relative_to(path).as_posix() for file in path.glob("*/*.tar")])


def _fetched_tars(spec: DatasetSpec, found: HubDataset, split: str) -> list[Path]:
    """The tar files of a split of a hub dataset, downloaded where they are missing."""
    counted = f"{split}/nshards.txt"
    if counted in found.sizes:
        fetch_files(found, [counted], spec.revision, spec.name)
    return fetch_files(found, found.files([split]), spec.revision, spec.name)


def _tars(
    spec: DatasetSpec,
    splits: Collection[str],
    about: Mapping[str, Path],
    tars: Callable[[str], list[Path]],
    source: Mapping[str, Any],
) -> ImageDataset:
    """A set in tar files. Of one to evaluate on, a class that has no image is left out (a class mask)."""
    told = TarSet.read(about, spec.name)
    if not told.class_names and spec.class_names is None:
        raise DataError(f"{spec.name}: there is no {CLASS_NAMES}. Give `class_names`, in label order")
    names = told.class_names or spec.class_names or ()

    @cache
    def read(name: str) -> Content:
        where, files = f"{spec.name}, split `{name}`", tars(name)
        check_shards(name, files, files[0].with_name("nshards.txt"), where)
        return read_tars(files, len(names), where)

    kept = np.arange(len(names))
    if spec.evaluation_only and spec.class_names is None:
        kept = np.unique(np.concatenate([read(name)[1] for name in used_splits(spec, splits)]))

    def opener(name: str) -> Content:
        reader, labels, ids = read(name)
        return reader, np.searchsorted(kept, labels).astype(np.int64), ids

    kind = {"kind": "webdataset", **source}
    openers = {name: partial(opener, name) for name in splits}
    return ImageDataset(spec, [names[one] for one in kept.tolist()], openers, kind, templates=told.templates)


def is_image_folder(path: Path) -> bool:
    """Whether ``path`` holds folders of images, and no table in itself or right below."""
    for entry in path.iterdir():
        if entry.suffix in _TABLE_SUFFIXES:
            return False
        if entry.is_dir() and any(file.suffix in _TABLE_SUFFIXES for file in entry.iterdir()):
            return False
    return any(class_folders(path, path))


def _image_folder(spec: DatasetSpec, path: Path) -> ImageDataset:
    """``path/SPLIT/CLASS/*.jpg``, or ``path/CLASS/*.jpg`` with one split, ``train``."""
    folders = _split_folders(spec, path) or {"train": path}
    _warn_of_stray(spec, path, image_files(path, path, deep=False))
    train, _ = chosen_splits(spec, folders)
    found = [folder.name for folder in class_folders(folders[train], path)]
    if not found:
        raise DataError(f"{spec.name}: {folders[train]} holds no class folders")
    _warn_of_empty(spec, path, [folders[name] for name in used_splits(spec, folders)], found)

    reached: dict[Path, Path] = {}

    def opener(name: str) -> Callable[[], Content]:
        return lambda: read_class_folders(folders[name], found, f"{spec.name}, split `{name}`", path, reached)

    return ImageDataset(
        spec, found, {name: opener(name) for name in folders}, {"kind": "image folder", "path": str(path)}
    )


def _split_folders(spec: DatasetSpec, path: Path) -> dict[str, Path]:
    """The folders of splits, by name; empty where the folders in ``path`` are classes.

    Raises :class:`DataError` for a folder with images of its own beside splits, and warns of what is left out.
    """
    tops = class_folders(path, path)
    nested = [top for top in tops if class_folders(top, path)]
    splits = {top.name for top in tops if is_split_name(top.name) or top.name in (spec.train_split, spec.test_split)}
    if not any(top.name in splits for top in nested):
        flat = [top for top in tops if image_files(top, path, deep=False)]
        return {} if flat else {top.name: top for top in nested}
    for top in tops:
        stray = image_files(top, path, deep=False)
        if stray and top.name not in splits:
            raise DataError(
                f"{spec.name}: {top} holds images and stands beside {some(one.name for one in nested)}, which are splits: "
                "is it a class? Move it into a split, or out of the dataset"
            )
        _warn_of_stray(spec, top, stray)
    return {top.name: top for top in nested}


def _warn_of_stray(spec: DatasetSpec, folder: Path, images: Sequence[Path]) -> None:
    if images:
        warnings.warn(
            f"{spec.name}: {len(images)} images of {folder} are left out, as they are in no class folder: "
            f"{some((file.name for file in images), 3)}",
            stacklevel=2,
        )


def _warn_of_empty(spec: DatasetSpec, path: Path, splits: Sequence[Path], classes: Collection[str]) -> None:
    """Warn of folders that are empty in all splits; one that is a class in training is refused when it is read."""
    found = [entry for split in splits for entry in empty_folders(split, path) if entry.name not in classes]
    if found:
        empty = [entry.relative_to(path).as_posix() for entry in found]
        warnings.warn(
            f"{spec.name}: empty folders in {path} are taken for no class: {some(empty)}. Put images into them, or remove them",
            stacklevel=2,
        )


def local_state(source: str | DatasetSpec | Mapping[str, Any], data_dir: str | Path | None = None) -> str | None:
    """A hash of the names, sizes and times of a dataset's local files: another one where they have changed.

    None for a dataset that is not in a local folder. Raises as :func:`load_dataset` does for what is missing.
    """
    spec = spec_of(source)
    folder = find_local(spec, data_dir)
    if folder is None:
        return None
    total, walked = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogatepass")), set()
    for where, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in walked:  # a link that climbs; reading the dataset says so
            folders.clear()
            continue
        walked.add(real)
        folders.sort()
        for name in sorted(files):
            with contextlib.suppress(OSError):
                found = os.stat(os.path.join(where, name))
                line = f"{where}\0{name}\0{found.st_size}\0{found.st_mtime_ns}\n"
                total.update(line.encode("utf-8", "surrogatepass"))
    return total.hexdigest()


def describe(source: str | DatasetSpec | Mapping[str, Any]) -> str:
    """Where the images of a dataset would come from, in words, without opening it."""
    spec = spec_of(source)
    if spec.load is not None:
        return spec.made
    local = find_local(spec)
    return str(local) if local else f"hub: {spec.hub}"
