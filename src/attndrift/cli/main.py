"""The entry point of the command line."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from typing import TextIO

from attndrift.cli.app import app
from attndrift.cli.commands import (  # noqa: F401 -- each registers its command, in this order
    analyze,
    baseline,
    calibrate,
    check,
    collect,
    compare,
    convert,
    demo,
    fetch,
    figures,
    import_tables,
    interpolate,
    list_names,
    report,
    run,
    show,
    soup,
    verify,
    watch,
)  # isort: skip
from attndrift.cli.console import EXIT_DEFECT, EXIT_PROBLEM, complain, remedy
from attndrift.extras import MissingExtraError
from attndrift.files import LeftOutWarning

__all__ = ["app", "main"]


_show_usual_warning = warnings.showwarning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """What was left out is a line for the user; other warnings are for programmers."""
    if issubclass(category, LeftOutWarning):
        complain(f"warning: {message}")
    else:
        _show_usual_warning(message, category, filename, lineno, file, line)


def main() -> None:
    """Run a command: known errors are one line, not a traceback (ATTNDRIFT_TRACEBACK=1 shows it)."""
    # Importing torch and transformers makes half a million objects that stay, and are looked through seldom this way: a
    # command that needs both starts a tenth faster.
    gc.set_threshold(50_000, 20, 20)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Transformers reports its own progress and advice; a study has its own.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.showwarning = _show_warning
    try:
        app()
    except (ValueError, OSError, MissingExtraError) as error:
        if os.environ.get("ATTNDRIFT_TRACEBACK"):
            raise
        complain(f"{error}{remedy(error)}")
        sys.exit(EXIT_PROBLEM)
    except Exception as error:
        if os.environ.get("ATTNDRIFT_TRACEBACK"):
            raise
        complain(
            f"{type(error).__name__}: {error}. This should have been said better, and is worth a report: "
            "ATTNDRIFT_TRACEBACK=1 shows where it happened"
        )
        sys.exit(EXIT_DEFECT)


if __name__ == "__main__":
    main()
