"""Logit distillation on the images in training."""

from attndrift.losses.facts._shared import TemperatureSettings
from attndrift.losses.registry import LOSSES, Loss
from attndrift.own_settings import setting


class LogitDistillationSettings(TemperatureSettings):
    """Temperature and texts."""

    reference: str | None = setting(
        None, "dataset whose class names are the texts; by default the target's", label="reference "
    )


LOSSES.register(
    Loss(
        name="logit_distillation",
        make="attndrift.losses.logit_distillation:LogitDistillation",
        label="logit distillation (LwF)",
        short_label="LwF",
        meaning="T^2 KL(pretrained || current) of the zero-shot logits at temperature T, mean over the images in training",
        source="Li and Hoiem 2016",
        formula="T^2 mean KL(softmax(l0/T) || softmax(l/T))",
        Settings=LogitDistillationSettings,
        needs=("registered backbone", "text tower"),
        # Both orientations of every training image.
        cached_passes=2.0,
    )
)
