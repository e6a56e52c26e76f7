"""What the command measures, writes and prints, and how it exits."""

from __future__ import annotations

import base64
import copy
import csv
import hashlib
import json
import os
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from comparing_models import adapted_with_lora
from PIL import Image
from transformers import CLIPModel
from typer.testing import CliRunner, Result

from attndrift import metrics
from attndrift.cli.main import app
from attndrift.compare import CompareError, compare_models, parse_condition, summary_names
from attndrift.drift import compare_snapshots, take_snapshot
from attndrift.metrics import LowRankUpdate
from attndrift.models import load_model, load_processor

runner = CliRunner()


def _compare(*arguments: object) -> Result:
    return runner.invoke(app, ["compare", *(str(argument) for argument in arguments)])


def _pixels(photos: Path) -> torch.Tensor:
    """The images in the order of the command, through the processor alone."""
    _, processor = load_processor("embedded")
    paths = [photos / f"{i}.png" for i in (0, 2, 4, 6)] + [photos / "deep" / "er" / f"{i}.png" for i in (1, 3, 5, 7)]
    return torch.cat(
        [torch.as_tensor(np.asarray(processor(Image.open(path).convert("RGB"))["pixel_values"])) for path in paths]
    )


@pytest.fixture(scope="module")
def compared(photos: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    folder = tmp_path_factory.mktemp("compared") / "new" / "out"
    result = _compare(
        "embedded", adapter, "--images", photos, "--zero-shot", "objects", "--limit", 100, "--output", folder, "--json",
        "--fail-if", "cka_mean<0.1", "--fail-if", "retention_pct < 1",
    )  # fmt: skip
    return result, folder


def test_the_values_are_those_of_the_monitor_on_the_adapted_model_itself(
    compared: tuple[Result, Path], photos: Path, embedded: CLIPModel
) -> None:
    """The reference keeps its adapters beside the weights; the command merges them."""
    result, _ = compared
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    pixels = _pixels(photos)
    adapted = adapted_with_lora(copy.deepcopy(embedded))
    inner = adapted.get_base_model()
    drift = compare_snapshots(take_snapshot(embedded, [pixels]), take_snapshot(inner, [pixels]))
    summary = found["summary"]
    for name, value in drift.columns("history").items():
        if value is not None:
            # A change is the difference of two near numbers.
            assert summary.get(name, summary.get(f"{name}_final")) == pytest.approx(value, rel=1e-3, abs=1e-4), name
    assert summary["cka_debiased_mean"] == pytest.approx(float(drift.cka_debiased_mean), rel=1e-4)
    assert found["cka_chance"] == metrics.cka_chance_level(8, 128)
    layers = drift.layers()
    assert [row["layer"] for row in found["layers"]] == list(range(1, 9))
    assert [row["gini_final"] for row in found["layers"]] == pytest.approx(layers["gini"]["layer"], rel=1e-4)
    assert [row["cka"] for row in found["layers"]] == pytest.approx(layers["cka"]["layer"], rel=1e-4)
    before = {name: value.detach() for name, value in embedded.vision_model.named_parameters()}
    after = {
        f"{name.split('vision_model.')[1]}.weight": LowRankUpdate(
            layer.lora_A["default"].weight, layer.lora_B["default"].weight, 2.0
        )
        for name, layer in inner.named_modules()
        if hasattr(layer, "lora_A")
    }
    expected = metrics.weight_drift(before, after, missing="unchanged")
    assert summary["weight_drift"] == pytest.approx(expected, rel=1e-5)
    weights = {row["module"]: row for row in found["weights"]}
    assert weights["block 3 attention"]["drift"] > 0
    unmoved = ("embeddings", "block 3 MLP", "layer norms", "projection", "text transformer", "text projection")
    assert [weights[name]["drift"] for name in unmoved] == [0.0] * 6
    own = [row for name, row in weights.items() if name.startswith(("block", "embeddings", "layer"))]
    assert sum(row["parameters"] for row in own) == weights["vision transformer"]["parameters"]
    assert weights["vision transformer"]["parameters"] == sum(p.numel() for p in embedded.vision_model.parameters())


def test_the_heads_are_those_that_changed_most(
    compared: tuple[Result, Path], photos: Path, embedded: CLIPModel
) -> None:
    pixels = _pixels(photos)
    before = take_snapshot(embedded, [pixels]).structure
    after = take_snapshot(adapted_with_lora(copy.deepcopy(embedded)).merge_and_unload(), [pixels]).structure
    rows = json.loads(compared[0].stdout)["heads"]
    for metric in ("entropy", "erf95", "gini", "head_diversity"):
        change = 100 * (after.heads(metric) - before.heads(metric)) / before.heads(metric)
        top = change.abs().flatten().sort(descending=True).values[:5].tolist()
        own = [row for row in rows if row["metric"] == metric]
        assert [abs(row["change_pct"]) for row in own] == pytest.approx(top, rel=1e-3)
        for row in own:
            assert row["change_pct"] == pytest.approx(float(change[row["layer"] - 1, row["head"] - 1]), rel=1e-3)


def test_retention_has_its_n_interval_and_prompts(compared: tuple[Result, Path]) -> None:
    found = json.loads(compared[0].stdout)
    measured = found["zero_shot"]
    assert (measured["dataset"], measured["split"], measured["n"], measured["classes"]) == (
        "objects",
        "test",
        100,
        100,
    )
    assert measured["base_accuracy"] == pytest.approx(0.9, abs=0.05), "the embedded model's own, as recorded"
    assert measured["retention_pct"] == 100 * measured["adapted_accuracy"] / measured["base_accuracy"]
    interval = measured["retention_pct_interval"]
    assert interval["low"] < measured["retention_pct"] < interval["high"]
    assert (interval["unit"], interval["n"], interval["level"]) == ("image", 100, 0.95)
    assert measured["templates"] == ["a photo of a {class}."]
    assert len(measured["class_names"]) == 100
    assert found["summary"]["retention_low_pct"] == interval["low"]
    assert found["held"] == []


@pytest.mark.slow
def test_zero_shot_accuracy_is_that_of_the_whole_set_where_no_limit_is_given(
    photos: Path, adapter: Path, tmp_path: Path
) -> None:
    result = _compare(
        "embedded", adapter, "--images", photos, "--zero-shot", "objects", "-o", tmp_path / "out", "--json"
    )
    measured = json.loads(result.stdout)["zero_shot"]
    assert measured["n"] == 1000
    assert measured["base_accuracy"] == pytest.approx(0.9, abs=0.02), "the embedded model's own, as recorded"


def test_everything_is_written_and_the_record_is_what_was_printed(compared: tuple[Result, Path]) -> None:
    result, folder = compared
    printed = json.loads(result.stdout)
    names = ["compare.json", "layers.csv", "heads.csv", "weights.csv", "attention.png", "compare.html"]
    assert [Path(path).name for path in printed["files"]] == names
    assert {path.name for path in folder.iterdir()} == set(names)
    record = json.loads((folder / "compare.json").read_text())
    assert record == {name: value for name, value in printed.items() if name in record}
    assert set(record["summary"]) == set(summary_names())
    with (folder / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["cka"]) for row in rows] == pytest.approx([row["cka"] for row in record["layers"]])
    with Image.open(folder / "attention.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 900


def test_the_tables_are_printed_without_json(photos: Path, adapter: Path, tmp_path: Path) -> None:
    result = _compare("embedded", adapter, "--images", photos, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for words in ("head_diversity_last_layer_change_pct", "Hidden states by block", "Chance level of CKA with 8 images", "block 8 MLP",
                  "Heads that changed most", "no --zero-shot dataset"):  # fmt: skip
        assert words in result.stdout, words


def test_a_base_under_twice_chance_has_no_retention_and_says_why(photos: Path, tmp_path: Path) -> None:
    """Random weights: there is nothing to retain. A condition on the null is an error, not a pass."""
    moved = load_model("config:tiny")
    with torch.no_grad():
        moved.visual_projection.weight.mul_(2).add_(0.01)
    moved.save_pretrained(tmp_path / "moved")
    found = compare_models("config:tiny", tmp_path / "moved", photos, zero_shot="objects", zero_shot_limit=100)
    assert found.zero_shot is not None
    assert found.zero_shot["base_accuracy"] < 0.02, "the case that is meant"
    assert found.summary["retention_pct"] is None
    assert "below twice chance" in found.reasons["retention_pct"]
    assert found.zero_shot["retention_pct_interval"] is None
    assert found.zero_shot["n"] == 100
    with pytest.raises(CompareError, match=r"retention_pct has no value \(the pretrained accuracy"):
        parse_condition("retention_pct<50", summary_names()).holds(found.summary, found.reasons)
    assert any("no tokenizer" in note for note in found.notes)


def test_a_condition_that_holds_exits_with_3_and_the_json_stays_whole(
    photos: Path, adapter: Path, tmp_path: Path
) -> None:
    arguments = ["embedded", adapter, "--images", photos, "--output", tmp_path / "out", "--json"]
    held = _compare(*arguments, "--fail-if", "weight_drift>0", "--fail-if", "cka_mean<=-1")
    assert held.exit_code == 3
    assert json.loads(held.stdout)["held"] == ["weight_drift>0"]
    assert "weight_drift>0 holds" in held.stderr
    null = _compare(*arguments, "--fail-if", "retention_pct<50")
    assert null.exit_code == 1
    assert "no --zero-shot dataset was given" in str(null.exception)
    assert null.stdout == ""


def test_a_limit_of_nothing_is_refused(tmp_path: Path) -> None:
    done = _compare("embedded", "embedded", "--images", tmp_path, "--limit", 5)
    assert isinstance(done.exception, ValueError)
    assert "--zero-shot and --retention" in str(done.exception)


@pytest.mark.parametrize(
    "text",
    ["cka_mean", "cka_mean<", "<0.9", "cka_mean==0.9", "cka_mean<nan", "cka_mean<inf", "cka_mean<1e999", "cka_mean<٣",
     "cka_mean<0.9 or 1>0", "__import__('os').getcwd()<1", "cka_mean<0x1", "1<cka_mean", ""],
)  # fmt: skip
def test_what_is_not_a_condition_is_refused(text: str) -> None:
    with pytest.raises(CompareError, match="--fail-if"):
        parse_condition(text, summary_names())


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("cka_mean<0.9", 0.8999, True), ("cka_mean<0.9", 0.9, False), (" cka_mean <= .9 ", 0.9, True),
        ("cka_mean>-1e-3", 0.0, True), ("cka_mean>=1", 0.999, False), ("cka_mean>=+1.", 1.0, True),
    ],
)  # fmt: skip
def test_a_condition_compares_with_its_number(text: str, value: float, holds: bool) -> None:
    assert parse_condition(text, summary_names()).holds({"cka_mean": value}, {}) is holds


def test_an_unknown_name_gets_one_near_match_before_anything_is_measured(tmp_path: Path) -> None:
    result = _compare("embedded", "nowhere", "--images", tmp_path, "--fail-if", "cka_men<0.9")
    assert result.exit_code == 1
    message = str(result.exception)
    assert message.endswith("there is no number `cka_men`; did you mean `cka_mean`?")


def test_an_unknown_zero_shot_dataset_lists_those_there_are(photos: Path, adapter: Path, tmp_path: Path) -> None:
    result = _compare("embedded", adapter, "--images", photos, "--zero-shot", "object", "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "did you mean `objects`?" in str(result.exception)
    assert not (tmp_path / "out").exists()


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = [
    b"<img src=x onerror=alert(1)>.png", b"\"'><b onclick=x>&amp;.png", b"new\nline.png", b"\x1b[31mred\x07.png",
    b"$\\frac{1}$.png", b"{{ 7*7 }}.png", b"[bold]name.png", "‮gnp.png".encode(), b"not\xffutf8.png",
]  # fmt: skip


@pytest.mark.slow
def test_hostile_names_stay_text_everywhere(photos: Path, adapter: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "<script>alert(2)<", tmp_path / "out"
    folder.mkdir()
    for place, name in enumerate(HOSTILE):
        path = os.fsencode(folder) + b"/" + name
        if place < 4:
            shutil.copy(photos / f"{2 * place}.png", path)
        else:
            Path(os.fsdecode(path)).write_bytes(b"no image")
    refused = _compare("embedded", adapter, "--images", folder, "--output", out)
    assert refused.exit_code == 1
    assert "5 of 9 images cannot be read" in str(refused.exception)
    assert r"not\xffutf8.png" in str(refused.exception)
    taken = _compare("embedded", adapter, "--images", folder, "--output", out, "--skip-unreadable", "--json")
    assert taken.exit_code == 0, taken.output
    found = json.loads(taken.stdout)
    assert found["images"]["n"] == 4
    assert len(found["images"]["skipped"]) == 5
    assert r"new\nline.png" in found["images"]["in_maps"]
    tables = _compare("embedded", adapter, "--images", folder, "--output", out, "--skip-unreadable")
    assert not set(tables.stdout) & {"\x1b", "\x07", "\u202e"}
    assert "[bold]name.png" in tables.stdout, "not markup"
    page = (out / "compare.html").read_text(encoding="utf-8")
    parsed = _Page()
    parsed.feed(page)
    assert {tag for tag, _ in parsed.tags} == {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "ul", "li", "figure", "img", "figcaption", "div",
        "table", "thead", "tbody", "tr", "th", "td", "p",
    }  # fmt: skip
    assert [attributes["src"][:22] for tag, attributes in parsed.tags if tag == "img"] == ["data:image/png;base64,"]
    assert not any(name.startswith("on") or name == "href" for _, attributes in parsed.tags for name in attributes)
    assert "<img src=x onerror=alert(1)>.png" in parsed.text
    assert "{{ 7*7 }}" in parsed.text
    policy = next(a["content"] for t, a in parsed.tags if t == "meta" and "http-equiv" in a)
    style = page.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert "http:" not in page.replace("http-equiv", "")
    assert "https:" not in page


def test_too_few_images_are_an_error_and_few_leave_debiased_cka_null(
    photos: Path, adapter: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    for count in range(3):
        if count < 2:
            with pytest.raises(CompareError, match=f"holds {count} image"):
                compare_models("embedded", adapter, folder)
        shutil.copy(photos / f"{2 * count}.png", folder)
    (folder / "broken.jpg").write_bytes((photos / "0.png").read_bytes()[:400])
    with pytest.raises(CompareError, match=r"broken.jpg .*--skip-unreadable"):
        compare_models("embedded", adapter, folder)
    found = compare_models("embedded", adapter, folder, skip_unreadable=True)
    assert found.images["n"] == 3
    assert [skipped["name"] for skipped in found.images["skipped"]] == ["broken.jpg"]
    assert found.summary["cka_debiased_mean"] is None
    assert "needs at least 4 images (rows), got 3" in found.reasons["cka_debiased_mean"]
    assert 0 < (found.summary["cka_mean"] or 0) < 1
    with pytest.raises(CompareError, match="not a folder"):
        compare_models("embedded", adapter, folder / "0.png")


def test_equal_images_leave_cka_null_with_the_reason(photos: Path, adapter: Path, tmp_path: Path) -> None:
    for name in "abcd":
        shutil.copy(photos / "0.png", tmp_path / f"{name}.png")
    found = compare_models("embedded", adapter, tmp_path)
    assert found.summary["cka_mean"] is None
    assert "CKA is undefined" in found.reasons["cka_mean"]
    assert found.summary["embedding_drift"] is not None


def test_weights_that_differ_without_effect_raise(photos: Path, tmp_path: Path) -> None:
    """What the first layer of an MLP makes is multiplied by zeros, so that training it could change nothing."""
    base = load_model("config:tiny")
    with torch.no_grad():
        base.vision_model.encoder.layers[0].mlp.fc2.weight.zero_()
    moved = copy.deepcopy(base)
    with torch.no_grad():
        moved.vision_model.encoder.layers[0].mlp.fc1.weight.add_(0.1)
    for name, clip in (("base", base), ("moved", moved)):
        clip.save_pretrained(tmp_path / name)
        for part in load_processor("config:tiny"):
            part.save_pretrained(tmp_path / name)
    with pytest.raises(CompareError, match="embeddings of 8 images are bit for bit equal"):
        compare_models(tmp_path / "base", tmp_path / "moved", photos)
    result = _compare(tmp_path / "base", tmp_path / "moved", "--images", photos, "--output", tmp_path / "out")
    assert result.exit_code == 1
    # Another image processor would move the embeddings and hide it.
    settings = tmp_path / "moved" / "preprocessor_config.json"
    values = json.loads(settings.read_text())
    settings.write_text(json.dumps(values | {"image_mean": [0.1, 0.2, 0.3]}))
    with pytest.raises(CompareError, match="bit for bit equal"):
        compare_models(tmp_path / "base", tmp_path / "moved", photos)


def test_the_batch_size_does_not_matter(photos: Path, adapter: Path) -> None:
    whole = compare_models("embedded", adapter, photos)
    parts = compare_models("embedded", adapter, photos, batch_size=3)
    for name, value in whole.summary.items():
        assert parts.summary[name] == (None if value is None else pytest.approx(value, rel=1e-3, abs=1e-5)), name
