"""Metrics of the representation: class-token states and image embeddings, pretrained against adapted."""

from attndrift.metrics.registry import METRICS, Metric

METRICS.register(
    Metric(
        name="cka",
        headline=True,
        compute="attndrift.metrics.representation:linear_cka",
        needs="hidden states",
        label="CKA",
        meaning="similarity of pretrained and adapted class-token states; lower has drifted further. "
        "Biased upwards where images are fewer than dimensions",
        source="Kornblith et al. 2019",
        worse="lower",
        low=0.0,
        high=1.0,
        pretrained=1.0,
        last_block=True,
        cost="products of the images' states, a block",
    )
)
METRICS.register(
    Metric(
        name="cka_debiased",
        compute="attndrift.metrics.representation:debiased_linear_cka",
        needs="hidden states",
        label="Debiased CKA",
        meaning="CKA from the unbiased HSIC: 0 is chance whatever the number of images",
        source="Song et al. 2012; Nguyen et al. 2021",
        worse="lower",
        low=-1.0,
        high=1.0,
        bounds="about 0 .. 1",
        pretrained=1.0,
        cost="none beside CKA",
    )
)
METRICS.register(
    Metric(
        name="embedding_drift",
        headline=True,
        compute="attndrift.metrics.representation:embedding_drift",
        needs="embeddings",
        label="Embedding drift",
        meaning="how far image embeddings have turned from the pretrained ones; higher has drifted further",
        source="first study of this project",
        worse="higher",
        unit="1 − cosine",
        low=0.0,
        high=2.0,
        pretrained=0.0,
    )
)
METRICS.register(
    Metric(
        name="embedding_distance",
        compute="attndrift.metrics.representation:embedding_distance",
        needs="embeddings",
        label="Embedding distance",
        meaning="how far image embeddings have moved, over the mean norm of the pretrained ones; higher has moved further",
        source="first study of this project",
        worse="higher",
        unit="ratio of norms",
        analysed=False,
        low=0.0,
        pretrained=0.0,
    )
)
