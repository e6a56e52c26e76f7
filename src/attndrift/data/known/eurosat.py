"""EuroSAT, the satellite images of the original study."""

from __future__ import annotations

from attndrift.data.registry import DATASETS, DatasetSpec

# Helber et al. name the classes for programs (`timm/eurosat-rgb` has these names); these are the words CLIP's authors
# used for them. `tanganke/eurosat` has the words already, which stay as they are.
_EUROSAT_SPOKEN = {
    "AnnualCrop": "annual crop land",
    "Forest": "forest",
    "HerbaceousVegetation": "brushland or shrubland",
    "Highway": "highway or road",
    "Industrial": "industrial buildings or commercial buildings",
    "Pasture": "pasture land",
    "PermanentCrop": "permanent crop land",
    "Residential": "residential buildings or homes or apartments",
    "River": "river",
    "SeaLake": "lake or sea",
}

DATASETS.register(
    DatasetSpec(
        name="eurosat",
        title="EuroSAT RGB: Sentinel-2 tiles, 10 kinds of land use (Helber et al. 2019)",
        origin="eurosat",
        hub="tanganke/eurosat",
        revision="43750fc422c7fbd4289e2df3f7473617a5937acc",
        mirrors=("timm/eurosat-rgb",),
        folders=("eurosat-rgb", "eurosat"),
        image_column="image",
        label_column="label",
        id_column="image_id",
        train_split="train",
        test_split="test",
        spoken=_EUROSAT_SPOKEN,
        # Of the images (Helber et al.); the card of the hub's copy states none.
        licence="MIT",
        prompts="eurosat",
    )
)
