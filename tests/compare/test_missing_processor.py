"""A model that was saved without its processor: everything that is missing is said at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from attndrift.compare import compare_models
from attndrift.compare.errors import CompareError
from attndrift.models import load_model, load_processor
from attndrift.models.errors import ModelError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(2):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bare")
    load_model("config:tiny").save_pretrained(folder)
    return folder


def test_processor_and_tokenizer_are_missed_together(bare: Path, images: Path) -> None:
    with pytest.raises(CompareError, match=r"no image processor .* and no tokenizer .*save_pretrained"):
        compare_models(str(bare), str(bare), images)
    with pytest.raises(ModelError, match=r"no tokenizer .* and no image processor .*; save those"):
        load_processor(bare)
    (bare / "tokenizer.json").write_text("{}")
    with pytest.raises(CompareError, match=r"holds no image processor \(preprocessor_config.json\); save"):
        compare_models(str(bare), str(bare), images)
