"""A test for each sentence on security: no foreign code, no name that leads elsewhere, no markup, no secrets."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from made_bad import surroundings
from rich.console import Console
from small_study import STUDY, interrupt, run, run_folder, small_study

from attndrift.analysis import analyze
from attndrift.analysis.storing import write_analysis
from attndrift.cli import main as cli
from attndrift.cli.reporting import load, report_on
from attndrift.cli.run_table import StudyTable
from attndrift.cli.showing import describe_run
from attndrift.compare.errors import CompareError
from attndrift.compare.sources import resolve
from attndrift.data import DataError, load_dataset
from attndrift.figures.draw import draw_figures
from attndrift.files import LinkError, read_json, sha256, write_json
from attndrift.formats import numbered
from attndrift.importing.importer import import_tables
from attndrift.methods import load_adapted
from attndrift.models import CheckpointError, ModelError, load_config, load_model, load_processor
from attndrift.report.build import write_report
from attndrift.results.tables import Tables, read_tables, write_tables
from attndrift.sanitize import DIRECTION_MARKS
from attndrift.study.collect import StudyFolderError, collect, planned_runs
from attndrift.study.interpolation import interpolate
from attndrift.study.loading import StudyError, parse_overrides, parse_study
from attndrift.study.object_storage import ObjectStorage
from attndrift.study.record import write_settings
from attndrift.study.resources import StudyResources
from attndrift.study.runner import run_study
from attndrift.study.storage import StudyFolderConflict, prepare_folder
from attndrift.study.training import states as resume
from attndrift.trackers.tensorboard import ScalarWriter
from benchmarks.synthetic import synthetic_tables


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (open, (str(self.marker), "w"))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    path = tmp_path / "unpickled"
    pickle.loads(pickle.dumps(Bomb(path))).close()
    assert path.exists(), "the bomb works"
    path.unlink()
    return path


# -- weights and states ----------------------------------------------------------------------------


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt", "model.pth"])
def test_a_pickle_for_a_model_is_refused_unread(tiny_clip: Path, tmp_path: Path, marker: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_clip, folder)
    (folder / "model.safetensors").unlink()
    torch.save(Bomb(marker), folder / name)
    for attempt in (load_model, resolve, lambda f: run(small_study(f), tmp_path / "study")):
        try:
            found = attempt(folder)
        except ModelError as error:
            assert "safetensors" in str(error)  # noqa: PT017
        else:
            assert found["status"] == "failed"
            assert "refused" in found["problem"]
    assert not marker.exists()


@pytest.mark.parametrize("shard", ["pytorch_model.bin", "../outside.safetensors", "/etc/passwd"])
def test_an_index_leads_to_safetensors_in_its_own_folder_alone(
    tiny_clip: Path, tmp_path: Path, marker: Path, shard: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_clip, folder)
    shutil.move(folder / "model.safetensors", tmp_path / "outside.safetensors")
    torch.save(Bomb(marker), folder / "pytorch_model.bin")
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": {"logit_scale": shard}})
    with pytest.raises(ModelError, match="the model's own folder alone"):
        load_model(folder)
    assert not marker.exists()


def test_a_pickle_for_an_adapter_is_refused_unread(tmp_path: Path, marker: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "embedded"})
    torch.save(Bomb(marker), folder / "adapter_model.bin")
    with pytest.raises(CompareError, match="Pickled weights can run code"):
        resolve(folder)
    assert not marker.exists()


def test_a_pickle_in_a_checkpoint_is_refused_unread(tiny_clip: Path, tmp_path: Path, marker: Path) -> None:
    """Also where the description vouches for it: its checksums say what was written, not that it is harmless."""
    study = small_study(tiny_clip)
    run(study, tmp_path / "study")
    whole = run_folder(study, tmp_path / "study") / "checkpoints" / "best"
    for name in ("model.safetensors", "fingerprint.safetensors", "adapter/adapter_model.safetensors"):
        folder = tmp_path / name.replace("/", "-")
        shutil.copytree(whole, folder)
        assert (folder / name).is_file(), sorted(p.name for p in folder.rglob("*"))
        torch.save(Bomb(marker), folder / name)
        description = read_json(folder / "checkpoint.json")
        description["files"][name] = sha256(folder / name)
        write_json(folder / "checkpoint.json", description)
        with pytest.raises(CheckpointError):
            load_adapted(folder)
    assert not marker.exists()


@pytest.fixture(scope="module")
def interrupted(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupted") / "study"
    interrupt(small_study(tiny_clip), folder)
    return folder


STATE_FILES = ["training.pt", "model.safetensors", "progress.json", "optimizer.pt", "scaler.pt"]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", STATE_FILES)
def test_a_state_is_never_unpickled(
    tiny_clip: Path, tmp_path: Path, interrupted: Path, marker: Path, name: str
) -> None:
    """Every file that is read on resumption, and some that others would read, replaced by a pickle with a fitting checksum."""
    folder = tmp_path / "study"
    shutil.copytree(interrupted, folder)
    study = small_study(tiny_clip)
    states = list((run_folder(study, folder) / "resume").glob("step-*"))
    assert states
    for state in states:
        torch.save(Bomb(marker), state / name)
        manifest = read_json(state / resume.MANIFEST)
        write_json(state / resume.MANIFEST, manifest | {"files": manifest["files"] | {name: sha256(state / name)}})
    record = run(study, folder)
    assert not marker.exists()
    if name in ("optimizer.pt", "scaler.pt", "progress.json"):
        assert record["status"] == "finished", (
            "a file that is not read changes nothing; without progress it is no state"
        )
    else:
        assert record["status"] == "failed"
        if name == "training.pt":
            assert "something else than tensors and numbers" in record["problem"]
            assert "remove the folder `resume`" in record["problem"]


def test_a_state_holds_tensors_numbers_and_json_alone(interrupted: Path) -> None:
    state = next(interrupted.glob("runs/*/resume/step-*"))
    names = {path.name for path in state.iterdir()}
    assert names == {resume.WEIGHTS, resume.TRAINING, resume.PROGRESS, resume.MANIFEST}
    torch.load(state / resume.TRAINING, weights_only=True)


# -- foreign code ----------------------------------------------------------------------------------


def test_code_of_a_model_folder_is_never_run(tiny_clip: Path, tmp_path: Path) -> None:
    marker = tmp_path / "code-ran"
    folder = tmp_path / "model"
    shutil.copytree(tiny_clip, folder)
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: ...\n")
    (folder / "__init__.py").write_text(f"open({str(marker)!r}, 'w')\n")
    names = dict.fromkeys(
        ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoImageProcessor", "AutoProcessor"), "evil.Evil"
    )
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        values = read_json(folder / name) if (folder / name).is_file() else {}
        write_json(folder / name, values | {"auto_map": names, "custom_generate": "evil.py", "trust_remote_code": True})
    load_model(folder)
    load_processor(folder)
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"model_type": "evil"})
    with pytest.raises(ModelError):
        load_config(folder)
    assert not marker.exists()


def test_kernels_of_a_hub_are_not_asked_for_by_a_config(tiny_clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_clip, folder)
    config = read_json(folder / "config.json")
    config["attn_implementation"] = config["_attn_implementation"] = "kernels-community/evil"
    for part in ("vision_config", "text_config"):
        config[part] |= {"attn_implementation": "evil/kernel", "_attn_implementation": "evil/kernel"}
    write_json(folder / "config.json", config)
    model = load_model(folder)
    assert model.config._attn_implementation == model.vision_model.config._attn_implementation == "sdpa"
    assert model.text_model.config._attn_implementation == "sdpa"


def test_code_of_a_dataset_folder_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "code-ran"
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("images.py", "dataset.py", "__init__.py"):
        (folder / name).write_text(f"open({str(marker)!r}, 'w')\n")
    (folder / "train.pkl").write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(DataError):
        load_dataset({"name": "images", "path": str(folder)})
    with pytest.raises(DataError):
        load_dataset({"name": "images", "path": str(folder), "config": "pandas"})
    assert not marker.exists()


@pytest.mark.parametrize(
    "text",
    [
        "name: x\nshared: {trust_remote_code: true}\nruns: [{dataset: tiles}]",
        "name: x\ntrust_remote_code: true\nruns: [{dataset: tiles}]",
        "name: x\nruns: [{dataset: tiles, trust_remote_code: true}]",
        "name: x\nruns: [{dataset: tiles, grid: {trust_remote_code: [true]}}]",
        "name: x\nruns: [{dataset: own, source: {hub: a/b, trust_remote_code: true}}]",
        "name: x\ndatasets: {tiles: {trust_remote_code: true}}\nruns: [{dataset: tiles}]",
    ],
)
def test_remote_code_is_not_reachable_from_a_study(text: str) -> None:
    with pytest.raises(StudyError, match="there is no setting `trust_remote_code`"):
        parse_study(text, where="study.yaml")


def test_a_tag_of_python_is_refused_in_options_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError, match="not valid YAML"):
        parse_overrides(["epochs=!!python/object/apply:os.system ['touch owned']"])
    assert not list(tmp_path.iterdir())


# -- names -----------------------------------------------------------------------------------------

ESCAPES = ["../escape", "..", "/tmp/escape", "a/b", "a\\..\\b", ".hidden", "a\nb", "a\0b", "-o", "", "a" * 200, "a\n"]


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("where", ["name", "dataset", "experiment", "transfer"])
def test_a_name_in_a_study_cannot_leave_its_folder(name: str, where: str) -> None:
    content = {"name": "x", "runs": [{"dataset": "tiles"}]}
    if where == "name":
        content["name"] = name
    else:
        content["runs"][0][where] = [name] if where == "transfer" else name  # type: ignore[index]
    with pytest.raises(StudyError):
        parse_study(json.dumps(content), where="study.yaml")


@pytest.mark.parametrize("name", ESCAPES)
def test_a_name_in_a_described_study_cannot_lead_elsewhere(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / "study.json", numbered("study", {"name": "x", "runs": [{"run_id": name, "settings": {}}]}))
    with pytest.raises(StudyFolderError, match="is not the name of a run"):
        planned_runs(tmp_path)


@pytest.mark.parametrize("what", ["runs", "runs/{run}", "runs/{run}/checkpoints", "runs/{run}/log.txt", "figures"])
def test_a_link_out_of_the_study_is_not_written_through(tiny_clip: Path, tmp_path: Path, what: str) -> None:
    study = small_study(tiny_clip)
    folder, outside = tmp_path / "study", tmp_path / "outside"
    outside.mkdir()
    (outside / "kept.txt").write_text("mine")
    description = {"name": study.name, "description": study.description, "runs": []}
    write_json(folder / "study.json", numbered("study", description))
    link = folder / what.format(run=study.runs[0].run_id)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside / "kept.txt" if link.suffix else outside)
    before = surroundings(outside)
    with pytest.raises(LinkError, match="leads out of its folder"):
        run(study, folder)
    with pytest.raises(LinkError, match="leads out of its folder"):
        collect(folder)
    assert surroundings(outside) == before


LINKED = ["figures", "tables", "runs", "runs.parquet", "layers.parquet", "analysis.json", "report.html"]


@pytest.mark.one_in(5)
@pytest.mark.parametrize("what", LINKED)
@pytest.mark.parametrize("command", ["report", "analyze", "figures"])
def test_a_link_out_of_a_folder_of_tables_is_neither_read_nor_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str, command: str
) -> None:
    folder, outside = tmp_path / "tables", tmp_path / "outside"
    write_tables(synthetic_tables(seeds=1, datasets=("eurosat",), rates=2, layers=2, heads=2), folder)
    outside.mkdir()
    (outside / "kept.txt").write_text("mine")
    target = outside / what if "." in what else outside
    if (folder / what).exists():
        (folder / what).rename(target)
    elif "." in what:
        target.write_text("mine")
    (folder / what).symlink_to(target)
    before = surroundings(outside)
    for words in ([command, folder], [command, folder, "--output", folder]):
        if command == "figures" and "--output" in words:
            continue  # there the folder itself is that of the figures
        monkeypatch.setattr(sys, "argv", ["attndrift", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 1
        assert "leads out of its folder" in capsys.readouterr().err
    assert surroundings(outside) == before


@pytest.mark.parametrize("what", ["figures", "tables", "analysis.json", "report.md"])
def test_a_link_out_of_the_folder_that_a_report_goes_to_is_not_written_through(tmp_path: Path, what: str) -> None:
    folder, outside, output = tmp_path / "tables", tmp_path / "outside", tmp_path / "output"
    write_tables(synthetic_tables(seeds=1, datasets=("eurosat",), rates=2, layers=2, heads=2), folder)
    outside.mkdir()
    output.mkdir()
    (output / what).symlink_to(outside / "file" if "." in what else outside)
    with pytest.raises(LinkError, match="leads out of its folder"):
        report_on([folder], output)
    assert not list(outside.iterdir())


@pytest.mark.parametrize("what", ["record.json", "settings.json", "resume", "checkpoints", "maps.npz"])
def test_a_link_out_of_a_run_is_not_read_through(tmp_path: Path, what: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.json").write_text('{"status": "finished"}')
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / what).symlink_to(outside / "secret.json" if "." in what else outside)
    with pytest.raises(LinkError, match="leads out of its folder"):
        interpolate(run_folder)
    if what not in ("checkpoints", "maps.npz"):  # which `show` does not read
        with pytest.raises(LinkError, match="leads out of its folder"):
            describe_run(run_folder)


@pytest.mark.parametrize("what", ["runs.csv", "history.jsonl", "layers.parquet", "losses.json", "runs.tsv"])
def test_a_link_out_of_imported_records_is_not_read_through(tmp_path: Path, what: str) -> None:
    (tmp_path / "secret").write_text("run_id,method\nsecret,full\n")
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / what).symlink_to(tmp_path / "secret")
    with pytest.raises(LinkError, match="leads out of its folder"):
        import_tables(folder, tmp_path / "out")


def test_links_within_a_folder_and_beside_its_results_stay(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    write_tables(synthetic_tables(seeds=1, datasets=("eurosat",), rates=2, layers=2, heads=2), folder)
    (folder / "kept").mkdir()
    (folder / "runs.parquet").rename(folder / "kept" / "runs.parquet")
    (folder / "runs.parquet").symlink_to(folder / "kept" / "runs.parquet")
    (folder / "python").symlink_to(sys.executable)
    (tmp_path / "link").symlink_to(folder)
    link = tmp_path / "link"
    found = load([link], whole=False).analysis.result
    assert found.findings
    write_analysis(found, link)
    assert draw_figures(read_tables(link), link / "figures", analysis=found, only=["dose_response"])[0].files


def test_a_study_folder_may_itself_be_a_link(tiny_clip: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "study").symlink_to(tmp_path / "disk")
    assert run(small_study(tiny_clip), tmp_path / "study")["status"] == "finished"
    assert (tmp_path / "disk" / "runs.parquet").is_file()


# -- markup ----------------------------------------------------------------------------------------

MARKUP = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&\\input{/etc/passwd} $x$ % [a](javascript:b) ![c](http://d)"


def test_tables_in_markdown_and_latex_hold_no_foreign_markup(tmp_path: Path) -> None:
    tables = synthetic_tables(seeds=1, datasets=("eurosat",), rates=2, layers=2, heads=2)
    frames = {name: getattr(tables, name).copy() for name in ("runs", "history", "layers", "interpolation")}
    old = frames["runs"]["run_id"].iloc[0]
    for frame in frames.values():
        frame["run_id"] = frame["run_id"].astype(object).replace({old: MARKUP})
    frames["runs"]["dataset"] = MARKUP
    frames["runs"]["model"] = MARKUP
    write_analysis(analyze(Tables(**frames)), tmp_path)
    markdown = "".join(path.read_text() for path in tmp_path.rglob("*.md"))
    latex = "".join(path.read_text() for path in tmp_path.rglob("*.tex"))
    assert "script" in markdown
    assert "<script" not in markdown
    assert "<img" not in markdown
    assert "[a](" not in markdown
    assert "![c" not in markdown
    assert "textbackslash" in latex
    assert "\\input" not in latex


def test_marks_that_turn_the_direction_of_writing_are_spelled_out_in_pages(tmp_path: Path) -> None:
    tables = synthetic_tables(seeds=1, datasets=("eurosat",), rates=2, layers=2, heads=2)
    frames = {name: getattr(tables, name).copy() for name in ("runs", "history", "layers", "interpolation")}
    old = frames["runs"]["run_id"].iloc[0]
    for frame in frames.values():
        frame["run_id"] = frame["run_id"].astype(object).replace({old: f"run{DIRECTION_MARKS}gnp.exe"})
    for column in ("dataset", "model", "study"):
        frames["runs"][column] = f"a{DIRECTION_MARKS}b"
    whole = Tables(**frames)
    analysis = analyze(whole)
    write_analysis(analysis, tmp_path)
    write_report(tmp_path, analysis=analysis, tables=whole)
    for path in (*tmp_path.rglob("*.md"), tmp_path / "report.html"):
        assert not set(DIRECTION_MARKS) & set(path.read_text(encoding="utf-8")), path.name
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "".join(f"\\u{ord(mark):04x}" for mark in DIRECTION_MARKS) + "gnp.exe" in page
    for text in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL):
        assert not set(DIRECTION_MARKS) & set(json.dumps(json.loads(text), ensure_ascii=False))


# -- secrets ---------------------------------------------------------------------------------------

SECRETS = {
    "HF_TOKEN": "hf_QwErTyUiOpAsDfGhJkLzXcVbNm",
    "WANDB_API_KEY": "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c",
    "AWS_ACCESS_KEY_ID": "AKIAABCDEFGHIJKLMNOP",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzEJr//////////wEaDH",
    "MY_DATABASE_PASSWORD": "correct-horse-battery-staple",
}


def test_secrets_of_the_environment_reach_no_log_and_no_record(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    said = "; ".join(f"{name}={value}" for name, value in SECRETS.items())
    address = "https://someone:pa55-w0rd@hub.example/x?X-Amz-Signature=deadbeefcafe"
    original = StudyResources.target

    def failing(self: Any, settings: Any, pretrained: Any) -> Any:
        if settings.method == "full":
            raise ConnectionError(f"401 Unauthorized for {address} with headers {said}")
        return original(self, settings, pretrained)

    monkeypatch.setattr(StudyResources, "target", failing)
    monkeypatch.setenv("ATTNDRIFT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "study.yaml"
    path.write_text(STUDY % tiny_clip + "  - {method: full}\n")
    monkeypatch.setattr(sys, "argv", ["attndrift", "run", str(path), "-o", str(tmp_path / "study"), "--verbose"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    shown = capsys.readouterr()
    texts = {"stdout": shown.out, "stderr": shown.err}
    for file in (tmp_path / "study").rglob("*"):
        if file.is_file():
            texts[str(file)] = file.read_bytes().decode("utf-8", "replace")
    assert any("401 Unauthorized" in text for text in texts.values())
    for where, text in texts.items():
        for value in (*SECRETS.values(), "pa55-w0rd", "deadbeefcafe"):
            assert value not in text, where


ADDRESSES = {
    "slash": "https://me:pa55/w0rd@hub.example/x", "at": "https://me:pa55@w0rd@hub.example/x",
    "quote": "https://me:pa55'w0rd@hub.example/x", "user only": "https://ghp_pa55w0rdpa55w0rdpa55w0rd@hub.example/x",
    "query": "https://hub.example/x?token=pa55w0rd", "token": "github_pat_11ABCDEFGpa55w0rdpa55w0rd",
}  # fmt: skip


@pytest.mark.parametrize("form", ADDRESSES)
def test_a_study_is_stored_without_the_secrets_of_its_settings(tmp_path: Path, form: str) -> None:
    """What is written is clean, and the study is still taken for the same one."""
    text = json.dumps(
        {"name": "x", "description": ADDRESSES[form],
         "runs": [{"dataset": "own", "source": {"path": ADDRESSES[form], "origin": f"see {ADDRESSES[form]}"}}]}
    )  # fmt: skip
    study = parse_study(text, where="study.yaml")
    for _ in range(2):
        prepare_folder(study, tmp_path)
        write_settings(tmp_path / "runs" / study.runs[0].run_id, study.runs[0], study.name)
    written = list(tmp_path.rglob("*.json"))
    assert {path.name for path in written} == {"study.json", "settings.json"}
    for path in written:
        content = path.read_text()
        assert "pa55" not in content
        assert "w0rd" not in content
        assert "***" in content
    other = parse_study(text.replace("see ", "read "), where="study.yaml")
    with pytest.raises(StudyFolderConflict, match="was started with other settings"):
        prepare_folder(other, tmp_path)


def test_event_files_name_no_machine(tmp_path: Path) -> None:
    writer = ScalarWriter(tmp_path, 0)
    writer.log(1, {"loss": 0.5})
    writer.close()
    for path in tmp_path.rglob("*"):
        assert socket.gethostname() not in path.name
        assert socket.gethostname().encode() not in path.read_bytes()


def test_secrets_and_commands_reach_no_object_of_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ATTNDRIFT_CACHE", str(tmp_path / "cache"))

    def failing(*_: Any) -> Any:
        raise ConnectionError(
            "\x1b]0;owned\x07 401 for https://someone:pa55-w0rd@hub.example: " + " ".join(SECRETS.values())
        )

    said = io.StringIO()
    study = parse_study("name: x\nruns: [{dataset: tiles}]", where="study.yaml")
    storage = ObjectStorage("memory://secrets-of-nobody")
    with StudyTable(verbose=True, console=Console(file=said)) as table:
        run_study(study, storage, failing, table)
    store = storage.store
    kept = {path: bytes(store.fs.cat_file(path)).decode("utf-8", "replace") for path in store.fs.find(store.root)}
    assert {Path(path).name for path in kept} >= {"log.txt", "record.json", "runs.parquet", "study.json"}
    for where, text in (*kept.items(), ("terminal", said.getvalue())):
        assert ("401 for" in text) == where.endswith(("log.txt", "record.json", "terminal")), where
        for value in (*SECRETS.values(), "pa55-w0rd", "\x1b]0;"):
            assert value not in text, where


def test_a_message_on_a_terminal_commands_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "\x1b]0;owned\x07\x1b[2J\u202e" + os.fsdecode(b"\xff")
    for arguments in (["run", name], ["run", "demo", "--set", f"{name}=1"], ["show", name], ["collect", name],
                      ["import", name, "-o", str(tmp_path / name)], ["compare", "embedded", name, "--images", name],
                      ["analyze", name], ["baseline", name, "--zero-shot", name]):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["attndrift", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code in (1, 2), arguments
        shown = capsys.readouterr()
        text = shown.out + shown.err
        assert "\x1b]0;" not in text, arguments
        assert "\x1b[2J" not in text, arguments
        assert "Traceback" not in text, arguments
