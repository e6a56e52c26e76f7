"""What a check of a study finds, and how it is printed."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import typer

from attndrift.sanitize import redact, sanitize, sanitize_line

State = Literal["ok", "warning", "problem"]


LEFT_OUT = "left out (`missing_sets: skip`)"
"""How the finding begins of a transfer set that cannot be had, and that the study does without."""


@dataclass(frozen=True)
class Finding:
    """One thing that a study needs.

    Attributes:
        what: its name, such as ``model embedded``.
        state: ``ok``; ``warning``, the study can run; ``problem``, it cannot.
        detail: what was found.
        remedy: what to do, where something is wrong.
    """

    what: str
    state: State
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Download:
    """What a study downloads before its first run."""

    what: str
    bytes: int
    folder: str


@dataclass
class Check:
    """What was found of a study, in the order in which it is needed."""

    study: str
    findings: list[Finding] = field(default_factory=list)
    downloads: list[Download] = field(default_factory=list)
    out_of_reach: dict[str, str] = field(default_factory=dict)
    """What the hub has and this machine has not, by name, while the hub is out of reach; with the reason."""
    commits: dict[str, str] = field(default_factory=dict)
    """Commits of models that a study in the same place goes on with, by run."""

    def add(self, what: str, state: State, detail: str, remedy: str = "") -> None:
        """Add a finding, unless it is there already."""
        finding = Finding(what, state, detail, remedy)
        if finding not in self.findings:
            self.findings.append(finding)

    def merge(self, what: str, fault: str, remedy: str, merged: Iterable[Finding]) -> None:
        """Replace findings of one and the same ``fault`` by one problem, in the place of the first of them."""
        old = list(merged)
        place = self.findings.index(old[0])
        self.findings = [finding for finding in self.findings if finding not in old]
        concerned = listed(dict.fromkeys(finding.what for finding in old))
        self.findings.insert(place, Finding(what, "problem", f"{fault}. It concerns {concerned}", remedy))

    @property
    def left_out(self) -> list[str]:
        """In words, the sets without which the study goes on."""
        return [f"{one.what}: {one.detail}" for one in self.findings if one.detail.startswith(LEFT_OUT)]

    @property
    def problems(self) -> list[Finding]:
        """What keeps the study from running."""
        return [finding for finding in self.findings if finding.state == "problem"]

    def to_json(self) -> dict[str, Any]:
        """Plain values, without secrets."""
        return redact(
            {
                "study": self.study,
                "can_run": not self.problems,
                "findings": [asdict(finding) for finding in self.findings],
                "downloads": [asdict(download) for download in self.downloads],
            }
        )


def size(value: float | None) -> str:
    """Bytes as they are spoken: ``605.2 MB``; a question mark for None."""
    if value is None:
        return "?"
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit in ("B", "KB") else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: ``1 run``, ``1,200 runs``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def listed(names: Iterable[str]) -> str:
    """Names in a sentence: ``a, b and c``."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


_COLOURS = {"ok": typer.colors.GREEN, "warning": typer.colors.YELLOW, "problem": typer.colors.RED}
_INDENT = 9


def print_check(found: Check) -> None:
    """Print a table: the state of each thing with its name, then what was found, then what to do."""
    width = max(40, shutil.get_terminal_size((80, 24)).columns)
    for finding in found.findings:
        typer.secho(f"{finding.state:<{_INDENT}}", fg=_COLOURS[finding.state], nl=False)
        typer.echo(sanitize_line(finding.what))
        for mark, text in (("", finding.detail), ("to do: ", finding.remedy)):
            for line in _wrapped(f"{mark}{sanitize_line(text)}" if text else "", width - _INDENT):
                typer.echo(" " * _INDENT + line)
    counts = ", ".join(
        f"{number} {state if state == 'ok' or number == 1 else state + 's'}"
        for state in ("ok", "warning", "problem")
        if (number := sum(finding.state == state for finding in found.findings))
    )
    typer.echo(f"\n{found.study}: {counts}")
    for line in download_lines(found):
        typer.echo(line)


def _wrapped(text: str, width: int) -> list[str]:
    # A name, a path or a commit is copied: it is never broken.
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def download_lines(found: Check) -> list[str]:
    """What will be downloaded, how large it is and where it is kept; empty where everything is here."""
    if not found.downloads:
        return []
    lines = [f"to download: {size(sum(one.bytes for one in found.downloads))}"]
    lines += [f"  {size(one.bytes):>7}  {sanitize_line(one.what)}" for one in found.downloads]
    return [*lines, *(f"  into {sanitize_line(folder)}" for folder in dict.fromkeys(d.folder for d in found.downloads))]


def problem_message(found: Check) -> str:
    """All problems as one message."""
    lines = [f"{one.what}: {one.detail}" + (f". To do: {one.remedy}" if one.remedy else "") for one in found.problems]
    if len(lines) == 1:
        return f"{found.study} cannot run: {lines[0]}"
    return sanitize("\n  ".join([f"{found.study} cannot run, for {len(lines)} reasons:", *lines]))
