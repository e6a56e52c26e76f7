"""Preservation losses in a study: what each one holds, alone and summed; and what is refused before anything runs."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from attndrift.cli.progress import StudyConsole
from attndrift.losses import LOSSES, Loss
from attndrift.models.backbone import BACKBONES, BackboneSpec
from attndrift.results.tables import read_tables
from attndrift.study.executor import Executor
from attndrift.study.loading import StudyError, parse_study
from attndrift.study.plan import plan
from attndrift.study.resolved import device_of
from attndrift.study.resources import StudyResources
from attndrift.study.runner import run_study

SHARED = """
name: losses
shared:
  model: config:tiny
  dataset: digits
  train_per_class: 6
  validation_per_class: 2
  probe_size: 20
  test_limit: 20
  epochs: 2
  batch_size: 20
  learning_rate: 1e-3
  transfer: [objects]
  transfer_limit: 50
  monitor_zero_shot_images: 20
  evaluations_per_epoch: 1
  map_images: 0
  threads: 1
  keep: best
  trackers: []
runs:
"""

STRONG = {
    "l2_sp": ("lora", 30),
    "ewc": ("full", 1e6),
    "ldifs": ("full", 100),
    "embedding_mse": ("lora", 30),
    "embedding_cosine": ("full", 100),
    "embedding_similarity": ("full", 100),
    "logit_distillation": ("full", 30),
    "lipsum": ("lora", 3),
    "reference_distillation": ("lora", 30),
}
"""A method, and a weight at which each loss is stronger than the task's."""


def text(runs: list[str]) -> str:
    return SHARED + "".join(f"  - {{experiment: r{number}, {run}}}\n" for number, run in enumerate(runs))


def own(*losses: str) -> str:
    """Reference images for the losses that need them."""
    fields = {field for loss in losses for field in LOSSES[loss].Settings.model_fields}
    given = {"reference": "tiles", "reference_images": "20"}
    return "".join(f", {name}: {value}" for name, value in given.items() if name in fields)


RUNS = [
    "method: full",
    "method: lora",
    *(f"method: {method}, loss: '{name}:{weight}'{own(name)}" for name, (method, weight) in STRONG.items()),
    "method: full, loss: 'l2_sp:0.5+ldifs:0.1'",
    f"method: full, loss: '{'+'.join(f'{name}:0' for name in LOSSES.names())}'{own(*LOSSES.names())}",
]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "losses"
    console = StudyConsole(console=Console(file=io.StringIO()))
    with Executor(StudyResources(folder.parent / "cache")) as execute:
        outcome = run_study(parse_study(text(RUNS), where="study"), folder, execute, console)
    assert set(outcome.statuses.values()) == {"finished"}, outcome
    return folder


@pytest.mark.slow
@pytest.mark.ci("study")
def test_each_loss_holds_the_model(study: Path) -> None:
    runs = read_tables(study).runs.set_index("experiment")
    for number, (name, (method, _)) in enumerate(STRONG.items(), 2):
        row, free = runs.loc[f"r{number}"], runs.loc["r0" if method == "full" else "r1"]
        assert (row["method"], row["loss"].partition(":")[0]) == (method, name)
        column = "weight_drift" if name in ("l2_sp", "ewc") else "embedding_drift"
        assert abs(row[column]) < abs(free[column]), (method, name)


@pytest.mark.slow
@pytest.mark.ci("study")
def test_weight_zero_is_no_loss(study: Path) -> None:
    ids = read_tables(study).runs.set_index("experiment")["run_id"]
    folders = [study / "runs" / ids[one] / "checkpoints" / "best" for one in ("r0", f"r{len(RUNS) - 1}")]
    without, with_all = ({path.name: load_file(path) for path in folder.rglob("*.safetensors")} for folder in folders)
    assert without.keys() == with_all.keys() != set()
    for file, weights in without.items():
        for name, value in weights.items():
            assert torch.equal(value, with_all[file][name]), (file, name)


@pytest.mark.slow
@pytest.mark.ci("study")
def test_tables_and_records_tell_of_the_losses(study: Path) -> None:
    tables = read_tables(study)
    runs = tables.runs.set_index("experiment")
    summed, ewc = runs.loc[f"r{len(RUNS) - 2}"], runs.loc[f"r{2 + list(STRONG).index('ewc')}"]
    assert summed["loss"] == "l2_sp:0.5+ldifs:0.1"
    parts = tables.losses[tables.losses["run_id"] == summed["run_id"]].set_index("loss")["weight"]
    assert parts.to_dict() == {"l2_sp": 0.5, "ldifs": 0.1}
    assert (ewc["reference"], ewc["reference_images"]) == ("tiles", 20)
    assert "dataset tiles" in (study / "runs" / ewc["run_id"] / "inputs.json").read_text()


@pytest.mark.slow
def test_a_reference_that_is_a_transfer_set_gives_other_images(tmp_path: Path) -> None:
    (run,) = parse_study(
        text(["method: full, loss: 'ewc:1', reference: objects, reference_images: 50"]), where="s"
    ).runs
    resources = StudyResources(tmp_path)
    pretrained = resources.pretrained("config:tiny", device_of(run.settings))
    target = resources.target(run.settings, pretrained)
    transfer, _ = resources.transfer_sets(run.settings, target, pretrained)
    found = resources.reference(run.settings, target, pretrained, transfer)
    assert found is not None
    assert len(found.part) == len(found.pixels) == 50
    for part in transfer[0].parts:
        assert not set(part.part.ids) & set(found.part.ids) or part.part.split != found.part.split


BAD = [
    ("method: full, ldifs_layers: '0'", "`ldifs_layers` needs loss: ldifs; this run has loss: None"),
    (
        "method: full, loss: 'l2_sp:1', ldifs_layers: '0'",
        "`ldifs_layers` needs loss: ldifs; this run has loss: l2_sp:1",
    ),
    ("method: full, loss: 'ldifs:1', ldifs_layers: '0,x'", "`ldifs_layers` is '0,x'"),
    ("method: full, loss: 'ldifs:1', lipsum_texts: 3", "`lipsum_texts` needs loss: lipsum"),
    ("method: full, loss: 'lipsum:1', lipsum_texts: 0", "`lipsum_texts` is 0"),
    (
        "method: full, loss: 'embedding_mse:1', reference: tiles",
        "`reference` needs method: corda or loss: ewc, logit_distillation, reference_distillation",
    ),
    ("method: full, loss: 'ewc:1'", "`reference` must name a dataset"),
    ("method: full, loss: 'reference_distillation:1'", "`reference` must name a dataset"),
    ("method: full, loss: 'ewc:1', reference: digits", "`reference` names the target 'digits' itself"),
    ("method: full, loss: 'logit_distillation:1', distillation_temperature: 0", "`distillation_temperature` is 0"),
    ("method: full, loss: 0.5", "`loss`"),
    ("method: full, loss: ':0.5'", "`loss`"),
    ("method: full, loss: 'ldifs'", "`loss`.*has no weight"),
    ("method: full, loss: 'ldif:1'", "`loss`.*did you mean `ldifs`"),
    ("method: full, loss: 'ldifs:-1'", "`loss`.*at least 0"),
    ("method: linear_probe, loss: 'l2_sp:1'", "`loss` does nothing with method: linear_probe"),
    (
        "method: full, loss: 'l2_sp:1+held_to_the_average:1'",
        "`loss`: held_to_the_average holds to the average, l2_sp to the pretrained model",
    ),
    (
        "method: full, loss: 'lipsum:1', model: 'blind:1'",
        "`loss`: lipsum needs a text tower, which a model without texts",
    ),
    (
        "method: full, loss: 'logit_distillation:1+l2_sp:1', model: 'blind:1'",
        "`loss`: logit_distillation needs a text tower",
    ),
]


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss with another teacher, and a backbone without a text tower."""
    loss = Loss("held_to_the_average", "m:C", "the average", "average", "nothing", "nobody", teacher="the average")
    monkeypatch.setitem(LOSSES._members, loss.name, loss)
    blind = BackboneSpec(
        "blind",
        "model without texts",
        "nobody",
        ("Blind",),
        view=Any,
        families=(),
        text_tower=False,
        load=lambda rest: None,
    )
    monkeypatch.setitem(BACKBONES._members, "blind", blind)


@pytest.mark.parametrize(("run", "message"), BAD)
def test_what_cannot_be_is_refused_with_the_name_of_the_field(others: None, run: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        parse_study("name: x\nruns:\n  - {dataset: digits, " + run + "}", where="f")


def test_the_dry_run_says_costs_reference_images_and_layers_that_are_not_there() -> None:
    runs = [
        "method: full", "method: full, loss: 'ldifs:1', ldifs_layers: '0,9'", "method: full, loss: 'reference_distillation:1', reference: tiles",
        "method: full, loss: 'embedding_cosine:1'", "method: full, loss: 'ewc:1', reference: objects",
    ]  # fmt: skip
    free, wrong, live, cached, ewc = plan(parse_study(text(runs), where="study"))
    assert re.search("`loss`: ldifs .*`ldifs_layers` names layer 9; the model has 3 blocks", wrong.note)
    assert free.note == live.note == ewc.note == ""
    assert "reference: training images of tiles" in live.images
    assert "a transfer set too" in ewc.images
    seconds = [row.seconds for row in (free, cached, live, ewc)]
    assert all(one is not None for one in seconds)
    assert seconds[0] < seconds[1] < seconds[2]
    assert seconds[0] < seconds[3]
