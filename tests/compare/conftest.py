"""A few generated images in folders, a LoRA adapter that peft saved, and a cache of the tests' own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from comparing_models import adapted_with_lora
from transformers import CLIPModel

from attndrift.data import load_dataset
from attndrift.models import load_model


@pytest.fixture(scope="session")
def embedded() -> CLIPModel:
    return load_model("embedded")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNDRIFT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images, half of them two folders down."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "notes.txt").write_text("no image")
    split = load_dataset("objects").train
    for index in range(8):
        split[index].save(folder / ("deep/er" if index % 2 else ".") / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of the embedded model's vision tower, saved by peft."""
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    adapted_with_lora(load_model("embedded")).save_pretrained(folder, save_embedding_layers=False)
    return folder
