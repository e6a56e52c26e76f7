"""Models of timm and open_clip in every cell of the matrix."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from library_cells import LIBRARY_CELLS
from library_models import OPEN_CLIP, TIMM, source

pytestmark = pytest.mark.filterwarnings("ignore::Warning")  # the libraries' own, and Lightning's


@pytest.mark.parametrize("cell", LIBRARY_CELLS)
@pytest.mark.parametrize("name", [*TIMM, *OPEN_CLIP])
def test_a_backbone_can_do_what_a_study_asks(
    cell: str, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.node.user_properties.append(("cell", (name, cell)))
    said = LIBRARY_CELLS[cell](name, source(name), tmp_path)
    request.node.user_properties.append(("said", said))
