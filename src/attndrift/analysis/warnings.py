"""Calls of scipy that do not warn."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np


def quiet(function: Any, *arguments: Any, **options: Any) -> Any:
    """``function(*arguments, **options)`` without warnings.

    scipy warns where ties or tiny samples make it switch its method; the result says which one was used, and why a
    value is undefined.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return function(*arguments, **options)
