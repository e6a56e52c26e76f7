"""Text of unknown origin (run names, classes, paths) made harmless in HTML."""

from __future__ import annotations

import json
import re
from typing import Any

from markupsafe import Markup, escape

from attndrift.sanitize import DIRECTION_MARKS, spell_direction_marks


def harmless(value: Any) -> Any:
    """What a template prints, with marks that turn the direction of writing spelled out (``finalize`` of Jinja)."""
    return type(value)(spell_direction_marks(value)) if isinstance(value, str) else value


def html(text: object) -> Markup:
    """``text`` escaped for HTML; names between backticks become ``<code>``."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(" ".join(str(text).split())))))


def embedded_json(value: Any) -> Markup:
    """``value`` as JSON for a ``<script type="application/json">``: nothing in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    for mark in DIRECTION_MARKS:  # the page shows the letters of the escape, not the mark
        text = text.replace(mark, f"\\\\u{ord(mark):04x}")
    return Markup(text)
