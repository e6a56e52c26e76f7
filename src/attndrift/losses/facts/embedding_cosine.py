"""Embedding distillation by the cosine."""

from attndrift.losses.registry import LOSSES, Loss

LOSSES.register(
    Loss(
        name="embedding_cosine",
        make="attndrift.losses.embedding_distillation:EmbeddingCosine",
        label="embedding distillation (cosine)",
        short_label="embedding cosine",
        meaning="one minus the cosine of image embeddings, mean over images",
        source="TAO CLIP, NVIDIA",
        formula="mean (1 - cos(z, z0))",
        needs=("registered backbone",),
        # Both orientations of every training image.
        cached_passes=2.0,
    )
)
