"""Finding the reference implementations, which are kept outside the package, in ``benchmarks/`` of the checkout."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

FOLDER = "benchmarks"


def reference_path(name: str) -> Path:
    """The file ``benchmarks/NAME.py`` of the checkout that this package runs from, or of the current folder.

    Raises FileNotFoundError where neither has it: an installed package comes without the references.
    """
    for root in (Path(__file__).parents[3], Path.cwd()):
        path = root / FOLDER / f"{name}.py"
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{FOLDER}/{name}.py is not here: the reference that this bench measures against is kept in a checkout of the "
        "project; run the bench from its folder"
    )


def reference(name: str) -> ModuleType:
    """That file as a module. Raises as :func:`reference_path` does."""
    spec = importlib.util.spec_from_file_location(f"attndrift_{FOLDER}_{name}", reference_path(name))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
