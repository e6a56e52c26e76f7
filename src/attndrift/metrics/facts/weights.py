"""Metrics of the weights, pretrained against adapted."""

from attndrift.metrics.registry import METRICS, Metric

METRICS.register(
    Metric(
        name="weight_drift",
        compute="attndrift.metrics.weights:weight_drift",
        needs="weights",
        label="Weight drift",
        meaning="norm of the weight change of the vision transformer over the norm of its pretrained weights; "
        "higher has moved further",
        source="first study of this project",
        worse="higher",
        unit="‖ΔW‖ / ‖W₀‖",
        low=0.0,
        digits=4,
        pretrained=0.0,
        cost="one pass over the weights, and a copy of them",
    )
)
METRICS.register(
    Metric(
        name="projection_drift",
        compute="attndrift.metrics.weights:weight_drift",
        needs="weights",
        label="Projection drift",
        meaning="norm of the weight change of the visual projection over the norm of its pretrained weights; "
        "higher has moved further",
        source="first study of this project",
        worse="higher",
        unit="‖ΔW‖ / ‖W₀‖",
        low=0.0,
        digits=4,
        pretrained=0.0,
    )
)
METRICS.register(
    Metric(
        name="activation_change",
        compute=None,
        needs="layer inputs",
        label="Relative activation change",
        short_label="Activation change",
        meaning="norm of the weight change times the pretrained inputs of a block's linear layers, over that of the pretrained "
        "weights; higher has changed more of what these images use",
        source="PEFT-Arena (capability-conditioned drift, of which this is the root)",
        worse="higher",
        unit="‖ΔW h‖ / ‖W₀ h‖",
        low=0.0,
        digits=4,
        pretrained=0.0,
        last_block=True,
        cost="a forward pass once, then a product of 256 rows with every weight; only on request",
    )
)
