"""What practitioners do with a monitor in ``transformers.Trainer``: each tried for real on small models made from a config."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from transformers import CLIPModel, TrainerCallback

from attndrift.callbacks import DriftCallback
from attndrift.drift import Alert, DriftMonitor
from attndrift.losses import AttentionCache, AttentionPreservation, EntropyFloor, PreservationLossError
from attndrift.models import load_model
from attndrift.results.tables import read_tables
from training_loops import Classifier, rows, state_of, trainer_of

SIZE = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3}
VISION = SIZE | {"image_size": 12, "patch_size": 4}


@pytest.fixture
def clip() -> CLIPModel:
    torch.manual_seed(0)
    return load_model("config:tiny")


@pytest.fixture
def images() -> Tensor:
    return torch.randn(12, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def _lora(clip: nn.Module) -> Any:
    return get_peft_model(clip, LoraConfig(r=2, target_modules=r".*vision_model.*\.(q_proj|v_proj)", lora_dropout=0.3))


# -- the ways to train ---------------------------------------------------------------------------------


WAYS: dict[str, dict[str, Any]] = {
    "gradient checkpointing": {"activation_checkpointing": True},
    "compiled": {"torch_compile": True, "torch_compile_backend": "eager"},
    "bfloat16 autocast": {"bf16": True},
    "accumulation": {"gradient_accumulation_steps": 2},
    "frozen blocks": {},
    "bfloat16 weights": {},
    "peft, compiled, autocast, accumulation": {
        "torch_compile": True, "torch_compile_backend": "eager", "bf16": True, "gradient_accumulation_steps": 2,
    },
}  # fmt: skip


def _made(way: str, clip: CLIPModel) -> Classifier:
    torch.manual_seed(4)
    inner: Any = copy.deepcopy(clip)
    for layer in inner.vision_model.encoder.layers:
        layer.self_attn.dropout = 0.2
    if way == "frozen blocks":
        inner.vision_model.encoder.layers[0].requires_grad_(False)
        inner.text_model.requires_grad_(False)
    model = Classifier(_lora(inner) if "peft" in way else inner)
    if way == "gradient checkpointing":
        # A module of one's own has no such method; the trainer asks for it.
        model.activation_checkpointing_enable = inner.activation_checkpointing_enable  # type: ignore[assignment]
    return model.to(torch.bfloat16) if way == "bfloat16 weights" else model


FAST = {
    ("gradient checkpointing", False),
    ("bfloat16 autocast", False),
    ("bfloat16 weights", False),
    ("frozen blocks", True),
}
"""Compiled models are also those of tests/test_losses.py and test_monitor.py, adapters and accumulation test_monitor_trainer.py's."""


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize(
    ("way", "protected"),
    [
        pytest.param(way, protected, marks=() if (way, protected) in FAST else pytest.mark.slow)
        for protected in (False, True)
        for way in WAYS
    ],
)
def test_every_way_to_train_is_measured_and_left_bit_for_bit_as_it_is(
    clip: CLIPModel, images: Tensor, tmp_path: Path, way: str, protected: bool
) -> None:
    """Weights after training with the monitor are those without it; a preservation loss alone changes them."""
    torch._dynamo.reset()
    pixels = images.bfloat16() if way == "bfloat16 weights" else images
    options = WAYS[way] | {"learning_rate": 1e-2}
    trained: dict[str, dict[str, Tensor]] = {}
    for name in ("watched",) if protected else ("plain", "watched"):
        model = _made(way, clip)
        if name == "watched":
            monitor = DriftMonitor(model, images)
            preserve = AttentionPreservation(model, 1e-9 if protected else 0.0)
            callback = DriftCallback(monitor, every=2, preserve=preserve if protected else None, echo=None)
            trainer = trainer_of(model, pixels, tmp_path, callback, **options)
            if not protected:
                preserve.close()
        else:
            trainer = trainer_of(model, pixels, tmp_path, **options)
        trainer.train()
        trained[name] = state_of(model)
    first = images.split(4) if way != "bfloat16 weights" else ()
    alone = DriftMonitor(_made(way, clip), lambda: first) if first else None
    steps = [step for step, _ in callback.drift]
    assert steps == ([0, 2, 4, 6] if "accumulation" not in way else [0, 2, 4])
    assert callback.drift[0][1].weight_drift == 0.0
    assert callback.drift[-1][1].weight_drift > 0
    assert callback.drift[-1][1].embedding_drift > 0
    if alone is not None:
        torch.testing.assert_close(
            alone.reference.structure.heads("entropy"),
            callback.drift[0][1].structure.heads("entropy"),
            rtol=0,
            atol=1e-6,
        )
    if protected:
        assert preserve.last is not None
        assert float(preserve.last) > 0
        return
    for name, value in trained["plain"].items():
        assert torch.equal(value, trained["watched"][name]), name
    if way == "frozen blocks":
        assert torch.equal(
            trained["watched"]["clip.vision_model.encoder.layers.0.mlp.fc1.weight"],
            clip.vision_model.encoder.layers[0].mlp.fc1.weight,
        )
    torch._dynamo.reset()


# -- what is trained -----------------------------------------------------------------------------------


def _rows_of(name: str, images: Tensor) -> list[dict[str, Any]]:
    labels = [i % 2 for i in range(len(images))]
    if name != "SiglipModel":
        return [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    texts = torch.tensor([[1, 5, 6, 7, 8, 9, 4, 2], [1, 9, 8, 3, 3, 3, 3, 2]])
    return [
        {"pixel_values": image, "input_ids": texts[label], "return_loss": True}
        for image, label in zip(images, labels, strict=True)
    ]


def _collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    batch = {
        name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0] if name != "return_loss"
    }
    return batch | ({"return_loss": True} if "return_loss" in rows[0] else {})


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("name", "settings", "query"),
    [
        ("ViTForImageClassification", {}, "cls"),
        ("Dinov2WithRegistersForImageClassification", {"num_register_tokens": 4}, "cls"),
        ("BeitForImageClassification", {"use_relative_position_bias": True}, "cls"),
        ("CLIPForImageClassification", None, "cls"),
        ("SiglipModel", None, "probe"),
    ],
)
def test_models_with_a_loss_of_their_own(name: str, settings: Any, query: str, tmp_path: Path) -> None:
    """A classifier with labels, and a contrastive model with texts, in a Trainer without a line of one's own."""
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    if settings is None:
        text = SIZE | {"vocab_size": 40, "max_position_embeddings": 8, "projection_size": 24}
        config = cls.config_class(vision_config=VISION, text_config=text, projection_dim=20)
    else:
        config = cls.config_class(**VISION, **settings)
    config.num_labels = 2
    model = cls(config)
    images = torch.randn(12, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    monitor = DriftMonitor(model, images)
    preserve = AttentionPreservation(model, 0.5)
    callback = DriftCallback(monitor, every=3, preserve=preserve, folder=tmp_path / "drift", echo=None)
    trainer = trainer_of(model, images, tmp_path, callback, learning_rate=1e-2)
    trainer.train_dataset, trainer.data_collator = _rows_of(name, images), _collate
    trainer.train()
    assert [step for step, _ in callback.drift] == [0, 3, 6]
    last = callback.drift[-1][1]
    assert last.weight_drift > 0
    assert last.embedding_drift > 0
    # 3 x 3 patches and nothing else: class, distillation and register tokens are left out.
    assert 0 < last.structure.heads("entropy").max() <= torch.log(torch.tensor(9.0)) + 1e-6
    assert preserve._seen.query == query
    assert float(preserve.last) > 0
    assert len(read_tables(tmp_path / "drift").history) == 3


# -- what a trainer does around it ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_resumed_training_goes_on_in_its_tables_against_the_pretrained_model(
    clip: CLIPModel, images: Tensor, tmp_path: Path
) -> None:
    def train(folder: str, existing: Any = "refuse", resume: Any = None, steps: int = -1) -> DriftCallback:
        # As a script does that is started again: from the pretrained model.
        model = Classifier(copy.deepcopy(clip))
        callback = DriftCallback(
            DriftMonitor(model, images), every=2, folder=tmp_path / folder, existing=existing, echo=None
        )
        options = {"save_strategy": "steps", "save_steps": 3, "learning_rate": 1e-2}
        trainer = trainer_of(model, images, tmp_path / f"{folder}-state", callback, **options)
        if steps > 0:
            trainer.add_callback(_StopAfter(steps))
        trainer.train(resume_from_checkpoint=resume)
        return callback

    whole = train("whole")
    train("parts", steps=3)
    resumed = train("parts", existing="continue", resume=str(tmp_path / "parts-state" / "checkpoint-3"))
    assert [step for step, _ in resumed.drift] == [3, 4, 6]
    last, expected = resumed.drift[-1][1], whole.drift[-1][1]
    assert last.values() == pytest.approx(expected.values(), rel=1e-5, abs=1e-6)
    one, two = (read_tables(tmp_path / name) for name in ("whole", "parts"))
    assert one.history["step"].tolist() == [0, 2, 4, 6]
    assert two.history["step"].tolist() == [0, 2, 3, 4, 6]
    assert two.runs["weight_drift"].tolist() == pytest.approx(one.runs["weight_drift"].tolist(), rel=1e-5)


class _StopAfter(TrainerCallback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.steps


def test_the_best_model_that_a_trainer_loads_at_the_end_is_what_the_run_ends_with(
    clip: CLIPModel, images: Tensor, tmp_path: Path
) -> None:
    model = Classifier(clip)
    lines: list[str] = []
    monitor = DriftMonitor(model, images)
    callback = DriftCallback(monitor, every=3, folder=tmp_path / "drift", echo=lines.append)
    options = {
        "eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "score",
        "learning_rate": 1e-2,
    }  # fmt: skip
    trainer = trainer_of(model, images, tmp_path / "state", callback, **options)
    # The first epoch counts as the better one.
    trainer.compute_metrics = lambda _: {"score": -float(trainer.state.global_step)}
    trainer.train()
    assert [step for step, _ in callback.drift] == [0, 3, 6]
    now = monitor.measure()
    assert now.weight_drift == pytest.approx(callback.drift[1][1].weight_drift, rel=1e-6)
    run = read_tables(tmp_path / "drift").runs.iloc[0]
    assert run["weight_drift"] == pytest.approx(now.weight_drift, rel=1e-6)
    assert run["selected_epoch"] == 1.0
    assert run["status"] == "finished"
    assert lines[-1].startswith("drift of the selected state (step 3): entropy")


def test_unfreezing_in_the_middle_is_measured(clip: CLIPModel, images: Tensor, tmp_path: Path) -> None:
    class Unfreeze(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 3:
                model.clip.vision_model.requires_grad_(True)

    model = Classifier(clip)
    model.clip.requires_grad_(False)
    callback = DriftCallback(DriftMonitor(model, images), every=3, echo=None)
    trainer = trainer_of(model, images, tmp_path, Unfreeze(), callback, learning_rate=1e-2)
    # The optimiser has to know the parameters from the start, as everywhere.
    trainer.optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    trainer.train()
    drifts = {step: drift.weight_drift for step, drift in callback.drift}
    assert drifts[0] == drifts[3] == 0.0
    assert drifts[6] > 0


def test_a_monitor_made_after_some_training_measures_against_the_model_that_it_is_given(
    clip: CLIPModel, images: Tensor, tmp_path: Path
) -> None:
    pretrained = copy.deepcopy(clip)
    model = Classifier(clip)
    trainer_of(model, images, tmp_path / "one", learning_rate=1e-2).train()
    late = DriftCallback(DriftMonitor(model.clip, images, reference=pretrained), every=6, echo=None)
    own = DriftCallback(DriftMonitor(model, images), every=6, echo=None)
    trainer_of(model, images, tmp_path / "two", late, own, learning_rate=1e-2).train()
    assert late.drift[0][1].weight_drift > 0
    assert own.drift[0][1].weight_drift == 0.0
    assert late.drift[-1][1].weight_drift > own.drift[-1][1].weight_drift > 0


@pytest.mark.slow
def test_a_stop_ends_an_adapter_training_with_the_best_state_in_every_way(
    clip: CLIPModel, images: Tensor, tmp_path: Path
) -> None:
    torch._dynamo.reset()
    model = Classifier(_lora(clip))
    stop = Alert("weight_drift", above=1e-9, action="stop")
    callback = DriftCallback(DriftMonitor(model, images), every=2, alerts=[stop], folder=tmp_path / "drift", echo=None)
    before = state_of(model)
    options = WAYS["peft, compiled, autocast, accumulation"]
    trainer = trainer_of(model, images, tmp_path / "state", callback, learning_rate=1e-2, **options)
    trainer.train()
    assert trainer.state.global_step == 2
    for name, value in state_of(model).items():
        assert torch.equal(value, before[name]), name
    torch._dynamo.reset()


def test_a_cache_whose_numbers_a_trainer_drops_says_how_to_keep_them(
    clip: CLIPModel, images: Tensor, tmp_path: Path
) -> None:
    model = Classifier(clip)
    preserve = AttentionPreservation(model, 1.0, teacher=AttentionCache(model, images))
    callback = DriftCallback(DriftMonitor(model, images), preserve=preserve, echo=None)
    trainer = trainer_of(model, images, tmp_path, callback, remove_unused_columns=True, numbered=True)
    with pytest.raises(PreservationLossError, match="remove_unused_columns=False"):
        trainer.train()


# -- probe images, as they come ------------------------------------------------------------------------


class _Labelled(Dataset):
    """A dataset whose end is known by its length alone."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index % len(self.images)], 0


def test_the_probe_may_be_what_a_script_has_at_hand(clip: CLIPModel, images: Tensor) -> None:
    expected = DriftMonitor(clip, images).reference
    shuffled = DataLoader(TensorDataset(images), batch_size=5, shuffle=True)
    given: dict[str, Any] = {
        "a list of images": list(images),
        "a list of batches": list(images.split(5)),
        "rows": rows(images),
        "a batch": {"pixel_values": images, "labels": None},
        "a dataset": _Labelled(images),
        "a loader": DataLoader(_Labelled(images), batch_size=5),
        "a generator": (image for image in images),
        "a function": lambda: images.split(5),
    }
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for name, probe in given.items():
        monitor = DriftMonitor(clip, probe)
        torch.testing.assert_close(monitor.reference.embeddings, expected.embeddings, rtol=0, atol=1e-5, msg=name)
        assert monitor.measure().embedding_drift == pytest.approx(0, abs=1e-6)
    # In another order than ours, but always in the same one.
    monitor = DriftMonitor(clip, shuffled)
    assert monitor.measure().embedding_drift == pytest.approx(0, abs=1e-6)
    assert float(monitor.measure().compared["cka"].min()) == pytest.approx(1, abs=1e-6)
    assert torch.equal(torch.get_rng_state(), before), "a loader draws a seed; training must not notice"


def test_a_probe_that_is_no_normalised_images_says_what_to_give(clip: CLIPModel, images: Tensor) -> None:
    picture = Image.new("RGB", (28, 28))
    for probe, words in (
        ([picture, picture], "a Image is not an image as the model takes it"),
        (picture, "holds no images"),
        ({"input_ids": images}, "no `pixel_values`"),
        (images[0], "expected floating-point images"),
        ((images * 50).byte(), "uint8"),
        ([images[0], images[1, :, :14]], "2 different sizes"),
        (lambda: [(images * 50).byte()], "not normalised"),
    ):
        with pytest.raises((TypeError, ValueError), match=words) as error:
            DriftMonitor(clip, probe)  # type: ignore[arg-type]
        assert "lambda" in str(probe) or "processor(images" in str(error.value)


# -- losses --------------------------------------------------------------------------------------------


def test_protect_takes_the_model_for_the_readers_sake(clip: CLIPModel, images: Tensor) -> None:
    """``loss = task + preserve(model)``: the preservation loss knows its model, and refuses another one."""
    model = Classifier(clip)
    monitor = DriftMonitor(model, images)
    other = Classifier(copy.deepcopy(clip))
    losses = (AttentionPreservation(model, 1.0), EntropyFloor(model, 1.0, monitor=monitor, fraction=1.0))
    with torch.no_grad():
        clip.vision_model.encoder.layers[0].self_attn.q_proj.weight.mul_(3)
    for preserve in losses:
        values = []
        for named in (None, model, model.clip, torch.compile(model, backend="eager")):
            for each in losses:
                each.skip()
            model.embed(images)
            values.append(float((preserve() if named is None else preserve(named)).detach()))
        assert values == [values[0]] * 4
        assert values[0] > 0
        with pytest.raises(PreservationLossError, match="does not hold the model that is preserved"):
            preserve(other)
        with pytest.raises(TypeError, match="image numbers go by name"):
            preserve([1, 2])  # type: ignore[arg-type]


def test_the_floor_has_the_teachers_that_preservation_has(clip: CLIPModel, images: Tensor) -> None:
    """A cache, a second model, and the same model with its adapters off: one pretrained entropy."""
    second = copy.deepcopy(clip)
    expected = DriftMonitor(clip, images).reference.structure.layers("entropy").tolist()
    cache = AttentionCache(clip, images)
    model = _lora(clip)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    moved = DriftMonitor(model, images).measure().structure.layers("entropy").tolist()
    assert moved != pytest.approx(expected, abs=1e-4)
    for given in (
        {"teacher": cache},
        {"teacher": AttentionCache(model, images, flips=False)},
        {"teacher": second, "probe": images},
        {"probe": images},
        {"monitor": DriftMonitor(model, images, reference=second)},
    ):
        with EntropyFloor(model, 1.0, **given) as preserve:  # type: ignore[arg-type]
            assert preserve.pretrained_entropy.tolist() == pytest.approx(expected, abs=1e-5), given
    for given, words in (
        ({"teacher": second}, "exactly one of"),
        ({"teacher": cache, "probe": images}, "exactly one of"),
        ({"teacher": second, "monitor": DriftMonitor(model, images)}, "give a model and its probe"),
        ({"teacher": "the old one", "probe": images}, "teacher is a str"),
    ):
        with pytest.raises(ValueError, match=words):
            EntropyFloor(model, 1.0, **given)  # type: ignore[arg-type]
