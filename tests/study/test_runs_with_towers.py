"""Runs whose text tower is trained: measured by live text, resumed bit for bit, guarded, interpolated, and refused by name."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch.nn.functional import normalize

from attndrift.cli.progress import StudyConsole
from attndrift.compare import compare_models
from attndrift.methods import load_adapted
from attndrift.models import load_model
from attndrift.results.tables import read_tables
from attndrift.retention.zero_shot import TextFeatures
from attndrift.study.check_findings import Check
from attndrift.study.check_methods import check_methods
from attndrift.study.distributed import SilentReporter
from attndrift.study.executor import Executor
from attndrift.study.interpolation import interpolate
from attndrift.study.loading import parse_study
from attndrift.study.plan import plan
from attndrift.study.record import read_record
from attndrift.study.resources import StudyResources
from attndrift.study.runner import run_study
from attndrift.study.settings import NamedRun, RunSettings, run_name
from attndrift.study.trained_parts import parts_label, parts_text

SETTINGS: dict[str, Any] = {
    "dataset": "digits", "train_per_class": 4, "validation_per_class": 2, "probe_size": 20, "test_limit": 30,
    "epochs": 1, "checkpoints_per_epoch": 2, "batch_size": 10, "learning_rate": 1e-3, "transfer": ["objects"], "transfer_limit": 60,
    "monitor_zero_shot_images": 20, "evaluations_per_epoch": 1, "map_images": 0, "threads": 1, "head": "contrastive",
    "text_tower": "full",
}  # fmt: skip
TEXT_COLUMNS = ("text_embedding_drift", "text_weight_drift", "text_projection_drift", "logit_scale_change")


class Reporter(SilentReporter):
    """Says nothing, and stops at the first saved state where it is told to."""

    def __init__(self, *, stops: bool = False) -> None:
        self.stops = stops

    def inputs(self, found: Any, places: Any) -> None: ...

    def saved(self, step: int) -> None:
        if self.stops:
            raise KeyboardInterrupt


def _execute(model: object, folder: Path, resources: StudyResources, *, stops: bool = False, **settings: Any) -> Any:
    run = NamedRun(run_id="run", settings=RunSettings(model=str(model), **{**SETTINGS, **settings}))
    with Executor(resources) as execute:
        folder.mkdir(exist_ok=True)
        return execute(run, folder, Reporter(stops=stops))


def _history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


RESUMED: dict[str, dict[str, Any]] = {
    "both towers, drawn templates": {
        "train_temperature": True, "prompts": ["a {class}.", "one {class}.", "a photo of a {class}."],
        "outcomes": ["ema:0.5", "wise_ft:0", "wise_ft:1"], "spd": 1.0, "layer_decay": 0.8, "text_learning_rate": 2e-3,
        "loss": "l2_sp:0.1+attention_preservation:0.1", "guard": "text_embedding_drift", "guard_at_most": 0.05,
    },
    "text alone": {"method": "frozen", "head": "live_text", "text_freeze_blocks": "first:1"},
    "lora in both": {"method": "lora", "text_tower": "lora", "lora_rank": 2, "train_temperature": True},
}  # fmt: skip


FAST = "both towers, drawn templates"


@pytest.mark.parametrize("name", [FAST, *(pytest.param(one, marks=pytest.mark.slow) for one in RESUMED if one != FAST)])
def test_a_run_is_resumed_bit_for_bit_with_the_text_tower_trained(name: str, tiny_clip: Path, tmp_path: Path) -> None:
    resources, settings = StudyResources(tmp_path / "cache"), RESUMED[name]
    whole = _execute(tiny_clip, tmp_path / "whole", resources, **settings)
    assert whole["status"] == "finished"
    with pytest.raises(KeyboardInterrupt):
        _execute(tiny_clip, tmp_path / "run", resources, stops=True, **settings)
    again = _execute(tiny_clip, tmp_path / "run", resources, **settings)
    assert again["row"] == whole["row"]
    assert again["outcomes"] == whole["outcomes"]
    for part in ("checkpoints/final/model.safetensors", "history.jsonl"):
        assert (tmp_path / "whole" / part).read_bytes() == (tmp_path / "run" / part).read_bytes()
    row, history = whole["row"], _history(tmp_path / "whole")
    assert [history[0][column] for column in TEXT_COLUMNS] == [0.0] * 4
    assert row["text_embedding_drift"] > 0
    assert row["text_weight_drift"] > 0
    assert (row["logit_scale_change"] != 0) == settings.get("train_temperature", False)
    outcomes = {one["row"]["outcome"]: one["row"] for one in whole["outcomes"]}
    if outcomes:
        pretrained, selected = outcomes["wise_ft:0"], outcomes["wise_ft:1"]
        assert [pretrained[column] for column in TEXT_COLUMNS] == [0.0] * 4
        assert [selected[column] for column in TEXT_COLUMNS] == pytest.approx([row[column] for column in TEXT_COLUMNS])
        assert 0 < outcomes["ema:0.5"]["text_weight_drift"] < 2 * row["text_weight_drift"]
        assert row["text_embedding_drift"] <= 0.05, "the guard"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run of the embedded model whose text tower alone is trained, far enough to forget."""
    folder = tmp_path_factory.mktemp("towers")
    shared = {**SETTINGS, "method": "frozen", "head": "live_text", "learning_rate": 1e-2}
    study = parse_study(json.dumps({"name": "alone", "shared": shared, "runs": [{"experiment": "T"}]}), where="study")
    with Executor(StudyResources(folder / "cache")) as execute:
        run_study(study, folder / "study", execute, StudyConsole(console=Console(file=io.StringIO())))
    (run,) = (folder / "study" / "runs").iterdir()
    return run, read_record(run)


def test_retention_is_that_of_the_live_text_features(trained: tuple[Path, Any], tmp_path: Path) -> None:
    """The image tower has not moved, so that with cached text features nothing would have been lost."""
    folder, record = trained
    row = record["row"]
    assert row["embedding_drift"] == row["weight_drift"] == row["projection_drift"] == 0.0
    assert row["transfer_objects_zero_shot_retention_pct"] != 100.0
    resources = StudyResources(folder.parents[2] / "cache")
    settings = RunSettings.model_validate(record["settings"])
    pretrained = resources.pretrained("embedded", torch.device("cpu"))
    (item,), _ = resources.transfer_sets(settings, resources.target(settings, pretrained), pretrained)
    model = load_adapted(folder / "checkpoints" / "best", base=pretrained.copy())
    found = {}
    for name, clip in (("live", model.backbone), ("cached", pretrained.model)):
        text = TextFeatures.of(clip, pretrained.tokenizer, item.dataset.class_names, settings.prompts).features
        with torch.no_grad():
            images = normalize(model.embed(item.evaluation.store.fetch(range(60))), dim=-1)
        found[name] = float(((images @ text.T).argmax(-1).numpy() == item.evaluation.part.labels).mean())
    assert row["transfer_objects_zero_shot_accuracy"] == pytest.approx(found["live"])
    assert row["transfer_objects_zero_shot_pretrained"] == pytest.approx(found["cached"]) != found["live"]
    history = _history(folder)
    assert history[0]["monitor_zero_shot_accuracy"] != history[-1]["monitor_zero_shot_accuracy"]


def test_interpolation_leads_the_text_tower_back(trained: tuple[Path, Any]) -> None:
    folder, record = trained
    first, last = interpolate(folder, [0.0, 1.0], resources=StudyResources(folder.parents[2] / "cache"))
    assert [first[column] for column in TEXT_COLUMNS] == [0.0] * 4
    assert first["transfer_objects_zero_shot_accuracy"] == record["row"]["transfer_objects_zero_shot_pretrained"]
    assert last["transfer_objects_zero_shot_accuracy"] == record["row"]["transfer_objects_zero_shot_accuracy"]
    assert last["text_embedding_drift"] == pytest.approx(record["row"]["text_embedding_drift"])


def test_a_comparison_tells_the_text_tower_apart(trained: tuple[Path, Any], tmp_path: Path) -> None:
    folder, record = trained
    resources, settings = StudyResources(folder.parents[2] / "cache"), RunSettings.model_validate(record["settings"])
    pretrained = resources.pretrained("embedded", torch.device("cpu"))
    target = resources.target(settings, pretrained)
    images = tmp_path / "images"
    images.mkdir()
    for place in range(6):
        pixels = target.probe.fetch_uint8(range(place, place + 1))[0]
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(images / f"{place}.png")
    found = compare_models("embedded", folder, images)
    assert found.summary["text_weight_drift"] == pytest.approx(record["row"]["text_weight_drift"], rel=1e-4)
    assert found.summary["text_projection_drift"] == pytest.approx(record["row"]["text_projection_drift"], rel=1e-4)
    assert found.summary["logit_scale_change"] == 0.0
    assert found.summary["weight_drift"] == 0.0


@pytest.mark.slow
def test_a_guard_on_retention_sees_a_text_tower_that_trains_alone(tmp_path: Path) -> None:
    settings = {
        "method": "frozen", "head": "live_text", "learning_rate": 1e-2, "guard": "retention_pct", "guard_at_least": 95.0,
        "guard_probe_per_class": 2, "guard_checks_per_epoch": 2, "transfer_limit": 300, "monitor_zero_shot_images": 0,
        "guard_confidence": 0.5,
    }  # fmt: skip
    record = _execute("embedded", tmp_path / "run", StudyResources(tmp_path / "cache"), **settings)
    events = record["guard"]["events"]
    assert any(event["action"] in ("rewound", "infeasible") for event in events)
    assert all(event["after"][0]["bound"] >= 95.0 for event in events)


STUDY = """
name: towers
shared:
  model: {model}
  dataset: digits
  train_per_class: 2
  validation_per_class: 2
  probe_size: 20
  test_limit: 10
  epochs: 1
  batch_size: 10
  head: contrastive
  text_tower: full
  train_temperature: true
  text_freeze_blocks: first:1
  text_learning_rate: 1e-4
  evaluations_per_epoch: 1
  map_images: 0
  threads: 1
  keep: best
runs:
  - {{method: none}}
  - {{method: full, grid: {{freeze_blocks: ["last:1", [1, 2]]}}}}
  - {{method: linear_probe, head: trained}}
"""


def test_a_study_shares_settings_of_the_text_tower_and_records_them(tiny_clip: Path, tmp_path: Path) -> None:
    """What has no text tower to train (a linear probe, the pretrained model) does without; its columns are null."""
    study = parse_study(STUDY.format(model=tiny_clip), where="study")
    planned = {row.run_id: row for row in plan(study)}
    with Executor(StudyResources(tmp_path / "cache")) as execute:
        outcome = run_study(study, tmp_path / "study", execute, StudyConsole(console=Console(file=io.StringIO())))
    assert set(outcome.statuses.values()) == {"finished"}, outcome
    runs = read_tables(tmp_path / "study").runs.set_index("run_id")
    parts = {name: value for name, value in runs["trained_parts"].items() if isinstance(value, str)}
    both = "text_tower=full+text_freeze_blocks=first:1+train_temperature=True"
    assert sorted(parts.values()) == sorted(f"freeze_blocks={blocks}+{both}" for blocks in ("last:1", "1-2"))
    for name, row in runs.iterrows():
        assert row["trainable_parameters"] == planned[str(name)].trainable_parameters
        assert all((row[column] == row[column]) == (name in parts) for column in TEXT_COLUMNS)


WRONG = [
    ("text_tower: full", "`text_tower` needs head: live_text or contrastive"),
    ("text_tower: full, head: lp_ft", "head: lp_ft has text features that were computed once, or none"),
    ("train_text_projection: true, head: cosine", "`train_text_projection` needs head"),
    ("train_temperature: true, head: text", "`train_temperature` needs head"),
    ("text_tower: lora, method: ia3, head: live_text", "lora and method: ia3 are two kinds of adapters"),
    ("text_tower: osf, head: live_text", "osf cannot train a text tower"),
    ("text_tower: full, method: linear_probe, head: live_text", "take method: frozen"),
    ("method: frozen", "`method` frozen leaves the image tower as it is, and nothing else is trained"),
    ("text_tower: full, head: live_text, lora_rank: 2", "`lora_rank` needs method: lora"),
    ("text_freeze_blocks: 'last:1'", "`text_freeze_blocks` needs text_tower: "),
    ("freeze_blocks: middle", "'middle' names no blocks"),
    ("freeze_blocks: 0", "'0' names no blocks"),
    ("text_learning_rate: 1e-5", "`text_learning_rate` needs `text_tower`"),
    ("guard: text_weight_drift, guard_at_most: 0.1", "text_weight_drift is measured where the text side is trained"),
    (
        "head: contrastive, batch_size: 1",
        "`batch_size` is 1; head: contrastive compares the images of a batch",
    ),
    (
        "head: contrastive, gradient_accumulation: 2",
        "`gradient_accumulation` is 2; head: contrastive compares all images",
    ),
    ("text_tower: texts", "there is no method `texts`"),
]


@pytest.mark.parametrize(("run", "expected"), WRONG, ids=range(len(WRONG)))
def test_what_does_not_go_together_is_refused_by_its_name(run: str, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        parse_study(f"name: wrong\nruns:\n  - {{dataset: digits, {run}}}\n", where="study")


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ("freeze_blocks: 'last:4'", "freeze_blocks is 'last:4'; the tower has 3 blocks"),
        ("freeze_blocks: [1, 9]", "freeze_blocks is '1,9'; the tower has 3 blocks, and 9 is more"),
        (
            "text_tower: full, head: live_text, text_freeze_blocks: 2-3",
            "text_freeze_blocks is '2-3'; the tower has 2 blocks",
        ),
        ("text_tower: lora, head: live_text, lora_targets: 'q,gate'", "has no layer 'gate'"),
        ("text_tower: oft, head: live_text, oft_block_size: 24", "oft_block_size is 24"),
    ],
)
def test_what_the_model_has_no_place_for_is_found_before_anything_runs(run: str, expected: str) -> None:
    text = f'name: refused\nshared: {{model: "config:tiny", dataset: digits}}\nruns:\n  - {{method: full}}\n  - {{{run}}}\n'
    found = Check("refused")
    check_methods(found, parse_study(text, where="study"))
    (problem,) = found.problems
    assert expected in problem.detail


def test_what_is_trained_is_in_a_runs_name_and_in_words() -> None:
    given: list[dict[str, Any]] = [
        {}, {"freeze_blocks": "last:1"}, {"head": "live_text"}, {"head": "contrastive"},
        {"head": "live_text", "text_tower": "full"}, {"head": "live_text", "text_tower": "lora"},
        {"head": "live_text", "text_tower": "lora", "lora_rank": 2}, {"head": "live_text", "train_temperature": True},
        {"head": "live_text", "text_tower": "full", "train_text_projection": False},
    ]  # fmt: skip
    runs = [RunSettings(dataset="digits", **one) for one in given]
    assert len({run_name(one) for one in runs}) == len(given)
    assert "text-lora-r2" in run_name(runs[6])
    assert parts_text(runs[0]) is parts_text(runs[2]) is None
    assert parts_label(parts_text(runs[8]) or "") == "text tower full, text projection frozen"
    assert load_model("config:tiny").config.text_config.num_hidden_layers == 2
