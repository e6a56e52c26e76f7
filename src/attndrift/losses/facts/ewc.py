"""Elastic weight consolidation."""

from attndrift.losses.facts._shared import check_weights_seen
from attndrift.losses.registry import LOSSES, Loss
from attndrift.methods.reference_settings import ReferenceSettings

LOSSES.register(
    Loss(
        name="ewc",
        make="attndrift.losses.ewc:EWC",
        label="EWC",
        short_label="EWC",
        meaning="half the squared distance of the weights from the pretrained ones, each times its Fisher information",
        source="Kirkpatrick et al. 2017",
        formula="1/2 sum F (w - w0)^2",
        Settings=ReferenceSettings,
        needs=("registered backbone", "text tower", "reference images"),
        reference_passes=3.0,
        check=check_weights_seen,
    )
)
