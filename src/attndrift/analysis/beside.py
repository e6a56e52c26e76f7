"""One part of a large analysis in a second process, where that is safe and there is a second core."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

Value = TypeVar("Value")


def _possible() -> bool:
    """A process can be forked only while nothing else runs in it: no thread of Python's, no accelerator in use."""
    if not sys.platform.startswith("linux") or multiprocessing.current_process().daemon:
        return False
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    busy = threading.active_count() > 1 or (cuda is not None and cuda.is_initialized())
    return not busy and len(os.sched_getaffinity(0)) > 1


@contextmanager
def in_one_go(*, worth_it: bool) -> Iterator[None]:
    """Numbers in one thread a process, and no search for garbage, which would go through all rows again and again.

    Two processes whose matrix products each take all cores wait for each other. Both are as before afterwards.
    """
    if not worth_it:
        yield
        return
    collects = gc.isenabled()
    gc.disable()
    try:
        with threadpool_limits(1):
            yield
    finally:
        if collects:
            gc.enable()


@contextmanager
def beside(function: Callable[..., Value], *arguments: Any, worth_it: bool) -> Iterator[Callable[[], Value]]:
    """Start ``function(*arguments)`` in a forked process; yields what waits for its value.

    Where that is not ``worth_it``, or not possible, the function is called when its value is asked for, in this
    process: the value is the same. What ``function`` changes in its arguments is not seen here. An exception in the
    other process is raised where the value is asked for.
    """
    if not (worth_it and _possible()):
        yield lambda: function(*arguments)
        return
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        try:
            told: tuple[bool, Any] = (True, function(*arguments))
        except Exception as error:
            told = (False, error)
        sender.send(told)

    process = context.Process(target=work, daemon=True)
    process.start()
    sender.close()

    def value() -> Value:
        try:
            fine, outcome = receiver.recv()
        except EOFError:
            # Ended from outside, for want of memory for example: its part is done here.
            return function(*arguments)
        if not fine:
            raise outcome
        return outcome

    try:
        yield value
    finally:
        receiver.close()
        process.terminate()
        process.join()
