"""Where models of timm and open_clip come from: the same function as the library's own, and what is refused by name."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).parent))
from library_models import OPEN_CLIP, SIZE, TEXT, TIMM, VISION, noisy, open_clip_folder, source

from attndrift.cli.main import app
from attndrift.methods import AdaptationSettings, adapt
from attndrift.models.backbone import backbone_of
from attndrift.models.embedding import image_embeddings
from attndrift.models.errors import ModelError
from attndrift.models.load import describe, load_model, load_processor, load_shape
from attndrift.models.reference import at_commit, is_on_hub
from attndrift.retention.zero_shot import TextFeatures

pytestmark = pytest.mark.filterwarnings("ignore::Warning")


def images(name: str) -> torch.Tensor:
    side = load_shape(source(name)).image_size
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", TIMM)
def test_embeddings_of_timm_are_those_of_its_own_forward(name: str) -> None:
    config = TIMM[name]
    own = timm.create_model(config["architecture"], num_classes=0, **config["model_args"]).eval()
    model = load_model(source(name))
    own.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = own(images(name))
        torch.testing.assert_close(image_embeddings(model, images(name)), expected, rtol=1e-5, atol=1e-6)
    shape = load_shape(source(name))
    assert expected.shape[1] == shape.dimensions == backbone_of(model).dimensions
    assert (shape.depth, shape.prefix_tokens) == (len(own.blocks), own.num_prefix_tokens)
    # Of a model that has a classifier, the embedding is what comes before it.
    classifier = timm.create_model(config["architecture"], num_classes=7, **config["model_args"]).eval()
    classifier.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(image_embeddings(classifier, images(name)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_embeddings_of_open_clip_are_those_of_its_own_model(name: str) -> None:
    own, _, _ = open_clip.create_model_and_transforms(f"local-dir:{source(name).partition(':')[2]}")
    own, model = own.eval(), load_model(source(name))
    tokens = torch.randint(4, 50, (2, TEXT["context_length"]), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(image_embeddings(model, images(name)), own.encode_image(images(name)))
        torch.testing.assert_close(model.encode_text(tokens), own.encode_text(tokens))
    view = backbone_of(model)
    assert float(view.logit_scale) == pytest.approx(float(own.logit_scale))  # type: ignore[arg-type]
    assert (view.logit_bias is None) == (own.logit_bias is None)
    assert load_shape(source(name)).dimensions == view.dimensions == OPEN_CLIP[name]["embed_dim"]


def _from_file(library: str, folder: Path) -> str:
    if library == "timm":
        model = noisy(timm.create_model("test_vit", num_classes=10))
        save_file(model.state_dict(), folder / "weights.safetensors")
        return f"timm:test_vit@{folder / 'weights.safetensors'}"
    config = folder / "own-tiny.json"
    config.write_text(json.dumps(OPEN_CLIP["open_clip-clip"]), encoding="utf-8")
    open_clip.add_model_config(folder)
    model = noisy(open_clip.create_model("own-tiny"))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "weights.safetensors")
    return f"open_clip:own-tiny@{folder / 'weights.safetensors'}"


@pytest.mark.parametrize("library", ["timm", "open_clip"])
def test_an_architecture_takes_its_weights_from_a_file(library: str, tmp_path: Path) -> None:
    text = _from_file(library, tmp_path)
    model = load_model(text)
    weights = load_file(tmp_path / "weights.safetensors")
    own = {name.removeprefix("text."): value for name, value in model.state_dict().items()}
    assert {name for name in weights if name not in own} <= {"head.weight", "head.bias"}
    for name, value in own.items():
        torch.testing.assert_close(weights[name], value)


@pytest.mark.parametrize(
    "text", ["timm:config:test_vit", "timm:config:vit_pe_core_tiny_patch16_384", "open_clip:config:ViT-S-32-alt"]
)
def test_random_weights_are_the_same_every_time(text: str) -> None:
    state = torch.random.get_rng_state()
    one, other = load_model(text), load_model(text)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def _picture(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("size", [(50, 41), (37, 64), (33, 33), (200, 77), (32, 35)])
@pytest.mark.parametrize("kind", ["timm-vit", "timm-siglip", "timm-perception", "shortest", "squash", "bilinear"])
def test_images_are_those_of_the_librarys_own_transform(kind: str, size: tuple[int, int], tmp_path: Path) -> None:
    if kind.startswith("timm"):
        text = source(kind)
        model = load_model(text)
        data = timm.data.resolve_model_data_config(model) | {"input_size": (3, 32, 32)}
        transform = timm.data.create_transform(**data, is_training=False)
    else:
        given = (
            {"resize_mode": kind}
            if kind != "bilinear"
            else {"interpolation": kind, "mean": [0.5] * 3, "std": [0.5] * 3}
        )
        text = f"open_clip:{open_clip_folder(tmp_path, OPEN_CLIP['open_clip-clip'], **given)}"
        _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    _, processor = load_processor(text)
    picture = _picture(*size)
    made = np.asarray(processor(picture)["pixel_values"][0])
    np.testing.assert_allclose(made, transform(picture).numpy(), rtol=0, atol=1e-5)


def test_prompts_of_clip_are_those_of_its_own_tokenizer(tmp_path: Path) -> None:
    config = {**OPEN_CLIP["open_clip-clip"], "text_cfg": {**TEXT, "vocab_size": 49408}}
    text = f"open_clip:{open_clip_folder(tmp_path, config)}"
    tokenizer, _ = load_processor(text)
    model = load_model(text)
    features = TextFeatures.of(model, tokenizer, ["Tabby Cat", "dog"], ["a photo of a {class}."]).features
    own = open_clip.get_tokenizer("ViT-B-32")(["a photo of a Tabby Cat.", "a photo of a dog."])
    with torch.no_grad():
        torch.testing.assert_close(features, model.encode_text(own, normalize=True))


def _refused(library: str, config: dict[str, Any]) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / "c.json").write_text(json.dumps(config), encoding="utf-8")
        return f"{library}:config:{folder / 'c.json'}"

    return make


def _of_another(library: str, name: str) -> Callable[[Path], str]:
    """The weights of one architecture, under the name of another."""

    def make(folder: Path) -> str:
        text = _from_file(library, folder)
        return f"{library}:{name}@{text.partition('@')[2]}"

    return make


def _pickled(library: str, name: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / "weights.bin").write_bytes(b"\x80\x04N.")
        return f"{library}:{name}@{folder / 'weights.bin'}"

    return make


def _pickled_folder(library: str, config: str, content: dict[str, Any]) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / config).write_text(json.dumps(content), encoding="utf-8")
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
        return f"{library}:{folder}"

    return make


def _damaged(folder: Path) -> str:
    (folder / "w.safetensors").write_bytes(b"no weights at all")
    return f"timm:test_vit@{folder / 'w.safetensors'}"


BAD: dict[str, tuple[Callable[[Path], str], str]] = {
    "ResNet of timm": (lambda folder: "timm:config:resnet18", r"`ResNet` of timm is no vision transformer.*vit_\*"),
    "Swin of timm": (lambda folder: "timm:config:swin_tiny_patch4_window7_224", "`SwinTransformer` of timm is no"),
    "NaFlex of timm": (lambda folder: "timm:config:naflexvit_base_patch16_gap", "`NaFlexVit` of timm is no"),
    "no pooling": (
        _refused("timm", {"architecture": "vit_tiny_patch16_224", "model_args": {**SIZE, "global_pool": ""}}),
        "pools nothing .*name of an image embedding",
    ),
    "not square": (
        _refused("timm", {"architecture": "vit_tiny_patch16_224", "model_args": {**SIZE, "img_size": [32, 64]}}),
        "32 x 64 pixels",
    ),
    "no such architecture of timm": (lambda folder: "timm:config:vit_tiny_patch16_22", "did you mean `vit_tiny_patch16_224`"),
    "no such weights of timm": (lambda folder: "timm:vit_tiny_patch16_224.nobody", "timm knows no weights of that name"),
    "no config of timm": (_refused("timm", {"model_type": "clip"}), "no field `architecture`"),
    "another architecture of timm": (_of_another("timm", "vit_tiny_patch16_224"), "are of another architecture"),
    "another architecture of open_clip": (_of_another("open_clip", "ViT-B-32"), "are of another architecture"),
    "Eva's weights": (_of_another("timm", "eva02_tiny_patch14_224"), "of another architecture"),
    "pickled file": (_pickled("timm", "test_vit"), r"weights.bin is not a .safetensors file. Pickled weights can run"),
    "pickled file of open_clip": (_pickled("open_clip", "ViT-B-32"), "Pickled weights can run code"),
    "pickled folder": (
        _pickled_folder("timm", "config.json", TIMM["timm-vit"]), "pytorch_model.bin is pickled, which can run code"
    ),
    "pickled folder of open_clip": (
        _pickled_folder("open_clip", "open_clip_config.json", {"model_cfg": OPEN_CLIP["open_clip-clip"]}),
        "pytorch_model.bin is pickled, which can run code",
    ),
    "damaged": (_damaged, "w.safetensors cannot be read"),
    "no file": (lambda folder: f"timm:test_vit@{folder}/none.safetensors", "there is no file"),
    "ResNet of open_clip": (lambda folder: "open_clip:config:RN50", "its image tower is a ResNet; a study trains"),
    "ResNet by its weights": (lambda folder: "open_clip:RN50@openai", "its image tower is a ResNet; a study trains"),
    "CoCa": (lambda folder: "open_clip:config:coca_ViT-B-32", "CoCa writes captions"),
    "a text tower of transformers": (lambda folder: "open_clip:config:roberta-ViT-B-32", "its text tower is `roberta-base`"),
    "FastViT of open_clip": (lambda folder: "open_clip:config:MobileCLIP-S1", "image tower: `FastVit` of timm is no"),
    "no weights named": (lambda folder: "open_clip:ViT-B-32", "named without weights; open_clip:ViT-B-32@TAG with one of openai"),
    "no such architecture of open_clip": (lambda folder: "open_clip:config:ViT-B-3", "did you mean `ViT-B-32`"),
    "no config of open_clip": (_refused("open_clip", {"vision_cfg": VISION}), "describes no model of open_clip"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_no_study_trains_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    make, said = BAD[kind]
    text = make(tmp_path)
    with pytest.raises(ModelError, match=said) as raised:
        load_model(text)
    assert str(raised.value).startswith(f"{text}: ")


@pytest.mark.parametrize(
    ("name", "targets", "said"),
    [
        ("timm-vit", "q,v", "'q': queries, keys and values are one layer, `qkv`; adapt qkv, proj, fc1, fc2"),
        ("timm-dinov3", "k", "'k': queries, keys and values are one layer"),
        ("open_clip-clip", "q", "'q': its attention is torch's MultiheadAttention.*adapt fc1 and fc2"),
        ("open_clip-clip", "attn", "'attn': its attention is torch's MultiheadAttention"),
        ("open_clip-clip", "out", "'out': its attention is torch's MultiheadAttention"),
        ("open_clip-qk-norm", "v", "'v': queries, keys and values are one parameter.*adapt out, fc1 and fc2"),
        ("open_clip-timm", "q", "'q': queries, keys and values are one layer"),
        ("open_clip-clip", "nothing", "no layer 'nothing' .* of its blocks are c_fc, c_proj$"),
        ("open_clip-clip", "projection", "no layer 'projection'"),
        ("timm-vit", "nothing", "no layer 'nothing' .* are fc1, fc2, proj, qkv, out$"),
    ],
)
def test_adapters_that_would_take_no_part_are_refused(name: str, targets: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"lora_targets: .*{said}"):
        adapt(load_model(source(name)), AdaptationSettings("lora", lora_targets=targets), 3, 0)


def test_a_head_of_timm_with_a_bias_apart_is_refused_where_its_layer_is_not_called() -> None:
    model = timm.create_model("eva02_tiny_patch14_224", num_classes=0, **SIZE)
    with pytest.raises(ValueError, match=r"adapter on 'qkv' would take no part.*qkv_bias_separate = True"):
        adapt(model, AdaptationSettings("lora", lora_targets="qkv"), 3, 0)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _cached(cache: Path, repository: str, folder: Path) -> None:
    """A repository as the hub's client keeps it."""
    home = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, home / "snapshots" / COMMIT)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "repository", "text"),
    [
        ("timm-vit", "org/tiny", "timm:hf-hub:org/tiny"),
        ("timm-vit", "org/tiny", f"timm:org/tiny@{COMMIT}"),
        ("timm-vit", "timm/test_vit.r160_in1k", "timm:test_vit.r160_in1k"),
        ("timm-vit", "timm/test_vit.r160_in1k", "timm:test_vit"),
        ("open_clip-clip", "org/clip", "open_clip:hf-hub:org/clip@main"),
        ("open_clip-clip", "timm/vit_base_patch32_clip_224.laion400m_e32", "open_clip:ViT-B-32@laion400m_e32"),
    ],
)
def test_a_repository_of_a_hub_is_loaded_at_a_commit_that_is_recorded(
    name: str, repository: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    _cached(tmp_path, repository, Path(source(name).partition(":")[2]))
    assert is_on_hub(text)
    expected = load_model(source(name)).state_dict()
    for asked in (text, at_commit(text, COMMIT)):
        model = load_model(asked)
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
        assert describe(asked, model)["revision"] == COMMIT
        assert load_shape(asked) == load_shape(source(name))
        assert load_processor(asked)[1].to_dict() == load_processor(source(name))[1].to_dict()
    with pytest.raises(ModelError, match="not in the cache"):
        load_model(f"{text.partition(':')[0]}:org/nowhere")


def test_a_repository_with_pickled_weights_alone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for library, config, weights in (
        ("timm", "config.json", "pytorch_model.bin"),
        ("open_clip", "open_clip_config.json", "open_clip_pytorch_model.bin"),
    ):
        folder = tmp_path / library
        folder.mkdir()
        (folder / config).write_text(json.dumps({"model_cfg": OPEN_CLIP["open_clip-clip"]}), encoding="utf-8")
        (folder / weights).write_bytes(b"\x80\x04N.")
        _cached(tmp_path / "cache", f"org/{library}", folder)
        with pytest.raises(ModelError, match="so they are refused"):
            load_model(f"{library}:org/{library}")


@pytest.mark.parametrize("kind", ["ResNet of timm", "CoCa", "no weights named", "pickled file"])
def test_checking_a_study_says_so_before_it_runs(kind: str, tmp_path: Path) -> None:
    make, said = BAD[kind]
    (tmp_path / "study.yaml").write_text(
        f"name: x\nshared: {{dataset: digits, model: '{make(tmp_path)}', epochs: 1}}\nruns: [{{method: full}}]\n",
        encoding="utf-8",
    )
    done = CliRunner().invoke(app, ["run", str(tmp_path / "study.yaml"), "-o", str(tmp_path / "out")])
    assert done.exit_code != 0
    assert re.search(said, " ".join(f"{done.output} {done.exception}".split()))
    assert not (tmp_path / "out" / "runs").exists()
