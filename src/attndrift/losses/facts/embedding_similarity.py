"""Embedding distillation by the similarity matrix."""

from attndrift.losses.registry import LOSSES, Loss

LOSSES.register(
    Loss(
        name="embedding_similarity",
        make="attndrift.losses.embedding_distillation:EmbeddingSimilarity",
        label="embedding distillation (similarities)",
        short_label="embedding similarity",
        meaning="squared difference of the cosines between all pairs of a batch, mean over pairs",
        source="Tung and Mori 2019",
        formula="mean over pairs (cos(z_i, z_j) - cos(z0_i, z0_j))^2",
        needs=("registered backbone",),
        # Both orientations of every training image.
        cached_passes=2.0,
    )
)
