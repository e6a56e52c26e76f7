"""A stored tensor of another shape: the error names it, both shapes and the setting, wherever weights are loaded."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPVisionModel

from attndrift.compare import resolve
from attndrift.files import sha256
from attndrift.methods import AdaptationSettings, adapt, load_adapted, save_adapted
from attndrift.models import CheckpointError, ModelError, load_model, load_processor

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    load_model("config:tiny").save_pretrained(folder)
    for part in load_processor("config:tiny"):
        part.save_pretrained(folder)
    return folder


def _settings(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {n: config[n] | v if isinstance(v, dict) else v for n, v in values.items()}))


SETTINGS = {
    "vision_config.hidden_size": ({"vision_config": {"hidden_size": 64}}, r"\(32,\) in the file and \(64,\)"),
    "vision_config.intermediate_size": ({"vision_config": {"intermediate_size": 128}}, r"mlp\.fc\d.* \(64.*and \(128"),
    "vision_config.image_size and patch_size": ({"vision_config": {"image_size": 56}}, r"\(17, 32\).*and \(65, 32\)"),
    "vision_config.patch_size": ({"vision_config": {"patch_size": 14}}, r"embedding"),
    "vision_config.num_channels": ({"vision_config": {"num_channels": 1}}, r"\(32, 3, 7, 7\).*and \(32, 1, 7, 7\)"),
    "text_config.vocab_size": ({"text_config": {"vocab_size": 99}}, r"token_embedding\.weight.*and \(99, 32\)"),
    "text_config.max_position_embeddings": ({"text_config": {"max_position_embeddings": 32}}, r"\(77, 32\).*and \(32, 32\)"),
    "text_config.intermediate_size": ({"text_config": {"intermediate_size": 32}}, r"text_model.*mlp"),
    "projection_dim": ({"projection_dim": 16}, r"projection\.weight.*\(32, 32\).*and \(16, 32\)"),
}  # fmt: skip


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_models_configuration_of_another_shape(
    setting: str, shards: bool, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    values, shapes = SETTINGS[setting]
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    if shards:
        (folder / WEIGHTS).unlink()
        load_model(saved).save_pretrained(folder, max_shard_size="40KB")
        capfd.readouterr()
    _settings(folder, **values)
    with pytest.raises(ModelError, match=shapes) as error:
        load_model(folder)
    message = str(error.value)
    assert setting in message
    assert str(folder) in message
    assert "config.json that was saved with the weights" in message
    assert "report" not in message
    assert "LOAD REPORT" not in capfd.readouterr().err + caplog.text, "what the message says is not said twice"


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    clip = load_model(saved)
    folder = tmp_path / "checkpoint"
    model = adapt(copy.deepcopy(clip), AdaptationSettings(method="lora"), 3, 0)
    save_adapted(
        model.eval(), folder, base_source=str(saved), probe_pixels=torch.zeros(1, 3, 28, 28), pretrained=clip,
        class_names=["a", "b", "c"],
    )  # fmt: skip
    return folder


def _tensor(folder: Path, file: str, part: str, value: torch.Tensor) -> str:
    """Puts ``value`` in the place of the first tensor whose name holds ``part``, with its checksum."""
    path = folder / file
    stored = load_file(path)
    name = next(name for name in sorted(stored) if part in name)
    save_file(stored | {name: value}, path, metadata={"format": "pt"})
    description = folder / "checkpoint.json"
    if description.is_file():
        content = json.loads(description.read_text())
        content["files"][file] = sha256(path)
        description.write_text(json.dumps(content))
    return name


@pytest.mark.parametrize(
    ("file", "part", "shape", "words"),
    [
        (WEIGHTS, "classifier.weight", (5, 32), r"\(5, 32\) in the file and \(3, 32\).* the number of classes decides"),
        (WEIGHTS, "classifier.bias", (5,), r"\(5,\) in the file and \(3,\).* the number of classes decides"),
        (WEIGHTS, "visual_projection", (16, 32), r"\(16, 32\) in the file and \(32, 32\).* projection_dim decides"),
        ("adapter/adapter_model.safetensors", "lora_A", (2, 32), r"\(2, 32\) in the file and \(8, 32\).* rank r decides"),
        ("adapter/adapter_model.safetensors", "lora_B", (64, 8), r"\(64, 8\).*and \(32, 8\).* vision_config.hidden_size decides"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_shape(
    checkpoint: Path, file: str, part: str, shape: tuple[int, ...], words: str
) -> None:
    name = _tensor(checkpoint, file, part, torch.zeros(shape))
    with pytest.raises(CheckpointError, match=words) as error:
        load_adapted(checkpoint)
    assert name in str(error.value)
    assert file in str(error.value)


@pytest.mark.parametrize(
    ("part", "shape", "setting"),
    [
        ("fc1.weight", (96, 32), "vision_config.intermediate_size"),
        ("fc2.weight", (32, 96), "vision_config.intermediate_size"),
        ("position_embedding", (10, 32), "vision_config.image_size and patch_size"),
        ("class_embedding", (48,), "vision_config.hidden_size"),
        ("patch_embedding", (32, 3, 14, 14), "vision_config.patch_size"),
    ],
)
def test_a_tower_of_another_shape(part: str, shape: tuple[int, ...], setting: str, saved: Path, tmp_path: Path) -> None:
    base = resolve(saved)
    tower = CLIPVisionModel(base.model.config.vision_config)
    tower.save_pretrained(tmp_path)
    _tensor(tmp_path, WEIGHTS, part, torch.zeros(shape))
    with pytest.raises(CheckpointError, match=setting) as error:
        resolve(tmp_path, base)
    assert str(shape) in str(error.value)
    assert part in str(error.value)


@pytest.mark.parametrize(
    ("targets", "settings", "words"),
    [
        (r"vision_model\..*\.q_proj", {"r": 2}, r"\(4, 32\) in the file and \(2, 32\).* rank r decides"),
        (r"vision_model\..*\.fc1", {"r": 2}, "rank r decides"),
        (r"vision_model\..*\.fc1", None, r"lora_\w.*vision_config\.intermediate_size decides"),
        (r"vision_model\..*\.fc2", None, r"lora_\w.*vision_config\.intermediate_size decides"),
        (r"text_model\..*\.v_proj", {"r": 8}, r"\(4, 32\) in the file and \(8, 32\).* rank r decides"),
    ],
)
def test_an_adapter_of_another_shape(
    targets: str, settings: dict[str, Any] | None, words: str, saved: Path, tmp_path: Path
) -> None:
    """Of another rank by its settings, or of a base model of another width."""
    base = resolve(saved)
    clip: CLIPModel = load_model(saved)
    if settings is None:
        config = copy.deepcopy(clip.config)
        config.vision_config.intermediate_size = 96
        clip = CLIPModel(config)
    model = get_peft_model(clip, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (settings or {})))
    with pytest.raises(CheckpointError, match=words):
        resolve(tmp_path, base)
