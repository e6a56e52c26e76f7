"""Runs with every method: resumed bit for bit without decomposing again, and refused before anything runs."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from attndrift.methods import METHODS
from attndrift.models import load_model
from attndrift.models.backbone import BACKBONES
from attndrift.models.backbones.clip import CLIPBackbone
from attndrift.models.load import build_model, load_shape
from attndrift.study.check_findings import Check
from attndrift.study.check_methods import check_methods
from attndrift.study.distributed import SilentReporter
from attndrift.study.executor import Executor
from attndrift.study.loading import parse_study
from attndrift.study.plan import plan
from attndrift.study.resources import StudyResources
from attndrift.study.settings import NamedRun, RunSettings, run_name

SETTINGS: dict[str, Any] = {
    "dataset": "digits", "train_per_class": 3, "validation_per_class": 1, "probe_size": 20, "test_limit": 20,
    "epochs": 2, "batch_size": 15, "learning_rate": 1e-3, "monitor_zero_shot_images": 0, "evaluations_per_epoch": 1,
    "map_images": 0, "threads": 1, "trackers": (),
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "vera": {"vera_rank": 8},
    "lora": {"lora_targets": "q,k,v", "lora_blocks": 2},
    "frozen": {"train_projection": True},
    "corda": {"reference": "tiles", "reference_images": 20},
    "published": {"checkpoint": "owner/tower"},
}
TRAINING = [method.name for method in METHODS if method.adapts]


class Reporter(SilentReporter):
    """Says nothing, and stops at the first saved state where it is told to."""

    def __init__(self, *, stops: bool = False) -> None:
        self.stops = stops

    def inputs(self, found: Any, places: Any) -> None: ...

    def evaluated(self, step: int, total: int, values: object) -> None:
        pass

    def saved(self, step: int) -> None:
        if self.stops:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> StudyResources:
    return StudyResources(tmp_path_factory.mktemp("cache"))


def _execute(model: Path, folder: Path, resources: StudyResources, reporter: Reporter, **settings: Any) -> Any:
    run = NamedRun(run_id="run", settings=RunSettings(model=str(model), **{**SETTINGS, **settings}))
    folder.mkdir(exist_ok=True)
    # No `with`: leaving an executor forgets what its runs share.
    return Executor(resources)(run, folder, reporter)


@pytest.mark.one_in(5)
@pytest.mark.parametrize("method", TRAINING)
def test_a_run_is_resumed_bit_for_bit_with_every_method(
    method: str, tiny_clip: Path, tmp_path: Path, resources: StudyResources, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"method": method, **OWN.get(method, {})}
    whole = _execute(tiny_clip, tmp_path / "whole", resources, Reporter(), **settings)
    with pytest.raises(KeyboardInterrupt):
        _execute(tiny_clip, tmp_path / "run", resources, Reporter(stops=True), **settings)

    def refused_to_methods(decompose: Callable[..., Any]) -> Callable[..., Any]:
        def decomposition(*args: Any, **kwargs: Any) -> Any:
            # Metrics decompose embeddings; a resumed method decomposes no weights.
            asked_by = {Path(frame.filename).parts for frame in traceback.extract_stack()}
            assert not any({"peft", "methods"} & set(parts) for parts in asked_by), "decomposed again"
            return decompose(*args, **kwargs)

        return decomposition

    for name in ("svd", "qr", "inv"):
        monkeypatch.setattr(torch.linalg, name, refused_to_methods(getattr(torch.linalg, name)))
    again = _execute(tiny_clip, tmp_path / "run", resources, Reporter(), **settings)
    assert again["row"] == whole["row"]
    assert whole["row"]["weight_drift"] > 0 or not METHODS[method].moves_encoder
    for name in ("final", "best"):
        files = {
            path.relative_to(tmp_path / "whole")
            for path in (tmp_path / "whole/checkpoints" / name).rglob("*.safetensors")
        }
        assert files
        for file in files:
            assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "run" / file).read_bytes(), file


def test_a_decomposition_that_was_damaged_is_made_again(
    tiny_clip: Path, tmp_path: Path, resources: StudyResources
) -> None:
    with pytest.raises(KeyboardInterrupt):
        _execute(tiny_clip, tmp_path / "run", resources, Reporter(stops=True), method="pissa")
    (kept,) = (tmp_path / "run/resume").glob("start-*.safetensors")
    kept.write_bytes(kept.read_bytes()[:-8])
    whole = _execute(tiny_clip, tmp_path / "whole", resources, Reporter(), method="pissa")
    assert _execute(tiny_clip, tmp_path / "run", resources, Reporter(), method="pissa")["row"] == whole["row"]


STUDY = """
name: refused
shared: {{model: "config:tiny", dataset: digits}}
runs:
  - {{method: full}}
  - {run}
"""


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ("{method: lora, lora_targets: 'q,qkv'}", "lora_targets: CLIPModel has no layer 'qkv'"),
        ("{method: pissa, lora_blocks: 7}", "the last 7 blocks are asked for; the model has 3"),
        ("{method: oft, oft_block_size: 24}", "oft_block_size is 24"),
        ("{method: ia3, ia3_targets: gate}", "ia3_targets: CLIPModel has no layer 'gate'"),
        ("{method: full, freeze_layers: 9}", "freeze_layers is 9; the model has 3 blocks"),
    ],
)
def test_what_the_model_has_no_place_for_is_a_problem_of_the_study(run: str, expected: str) -> None:
    found = Check("refused")
    check_methods(found, parse_study(STUDY.format(run=run), where="study"))
    (problem,) = found.problems
    assert expected in problem.detail


SEEN_BY_A_LOSS_ON_WEIGHTS = ["full", "last_block", "lora", "rslora", "pissa", "olora", "corda", "bitfit", "ln_tuning"]


@pytest.mark.parametrize("loss", ["l2_sp:1", "ewc:1"])
@pytest.mark.parametrize("method", [method.name for method in METHODS if method.moves_encoder])
def test_a_loss_that_cannot_see_the_weights_is_a_problem_before_anything_runs(method: str, loss: str) -> None:
    reference = ", reference: tiles" if loss == "ewc:1" or method == "corda" else ""
    study = parse_study(STUDY.format(run=f"{{method: {method}, loss: '{loss}'{reference}, seed: 1}}"), where="study")
    found = Check("refused")
    check_methods(found, study)
    name = loss.partition(":")[0]
    expected = rf"`loss`: {name} cannot be had with method {method} on this model: tower\..*\.[a-z0-9_]+: .*adapter"
    if method in SEEN_BY_A_LOSS_ON_WEIGHTS:
        assert not found.problems
    else:
        (problem,) = found.problems
        assert re.search(expected, problem.detail), problem.detail
        assert name == "ewc" or plan(study, elsewhere=True)[1].note == problem.detail


class Mute(CLIPBackbone):
    """A model whose text tower does not say its vocabulary."""

    @property
    def text_encoder(self) -> nn.Module:
        return nn.Module()


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ("{method: full, loss: 'lipsum:1', model: 'mute:x'}", "lipsum: the text tower does not say its vocabulary"),
        (
            "{method: dora, loss: 'lipsum:1', lipsum_tokens: 90}",
            "`lipsum_tokens` is 90; the text tower takes at most 75",
        ),
        (
            "{method: full, loss: 'ldifs:1', ldifs_layers: '0,9'}",
            "`ldifs_layers` names layer 9; the model has 3 blocks",
        ),
        ("{method: lora, loss: 'ldifs:1+l2_sp:1', ldifs_layers: '4'}", "`ldifs_layers` names layer 4"),
        ("{method: full, loss: 'ldifs:1', ldifs_tokens: all}", "`ldifs_tokens` is all, and in layer 3, the last"),
    ],
)
def test_a_loss_that_the_model_cannot_have_is_a_problem_before_anything_runs(
    run: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(
        BACKBONES["clip"], name="mute", view=Mute, load=load_model, build=lambda rest: build_model("config:tiny"),
        shape=lambda rest: load_shape("config:tiny"),
    )  # fmt: skip
    if "mute" in run:
        monkeypatch.setattr(BACKBONES, "_members", {"mute": spec})
    study = parse_study(STUDY.format(run=run), where="study")
    study = study.model_copy(update={"runs": study.runs[1:]})
    found = Check("refused")
    check_methods(found, study)
    (problem,) = found.problems
    assert "`loss`: " in problem.detail
    assert expected in problem.detail
    assert plan(study, elsewhere=True)[0].note == problem.detail


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ("{method: dora, vera_rank: 4}", "`vera_rank` needs method: vera; this run has method: dora"),
        ("{method: ia3, lora_rank: 4}", "`lora_rank` needs method: "),
        ("{method: lora, lora_ranks: 'fc1=3'}", "`lora_ranks` names 'fc1', which `lora_targets`"),
        ("{method: dorra}", "did you mean `dora`?"),
        ("{method: ia3, freeze_layers: 2}", "`freeze_layers` needs method: bitfit, full"),
    ],
)
def test_settings_of_another_method_are_refused_by_name(run: str, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        parse_study(STUDY.format(run=run), where="study")


def test_methods_and_their_settings_are_in_a_runs_name() -> None:
    given = [{"method": method.name, **OWN.get(method.name, {})} for method in METHODS]
    given += [{"method": "lora", "lora_blocks": 2}, {"method": "lora", "lora_targets": "q,k,v"}]
    given += [{"method": "rslora", "lora_alpha": 4.0}, {"method": "oft", "oft_block_size": 8}]
    given += [{"method": "lora", "lora_targets": "q,fc1", "lora_ranks": "fc1=4"}]
    names = [run_name(RunSettings(dataset="digits", **one)) for one in given]
    assert len(set(names)) == len(names)
    assert "digits_rslora-r8_alpha4_" in names[len(METHODS) + 2]
