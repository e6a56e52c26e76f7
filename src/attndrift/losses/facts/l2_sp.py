"""L2-SP."""

from attndrift.losses.facts._shared import check_weights_seen
from attndrift.losses.registry import LOSSES, Loss

LOSSES.register(
    Loss(
        name="l2_sp",
        make="attndrift.losses.l2_sp:L2SP",
        label="L2-SP",
        short_label="L2-SP",
        meaning="squared distance of the trained weights from the pretrained ones, summed over weights",
        source="Li et al. 2018",
        formula="sum (w - w0)^2",
        check=check_weights_seen,
    )
)
