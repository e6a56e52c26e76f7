"""The full-size path: ViT-B/32 from its config at 224 pixels, a step of each method, nothing shrunk but the data."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from attndrift.attention import observe
from attndrift.drift import DriftMonitor, take_snapshot
from attndrift.losses import attention_preservation_loss, entropy_floor_loss
from attndrift.methods import AdaptationSettings, adapt
from attndrift.methods.parameter_drift import weight_drift
from attndrift.models import load_model, load_processor
from attndrift.retention.zero_shot import TextFeatures, evaluate_zero_shot

METHODS = [
    AdaptationSettings("full"),
    AdaptationSettings("full", freeze_layers=9),
    AdaptationSettings("lora"),
    AdaptationSettings("lora", lora_targets="q,k,v,out", train_projection=False),
    AdaptationSettings("last_block", train_projection=True),
    AdaptationSettings("linear_probe"),
]


class _Images:
    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def fetch(self, positions: range) -> Tensor:
        return self.pixels[list(positions)]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_one_step_of_each_method_on_vit_b32() -> None:
    torch.manual_seed(0)
    pretrained = load_model("config:vit-base-patch32")
    text = TextFeatures.of(pretrained, load_processor("config:vit-base-patch32")[0], [f"thing {i}" for i in range(20)])
    pixels = torch.randn(8, 3, 224, 224)
    before = take_snapshot(pretrained, [pixels])
    assert before.structure.heads("entropy").shape == (12, 12)
    with torch.no_grad(), observe(pretrained) as seen:
        pretrained.get_image_features(pixel_values=pixels[:4])
    reference = [layer.clone() for layer in seen.log_attention]
    assert reference[0].shape == (4, 12, 49)
    for settings in METHODS:
        model = adapt(copy.deepcopy(pretrained), settings, 10, seed=0)
        monitor = DriftMonitor(
            model, pixels, reference=before, weight_drift=lambda model=model: (weight_drift(model, pretrained), None)
        )
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
        for _ in range(2 if settings.method == "lora" else 1):
            optimizer.zero_grad()
            with observe(model, gradients=True) as seen:
                loss = model.train()(pixel_values=pixels[:4], labels=torch.tensor([0, 1, 2, 3])).loss
            floor, _ = entropy_floor_loss(seen.log_attention, before.structure.layers("entropy"), 1.0)
            loss = loss + 0.1 * attention_preservation_loss(seen.log_attention, reference) + 0.1 * floor
            loss.backward()
            assert torch.isfinite(loss)
            optimizer.step()
        drift = monitor.measure()
        moves = settings.method != "linear_probe"
        assert (drift.weight_drift or 0.0) > 0 if moves else drift.weight_drift == 0
        assert (drift.embedding_drift > 0) == moves
        result = evaluate_zero_shot(
            model, _Images(pixels), [0] * 8, text_features=text, pretrained_embeddings=before.embeddings,
            weight_drift=drift.weight_drift,
        )  # fmt: skip
        assert result.n == 8
        assert result.moved is not None
        assert (result.moved[0] > 0) == moves
