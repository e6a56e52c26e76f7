"""What a backbone cannot do is refused by name before anything is trained: by `check`, by a dry run, and by a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BeitConfig, DeiTConfig, Siglip2Config

from attndrift.methods import AdaptationSettings, adapt, load_adapted, save_adapted
from attndrift.models import CheckpointError, ModelError
from attndrift.models.load import load_model, load_processor
from attndrift.retention.baseline import zero_shot_baseline
from attndrift.study.check import check_study
from attndrift.study.check_findings import Check
from attndrift.study.check_prompts import check_prompts
from attndrift.study.check_splits import SetContents
from attndrift.study.distributed import SilentReporter
from attndrift.study.executor import Executor
from attndrift.study.loading import parse_study
from attndrift.study.plan import plan
from attndrift.study.resources import StudyResources
from attndrift.study.settings import RunSettings
from attndrift.study.text_needs import text_problem

STUDY = """
name: refused
shared: {{model: "config:dinov2-tiny", dataset: digits, train_per_class: 2, validation_per_class: 1, probe_size: 10,
          test_limit: 10, epochs: 1, trackers: [], threads: 1}}
runs:
  - {run}
"""


class _Reporter(SilentReporter):
    def inputs(self, found: Any, places: Any) -> None: ...


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ("{method: full, head: text}", "`head`: text needs a text tower"),
        ("{method: full, head: cosine}", "`head`: cosine needs a text tower"),
        ("{method: lora, head: live_text, text_tower: lora}", "`head`: live_text needs a text tower"),
        ("{method: frozen, head: contrastive, train_temperature: true}", "`head`: contrastive needs a text tower"),
        ("{method: full, loss: 'lipsum:1'}", "`loss`: lipsum needs a text tower"),
        ("{method: full, loss: 'logit_distillation:1'}", "`loss`: logit_distillation needs a text tower"),
        ("{method: full, transfer: [tiles]}", "`measures`: zero_shot needs a text tower"),
        ("{method: full, transfer: [tiles], measures: [knn, zero_shot]}", "`measures`: zero_shot needs a text tower"),
    ],
)
def test_what_needs_texts_is_refused_without_a_text_tower(run: str, expected: str, tmp_path: Path) -> None:
    study = parse_study(STUDY.format(run=run), where="study")
    (problem,) = [one for one in check_study(study, tmp_path / "out").problems if one.what.startswith("run")]
    assert expected in problem.detail
    assert "need none" in problem.detail
    (planned,) = plan(study)
    assert expected in planned.note
    with pytest.raises(ValueError, match=expected):
        Executor(StudyResources(tmp_path / "cache"))(study.runs[0], tmp_path, _Reporter())
    assert not list(tmp_path.glob("checkpoints/*"))


def test_a_set_with_measures_of_its_own_needs_no_texts(tmp_path: Path) -> None:
    """The measures of all sets are by default zero-shot accuracy, which no set here asks for."""
    sources = {"own": {"path": str(tmp_path), "measures": ["knn"]}}
    settings = RunSettings(model="config:dinov2-tiny", dataset="digits", transfer=("own",), sources=sources)
    assert text_problem(settings) is None
    assert text_problem(settings.model_copy(update={"sources": {}})) is not None


def test_a_check_asks_nothing_of_prompts_without_a_text_tower(tmp_path: Path) -> None:
    study = parse_study(STUDY.format(run="{method: full, transfer: [tiles], measures: [knn]}"), where="study")
    found = check_study(study, tmp_path / "out", full=True)
    assert not found.problems
    assert not [one for one in found.findings if one.what.startswith("prompts")]


def test_prompts_of_a_model_whose_config_is_not_known(tmp_path: Path) -> None:
    """Only its processor says that there is no tokenizer."""
    study = parse_study(STUDY.format(run="{method: full, transfer: [tiles], measures: [knn]}"), where="study")
    found = Check("refused")
    check_prompts(found, study, {"tiles": SetContents("tiles", ("", "b"), "train", None)}, {}, full=True)
    assert not found.findings


def _folder(source: str, folder: Path) -> Path:
    load_model(source).save_pretrained(folder)
    for part in load_processor(source):
        if part is not None:
            part.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("source", "change", "in_check", "at_load"),
    [
        (
            "dinov2-tiny", {"model_type": "vit"}, "look like those of model_type 'dinov2', and its config.json is of 'vit'",
            r"`layers\.0\.mlp\.fc1\.bias` has shape \(64,\) .* tensors do not fit; its weights look like .* 'dinov2'",
        ),
        (
            "vit-tiny", {"model_type": "dinov2"}, "look like those of model_type 'vit', and its config.json is of 'dinov2'",
            r"look like those of model_type 'vit'.*: they lack 21 of its tensors, for instance `embeddings\.mask_token`",
        ),
        (
            "dinov2-tiny", {"hidden_size": 64}, "'embeddings.cls_token' has shape (1, 1, 32), and its config.json has hidden_size 64",
            r"`embeddings\.cls_token` has shape .* 27 of 27 tensors do not fit",
        ),
    ],
)  # fmt: skip
def test_weights_beside_the_config_of_another_model(
    source: str, change: dict[str, Any], in_check: str, at_load: str, tmp_path: Path
) -> None:
    folder = _changed(_folder(f"config:{source}", tmp_path / "model"), change)
    assert in_check in _said_of(folder)
    with pytest.raises(ModelError, match=f"{at_load}.*are of two models; put the config.json that was saved"):
        load_model(folder)


def test_a_config_without_model_type(tmp_path: Path) -> None:
    folder = _changed(_folder("config:dinov2-tiny", tmp_path / "model"), {"model_type": None})
    expected = "a model without `model_type`; give it that of the weights: `clip`"
    assert expected in _said_of(folder)
    for source in (folder, f"config:{folder}"):
        with pytest.raises(ModelError, match=expected):
            load_model(source)


def test_images_that_are_no_whole_patches(tmp_path: Path) -> None:
    folder = _folder("config:dinov2-tiny", tmp_path / "model")
    path = folder / "preprocessor_config.json"
    content = json.loads(path.read_text())
    side = {"height": 30, "width": 30}
    path.write_text(json.dumps({**content, "crop_size": side, "size": {"shortest_edge": 30}}))
    expected = (
        "images of 30 pixels, no multiple of its `patch_size` 7.*Give a size of 28 or 35 in preprocessor_config.json"
    )
    study = parse_study(STUDY.format(run="{method: full}").replace("config:dinov2-tiny", str(folder)), where="study")
    assert [one for one in check_study(study, tmp_path / "out", full=True).problems if re.search(expected, one.detail)]
    with pytest.raises(ModelError, match=expected):
        Executor(StudyResources(tmp_path / "cache"))(study.runs[0], tmp_path / "run", _Reporter())


def _changed(folder: Path, change: dict[str, Any]) -> Path:
    path = folder / "config.json"
    content = json.loads(path.read_text()) | change
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    return folder


def _said_of(folder: Path) -> str:
    """What the check that precedes every run says of this model."""
    text = STUDY.format(run="{method: full}").replace("config:dinov2-tiny", str(folder))
    found = check_study(parse_study(text, where="study"), folder.parent / "out")
    return next((one.detail for one in found.problems if one.what.startswith("model")), "")


@pytest.mark.parametrize(
    ("config", "weights"),
    [
        ("config:dinov2-tiny", "config:vit-tiny"),
        ("config:vit-tiny", "config:dinov2-tiny"),
        ("config:siglip-tiny", "config:tiny"),
        ("config:dinov2-registers-tiny", "config:dinov2-tiny"),
        ("config:dinov2-small", "config:dinov2-tiny"),
    ],
)
def test_weights_of_another_model_than_the_config_says_are_refused(config: str, weights: str, tmp_path: Path) -> None:
    from attndrift.models.load import load_config

    _folder(weights, tmp_path)
    load_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"its weights lack \d+ of the model's tensors|are of two models"):
        load_model(tmp_path)


def test_an_embedding_without_a_name_is_refused(tmp_path: Path) -> None:
    from attndrift.models.load import load_config

    config = load_config("config:siglip-tiny")
    config.vision_config.vision_use_head = False
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="its embedding has no name"):
        load_model(f"config:{tmp_path}")
    study = parse_study(STUDY.format(run=f"{{method: full, model: 'config:{tmp_path}'}}"), where="study")
    assert any("its embedding has no name" in one.detail for one in check_study(study, tmp_path / "out").problems)


@pytest.mark.parametrize(("config", "words"), [(Siglip2Config, "NaFlex"), (DeiTConfig, "DeiT"), (BeitConfig, "BEiT")])
def test_what_is_observed_alone_is_refused_by_name(config: Any, words: str, tmp_path: Path) -> None:
    config().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=rf"{words}.*DriftMonitor\(model, pixels\) watches"):
        load_model(tmp_path)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    pretrained = load_model("config:dinov2-tiny")
    model = adapt(load_model("config:dinov2-tiny"), AdaptationSettings("full"), 2, seed=0)
    pixels = torch.zeros(2, 3, 28, 28)
    save_adapted(
        model, tmp_path / "c", base_source="config:dinov2-tiny", probe_pixels=pixels, pretrained=pretrained,
        class_names=("a", "b"),
    )  # fmt: skip
    for other in ("config:vit-tiny", "config:tiny"):
        with pytest.raises(CheckpointError, match=r"other weights than the backbone given \(config:dinov2-tiny\)"):
            load_adapted(tmp_path / "c", base=load_model(other))


def test_a_zero_shot_baseline_needs_texts() -> None:
    with pytest.raises(ModelError, match=r"a Dinov2Model has no text tower.*knn"):
        zero_shot_baseline("config:dinov2-tiny", ["tiles"])


def test_a_folder_with_a_classifier_is_read_without_it(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=28,
                       patch_size=7)  # fmt: skip
    whole = ViTForImageClassification(config)
    whole.save_pretrained(tmp_path)
    tower = load_model(tmp_path)
    for name, value in tower.state_dict().items():
        assert (whole.vit.state_dict()[name] == value).all()
    weights = load_file(tmp_path / "model.safetensors")
    save_file({name: value for name, value in weights.items() if "layernorm_before" not in name}, tmp_path / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(ModelError, match="its weights lack"):
        load_model(tmp_path)
