"""Damaged and crafted study folders: a bad file leaves its run out with a warning, or is named in an error."""

from __future__ import annotations

import io
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_study import STUDY, interrupt, run, run_folder, small_study

from attndrift.analysis.image_intervals import read_image_outcomes
from attndrift.analysis.storing import read_analysis
from attndrift.cli import main as cli
from attndrift.files import LeftOutWarning, read_json, write_json
from attndrift.results.attention_maps import read_maps
from attndrift.results.tables import read_tables
from attndrift.study.collect import gather
from attndrift.study.loading import parse_study
from attndrift.study.object_storage import ObjectStorage
from attndrift.study.settings import RunSettings
from attndrift.study.training import states as resume

DEEP = b"[" * 100_000 + b"]" * 100_000
NESTED = b'{"a":' * 500 + b"1" + b"}" * 500

SHAPES: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "text": b'"record"',
    "number": b"7",
    "no text": b"\xff\xfe\x00",
    "cut short": b'{"format": 2, "status": "fin',
    "deep list": DEEP,
    "deep object": NESTED,
    "million digits": b'{"format": 2, "n": ' + b"9" * 1_000_000 + b"}",
    "no fields": b'{"format": 2}',
}
"""Content of a JSON file that no run writes."""


def _set(field: str, value: Any) -> Callable[[bytes], bytes]:
    """Change one field, ``a.b``, of a JSON file; lines after the first stay."""

    def change(content: bytes) -> bytes:
        line, rest = content.split(b"\n", 1) if content.startswith(b'{"') else (content, b"")
        whole = json.loads(line)
        *path, last = field.split(".")
        inner = whole
        for name in path:
            inner = inner[int(name)] if isinstance(inner, list) else inner[name]
        inner[last] = value
        return json.dumps(whole).encode() + b"\n" + rest

    return change


RECORDS: dict[str, Callable[[bytes], bytes]] = {
    "status of no run": _set("status", "done"),
    "status a list": _set("status", []),
    "row null": _set("row", None),
    "row a list": _set("row", [1]),
    "row with a table": _set("row.test_accuracy", {"a": 1}),
    "accuracy text": _set("row.test_accuracy", "high"),
    "accuracy in percent": _set("row.test_accuracy", 97.2),
    "seed of 400 digits": _set("row.seed", 10**400),
    "seed of 65 bits": _set("row.seed", 2**64),
    "loss of no form": _set("row.loss", "0.1"),
    "50,000 columns": _set("row", {f"column {i}": i for i in range(50_000)}),
    "long text": _set("row.model", "x" * 1_000_000),
    "settings null": _set("settings", None),
    "versions a list": _set("versions", [1]),
    "nulls text": _set("nulls", "none"),
    "mean of texts": _set("preprocessing", {"image_mean": ["a"]}),
    "transfer of texts": _set("transfer", {"x": "y"}),
    "time a text": _set("time", "long"),
    "chance a text": _set("cka_chance_level", "none"),
    "outcomes of numbers": _set("outcomes", [1]),
    "outcome without a row": _set("outcomes", [{"run_id": "a"}]),
    "outcome of a name that climbs": _set("outcomes", [{"run_id": "../a", "row": {}}]),
    "outcome with a table": _set("outcomes", [{"run_id": "a", "row": {"test_accuracy": {"b": 1}}}]),
    "outcome in percent": _set("outcomes", [{"run_id": "a", "row": {"test_accuracy": 97.2}}]),
}
HISTORY: dict[str, Callable[[bytes], bytes]] = {
    "a step twice": lambda data: data + data.splitlines(keepends=True)[-1],
    "step null": _set("step", None),
    "step a text": _set("step", "1"),
    "step of 400 digits": _set("step", 10**400),
    "layers a list": _set("layers", [1]),
    "layer a text": _set("layers", {"entropy": {"layer": "x"}}),
    "heads flat": _set("layers", {"entropy": {"layer": [1.0], "head": [1.0]}}),
    "accuracy in percent": _set("val_accuracy", 97.2),
}
SWEEPS: dict[str, bytes] = {
    "points null": b'{"points": null}',
    "points of numbers": b'{"points": [1, 2]}',
    "no alpha": b'{"points": [{"test_accuracy": 0.5}]}',
    "alpha 7": b'{"points": [{"alpha": 7}]}',
    "accuracy in percent": b'{"points": [{"alpha": 0.5, "test_accuracy": 97.0}]}',
}


def _archive(**arrays: tuple[dict[str, Any], bytes] | np.ndarray) -> bytes:
    """An ``.npz`` of arrays, or of headers that promise more than there is."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in arrays.items():
            member = io.BytesIO()
            if isinstance(value, tuple):
                np.lib.format.write_array_header_2_0(member, value[0])
                member.write(value[1])
            else:
                np.lib.format.write_array(member, value)
            archive.writestr(f"{name}.npy", member.getvalue())
    return out.getvalue()


def _promised(*shape: int, kind: str = "<f4") -> tuple[dict[str, Any], bytes]:
    return {"descr": kind, "fortran_order": False, "shape": shape}, b"\0" * 1000


def _maps(**changed: Any) -> bytes:
    good: dict[str, Any] = {
        "images": np.zeros((1, 8, 8, 3), np.uint8), "before": np.full((1, 2, 2, 4), 0.25, np.float32),
        "after": np.full((1, 2, 2, 4), 0.25, np.float32), "labels": np.zeros(1, int), "class_names": np.array(["a"]),
        "grid": np.array([2, 2]), "ids": np.array(["x"]),
    }  # fmt: skip
    return _archive(**good | changed)


ARRAYS: dict[str, bytes] = {
    "two of 4 GB": _maps(before=_promised(1, 2, 2, 1 << 28), after=_promised(1, 2, 2, 1 << 28)),
    "terabytes of text": _maps(ids=_promised(1, kind="<U1000000000")),
    "no archive": b"PK\x03\x04 cut short",
    "one array missing": _archive(images=np.zeros((1, 8, 8, 3), np.uint8)),
    "grid of texts": _maps(grid=np.array(["a", "b"])),
    "labels of texts": _maps(labels=np.array(["a"])),
    "maps of texts": _maps(before=np.full((1, 2, 2, 4), "x"), after=np.full((1, 2, 2, 4), "x")),
    "not finite": _maps(before=np.full((1, 2, 2, 4), np.nan, np.float32)),
    "no image": _maps(images=np.zeros((0, 8, 8, 3), np.uint8)),
    "fewer bytes than promised": _maps(before=_promised(1, 2, 2, 4, kind="<f8")),
}
OUTCOMES: dict[str, bytes] = {
    "n of a trillion": _archive(n=np.int64(10**12), adapted=np.zeros(1, np.uint8), pretrained=np.zeros(1, np.uint8)),
    "n below 0": _archive(n=np.int64(-5), adapted=np.zeros(1, np.uint8), pretrained=np.zeros(1, np.uint8)),
    "n a text": _archive(n=np.array("x"), adapted=np.zeros(1, np.uint8), pretrained=np.zeros(1, np.uint8)),
    "outcomes of 4 GB": _archive(n=np.int64(2**35), adapted=_promised(1 << 32, kind="|u1"), pretrained=_promised(1 << 32, kind="|u1")),
    "no archive": b"PK",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of one finished run."""
    folder = tmp_path_factory.mktemp("made") / "study"
    run(small_study(tiny_clip), folder)
    return folder


def _command(*words: object, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["attndrift", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("default::attndrift.files.LeftOutWarning")
def test_a_report_is_made_of_the_runs_that_can_be_read(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One study in which every run but two has another damaged file; each is named, and none ends the report."""
    folder = tmp_path / "study"
    study = read_json(made / "study.json")
    good = study["runs"][0]
    source = made / "runs" / good["run_id"]
    bad: dict[str, tuple[str, bytes, bool]] = {}  # run -> (file, content, whether the run stays in the tables)
    record, history = ((source / name).read_bytes() for name in ("record.json", "history.jsonl"))
    for what, content in SHAPES.items():
        bad[f"record {what}"] = ("record.json", content, False)
    for what in ("null", "text", "no text", "deep object"):
        bad[f"history {what}"] = ("history.jsonl", history + SHAPES[what] + b"\n", False)
        bad[f"sweep {what}"] = ("interpolation.json", SHAPES[what], True)
    bad |= {f"record {what}": ("record.json", change(record), False) for what, change in RECORDS.items()}
    bad |= {f"history {what}": ("history.jsonl", change(history), False) for what, change in HISTORY.items()}
    bad |= {f"sweep {what}": ("interpolation.json", content, True) for what, content in SWEEPS.items()}
    bad |= {f"maps {what}": ("maps.npz", content, True) for what, content in ARRAYS.items()}
    bad |= {f"outcomes {what}": ("transfer_x.npz", content, True) for what, content in OUTCOMES.items()}
    names = {key: "".join(c if c.isalnum() else "-" for c in key) for key in bad}
    for run_id in ("good-1", *names.values(), "good-2"):
        shutil.copytree(source, folder / "runs" / run_id)
        study["runs"].append({**good, "run_id": run_id})
    surrogate = folder / "runs" / "good-2" / "record.json"
    surrogate.write_bytes(_set("problem", "half \ud800 a pair")(_set("row.model", "\udfff model")(record)))
    for key, (file, content, _) in bad.items():
        (folder / "runs" / names[key] / file).write_bytes(content)
    study["runs"] = study["runs"][1:]
    write_json(folder / "study.json", study)

    code = _command("report", folder, monkeypatch=monkeypatch)
    said = capsys.readouterr().err
    assert code == 0, said
    in_tables = set(read_tables(folder).runs["run_id"])
    assert in_tables == {"good-1", "good-2"} | {names[key] for key, (_, _, stays) in bad.items() if stays}
    page = (folder / "report.html").read_text()
    with pytest.warns(LeftOutWarning) as left_out:  # figures read outcomes of images where they show a single run
        read_image_outcomes(folder)
    said += "\n".join(str(one.message) for one in left_out)
    for key, (file, _, _) in bad.items():
        told = said + page if file == "maps.npz" else said
        assert names[key] in told, key
        assert file in "".join(line for line in said.splitlines() if names[key] in line) or file == "maps.npz", key
    assert "Traceback" not in said
    assert len(max(said.splitlines(), key=len)) < 2000


@pytest.mark.one_in(5)
@pytest.mark.parametrize("shape", [*SHAPES, "run of a list", "settings of a text", "two of a name", "a surrogate"])
@pytest.mark.parametrize("command", ["collect", "report", "run"])
def test_a_study_without_a_readable_description_is_named(
    made: Path, tmp_path: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], shape: str, command: str,
) -> None:  # fmt: skip
    folder = tmp_path / "study"
    shutil.copytree(made, folder)
    (tmp_path / "study.yaml").write_text(STUDY % tiny_clip)
    whole = (folder / "study.json").read_bytes()
    one = read_json(folder / "study.json")["runs"][0]
    changed = {
        "run of a list": lambda: _set("runs", [[1]])(whole),
        "settings of a text": lambda: _set("runs", [{**one, "settings": "all"}])(whole),
        "two of a name": lambda: _set("runs", [one, one])(whole),
        "a surrogate": lambda: _set("runs", [{**one, "run_id": "\ud800"}])(whole),
    }
    (folder / "study.json").write_bytes(SHAPES[shape] if shape in SHAPES else changed[shape]())
    words = ["run", tmp_path / "study.yaml", "--output", folder] if command == "run" else [command, folder]
    assert _command(*words, monkeypatch=monkeypatch) == 1
    said = capsys.readouterr().err
    assert "study.json" in said
    assert "Traceback" not in said


@pytest.mark.one_in(4)
@pytest.mark.parametrize("file", ["record.json", "settings.json"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_run_without_a_readable_file_is_named(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
    shape: str,
) -> None:
    folder = Path(shutil.copytree(next((made / "runs").iterdir()), tmp_path / "run"))
    if file == "settings.json":
        (folder / "record.json").unlink()
    (folder / file).write_bytes(SHAPES[shape])
    for command in ("show", "interpolate") if file == "record.json" else ("show",):
        assert _command(command, folder, monkeypatch=monkeypatch) == 1
        said = capsys.readouterr().err
        assert "run" in said
        assert "Traceback" not in said
        assert "This should have been said better" not in said


STATES: dict[str, Callable[[Path], None]] = {
    **{f"manifest {what}": lambda state, c=content: (state / "manifest.json").write_bytes(c) for what, content in SHAPES.items()},
    **{f"progress {what}": lambda state, c=content: _forge(state, "progress.json", c) for what, content in SHAPES.items()
       if what != "no fields"},
    "progress of another program": lambda state: _forge(state, "progress.json", b'{"steps": 3}'),
    "history of texts": lambda state: _forge(state, "progress.json", b'{"history": ["a"]}'),
    "sums of texts": lambda state: _forge(state, "progress.json", b'{"correct": "a"}'),
    "files that lead out": lambda state: write_json(
        state / "manifest.json", {"format": 2, "files": {"../../study.json": "0" * 64}}
    ),
    "no files": lambda state: write_json(state / "manifest.json", {"format": 2, "files": {}}),
    "checksums of numbers": lambda state: write_json(state / "manifest.json", {"format": 2, "files": {"training.pt": 1}}),
}  # fmt: skip


def _forge(state: Path, name: str, content: bytes) -> None:
    """Write a file of a state with a fitting checksum."""
    (state / name).write_bytes(content)
    manifest = read_json(state / "manifest.json")
    manifest["files"][name] = resume.sha256(state / name)
    write_json(state / "manifest.json", manifest)


@pytest.fixture(scope="module")
def interrupted(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunSettings]:
    """The states of a run that was stopped after two of them, and its settings."""
    folder = tmp_path_factory.mktemp("interrupted") / "study"
    study = small_study(tiny_clip)
    interrupt(study, folder)
    return run_folder(study, folder) / "resume", study.runs[0].settings


@pytest.mark.one_in(3)
@pytest.mark.parametrize("harm", STATES)
def test_a_crafted_state_is_passed_over(interrupted: tuple[Path, RunSettings], tmp_path: Path, harm: str) -> None:
    root = Path(shutil.copytree(interrupted[0], tmp_path / "resume"))
    older, newer = sorted(root.iterdir())
    STATES[harm](newer)
    said: list[str] = []
    assert resume.newest(root, interrupted[1], said.append) == older
    assert len(said) == 1
    assert newer.name in said[0]
    assert len(said[0]) < 1000


@pytest.mark.parametrize(
    "name", ["step-²", "step-٣", "step-", "step--1", "step-007", "step-9" * 20, "step-1e3", "step-x"]
)
def test_a_folder_that_is_called_like_a_state_is_none(
    interrupted: tuple[Path, RunSettings], tmp_path: Path, name: str
) -> None:
    root = Path(shutil.copytree(interrupted[0], tmp_path / "resume"))
    expected = resume.newest(root, interrupted[1], pytest.fail)
    assert expected is not None
    shutil.copytree(expected, root / name)
    said: list[str] = []
    assert resume.newest(root, interrupted[1], said.append) == expected
    assert len(said) == 1


SPREAD = ("empty", "list", "deep object")
"""Shapes that stand for all where a test runs whole commands; the others are tried by the slow tests."""


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "shape", [pytest.param(one, marks=() if one in SPREAD else pytest.mark.slow) for one in SHAPES]
)
def test_files_that_commands_write_and_read_again(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shape: str
) -> None:
    """A damaged index of figures or analysis of an earlier command is written anew, or named where it is asked for."""
    folder = Path(shutil.copytree(made, tmp_path / "study"))
    (folder / "figures").mkdir()
    (folder / "figures" / "index.json").write_bytes(SHAPES[shape])
    (folder / "analysis.json").write_bytes(SHAPES[shape])
    with pytest.raises(ValueError, match=r"analysis\.json"):
        read_analysis(folder)
    assert _command("analyze", folder, monkeypatch=monkeypatch) == 0
    assert _command("figures", folder, "--only", "dose_response", monkeypatch=monkeypatch) == 0
    assert read_analysis(folder).schema_version
    assert "dose_response" in read_json(folder / "figures" / "index.json")


@pytest.mark.one_in(3)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_bad_object_of_a_store_is_named_or_passed_over(
    interrupted: tuple[Path, RunSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    monkeypatch.setenv("ATTNDRIFT_CACHE", str(tmp_path / "cache"))
    storage = ObjectStorage(f"memory://bad-objects/{shape.replace(' ', '-')}")
    study = parse_study("name: x\nruns: [{dataset: tiles}]", where="study.yaml")
    run_id = study.runs[0].run_id
    with storage.driver(lambda _: None):
        storage.prepare(study)
        storage.store.write(storage.store.path(".states", run_id, "000001-a.json"), SHAPES[shape])
        storage.store.write(storage.store.path(".states", run_id, "²-a.json"), SHAPES[shape])
        with storage.open_run(run_id) as workspace:
            assert [path.name for path in workspace.folder.iterdir() if not path.name.startswith(".")] == []
            (workspace.folder / "resume" / "step-²").mkdir(parents=True)
            (workspace.folder / "resume" / "step-2").mkdir()
            workspace.save()
        storage.store.write(storage.store.path("runs", run_id, "record.json"), SHAPES[shape])
        with pytest.raises(ValueError, match=r"record\.json"):
            storage.status(run_id)
        storage.store.write(storage.store.path("study.json"), SHAPES[shape])
        for read in (storage.planned, lambda: storage.plans(run_id), storage.collect):
            with pytest.raises(ValueError, match=r"study\.json"):
                read()


def test_a_good_folder_is_read_whole(made: Path) -> None:
    tables, missing = gather(made)
    assert (len(tables.runs), missing) == (1, [])
    assert read_maps(next(made.glob("runs/*/maps.npz"))).grid
