"""Metrics of the class token's attention."""

from attndrift.metrics.registry import METRICS, Metric

METRICS.register(
    Metric(
        name="entropy",
        headline=True,
        compute="attndrift.metrics.attention:entropy",
        needs="attention",
        label="Entropy",
        meaning="spread of the class token's attention over the N patches; lower is more concentrated",
        source="Shannon 1948",
        worse="lower",
        unit="nats",
        low=0.0,
        bounds="0 .. ln N",
        last_block=True,
        cost="one fused pass over the rows",
    )
)
METRICS.register(
    Metric(
        name="erf95",
        compute="attndrift.metrics.attention:erf",
        needs="attention",
        label="ERF@0.95",
        meaning="effective receptive field: patches that carry 95% of the attention; lower is narrower",
        source="first study of this project, ERF@0.95",
        worse="lower",
        unit="share of patches",
        low=0.0,
        high=1.0,
        bounds="1/N .. 1",
        cost="one fused pass over the rows",
    )
)
METRICS.register(
    Metric(
        name="gini",
        compute="attndrift.metrics.attention:gini",
        needs="attention",
        label="Gini",
        meaning="inequality of attention among patches; higher is more concentrated",
        source="Hurley and Rickard 2009",
        worse="higher",
        low=0.0,
        high=1.0,
        bounds="0 .. (N-1)/N",
        cost="one fused pass over the rows",
    )
)
METRICS.register(
    Metric(
        name="head_diversity",
        compute="attndrift.metrics.attention:diversity_of_heads",
        needs="mean maps",
        label="Head diversity",
        meaning="how much the heads' mean maps differ; lower means heads look at the same patches",
        source="first study of this project",
        worse="lower",
        unit="1 − cosine",
        low=0.0,
        # A mean over layers may be rounded; two maps that share no patch have 1.
        high=2.0,
        bounds="0 .. 1",
        cost="one sum of maps a batch",
    )
)
METRICS.register(
    Metric(
        name="cls_mass",
        compute=None,
        needs="class token",
        label="CLS-to-CLS mass",
        meaning="attention of the class token to itself, which renormalising over patches drops; "
        "a rise is an attention sink on the class token",
        source="Xiao et al. 2023 (attention sinks)",
        worse="higher",
        unit="share of attention",
        low=0.0,
        high=1.0,
    )
)
METRICS.register(
    Metric(
        name="rollout",
        compute="attndrift.metrics.attention:rollout",
        needs="full maps",
        label="Attention rollout",
        meaning="flow from the class token to each patch through all layers",
        source="Abnar and Zuidema 2020",
        worse="lower",
        unit="share of attention",
        low=0.0,
        high=1.0,
        bounds="0 .. 1 a patch",
        cost="full maps of every layer, so only on request",
    )
)
