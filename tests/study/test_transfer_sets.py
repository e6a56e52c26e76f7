"""Transfer sets that a study file describes, sets that share their images, and what is wrong with sets."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from attndrift.cli.progress import StudyConsole
from attndrift.data import load_dataset
from attndrift.data.pixels import PixelStore
from attndrift.files import read_json
from attndrift.models import load_model, load_processor
from attndrift.results.tables import read_tables
from attndrift.retention.shared_embeddings import SharedEmbeddings
from attndrift.study.check import check_study
from attndrift.study.check_findings import problem_message
from attndrift.study.executor import Executor
from attndrift.study.loading import StudyError, parse_study
from attndrift.study.plan import plan
from attndrift.study.pretrained import Pretrained
from attndrift.study.resources import StudyResources
from attndrift.study.runner import run_study
from attndrift.study.transfer_images import divide, open_sets, used_of, without_guarded

STUDY = """
name: sets
shared:
  model: {model}
  dataset: {target}
  train_per_class: 3
  validation_per_class: 1
  probe_size: 4
  test_limit: 20
  epochs: 1
  evaluations_per_epoch: 1
  batch_size: 8
  learning_rate: 1e-3
  transfer: {transfer}
  transfer_limit: 100
  monitor_zero_shot_images: 0
  trackers: []
{more}
runs:
  - {{method: full}}
"""


def study_of(model: object, transfer: str, more: str = "", target: str = "tiles") -> Any:
    return parse_study(STUDY.format(model=model, transfer=transfer, more=more, target=target), where="study")


def pictures(root: Path, classes: tuple[str, ...] = ("a", "b", "c"), each: int = 6, seed: int = 0) -> Path:
    """``root/SPLIT/CLASS/*.png``: smooth pictures, of which no two are alike."""
    random = np.random.default_rng(seed)
    for split in ("train", "test"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(each):
                noise = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                Image.fromarray(noise).resize((40, 40), Image.Resampling.BICUBIC).save(
                    root / split / name / f"{number}.png"
                )
    return root


def run(study: Any, folder: Path) -> dict[str, Any]:
    with Executor(StudyResources(folder / "cache")) as execute:
        outcome = run_study(study, folder / "study", execute, StudyConsole(console=Console(file=io.StringIO())))
    assert set(outcome.statuses.values()) == {"finished"}, outcome
    (record,) = (folder / "study").glob("runs/*/record.json")
    return read_json(record)


@pytest.mark.slow
@pytest.mark.ci("study")
def test_sets_of_the_study_file_have_names_prompts_and_measures_of_their_own(tiny_clip: Path, tmp_path: Path) -> None:
    """Beside them a set and its halves: these are embedded with it, and no image counts for two of a guard's sides."""
    images = pictures(tmp_path / "images", tuple("abcd"))
    more = f"""
datasets:
  target: {{source: {{path: {pictures(tmp_path / "target", seed=1)}}}}}
  mine: {{source: {{path: {images}, class_names: [red wine, green tea, blue ink, soot], prompts: ["some {{class}}."], measures: [knn, zero_shot]}}}}
  digits: {{source: {{prompts: ["the number {{class}}"]}}}}
"""
    record = run(study_of(tiny_clip, "[mine, mine+halves, digits, digits+new]", more, "target"), tmp_path / "together")
    row, told = record["row"], record["transfer"]
    assert list(told) == ["mine", "mine+base", "mine+new", "digits", "digits+new"]
    assert row["transfer_mine_knn_n"] == row["transfer_mine_zero_shot_n"] == 24
    assert "transfer_digits_knn_n" not in row
    said = {name: one["zero_shot"]["adapted"] for name, one in told.items()}
    assert said["mine+base"]["class_names"] + said["mine+new"]["class_names"] == said["mine"]["class_names"]
    assert said["mine+new"]["class_names"] == ["blue ink", "soot"]
    assert said["mine"]["templates"] == said["mine+base"]["templates"] == ["some {class}."]
    assert said["digits"]["templates"] == said["digits+new"]["templates"] == ["the number {class}"]
    assert said["digits+new"]["n"] == 100
    assert read_tables(tmp_path / "together" / "study").runs["transfer_digits+new_zero_shot_n"].tolist() == [100]
    without = "".join(line for line in more.splitlines(keepends=True) if "mine" not in line)
    alone = run(study_of(tiny_clip, "[digits+new]", without, "target"), tmp_path / "alone")
    for field in ("pretrained", "accuracy"):
        column = f"transfer_digits+new_zero_shot_{field}"
        assert abs(alone["row"][column] - row[column]) <= 0.01, "another batch may round one image differently"


def test_a_store_and_its_parts_are_embedded_once(tiny_clip: Path, tmp_path: Path) -> None:
    model, processor = load_model(str(tiny_clip)), load_processor(str(tiny_clip))[1]
    split = load_dataset("digits").test
    store = PixelStore.open(split, processor, indices=range(70), cache_dir=tmp_path)
    passed: list[int] = []
    model.vision_model.register_forward_hook(lambda module, inputs, output: passed.append(len(output[0])))
    shared = SharedEmbeddings(model, batch_size=16)
    parts = [store.subset(range(0, 70, 2)), store.subset(range(40, 60)), store.subset([69, 3])]
    found = [shared.of(part) for part in parts]
    whole = shared.of(store)
    assert sum(passed) == 70, "each image once"
    for part, rows in zip(found, (range(0, 70, 2), range(40, 60), [69, 3]), strict=True):
        assert torch.equal(part, whole[list(rows)])
    other = SharedEmbeddings(model, batch_size=16)
    for part in parts:
        count = min(16, len(part))
        assert torch.equal(other.first_of(part, count), shared.of(part)[:count]), "bit for bit, as in the same batches"


@pytest.mark.slow
@pytest.mark.ci("study")
def test_near_duplicates_of_training_images_are_refused_or_left_out(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, other = pictures(tmp_path / "target", seed=1), pictures(tmp_path / "other", seed=2)
    copied = Image.open(next((target / "train" / "a").iterdir()))
    copied.resize((64, 64)).save(other / "test" / "b" / "copy.jpg", quality=70)
    more = "datasets:\n" + "".join(
        f"  {name}: {{source: {{path: {tmp_path / name}}}}}\n" for name in ("target", "other")
    )
    settings = {"train_per_class": None, "validation_per_class": 1, "probe_size": 4}
    text = STUDY.format(model=tiny_clip, transfer="[other]", more=more, target="target")
    study = parse_study(text, where="study", overrides=settings)
    with Executor(StudyResources(tmp_path / "cache")) as execute:
        outcome = run_study(study, tmp_path / "refused", execute, StudyConsole(console=Console(file=io.StringIO())))
    assert set(outcome.statuses.values()) == {"failed"}
    (log,) = (tmp_path / "refused").glob("runs/*/log.txt")
    said = log.read_text()
    trained = "a/" in said  # the copied image may validate; then nothing was trained on
    assert not trained or "1 of 19 images that are near-duplicates" in said
    assert "b/copy.jpg is a/" in said
    assert "`duplicates: drop`" in said
    monkeypatch.setattr("attndrift.data.near_duplicates.LIMIT", 18)
    record = run(parse_study(text, where="study", overrides=settings | {"duplicates": "drop"}), tmp_path / "dropped")
    (log,) = (tmp_path / "dropped").glob("**/runs/*/log.txt")
    assert "transfer set other: 1 of 19 images are left out, as near-duplicates of training images" in log.read_text()
    assert "transfer set other: near-duplicates were looked for among 18 of 19 images of other" in log.read_text()
    assert record["transfer"]["other"]["compared"] == {"images of other": [18, 19]}
    assert record["row"]["transfer_other_zero_shot_n"] == 18
    assert [own for _, own in record["transfer"]["other"]["duplicates"]] == ["b/copy.jpg"]


def _source(more: str) -> str:
    return "datasets: {mine: {source: {path: IMAGES, " + more + "}}}"


BAD = {
    "names that do not fit": (_source("class_names: [red, green]"), "transfer set mine", "has 2 names; the data have 3 classes"),
    "a name twice": (_source("class_names: [red, green, red]"), "prompts mine", "classes of one name: red"),
    "an empty name": (_source("class_names: [red, '', blue]"), "prompts mine", "classes without a name: number 1"),
    "too many tokens": (
        _source("class_names: [red, green, " + "dark " * 90 + "blue]"), "prompts mine", "1 prompt longer than 77 tokens"
    ),
    "a template that is too long": (
        _source("prompts: ['" + "very " * 90 + "{class}']"), "prompts mine", "3 prompts longer than 77 tokens"
    ),
    "an empty class": (_source("train_split: train") + "#empty", "transfer set mine", "classes without images"),
    "one class": (_source("train_split: train") + "#one", "transfer set mine", "it has 1 class, and zero-shot accuracy needs"),
    "no such folder": ("datasets: {mine: {source: {path: /nowhere}}}", "transfer set mine", "the folder /nowhere does not exist"),
    "frost without photographs": ("#transfer digits+frost-3", "transfer set digits+frost-3", "`frost` needs photographs"),
    "a half of one class": (_source("train_split: train") + "#one+new", "transfer set mine+new", "1 class, which has no halves"),
    "a set to evaluate on as target": ("#target wds_objectnet", "dataset wds_objectnet", "was made to evaluate on"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_is_wrong_with_a_set_is_said_by_name_before_the_study(
    kind: str, tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, what, said = BAD[kind]
    text, _, how = text.partition("#")
    images = pictures(tmp_path / "images", ("a",) if "one" in how else ("a", "b", "c"), each=2)
    if how == "empty":
        for file in (images / "test" / "b").iterdir():
            file.unlink()
    if how.startswith("transfer"):
        monkeypatch.setenv("ATTNDRIFT_DATA", str(tmp_path))
    target = how.partition(" ")[2] if how.startswith("target") else "tiles"
    others = {"target": "[digits]", "transfer": f"[{how.partition(' ')[2]}]"}
    transfer = "[mine+new]" if how.endswith("+new") else others.get(how.partition(" ")[0], "[mine]")
    study = study_of(tiny_clip, transfer, text.replace("IMAGES", str(images)), target)
    found = check_study(study, tmp_path / "study", full=True)
    problems = {one.what: one.detail for one in found.problems}
    assert what in problems, problems
    assert said in problems[what]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("datasets: {mine: {source: {prompts: [a photo]}}}", r"study:18: `datasets.mine.source.prompts` is .* must hold {class} exactly once"),
        ("datasets: {mine: {source: {measures: [kn]}}}", r"no retention measure `kn`; did you mean `knn`"),
        ("datasets: {mine: {source: {pth: x}}}", r"no setting `pth`; did you mean `path`"),
        ("datasets: {mine: {source: {path: x, hub: y/z}}}", r"give one of `path` .* and `hub`"),
        ("datasets: {mine: {epochs: 3}}", r"no run is on 'mine'; they are on tiles. Of a transfer set only `source` is read, not `epochs`"),
        ("datasets: {mien: {source: {path: x}}}", r"no run is on 'mien' or has it in `transfer`: there is no set `mien`; did you mean `mine`"),
    ],
)  # fmt: skip
def test_a_set_that_cannot_be_described_so_is_answered_with_its_place(more: str, said: str) -> None:
    with pytest.raises(StudyError, match=re.compile(said, re.DOTALL)):
        study_of("embedded", "[mine]", more)


@pytest.mark.parametrize("name", ["digits+middle", "digits+fog-9"])
def test_a_set_that_cannot_be_made_is_said_before_the_study(name: str, tiny_clip: Path, tmp_path: Path) -> None:
    found = check_study(study_of(tiny_clip, f"[{name}]"), tmp_path / "study")
    assert "no class half or corruption" in {one.what: one.detail for one in found.problems}[f"transfer set {name}"]


@pytest.mark.slow
@pytest.mark.ci("study")
def test_an_image_that_cannot_be_read_is_named_or_left_out(tiny_clip: Path, tmp_path: Path) -> None:
    images = pictures(tmp_path / "images", each=3)
    (images / "test" / "b" / "0.png").write_bytes(b"no image")
    target = pictures(tmp_path / "target", seed=1)
    more = f"datasets: {{mine: {{source: {{path: {images}}}}}, target: {{source: {{path: {target}}}}}}}"
    with Executor(StudyResources(tmp_path / "cache")) as execute:
        study = study_of(tiny_clip, "[mine+base]", more, "target")
        run_study(study, tmp_path / "refused", execute, StudyConsole(console=Console(file=io.StringIO())))
    (log,) = (tmp_path / "refused").glob("runs/*/log.txt")
    assert "b/0.png" in log.read_text()
    text = STUDY.format(model=tiny_clip, transfer="[mine+base]", more=more, target="target")
    record = run(parse_study(text, where="study", overrides={"unreadable": "skip"}), tmp_path / "left-out")
    assert list(record["transfer"]["mine+base"]["skipped"]) == ["b/0.png"]
    assert record["row"]["transfer_mine+base_zero_shot_n"] == 5


def test_what_a_set_made_of_another_is_measured_on_is_used_of_both(tiny_clip: Path, tmp_path: Path) -> None:
    """A guard's images, and those that a run monitors, are none of the other's evaluation or reference."""
    study = study_of(tiny_clip, "[digits, digits+new]")
    settings = study.runs[0].settings.model_copy(
        update={"guard_probe_per_class": 4, "monitor_zero_shot_images": 60, "transfer_limit": None}
    )
    sets = {name: load_dataset(name) for name in ("digits", "digits+new", "digits+base")}
    divided = [divide(sets[name], settings, first=name == "digits") for name in settings.transfer]
    before = len(divided[1].evaluation)
    whole, half = without_guarded(divided)
    assert whole.guard is not None
    assert len(whole.guard) == 40
    assert before - len(half.evaluation) == 20, "four of each of the five classes"
    assert not set(whole.guard.ids) & set(half.evaluation.ids)
    pretrained = Pretrained.load(str(tiny_clip), torch.device("cpu"))
    (opened,) = open_sets([whole], settings, pretrained, tmp_path)
    assert opened.monitor is not None
    for name in ("digits+base", "digits+new"):
        used = {one for part in used_of(sets[name], [opened]) for one in part.ids}
        assert used == set(opened.monitor.part.ids) & set(sets[name].train.ids)
        assert used
    assert not used_of(load_dataset("tiles"), [opened])


def test_a_set_that_is_skipped_stands_in_the_way_of_no_plan(tiny_clip: Path, tmp_path: Path) -> None:
    """CIFAR-10 can only come from the hub here, which the tests never reach."""
    text = STUDY.format(model=tiny_clip, transfer="[cifar10, objects]", more="", target="tiles")
    skipping, needing = (
        parse_study(text, where="study", overrides={"missing_sets": what}) for what in ("skip", "error")
    )
    found = check_study(skipping, tmp_path / "study", full=True)
    assert not found.problems
    assert not found.out_of_reach
    said = {one.what: one for one in found.findings}
    assert said["transfer set cifar10"].state == "warning"
    assert "content is compared when the run starts" in said["overlap"].detail
    assert [row.note for row in plan(skipping)] == [""]
    assert "transfer set cifar10" in plan(needing)[0].note
    refused = problem_message(check_study(needing, tmp_path / "study", full=True))
    assert "missing_sets: skip" in refused
