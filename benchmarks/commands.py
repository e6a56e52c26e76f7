"""Seconds of whole commands in fresh processes, from start to end, each with an empty cache folder."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.ratios import Work, rounds
from benchmarks.result import OtherPrograms, Output, Pairs, Result, say

COMMANDS: dict[str, tuple[list[str], float]] = {
    # What -> arguments of the interpreter, and the seconds that it may take.
    "import attndrift": (["-c", "import attndrift"], 0.3),
    "attndrift --help": (["-m", "attndrift", "--help"], 0.5),
    "attndrift list": (["-m", "attndrift", "list"], 1.0),
    "attndrift run demo --dry-run": (["-m", "attndrift", "run", "demo", "--dry-run"], 4.0),
}
OF_A_STUDY: dict[str, tuple[list[str], float]] = {
    "attndrift show STUDY": (["-m", "attndrift", "show", "{study}"], 1.0),
    "attndrift analyze STUDY": (["-m", "attndrift", "analyze", "{study}"], 3.0),
    "attndrift figures STUDY": (["-m", "attndrift", "figures", "{study}", "--output", "{scratch}"], 8.0),
    "attndrift report STUDY": (["-m", "attndrift", "report", "{study}", "--output", "{scratch}"], 10.0),
}


def commands(study: Path | None, pairs: int, progress: Callable[[str], object] = say) -> Result:
    """Time the commands of COMMANDS, and where a ``study`` folder is given those of OF_A_STUDY."""
    others = OtherPrograms()
    chosen = COMMANDS | (OF_A_STUDY if study is not None else {})
    with tempfile.TemporaryDirectory() as scratch:

        def process(arguments: list[str]) -> Work:
            def run() -> object:
                # A folder of its own: figures that lie there already are not drawn again, and what is cached is not made.
                own = tempfile.mkdtemp(dir=scratch)
                command = [sys.executable, *(part.format(study=study, scratch=f"{own}/out") for part in arguments)]
                environment = {**os.environ, "ATTNDRIFT_CACHE": f"{own}/cache"}
                return subprocess.run(command, check=True, capture_output=True, env=environment)

            return run

        found = rounds({what: process(arguments) for what, (arguments, _) in chosen.items()}, pairs, progress)
    rows = [
        {
            "what": what, "seconds": statistics.median(found[what]), "lowest": min(found[what]),
            "highest": max(found[what]), "at most": at_most, "n": pairs,
        }
        for what, (_, at_most) in chosen.items()
    ]  # fmt: skip
    return Result("commands", [], {"seconds of a whole process": rows}, others_pct=others.percent())


def main(
    study: Annotated[
        Path | None, typer.Option(help="Also show, analyze, figures and report of this study folder.")
    ] = None,
    pairs: Pairs = 5,
    output: Output = None,
) -> None:
    """Seconds of whole commands in fresh processes, from start to end."""
    commands(study, pairs).deliver(output)


if __name__ == "__main__":
    typer.run(main)
