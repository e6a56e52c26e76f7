"""A tiny CLIP for every test, and the rule that `make test-ci` skips nothing."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

# Torch, transformers and the tests are some million objects that no garbage collection need look through: see also below.
gc.disable()
torch.set_num_threads(1)

# What is written survives a killed process without it, and no test cuts the power: thousands of waits for the disk less.
os.fsync = lambda descriptor: None

CI_PARTS = {"chromium", "extension", "hub", "kill", "ray", "readme", "s3", "slurm", "study", "torchrun"}
"""What the tests marked `ci` cover."""

NOTHING_SKIPPED = os.environ.get("ATTNDRIFT_REQUIRE") == "1"
"""Set by `make test-ci`: a part without a test, and a test that is skipped, are failures."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Cases that `one_in` leaves out of the fast group are slow."""
    seen: Counter[str] = Counter()
    for item in items:
        if (mark := item.get_closest_marker("one_in")) and not item.get_closest_marker("slow"):
            test = item.nodeid.partition("[")[0]
            if seen[test] % mark.args[0]:
                item.add_marker(pytest.mark.slow)
            seen[test] += 1


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    gc.freeze()
    gc.enable()
    if not NOTHING_SKIPPED or session.config.getoption("lf", default=False):
        return
    found = {str(mark.args[0]) for item in session.items for mark in item.iter_markers("ci")}
    if found == CI_PARTS:
        return
    problem = f"tests marked `ci` cover {sorted(found)}, and must cover {sorted(CI_PARTS)}"
    if not hasattr(session.config, "workeroutput"):
        raise pytest.UsageError(problem)
    # One of several processes: it has nothing to run, and the first one says why.
    session.config.workeroutput["problem"] = problem
    session.items.clear()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process of the tests has ended."""
    if problem := getattr(node, "workeroutput", {}).get("problem"):
        raise pytest.UsageError(problem)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if NOTHING_SKIPPED and report.skipped and item.get_closest_marker("ci"):
        report.outcome, report.longrepr = "failed", f"a test marked `ci` was skipped: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a CLIP with 3 blocks of width 32 and 4x4 patches, with random weights."""
    from attndrift.models import load_model, load_processor

    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    load_model("config:tiny").save_pretrained(folder)
    for part in load_processor("config:tiny"):
        part.save_pretrained(folder)
    return folder
