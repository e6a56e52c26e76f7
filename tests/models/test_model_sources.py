"""Sources of models: configs by name and by path, folders that are not whole, hubs that cannot be reached."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, CLIPModel, CLIPVisionModel, modeling_utils

from attndrift.files import sha256
from attndrift.models import ModelError, describe, load_config, load_model, load_processor
from attndrift.models.load import state_hash
from attndrift.retention.zero_shot import TextFeatures


def _change_config(folder: Path, part: str | None = None, **values: Any) -> Path:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    (config if part is None else config[part]).update(values)
    path.write_text(json.dumps(config))
    return folder


@pytest.fixture
def folder(tiny_clip: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_clip, tmp_path / "copy"))


def test_missing_weights_are_an_error_and_not_random(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = {name: value for name, value in load_file(path).items() if not name.startswith("text_model.")}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack \d+ of the model's tensors, for instance text_model\."):
        load_model(folder)


def test_damaged_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ModelError, match="not a model folder"):
        load_model(folder)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["visual_projection.weight"] = weights["visual_projection.weight"][:5].clone()
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError):
        load_model(folder)


def test_an_adapter_beside_pickled_weights_does_not_stand_for_them(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*Convert them"):
        load_model(folder)


def test_a_tower_on_its_own_is_named(folder: Path, tmp_path: Path) -> None:
    CLIPVisionModel(load_config(folder).vision_config).save_pretrained(tmp_path / "tower")
    with pytest.raises(ModelError, match="image tower alone, not a CLIP model with both towers"):
        load_model(tmp_path / "tower")


@pytest.mark.parametrize("source", ["/nowhere/model", "./nowhere", "a/b/c", "~/model", ""])
def test_a_path_that_is_not_there_is_not_asked_of_a_hub(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *_, **__: pytest.fail("a hub was asked"))
    with pytest.raises(ModelError):
        load_model(source)


def test_a_file_is_not_a_source(folder: Path) -> None:
    with pytest.raises(ModelError, match="give the folder"):
        load_model(folder / "model.safetensors")


def _hub_cache(tiny_clip: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> None:
    """A hub repository in the local cache, as a download leaves it, and no network."""
    commit = "0" * 40
    repository = cache / "models--someone--clip"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    shutil.copy(tiny_clip / "config.json", snapshot)
    for name, content in files.items():
        (snapshot / name).write_bytes(content)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_a_hub_model_with_pickled_weights_only_is_refused(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hub_cache(tiny_clip, tmp_path, monkeypatch, {"pytorch_model.bin": b"never read"})
    with pytest.raises(ModelError, match=f"no safetensors weights.*`attndrift convert someone/clip@{'0' * 40} FOLDER`"):
        load_model("someone/clip")


def test_no_hub_is_asked_to_convert_pickled_weights(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default `transformers` has a service convert them, and loads what comes back."""
    _hub_cache(tiny_clip, tmp_path, monkeypatch, {"pytorch_model.bin": b"never read"})
    asked: list[str] = []

    def convert(name: str, **_: Any) -> tuple[None, str, bool]:
        asked.append(name)
        return None, "main", False

    monkeypatch.setattr(modeling_utils, "is_offline_mode", lambda: False)
    monkeypatch.setattr(modeling_utils, "auto_conversion", convert)
    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
    with pytest.raises(ModelError, match="no safetensors weights"):
        load_model("someone/clip")
    assert not asked
    assert "DISABLE_SAFETENSORS_CONVERSION" not in os.environ
    with pytest.raises(OSError, match="does not appear to have"):
        CLIPModel.from_pretrained("someone/clip", use_safetensors=True)
    assert asked == ["someone/clip"], "or this test tests nothing"


def test_a_hub_model_from_the_cache_has_a_revision(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hub_cache(tiny_clip, tmp_path, monkeypatch, {"model.safetensors": (tiny_clip / "model.safetensors").read_bytes()})
    model = load_model("someone/clip")
    assert describe("someone/clip", model) == {
        "source": "someone/clip",
        "weights_sha256": state_hash(load_model(tiny_clip)),
        "revision": "0" * 40,
    }


def test_an_unreachable_hub_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"HF_HUB_OFFLINE forbids asking.*give a folder"):
        load_model("nobody/such-a-model")


def test_a_description_names_the_files_it_hashed(tiny_clip: Path) -> None:
    described = describe(tiny_clip)
    assert described["files"] == {"model.safetensors": sha256(tiny_clip / "model.safetensors")}
    assert "weights_sha256" not in described
    assert describe("config:tiny") == {"source": "config:tiny"}


def test_a_config_may_be_given_by_path(folder: Path) -> None:
    _change_config(folder, "vision_config", num_hidden_layers=2)
    for source in (f"config:{folder}", f"config:{folder / 'config.json'}"):
        first, second = load_model(source), load_model(source)
        assert len(first.vision_model.encoder.layers) == 2
        assert state_hash(first) == state_hash(second)
    assert load_processor(source)[1].crop_size["height"] == 28


def test_a_config_of_another_model_is_named(folder: Path) -> None:
    _change_config(folder, model_type="bert")
    with pytest.raises(ModelError, match="a 'bert' model; studies train models of type `clip`"):
        load_model(f"config:{folder}")


def test_random_weights_leave_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load_model("config:tiny")
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(
    "text",
    [
        {},
        {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1, "vocab_size": 49408},  # openai's
        {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "vocab_size": 99},  # configs before 2023
        {"bos_token_id": 97, "eos_token_id": 98, "pad_token_id": 98, "vocab_size": 99},
    ],
)
def test_texts_of_a_random_model_have_features_of_their_own(folder: Path, text: dict[str, int]) -> None:
    """CLIP reads a text at its end token; under another id all texts would have one feature."""
    source = f"config:{_change_config(folder, 'text_config', **text)}"
    model, (tokenizer, _) = load_model(source), load_processor(source)
    names = ["cat", "dog", "annual crop"]
    features = TextFeatures.of(model, tokenizer, names).features
    assert float((features @ features.T - torch.eye(3)).max()) < 0.9999
    for i, name in enumerate(names):  # padding to the longest changes nothing
        torch.testing.assert_close(TextFeatures.of(model, tokenizer, [name]).features[0], features[i])


def test_an_end_token_outside_the_vocabulary_is_named(folder: Path) -> None:
    _change_config(folder, "text_config", eos_token_id=49407)
    with pytest.raises(ModelError, match="eos_token_id is 49407"):
        load_processor(f"config:{folder}")
