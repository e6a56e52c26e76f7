"""How models of timm and open_clip are named in a study, and what is said where neither is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import nn

from attndrift.extras import MissingExtraError
from attndrift.losses import EmbeddingCosine, PreservationLossError
from attndrift.methods import AdaptationSettings, adapt
from attndrift.models.backbone import backbone_of
from attndrift.models.embedding import image_embeddings
from attndrift.models.errors import ModelError
from attndrift.models.eval_processor import eval_processor
from attndrift.models.library_source import LibrarySource, put_weights
from attndrift.models.load import load_model
from attndrift.models.reference import at_commit, without_commit
from timm_stand_in import Eva, VisionTransformer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("config:vit_tiny", ("config", "vit_tiny", None, None)),
        ("vit_small_patch14_dinov2.lvd142m", ("name", "vit_small_patch14_dinov2.lvd142m", None, None)),
        (f"vit_small.x@{COMMIT}", ("name", "vit_small.x", None, COMMIT)),
        ("ViT-B-32@laion2b_s34b_b79k", ("name", "ViT-B-32", "laion2b_s34b_b79k", None)),
        (f"ViT-B-32@openai@{COMMIT}", ("name", "ViT-B-32", "openai", COMMIT)),
        ("hf-hub:timm/ViT-B-16-SigLIP", ("repository", "timm/ViT-B-16-SigLIP", None, None)),
        ("timm/vit_tiny@main", ("repository", "timm/vit_tiny", "main", None)),
        (f"timm/vit_tiny@{COMMIT}", ("repository", "timm/vit_tiny", None, COMMIT)),
    ],
)
def test_a_source_says_where_a_model_is(rest: str, expected: tuple[str | None, ...]) -> None:
    found = LibrarySource.parse("timm", rest)
    assert (found.kind, found.name, found.detail, found.commit) == expected


def test_files_and_folders_are_told_from_names(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"")
    assert LibrarySource.parse("timm", f"vit_tiny@{file}").kind == "file"
    assert LibrarySource.parse("timm", str(tmp_path)).kind == "folder"
    for name in ("w.pt", "w.bin", "w.pth", "w.ckpt", "w.npz"):
        with pytest.raises(ModelError, match=rf"timm:vit_tiny@{name}: .* can run code when they are read"):
            LibrarySource.parse("timm", f"vit_tiny@{name}")
    for rest, said in (("", "names no model"), ("vit_tiny@none.safetensors", "there is no file none.safetensors")):
        with pytest.raises(ModelError, match=said):
            LibrarySource.parse("timm", rest)


@pytest.mark.parametrize("source", ["timm:vit_small.x", "open_clip:ViT-B-32@openai", "timm:timm/vit_tiny"])
def test_a_study_pins_the_commit_behind_a_source(source: str) -> None:
    pinned = at_commit(source, COMMIT)
    assert pinned == f"{source}@{COMMIT}"
    assert at_commit(pinned, COMMIT) == pinned
    assert without_commit(pinned) == source
    library, _, rest = pinned.partition(":")
    assert LibrarySource.parse(library, rest).commit == COMMIT


@pytest.mark.parametrize(("library", "extra"), [("timm", "timm"), ("open_clip", "open-clip")])
def test_a_library_that_is_not_installed_is_named(library: str, extra: str) -> None:
    if importlib.util.find_spec(library) is not None:
        pytest.skip(f"{library} is installed")
    with pytest.raises(MissingExtraError, match=rf"attndrift\[{extra}\]"):
        load_model(f"{library}:config:vit_tiny_patch16_224")


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({"weight": (3, 2), "bias": (3,)}, r"`weight` has shape \(3, 2\) in the file and \(2, 3\) in the model"),
        ({"weight": (2, 3)}, "1 of the model's tensors are not in the file, for instance `bias`"),
        ({"weight": (2, 3), "bias": (2,), "other": (1,)}, "1 of the file's have no place, for instance `other`"),
        ({}, "2 of the model's tensors are not in the file"),
    ],
)
def test_weights_of_another_architecture_are_refused(stored: dict[str, tuple[int, ...]], said: str) -> None:
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    with pytest.raises(ModelError, match=f"timm:x: .*{said}.*of another architecture"):
        put_weights("timm:x", model, {name: torch.zeros(shape) for name, shape in stored.items()})
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("size", [(50, 41), (33, 36), (35, 32)])
def test_the_crop_is_in_the_middle_as_torchvision_rounds_it(size: tuple[int, int]) -> None:
    processor = eval_processor("timm:x", crop=32, mean=[0.5] * 3, std=[0.5] * 3, interpolation="bicubic")
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    made = processor(Image.fromarray(values), do_resize=False, do_rescale=False, do_normalize=False)["pixel_values"][0]
    top, left = round((size[1] - 32) / 2), round((size[0] - 32) / 2)
    np.testing.assert_array_equal(made, values[top : top + 32, left : left + 32].transpose(2, 0, 1))
    with pytest.raises(ModelError, match="timm:x: resizes by 'hamming'"):
        eval_processor("timm:x", crop=32, mean=[0.5] * 3, std=[0.5] * 3, interpolation="hamming")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [VisionTransformer, Eva])
def test_a_tower_of_timm_is_a_backbone(kind: type[nn.Module], images: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = kind(5).eval()
    view = backbone_of(model)
    expected = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(view.embed(images), expected)
    torch.testing.assert_close(image_embeddings(model, images), expected)
    assert (len(view.blocks), view.projection, view.text) == (2, None, None)
    assert view.final_norm is model.norm


@pytest.mark.parametrize(
    ("bias", "target", "said"),
    [
        (False, "q", "queries, keys and values are one layer, `qkv`; adapt qkv, proj"),
        (False, "v", "queries, keys and values are one layer"),
        (True, "qkv", "an adapter on 'qkv' would take no part.*qkv_bias_separate = True"),
        (False, "mlp", "no layer 'mlp'"),
        (True, "nothing", "no layer 'nothing' .* are 0, 2, proj, out$"),
    ],
)
def test_a_layer_that_no_adapter_takes_part_in_is_refused(bias: bool, target: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"lora_targets: .*{said}"):
        adapt(Eva(0, bias=bias), AdaptationSettings("lora", lora_targets=target), 3, 0)


def test_an_adapter_that_was_refused_would_have_taken_no_part(images: torch.Tensor) -> None:
    """Why: with a bias apart, the weight of the layer is multiplied; where the layer is called, the adapter counts."""
    moved = {}
    for separate in (False, True):
        torch.manual_seed(0)
        model = Eva(0, bias=True).eval()
        for block in model.blocks:
            block.attn.qkv_bias_separate = separate
        before = model(images)
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False)).eval()  # type: ignore[arg-type]
        moved[separate] = float((adapted(images) - before).detach().abs().max())
    assert moved[False] == 0
    assert moved[True] > 1e-3


@pytest.mark.parametrize("kind", [VisionTransformer, Eva])
def test_an_embedding_loss_does_not_take_logits_for_embeddings(kind: type[nn.Module], images: torch.Tensor) -> None:
    with pytest.raises(PreservationLossError, match=r"puts out logits.*num_classes=0"):
        EmbeddingCosine(kind(5), 1.0)
    model = kind(0)
    preserve = EmbeddingCosine(model, 1.0)
    model(images)
    assert float(preserve(model).detach()) == pytest.approx(0, abs=1e-6)
