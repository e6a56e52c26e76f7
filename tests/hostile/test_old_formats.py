"""What version 0.1 left behind, given to every command that reads: one message, and nothing is read or written."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from small_study import STUDY, interrupt, run, run_folder, small_study
from transformers import CLIPModel

from attndrift.cli import main as cli
from attndrift.drift import DriftMonitor
from attndrift.drift.watch import DriftWatch
from attndrift.files import read_json, write_json
from attndrift.formats import FORMATS, FormatError, check_format
from attndrift.methods import load_adapted
from attndrift.results.tables import read_tables
from attndrift.study.training import states as resume


def _old_json(path: Path, number: int | None) -> None:
    content = {key: value for key, value in read_json(path).items() if key != "format"}
    write_json(path, content if number is None else {"format": number, **content})


def _old_table(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)


def _old_state(path: Path) -> None:
    write_json(path, read_json(path)["files"])


OLD = {
    "study.json": lambda path: _old_json(path, None),
    "settings.json": lambda path: _old_json(path, None),
    "record.json": lambda path: _old_json(path, 1),
    "checkpoint.json": lambda path: _old_json(path, 1),
    "manifest.json": _old_state,
    "*.parquet": _old_table,
}
"""Each kind of file -> how it becomes what version 0.1 wrote."""


def _as_version_01(folder: Path, *kinds: str) -> Path:
    """Turn what this version wrote into the exact form of version 0.1: the numbers were 1, or were not there."""
    for kind in kinds or OLD:
        found = list(folder.rglob(kind))
        assert found or kind == "manifest.json", kind
        for path in found:
            OLD[kind](path)
    return folder


@pytest.fixture(scope="module")
def made(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study folder of this version, with a run that is done and the images to compare it on."""
    root = tmp_path_factory.mktemp("made")
    run(small_study(tiny_clip), root / "study")
    (root / "images").mkdir()
    for index in range(3):
        Image.new("RGB", (28, 28), (80 * index, 90, 40)).save(root / "images" / f"{index}.png")
    (root / "study.yaml").write_text(STUDY % tiny_clip)
    return root


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "study", tmp_path / "study"))


def _content(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")}


def _refused(arguments: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that ends with exit code 1, in one message, about version 0.1."""
    monkeypatch.setattr(sys, "argv", ["attndrift", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    assert ended.value.code == 1, shown.out + shown.err
    assert shown.out == ""
    messages = [line for line in shown.err.splitlines() if line.startswith("attndrift: ")]
    assert len(messages) == 1, shown.err
    assert "version 0.1 wrote it" in messages[0], messages[0]
    assert "or use version 0.1 of attndrift" in messages[0]
    return messages[0]


COMMANDS = {
    "run": ["run", "{made}/study.yaml", "--output", "{study}"],
    "collect": ["collect", "{study}"],
    "analyze": ["analyze", "{study}"],
    "figures": ["figures", "{study}"],
    "report": ["report", "{study}"],
    "show": ["show", "{run}"],
    "compare": ["compare", "{model}", "{run}", "--images", "{made}/images", "--output", "{output}"],
    "compare with a checkpoint": [
        "compare", "{model}", "{run}/checkpoints/best", "--images", "{made}/images", "--output", "{output}",
    ],
    "baseline": ["baseline", "{run}", "--images", "{made}/images", "--output", "{output}"],
    "interpolate": ["interpolate", "{run}", "--alphas", "0,1"],
}  # fmt: skip


@pytest.mark.one_in(4)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_study_folder_of_version_01_is_refused_by_every_command(
    made: Path,
    folder: Path,
    tiny_clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    _as_version_01(folder)
    before = _content(folder)
    names = {
        "made": made, "study": folder, "run": run_folder(small_study(tiny_clip), folder), "model": tiny_clip,
        "output": tmp_path / "output",
    }  # fmt: skip
    said = _refused([word.format(**names) for word in COMMANDS[command]], monkeypatch, capsys)
    assert str(folder) in said
    assert _content(folder) == before
    assert not (tmp_path / "output").exists()


def test_a_study_of_version_01_in_a_store_is_refused(
    made: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ATTNDRIFT_CACHE", str(tmp_path / "cache"))
    url = "memory://old-studies/one"
    fsspec.filesystem("memory").put(f"{_as_version_01(folder)}/", "/old-studies/one", recursive=True)
    assert url in _refused(["fetch", url, tmp_path / "fetched"], monkeypatch, capsys)
    assert url in _refused(["run", made / "study.yaml", "--output", url], monkeypatch, capsys)
    assert not (tmp_path / "fetched").exists()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("command", ["analyze", "figures", "report"])
def test_tables_of_version_01_are_refused_and_can_be_imported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    for path in folder.glob("*.parquet"):
        shutil.copy(path, tables)
    _as_version_01(tables, "*.parquet")
    assert "runs.parquet" in _refused([command, tables], monkeypatch, capsys)
    assert {path.name for path in tables.iterdir()} == {path.name for path in folder.glob("*.parquet")}
    monkeypatch.setattr(sys, "argv", ["attndrift", "import", str(tables / "runs.parquet"), "-o", str(tmp_path / "new")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code, capsys.readouterr().err
    assert read_tables(tmp_path / "new").runs["run_id"].tolist() == read_tables(folder).runs["run_id"].tolist()


@pytest.mark.parametrize("name", ["history", "layers"])
def test_one_table_of_version_01_among_others_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (folder / "study.json").unlink()
    _old_table(folder / f"{name}.parquet")
    assert f"{name}.parquet" in _refused(["analyze", folder], monkeypatch, capsys)


def test_an_unfinished_run_of_version_01_is_refused(
    folder: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = run_folder(small_study(tiny_clip), folder)
    (where / "record.json").unlink()
    _as_version_01(where, "settings.json")
    _refused(["show", where], monkeypatch, capsys)
    with pytest.raises(FormatError, match="the folder of a run without a format number"):
        run(small_study(tiny_clip), folder)


def test_a_state_of_version_01_is_refused_and_not_taken_for_damage(tiny_clip: Path, tmp_path: Path) -> None:
    study = small_study(tiny_clip)
    interrupt(study, tmp_path / "study")
    states = run_folder(study, tmp_path / "study") / "resume"
    _as_version_01(states, "manifest.json")
    told: list[str] = []
    with pytest.raises(FormatError, match=r"step-4: a resumable state without a format number: version 0\.1 wrote it"):
        resume.newest(states, study.runs[0].settings, told.append)
    assert told == []


def test_a_checkpoint_of_version_01_is_refused(folder: Path, tiny_clip: Path) -> None:
    best = run_folder(small_study(tiny_clip), folder) / "checkpoints" / "best"
    load_adapted(best)
    _as_version_01(best, "checkpoint.json")
    with pytest.raises(FormatError, match=r"best: a checkpoint of format 1: version 0\.1 wrote it"):
        load_adapted(best)


def test_tables_of_a_watched_training_of_version_01_are_not_continued(tiny_clip: Path, tmp_path: Path) -> None:
    clip = CLIPModel.from_pretrained(tiny_clip).eval()
    images = torch.rand(6, 3, clip.config.vision_config.image_size, clip.config.vision_config.image_size)

    def watch(existing: str) -> DriftWatch:
        return DriftWatch(DriftMonitor(clip, images), 1, folder=tmp_path / "drift", existing=existing, echo=None)

    with watch("refuse") as first:
        first.step(1)
    with watch("continue") as second:
        second.step(2)
    assert read_tables(tmp_path / "drift").history["step"].tolist() == [0, 1, 2]
    _as_version_01(tmp_path / "drift", "*.parquet")
    before = _content(tmp_path / "drift")
    with pytest.raises(FormatError, match=r"runs\.parquet: tables without a format number: version 0\.1 wrote it"):
        watch("continue")
    assert _content(tmp_path / "drift") == before
    with watch("replace") as third:
        third.step(1)
    assert read_tables(tmp_path / "drift").history["step"].tolist() == [0, 1]


@pytest.mark.parametrize("kind", FORMATS)
def test_what_a_later_version_wrote_asks_for_an_update(kind: str) -> None:
    number, what, _ = FORMATS[kind]
    check_format(kind, {"format": number}, "here")
    with pytest.raises(FormatError, match=f"here: {what} of format {number + 1}, which a later version .* Update"):
        check_format(kind, {"format": number + 1}, "here")
    for damaged in ({}, {"format": None}, {"format": "two"}, [], None):
        with pytest.raises(FormatError, match=f"here: {what}"):
            check_format(kind, damaged, "here")


def test_a_number_in_a_table_leaves_its_content_as_it_is(folder: Path) -> None:
    path = folder / "runs.parquet"
    whole = pd.read_parquet(path)
    metadata = pq.read_schema(path).metadata
    assert json.loads(metadata[b"attndrift_format"]) == FORMATS["tables"][0]
    _old_table(path)
    pd.testing.assert_frame_equal(pd.read_parquet(path), whole)
