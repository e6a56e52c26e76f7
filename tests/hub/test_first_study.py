"""The README's study command on a new machine, against a hub whose repositories are laid out as the real ones."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from computer import TINY_BUDGET, Computer, FirstStudy, readme_command
from hub_datasets import CORRUPTIONS, EUROSAT, EUROSAT_MAIN, PETS
from hub_models import B32, B32_CONVERSION, converted, old_config
from hub_server import Hub, commit_id
from PIL import Image
from safetensors.torch import load
from transformers import CLIPConfig, CLIPModel

from attndrift.files import read_json
from attndrift.models.load import state_hash

pytestmark = [pytest.mark.slow, pytest.mark.ci("hub")]  # 22 runs, and commands on what they left

UNTOUCHED, ADAPTED = "none", 21


def records(study: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: read_json(path) for path in sorted(study.glob("runs/*/record.json"))}


def test_the_command_of_the_readme_names_the_study_and_nothing_else() -> None:
    assert readme_command() == ["run", "collapse-21"]
    assert not [option for option in TINY_BUDGET if "model" in option or "dataset" in option or "source" in option]


def test_all_runs_finish_on_both_datasets(first_study: FirstStudy) -> None:
    assert first_study.exit_code == 0, first_study.complaints
    runs = pd.read_parquet(first_study.folder / "runs.parquet")
    assert set(runs["status"]) == {"finished"}
    assert (runs["method"] != UNTOUCHED).sum() == ADAPTED
    assert set(runs.loc[runs["method"] == UNTOUCHED, "experiment"]) == {"E1"}
    assert set(runs["dataset"]) == {"eurosat", "pets"}
    assert set(runs["model"]) == {B32}
    assert runs["transfer_cifar100_zero_shot_accuracy"].notna().all()
    assert len(records(first_study.folder)) == len(runs)


def test_every_record_names_the_commit_that_holds_the_weights(first_study: FirstStudy) -> None:
    found = {record["hashes"]["model"]["revision"] for record in records(first_study.folder).values()}
    assert found == {B32_CONVERSION}


def test_the_weights_are_those_of_the_conversion(first_study: FirstStudy) -> None:
    model = CLIPModel(CLIPConfig(**json.loads(old_config())))
    proposed = {name: value for name, value in load(converted()).items() if not name.endswith("position_ids")}
    model.load_state_dict(proposed)
    found = {record["hashes"]["model"]["weights_sha256"] for record in records(first_study.folder).values()}
    assert found == {state_hash(model)}


def test_only_what_is_needed_is_downloaded_and_only_once(first_study: FirstStudy) -> None:
    downloads = Counter(
        request for request in first_study.requests if re.match("GET /(lfs|api/resolve-cache)/", request)
    )
    assert set(downloads.values()) == {1}, downloads.most_common(3)
    for unwanted in ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", *CORRUPTIONS):
        assert not [request for request in first_study.requests if unwanted in request]
    weights = [request for request in first_study.requests if "model.safetensors" in request]
    assert weights
    assert all(f"/resolve/{B32_CONVERSION}/" in request for request in weights)


def test_it_says_what_it_downloads_and_where_and_with_its_cache_nothing_is_left_to_download(
    first_study: FirstStudy, warm_computer: Computer
) -> None:
    cache = first_study.computer.hub_cache
    said = first_study.complaints[: first_study.complaints.index("into")]
    assert "to download: " in said
    for what in (f"model {B32}", "dataset eurosat", "dataset pets", "transfer set cifar100"):
        assert what in said
    assert str(cache) in first_study.complaints
    record = next(one for name, one in records(first_study.folder).items() if name.startswith("E1_eurosat"))
    assert record["data"]["commit"] == EUROSAT_MAIN
    parquet = {path.name.partition("-")[0] for path in cache.rglob("*.parquet")}
    assert parquet == {"train", "test"}
    assert not parquet & set(CORRUPTIONS)
    again = warm_computer.attndrift(*readme_command(), *TINY_BUDGET, "--limit", "1")
    assert again.returncode == 0, again.stderr
    assert "to download" not in again.stderr


def test_classes_are_spoken_as_people_write_them(first_study: FirstStudy) -> None:
    """The hub spells class 26 of CIFAR-100 as `cra`."""
    text = json.dumps(records(first_study.folder))
    assert '"crab"' in text
    assert '"cra"' not in text
    for name in (*EUROSAT, *(name.replace("_", " ") for name in PETS)):
        assert f'"{name}"' in text


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        Image.effect_noise((80, 60), 10.0 + 20 * number).convert("RGB").save(folder / f"{number}.png")
    return folder


def test_baseline_takes_a_hub_name(warm_computer: Computer, hub: Hub) -> None:
    done = warm_computer.attndrift("baseline", B32, "--zero-shot", "cifar100", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["model"]["revision"] == B32_CONVERSION
    (score,) = found["scores"]
    assert (score["dataset"], score["split"], score["n"]) == ("cifar100", "test", 200)


def test_compare_takes_hub_names(warm_computer: Computer, photos: Path) -> None:
    """The released model against a published tower that was fine-tuned from it."""
    tower = "tanganke/clip-vit-base-patch32_eurosat"
    done = warm_computer.attndrift("compare", B32, tower, "--images", str(photos), "--zero-shot", "cifar100", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["summary"]["weight_drift"] > 0
    assert found["summary"]["retention_pct"] is not None or "retention_pct" in found["reasons"]


STUDY = """
name: mine
shared: {model: made/by-bot, dataset: digits, method: full, learning_rate: 1e-4, selection: test}
runs:
  - {seed: 0}
  - {seed: 1}
"""


def test_a_study_goes_on_with_the_commit_that_it_began_with(computer: Computer, hub: Hub) -> None:
    (computer.work / "mine.yaml").write_text(STUDY)
    command = ["run", "mine.yaml", *TINY_BUDGET]
    first = computer.attndrift(*command, "--limit", "1")
    assert first.returncode == 0, first.stderr
    repository = hub.model("made/by-bot")
    before, conversion = repository.refs["main"], commit_id("by-bot")
    kept = dict(repository.refs), list(repository.discussions)
    try:
        moved = commit_id("by-bot moved")
        repository.commit("main", moved, {"README.md": b"moved"}, author="made", title="moved", parent=before)
        newer = commit_id("by-bot converted again")
        repository.pull_request(2, newer, {"model.safetensors": converted(1)})
        second = computer.attndrift(*command)
        assert second.returncode == 0, second.stderr
        found = [record["hashes"]["model"]["revision"] for record in records(computer.work / "studies/mine").values()]
        assert found == [conversion, conversion]
        refused = computer.attndrift(*command, "--set", f"model=made/by-bot@{newer}")
    finally:
        repository.refs, repository.discussions = kept
    assert refused.returncode != 0
    assert newer[:7] in refused.stderr
    assert conversion[:7] in refused.stderr


@pytest.mark.slow
def test_the_untouched_models_with_the_budget_of_the_readme(computer: Computer) -> None:
    """Nothing is made smaller: 200 probe images, all images of the double's CIFAR-100."""
    done = computer.attndrift(*readme_command(), "--only", "E1")
    assert done.returncode == 0, done.stderr
    assert len(records(computer.work / "studies" / "collapse-21")) == 2
