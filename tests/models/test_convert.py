"""`attndrift convert`: every tensor equal, nothing overwritten, no link followed, and no pickle's code ever run."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from attndrift.cli.main import app
from attndrift.models import ModelError, describe, load_model, load_processor
from attndrift.models.convert import convert
from attndrift.models.hub import forget_answers


@pytest.fixture
def pickled(tiny_clip: Path, tmp_path: Path) -> Path:
    """A model folder as it was saved before `safetensors`."""
    folder = Path(shutil.copytree(tiny_clip, tmp_path / "pickled"))
    (folder / "model.safetensors").unlink()
    torch.save(load_model(tiny_clip).state_dict(), folder / "pytorch_model.bin")
    (folder / "LICENSE").write_text("a licence")
    (folder / "notes.py").write_text("never taken along")
    return folder


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return set(first) == set(second) and all(
        first[n].dtype == second[n].dtype
        and first[n].shape == second[n].shape
        and first[n].numpy().tobytes() == second[n].numpy().tobytes()
        for n in first
    )


def slow(*values: Any) -> Any:
    """A case for the slow tests: every conversion starts a process that imports torch."""
    return pytest.param(*values, marks=pytest.mark.slow)


def test_the_new_folder_is_the_same_model(pickled: Path, tiny_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"attndrift convert {pickled} FOLDER"):
        load_model(pickled)
    done = CliRunner().invoke(app, ["convert", str(pickled), str(tmp_path / "new" / "folder"), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    folder = Path(found["folder"])
    assert _equal(load_file(tmp_path / "new" / "folder" / "model.safetensors"), load_model(tiny_clip).state_dict())
    new, old = load_model(folder), load_model(tiny_clip)
    assert describe(folder, new)["weights_sha256"] == describe(tiny_clip, old)["weights_sha256"]
    assert load_processor(folder)[0](["a cat"]) == load_processor(tiny_clip)[0](["a cat"])
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "LICENSE", "tokenizer.json", "preprocessor_config.json"} <= names
    assert not names & {"notes.py", "pytorch_model.bin"}
    assert found["tensors"] == len(old.state_dict())
    assert not list(tmp_path.glob("**/.folder-*")), "nothing is left over"
    assert isinstance(CliRunner().invoke(app, ["convert", str(pickled), str(folder)]).exception, ModelError)


@pytest.mark.slow
def test_any_tensor_that_can_be_pickled_is_equal_afterwards(pickled: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(6, 8, generator=generator)
    tensors = {
        "whole": whole,
        "tied": whole,
        "slice": whole[1:3],
        "turned": whole.T,
        "spread": torch.ones(1).expand(4),
        "no number": torch.tensor([float("nan"), float("-inf"), -0.0]),
        "one number": torch.tensor(7),
        "none": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        **{
            str(t): torch.arange(4).to(t) for t in (torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
        },
    }
    torch.save(tensors, pickled / "pytorch_model.bin")
    convert(str(pickled), tmp_path / "new")
    found = load_file(tmp_path / "new" / "model.safetensors")
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        before = value.detach().contiguous()
        assert found[name].dtype == before.dtype
        assert found[name].shape == before.shape
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), before.reshape(-1).view(torch.uint8)), name


@pytest.mark.slow
def test_shards_stay_shards(pickled: Path, tiny_clip: Path, tmp_path: Path) -> None:
    tensors = load_model(tiny_clip).state_dict()
    places = {name: f"pytorch_model-0000{1 + (i % 2)}-of-00002.bin" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        torch.save({name: tensors[name] for name in tensors if places[name] == file}, pickled / file)
    (pickled / "pytorch_model.bin").unlink()
    index = pickled / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    found = convert(str(pickled), tmp_path / "new")
    assert _equal(load_model(found.folder).state_dict(), tensors)
    assert not (tmp_path / "new" / index.name).exists()
    index.write_text(json.dumps({"weight_map": places | {"more": "pytorch_model-00001-of-00002.bin"}}))
    with pytest.raises(ModelError, match="holds other tensors than"):
        convert(str(pickled), tmp_path / "other")
    for outside in ("../pytorch_model.bin", "/etc/passwd", "gone.bin"):
        index.write_text(json.dumps({"weight_map": {"a": outside}}))
        with pytest.raises(ModelError, match="is no file of weights there"):
            convert(str(pickled), tmp_path / "other")
    assert not (tmp_path / "other").exists()


# -- what could run code -------------------------------------------------------------------------


class _Touch:
    """Pickled, a file that creates another one when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def _zip_file(path: Path, content: Any) -> None:
    torch.save(content, path)


def _old_file(path: Path, content: Any) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


_ASKED_FOR_SYSTEM = r"asks for posix\.system, which is no tensor.*nothing of it ran"


def _bare_pickle(path: Path, content: Any) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("save", "among_tensors", "message"),
    [
        (_zip_file, True, _ASKED_FOR_SYSTEM),
        (_old_file, False, _ASKED_FOR_SYSTEM),
        (_bare_pickle, True, "refused, and nothing of it ran"),
        slow(_zip_file, False, _ASKED_FOR_SYSTEM),
    ],
)
def test_a_pickle_that_would_create_a_file_is_refused_and_creates_none(
    save: Any, among_tensors: bool, message: str, pickled: Path, tmp_path: Path
) -> None:
    proof = tmp_path / "proof"
    bomb = _Touch(proof)
    save(pickled / "pytorch_model.bin", {"weight": torch.ones(2), "more": bomb} if among_tensors else bomb)
    with pytest.raises(ModelError, match=message):
        convert(str(pickled), tmp_path / "new")
    assert not proof.exists()
    assert not (tmp_path / "new").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["pickled"]
    with pytest.raises(ModelError, match="attndrift convert"):
        load_model(pickled)
    assert not proof.exists()
    pickle.loads(pickle.dumps(bomb))
    assert proof.exists(), "or this test tests nothing"


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.ones(2), "epoch": 3}, "'epoch' is no tensor, but int"),
        slow([torch.ones(2)], "no tensors by name, but list"),
        slow({}, "no tensors by name"),
    ],
)
def test_what_is_no_tensor_is_named(content: Any, message: str, pickled: Path, tmp_path: Path) -> None:
    torch.save(content, pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match=message):
        convert(str(pickled), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def _quantized() -> Tensor:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("weight", _quantized, r"'weight' is quantized \(torch\.qint8\), and safetensors cannot hold it"),
        ("weight", lambda: torch.eye(3).to_sparse(), r"'weight' is not dense \(torch\.sparse_coo\)"),
        ("weight", lambda: torch.ones(2, device="meta"), "'weight' has no values"),
        ("__metadata__", lambda: torch.ones(2), "'__metadata__' has the name that the format keeps"),
        ("weight", lambda: torch.ones(2, dtype=torch.complex128), r"'weight' is of torch\.complex128"),
    ],
)
def test_tensors_that_the_format_cannot_hold_are_named(
    name: str, make: Any, message: str, pickled: Path, tmp_path: Path
) -> None:
    torch.save({"other": torch.ones(2), name: make()}, pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match=rf"{pickled}: not converted: pytorch_model\.bin: {message}"):
        convert(str(pickled), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_damaged_files_are_one_message(pickled: Path, tmp_path: Path) -> None:
    path = pickled / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ModelError, match=f"{pickled}: not converted: "):
        convert(str(pickled), tmp_path / "new")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by the system on Linux alone")
def test_a_small_file_that_unfolds_to_gigabytes_is_ended(pickled: Path, tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save({"weight": torch.zeros(1)}, stream)
    path = pickled / "pytorch_model.bin"
    with (
        zipfile.ZipFile(stream) as old,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for item in old.infolist():
            zeros = item.filename.endswith("data/0")
            new.writestr(item.filename, bytes(3 << 29) if zeros else old.read(item))
    assert path.stat().st_size < 10_000_000
    with pytest.raises(ModelError, match="need more memory than their size allows for"):
        convert(str(pickled), tmp_path / "new")


def test_a_conversion_that_takes_too_long_is_ended(pickled: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"took more than 0\.01 s and was ended"):
        convert(str(pickled), tmp_path / "new", seconds=0.01)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_the_process_that_reads_is_told_no_secrets(
    pickled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    real = subprocess.run

    def run(*arguments: Any, **options: Any) -> Any:
        seen.update(options["env"])
        return real(*arguments, **options)

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr(subprocess, "run", run)
    convert(str(pickled), tmp_path / "new")
    assert seen
    assert not [name for name, value in seen.items() if "secret" in value]


# -- what is there stays, and links are not followed ---------------------------------------------


@pytest.mark.parametrize("kind", ["file", "empty folder", "folder", "link", "dead link"])
def test_nothing_is_overwritten(kind: str, pickled: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("mine")
    elif "link" in kind:
        if kind == "link":
            (tmp_path / "elsewhere").mkdir()
        target.symlink_to(tmp_path / "elsewhere")
    else:
        target.mkdir()
        if kind == "folder":
            (target / "mine").write_text("mine")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(ModelError, match="is there already; nothing is overwritten"):
        convert(str(pickled), target)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_what_appears_meanwhile_is_not_overwritten(
    pickled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, real = tmp_path / "new", subprocess.run

    def run(*arguments: Any, **options: Any) -> Any:
        done = real(*arguments, **options)
        target.mkdir()
        return done

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ModelError, match="appeared meanwhile"):
        convert(str(pickled), target)
    assert not list(target.iterdir())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "config.json", "LICENSE", "tokenizer.json"])
def test_links_in_the_source_are_not_followed(name: str, pickled: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes((pickled / name).read_bytes())
    (pickled / name).unlink()
    (pickled / name).symlink_to(secret)
    with pytest.raises(ModelError, match=f"{name}: a link, which is not followed"):
        convert(str(pickled), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_source_folder_that_is_a_link_is_the_folder_it_leads_to(pickled: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(pickled, target_is_directory=True)
    found = convert(str(tmp_path / "link"), tmp_path / "new")
    assert found.source == str(tmp_path / "link")
    assert {"config.json", "LICENSE"} <= set(found.kept)


@pytest.mark.slow
def test_terms_of_use_are_taken_along_and_code_is_not(pickled: Path, tmp_path: Path) -> None:
    terms = {"LICENSE-MODEL", "LICENSE_weights", "licence.md", "NOTICE", "NOTICE.html", "USE_POLICY.md", "Use_Policy"}
    others = {"license.py", "LICENSE.pt", "licensed", "notices.sh"}
    for name in terms | others:
        (pickled / name).write_text(name)
    kept = set(convert(str(pickled), tmp_path / "new").kept)
    assert terms <= kept
    assert not others & kept
    assert (tmp_path / "new" / "USE_POLICY.md").read_text() == "USE_POLICY.md"


def test_there_must_be_something_to_convert(pickled: Path, tiny_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds model\.safetensors already"):
        convert(str(tiny_clip), tmp_path / "new")
    (pickled / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match="holds no pickled weights"):
        convert(str(pickled), tmp_path / "new")
    torch.save({}, pickled / "optimizer.pt")
    with pytest.raises(ModelError, match="holds no pickled weights"):
        convert(str(pickled), tmp_path / "new")
    (pickled / "config.json").unlink()
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        convert(str(pickled), tmp_path / "new")


# -- from a hub, and the command -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.ci("hub")
def test_a_name_on_a_hub_is_converted_at_its_commit(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hub_models import weights

    commit = hub.model("made/pickled-only").refs["main"]
    found = convert("made/pickled-only", tmp_path / "new")
    assert found.commit == commit
    assert json.loads((tmp_path / "new" / "conversion.json").read_text())["revision"] == commit
    assert _equal(load_file(tmp_path / "new" / "model.safetensors"), weights())
    load_model(tmp_path / "new"), load_processor(tmp_path / "new")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forget_answers()
    assert convert(f"made/pickled-only@{commit}", tmp_path / "offline").tensors == found.tensors


@pytest.mark.slow
def test_folders_of_a_repository_are_left_where_they_are(hub: Any, tmp_path: Path) -> None:
    repository = hub.model("made/pickled-only")
    before = repository.refs["main"]
    more = {"onnx/config.json": b"{}", "onnx/LICENSE": b"x", "openvino/weights.bin": b"x", "USE_POLICY.md": b"policy"}
    repository.commit("main", "f" * 40, more, author="made", title="exports", parent=before)
    try:
        found = convert("made/pickled-only", tmp_path / "new")
    finally:
        repository.refs["main"] = before
    assert "USE_POLICY.md" in found.kept
    assert not [path for path in (tmp_path / "new").iterdir() if path.is_dir()]
    assert not hub.asked("resolve.*(onnx|openvino)")


def test_a_model_that_has_safetensors_needs_no_conversion(hub: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds model\.safetensors already"):
        convert("openai/clip-vit-base-patch32", tmp_path / "new")
