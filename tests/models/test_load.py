"""Where models come from, and what is refused before a single byte is unpickled."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import DeiTConfig, DeiTModel

from attndrift.models.load import ModelError, describe, load_config, load_model, load_processor


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (_explode, ("unpickled",))


def _explode(message: str) -> None:
    raise AssertionError(message)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused_unread(tiny_clip: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_clip, folder)
    (folder / "model.safetensors").unlink()
    torch.save(_Bomb(), folder / name)
    with pytest.raises(ModelError, match=r"no \.safetensors file.*`attndrift convert .*pickled FOLDER`"):
        load_model(folder)


def test_another_architecture_is_named(tmp_path: Path) -> None:
    DeiTModel(DeiTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                         image_size=28, patch_size=7)).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(ModelError, match="a 'deit' model: DeiT, whose class token and distillation token"):
        load_model(tmp_path)


def test_what_is_not_there_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="no config is called"):
        load_model("config:vit-huge")
    with pytest.raises(ModelError, match="not a model folder"):
        load_model(tmp_path)


def test_a_hub_name_out_of_reach_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE forbids asking"):
        load_config("nobody/such-a-model")


def test_a_float16_file_loads_as_float32(tiny_clip: Path, tmp_path: Path) -> None:
    load_model(tiny_clip, dtype=torch.float16).save_pretrained(tmp_path)
    assert {p.dtype for p in load_model(tmp_path).parameters()} == {torch.float32}


def test_equal_weights_have_equal_descriptions(tiny_clip: Path) -> None:
    first, second = (load_model(source) for source in (tiny_clip, "config:tiny"))
    assert describe(tiny_clip, first)["weights_sha256"] == describe("config:tiny", second)["weights_sha256"]
    with torch.no_grad():
        next(second.parameters()).add_(1e-3)
    assert describe(tiny_clip, first)["weights_sha256"] != describe("config:tiny", second)["weights_sha256"]


def test_the_processor_comes_without_torchvision(tiny_clip: Path) -> None:
    tokenizer, image_processor = load_processor(tiny_clip)
    assert image_processor.crop_size["height"] == 28
    assert tokenizer(["a cat"])["input_ids"][0][0] == tokenizer.bos_token_id
