"""A dataset made on demand, stripes in three directions, and a suite that it is part of."""

from __future__ import annotations

from typing import Any

from attndrift.data.registry import DATASETS, SUITES, DatasetSpec, Suite

NAMES = ("horizontal stripes", "vertical stripes", "diagonal stripes")


def load_stripes(spec: DatasetSpec) -> Any:
    """Images (48, 48, 3) by index: the class is the direction, the phase tells images of a class apart."""
    # Imported here, so that a list of datasets takes no time.
    import numpy as np

    from attndrift.data import ImageDataset
    from attndrift.data.readers import GeneratedReader

    def opener(name: str, size: int, first: int) -> Any:
        def draw(index: int) -> Any:
            down, across = np.indices((48, 48))
            along = (down, across, down + across)[index % 3]
            wave = 127.5 + 127.5 * np.sin((along + 0.37 * (first + index)) / 2.5)
            return np.repeat(wave[:, :, None], 3, axis=2).astype(np.uint8)

        labels = np.arange(size, dtype=np.int64) % 3
        return lambda: (GeneratedReader(size, draw), labels, [f"{name}:{index}" for index in range(size)])

    splits = {"train": opener("train", spec.train_size, 0), "test": opener("test", spec.test_size, 5000)}
    return ImageDataset(spec, NAMES, splits, {"kind": "stripes"})


DATASETS.register(
    DatasetSpec(
        name="stripes",
        title="stripes in three directions",
        origin="generated-stripes",
        licence="CC0-1.0",
        train_size=90,
        test_size=60,
        load=load_stripes,
        made="generated on demand",
    )
)
SUITES.register(Suite(name="shapes", title="stripes and objects", sets=("stripes", "objects"), source="this package"))
