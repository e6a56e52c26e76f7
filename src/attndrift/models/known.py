"""Models that are known by name: the revision that holds their ``safetensors``, and what they can be used for.

A commit stands here only where it was seen to hold the file. Where none was seen, ``revision`` is None and
:mod:`attndrift.models.hub` looks for one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Use = Literal["train", "observe", "open_clip"]


@dataclass(frozen=True)
class KnownModel:
    """A model on the hub.

    Attributes:
        name: of its repository.
        what: in a few words.
        use: ``train``: studies and ``compare`` take it; ``observe``: ``attndrift.observe`` and the
            monitor take it, loaded with ``transformers``; ``open_clip``: the same, loaded with ``open_clip``.
        revision: commit that holds ``model.safetensors``; None where no such commit is known.
        licence: as its card states it; None where it states none.
        size: bytes to download, about; None where they are not known.
        gated: whether the hub asks for an account and consent.
    """

    name: str
    what: str
    use: Use
    revision: str | None = None
    licence: str | None = None
    size: int | None = None
    gated: bool = False


KNOWN = {
    model.name: model
    for model in (
        KnownModel(
            "openai/clip-vit-base-patch32", "CLIP ViT-B/32", "train",
            "c237dc49a33fc61debc9276459120b7eac67e7ef", size=605_156_676,
        ),
        KnownModel(
            "openai/clip-vit-base-patch16", "CLIP ViT-B/16", "train", "5ef227a78de3f75873f373246dac80def63b0003",
        ),
        KnownModel(
            "openai/clip-vit-large-patch14", "CLIP ViT-L/14", "train", "32bd64288804d66eefd0ccbe215aa642df71cc41",
        ),
        KnownModel("openai/clip-vit-large-patch14-336", "CLIP ViT-L/14 at 336 px", "train", size=1_711_974_081),
        KnownModel(
            "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "CLIP ViT-B/32 trained on LAION-2B", "train",
            "1a25a446712ba5ee05982a381eed697ef9b435cf", "MIT",
        ),
        KnownModel(
            "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K", "CLIP ViT-B/32 trained on DataComp", "open_clip",
            "f0e2ffa09cbadab3db6a261ec1ec56407ce42912", "MIT",
        ),
        KnownModel(
            "facebook/metaclip-b32-400m", "MetaCLIP ViT-B/32", "train", licence="CC-BY-NC-4.0", size=605_240_770,
        ),
        KnownModel("facebook/metaclip-b32-fullcc2.5b", "MetaCLIP ViT-B/32 trained on 2.5B pairs", "train"),
        KnownModel(
            "google/siglip-base-patch16-224", "SigLIP ViT-B/16", "train",
            "7fd15f0689c79d79e38b1c2e2e2370a7bf2761ed", "Apache-2.0", 812_672_320,
        ),
        KnownModel(
            "google/siglip2-base-patch16-224", "SigLIP 2 ViT-B/16", "train",
            "75de2d55ec2d0b4efc50b3e9ad70dba96a7b2fa2", "Apache-2.0", 1_540_000_000,
        ),
        KnownModel(
            "facebook/dinov2-small", "DINOv2 ViT-S/14", "train",
            "ed25f3a31f01632728cabb09d1542f84ab7b0056", "Apache-2.0", 88_249_960,
        ),
        KnownModel("facebook/dinov2-base", "DINOv2 ViT-B/14", "train", licence="Apache-2.0"),
        KnownModel("facebook/dinov3-vits16-pretrain-lvd1689m", "DINOv3 ViT-S/16", "train", gated=True),
        KnownModel("facebook/dinov3-vitb16-pretrain-lvd1689m", "DINOv3 ViT-B/16", "train", gated=True),
    )
}  # fmt: skip
"""By repository."""
