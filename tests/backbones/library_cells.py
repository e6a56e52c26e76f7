"""What the matrix of ``tests/models`` does not ask: losses, guard, outcomes, and the callback of Lightning."""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from attndrift import Budget, DriftMonitor, Guard
from attndrift.losses import L2SP, LDIFS, AttentionPreservation, EmbeddingCosine
from attndrift.models.backbone import backbone_of
from attndrift.models.load import load_model
from attndrift.study.executor import Executor
from attndrift.study.resources import StudyResources
from attndrift.study.settings import NamedRun, RunSettings

sys.path.append(str(Path(__file__).parents[1] / "models"))
from backbone_matrix import CELLS, RUN, Cell, _Reporter, adapted, pixels


def losses(name: str, source: str, work: Path) -> str:
    """A loss is nothing at the start, is something for a model that moved, and reaches the tower's weights."""
    images = pixels(source)
    for kind in (AttentionPreservation, LDIFS, L2SP, EmbeddingCosine):
        model, _ = adapted(source, "full")
        preserve = kind(model, 1.0)
        model.embed(images)
        assert float(preserve(model).detach()) < 1e-6, kind.__name__
        with torch.no_grad():
            for value in model.view.tower.parameters():
                value.add_(0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
        model.embed(images)
        loss = preserve(model)
        assert float(loss.detach()) > 1e-6, kind.__name__
        loss.backward()
        assert any(p.grad is not None and bool(p.grad.any()) for p in model.view.blocks[0].parameters()), kind.__name__
    return "attention, LDIFS, L2-SP, embedding cosine"


def guard(name: str, source: str, work: Path) -> str:
    """A budget on the embeddings holds through a training that would break it."""
    model, images = adapted(source, "full")[0], pixels(source, 8)
    free = copy.deepcopy(model)
    for trained, budget in ((free, None), (model, Budget("embedding_drift", at_most=0.05))):
        monitor = DriftMonitor(trained, images)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            keeper = None if budget is None else Guard(monitor, budget, every=1, echo=None)
        optimizer = torch.optim.SGD(trained.parameters(), 0.2)
        for number in range(1, 4):
            loss = cross_entropy(trained(images).logits, torch.arange(8) % 3)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if keeper is not None:
                keeper.step(number)
        found = monitor.measure().embedding_drift
        assert (found > 0.05) == (budget is None), found
    return f"embedding drift {found:.3f}"


def outcomes(name: str, source: str, work: Path) -> str:
    """A run with adapters and a loss, and WiSE-FT of it: half of the way is half of the drift."""
    model = load_model(source)
    targets = "qkv,fc1" if hasattr(getattr(backbone_of(model).blocks[0], "attn", None), "qkv") else "fc1,fc2"
    settings = RunSettings(
        model=source, method="lora", lora_rank=2, lora_targets=targets, lora_dropout=0, loss="attention_preservation:1",
        measures=("knn",), outcomes=("wise_ft:0.5",), **{**RUN, "monitor_zero_shot_images": 0},
    )  # fmt: skip
    (work / "run").mkdir()
    record = Executor(StudyResources(work / "cache"))(
        NamedRun(run_id="run", settings=settings), work / "run", _Reporter()
    )
    whole, half = (row["weight_drift"] for row in (record["row"], record["outcomes"][0]["row"]))
    assert abs(half / whole - 0.5) < 0.05, (half, whole)
    return f"WiSE-FT, weights {whole:.3f} and {half:.3f}"


def lightning(name: str, source: str, work: Path) -> str:
    """The callback follows a training of Lightning and ends with what the monitor says of the model."""
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader

    from attndrift.callbacks import LightningDriftCallback

    class Module(LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = adapted(source, "full")[0]

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return cross_entropy(self.model(batch).logits, torch.arange(len(batch)) % 3)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.05)

    module, images = Module(), pixels(source, 8)
    monitor = DriftMonitor(module.model, images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            max_epochs=1, callbacks=[LightningDriftCallback(monitor, every=1)], accelerator="cpu", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=work,
        )  # fmt: skip
        trainer.fit(module, DataLoader(images, 4))  # type: ignore[arg-type]
    drifts = [found.weight_drift for found in monitor.measured.values()]
    assert len(drifts) >= 2
    assert drifts[-1] > 0
    return f"{len(drifts)} measurements"


LIBRARY_CELLS: dict[str, Cell] = {
    **CELLS, "losses": losses, "guard": guard, "outcomes": outcomes, "lightning": lightning,
}  # fmt: skip
"""By the name of the column."""
