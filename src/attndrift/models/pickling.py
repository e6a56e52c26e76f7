"""Objects that go to other processes, and say what cannot."""

from __future__ import annotations

import copy
import functools
import pickle
from types import FunctionType
from typing import Any, ClassVar, Self


class Picklable:
    """Base of what can be pickled and copied as long as the functions in it can.

    Raises TypeError, when pickled, for a function in one of its attributes that pickle cannot find by name.
    """

    _left_out: ClassVar[tuple[str, ...]] = ()
    """Attributes of this process alone: None in a copy and in a pickle."""

    def __getstate__(self) -> dict[str, Any]:
        state = vars(self) | dict.fromkeys(self._left_out)
        for name, value in state.items():
            function = value.func if isinstance(value, functools.partial) else value
            if isinstance(function, FunctionType) and not _is_found_by_name(function):
                raise TypeError(
                    f"{type(self).__name__}: `{name.lstrip('_')}` is {function.__qualname__}, a lambda or an inner function, "
                    f"which pickle cannot find by name. Define it at the top of a module, or make the {type(self).__name__} "
                    "in the process that uses it"
                )
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update(copy.deepcopy(vars(self) | dict.fromkeys(self._left_out), memo))
        return copied


def _is_found_by_name(function: FunctionType) -> bool:
    try:
        pickle.dumps(function)
    except (pickle.PicklingError, AttributeError):
        return False
    return True
