"""The pretrained model that the runs of a study start from."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attndrift.methods.parameter_drift import squared_norms
from attndrift.models.backbone import backbone_of
from attndrift.models.embedding import image_embeddings
from attndrift.models.load import describe, load_model, load_processor, refuse_cut_images
from attndrift.models.reference import at_commit

_PREPROCESSING = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "image_mean", "image_std")


@dataclass
class Pretrained:
    """A backbone as it came, with what belongs to it; ``source`` names its commit."""

    source: str
    model: nn.Module
    tokenizer: Any
    image_processor: Any
    description: dict[str, Any]
    preprocessing: dict[str, Any]
    device: torch.device
    squared_norms: tuple[float, float]

    @classmethod
    def load(cls, source: str, device: torch.device) -> Pretrained:
        """The backbone called ``source`` (``NAME@COMMIT`` in a study), on ``device``."""
        model = load_model(source)
        backbone_of(model).prune()
        model.eval().to(device)
        tokenizer, image_processor = load_processor(source)
        refuse_cut_images(source, image_processor)
        description, processing = describe(source, model), image_processor.to_dict()
        return cls(
            source=at_commit(source, description.get("revision")),
            model=model,
            tokenizer=tokenizer,
            image_processor=image_processor,
            description=description,
            preprocessing={key: processing.get(key) for key in _PREPROCESSING},
            device=device,
            squared_norms=squared_norms(model),
        )

    @property
    def sha256(self) -> str:
        """Of the weights as they were loaded."""
        return str(self.description["weights_sha256"])

    def copy(self) -> nn.Module:
        """A copy of the model, on the CPU, to be adapted."""
        return copy.deepcopy(self.model).to("cpu")

    def embed(self, pixels: Tensor) -> Tensor:
        """Image embeddings of the pretrained model."""
        return image_embeddings(self.model, pixels)
