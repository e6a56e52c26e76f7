"""What a package from outside brings is found wherever names are: one file each, nothing else is touched."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

BROUGHT = {
    "metrics": "largest_share",
    "methods": "biases",
    "heads": "sharp_cosine",
    "losses": "l1_sp",
    "outcomes": "mean_weights",
    "backbones": "toy",
    "families": "toy",
    "datasets": "stripes",
    "suites": "shapes",
    "measures": "nearest_centroid",
    "trackers": "lines",
    "launchers": "backwards",
    "figures": "share_over_time",
    "sections": "shares",
}
"""One of each kind, as ``attndrift list`` calls it."""


@pytest.mark.slow
@pytest.mark.ci("extension")
def test_every_kind_is_listed(command: Callable[..., Any]) -> None:
    listed = json.loads(command("list", "--json").stdout)
    for kind, name in BROUGHT.items():
        found = {row["name"]: row for row in listed[kind]}
        assert found[name]["from"] == "attndrift-extension", kind
    methods = {row["name"]: row for row in listed["methods"]}
    assert methods["biases"]["settings"] == "bias_blocks, bias_norms"


WRONG = [
    ("{method: biasses}", "did you mean `biases`?"),
    ("{method: biases, bias_blocks: 0}", "`bias_blocks` is 0"),
    ("{method: biases, bias_norms: 1}", "`bias_norms` is 1: must be true or false"),
    ("{method: full, bias_blocks: 2}", "`bias_blocks` needs method: biases; this run has method: full"),
    ("{method: biases, bias_block: 2}", "there is no setting `bias_block`; did you mean `bias_blocks`?"),
    ("{method: full, head: sharp_cosin}", "did you mean `sharp_cosine`?"),
    ("{method: full, cosine_scale: 2}", "`cosine_scale` needs head: sharp_cosine"),
    ("{method: full, loss: 'l1_ps:1'}", "did you mean `l1_sp`?"),
    ("{method: full, loss: 'entropy_floor:1', l1_sp_norms: true}", "`l1_sp_norms` needs loss: l1_sp"),
    ("{method: full, measures: [nearest_centroids]}", "did you mean `nearest_centroid`?"),
    ("{method: full, trackers: [line]}", "did you mean `lines`?"),
    ("{method: full, outcomes: [mean_weight]}", "did you mean `mean_weights`?"),
    ("{method: full, outcomes: ['mean_weights:0']}", "the first step of `mean_weights` is '0'"),
]


@pytest.mark.slow
@pytest.mark.ci("extension")
def test_settings_that_cannot_be_are_refused_by_name(python: Callable[[str], Any]) -> None:
    program = f"""
import importlib
import json
import sys
from attndrift.study.loading import StudyError, parse_study
said = []
for run, _ in {WRONG!r}:
    try:
        parse_study("name: x\\nshared: {{dataset: tiles}}\\nruns:\\n  - " + run, where="f")
        said.append("accepted")
    except StudyError as error:
        said.append(str(error))
print(json.dumps(said))
"""
    for (run, expected), said in zip(WRONG, python(program), strict=True):
        assert said.startswith("f:4: "), (run, said)
        assert expected in said, (run, said)


@pytest.mark.slow
@pytest.mark.ci("extension")
def test_the_dry_run_counts_what_is_trained(command: Callable[..., Any]) -> None:
    planned = json.loads(command("run", HERE / "study.yaml", "--dry-run", "--json").stdout)
    rows = {row["run_id"]: row for row in planned}
    first, second = (row for row in rows.values() if row["method"] == "biases")
    assert 0 < first["trainable_parameters"] < second["trainable_parameters"], "one block, then two"
    assert "bias-blocks1" in first["run_id"]
    full = next(row for row in rows.values() if row["experiment"] == "full")
    assert first["seconds"] < full["seconds"], "a step of this method costs two forward passes, one of full three"
    toys = {row["experiment"]: row for row in rows.values() if row["model"] == "toy:2"}
    assert 0 < toys["toy-lora"]["trainable_parameters"] < toys["toy"]["trainable_parameters"]
    assert toys["toy"]["seconds"] < full["seconds"], "a smaller model"
    assert any("sharp-cosine-head_" in name and "cosine-scale50" in name for name in rows), list(rows)


def test_the_recipes_are_these_files() -> None:
    """CONTRIBUTING.md shows what is installed and run here, each a complete file of less than 60 lines."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        recipes = importlib.import_module("recipes")
    finally:
        sys.path.pop(0)
    assert (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8") == recipes.page(), "run python scripts/recipes.py"
    shown = {recipes.PACKAGE / f"{name}.py" for name in recipes.RECIPES}
    others = {recipes.PACKAGE / name for name in ("__init__.py", "toy_model.py")}
    assert shown | others == set(recipes.PACKAGE.glob("*.py"))
    for path in shown:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 60, path
