"""Either side as a model: every tensor in its place whatever the layout, or an error that names what is wrong."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comparing_models import adapted_with_lora, bare_tower, change_json, moved_tower, rename
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel, CLIPVisionModelWithProjection
from typer.testing import CliRunner

from attndrift.cli.main import app
from attndrift.compare import CompareError, compare_models, resolve
from attndrift.compare.resolved import ResolvedModel
from attndrift.formats import numbered
from attndrift.methods import AdaptationSettings, adapt, save_adapted
from attndrift.models import CheckpointError, ModelError
from attndrift.models.backbone import BACKBONES
from attndrift.models.load import load_model, load_processor

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(5, 3, 56, 56, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def base() -> ResolvedModel:
    return resolve("embedded")


def _features(model: torch.nn.Module, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model.get_image_features(pixel_values=pixels).pooler_output


def _merged(clip: CLIPModel, **settings: object) -> CLIPModel:
    return adapted_with_lora(copy.deepcopy(clip), **settings).merge_and_unload()


def test_an_adapter_is_merged_into_a_copy_of_base(
    embedded: CLIPModel, adapter: Path, pixels: Tensor, base: ResolvedModel
) -> None:
    side = resolve(adapter, base)
    unmerged = adapted_with_lora(copy.deepcopy(embedded)).get_base_model()
    torch.testing.assert_close(_features(side.model, pixels), _features(unmerged, pixels), rtol=0, atol=1e-4)
    assert torch.equal(_features(base.model, pixels), _features(embedded, pixels)), "BASE itself is left as it was"
    assert not torch.equal(_features(side.model, pixels), _features(embedded, pixels))


@pytest.mark.parametrize("layout", ["vision_model.", ""])
def test_an_adapter_of_the_bare_tower_lands_in_base_in_either_layout(
    embedded: CLIPModel, pixels: Tensor, tmp_path: Path, layout: str, base: ResolvedModel
) -> None:
    """`q_proj` names modules of the text tower too; only the file says where the adapters belong.

    The scale of one block stands under a name of the bare tower: lost, it would change the result silently.
    """
    settings = {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"^encoder.layers.0.self_attn.q_proj": 64}}
    tower = adapted_with_lora(bare_tower(embedded), **settings)
    tower.save_pretrained(tmp_path)
    assert all(name.startswith("base_model.model.encoder.") for name in load_file(tmp_path / WEIGHTS))
    if layout:
        rename(tmp_path / WEIGHTS, lambda n: n.replace("base_model.model.", "base_model.model." + layout))
        change_json(
            tmp_path / "adapter_config.json", alpha_pattern={"^vision_model.encoder.layers.0.self_attn.q_proj": 64}
        )
    side = resolve(tmp_path, base)
    with torch.no_grad():
        wanted = embedded.visual_projection(tower.get_base_model()(pixel_values=pixels).pooler_output)
    torch.testing.assert_close(_features(side.model, pixels), wanted, rtol=0, atol=1e-4)
    assert not torch.allclose(wanted, _features(embedded, pixels), atol=1e-2)
    for name, value in side.model.text_model.state_dict().items():
        assert torch.equal(value, embedded.text_model.state_dict()[name]), name


def test_adapters_with_trained_modules_and_in_both_towers_are_taken_whole(
    embedded: CLIPModel, pixels: Tensor, tmp_path: Path, base: ResolvedModel
) -> None:
    settings = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["visual_projection"], "use_rslora": True}
    saved = adapted_with_lora(copy.deepcopy(embedded), **settings)
    with torch.no_grad():
        saved.get_base_model().visual_projection.modules_to_save["default"].weight.mul_(1.5)
    saved.save_pretrained(tmp_path, save_embedding_layers=False)
    side = resolve(tmp_path, base)
    merged = saved.merge_and_unload()
    assert torch.equal(_features(side.model, pixels), _features(merged, pixels))
    tokens = torch.tensor([[1912, 5, 7, 1913]])
    with torch.no_grad():
        ours, theirs = (m.get_text_features(input_ids=tokens).pooler_output for m in (side.model, merged))
        bare = embedded.get_text_features(input_ids=tokens).pooler_output
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, bare)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"bias": "lora_only"},
        {"rank_pattern": {r".*layers\.2\..*": 2}, "alpha_pattern": {r".*layers\.2\..*": 1}, "use_rslora": True},
        {"target_modules": r"vision_model\..*\.(fc1|patch_embedding)"},
    ],
)
def test_adapters_with_settings_of_their_own_end_as_peft_merges_them(
    embedded: CLIPModel, pixels: Tensor, tmp_path: Path, settings: dict[str, object], base: ResolvedModel
) -> None:
    saved = adapted_with_lora(copy.deepcopy(embedded), **settings)
    saved.save_pretrained(tmp_path, save_embedding_layers=False)
    side = resolve(tmp_path, base)
    merged = saved.merge_and_unload()
    assert torch.equal(_features(side.model, pixels), _features(merged, pixels))
    assert not torch.equal(_features(side.model, pixels), _features(embedded, pixels))


def test_an_adapter_as_base_is_put_onto_the_model_that_it_names(
    adapter: Path, pixels: Tensor, tmp_path: Path, embedded: CLIPModel, base: ResolvedModel
) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "copy"))
    change_json(folder / "adapter_config.json", base_model_name_or_path="embedded")
    assert torch.equal(_features(resolve(folder).model, pixels), _features(resolve(adapter, base).model, pixels))
    change_json(folder / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(CompareError, match="names no base model"):
        resolve(folder)


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", "checkpoint.json"])
def test_a_description_that_is_no_object_is_named(tmp_path: Path, name: str, base: ResolvedModel) -> None:
    (tmp_path / name).write_text("[1]")
    with pytest.raises(CompareError, match=f"{name}: not a JSON object"):
        resolve(tmp_path, base)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda n: n.replace("layers.0.", "layers.99.", 1), "layers.99.* has no place in the base model"),
        (lambda n: n.replace("base_model.model.", "base_model.model.backbone."), "has no place in the base model"),
        (lambda n: n.replace("base_model.model.", ""), "has no place in the base model"),
    ],
)
def test_an_adapter_whose_tensors_have_no_place_raises(
    adapter: Path, tmp_path: Path, damage: object, expected: str, base: ResolvedModel
) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "damaged"))
    rename(folder / WEIGHTS, damage)
    with pytest.raises(CheckpointError, match=expected):
        resolve(folder, base)


def test_an_adapter_that_lacks_a_tensor_is_zero_or_pickled_raises(
    adapter: Path, tmp_path: Path, base: ResolvedModel
) -> None:
    stored = load_file(adapter / WEIGHTS)
    folder = Path(shutil.copytree(adapter, tmp_path / "copy"))
    save_file({n: v for n, v in stored.items() if "layers.3.self_attn.q_proj.lora_B" not in n}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="1 tensors are missing"):
        resolve(folder, base)
    save_file({n: v * 0 if "lora_B" in n else v for n, v in stored.items()}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="every lora_B is zero"):
        resolve(folder, base)
    # So small that adding it to a weight in float32 changes nothing.
    save_file({n: v * 1e-20 if "lora_B" in n else v for n, v in stored.items()}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="changes no weight by as much as float32 can tell"):
        resolve(folder, base)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(CompareError, match="Pickled weights can run code"):
        resolve(folder, base)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"peft_type": "LOHA"}, "of type LOHA; LORA, IA3"),
        ({"peft_type": "IA3"}, "has no place in the base model"),
        ({"init_lora_weights": "pissa"}, "initialised by pissa"),
        ({"target_parameters": ["x"]}, "target_parameters, which is not plain LoRA"),
        ({"r": 2}, "r|shape"),
    ],
)
def test_an_adapter_that_is_not_what_it_seems_raises(
    adapter: Path, tmp_path: Path, settings: dict[str, object], expected: str, base: ResolvedModel
) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "copy"))
    change_json(folder / "adapter_config.json", **settings)
    with pytest.raises((CompareError, CheckpointError), match=expected):
        resolve(folder, base)


@pytest.mark.parametrize("layout", ["old", "new", "old with projection"])
def test_a_vision_tower_is_put_into_base_in_every_layout(
    embedded: CLIPModel, pixels: Tensor, tmp_path: Path, layout: str, base: ResolvedModel
) -> None:
    tower = moved_tower(embedded)
    tower.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    projection = embedded.visual_projection.weight.detach().clone()
    if layout != "new":
        rename(path, lambda name: "vision_model." + name)
        # Files of version 4 hold this buffer beside the weights.
        extra = {"vision_model.embeddings.position_ids": torch.arange(50)[None]}
        if "projection" in layout:
            projection = projection * 2
            extra["visual_projection.weight"] = projection
        save_file(load_file(path) | extra, path, metadata={"format": "pt"})
    side = resolve(tmp_path, base)
    assert side.kind == "vision tower"
    with torch.no_grad():
        wanted = tower(pixel_values=pixels).pooler_output @ projection.T
    torch.testing.assert_close(_features(side.model, pixels), wanted, rtol=1e-5, atol=1e-5)
    for name, value in tower.state_dict().items():
        assert torch.equal(side.model.vision_model.state_dict()[name], value), name


def test_a_tower_with_projection_as_transformers_saves_it_now(
    embedded: CLIPModel, pixels: Tensor, tmp_path: Path, base: ResolvedModel
) -> None:
    config = copy.deepcopy(embedded.config.vision_config)
    config.projection_dim = embedded.config.projection_dim
    tower = CLIPVisionModelWithProjection(config).eval()
    tower.save_pretrained(tmp_path)
    side = resolve(tmp_path, base)
    with torch.no_grad():
        wanted = tower(pixel_values=pixels).image_embeds
    torch.testing.assert_close(_features(side.model, pixels), wanted, rtol=1e-5, atol=1e-5)


def test_a_tower_that_is_not_whole_or_not_of_base_raises(
    embedded: CLIPModel, tmp_path: Path, base: ResolvedModel
) -> None:
    moved_tower(embedded).save_pretrained(tmp_path)
    path, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole = load_file(path)
    with pytest.raises(CompareError, match="as BASE give the whole model"):
        resolve(tmp_path)
    for change, expected in (
        (
            {n: v for n, v in whole.items() if "layers.7.mlp.fc2.bias" not in n},
            "1 tensors of the image tower are missing",
        ),
        (whole | {"encoder.layers.8.mlp.fc2.bias": torch.zeros(128)}, "1 have no place"),
        (whole | {"vision_model.post_layernorm.bias": torch.zeros(128)}, "two tensors have one place"),
        (
            whole | {"post_layernorm.bias": torch.zeros(64)},
            r"has shape \(64,\) in the file and \(128,\) in the model, where vision_config.hidden_size decides",
        ),
        (whole | {"embeddings.position_ids": torch.arange(50).flip(0)[None]}, "position_ids do not count up"),
    ):
        save_file(change, path, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=expected):
            resolve(tmp_path, base)
    save_file(whole, path, metadata={"format": "pt"})
    # The shapes are the same with another number of heads or another activation; the outputs are not.
    for setting, value in (("num_attention_heads", 2), ("hidden_act", "quick_gelu")):
        kept = config.read_text()
        change_json(config, **{setting: value})
        with pytest.raises(CompareError, match=f"{setting} {value}; BASE has"):
            resolve(tmp_path, base)
        config.write_text(kept)
    path.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="Pickled weights can run code"):
        resolve(tmp_path, base)


def test_a_tower_in_shards_is_read_whole(embedded: CLIPModel, tmp_path: Path, base: ResolvedModel) -> None:
    tower = moved_tower(embedded)
    tower.save_pretrained(tmp_path, max_shard_size="2MB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    side = resolve(tmp_path, base)
    for name, value in tower.state_dict().items():
        assert torch.equal(side.model.vision_model.state_dict()[name], value), name


def test_a_model_folder_that_holds_adapters_beside_its_weights_raises(tiny_clip: Path, tmp_path: Path) -> None:
    """`transformers` would load the base weights, drop the adapters and say so in a log line."""
    folder = Path(shutil.copytree(tiny_clip, tmp_path / "copy"))
    path = folder / "model.safetensors"
    extra = {"vision_model.encoder.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(2, 32)}
    save_file(load_file(path) | extra, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="have no place in a CLIPModel"):
        resolve(folder)


def test_what_is_nothing_is_an_error_that_lists_what_there_may_be(tmp_path: Path) -> None:
    with pytest.raises(CompareError, match=r"neither a model folder .* nor a peft adapter"):
        resolve(tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps(numbered("run", {})))
    with pytest.raises(CompareError, match="a run's folder without checkpoints/best"):
        resolve(tmp_path)


@pytest.fixture
def run_folder(embedded: CLIPModel, pixels: Tensor, tmp_path: Path) -> Path:
    """A run's folder as a study leaves it, with a LoRA checkpoint."""
    folder = tmp_path / "studies" / "mine" / "runs" / "E5_objects_lora"
    model = adapt(copy.deepcopy(embedded), AdaptationSettings(method="lora"), 3, 0)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        model.backbone.visual_projection.weight.mul_(1.01)
    save_adapted(
        model.eval(), folder / "checkpoints" / "best", base_source="embedded", probe_pixels=pixels,
        pretrained=embedded, class_names=["a", "b", "c"],
    )  # fmt: skip
    (folder / "settings.json").write_text(json.dumps({"dataset": "objects", "source": None}))
    return folder


def test_a_run_and_its_checkpoint_are_one_model_on_either_side(
    run_folder: Path, adapter: Path, pixels: Tensor, photos: Path, tiny_clip: Path, base: ResolvedModel
) -> None:
    sides = [resolve(run_folder, base), resolve(run_folder / "checkpoints" / "best", base), resolve(run_folder)]
    features = [_features(side.model, pixels) for side in sides]
    assert torch.equal(features[0], features[1])
    assert torch.equal(features[0], features[2])
    assert sides[0].trained_on == "objects"
    both = compare_models(run_folder, run_folder / "checkpoints" / "best", photos)
    assert both.summary["weight_drift"] == both.summary["embedding_drift"] == 0
    assert any("nothing differs" in note for note in both.notes)
    with pytest.raises(ValueError, match="accuracy on classes that were trained is not zero-shot"):
        compare_models("embedded", run_folder, photos, zero_shot="objects")
    with pytest.raises(CompareError, match=r"image_size|hidden_size"):
        compare_models(tiny_clip, run_folder, photos)


def test_a_damaged_checkpoint_raises(run_folder: Path, base: ResolvedModel) -> None:
    path = run_folder / "checkpoints" / "best" / "adapter" / WEIGHTS
    stored = load_file(path)
    save_file({name: value * 2 for name, value in stored.items()}, path)
    with pytest.raises(CheckpointError, match="recorded checksum"):
        resolve(run_folder, base)


def test_a_towers_name_on_a_hub_is_taken_and_the_command_prints_one_json_object(
    embedded: CLIPModel, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub's cache made by hand: what `owner/tower` leaves there once it was downloaded."""
    cache = tmp_path / "hub" / "models--owner--tower"
    snapshot = cache / "snapshots" / ("0" * 40)
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    moved_tower(embedded).save_pretrained(snapshot)
    rename(snapshot / "model.safetensors", lambda name: "vision_model." + name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    command = [
        "compare",
        "embedded",
        "owner/tower",
        "--images",
        str(photos),
        "--output",
        str(tmp_path / "out"),
        "--json",
    ]
    result = CliRunner().invoke(app, [*command, "--fail-if", "weight_drift>0.01"])
    assert result.exit_code == 3, result.output
    found = json.loads(result.stdout)
    assert found["adapted"]["kind"] == "vision tower"
    assert found["adapted"]["source"] == "owner/tower"
    assert found["held"] == ["weight_drift>0.01"]
    assert found["summary"]["weight_drift"] == pytest.approx(0.05, rel=0.05), "each weight moved by 5% of itself"


def test_an_adapters_name_on_a_hub_is_taken_too(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: ResolvedModel
) -> None:
    cache = tmp_path / "models--owner--adapter"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    shutil.copytree(adapter, cache / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    named, folder = resolve("owner/adapter", base), resolve(adapter, base)
    assert (named.source, named.kind) == ("owner/adapter", "adapter")
    assert named.to_json()["weights_sha256"] == folder.to_json()["weights_sha256"]


def test_a_model_that_a_library_keeps_on_a_hub_brings_its_own_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its repository holds a config of the library's form, and no preprocessor_config.json."""
    commit, home = "0123456789abcdef0123456789abcdef01234567", tmp_path / "models--org--tiny"
    (home / "snapshots" / commit).mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    (home / "snapshots" / commit / "config.json").write_text('{"architecture": "vit_tiny"}')
    (home / "snapshots" / commit / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    spec = replace(
        BACKBONES["clip"], name="library", load=lambda rest: load_model("config:tiny"),
        processor=lambda rest: load_processor("config:tiny"), repository=lambda rest: rest,
    )  # fmt: skip
    monkeypatch.setattr(BACKBONES, "_members", {"clip": BACKBONES["clip"], "library": spec})
    base = resolve("library:org/tiny")
    adapted = resolve("library:org/tiny@main", base)
    for side in (base, adapted):
        assert (side.revision, side.tokenizer is None) == (commit, False)
        assert side.image_processor.to_dict() == load_processor("config:tiny")[1].to_dict()
