"""What it takes to be there: ``import attndrift`` and ``attndrift --help`` in fresh processes."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable

from attndrift.bench.ratios import ratio_of, rounds
from attndrift.bench.result import Machine, Result

BARE = "a bare Python process"
COMMANDS: dict[str, tuple[list[str], float]] = {
    # What -> arguments of the interpreter, and the seconds that it may take.
    "import attndrift": (["-c", "import attndrift"], 0.3),
    "attndrift --help": (["-m", "attndrift.cli", "--help"], 0.5),
}


def startup(*, pairs: int = 15, progress: Callable[[str], None] = lambda line: None) -> Result:
    """Whole processes, from start to end, against one that does nothing; the first round, which fills caches, is left out."""
    machine = Machine()

    def process(arguments: list[str]) -> Callable[[], object]:
        command = [sys.executable, *arguments]
        return lambda: subprocess.run(command, check=True, capture_output=True)

    works = {BARE: process(["-c", "pass"]), **{what: process(arguments) for what, (arguments, _) in COMMANDS.items()}}
    found = rounds(works, pairs, say=progress)
    rows = [
        {
            "what": what,
            "seconds": statistics.median(found[what]),
            "lowest": min(found[what]),
            "highest": max(found[what]),
            "at most": at_most,
        }
        for what, (_, at_most) in COMMANDS.items()
    ]
    return Result(
        "startup",
        [ratio_of(what, BARE, found[what], found[BARE]) for what in COMMANDS],
        tables={"seconds of a whole process": rows},
        packages=("attndrift", "typer", "rich"),
        others_pct=machine.others_pct(),
    )
