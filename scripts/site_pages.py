"""Pages of the site that are made when it is built: the tutorials, from the notebooks, and the Python reference.

`mkdocs.yml` names this file as a hook.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]

PACKAGES = {
    "attndrift": "What most scripts need.",
    "attndrift.attention": "Attention inside a model, beside its own fused attention.",
    "attndrift.drift": "Drift against the pretrained model, in any training loop.",
    "attndrift.callbacks": "The callbacks of `transformers.Trainer` and Lightning.",
    "attndrift.guard": "Budgets that are kept during training.",
    "attndrift.losses": "Losses that preserve attention.",
    "attndrift.metrics": "Pure functions on tensors.",
    "attndrift.models": "Finding and loading models.",
    "attndrift.methods": "Adaptation methods, and checkpoints with fingerprints.",
    "attndrift.data": "Datasets by name, splits and pixels.",
    "attndrift.compare": "Two models on the same images.",
    "attndrift.analysis": "From tables to statistics.",
}
"""The packages of the Python reference. What each exports is in its ``__all__``."""


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to those in ``docs/``."""
    pages = {notebook.stem: notebook_page(notebook) for notebook in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    for name, text in (pages | {"api": api_page()}).items():
        files.append(File.generated(config, f"{name}.md", content=text))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Show the cross-references of docstrings as code: ``:class:`~attndrift.Guard``` becomes ``Guard``."""

    def shown(match: re.Match[str]) -> str:
        name = match[3].rpartition(".")[2] if match[2] else match[3]
        return f"<code>{name}</code>"

    html = re.sub(r":(class|func|meth|mod|data|attr|exc):<code>(~?)([^<]+)</code>", shown, html)
    return html.replace("<p>::</p>", "").replace("::</p>", ":</p>")


def notebook_page(notebook: Path) -> str:
    """A notebook as a page: its text, and its code in fences."""
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    first, *rest = parts
    return "\n\n".join([first, f"This page is the notebook `notebooks/{notebook.name}`.", *rest]) + "\n"


def api_page() -> str:
    """The page of the Python reference: everything that the packages export, from its docstrings."""
    lines = ["# Python", "", "Everything that `attndrift` exports, package by package.", ""]
    seen: dict[str, str] = {}
    for package, meaning in PACKAGES.items():
        lines += [f"## {package}", "", meaning, ""]
        module = importlib.import_module(package)
        for name in module.__all__:
            path = _path(module, name)
            if path is None:
                continue
            if path in seen:
                lines += [f"`{name}`: see [{seen[path]}](#{path}).", ""]
            else:
                seen[path] = f"{package}.{name}"
                lines += [f"::: {path}", f"    options: {{heading: {package}.{name}}}", ""]
    return "\n".join(lines)


def _path(module: Any, name: str) -> str | None:
    """Where a class or function is defined; None for a constant."""
    try:
        value = getattr(module, name)
    except ImportError:  # what needs an extra that is not installed
        return f"{module.__name__}.{name}"
    home = str(getattr(value, "__module__", ""))
    return f"{home}.{value.__qualname__}" if callable(value) and home.startswith("attndrift") else None
