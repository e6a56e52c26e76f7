"""The entropy floor."""

from typing import Annotated

from pydantic import Field

from attndrift.losses.registry import LOSSES, Loss
from attndrift.own_settings import OwnSettings, setting


class EntropyFloorSettings(OwnSettings):
    """Of the floor."""

    entropy_floor_fraction: Annotated[float, Field(gt=0, le=1)] = setting(
        0.7, "the floor as a share of the pretrained layer mean", label="floor "
    )


LOSSES.register(
    Loss(
        name="entropy_floor",
        make="attndrift.losses.entropy_floor:EntropyFloor",
        label="the entropy floor",
        short_label="entropy floor",
        meaning="entropy missing below a share of the pretrained layer mean, summed over layers",
        source="first study of this project",
        formula="sum over layers of mean max(0, f H0 - H)",
        Settings=EntropyFloorSettings,
        needs=("attention",),
        reports_active=True,
    )
)
