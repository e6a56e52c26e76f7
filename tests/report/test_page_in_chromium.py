"""The page in a real headless Chromium: it sorts, redraws and reports no error."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from study_folder import study_tables

from attndrift.analysis import analyze
from attndrift.report.build import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.ci("chromium"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: `apt install chromium`)"),
]


def operate(page: Path, profile: Path, *options: str) -> tuple[dict[str, Any], str]:
    """What the page's own test wrote, and what the browser logged."""
    assert CHROMIUM is not None
    switches = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--enable-logging=stderr",
        f"--user-data-dir={profile}",
        "--virtual-time-budget=10000",
        *options,
        "--dump-dom",
        f"{page.as_uri()}#selftest",
    ]
    run = subprocess.run([CHROMIUM, *switches], capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<div id="selftest" hidden="">(.*?)</div>', run.stdout, re.DOTALL)
    assert found, "the page has no node for the outcome"
    assert found.group(1), f"the page's script did not finish: {run.stderr[-2000:]}"
    return json.loads(unescape(found.group(1))), run.stderr


@pytest.fixture(scope="module")
def outcome(written: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    return operate(written[1], tmp_path_factory.mktemp("profile"))


def test_nothing_fails_and_nothing_is_blocked(outcome: tuple[dict[str, Any], str]) -> None:
    result, log = outcome
    assert result["errors"] == []
    assert not [line for line in log.splitlines() if "CONSOLE" in line]


def test_every_column_sorts_both_ways(outcome: tuple[dict[str, Any], str]) -> None:
    sorts = outcome[0]["sorts"]
    assert len(sorts) > 20
    varied = 0
    for one in sorts:
        assert one["aria"] == one["direction"]
        assert one["sorted"] == 1
        values = one["values"]
        present = [value for value in values if value is not None]
        # What was not measured stands last.
        assert values == present + [None] * (len(values) - len(present))
        if one["numeric"]:
            numbers = [float(value) for value in present]
            assert numbers == sorted(numbers, reverse=one["direction"] == "descending"), one["heading"]
            varied += len(set(numbers)) > 1
    assert varied > 10
    names = [one["values"] for one in sorts if one["heading"].startswith("Run")]
    assert names[0] != names[1]
    assert sorted(names[0]) == sorted(names[1])


def test_every_control_redraws(outcome: tuple[dict[str, Any], str]) -> None:
    result = outcome[0]
    assert set(result["heat"]) == {"run", "metric"}
    assert {"run", "image", "layer", "head", "picture"} < set(result["maps"])
    for part in ("heat", "maps"):
        for name, change in result[part].items():
            if not isinstance(change, dict):
                continue
            assert change["pixels"], name
            assert change["restored"], name
            assert change["text"] or name == "picture", name
    assert result["maps"]["differ"]


def test_readout_is_of_the_stored_maps(outcome: tuple[dict[str, Any], str], written: tuple[Path, Path]) -> None:
    np = pytest.importorskip("numpy")
    readout = outcome[0]["maps"]["readout"]
    run = readout.partition(" ")[0]
    with np.load(written[0].parent.parent / "runs" / run / "maps.npz") as file:
        for side in ("before", "after"):
            mean = file[side][0, -1].astype(float).mean(axis=0)
            entropy = float(-(mean / mean.sum() * np.log(mean / mean.sum())).sum())
            printed = float(re.search(rf"([\d.]+)(?: nats)? {side}[,;]", readout).group(1))  # type: ignore[union-attr]
            assert printed == pytest.approx(entropy, abs=0.01)


def test_filter_counts_and_page_does_not_overflow(outcome: tuple[dict[str, Any], str]) -> None:
    assert outcome[0]["filter"].startswith("1 of ")
    assert outcome[0]["overflow"] is False


def test_narrow_page_without_layers_or_maps(tmp_path: Path) -> None:
    tables = study_tables(seeds=1, layers=0)
    page = write_report(tmp_path, analysis=analyze(tables), tables=tables, figures=[])[1]
    result, log = operate(page, tmp_path / "profile", "--window-size=500,800")
    assert result["errors"] == []
    assert not [line for line in log.splitlines() if "CONSOLE" in line]
    assert result["overflow"] is False
    assert result["heat"] == {}
    assert result["maps"] == {}
    assert "No attention maps lie beside these tables." in page.read_text(encoding="utf-8")
