"""Text of unknown origin on its way to a terminal, a log or a record: harmless there, and without secrets."""

from __future__ import annotations

import contextlib
import os
import re
from typing import Any
from urllib.parse import quote

HIDDEN = "***"

_SECRET_NAME = re.compile(
    r"TOKEN(?!IZ)|SECRET|PASSW|PASSPHRASE|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIAL|WEBHOOK|CONNECTION_STRING", re.I
)
_SHORTEST_SECRET = 8
"""A shorter value (``false``, ``1``) is no secret, and hiding it would hide half of every text."""

_SHAPES = (
    # user:password@ in an address
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@'\"]+@", re.I), rf"\1{HIDDEN}@"),
    # ?X-Amz-Signature=... in an address
    (
        re.compile(r"([?&][\w.-]*(?:token|secret|signature|password|api_?key|access_?key|credential|sig)=)[^\s&'\"]+", re.I),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"\b((?:bearer|basic)\s+)[\w.~+/=-]{8,}", re.I), rf"\1{HIDDEN}"),
    # the forms of tokens of the hub, of AWS and of GitHub, wherever they came from
    (re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|A(?:KIA|SIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{20,})\b"), HIDDEN),
)  # fmt: skip


def printable(text: object, *, lines: bool = False) -> str:
    """``text`` in characters that any terminal and file takes; the others as escapes.

    File names may hold line breaks, terminal commands, marks that turn the direction of writing, and
    bytes that are no text at all. ``lines`` keeps line breaks, for text of more than one line.
    """
    whole = str(text)
    with contextlib.suppress(UnicodeEncodeError):  # half a pair of surrogates, no file name's; it is escaped below
        whole = os.fsencode(whole).decode("utf-8", "backslashreplace")
    kept = "\n" if lines else ""
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode("ascii") for c in whole)


def sheet_text(text: str) -> str:
    """A text for a cell of a CSV file: one that a spreadsheet would run as a formula is marked as text there (``'``)."""
    if text[:1] not in ("=", "+", "-", "@", "\t", "\r"):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def without_secrets(text: str) -> str:
    """``text`` without the values of secret environment variables, and without what looks like credentials.

    A variable is secret by its name (``HF_TOKEN``, ``WANDB_API_KEY``, ``AWS_SECRET_ACCESS_KEY``, ...).
    """
    for value in _secrets():
        text = text.replace(value, HIDDEN)
    for shape, shown in _SHAPES:
        text = shape.sub(shown, text)
    return text


def _secrets() -> list[str]:
    """Values of secret variables, also as they stand in an address, the longest first."""
    found = set()
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET:
            found |= {value, quote(value, safe=""), quote(value, safe="="), quote(value)}
    return sorted(found, key=len, reverse=True)


def redact(value: Any) -> Any:
    """``value`` (dicts, lists, texts, numbers) with every text :func:`without_secrets`."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {key: redact(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item) for item in value]
    return value


def sanitize(text: object) -> str:
    """A message for a terminal: its own lines, printable, without secrets."""
    return printable(without_secrets(str(text)), lines=True)


def sanitize_line(text: object) -> str:
    """As :func:`sanitize`, in one line: for a cell of a table, or one of many names."""
    return printable(without_secrets(str(text)))
