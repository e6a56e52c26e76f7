"""Which columns of a table hold images, labels and ids, and what the labels mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attndrift.data.errors import DataError, some
from attndrift.data.registry import DatasetSpec

# Imports inside functions: these packages take time to load, which only who needs them pays.

_ID_COLUMNS = ("image_id", "id")


def _is_image(feature: Any) -> bool:
    import datasets

    if isinstance(feature, datasets.Image):
        return True
    if isinstance(feature, datasets.Value):
        return str(feature.dtype) in ("binary", "large_binary")
    return isinstance(feature, Mapping) and "bytes" in feature


def _described(features: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}` ({_type_name(feature)})" for name, feature in features.items())


def _type_name(feature: Any) -> str:
    return str(getattr(feature, "dtype", type(feature).__name__)) if not _is_image(feature) else "image"


def _present(column: str, role: str, features: Mapping[str, Any], where: str) -> str:
    if column not in features:
        raise DataError(f"{where}: no column `{column}` ({role}_column). The columns are {_described(features)}")
    return column


def image_column(spec: DatasetSpec, features: Mapping[str, Any], where: str) -> str:
    """The column of images: the one asked for, or the only one that can be one."""
    if spec.image_column is not None:
        column = _present(spec.image_column, "image", features, where)
        if not _is_image(features[column]):
            raise DataError(
                f"{where}: column `{column}` holds {_type_name(features[column])}, not images. "
                f"The columns are {_described(features)}"
            )
        return column
    found = [name for name, feature in features.items() if _is_image(feature)]
    if len(found) != 1:
        what = f"{len(found)} columns hold images ({', '.join(found)})" if found else "no column holds images"
        raise DataError(f"{where}: {what}; name one as `image_column`. The columns are {_described(features)}")
    return found[0]


def label_column(spec: DatasetSpec, features: Mapping[str, Any], where: str) -> str:
    """The column of labels: the one asked for, ``label``, or the only one of class labels."""
    import datasets

    if spec.label_column is not None:
        return _present(spec.label_column, "label", features, where)
    if "label" in features:
        return "label"
    found = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(found) != 1:
        what = f"several columns hold class labels ({', '.join(found)})" if found else "no column `label`"
        raise DataError(f"{where}: {what}; name one as `label_column`. The columns are {_described(features)}")
    return found[0]


def id_column(spec: DatasetSpec, features: Mapping[str, Any], where: str) -> str | None:
    """The column of ids, or None: ids are then made from split and row."""
    if spec.id_column is not None and (spec.id_required or spec.id_column in features):
        return _present(spec.id_column, "id", features, where)
    return next((name for name in _ID_COLUMNS if name in features), None)


def values(table: Any, column: str) -> list[Any]:
    """A whole column as Python values."""
    return table.select_columns([column]).with_format("arrow")[:].column(0).to_pylist()


def unique_ids(ids: Iterable[str]) -> list[str]:
    """Ids that are unique: a repeated one gets ``#2``, ``#3``, ... in row order."""
    seen: dict[str, int] = {}
    result: list[str] = []
    for image_id in ids:
        seen[image_id] = count = seen.get(image_id, 0) + 1
        result.append(image_id if count == 1 else f"{image_id}#{count}")
    return result


def classes_in(tables: Mapping[str, Any], column: str, spec: DatasetSpec, where: str) -> tuple[str, ...]:
    """Classes in label order as the tables name them: their own names, or the sorted text labels.

    Bare numbers have the names of ``spec.class_names``; :class:`DataError` where those are not given.
    """
    import datasets

    feature = next(iter(tables.values())).features[column]
    for split, table in tables.items():
        if column not in table.features:
            raise DataError(f"{where}: the split `{split}` has no column `{column}` (label_column)")
    if isinstance(feature, datasets.ClassLabel):
        for split, table in tables.items():
            if list(getattr(table.features[column], "names", [])) != list(feature.names):
                raise DataError(f"{where}: the split `{split}` names its classes differently in `{column}`")
        return tuple(feature.names)
    if _is_text(feature):
        labels = {value for table in tables.values() for value in values(table, column) if value is not None}
        return tuple(sorted(labels))
    if spec.class_names is None:
        raise DataError(
            f"{where}: the labels in `{column}` are {_type_name(feature)}, without names. "
            "Give `class_names`, in label order, or name another `label_column`"
        )
    return spec.class_names


def spoken_names(spec: DatasetSpec, found: Sequence[str], where: str) -> tuple[str, ...]:
    """``spec.class_names`` if given (as many as were found), else ``found`` in the wording of the spec."""
    if spec.class_names is None:
        return tuple(spec.spoken.get(name, name) for name in found)
    if len(spec.class_names) != len(found):
        raise DataError(
            f"{where}: `class_names` has {len(spec.class_names)} names; the data have {len(found)} classes "
            f"({some(found)})"
        )
    return spec.class_names


def _is_text(feature: Any) -> bool:
    return str(getattr(feature, "dtype", "")) in ("string", "large_string", "string_view")


def labels_of(table: Any, column: str, classes: Sequence[str], where: str) -> NDArray[np.int64]:
    """Labels (images,), int64, each an index into the classes.

    ``classes`` are the names as they stand in the table.
    Raises :class:`DataError` for missing labels and labels without a class.
    """
    read = values(table, column)
    missing = sum(value is None or value == -1 for value in read)
    if missing:
        raise DataError(f"{where}: {missing} of {len(read)} images have no label in `{column}`")
    if _is_text(table.features[column]):
        index = {name: i for i, name in enumerate(classes)}
        unknown = sorted({value for value in read if value not in index})
        if unknown:
            raise DataError(f"{where}: labels in `{column}` that are no class of the training split: {some(unknown)}")
        return np.asarray([index[value] for value in read], dtype=np.int64)
    try:
        labels = np.asarray(read)
        if labels.ndim != 1 or (len(labels) and not np.array_equal(labels, labels.astype(np.int64))):
            raise ValueError
    except (ValueError, TypeError):
        raise DataError(
            f"{where}: column `{column}` holds {_type_name(table.features[column])}, not one class label an image"
        ) from None
    labels = labels.astype(np.int64)
    if len(labels) and (labels.min() < 0 or labels.max() >= len(classes)):
        raise DataError(
            f"{where}: labels in `{column}` run from {labels.min()} to {labels.max()}, "
            f"but there are {len(classes)} class names (0 to {len(classes) - 1})"
        )
    return labels
