"""Tables in HTML, for the representations that notebooks show."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def html_table(headings: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """A table of plain text; None is an empty cell.

    >>> html_table(["metric", "value"], [["CKA", 0.5]])
    '<table><thead><tr><th>metric</th><th>value</th></tr></thead><tbody><tr><td>CKA</td><td>0.5</td></tr></tbody></table>'
    """
    top = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    head = "".join(f"<th>{html.escape(one)}</th>" for one in headings)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{top}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(cell: object) -> str:
    if cell is None:
        return ""
    return html.escape(f"{cell:.4g}" if isinstance(cell, float) else str(cell))
