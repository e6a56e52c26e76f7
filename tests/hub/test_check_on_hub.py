"""`attndrift check`, and the first lines of `attndrift run`, on machines that have seen a hub and on some that have not."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from computer import TINY_BUDGET, Computer
from hub_datasets import CIFAR10_MAIN, EUROSAT, EUROSAT_MAIN
from hub_models import B32, B32_CONVERSION
from hub_server import Fault, Hub, Repository, commit_id


def findings(printed: str) -> dict[str, dict[str, Any]]:
    return {finding["what"]: finding for finding in json.loads(printed)["findings"]}


def assert_counted(eurosat: str, hub: Hub) -> None:
    """A finding names the commit of EuroSAT, and its images by split and class."""
    assert EUROSAT_MAIN in eurosat
    for split in ("train", "test"):
        file = hub.dataset("tanganke/eurosat").commits[EUROSAT_MAIN].files[f"data/{split}-00000-of-00001.parquet"]
        labels = pq.read_table(io.BytesIO(file.content), columns=["label"]).column(0).to_pylist()
        assert f"{split}: {len(labels)} images, {labels.count(0)} a class" in eurosat


@pytest.mark.slow
@pytest.mark.ci("hub")
def test_the_study_of_the_readme_can_run(computer: Computer, hub: Hub) -> None:
    done = computer.attndrift("check", "collapse-21", "--json")
    assert done.returncode == 0, done.stderr
    found = findings(done.stdout)
    assert B32_CONVERSION in found[f"model {B32}"]["detail"]
    assert_counted(found["dataset eurosat"]["detail"], hub)
    assert "100 classes" in found["transfer set cifar100"]["detail"]
    assert {found[f"prompts {name}"]["state"] for name in ("eurosat", "pets", "cifar100")} == {"ok"}
    assert set(json.loads(done.stdout)["downloads"][0]) == {"what", "bytes", "folder"}
    assert not [request for request in hub.asked("safetensors") if request.startswith("GET")], "no weights are loaded"
    whole = list(computer.hub_cache.rglob("*.parquet"))
    assert not whole, "the hub sends the column of labels alone"


@pytest.mark.slow
@pytest.mark.ci("hub")
def test_the_table_of_a_terminal_of_80_columns(computer: Computer) -> None:
    done = computer.attndrift("check", "collapse-21", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    # A path is copied, so it is never broken either.
    assert not [line for line in lines if len(line) > 80 and str(computer.hub_cache) not in line]
    for name in (B32, B32_CONVERSION, "tanganke/eurosat", EUROSAT_MAIN):
        assert any(name in line for line in lines), f"{name} is broken"


@pytest.mark.slow
@pytest.mark.ci("hub")
def test_a_dataset_that_the_hub_does_not_give_is_said_before_the_first_run(computer: Computer, hub: Hub) -> None:
    with hub.failing(Fault("GET /api/datasets/uoft-cs/cifar100", status=404, headers={"X-Error-Code": "RepoNotFound"})):
        done = computer.attndrift("run", "collapse-21", *TINY_BUDGET)
    assert done.returncode == 1
    assert "transfer set cifar100" in done.stderr
    assert done.stderr.count("attndrift:") == 1
    assert not (computer.work / "studies").exists()


MINE = """
name: mine
shared: {model: embedded, dataset: mine, method: full, SOURCE}
runs: [{seed: 0}]
"""


def _mine(computer: Computer, source: str) -> str:
    (computer.work / "mine.yaml").write_text(MINE.replace("SOURCE", f"source: {source}"))
    return "mine.yaml"


THREE_PARTS = """
name: three
shared: {model: /nonexistent, method: full}
datasets: {mine: {source: {hub: uoft-cs/cifar10, config: large}}}
runs: [{dataset: mine}, {dataset: eurosat}]
"""
"""A study of which two parts are wrong, and the third is counted all the same."""


def test_columns_and_configurations_are_checked_before_a_download(computer: Computer, hub: Hub) -> None:
    wrong = _mine(computer, "{hub: uoft-cs/cifar10, label_column: fine_label}")
    done = computer.attndrift("run", wrong)
    assert done.returncode == 1
    assert "no column `fine_label` (label_column). The columns are img, label" in done.stderr
    assert not hub.asked("GET /lfs/")
    (computer.work / "three.yaml").write_text(THREE_PARTS)
    done = computer.attndrift("check", "three.yaml", "--json")
    assert done.returncode == 1
    found = findings(done.stdout)
    assert "no configuration `large`" in found["dataset mine"]["detail"]
    assert found["model /nonexistent"]["state"] == "problem"
    assert_counted(found["dataset eurosat"]["detail"], hub)
    assert len(hub.asked("GET /lfs/")) == 2, "of both splits of EuroSAT, the labels"
    assert not list(computer.hub_cache.rglob("*.parquet")), "the hub sends the column of labels alone"


def _without_a_class(hub: Hub) -> tuple[Repository, str]:
    """EuroSAT, of whose test images those of the last class are gone."""
    whole = hub.dataset("tanganke/eurosat").commits[EUROSAT_MAIN]
    files = {name: file.content for name, file in whole.files.items()}
    name = "data/test-00000-of-00001.parquet"
    table = pq.read_table(io.BytesIO(files[name]))
    gone = len(EUROSAT) - 1
    with io.BytesIO() as stream:
        pq.write_table(table.filter(pc.field("label") != gone), stream)
        files[name] = stream.getvalue()
    repository = Repository("made/no-lakes", "datasets")
    repository.commit("main", commit_id("no lakes"), files, author="made", title="Upload dataset")
    return repository, EUROSAT[gone]


@pytest.mark.slow
@pytest.mark.ci("hub")
def test_a_class_without_images_is_said_before_a_download(computer: Computer, hub: Hub) -> None:
    repository, name = _without_a_class(hub)
    hub.repositories["datasets", repository.name] = repository
    try:
        done = computer.attndrift("check", _mine(computer, "{hub: made/no-lakes}"))
        assert done.returncode == 1
        text = " ".join(done.stdout.split())
        assert f"no images of {name} (test)" in text
        assert f"classes without images: {name}" in text
        assert not list(computer.hub_cache.rglob("*.parquet"))
        # The fast form asks for no column: the first look at the labels is after the download, and before the runs.
        done = computer.attndrift("run", "mine.yaml")
        assert done.returncode == 1
        assert f"classes without images: {name}" in done.stderr
        assert not (computer.work / "studies").exists()
    finally:
        del hub.repositories["datasets", repository.name]


@pytest.mark.slow
@pytest.mark.ci("hub")
def test_too_few_images_in_a_set_that_is_not_here(computer: Computer) -> None:
    done = computer.attndrift("check", "collapse-21", "--set", "probe_size=900", "--json")
    assert done.returncode == 1
    problems = {what: one for what, one in findings(done.stdout).items() if one["state"] == "problem"}
    assert set(problems) == {"dataset eurosat", "dataset pets"}
    assert "needs 90 images" in problems["dataset eurosat"]["detail"]


@pytest.mark.slow
@pytest.mark.ci("hub")
def test_a_revision_of_a_dataset(computer: Computer) -> None:
    found = computer.attndrift(
        "check",
        _mine(computer, f"{{hub: uoft-cs/cifar10, revision: {CIFAR10_MAIN}}}"),
        *("--set", "probe_size=10", "--json"),
    )
    assert CIFAR10_MAIN in findings(found.stdout)["dataset mine"]["detail"]
    done = computer.attndrift("check", _mine(computer, "{hub: uoft-cs/cifar100, revision: nowhere}"))
    assert done.returncode == 1
    assert "no such revision" in done.stdout


@pytest.mark.slow
@pytest.mark.ci("hub")
def test_a_copy_under_another_name_is_of_the_same_source(computer: Computer) -> None:
    path = Path(computer.work) / "copy.yaml"
    path.write_text(
        "name: copy\nshared: {model: embedded, dataset: mine, source: {hub: uoft-cs/cifar100}, transfer: [cifar100]}\n"
        "runs: [{method: full}]\n"
    )
    done = computer.attndrift("run", "copy.yaml", "--dry-run")
    assert done.returncode == 1
    assert "would not be zero-shot" in done.stderr


@pytest.mark.slow
@pytest.mark.ci("hub")
def test_a_silent_hub_is_asked_once(computer: Computer, hub: Hub) -> None:
    with hub.failing(Fault("", "silence")):
        done = computer.attndrift("run", "collapse-21", "--dry-run")
    assert done.returncode == 1
    assert "no answer" in done.stderr
    assert done.stderr.count("attndrift:") == 1
    assert len(hub.requests) == 1
