"""Embedding distillation by the squared difference."""

from attndrift.losses.registry import LOSSES, Loss

LOSSES.register(
    Loss(
        name="embedding_mse",
        make="attndrift.losses.embedding_distillation:EmbeddingMSE",
        label="embedding distillation (MSE)",
        short_label="embedding MSE",
        meaning="squared difference of image embeddings, mean over images and dimensions",
        source="Romero et al. 2015",
        formula="mean (z - z0)^2",
        needs=("registered backbone",),
        # Both orientations of every training image.
        cached_passes=2.0,
    )
)
