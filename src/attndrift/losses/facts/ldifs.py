"""LDIFS."""

from typing import Annotated, Any

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


def _layers_exist(settings: Any, depth: int) -> None:
    layer_numbers(settings.ldifs_layers, depth)


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
