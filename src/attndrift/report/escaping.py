"""Text of unknown origin (run names, classes, paths) made harmless in Markdown and in HTML."""

from __future__ import annotations

import json
import re
from typing import Any

from markupsafe import Markup, escape

_CODE = re.compile(r"(?<!`)`([^`<>&|\\]+)`(?!`)")
_SPECIAL = re.compile(r"([\\`*_\[\]{}|~$!])")
_BLOCK_START = re.compile(r"^(\s*)([#+\-=]|\d+(?=[.)]))")


def markdown(text: object) -> str:
    """``text`` on one line as Markdown that prints it literally; names between backticks stay code."""
    line = " ".join(str(text).split())
    parts: list[str] = []
    end = 0
    for match in _CODE.finditer(line):
        parts += [_literal(line[end : match.start()]), match.group()]
        end = match.end()
    return "".join([*parts, _literal(line[end:])])


def _literal(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", text)


def markdown_line(text: object) -> str:
    """As :func:`markdown`, at the start of a line, where `#` or `1.` would begin a heading or a list."""
    return _BLOCK_START.sub(_escape_start, markdown(text))


def _escape_start(match: re.Match[str]) -> str:
    mark = match.group(2)
    # A backslash before a digit is printed; an entity is not.
    return match.group(1) + (f"&#{ord(mark[0])};{mark[1:]}" if mark.isdigit() else f"\\{mark}")


def html(text: object) -> Markup:
    """``text`` escaped for HTML; names between backticks become ``<code>``."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(" ".join(str(text).split())))))


def embedded_json(value: Any) -> Markup:
    """``value`` as JSON for a ``<script type="application/json">``: nothing in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
