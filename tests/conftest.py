"""A tiny CLIP in a folder, as any user's model is: config, weights, tokenizer, image processor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a CLIP with 3 blocks of width 32 and 4x4 patches, with random weights."""
    from attndrift.models import load_clip, load_processor

    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    load_clip("config:tiny").save_pretrained(folder)
    for part in load_processor("config:tiny"):
        part.save_pretrained(folder)
    return folder
