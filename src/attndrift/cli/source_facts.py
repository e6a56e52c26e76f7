"""The facts of members that are registered in this package, read from its source text.

Importing what draws figures, or what looks into models, takes seconds; ``attndrift list`` wants a name and a sentence.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def source_facts(
    package: str, maker: str, names: Sequence[str], group: str | None = None
) -> list[dict[str, Any]] | None:
    """The literal arguments of every call of ``maker`` in the modules of ``package``, in the order of registration.

    Args:
        package: the package whose modules register, such as ``attndrift.figures``.
        maker: the function or class that is called, such as ``figure``.
        names: which arguments; the first may be given by position.
        group: the group of entry points that adds to the registry; by default the name of the package.

    Returns the facts and, as ``module``, the name of the module. None where only the registry itself can tell: another
    package adds to it, the text is not there, or an argument is no literal.
    """
    if importlib.metadata.entry_points(group=group or package):
        return None
    top, _, path = package.partition(".")
    spec = importlib.util.find_spec(top)
    found = []
    for root in (spec.submodule_search_locations or []) if spec is not None else []:
        try:
            for file in sorted(Path(root, *path.split(".")).glob("[!_]*.py")):
                found += [{**facts, "module": file.stem} for facts in _calls(file.read_text("utf-8"), maker, names)]
        except (OSError, ValueError, KeyError):
            return None
    return found or None


def _calls(text: str, maker: str, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Raises ``KeyError`` for a missing argument, ``ValueError`` for one that is no literal."""
    if f"{maker}(" not in text:
        return
    # Registration happens at the top of a module: calls inside functions make no member.
    top = [node for node in ast.parse(text).body if not isinstance(node, ast.ClassDef)]
    for statement in top:
        parts = statement.decorator_list if isinstance(statement, ast.FunctionDef) else [statement]
        for call in (node for part in parts for node in ast.walk(part)):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == maker:
                given = {one.arg: one.value for one in call.keywords} | dict(zip(names, call.args[:1], strict=False))
                yield {name: ast.literal_eval(given[name]) for name in names}
