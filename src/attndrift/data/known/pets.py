"""Oxford-IIIT Pet."""

from __future__ import annotations

from attndrift.data.registry import DATASETS, DatasetSpec

DATASETS.register(
    DatasetSpec(
        name="pets",
        title="Oxford-IIIT Pet: 37 breeds of cats and dogs (Parkhi et al. 2012)",
        origin="oxford-iiit-pet",
        hub="timm/oxford-iiit-pet",
        folders=("pets", "oxford-iiit-pet"),
        image_column="image",
        label_column="label",
        id_column="image_id",
        train_split="train",
        test_split="test",
        licence="CC-BY-SA-4.0",
        prompts="pets",
    )
)
