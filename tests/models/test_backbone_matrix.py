"""Every backbone of ``transformers`` that studies train, in every cell of the matrix."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from backbone_matrix import CELLS, CORE, OTHER

RUN_FAST = {"siglip"}
"""Whose cell "run" the fast group has time for; that of DINOv2 is in ``tests/study/test_runs_with_backbones.py``."""


def _cases() -> list[object]:
    return [
        pytest.param(
            cell, name, source, id=f"{name}-{cell}",
            marks=[pytest.mark.slow] if name in OTHER or (cell == "run" and name not in RUN_FAST) else [],
        )
        for name, source in {**CORE, **OTHER}.items()
        for cell in CELLS
    ]  # fmt: skip


@pytest.mark.parametrize(("cell", "name", "source"), _cases())
def test_a_backbone_can_do_what_a_study_asks(cell: str, name: str, source: str, tmp_path: Path) -> None:
    CELLS[cell](name, source, tmp_path)
