"""Generated images: no download, the same ones everywhere."""

from __future__ import annotations

from attndrift.data.registry import DATASETS, DatasetSpec

DATASETS.register(
    DatasetSpec(
        name="objects",
        title="generated objects, for zero-shot transfer without a download",
        origin="generated-objects",
        load="attndrift.data.generated.dataset:load_generated",
        made="generated on demand",
        licence="Apache-2.0",
    )
)
DATASETS.register(
    DatasetSpec(
        name="tiles",
        title="generated land-use tiles, a stand-in for EuroSAT",
        origin="generated-tiles",
        load="attndrift.data.generated.dataset:load_generated",
        made="generated on demand",
        licence="Apache-2.0",
    )
)
DATASETS.register(
    DatasetSpec(
        name="critters",
        title="generated critters of many breeds, a stand-in for Oxford-IIIT Pet",
        origin="generated-critters",
        load="attndrift.data.generated.dataset:load_generated",
        made="generated on demand",
        licence="Apache-2.0",
        train_size=7400,
        test_size=1480,
    )
)
