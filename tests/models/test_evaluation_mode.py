"""Evaluation leaves nothing behind, also in layers whose ``train`` does more than set a flag."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attndrift.models.evaluation import evaluation_mode, preserve_state


class Merging(nn.Linear):
    """As loralib's layers: the adapter is a part of the weight in evaluation mode alone."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.added, self.merged = nn.Parameter(torch.ones(3, 3)), False

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if self.merged == mode:
            self.weight.data += self.added.data if not mode else -self.added.data
            self.merged = not mode
        return self


@pytest.mark.parametrize("manager", [evaluation_mode, preserve_state])
@pytest.mark.parametrize("training", [True, False])
def test_a_layer_that_merges_is_as_it_was(manager: object, training: bool) -> None:
    model = nn.Sequential(Merging(), nn.Dropout(), nn.Sequential(Merging())).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with manager(model):  # type: ignore[operator]
        assert all(part.merged for part in model.modules() if isinstance(part, Merging))
    for part in model.modules():
        assert part.training is training
        if isinstance(part, Merging):
            assert part.merged is not training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6)
