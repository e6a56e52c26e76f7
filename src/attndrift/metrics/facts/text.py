"""Metrics of the text side, pretrained against adapted; without a value where nothing of it is trained."""

from attndrift.metrics.registry import METRICS, Metric

METRICS.register(
    Metric(
        name="text_embedding_drift",
        compute="attndrift.metrics.representation:embedding_drift",
        needs="texts",
        label="Text embedding drift",
        meaning="1 - mean cosine between pretrained and adapted embeddings of the target's class prompts; higher has moved "
        "further",
        source="this project; the text side of embedding drift",
        worse="higher",
        low=0.0,
        high=2.0,
        digits=4,
        pretrained=0.0,
        cost="a pass of the class prompts through the text tower",
    )
)
METRICS.register(
    Metric(
        name="text_weight_drift",
        compute="attndrift.metrics.weights:weight_drift",
        needs="text weights",
        label="Text weight drift",
        meaning="norm of the weight change of the text transformer over the norm of its pretrained weights; higher has moved "
        "further",
        source="this project; the text side of weight drift",
        worse="higher",
        unit="‖ΔW‖ / ‖W₀‖",
        low=0.0,
        digits=4,
        pretrained=0.0,
        cost="one pass over the weights",
    )
)
METRICS.register(
    Metric(
        name="text_projection_drift",
        compute="attndrift.metrics.weights:weight_drift",
        needs="text weights",
        label="Text projection drift",
        meaning="norm of the weight change of the text projection over the norm of its pretrained weights; higher has moved "
        "further",
        source="this project; the text side of projection drift",
        worse="higher",
        unit="‖ΔW‖ / ‖W₀‖",
        low=0.0,
        digits=4,
        pretrained=0.0,
    )
)
METRICS.register(
    Metric(
        name="logit_scale_change",
        compute=None,
        needs="text weights",
        label="Logit scale change",
        meaning="logarithm of the inverse temperature minus the pretrained one; above 0 is sharper, and neither side is "
        "harmful by itself",
        source="Radford et al. 2021, whose training keeps it below ln 100",
        worse="higher",
        unit="nats",
        pretrained=0.0,
    )
)
