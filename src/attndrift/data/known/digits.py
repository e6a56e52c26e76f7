"""The handwritten digits that come with scikit-learn."""

from __future__ import annotations

from attndrift.data.registry import DATASETS, DatasetSpec

DATASETS.register(
    DatasetSpec(
        name="digits",
        title="8x8 handwritten digits that come with scikit-learn (Alpaydin and Kaynak 1998)",
        origin="optdigits",
        load="attndrift.data.generated.dataset:load_digits",
        made="comes with scikit-learn",
        licence="CC-BY-4.0",
    )
)
