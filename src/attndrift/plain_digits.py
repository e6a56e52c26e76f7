"""Numbers as people type them: plain digits, and nothing else that Python would take for a number too."""

from __future__ import annotations

import re

_WHOLE = re.compile(r"[-+]?[0-9]+")
_DECIMAL = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,3})?")


def whole_number(text: str) -> int:
    """``text`` as an integer. Raises ``ValueError`` for anything but digits and a sign, as ``1_0`` or full-width digits.

    >>> whole_number(" 10 ")
    10
    """
    if not _WHOLE.fullmatch(text.strip()) or len(text) > 30:
        raise ValueError(f"{text[:60]!r} is no whole number in plain digits, such as 10")
    return int(text)


def decimal_number(text: str) -> float:
    """``text`` as a float. Raises ``ValueError`` for anything but a decimal number, as ``1_0``, ``0,5``, ``nan`` or ``inf``.

    >>> decimal_number("1e-5")
    1e-05
    """
    if not _DECIMAL.fullmatch(text.strip()) or len(text) > 60 or abs(float(text)) == float("inf"):
        raise ValueError(f"{text[:60]!r} is no number in plain digits, such as 0.5 or 1e-5")
    return float(text)
