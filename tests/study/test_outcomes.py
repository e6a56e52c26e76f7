"""Outcomes of a run: rows of their own, made of its training without training anew, also after an interruption."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from attndrift.methods import AdaptationSettings, adapt
from attndrift.models import load_model
from attndrift.study.distributed import SilentReporter
from attndrift.study.executor import Executor
from attndrift.study.interpolation import interpolate
from attndrift.study.outcomes.registry import Trained, canonical_outcomes, outcome_run, parse_outcome
from attndrift.study.record import write_record
from attndrift.study.resources import StudyResources
from attndrift.study.settings import NamedRun, RunSettings

ENDS = ("ema:0", "wise_ft:0", "wise_ft:1")
SETTINGS: dict[str, Any] = {
    "dataset": "digits", "train_per_class": 4, "validation_per_class": 2, "probe_size": 20, "test_limit": 30,
    "epochs": 2, "batch_size": 10, "learning_rate": 1e-3, "transfer": ["objects"], "transfer_limit": 100,
    "monitor_zero_shot_images": 0, "evaluations_per_epoch": 1, "map_images": 0, "threads": 1,
    "outcomes": (*ENDS, "ema:0.9", "swa:2", "wise_ft:0.25"),
}  # fmt: skip


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
    """Images, models and measurements that the tests share, as the runs of a study do."""
    return StudyResources(tmp_path_factory.mktemp("resources"))


def _execute(
    model: Path, folder: Path, reporter: Reporter, resources: StudyResources | None = None, **settings: Any
) -> dict[str, Any]:
    run = NamedRun(run_id="run", settings=RunSettings(model=str(model), **{**SETTINGS, **settings}))
    folder.mkdir(exist_ok=True)
    return Executor(resources or StudyResources(folder.parent / "cache"))(run, folder, reporter)


MEASURED = (
    "best_val_accuracy", "test_accuracy", "entropy_final", "cka_mean", "embedding_drift", "weight_drift",
    "transfer_objects_zero_shot_accuracy",
)  # fmt: skip


def _rows(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["row"]["outcome"]: one["row"] for one in record["outcomes"]}


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("method", "settings"), [("full", {}), ("lora", {"lora_rank": 2}), ("last_block", {})])
def test_the_ends_are_the_pretrained_and_the_selected_model(
    tiny_clip: Path, tmp_path: Path, resources: StudyResources, method: str, settings: dict[str, Any]
) -> None:
    record = _execute(tiny_clip, tmp_path / "run", Reporter(), resources, method=method, **settings)
    rows, own = _rows(record), record["row"]
    assert set(rows) == set(canonical_outcomes(SETTINGS["outcomes"]))
    for name in MEASURED:
        assert rows["wise_ft:1"][name] == pytest.approx(own[name], rel=1e-5), name
    start = rows["wise_ft:0"]
    assert start["weight_drift"] == pytest.approx(0.0, abs=1e-9)
    assert start["cka_mean"] == pytest.approx(1.0, abs=1e-6)
    assert start["transfer_objects_zero_shot_accuracy"] == own["transfer_objects_zero_shot_pretrained"]
    assert rows["wise_ft:0.25"]["weight_drift"] == pytest.approx(0.25 * own["weight_drift"], rel=1e-4)
    assert 0 < rows["ema:0.9"]["weight_drift"] < rows["ema:0"]["weight_drift"]
    assert 0 < rows["swa:2"]["weight_drift"] < rows["ema:0"]["weight_drift"]
    assert {row["parent_run"] for row in rows.values()} == {"run"}
    assert {row["selected_epoch"] for row in rows.values()} == {None}


def test_an_outcome_is_the_point_of_a_sweep(tiny_clip: Path, tmp_path: Path, resources: StudyResources) -> None:
    record = _execute(tiny_clip, tmp_path / "run", Reporter(), resources)
    write_record(tmp_path / "run", record)
    (point,) = interpolate(tmp_path / "run", [0.25], resources=resources)
    row = _rows(record)["wise_ft:0.25"]
    for name in ("test_accuracy", "cka_mean", "embedding_drift", "weight_drift", "transfer_objects_zero_shot_accuracy"):
        assert row[name] == pytest.approx(point[name], rel=1e-6), name


@pytest.mark.slow
def test_an_average_goes_on_after_an_interruption(tiny_clip: Path, tmp_path: Path) -> None:
    whole = _execute(tiny_clip, tmp_path / "whole", Reporter())
    with pytest.raises(KeyboardInterrupt):
        _execute(tiny_clip, tmp_path / "run", Reporter(stops=True))
    assert (tmp_path / "run" / "resume").is_dir()
    assert _rows(_execute(tiny_clip, tmp_path / "run", Reporter())) == _rows(whole)


def test_outcomes_change_nothing_of_the_run(tiny_clip: Path, tmp_path: Path, resources: StudyResources) -> None:
    with_them = _execute(tiny_clip, tmp_path / "with", Reporter(), resources)
    without = _execute(tiny_clip, tmp_path / "without", Reporter(), resources, outcomes=())
    assert with_them["row"] == without["row"]
    assert without["outcomes"] == []


def test_outcomes_have_one_spelling() -> None:
    assert canonical_outcomes(["wise_ft:0.50", " ema ", "wise_ft:1e-1"]) == ("ema:0.999", "wise_ft:0.1", "wise_ft:0.5")
    assert outcome_run("a_full_lr1e-5_s42", "wise_ft:0.5") == "a_full_lr1e-5_s42_wise-ft0.5"
    with pytest.raises(ValueError, match="named twice"):
        canonical_outcomes(["wise_ft", "wise_ft:0.5"])


class _Asked:
    """A model on a line, for rules that choose a place on it."""

    def __init__(self) -> None:
        self.backbone = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(self.backbone.weight)

    @property
    def alpha(self) -> float:
        return round(float(self.backbone.weight.detach()), 6)


RULES = {
    "the smallest within a point": ("wise_ft_validated:1", lambda a: 0.9 + 0.05 * min(a, 0.6), 0.4),
    "the best itself": ("wise_ft_validated:0", lambda a: 0.9 + 0.05 * min(a, 0.6), 0.6),
    "all are as good": ("wise_ft_validated:0", lambda a: 0.5, 0.0),
    "anything goes": ("wise_ft_validated:100", lambda a: a, 0.0),
    "the largest that agrees": ("wise_ft_unlabelled:0.9", lambda a: 1 - a / 4, 0.4),
    "it must agree all the way": ("wise_ft_unlabelled:0.9", lambda a: 0.0 if a == 0.2 else 1.0, 0.15),
    "nothing agrees": ("wise_ft_unlabelled:1", lambda a: 1.0 if a == 0 else 0.5, 0.0),
    "all agree": ("wise_ft_unlabelled:0.9", lambda a: 1.0, 1.0),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_chooses_alpha(rule: str) -> None:
    text, values, expected = RULES[rule]
    outcome, value = parse_outcome(text)
    pretrained = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(pretrained.weight)
    run = Trained(
        pretrained=pretrained, last=_Asked, selected=_Asked, validate=lambda one: values(one.alpha),
        agreement=lambda one: values(one.alpha),
    )  # fmt: skip
    model = outcome.finish(value, run)
    assert run.chosen == {"alpha": pytest.approx(expected)}
    assert model.alpha == pytest.approx(expected)


def test_alphas_are_chosen_in_a_run_and_recorded(tiny_clip: Path, tmp_path: Path, resources: StudyResources) -> None:
    asked = ("wise_ft_validated:0", "wise_ft_unlabelled:0.95", "wise_ft:0.5")
    record = _execute(tiny_clip, tmp_path / "run", Reporter(), resources, outcomes=asked, monitor_zero_shot_images=60)
    rows = _rows(record)
    own = record["row"]
    for name in asked[:2]:
        alpha = rows[name]["outcome_alpha"]
        assert 0 <= alpha <= 1
        assert rows[name]["weight_drift"] == pytest.approx(alpha * own["weight_drift"], rel=1e-4)
    assert rows["wise_ft_validated:0"]["best_val_accuracy"] >= own["best_val_accuracy"]
    assert rows["wise_ft:0.5"]["outcome_alpha"] is None


def test_an_outcome_without_the_images_that_it_needs_is_refused() -> None:
    for given in ({"transfer": ()}, {"transfer": ("objects",), "monitor_zero_shot_images": 0}):
        with pytest.raises(ValueError, match=r"`outcomes`: wise_ft_unlabelled:0.9 needs a set in `transfer`"):
            RunSettings(dataset="digits", outcomes=("wise_ft_unlabelled",), **given)


def test_the_mean_is_that_of_the_weights_at_its_steps() -> None:
    model = torch.nn.Linear(2, 2).double()
    outcome, value = parse_outcome("swa:3")
    follower = outcome.follow(value, model)
    assert follower is not None
    seen = [model.weight.detach().clone()]
    for step in range(1, 11):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(step)))
        follower.after_step(step)
        if step % 3 == 0:
            seen.append(model.weight.detach().clone())
        if step == 5:  # goes on from what was kept
            state = copy.deepcopy(follower.state_dict())
            follower = outcome.follow(value, model)
            assert follower is not None
            follower.load_state_dict(state)
    torch.testing.assert_close(follower.state_dict()["values"]["weight"], torch.stack(seen).mean(0), rtol=1e-12, atol=0)


AVERAGED: dict[str, dict[str, Any]] = {
    "full": {}, "bitfit": {}, "ln_tuning": {}, "dora": {}, "ia3": {}, "oft": {"oft_block_size": 16}, "boft": {}, "osf": {},
    "vera": {"vera_rank": 8}, "pissa": {}, "lora": {"lora_rank": 2, "lora_targets": "q,fc1,projection"},
}  # fmt: skip


@pytest.mark.one_in(5)
@pytest.mark.parametrize("text", ["swa:2", "ema:0.5"])
@pytest.mark.parametrize("method", AVERAGED)
def test_an_average_is_that_of_the_weights_that_the_model_computes_with(method: str, text: str) -> None:
    """The mean of two products is not the product of the means: adapters are merged first, here in float64."""
    model = adapt(load_model("config:tiny"), AdaptationSettings(method, **AVERAGED[method]), 3, seed=0)
    outcome, value = parse_outcome(text)
    follower = outcome.follow(value, model)
    assert follower is not None
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def merged() -> dict[str, torch.Tensor]:
        one = copy.deepcopy(model)
        one.model = one.settings.facts.merge(one.model)
        return {name: p.detach().double() for name, p in one.named_parameters()}

    expected, count = merged(), 1
    for step in range(1, 5):
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for p in trained.values():
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
        follower.after_step(step)
        if text.startswith("swa") and step % 2:
            continue
        count += 1
        share = 1 / count if text.startswith("swa") else 1 - min(0.5, step / (step + 9))
        now = merged()
        expected = {name: was + share * (now[name] - was) for name, was in expected.items()}
    run = Trained(
        pretrained=None, last=lambda: copy.deepcopy(model), selected=model, validate=None, agreement=None,
        follower=follower,
    )  # fmt: skip
    found = dict(outcome.finish(value, run).named_parameters())
    assert set(found) == set(expected)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.detach().double(), expected[name], rtol=1e-4, atol=1e-5, msg=name)
