"""Keeping the best state of a training, to put it back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attndrift.files import replacing
from attndrift.process_group import Processes

BEST = "best.safetensors"


class BestState:
    """The trained parameters and the buffers of a model at one step: in a file, or in memory.

    Args:
        model: whose weights.
        folder: where ``best.safetensors`` is written, whole or not at all, by the first process; None keeps
            them in memory.
        processes: called for those that train together, as they are then.
    """

    def __init__(self, model: nn.Module, folder: Path | None, processes: Callable[[], Processes]) -> None:
        self._model = model
        self._path = None if folder is None else folder / BEST
        self._processes = processes
        self._held: dict[str, Tensor] | None = None
        self.step: int | None = None

    def _state(self) -> dict[str, Tensor]:
        values = {name: p.detach() for name, p in self._model.named_parameters() if p.requires_grad}
        return values | {name: b.detach() for name, b in self._model.named_buffers()}

    def keep(self, step: int) -> None:
        """Keep the state as it is now in place of the one before."""
        self.step = step
        if self._path is None:
            self._held = {name: value.to("cpu", copy=True) for name, value in self._state().items()}
        elif self._processes().rank == 0:
            # Clones: buffers may share memory, which the format refuses.
            values = {name: value.cpu().clone().contiguous() for name, value in self._state().items()}
            with replacing(self._path) as temporary:
                save_file(values, temporary, metadata={"step": str(step)})

    @torch.no_grad()
    def restore(self) -> int:
        """Put the kept state back, in every process, and return its step. Raises RuntimeError where none was kept."""
        if self.step is None:
            raise RuntimeError("no state was kept: no measured state was without an alert, so there is none to restore")
        stored, processes = self._held, self._processes()
        if stored is None and processes.rank == 0:
            assert self._path is not None
            stored = load_file(self._path)
        now = self._state()
        problem = None
        if stored is not None and set(now) != set(stored):
            strange = sorted(set(now) ^ set(stored))
            problem = RuntimeError(
                f"the state of step {self.step} cannot be restored: other parameters are trained now than then "
                f"({len(strange)}, the first is {strange[0]})"
            )
        processes.agree(problem)
        for name, value in now.items():
            before = torch.empty_like(value, device="cpu") if stored is None else stored[name]
            value.copy_(before if self._held is not None else processes.from_first(before))
        return self.step
