"""Peak memory of torch on a CPU, traced at its allocator."""

from __future__ import annotations

from torch.profiler import ProfilerActivity, profile

from benchmarks.ratios import Work

HOW = (
    "Peak memory: every allocation and release of a tensor's storage, as torch.profiler (profile_memory=True) reports it, "
    "summed up in order of time; the largest sum. Scratch of oneDNN and of the BLAS is not torch's and is not counted."
)
KEPT = (
    "The C library kept released memory (mallopt), for every alternative alike. Returning it and taking it again costs page "
    "faults whose number differs from pass to pass."
)


def peak_bytes(work: Work) -> int:
    """Most bytes of tensors that were held during ``work`` beyond those that were held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as traced:
        work()
    results = traced.profiler
    assert results is not None
    assert results.kineto_results is not None
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    # The sort is stable: events of equal times keep the order in which they were reported.
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
