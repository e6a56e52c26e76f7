"""The tests of ``make test-backbones``: marked, left out of all other groups, and told as a table."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
if find_spec("timm") is None or find_spec("open_clip") is None:
    collect_ignore_glob = ["test_*.py"]
SAID = pytest.StashKey[dict[tuple[str, str], str]]()
"""What a cell said, by row and column."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They need an environment of their own, and are slow."""
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.backbones)
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    """Keep how each cell ended."""
    report = yield
    cell = dict(item.user_properties).get("cell")
    if cell is not None and (report.when == "call" or report.failed):
        ended = {"passed": dict(item.user_properties).get("said", "ok"), "failed": "FAILED", "skipped": "-"}
        item.config.stash.setdefault(SAID, {})[cell] = ended[report.outcome]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table backbone x cell."""
    said = config.stash.get(SAID, {})
    if not said:
        return
    rows, columns = list(dict.fromkeys(row for row, _ in said)), list(dict.fromkeys(column for _, column in said))
    wide = max(map(len, rows))
    terminalreporter.section("backbone x cell")
    terminalreporter.write_line(" ".join([" " * wide, *(f"{column:^10}" for column in columns)]))
    for row in rows:
        marks = ("FAILED" if said.get((row, c)) == "FAILED" else "ok" if (row, c) in said else "-" for c in columns)
        terminalreporter.write_line(" ".join([f"{row:<{wide}}", *(f"{mark:^10}" for mark in marks)]))
    for (row, column), text in said.items():
        terminalreporter.write_line(f"{row} {column}: {text}")
