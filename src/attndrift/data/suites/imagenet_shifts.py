"""The natural distribution shifts of ImageNet."""

from __future__ import annotations

from attndrift.data.registry import SUITES, Suite

SUITES.register(
    Suite(
        name="imagenet-shifts",
        title="natural shifts of ImageNet: V2, A, R, Sketch and ObjectNet, each with the classes that it has",
        sets=("wds_imagenetv2", "wds_imagenet-a", "wds_imagenet-r", "wds_imagenet_sketch", "wds_objectnet"),
        source="Radford et al. 2021; Wortsman et al. 2022",
    )
)
