"""The presets that reproduce published tables, planned and run against the hub's double with small models and sets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import hub_fusionbench
import pytest
from computer import Computer
from hub_datasets import dataset_repositories
from hub_models import FUSION_BENCH, FUSION_BENCH_MAIN, model_repositories
from hub_server import Hub

from attndrift.files import read_json

pytestmark = [pytest.mark.slow, pytest.mark.ci("hub")]  # commands of two presets, and 19 runs

TINY = tuple(
    part
    for setting in (
        "train_per_class=4", "test_limit=20", "transfer_limit=20", "probe_size=8", "map_images=1", "threads=1",
        "validation_fraction=0.2",
    )
    for part in ("--set", setting)
)  # fmt: skip


@pytest.fixture(scope="module")
def tables_hub() -> Iterator[Hub]:
    repositories = model_repositories() + dataset_repositories() + hub_fusionbench.sets() + hub_fusionbench.towers()
    with Hub(repositories) as running:
        yield running


@pytest.fixture
def machine(tables_hub: Hub, tmp_path: Path) -> Computer:
    tables_hub.requests.clear()
    return Computer(tmp_path / "computer", tables_hub.endpoint)


def test_fusionbench_is_planned(machine: Computer, tables_hub: Hub) -> None:
    done = machine.attndrift("check", "fusionbench-b32", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {one["what"]: one for one in json.loads(done.stdout)["findings"]}
    assert FUSION_BENCH_MAIN in found[f"checkpoint {FUSION_BENCH}"]["detail"]
    checkpoints = [what for what in found if what.startswith("checkpoint ")]
    assert len(checkpoints) == 8
    assert {found[what]["state"] for what in checkpoints} == {"ok"}
    assert set(checkpoints) <= {one["what"] for one in json.loads(done.stdout)["downloads"]}
    assert not [request for request in tables_hub.asked("safetensors") if request.startswith("GET")]
    planned = machine.attndrift("run", "fusionbench-b32", "--dry-run", "--json", "--set", "probe_size=8")
    assert planned.returncode == 0, planned.stdout + planned.stderr
    rows = json.loads(planned.stdout)
    assert [row["steps"] for row in rows] == [0] * 10 + [4000] * 8
    assert {row["trainable_parameters"] for row in rows if row["method"] == "published"} == {0}


def test_a_checkpoint_that_the_hub_does_not_have_is_said_before_a_run(machine: Computer, tables_hub: Hub) -> None:
    gone = tables_hub.repositories.pop(("models", FUSION_BENCH))
    try:
        done = machine.attndrift("run", "fusionbench-b32", "--only", "C", *TINY)
    finally:
        tables_hub.repositories["models", FUSION_BENCH] = gone
    assert done.returncode == 1
    assert f"checkpoint {FUSION_BENCH}" in done.stderr
    assert not (machine.work / "studies").exists()


@pytest.mark.timeout(1500)
def test_fusionbench_runs_and_is_verified(machine: Computer) -> None:
    """The checkpoints alone first, then the training; numbers of small models are out of tolerance."""
    first = machine.attndrift("run", "fusionbench-b32", "--only", "P", "--only", "C", *TINY)
    assert first.returncode == 0, first.stderr
    folder = machine.work / "studies/fusionbench-b32"
    verified = machine.attndrift("verify", "fusionbench-b32", "--json")
    assert verified.returncode == 3, verified.stderr
    rows = json.loads(verified.stdout)["rows"]
    assert len(rows) == 8 + 64 + 64
    for row in rows:
        assert (row["verdict"] == "missing") == (row["where"].get("experiment") == "T")
    record = read_json(next((folder / "runs").glob("C_eurosat_*")) / "record.json")
    assert record["checkpoint"]["revision"] == FUSION_BENCH_MAIN
    assert record["row"]["weight_drift"] > 0
    trained = "T_eurosat_full_frozen-projection_cosine-head_wd0_steps2_lr1e-5_s42"
    second = machine.attndrift("run", "fusionbench-b32", *TINY, "--set", "steps=2", "--only", trained)
    assert second.returncode == 0, second.stderr
    verified = machine.attndrift("verify", "fusionbench-b32", "--json")
    assert verified.returncode == 3, verified.stderr
    for row in json.loads(verified.stdout)["rows"]:
        absent = row["where"].get("experiment") == "T" and row["where"]["dataset"] != "eurosat"
        assert (row["verdict"] == "missing") == absent


def test_ldifs_is_planned_and_runs(machine: Computer) -> None:
    planned = machine.attndrift(
        "run", "ldifs-b32", "--dry-run", "--json", "--set", "probe_size=8", "--set", "warmup_steps=0"
    )
    rows = json.loads(planned.stdout)
    assert len(rows) == 2 + 4 * 10
    # The double's CIFAR-100 has one training image a class, which no study can divide.
    assert {row["dataset"] for row in rows if row["note"]} <= {"cifar100"}
    assert {(row["dataset"], row["epochs"]) for row in rows if row["method"] == "full"} >= {("dtd", 76), ("mnist", 10)}
    only = next(row["run_id"] for row in rows if row["experiment"] == "D" and row["dataset"] == "eurosat")
    done = machine.attndrift(
        "run", "ldifs-b32", "--only", only, *TINY, "--set", "eurosat.epochs=1", "--set", "warmup_steps=0"
    )
    assert done.returncode == 0, done.stderr
    verified = machine.attndrift("verify", "ldifs-b32", "--json")
    assert verified.returncode == 2
    assert "nothing was compared" in verified.stderr
    found = json.loads(verified.stdout)
    # One of ten targets, and that of other epochs: nothing is within.
    assert found["counts"] == {"missing": 8}
    assert len(found["others"]) == 1
