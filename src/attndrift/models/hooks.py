"""Hooks that a copy or a pickle of the model is made without."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any
from weakref import ref

from torch.utils.hooks import RemovableHandle


class TemporaryHooks:
    """Hooks on the modules of a model, until they are removed.

    A copy of the model would keep its copies of them for ever, and pickling it would pickle whatever they hold. So
    ``copy.deepcopy``, ``torch.save`` and ``pickle`` pass them over: the copy is the model without them.
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def __bool__(self) -> bool:
        return bool(self._handles)

    def add(self, handle: RemovableHandle) -> None:
        """Take the hook that has just been registered as one of these."""
        self._handles.append(handle)
        for hooks in _dictionaries(handle):
            reduce = vars(hooks).setdefault("__reduce_ex__", _WithoutTemporary(hooks))
            reduce.temporary.add(handle.id)

    def remove(self) -> None:
        """Remove all of them."""
        for handle in self._handles:
            for hooks in _dictionaries(handle):
                reduce = vars(hooks)["__reduce_ex__"]
                reduce.temporary.discard(handle.id)
                if not reduce.temporary:
                    del vars(hooks)["__reduce_ex__"]
            handle.remove()
        self._handles = []


class _WithoutTemporary:
    """Stands on a module's dictionary of hooks as its ``__reduce_ex__``, which copying and pickling ask."""

    def __init__(self, hooks: OrderedDict[int, Any]) -> None:
        self._hooks = ref(hooks)
        self.temporary: set[int] = set()

    def __call__(self, protocol: int) -> tuple[Any, ...]:
        hooks = self._hooks() or OrderedDict()
        return OrderedDict, (), None, None, iter([item for item in hooks.items() if item[0] not in self.temporary])


def _dictionaries(handle: RemovableHandle) -> Iterator[Any]:
    """Where torch has noted a hook: itself, and how it is to be called."""
    for noted in (handle.hooks_dict_ref, *handle.extra_dict_ref):
        hooks = noted()
        if hooks is not None:
            yield hooks
