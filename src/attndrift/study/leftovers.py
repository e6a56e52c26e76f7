"""What is removed from a study: what nobody needs once a record is written, and what killed processes left half written.

Everything here is for the process that holds the lock of what it cleans.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

RESUME = "resume"
CHECKPOINTS = "checkpoints"
SCRATCH = ".state"
"""Where a resumable state is written before it is one."""

LAST_GOOD = "last-good"
KEPT_CHECKPOINTS = {"best": {"best"}, "best+final": {"best", "final"}}
"""Names of the checkpoints that a value of the setting ``keep`` keeps; all of them where it is not named."""

_HALF_WRITTEN = re.compile(r"\..+-[0-9a-f]{8}")  # as `attndrift.files` names it
_ASIDE = re.compile(r"\.(?P<name>.+)-replaced")  # as `replace_folder` moves the older folder aside


def remove_half_written(folder: Path, names: Iterable[str] | None = None) -> None:
    """Remove the temporary files and folders in ``folder``; with ``names``, only those of files of these names."""
    prefixes = None if names is None else tuple(f".{name}-" for name in names)
    for path in list(folder.glob(".*")):
        if _HALF_WRITTEN.fullmatch(path.name) and (prefixes is None or path.name.startswith(prefixes)):
            _remove(path)


def begin_run_folder(folder: Path) -> None:
    """Remove what an earlier process that was killed left half written in a run's folder."""
    remove_half_written(folder)
    _remove(folder / SCRATCH)
    for part in (RESUME, CHECKPOINTS):
        for path in list((folder / part).glob(".*")):
            aside = _ASIDE.fullmatch(path.name)
            if aside and not (path.parent / aside["name"]).exists():
                # Killed between its two renames: the older one is still the one that counts.
                path.rename(path.parent / aside["name"])
            else:
                _remove(path)


def end_run_folder(folder: Path, keep: str) -> None:
    """Remove what a run needs no more once its record is written: resumable states, and checkpoints not to keep.

    Only then: without states, a run that has no record is trained again from its first step.
    """
    begin_run_folder(folder)
    _remove(folder / RESUME)
    kept = KEPT_CHECKPOINTS.get(keep)
    for path in list((folder / CHECKPOINTS).glob("*")):
        if kept is not None and path.name not in kept | {LAST_GOOD}:
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a file, a folder or a link; what cannot be removed does no harm."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
