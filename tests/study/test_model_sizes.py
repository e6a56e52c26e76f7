"""Sizes of models that come with the package, and those that are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from attndrift.files import read_json
from attndrift.study.check_findings import Check
from attndrift.study.check_methods import check_methods
from attndrift.study.loading import load_study, parse_study
from attndrift.study.model_sizes import SHIPPED, ModelSizes, sizes_of


def test_the_sizes_that_come_with_the_package_are_those_of_todays_models() -> None:
    """Write them again with ``python scripts/model_sizes.py``."""
    assert read_json(SHIPPED) == sizes_of(load_study("demo"))


def test_a_size_is_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNDRIFT_CACHE", str(tmp_path))
    text = "name: one\nshared: {model: embedded, dataset: tiles, method: lora, lora_rank: 3}\nruns: [{seed: 0}]\n"
    study = parse_study(text, where="one")
    check_methods(Check("one"), study)
    kept = read_json(tmp_path / "model-sizes.json")["sizes"]
    assert len(kept) == len(read_json(SHIPPED)) + 1
    sizes = ModelSizes()
    assert list(sizes.parameters(study.runs[0].settings, 2)) in [kept[key] for key in kept.keys() - read_json(SHIPPED)]
