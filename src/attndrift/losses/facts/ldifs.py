"""LDIFS."""

from typing import Annotated, Any, Literal

from pydantic import Field

from attndrift.losses.hidden_layers import layer_numbers
from attndrift.losses.registry import LOSSES, Loss
from attndrift.own_settings import OwnSettings, setting


class LDIFSSettings(OwnSettings):
    """Which hidden states."""

    ldifs_layers: Annotated[str, Field(pattern=r"^(quarters|\d+( *, *\d+)*)$")] = setting(
        "quarters",
        "layers between commas, 0 the first block's input; quarters: the input and each quarter",
        label="layers ",
    )
    ldifs_tokens: Literal["class", "all"] = setting(
        "class",
        "class: its state divided by its length; all: each channel by its length over the tokens",
        label="tokens ",
    )


def _layers_exist(settings: Any, model: Any) -> None:
    from attndrift.attention.families import find_vision_tower  # needs torch, without which facts are read

    tower = find_vision_tower(model)
    depth = len(tower.family.blocks(tower.module))
    numbers = layer_numbers(settings.ldifs_layers, depth)
    if settings.ldifs_tokens == "all" and depth in numbers:
        earlier = ",".join(str(number) for number in numbers if number < depth) or "0"
        raise ValueError(
            f"`ldifs_tokens` is all, and in layer {depth}, the last, a study computes the class token alone; name earlier "
            f"layers: ldifs_layers: '{earlier}'"
        )


LOSSES.register(
    Loss(
        name="ldifs",
        make="attndrift.losses.ldifs:LDIFS",
        label="LDIFS",
        short_label="LDIFS",
        meaning="squared distance of the class token's normalised hidden states, mean over images and layers",
        source="Mukhoti et al. 2024",
        formula="mean ||h/||h|| - h0/||h0|| ||^2",
        Settings=LDIFSSettings,
        check=_layers_exist,
        # Both orientations of every training image.
        cached_passes=2.0,
    )
)
