"""Whether the weights of a model are those that were measured."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor, nn

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weights_checksum(model: nn.Module) -> tuple[int, ...]:
    """The sum of the bits of each parameter and buffer: other weights give other sums, on whatever device they lie.

    An average of the weights is often put in through ``.data``, which changes no version counter of a tensor.
    """
    tensors = {id(value): value for value in chain(model.parameters(), model.buffers())}
    sums = [_sum_of_bits(value.detach()) for value in tensors.values() if value.device.type != "meta"]
    return tuple(torch.stack([one.to(sums[0].device) for one in sums]).tolist()) if sums else ()


def checksums(parameters: Mapping[str, Tensor]) -> dict[str, int]:
    """The sum of the bits of each, by name. Waits for an accelerator once."""
    values = {name: value.detach() for name, value in parameters.items() if value.device.type != "meta"}
    sums = [_sum_of_bits(value) for value in values.values()]
    return (
        dict(zip(values, torch.stack([one.to(sums[0].device) for one in sums]).tolist(), strict=True)) if sums else {}
    )


def _sum_of_bits(values: Tensor) -> Tensor:
    if values.is_complex():
        values = torch.view_as_real(values)
    return values.view(_BITS[values.element_size()]).sum(dtype=torch.int64)
