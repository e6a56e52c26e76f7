"""Suites whose sets are on a hub: names and templates come with the images, and what cannot be had is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from computer import Computer
from hub_datasets import CIFAR10, WDS_TEMPLATES
from hub_server import Hub

STUDY = """
name: suite
shared:
  {{model: "config:tiny", dataset: tiles, transfer: [{suite}], missing_sets: {missing}, monitor_zero_shot_images: 0, epochs: 1,
   train_per_class: 2, validation_per_class: 2, test_limit: 20, probe_size: 20, evaluations_per_epoch: 1, map_images: 1,
   threads: 1, batch_size: 8}}
runs:
  - {{method: none}}
"""


@pytest.mark.slow
@pytest.mark.ci("hub")
def test_a_suite_goes_on_without_what_cannot_be_had_only_if_told_to(computer: Computer, hub: Hub) -> None:
    study = computer.work / "suite.yaml"
    study.write_text(STUDY.format(suite="imagenet-shifts", missing="error"))
    done = computer.attndrift("run", str(study))
    assert done.returncode != 0
    for name in ("wds_imagenetv2", "wds_imagenet-r", "wds_imagenet_sketch"):
        assert name in done.stdout + done.stderr
    assert not (computer.work / "studies" / "suite" / "runs").exists(), "nothing was run"
    study.write_text(STUDY.format(suite="imagenet-shifts", missing="skip"))
    done = computer.attndrift("run", str(study))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wds_imagenetv2" in done.stdout + done.stderr
    (record,) = Path(computer.work / "studies" / "suite" / "runs").glob("*/record.json")
    found = json.loads(record.read_text())
    told = found["transfer"]["wds_imagenet-a"]["zero_shot"]["pretrained"]
    assert told["class_names"] == ["stingray", "goldfinch", "junco", "robin"]
    assert told["templates"] == [one.replace("{c}", "{class}") for one in WDS_TEMPLATES]
    assert found["transfer"]["wds_objectnet"]["zero_shot"]["pretrained"]["class_names"] == ["air freshener", "banana"]
    assert not hub.asked("train/"), "only the held-out split is downloaded where nothing else is used"


@pytest.mark.slow
@pytest.mark.ci("hub")
def test_a_set_in_tar_files_is_checked_and_read_without_a_hub(computer: Computer, hub: Hub) -> None:
    script = "import sys; from attndrift.data import load_dataset; d = load_dataset('wds_vtab-cifar10'); " + (
        "print(*d.class_names, sep='|'); print(len(d.train), len(d.test), d.test[3].size, d.fingerprint)"
    )
    names, first = computer.python(script).splitlines()
    assert names == "|".join(CIFAR10)
    assert first.startswith("30 40 (32, 32)")
    assert computer.python(script, HF_HUB_OFFLINE="1").splitlines()[1] == first
    study = computer.work / "suite.yaml"
    study.write_text(STUDY.format(suite="wds_vtab-cifar10", missing="error"))
    done = computer.attndrift("check", str(study))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test: 40 images, 4 a class" in " ".join(done.stdout.split())
