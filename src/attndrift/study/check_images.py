"""The part of a study's check that concerns images: target and transfer sets, and their classes."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attndrift import hub_client
from attndrift.data.columns import spoken_names
from attndrift.data.corruptions import FROST, frost_files, frost_folder
from attndrift.data.dataset import ImageDataset
from attndrift.data.derived import whole_of
from attndrift.data.derived_names import corruption_of, share_classes
from attndrift.data.errors import DataError, DatasetUnavailable, some
from attndrift.data.hub import HubDataset, find_hub, local_splits
from attndrift.data.prompts import clean_class_name
from attndrift.data.registry import DatasetSpec
from attndrift.data.sources import find_local, is_image_folder, load_dataset, spec_of, used_splits
from attndrift.study.check_findings import LEFT_OUT, Check, Download, Finding, counted, problem_message, size
from attndrift.study.check_prompts import check_prompts
from attndrift.study.check_splits import SetContents, check_splits
from attndrift.study.dataset_splits import source_of, why_no_target
from attndrift.study.settings import Study

# Imports inside functions: these packages take time to load, which only who needs them pays.


def _sets(study: Study) -> dict[str, str | dict[str, Any]]:
    """Every target and transfer set of ``study``, as :func:`attndrift.data.load_dataset` takes it, by what it is."""
    sets: dict[str, str | dict[str, Any]] = {}
    for run in study.runs:
        settings = run.settings
        sets.setdefault(f"dataset {settings.dataset}", source_of(settings.dataset, settings))
        for name in settings.transfer:
            sets.setdefault(f"transfer set {name}", source_of(name, settings))
        reference = settings.own.get("reference")
        if reference:
            sets.setdefault(f"reference set {reference}", source_of(reference, settings))
    return sets


def _optional(study: Study) -> set[str]:
    """The transfer sets without which every run that has them goes on."""
    runs = [run.settings for run in study.runs]
    needed = {name for one in runs if one.missing_sets == "error" for name in one.transfer}
    return {f"transfer set {name}" for one in runs for name in one.transfer if name not in needed}


def fetch_images(study: Study, wanted: Collection[str]) -> None:
    """Download and open the sets named in ``wanted``. Raises :class:`DataError`, also for splits they cannot give."""
    here = {what: _opened(load_dataset(source)) for what, source in _sets(study).items() if what in wanted}
    found = Check(study.name)
    check_splits(found, study, here)
    check_prompts(found, study, {one.name: one for one in here.values()}, {}, full=False)
    if found.problems:
        raise DataError(problem_message(found))


def check_images(found: Check, study: Study, configs: Mapping[str, Mapping[str, Any]], *, full: bool) -> None:
    """Add what is found of every dataset and transfer set of ``study``, of their overlap, and of their prompts.

    ``configs``: of the models, by model.
    """
    sets: dict[str, DatasetSpec] = {}
    for what, source in _sets(study).items():
        try:
            sets[what] = spec_of(source)
        except DataError as error:
            found.add(what, "problem", str(error))
    known: dict[str, SetContents] = {}
    optional = _optional(study)
    for what, spec in sets.items():
        if spec.evaluation_only and what.startswith("dataset "):
            found.add(what, "problem", why_no_target(spec.name))
            continue
        whole = next((other for other in known if spec.derive and sets[other] == whole_of(spec)), None)
        try:
            if any(asked is not None and asked[0] == FROST for asked in map(corruption_of, spec.derive)):
                frost_files(frost_folder())
            if whole is not None:
                contents: SetContents | None = known[whole].derived(spec)
                found.add(what, "ok", f"made of {known[whole].name}")
            else:
                contents = _dataset(found, what, spec, full=full)
        except DatasetUnavailable as error:
            if what in optional:
                reason = str(error).removeprefix(f"{spec.name}: ")
                found.add(what, "warning", f"{LEFT_OUT}: {reason}")
            else:
                _unavailable(found, what, spec, error)
        except (DataError, OSError) as error:
            found.add(what, "problem", str(error).removeprefix(f"{spec.name}: "), _remedy(spec))
        else:
            if contents is not None:
                known[what] = contents
    _overlap(found, study, {spec.name: spec for spec in sets.values()})
    check_splits(found, study, known)
    check_prompts(found, study, {sets[what].name: one for what, one in known.items()}, configs, full=full)
    _merge_refusals(found)


def _remedy(spec: DatasetSpec) -> str:
    if spec.path is not None and not spec.path.is_dir():
        return "correct `path` in the `source` of the dataset, or put the images there"
    return ""


def _merge_refusals(found: Check) -> None:
    """One finding for a refusal that several things met: it is the hub's, and has one remedy."""
    refusals = hub_client.refusals()
    met: dict[str, list[Finding]] = {}
    remedies: dict[str, str] = {}
    for finding in found.problems:
        sentence = next((one for one in refusals if finding.detail.endswith(one)), None)
        if sentence is not None:
            fault, remedy = refusals[sentence]
            met.setdefault(fault, []).append(finding)
            remedies.setdefault(fault, remedy)
    for fault, findings in met.items():
        if len(findings) > 1:
            found.merge(f"hub {hub_client.endpoint()}", fault, remedies[fault], findings)


def _unavailable(found: Check, what: str, spec: DatasetSpec, error: DatasetUnavailable) -> None:
    reason = hub_client.why_unreachable()
    if reason is not None:
        found.out_of_reach[what] = reason
    else:
        remedy = f"check the name, log in, or put a copy into ATTNDRIFT_DATA as {spec.name}/"
        if what.startswith("transfer set "):
            remedy += "; `missing_sets: skip` goes on without it (--set missing_sets=skip)"
        found.add(what, "problem", str(error).removeprefix(f"{spec.name}: "), remedy)


def _dataset(found: Check, what: str, spec: DatasetSpec, *, full: bool) -> SetContents | None:
    """Add what is found of one set, and return its classes and counts, where they can be told without a download."""
    if spec.derive:
        whole = _dataset(found, what, whole_of(spec), full=full)
        return None if whole is None else whole.derived(spec)
    local = find_local(spec)
    if spec.load is None and local is None:
        return _on_hub(found, what, spec, full=full)
    where = f"folder {local}" if local else spec.made
    if full:
        contents = _opened(load_dataset(spec))
        _describe(found, what, [where], contents)
        return contents
    if local is None or is_image_folder(local):
        told = _opened(load_dataset(spec))
    else:
        files = local_splits(local, config=spec.config if spec.path is not None else None, where=spec.name)
        used = {name: [local / file for file in files[name]] for name in used_splits(spec, files)} if files else {}
        told = _read_labels(spec, used, {}) if used else _opened(load_dataset(spec))
    found.add(what, "ok", where)
    return told


def _opened(dataset: ImageDataset) -> SetContents:
    splits = (dataset.train_split, *([dataset.test_split] if dataset.test_split else []))
    counts = {
        name: np.bincount(dataset.split(name).labels, minlength=len(dataset.class_names)).astype(np.int64)
        for name in splits
    }
    return SetContents(
        dataset.name,
        dataset.class_names,
        dataset.train_split,
        dataset.test_split,
        counts,
        dataset.templates,
        dataset.prompts,
    )


def _read_labels(spec: DatasetSpec, files: Mapping[str, Sequence[Path]], described: Mapping[str, Any]) -> SetContents:
    """Classes and counts of Parquet files, of which the column of labels is read; all of it where that does not tell them.

    ``described``: features by column, as a card states them. Raises :class:`DataError` for a column that was asked
    for and is not there, and for files that are no Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    train, *held_out = files
    file = files[train][0]
    try:
        schema = pq.read_schema(file)
        _check_columns(spec, schema.names)
        column = spec.label_column or "label"
        if column not in schema.names:
            return _opened(load_dataset(spec))
        tables: dict[str, list[Any]] = {}
        for split, paths in files.items():
            for file in paths:
                # Not `read_table`, which imports pandas.
                with pq.ParquetFile(file) as table:
                    tables.setdefault(split, []).append(table.read(columns=[column]).column(0))
    except DataError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{file} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    labels = {split: [label for part in parts for label in part.to_pylist()] for split, parts in tables.items()}
    own = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    stated = own.get(column, {}).get("names") or _stated_names(described, column)
    if pa.types.is_string(schema.field(column).type) or pa.types.is_large_string(schema.field(column).type):
        stated = sorted({label for values in labels.values() for label in values if label is not None})
        place = {name: index for index, name in enumerate(stated)}
        labels = {split: [place.get(label) for label in values] for split, values in labels.items()}
    names = stated or spec.class_names
    if not names or any(
        type(label) is not int or not 0 <= label < len(names) for values in labels.values() for label in values
    ):
        # Opening the dataset says what is wrong, or how its labels are to be taken.
        return _opened(load_dataset(spec))
    classes = tuple(clean_class_name(name) for name in spoken_names(spec, names, spec.name))
    counts = {split: np.bincount(values, minlength=len(names)) for split, values in labels.items()}
    return SetContents(spec.name, classes, train, held_out[0] if held_out else None, counts, None, spec.prompts)


def _check_columns(spec: DatasetSpec, names: Collection[str]) -> None:
    """Raise :class:`DataError` where a column that was asked for is not there."""
    for role in ("image_column", "label_column"):
        column = getattr(spec, role)
        if column is not None and column not in names:
            raise DataError(f"no column `{column}` ({role}). The columns are {', '.join(names)}")


def _on_hub(found: Check, what: str, spec: DatasetSpec, *, full: bool) -> SetContents | None:
    if spec.hub is None:
        raise DataError(f"{spec.name}: neither `path` nor `hub` says where the images are")
    remote = find_hub(spec.hub, config=spec.config, revision=spec.revision, where=spec.name)
    splits = None if remote.splits is None else used_splits(spec, remote.splits)
    missing = remote.missing(splits)
    columns = {str(item.get("name")): item.get("dtype") for item in remote.info().get("features") or ()}
    if not missing:
        where = f"{spec.hub} at {remote.commit}, in the cache"
        contents: SetContents | None = None
        if full or remote.in_tars:
            contents = _opened(load_dataset(spec))
            _describe(found, what, [where], contents)
            return contents
        if splits:
            paths = {name: [path for file in remote.files([name]) if (path := remote.cached(file))] for name in splits}
            contents = _read_labels(spec, paths, columns)
        found.add(what, "ok", where)
        return contents
    if remote.from_cache:
        raise DatasetUnavailable(f"{spec.name}: {some(missing)} are not in the cache")
    from huggingface_hub import constants

    found.downloads.append(Download(what, sum(missing.values()), str(constants.HF_HUB_CACHE)))
    parts = [f"{spec.hub} at {remote.commit}"]
    if columns:
        _check_columns(spec, columns)
    classes = _described_classes(spec, columns)
    download = f"{size(sum(missing.values()))} to download"
    if not classes or splits is None:
        found.add(what, "ok", "; ".join([*parts, *(splits or ()), download]))
        return None
    counts: dict[str, NDArray[np.int64]] = {}
    uncounted = list(splits)
    if full:
        counts, uncounted = _remote_counts(remote, splits, spec.label_column or "label", len(classes))
    contents = SetContents(
        spec.name, classes, splits[0], splits[1] if len(splits) > 1 else None, counts, None, spec.prompts
    )
    _describe(found, what, parts, contents, [*uncounted, download])
    return contents


def _described_classes(spec: DatasetSpec, columns: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names that a card states, as they are spoken; empty where it states none."""
    stated = _stated_names(columns, spec.label_column or "label")
    return tuple(clean_class_name(name) for name in spoken_names(spec, stated, spec.name)) if stated else ()


def _stated_names(columns: Mapping[str, Any], column: str) -> list[str]:
    described = columns.get(column)
    names = described.get("class_label", {}).get("names") if isinstance(described, dict) else None
    return [str(name) for name in (names.values() if isinstance(names, dict) else names or ())]


def _remote_counts(
    remote: HubDataset, splits: Sequence[str], column: str, classes: int
) -> tuple[dict[str, NDArray[np.int64]], list[str]]:
    """Images a class of a set that is not downloaded: the hub sends the column of labels alone.

    Returns them by split, and in words the splits of which the column could not be had.
    """
    stated = {str(item.get("name")): item.get("num_examples") for item in remote.info().get("splits") or ()}
    counts: dict[str, NDArray[np.int64]] = {}
    uncounted = []
    for split in splits:
        try:
            counts[split] = np.bincount(remote.read_column(split, column), minlength=classes).astype(np.int64)
        except Exception:
            # What the transport raises depends on its version. The images are counted again once they are here.
            uncounted.append(f"{split}: {stated.get(split) or '?'} images")
    return counts, uncounted


def _counted(split: str, counts: NDArray[np.int64]) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{split}: {counted(int(counts.sum()), 'image')}, {low:,}{'' if low == high else f' to {high:,}'} a class"


def _describe(found: Check, what: str, where: Sequence[str], contents: SetContents, more: Sequence[str] = ()) -> None:
    """Add the classes of a set and how many images they have. ``more`` stands at the end."""
    names, empty = contents.class_names, []
    parts = [*where, f"{counted(len(names), 'class', 'classes')} ({some(names, 3)})"]
    for split, counts in contents.counts.items():
        parts.append(_counted(split, counts))
        empty += [f"{names[label]} ({split})" for label in np.flatnonzero(counts == 0)]
    parts += more
    if empty:
        detail = f"{'; '.join(parts)}; no images of {some(empty)}"
        found.add(what, "warning", detail, "add images, or leave the classes out")
    else:
        found.add(what, "ok", "; ".join(parts))


def _overlap(found: Check, study: Study, specs: Mapping[str, DatasetSpec]) -> None:
    """Targets and transfer sets of one source: accuracy on classes that were trained is not zero-shot."""
    pairs = {(run.settings.dataset, name) for run in study.runs for name in run.settings.transfer}
    clean = True
    for target, other in sorted(pairs):
        if target not in specs or other not in specs or specs[target].origin != specs[other].origin:
            continue
        if share_classes(specs[target].derive, specs[other].derive):
            clean = False
            found.add(f"overlap {other}", "problem",
                      f"the transfer set {other} and the target {target} are of one source ({specs[target].origin}): "
                      "its accuracy would not be zero-shot", "choose another set with --set transfer=[NAME]")  # fmt: skip
    if pairs and clean:
        found.add("overlap", "ok", "none by source; content is compared when the run starts")
