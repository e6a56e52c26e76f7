"""Attention preservation."""

from attndrift.losses.registry import LOSSES, Loss

LOSSES.register(
    Loss(
        name="attention_preservation",
        make="attndrift.losses.attention_preservation:AttentionPreservation",
        label="attention preservation (APR)",
        short_label="APR",
        meaning="KL(current || pretrained) of the attention, mean over images, heads and layers",
        source="first study of this project",
        formula="mean KL(a || a0)",
        needs=("attention",),
        # Both orientations of every training image.
        cached_passes=2.0,
    )
)
