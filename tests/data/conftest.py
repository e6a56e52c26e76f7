"""Small datasets made on the spot: image folders, tables, and the real ones where they are."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import pytest
from made_data import Table, picture


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """No test reads or writes the user's caches, nor the network; only data tests see the data folder."""
    monkeypatch.setenv("ATTNDRIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    if request.node.get_closest_marker("data") is None:
        monkeypatch.delenv("ATTNDRIFT_DATA", raising=False)


@pytest.fixture
def data_folder() -> Path:
    folder = os.environ.get("ATTNDRIFT_DATA")
    if not folder:
        pytest.skip("ATTNDRIFT_DATA is not set: no real images")
    return Path(folder)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """train: 3 classes of 8 images; test: of 4."""
    root = tmp_path / "images"
    seed = 0
    for split, number in (("train", 8), ("test", 4)):
        for name in ("cat", "big_dog", "owl"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                picture(seed := seed + 1).save(folder / f"{i}.png")
    return root


@pytest.fixture
def table_folder(tmp_path: Path) -> Table:
    """Writes ``data/SPLIT-*.parquet`` from columns by split; returns the folder."""

    def write(splits: dict[str, dict[str, list[object]]], features: datasets.Features) -> Path:
        root = tmp_path / "table"
        (root / "data").mkdir(parents=True)
        for split, columns in splits.items():
            table = datasets.Dataset.from_dict(columns, features=features)
            table.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
        return root

    return write
