"""Metrics of labelled images that the model is not trained on, which the monitor measures on request."""

from attndrift.metrics.registry import METRICS, Metric

_COST = "forward passes of the labelled images and of their bank"

METRICS.register(
    Metric(
        name="knn_accuracy",
        compute=None,
        needs="labelled images",
        label="k-NN accuracy, monitored",
        meaning="k-NN accuracy on labelled images that are not trained on, in a loop of your own (KNNRetention)",
        source="Wu et al. 2018; Oquab et al. 2023",
        worse="lower",
        low=0.0,
        high=1.0,
        analysed=False,
        cost=_COST,
    )
)
METRICS.register(
    Metric(
        name="knn_retention_pct",
        compute=None,
        needs="labelled images",
        label="k-NN retention, monitored",
        meaning="100 x k-NN accuracy / that of the pretrained model, on the same labelled images; null at chance",
        source="this project",
        worse="lower",
        unit="%",
        low=0.0,
        digits=1,
        pretrained=100.0,
        analysed=False,
        cost=_COST,
    )
)
