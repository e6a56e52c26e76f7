"""No run is written through a link, whenever it was put there: the check at the start of a study is long past by then."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from made_bad import surroundings

from attndrift.files import LinkError, write_json
from attndrift.formats import numbered
from attndrift.study.storage import LocalStorage


def _to(where: str, target: str) -> Callable[[Path], None]:
    def put(root: Path) -> None:
        link = root / where
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(root / target)

    return put


def _chain(root: Path) -> None:
    (root / "study" / "hop").symlink_to(root / "outside")
    (root / "study" / "runs").mkdir()
    (root / "study" / "runs" / "one").symlink_to("../hop")


def _relative(root: Path) -> None:
    (root / "study" / "runs").mkdir()
    (root / "study" / "runs" / "one").symlink_to(os.path.join("..", "..", "outside"))


LINKS: dict[str, Callable[[Path], None]] = {
    "the run's folder": _to("study/runs/one", "outside"),
    "all runs": _to("study/runs", "outside"),
    "a relative link": _relative,
    "a chain of links": _chain,
    "what is not there yet": _to("study/runs/one", "outside/new"),
    "its checkpoints": _to("study/runs/one/checkpoints", "outside"),
    "its history": _to("study/runs/one/history.jsonl", "outside/kept.txt"),
    "its states, further down": _to("study/runs/one/resume/step-3", "outside"),
    "its lock": _to("study/runs/one/.lock", "outside/kept.txt"),
    "another run's folder": _to("study/runs/one", "study/runs/two"),
}


@pytest.mark.parametrize("kind", LINKS)
def test_a_run_is_not_opened_through_a_link(tmp_path: Path, kind: str) -> None:
    outside, study = tmp_path / "outside", tmp_path / "study"
    outside.mkdir()
    (outside / "kept.txt").write_text("mine")
    write_json(study / "study.json", numbered("study", {"name": "mine", "runs": []}))
    if kind == "another run's folder":
        (study / "runs" / "two").mkdir(parents=True)
    LINKS[kind](tmp_path)
    before = surroundings(outside)
    with (
        pytest.raises(LinkError, match=r"leads out of its folder|two runs would write"),
        LocalStorage(study).open_run("one"),
    ):
        pass
    assert surroundings(outside) == before
    assert list((study / "runs").glob("two/*")) == []


def test_a_run_of_a_linked_study_is_opened(tmp_path: Path) -> None:
    write_json(tmp_path / "real" / "study.json", numbered("study", {"name": "mine", "runs": []}))
    (tmp_path / "study").symlink_to(tmp_path / "real")
    with LocalStorage(tmp_path / "study").open_run("one") as workspace:
        assert workspace.folder.is_dir()
