"""Models of a hub: which commit a name means, whose conversion is taken, what is recorded, and what is said on bad days."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load as load_safetensors

from attndrift.models import ModelError, describe, load_config, load_model, load_processor
from attndrift.models.errors import HubError
from attndrift.models.hub import forget_answers, resolve_model
from attndrift.models.known import KNOWN
from attndrift.models.reference import ModelReference

B32 = "openai/clip-vit-base-patch32"


def _fault(*arguments: Any, **values: Any) -> Any:
    from hub_server import Fault

    return Fault(*arguments, **values)


def _commit(hub: Any, name: str, reference: str = "main") -> str:
    return str(hub.model(name).refs[reference])


def _go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forget_answers()


# -- names ---------------------------------------------------------------------------------------


def test_a_name_may_carry_a_revision() -> None:
    assert ModelReference.parse("a/b") == ModelReference("a/b", None)
    assert ModelReference.parse("a/b@refs/pr/17") == ModelReference("a/b", "refs/pr/17")


@pytest.mark.parametrize("text", ["a/b@", "a/b@x y", "@main", "a/b/c@main", "../a@main"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match=r"REVISION|a revision"):
        ModelReference.parse(text)


def test_known_commits_are_whole_and_what_cannot_be_loaded_here_is_said() -> None:
    for name, known in KNOWN.items():
        assert name == known.name
        assert known.revision is None or len(known.revision) == 40
    assert {use: sum(m.use == use for m in KNOWN.values()) for use in ("train", "observe", "open_clip")}[
        "open_clip"
    ] == 1


# -- which commit --------------------------------------------------------------------------------


def test_a_bare_known_name_is_the_commit_of_the_table(hub: Any) -> None:
    found = resolve_model(B32)
    assert (found.commit, found.how) == (_commit(hub, B32, "refs/pr/21"), "known table")
    sizes = hub.model(B32).at(found.commit).files
    assert found.bytes_to_download == sum(
        len(file.content) for name, file in sizes.items() if name.endswith((".json", ".txt", ".safetensors"))
    )


def test_the_model_that_is_loaded_is_that_of_the_commit(hub: Any) -> None:
    clip = load_model(B32)
    stored = load_safetensors(hub.model(B32).at(_commit(hub, B32, "refs/pr/21")).files["model.safetensors"].content)
    for name, value in clip.named_parameters():
        assert torch.equal(value, stored[name]), name
    tokenizer, processor = load_processor(B32)
    assert tokenizer(["a photo of a cat."])["input_ids"][0] == [49406, 320, 1125, 539, 320, 2368, 269, 49407]
    # The old form of the file has bare numbers.
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (224, 224)
    assert describe(B32, clip)["revision"] == _commit(hub, B32, "refs/pr/21")
    assert resolve_model(B32).bytes_to_download == 0
    assert not hub.asked(r"\.bin|\.h5|msgpack"), "no pickled file is even downloaded"


def test_safetensors_on_the_revision_itself_are_taken(hub: Any) -> None:
    found = resolve_model("made/safetensors@main")
    assert (found.commit, found.how) == (_commit(hub, "made/safetensors"), "as asked")
    assert not hub.asked("discussions")


@pytest.mark.one_in(2)
@pytest.mark.parametrize("source", ["made/by-bot", "made/by-bot@main"])
def test_else_the_conversion_of_the_hubs_bot(source: str, hub: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = resolve_model(source)
    assert (found.commit, found.how) == (_commit(hub, "made/by-bot", "refs/pr/1"), "bot's conversion")
    assert found.commit in caplog.text


def test_the_bots_own_is_found_behind_that_of_an_impostor(hub: Any) -> None:
    found = resolve_model("made/beside-impostor")
    assert found.commit == _commit(hub, "made/beside-impostor", "refs/pr/2")


@pytest.mark.parametrize("name", ["by-impostor", "closed", "older-parent", "pushed-on-top", "replaced", "pickled-only"])
def test_any_other_conversion_is_refused_with_the_command_that_helps(name: str, hub: Any) -> None:
    with pytest.raises(HubError) as caught:
        load_model(f"made/{name}")
    assert caught.value.reason == "no weights"
    assert f"`attndrift convert made/{name}@{_commit(hub, f'made/{name}')} FOLDER`" in str(caught.value)
    assert not hub.asked(r"resolve.*(\.bin|\.safetensors)")


def test_an_impostor_is_refused_also_where_the_hub_does_not_filter(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import hub_server

    real = hub_server._Handler._discussions
    monkeypatch.setattr(
        hub_server._Handler, "_discussions", lambda self, repository, num, query: real(self, repository, num, {})
    )
    for name in ("by-impostor", "closed"):
        with pytest.raises(HubError, match="attndrift convert"):
            resolve_model(f"made/{name}")
    assert resolve_model("made/beside-impostor").commit == _commit(hub, "made/beside-impostor", "refs/pr/2")


def test_discussions_that_are_switched_off_are_no_crash(hub: Any) -> None:
    with hub.failing(_fault(r"/discussions", status=403)), pytest.raises(HubError, match="attndrift convert"):
        resolve_model("made/by-bot")


def test_nobody_else_is_asked_to_convert(hub: Any) -> None:
    with pytest.raises(ModelError):
        load_model("made/pickled-only")
    assert not hub.asked("POST|convert-space|spaces")


def test_a_commit_of_the_table_that_a_mirror_lacks_gives_way_to_the_rule(hub: Any) -> None:
    repository = hub.model(B32)
    commit = repository.refs["refs/pr/21"]
    held = repository.commits.pop(commit)
    del repository.refs["refs/pr/21"]
    try:
        with pytest.raises(HubError, match=f"attndrift convert {B32}@{_commit(hub, B32)} FOLDER"):
            resolve_model(B32)
    finally:
        repository.commits[commit] = held
        repository.refs["refs/pr/21"] = commit


def test_main_in_place_of_a_commit_that_is_gone_is_said(
    hub: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gone = "e" * 40
    monkeypatch.setitem(KNOWN, NAME, replace(KNOWN[B32], name=NAME, revision=gone))
    for offline in (False, True):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = resolve_model(NAME)
        assert found.commit == _commit(hub, NAME)
        assert found.how == f"{'cache' if offline else 'as asked'}, as {gone} is gone"
        assert f"commit {gone}, which is known to hold its weights, is not to be had" in caplog.text
        load_model(NAME)
        _go_offline(monkeypatch)


def test_a_recorded_commit_takes_the_place_of_the_revision(hub: Any) -> None:
    first = resolve_model("made/safetensors")
    repository = hub.model("made/safetensors")
    before = repository.refs["main"]
    files = {name: file.content for name, file in repository.at("main").files.items()}
    repository.commit("main", "b" * 40, files | {"README.md": b"new"}, author="made", title="later", parent=before)
    try:
        forget_answers()
        assert resolve_model("made/safetensors").commit == "b" * 40
        assert resolve_model("made/safetensors", recorded_commit=first.commit).commit == before
    finally:
        repository.refs["main"] = before


def test_a_tower_without_tokenizer_and_processor_is_described(hub: Any) -> None:
    name = "tanganke/clip-vit-base-patch32_eurosat"
    with pytest.raises(ModelError, match="image tower alone, not a CLIP model with both towers"):
        load_config(name)
    with pytest.raises(ModelError, match="image tower alone"):
        load_processor(name)


def test_a_repository_without_config_is_one_of_open_clip(hub: Any) -> None:
    from hub_server import Repository

    repository = Repository("made/open-clip")
    repository.commit("main", "c" * 40, {"open_clip_model.safetensors": b"x"}, author="made", title="weights")
    hub.repositories["models", repository.name] = repository
    with pytest.raises(HubError, match=r"no config\.json.*open_clip") as caught:
        load_model(repository.name)
    assert caught.value.reason == "no config"


# -- bad days ------------------------------------------------------------------------------------

NAME = "made/safetensors"


@pytest.mark.parametrize(
    ("fault", "reason", "message"),
    [
        ({"status": 429, "headers": {"Retry-After": "7"}}, "rate limit", "429.*7 seconds"),
        ({"status": 429, "headers": {"Retry-After": "3600"}}, "rate limit", "429.*3600 seconds"),
        ({"status": 500}, "server error", r"fault of its own \(500\)"),
        ({"status": 503}, "server error", r"\(503\)"),
        ({"status": 403}, "gated", r"refuses access \(403\)"),
        ({"status": 404, "headers": {"X-Error-Code": "RevisionNotFound"}}, "not found", "no such revision"),
    ],
)
def test_each_refusal_has_its_own_message(fault: dict[str, Any], reason: str, message: str, hub: Any) -> None:
    with hub.failing(_fault("/api/models", **fault)):
        for _ in range(3):
            with pytest.raises(HubError, match=f"^{NAME}: .*{message}") as caught:
                load_model(NAME)
            assert caught.value.reason == reason
        assert len(hub.asked("/api/models")) == 1, "asked once"


def test_what_is_not_there_is_not_found(hub: Any) -> None:
    with pytest.raises(HubError, match="not a folder here, and the hub has no such repository") as caught:
        load_model("nobody/such-a-model")
    assert caught.value.reason == "not found"


def test_a_gated_model_says_where_to_ask(hub: Any) -> None:
    with pytest.raises(HubError, match=rf"gated.*{hub.endpoint}/made/gated") as caught:
        resolve_model("made/gated")
    assert caught.value.reason == "gated"


def test_a_hub_that_nobody_reaches_is_asked_once(hub: Any, point_to: Any) -> None:
    import socket

    with socket.socket() as taken:  # a port on which nobody answers
        taken.bind(("127.0.0.1", 0))
        point_to(f"http://127.0.0.1:{taken.getsockname()[1]}")
        for name in (NAME, NAME, "made/by-bot"):
            with pytest.raises(HubError, match=r"out of reach.*HF_ENDPOINT.*give its folder") as caught:
                load_model(name)
            assert caught.value.reason == "no route"


def test_silence_ends(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attndrift.hub_client.SILENCE", 0.2)
    with hub.failing(_fault("/api/models", kind="silence")):
        for name in (NAME, "made/by-bot"):
            with pytest.raises(HubError, match=r"no answer within 0\.2 seconds"):
                load_model(name)
        assert len(hub.asked("/api/models")) == 1


def test_offline_with_an_empty_cache_is_one_message(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _go_offline(monkeypatch)
    for source in (B32, NAME, f"{NAME}@main"):
        with pytest.raises(HubError, match=r"not in the cache.*HF_HUB_OFFLINE") as caught:
            load_model(source)
        assert caught.value.reason == "offline"
    assert not hub.requests


@pytest.mark.one_in(4)
@pytest.mark.parametrize("source", [B32, "made/by-bot", NAME, f"{NAME}@main"])
def test_a_warm_cache_needs_no_network(source: str, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve_model(source)
    clip, _ = load_model(source), load_processor(source)
    pinned = describe(source, clip)["revision"]
    hub.requests.clear()
    _go_offline(monkeypatch)
    for again in (source, first.pinned):
        found = resolve_model(again)
        assert (found.commit, found.how, found.bytes_to_download) == (pinned, "cache", 0)
        load_processor(again)
    assert describe(source, load_model(source))["weights_sha256"] == describe(source, clip)["weights_sha256"]
    assert not hub.requests


def test_a_pinned_commit_in_the_cache_is_not_asked_for(hub: Any) -> None:
    load_model(B32), load_processor(B32)
    hub.requests.clear()
    forget_answers()
    load_model(B32), load_processor(B32)
    assert not hub.requests


def test_a_hub_on_a_bad_day_does_not_matter_to_a_warm_cache(hub: Any) -> None:
    load_model(NAME), load_processor(NAME)
    forget_answers()
    with hub.failing(_fault(".", status=500)):
        assert resolve_model(NAME).how == "cache"
        load_model(NAME), load_processor(NAME)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("kind", ["cut", "flip"])
def test_a_broken_download_is_done_again(kind: str, hub: Any) -> None:
    with hub.failing(_fault("GET /lfs", kind=kind, times=1)):
        clip = load_model(NAME)
    stored = load_safetensors(hub.model(NAME).at("main").files["model.safetensors"].content)
    assert all(torch.equal(value, stored[name]) for name, value in clip.named_parameters())


def test_a_download_that_is_always_damaged_is_one_message(hub: Any) -> None:
    with (
        hub.failing(_fault("GET /lfs", kind="flip")),
        pytest.raises(ModelError, match=r"model\.safetensors arrived damaged twice"),
    ):
        load_model(NAME)
    load_model(NAME)


def _cached_weights() -> Path:
    return next(Path(constants.HF_HUB_CACHE).glob("models--made--safetensors/snapshots/*/model.safetensors"))


def test_a_damaged_cache_is_downloaded_again(hub: Any) -> None:
    load_model(NAME)
    content = _cached_weights().read_bytes()
    for damaged in (content[: len(content) // 2], b"\xff" * len(content)):
        _cached_weights().resolve().write_bytes(damaged)
        forget_answers()
        load_model(NAME)
        assert _cached_weights().read_bytes() == content


def test_a_damaged_cache_offline_is_one_message(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    load_model(NAME)
    _cached_weights().resolve().write_bytes(b"\xff" * 100)
    _go_offline(monkeypatch)
    with pytest.raises(ModelError, match=rf"commit {_commit(hub, NAME)} cannot be used.*remove .*snapshots"):
        load_model(NAME)


def test_a_cache_of_plain_files_is_taken(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the library leaves it where the system has no links; and a broken link counts as not there."""
    load_model(NAME), load_processor(NAME)
    repository = Path(constants.HF_HUB_CACHE) / "models--made--safetensors"
    for path in repository.glob("snapshots/*/*"):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    shutil.rmtree(repository / "blobs")
    _go_offline(monkeypatch)
    load_model(NAME), load_processor(NAME)
    path = _cached_weights()
    path.unlink()
    path.symlink_to("gone")
    forget_answers()
    with pytest.raises(HubError, match=rf"of commit {_commit(hub, NAME)} the cache has no weights") as caught:
        load_model(NAME)
    assert caught.value.reason == "offline"


def _forget_weights(name: str) -> None:
    for path in Path(constants.HF_HUB_CACHE).glob(f"models--{name.replace('/', '--')}/snapshots/*/model.safetensors"):
        path.resolve().unlink()
        path.unlink()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("day", ["offline", "no route", "gated"])
def test_a_cache_without_the_weights_is_what_the_hub_did_not_give(
    day: str, hub: Any, point_to: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a broken download leaves it: config and tokenizer, and nothing to convert."""
    import socket

    from attndrift.study.check import check_study

    load_processor(B32)
    resolve_model(B32).fetch(["config.json"])
    _forget_weights(B32)
    forget_answers()
    with socket.socket() as taken, hub.failing(*([_fault(".", status=403)] if day == "gated" else [])):
        if day == "offline":
            _go_offline(monkeypatch)
        elif day == "no route":
            taken.bind(("127.0.0.1", 0))
            point_to(f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(HubError) as caught:
            resolve_model(B32)
        assert caught.value.reason == day
        assert "convert" not in str(caught.value)
        found = check_study(_study(B32), tmp_path / "s")
    assert (f"model {B32}" in found.out_of_reach) == (day != "gated")
    assert not [finding for finding in found.findings if "convert" in finding.detail + finding.remedy]
    assert found.problems


def test_no_cache_at_all_where_it_should_be(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=f"^{NAME}: "):
        load_model(NAME)


# -- studies -------------------------------------------------------------------------------------


def _study(model: str, **more: Any) -> Any:
    from attndrift.study.settings import NamedRun, RunSettings, Study

    settings = RunSettings(model=model, dataset="digits", method="none", device="cpu", **more)
    return Study(name="s", runs=(NamedRun(run_id="r", settings=settings),))


class _Recorder:
    """Stands for the execution of a run: keeps what it was told, and what was in its folder."""

    def __init__(self) -> None:
        self.runs: list[Any] = []

    def __call__(self, run: Any, folder: Path, reporter: Any) -> dict[str, Any]:
        self.runs.append(run)
        assert json.loads((folder / "settings.json").read_text())["model_revision"] == run.model_revision
        raise RuntimeError("not now")


def _run(model: str, folder: Path) -> str | None:
    from attndrift.cli.progress import StudyConsole
    from attndrift.study.runner import run_study

    execute = _Recorder()
    run_study(_study(model), folder, execute, StudyConsole())
    assert (
        json.loads((folder / "study.json").read_text())["runs"][0]["model_revision"] == execute.runs[0].model_revision
    )
    record = json.loads((folder / "runs" / "r" / "record.json").read_text())
    assert record["row"]["model_revision"] == execute.runs[0].model_revision
    return execute.runs[0].model_revision  # type: ignore[no-any-return]


@pytest.fixture
def moved_main(hub: Any) -> Any:
    """Called, it gives ``made/safetensors`` a new ``main``."""
    repository = hub.model(NAME)
    before = repository.refs["main"]

    def move() -> str:
        files = {"README.md": b"new"}
        repository.commit("main", "d" * 40, files, author="made", title="later", parent=before)
        forget_answers()
        return "d" * 40

    yield move
    repository.refs["main"] = before


def test_a_study_goes_on_with_the_commit_it_began_with(hub: Any, moved_main: Any, tmp_path: Path) -> None:
    first = _run(NAME, tmp_path / "s")
    assert first == _commit(hub, NAME)
    new = moved_main()
    hub.requests.clear()
    assert _run(NAME, tmp_path / "s") == first
    assert not hub.requests, "what is recorded is not asked for"
    assert _run(f"{NAME}@{first}", tmp_path / "s") == first
    assert _run(NAME, tmp_path / "another") == new


def test_a_study_with_another_revision_is_refused_by_name(hub: Any, moved_main: Any, tmp_path: Path) -> None:
    from attndrift.study.storage import StudyFolderConflict

    first = _run(NAME, tmp_path / "s")
    new = moved_main()
    for revision in ("main", new):
        with pytest.raises(StudyFolderConflict, match=f"`model` '{NAME}' at commit {first}.*asks for commit {new}"):
            _run(f"{NAME}@{revision}", tmp_path / "s")


def test_a_bare_name_takes_the_recorded_commit_of_its_repository(hub: Any, moved_main: Any, tmp_path: Path) -> None:
    from attndrift.cli.progress import StudyConsole
    from attndrift.study.check import check_study
    from attndrift.study.runner import run_study

    first = _run(f"{NAME}@{_commit(hub, NAME)}", tmp_path / "s")
    new = moved_main()
    study = _study(NAME)
    study = study.model_copy(update={"runs": (*study.runs, study.runs[0].model_copy(update={"run_id": "more"}))})
    found = check_study(study, tmp_path / "s")
    details = [finding.detail for finding in found.findings if finding.what == f"model {NAME}"]
    assert len(details) == 1
    assert first in details[0]
    execute = _Recorder()
    run_study(study, tmp_path / "s", execute, StudyConsole())
    assert {run.run_id: run.model_revision for run in execute.runs} == {"r": first, "more": first}
    assert new not in (tmp_path / "s" / "study.json").read_text()


def test_a_bare_name_of_two_recorded_commits_must_be_told_apart(hub: Any) -> None:
    from attndrift.study.pinning import pin_models

    a, b = "a" * 40, "b" * 40
    recorded = [
        {"run_id": run, "settings": {"model": f"{NAME}@{commit}"}, "model_revision": commit}
        for run, commit in (("r", a), ("other", b))
    ]
    assert pin_models(_study(NAME), recorded, lambda _: False).runs[0].model_revision == a
    study = _study(NAME)
    more = study.model_copy(update={"runs": (study.runs[0].model_copy(update={"run_id": "more"}),)})
    with pytest.raises(ModelError, match=f"begun with 2 commits of it .*more name one of them: {NAME}@{a}"):
        pin_models(more, recorded, lambda _: False)


def test_another_revision_is_a_problem_before_anything_of_it_is_downloaded(
    hub: Any, moved_main: Any, tmp_path: Path
) -> None:
    from attndrift.study.check import check_study

    first = _run(NAME, tmp_path / "s")
    new = moved_main()
    hub.requests.clear()
    found = check_study(_study(f"{NAME}@main"), tmp_path / "s")
    (problem,) = found.problems
    assert (problem.what, found.downloads) == (f"model {NAME}@main", [])
    for said in ("`model`", f"at commit {first}", f"asks for commit {new}"):
        assert said in problem.detail
    assert "without a revision" in problem.remedy
    assert not hub.asked("resolve")


def _finding(found: Any, what: str) -> Any:
    (one,) = [finding for finding in found.findings if finding.what == what]
    return one


@pytest.mark.one_in(2)
@pytest.mark.parametrize("source", [NAME, B32])
def test_cut_weights_in_the_cache_are_a_problem_offline_and_a_download_else(
    source: str, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attndrift.study.check import check_study, fetch_downloads

    load_model(source), load_processor(source)
    folder = resolve_model(source).fetch(["config.json"])
    whole = (folder / "model.safetensors").read_bytes()
    for cut in (whole[:-1000], whole[:100], b""):
        (folder / "model.safetensors").resolve().write_bytes(cut)
        forget_answers()
        with monkeypatch.context() as network:
            network.setattr(constants, "HF_HUB_OFFLINE", True)
            problem = _finding(check_study(_study(source), tmp_path / "s"), f"model {source}")
        assert problem.state == "problem"
        assert "model.safetensors" in problem.detail
        assert f"remove {folder / 'model.safetensors'}" in problem.remedy
        forget_answers()
        found = check_study(_study(source), tmp_path / "s")
        assert not found.problems
        assert [(one.what, one.bytes) for one in found.downloads] == [(f"model {source}", len(whole))]
        fetch_downloads(_study(source), found)
        assert (folder / "model.safetensors").read_bytes() == whole


def test_a_study_of_a_model_that_cannot_be_had_fails_once_before_its_first_run(hub: Any, tmp_path: Path) -> None:
    from attndrift.cli.progress import StudyConsole
    from attndrift.study.runner import run_study

    execute = _Recorder()
    with pytest.raises(HubError, match="attndrift convert made/pickled-only@"):
        run_study(_study("made/pickled-only"), tmp_path / "s", execute, StudyConsole())
    assert not execute.runs


def test_local_models_have_no_commit(tmp_path: Path) -> None:
    assert _run("config:tiny", tmp_path / "s") is None


def test_a_worker_is_told_the_commit(hub: Any, tmp_path: Path) -> None:
    from attndrift.study.launchers.remote import RemoteRun
    from attndrift.study.pinning import pin_models
    from attndrift.study.settings import NamedRun
    from attndrift.study.storage import LocalStorage

    study = pin_models(_study(B32), [], lambda _: False)
    order = RemoteRun.of(study.runs[0], study, LocalStorage(tmp_path), _Recorder)
    assert NamedRun.model_validate_json(order.run).model_revision == _commit(hub, B32, "refs/pr/21")
    assert study.runs[0].settings.hash == _study(B32).runs[0].settings.hash


def test_resources_load_the_commit_and_a_record_says_it(hub: Any, moved_main: Any) -> None:
    from attndrift.models.reference import at_commit
    from attndrift.study.resources import StudyResources

    first = _commit(hub, NAME)
    moved_main()
    made = StudyResources().pretrained(at_commit(NAME, first), torch.device("cpu"))
    assert (made.source, made.description["revision"]) == (f"{NAME}@{first}", first)
