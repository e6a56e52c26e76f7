"""Which hidden states a loss compares, as its settings write them; nothing here needs torch."""

from __future__ import annotations


def layer_numbers(layers: str, depth: int) -> list[int]:
    """The layers of a tower with ``depth`` blocks: 0 is the first block's input, L what the L-th block puts out.

    >>> layer_numbers("quarters", 12), layer_numbers("0,6", 12)
    ([0, 3, 6, 9, 12], [0, 6])

    Raises ValueError for a layer that the tower does not have.
    """
    if layers == "quarters":
        return sorted({round(depth * quarter / 4) for quarter in range(5)})
    found = sorted({int(number) for number in layers.split(",")})
    if found[-1] > depth:
        raise ValueError(f"`ldifs_layers` names layer {found[-1]}; the model has {depth} blocks")
    return found
