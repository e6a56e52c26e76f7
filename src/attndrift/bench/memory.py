"""Memory, traced where it is allocated."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from attndrift.bench.ratios import Work

HOW = (
    "traced at torch's allocator: on a CPU every allocation and release of a tensor's storage during the call, as "
    "torch.profiler (profile_memory=True) is told by the allocator itself, summed up in order of time, the largest sum; "
    "on an accelerator torch.cuda.max_memory_allocated after reset_peak_memory_stats; both less what was held before. "
    "Scratch that oneDNN and the BLAS take by themselves is not torch's and not in it"
)

KEPT = (
    "While times were taken, the C library kept the memory that was released to it (mallopt), for every alternative: giving it "
    "back and taking it again costs page faults that differ from pass to pass."
)
RETURNED = "The C library was left to give released memory back to the system as it likes."


def peak_bytes(work: Work, device: torch.device) -> int:
    """Most bytes that torch held during ``work`` beyond those that it held before; see :data:`HOW`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as traced:
        work()
    results = traced.profiler
    assert results is not None
    assert results.kineto_results is not None
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    # Equal times keep the order in which they were told.
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def peak_resident_bytes(work: Work) -> int | None:
    """Most bytes by which the process grew during ``work``, as the system counts them; None where it cannot be told.

    Holds all that the process takes, other libraries' scratch too, but pages and not allocations: memory that was
    released to the C library before and is used again does not show.
    """
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        clear.write_text("5", encoding="ascii")  # proc(5): the peak starts anew from what is resident now
        before = _kilobytes(status, "VmRSS")
    except (OSError, StopIteration):
        return None
    work()
    return 1024 * (_kilobytes(status, "VmHWM") - before)


def _kilobytes(status: Path, name: str) -> int:
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])
