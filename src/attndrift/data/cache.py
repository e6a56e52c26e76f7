"""Where files that can be made again are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(given: str | Path | None = None) -> Path:
    """``given``, else ``$ATTNDRIFT_CACHE``, else ``attndrift`` in the user's cache folder. Not created."""
    if given is not None:
        return Path(given).expanduser()
    if os.environ.get("ATTNDRIFT_CACHE"):
        return Path(os.environ["ATTNDRIFT_CACHE"]).expanduser()
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "attndrift"
