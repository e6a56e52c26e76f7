"""Equal weights are no equal models: whatever else decides what a model computes is named where two are compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from comparing_models import change_json
from torch import nn
from transformers import CLIPModel

from attndrift.compare import CompareError, compare_models, write_comparison
from attndrift.methods import AdaptationSettings, adapt, save_adapted
from attndrift.models import load_model, load_processor


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    load_model("config:tiny").save_pretrained(folder)
    for part in load_processor("config:tiny"):
        part.save_pretrained(folder)
    return folder


def _config(**values: object) -> Callable[[Path], None]:
    """Changes fields of config.json, those of a tower under its name."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        for name, value in values.items():
            config[name] = config.get(name, {}) | value if isinstance(value, dict) else value
        path.write_text(json.dumps(config))

    return change


def _processor(**values: object) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "preprocessor_config.json", **values)


def _swapped_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["o"] = vocabulary["o"], vocabulary["a"]
    path.write_text(json.dumps(content))


FILES = {
    "vision_config.hidden_act": (_config(vision_config={"hidden_act": "gelu"}), "image embeddings"),
    "vision_config.layer_norm_eps": (_config(vision_config={"layer_norm_eps": 1e-3}), "image embeddings"),
    "text_config.hidden_act": (_config(text_config={"hidden_act": "relu"}), "text features"),
    "text_config.layer_norm_eps": (_config(text_config={"layer_norm_eps": 0.1}), "text features"),
    "text_config.eos_token_id": (_config(text_config={"eos_token_id": 5}), "text features"),
    "image_processor.image_mean": (_processor(image_mean=[0.1, 0.2, 0.3]), "the pixels that the model is given"),
    "image_processor.resample": (_processor(resample=0), "the pixels that the model is given"),
    "image_processor.rescale_factor": (_processor(rescale_factor=1 / 128), "the pixels that the model is given"),
    "tokenizer.ids": (_swapped_tokens, "text features"),
    "vision_config.attention_dropout": (_config(vision_config={"attention_dropout": 0.1}), "training alone"),
    "text_config.attention_dropout": (_config(text_config={"attention_dropout": 0.2}), "training alone"),
}  # fmt: skip


@pytest.mark.one_in(4)
@pytest.mark.parametrize("setting", FILES)
def test_a_setting_beside_the_weights_is_named(setting: str, saved: Path, photos: Path, tmp_path: Path) -> None:
    change, effect = FILES[setting]
    other = Path(shutil.copytree(saved, tmp_path / "other"))
    change(other)
    found = compare_models(saved, other, photos)
    assert found.base["weights_sha256"] == found.adapted["weights_sha256"]
    rows = {row["setting"]: row for row in found.differences}
    assert rows[setting]["effect"] == effect
    assert rows[setting]["base"] != rows[setting]["adapted"]
    moved = found.summary["embedding_drift"] != 0
    assert moved is (effect in ("image embeddings", "the pixels that the model is given"))
    counts = effect != "training alone"
    assert counts is any(setting in note for note in found.notes)
    assert counts is not any("nothing differs" in note for note in found.notes)
    write_comparison(found, tmp_path / "out")
    assert setting in (tmp_path / "out" / "compare.html").read_text()
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["differences"] == found.differences


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "field", ["_name_or_path", "transformers_version", "initializer_range", "architectures", "dtype", "id2label"]
)
def test_a_field_that_decides_nothing_is_not_named(field: str, saved: Path, photos: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(saved, tmp_path / "other"))
    value = {"architectures": ["CLIPModelOfMine"], "id2label": {"0": "cat"}, "dtype": "float16"}.get(field, "0.5")
    values = {field: 0.5 if field == "initializer_range" else value}
    (_config(vision_config=values) if field == "initializer_range" else _config(**values))(other)
    found = compare_models(saved, other, photos)
    assert found.differences == []
    assert any("nothing differs" in note for note in found.notes)


def _activation(clip: CLIPModel) -> None:
    clip.vision_model.encoder.layers[1].mlp.activation_fn = nn.ReLU()


def _activations(clip: CLIPModel) -> None:
    for layer in clip.vision_model.encoder.layers:
        layer.mlp.activation_fn = nn.Tanh()


def _epsilon(clip: CLIPModel) -> None:
    clip.vision_model.pre_layrnorm.eps = 0.1


def _scale(clip: CLIPModel) -> None:
    clip.vision_model.encoder.layers[0].self_attn.scale = 2.0


def _positions(clip: CLIPModel) -> None:
    embeddings = clip.vision_model.embeddings
    embeddings.position_ids = embeddings.position_ids.flip(1)


def _forward(clip: CLIPModel) -> None:
    mlp = clip.vision_model.encoder.layers[2].mlp
    own = mlp.forward
    mlp.forward = lambda states: 2 * own(states)


def _text_activation(clip: CLIPModel) -> None:
    clip.text_model.encoder.layers[0].mlp.activation_fn = nn.ReLU()


IN_MEMORY = {
    "activation_fn": _activation,
    "activation_fn and 2 more modules": _activations,
    "pre_layrnorm": _epsilon,
    "layers.0.self_attn": _scale,
    "position_ids": _positions,
    "layers.2.mlp": _forward,
    "text_model.encoder.layers.0.mlp.activation_fn": _text_activation,
}


@pytest.mark.one_in(4)
@pytest.mark.parametrize("module", IN_MEMORY)
def test_what_was_changed_in_a_model_in_memory_is_named(module: str, photos: Path) -> None:
    base, other = load_model("config:tiny"), load_model("config:tiny")
    IN_MEMORY[module](other)
    found = compare_models(base, other, photos)
    assert found.summary["weight_drift"] == 0
    assert [row["setting"] for row in found.differences if row["setting"].endswith(module)], found.differences
    assert not any("nothing differs" in note for note in found.notes)
    assert (found.summary["embedding_drift"] != 0) is ("text" not in module)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 35),
        ("patch_size", 14),
        ("num_attention_heads", 2),
        ("intermediate_size", 32),
        ("num_hidden_layers", 2),
    ],
)
def test_settings_of_another_shape_are_an_error_that_names_them(
    field: str, value: int, saved: Path, photos: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(saved, tmp_path / "other"))
    _config(vision_config={field: value})(other)
    with pytest.raises(CompareError, match=f"{field} .* and ADAPTED .* {value};"):
        compare_models(saved, f"config:{other}", photos)


def test_a_run_is_what_it_was_trained_from_also_where_base_has_the_same_weights(
    saved: Path, photos: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(saved, tmp_path / "base"))
    _config(vision_config={"hidden_act": "gelu"})(base)
    pretrained = load_model(saved)
    model = adapt(load_model(saved), AdaptationSettings(method="full"), 3, 0)
    with torch.no_grad():
        model.backbone.visual_projection.weight.mul_(1.01)
    save_adapted(
        model.eval(), tmp_path / "run", base_source=str(saved), probe_pixels=torch.randn(2, 3, 28, 28),
        pretrained=pretrained, class_names=["a", "b", "c"],
    )  # fmt: skip
    found = compare_models(base, tmp_path / "run", photos)
    assert [row["setting"] for row in found.differences] == ["vision_config.hidden_act"]
    assert any("another model than BASE" in note for note in found.notes)
    same = compare_models(saved, tmp_path / "run", photos)
    assert same.differences == []
    assert same.summary["projection_drift"] == pytest.approx(0.01, rel=1e-3)
