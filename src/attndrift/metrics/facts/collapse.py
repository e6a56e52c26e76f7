"""Metrics of the cloud of image embeddings: has it collapsed, has it changed its shape?"""

from attndrift.metrics.registry import METRICS, Metric

METRICS.register(
    Metric(
        name="effective_rank",
        compute="attndrift.metrics.collapse:effective_rank",
        needs="own embeddings",
        label="Effective rank",
        meaning="dimensions that the image embeddings spread over, of the centred matrix; lower is dimensional collapse",
        source="Roy and Vetterli 2007",
        worse="lower",
        unit="dimensions",
        low=1.0,
        bounds="1 .. min(images - 1, dimensions)",
        digits=1,
        cost="a singular value decomposition of the probe's embeddings",
    )
)
METRICS.register(
    Metric(
        name="mean_cosine",
        compute="attndrift.metrics.collapse:mean_pairwise_cosine",
        needs="own embeddings",
        label="Mean pairwise cosine",
        meaning="mean cosine of the embeddings of two different images, not centred; 1 is complete collapse",
        source="Ethayarajh 2019",
        worse="higher",
        unit="cosine",
        low=-1.0,
        high=1.0,
    )
)
METRICS.register(
    Metric(
        name="procrustes_residual",
        compute="attndrift.metrics.collapse:procrustes_residual",
        needs="embeddings",
        label="Procrustes residual",
        meaning="change of the image embeddings that no rotation, reflection, scale or shift undoes; higher has changed shape",
        source="Schoenemann 1966; Ding et al. 2021",
        worse="higher",
        low=0.0,
        high=1.0,
        digits=4,
        pretrained=0.0,
        cost="a singular value decomposition of the probe's embeddings",
    )
)
METRICS.register(
    Metric(
        name="modality_gap",
        compute="attndrift.metrics.collapse:modality_gap",
        needs="own images and texts",
        label="Modality gap",
        meaning="distance of the mean image embedding from the mean embedding of the target's class prompts, all of length 1; "
        "neither side is harmful by itself",
        source="Liang et al. 2022",
        worse="higher",
        low=0.0,
        high=2.0,
        cost="a pass of the class prompts through the text tower, once where it is frozen",
    )
)
