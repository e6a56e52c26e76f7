"""CIFAR-10 and CIFAR-100."""

from __future__ import annotations

from attndrift.data.registry import DATASETS, DatasetSpec

# The hub's copy has lost a letter of class 26, which is `crab` in Krizhevsky's own files.
_CIFAR100_SPOKEN = {"cra": "crab"}

DATASETS.register(
    DatasetSpec(
        name="cifar10",
        title="CIFAR-10: 32x32 photographs, 10 classes (Krizhevsky 2009)",
        origin="cifar-10",
        hub="uoft-cs/cifar10",
        config="plain_text",
        revision="0b2714987fa478483af9968de7c934580d0bb9a2",
        mirrors=("cifar10",),
        folders=("cifar10",),
        image_column="img",
        label_column="label",
        id_column="image_id",
        train_split="train",
        test_split="test",
        licence="unknown",
        prompts="cifar",
    )
)
DATASETS.register(
    DatasetSpec(
        name="cifar100",
        title="CIFAR-100: 32x32 photographs, 100 classes (Krizhevsky 2009)",
        origin="cifar-100",
        hub="uoft-cs/cifar100",
        config="cifar100",
        revision="aadb3af77e9048adbea6b47c21a81e47dd092ae5",
        mirrors=("cifar100",),
        folders=("cifar100",),
        image_column="img",
        label_column="fine_label",
        id_column="image_id",
        train_split="train",
        test_split="test",
        spoken=_CIFAR100_SPOKEN,
        licence="unknown",
        prompts="cifar",
    )
)
