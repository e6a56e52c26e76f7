"""FusionBench's sets and checkpoints as its authors keep them on the hub: few classes, small generated images, small towers."""

from __future__ import annotations

import json

from hub_datasets import Features, _repository, words
from hub_models import B32, old_config, weights
from hub_server import Repository, commit_id
from safetensors.torch import save

from attndrift.data.registry import DATASETS, SUITES

CLASSES = words("red green blue yellow brown grey white black pink")
TOWERS = ("sun397", "stanford-cars", "resisc45", "svhn", "gtsrb", "mnist", "dtd")
"""Beside EuroSAT's, which ``hub_models`` has."""


def sets() -> list[Repository]:
    """The seven sets beside EuroSAT, at the commits that the registry names."""
    found = []
    for place, name in enumerate(one for one in SUITES["fusionbench-8"].sets if one != "eurosat"):
        spec = DATASETS[name]
        # By the number of classes the images of two sets differ: equal ones would be refused.
        features: Features = {"image": "image", "label": CLASSES[: 3 + place]}
        found.append(
            _repository(
                str(spec.hub), str(spec.revision), features, {"train": 30, "test": 5}, image="image", label="label",
                size=32, config=spec.config or "default",
            )
        )  # fmt: skip
    return found


def towers() -> list[Repository]:
    """Their checkpoints: ``CLIPVisionModel`` with weights of its own each."""
    found = []
    for place, name in enumerate(TOWERS):
        tower = json.loads(old_config())["vision_config"] | {"architectures": ["CLIPVisionModel"], "_name_or_path": B32}
        held = {key: value for key, value in weights(10 + place).items() if key.startswith("vision_model.")}
        files = {
            "config.json": json.dumps(tower).encode(),
            "model.safetensors": save(held, metadata={"format": "pt"}),
        }
        repository = Repository(f"tanganke/clip-vit-base-patch32_{name}")
        repository.commit("main", commit_id(name), files, author="tanganke", title="Upload model")
        found.append(repository)
    return found
