"""Logit distillation on reference images."""

from attndrift.losses.facts._shared import TemperatureSettings
from attndrift.losses.registry import LOSSES, Loss
from attndrift.methods.reference_settings import ReferenceSettings


class ReferenceDistillationSettings(ReferenceSettings, TemperatureSettings):
    """Temperature and images."""


LOSSES.register(
    Loss(
        name="reference_distillation",
        make="attndrift.losses.logit_distillation:ReferenceDistillation",
        label="logit distillation on reference images (ZSCL)",
        short_label="ZSCL",
        meaning="T^2 KL(pretrained || current) of the zero-shot logits at temperature T, mean over reference images",
        source="Zheng et al. 2023",
        formula="T^2 mean KL(softmax(l0/T) || softmax(l/T))",
        Settings=ReferenceDistillationSettings,
        needs=("registered backbone", "text tower", "reference images"),
        # As many reference images as the batch has, forward and backward.
        step_passes=3.0,
        reference_passes=1.0,
    )
)
