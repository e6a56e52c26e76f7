"""How far a model's linear layers have changed, as seen by the inputs that the pretrained model gives them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attndrift.drift.measured_model import MeasuredModel
from attndrift.drift.probe import Probe, read_probe
from attndrift.metrics.activations import activation_change
from attndrift.metrics.attention import wide_dtype
from attndrift.models.input_images import checked_images
from attndrift.models.parameters import bare, bare_parameters, live_parameters

_BATCH = 200


class _Layer(NamedTuple):
    """A linear layer: its inputs (tokens, in) in the pretrained model, and W0 h (tokens, out)."""

    inputs: Tensor
    outputs: Tensor


class ActivationChange:
    """Measures norm(dW h) / norm(W0 h) of every block, for a :class:`~attndrift.DriftMonitor`.

    ::

        change = ActivationChange(model, probe_images)                     # before the first step
        monitor = DriftMonitor(model, probe_images, activations=change)

    h are the inputs that the linear layers of a block have in the pretrained model: those of ``tokens`` tokens, evenly spaced
    over all tokens of the probe images. W is the weight that the layer computes with, its ``peft`` adapters included. The
    layers of a block count together, each squared norm being a sum over them. Biases, norms, and weights that are no layer of
    their own (``in_proj_weight`` of ``nn.MultiheadAttention``) are left out.

    Costs a forward pass of the pretrained model once, and at each measurement a product of ``tokens`` rows with every weight.

    Args:
        model: the pretrained model, or the model to be trained, without whose adapters it is the pretrained one.
        probe: normalised images, as for :class:`~attndrift.DriftMonitor`.
        tokens: rows of h that are kept of each layer.

    Raises:
        ObservationError: a model without a vision transformer that can be observed.
        ValueError: no linear layers in its blocks, merged adapters, or ``tokens`` below 1.
    """

    METRIC = "activation_change"

    def __init__(self, model: nn.Module, probe: Probe, *, tokens: int = 256) -> None:
        if tokens < 1:
            raise ValueError(f"tokens is {tokens}; it must be at least 1")
        measured, images = MeasuredModel.of(model), read_probe(probe)
        batches = images.split(_BATCH) if isinstance(images, Tensor) else images()
        with bare(measured.model, measured.modules), measured.preserved(), _inputs(measured, tokens) as seen:
            for batch in checked_images(batches, "probe"):
                measured.embed(batch, None)
        weights = bare_parameters(measured.tower.module)
        self._blocks: list[dict[str, _Layer]] = []
        for block in seen:
            kept = {name: _evenly(torch.cat(rows), tokens) for name, rows in block.items()}
            self._blocks.append({name: _Layer(rows, _product(rows, weights[name])) for name, rows in kept.items()})
        if not any(self._blocks):
            raise ValueError(
                f"{type(measured.model).__name__}: its blocks have no linear layers, so there is no relative activation change"
            )

    def __call__(self, model: nn.Module) -> Tensor:
        """(blocks,) float64 on the CPU, of ``model`` as it is now; NaN for a block without linear layers."""
        live = live_parameters(MeasuredModel.of(model).tower.module, {})
        found = []
        for block in self._blocks:
            now = [_product(layer.inputs, live[name]) for name, layer in block.items()]
            found.append(activation_change([layer.outputs for layer in block.values()], now))
        return torch.stack(found)


@contextmanager
def _inputs(measured: MeasuredModel, tokens: int) -> Iterator[list[dict[str, list[Tensor]]]]:
    """While open, what the linear layers of each block are given, by the name of their weight, at most ``tokens`` rows a pass."""
    family, tower, _ = measured.tower
    # The weight itself tells the layer: an adapter has it under another path.
    names = {value.data_ptr(): name for name, value in bare_parameters(tower).items()}
    seen: list[dict[str, list[Tensor]]] = []
    with ExitStack() as hooks:
        for block in family.blocks(tower):
            own: dict[str, list[Tensor]] = defaultdict(list)
            for part in tower.get_submodule(block.path).modules():
                name = names.get(part.weight.data_ptr()) if isinstance(part, nn.Linear) else None
                if name is not None:
                    keep = partial(_keep, own[name], tokens)
                    hooks.callback(part.register_forward_pre_hook(keep).remove)
            seen.append(own)
        yield seen


def _keep(rows: list[Tensor], tokens: int, _: nn.Module, given: tuple[Any, ...]) -> None:
    rows.append(_evenly(given[0].detach().flatten(0, -2), tokens).clone())


def _evenly(rows: Tensor, count: int) -> Tensor:
    """At most ``count`` of the rows, evenly spaced."""
    if len(rows) <= count:
        return rows
    return rows[torch.arange(count, device=rows.device) * len(rows) // count]


def _product(inputs: Tensor, weight: Any) -> Tensor:
    """W h of each row, in float64 where the device has it: a small change of W would drown in the rounding of W h."""
    wide = wide_dtype(inputs)
    return inputs.to(wide) @ weight.to(wide).T
