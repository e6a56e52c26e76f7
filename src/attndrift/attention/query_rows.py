"""What the query rows of one forward pass say: attention, its logarithm, and what renormalising dropped."""

from __future__ import annotations

import torch
from torch import Tensor

from attndrift.attention.errors import ObservationError
from attndrift.metrics import kernels

# Imports inside functions: these packages take time to load, which only who needs them pays.

_ROW_SUM_TOLERANCE = 1e-4


class QueryRows:
    """Attention logits of the query, one tensor (images, heads, T) a layer, and what is derived of them when it is read.

    Args:
        logits: a layer each.
        layers: names of the layers, for messages.
        prefix_tokens: tokens before the patches, which are left out.
        gradients: whether what is derived is part of the graph.
        check: whether the first reading checks that every row sums to 1, for which an accelerator is waited for.
    """

    def __init__(
        self, logits: list[Tensor], layers: list[str], prefix_tokens: int, *, gradients: bool, check: bool
    ) -> None:
        self._logits = logits
        self._names = layers
        self._prefix = prefix_tokens
        self._gradients = gradients
        self._unchecked = check
        self._derived: dict[str, list[Tensor]] = {}
        self._layers: dict[str, list[Tensor]] = {}

    def read(self, name: str) -> list[Tensor]:
        """Per layer ``attention``, ``log_attention`` or ``cls_mass``.

        Raises ObservationError for rows that do not sum to 1; the message names the layer.
        """
        if self._unchecked:
            self._check()
        if name not in self._layers:
            self._layers[name] = [layer for stack in self._stacks(name) for layer in stack.unbind(0)]
        return list(self._layers[name])

    def _stacks(self, name: str) -> list[Tensor]:
        """Layers of one shape in one tensor (layers, images, ...): a few operations for all instead of for each."""
        if name not in self._derived:
            # Where it is read must not decide whether it carries gradients: reading inside no_grad to log a
            # number would otherwise leave a loss read later without its graph.
            with torch.inference_mode(False), torch.set_grad_enabled(self._gradients):
                self._derived[name] = self._derive(name)
        return self._derived[name]

    def _derive(self, name: str) -> list[Tensor]:
        prefix = self._prefix
        if name != "logits" and not self._gradients and self._read_at_once():
            return self._derived[name]
        if name == "log_attention":
            return [torch.log_softmax(logits[..., prefix:], -1) for logits in self._stacks("logits")]
        if name == "attention":
            return [logs.exp() for logs in self._stacks("log_attention")]
        if name == "cls_mass":
            return [
                torch.exp(logits[..., :prefix].logsumexp(-1) - logits.logsumexp(-1))
                if prefix
                else logits.new_zeros(logits.shape[:-1])
                for logits in self._stacks("logits")
            ]
        layers, self._logits = self._logits, []
        kinds = {(layer.shape, layer.device, layer.dtype, layer.requires_grad) for layer in layers}
        return [torch.stack(layers)] if len(kinds) == 1 else [layer.unsqueeze(0) for layer in layers]

    def _read_at_once(self) -> bool:
        """Attention, its logarithm and what was dropped from one look at the rows, where there is a kernel for it."""
        stacks = self._stacks("logits")
        rows = all(stack.dtype == torch.float32 and stack.shape[-1] <= kernels.LONGEST for stack in stacks)
        if not rows or not kernels.usable(*stacks):
            return False
        from attndrift.metrics.kernels.rows import read_rows

        found = zip(*(read_rows(stack, self._prefix) for stack in stacks), strict=True)
        for name, values in zip(("log_attention", "attention", "cls_mass"), found, strict=True):
            self._derived[name] = list(values)
        return True

    def _check(self) -> None:
        """Check that every row sums to 1."""
        with torch.no_grad():
            # Attention itself would become part of the graph where only its logarithm is asked for.
            stacks = (
                [a.detach().exp() for a in self._stacks("log_attention")]
                if self._gradients
                else self._stacks("attention")
            )
            deviations = [value for a in stacks for value in (a.sum(-1) - 1).abs().flatten(1).amax(1).tolist()]
        for layer, deviation in zip(self._names, deviations, strict=True):
            # Also true for NaN.
            if not deviation <= _ROW_SUM_TOLERANCE:
                raise ObservationError(
                    f"{layer}: attention rows do not sum to 1 (they are off by {deviation:g}); "
                    "its queries or keys are NaN or infinite, so the model has diverged or overflowed"
                )
        self._unchecked = False
