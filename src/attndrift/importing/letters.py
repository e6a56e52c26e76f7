"""When two texts are one word, whatever their case, width, spaces and Unicode form are."""

from __future__ import annotations

import re
import unicodedata


def spelling_of(text: str) -> str:
    """``text`` without what spellings of one word differ in: case, width, spaces, underscores, hyphens, slashes."""
    return re.sub(r"[\s_\-/]+", "", same_letters(text))


def same_letters(text: str) -> str:
    """``text`` in one case, width and Unicode form, without characters that nobody sees."""
    visible = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())
