"""The guard on a tiny CLIP: it keeps budgets, touches nothing where it is not needed, and says what it did."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from attndrift import AttentionPreservation, Budget, DriftCallback, DriftMonitor, Guard
from attndrift.drift import Alert, DriftWatch
from attndrift.guard.head import follow
from attndrift.guard.interpolator import WeightInterpolator
from attndrift.methods import AdaptationSettings, ImageClassifier, adapt
from attndrift.models import load_model
from attndrift.models.embedding import image_embeddings
from attndrift.retention.zero_shot import TextFeatures

CLASSES = 4
RATE = 3e-3


def _model(method: str = "full", **settings: Any) -> ImageClassifier:
    return adapt(load_model("config:tiny"), AdaptationSettings(method=method, **settings), CLASSES, seed=0).train()


@pytest.fixture(scope="module")
def images() -> Tensor:
    side = load_model("config:tiny").config.vision_config.image_size
    return torch.randn(48, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.arange(48) % CLASSES


@pytest.fixture
def text(images: Tensor) -> tuple[TextFeatures, np.ndarray[Any, Any]]:
    """Classes of a zero-shot probe that the pretrained model recognises: directions of its own embeddings."""
    with torch.no_grad():
        embedded = image_embeddings(load_model("config:tiny").eval(), images)
    # Embeddings of random weights have most in common: the classes differ in the rest.
    common = nn.functional.normalize(embedded.mean(0), dim=-1)
    rest = embedded - (embedded @ common)[:, None] * common
    features = nn.functional.normalize(rest[:12], dim=-1)
    named = TextFeatures(features, tuple(f"class {i}" for i in range(12)), ("{class}",))
    predicted = (nn.functional.normalize(embedded, dim=-1) @ features.T).argmax(-1).numpy()
    # One in ten is wrong, so that the pretrained accuracy is no perfect one.
    return named, np.where(np.arange(len(images)) % 10 == 0, (predicted + 1) % 12, predicted)


def _train(
    model: ImageClassifier,
    images: Tensor,
    labels: Tensor,
    steps: int,
    after: Callable[[int], Any] = lambda step: None,
    loss: Callable[[], Any] = lambda: 0.0,
    first: int = 1,
    optimizer: torch.optim.Optimizer | None = None,
) -> torch.optim.Optimizer:
    optimizer = optimizer or torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], RATE)
    for step in range(first, first + steps):
        chosen = torch.randint(len(images), (16,), generator=torch.Generator().manual_seed(step))
        total = cross_entropy(model(images[chosen]).logits, labels[chosen]) + loss()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        after(step)
    return optimizer


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def _encoder(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if not name.startswith("classifier.")}


METHODS: list[tuple[str, dict[str, Any]]] = [
    ("full", {}),
    ("full", {"freeze_layers": 2}),
    ("full", {"train_projection": False}),
    ("lora", {"lora_rank": 2}),
    ("lora", {"lora_rank": 2, "train_projection": False}),
    ("last_block", {}),
]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("method", "settings"), METHODS)
def test_the_budget_is_kept_after_every_check(
    method: str, settings: dict[str, Any], images: Tensor, labels: Tensor
) -> None:
    model = _model(method, **settings)
    before = _weights(model)
    budget = Budget("embedding_drift", at_most=2e-4)
    monitor = DriftMonitor(model, images[:16])
    guard = Guard(monitor, budget, every=4, echo=None)
    seen: list[float] = []

    def after(step: int) -> None:
        guard.step(step)
        if guard.due(step):
            seen.append(monitor.measure().embedding_drift)

    _train(model, images, labels, 24, after)
    guard.finish()
    assert [event.step for event in guard.events] == [4, 8, 12, 16, 20, 24]
    assert max(seen) <= 2e-4
    assert any(event.action == "rewound" for event in guard.events)
    # Held at the budget, not far inside: there is something left of the training.
    assert monitor.measure().embedding_drift > 0.5e-4
    after_training = _weights(model)
    # The head has no pretrained counterpart: it has moved, and nobody pulled it back to where it began.
    assert not torch.equal(after_training["classifier.weight"], before["classifier.weight"])
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_guard_that_is_not_needed_leaves_the_training_bit_for_bit(
    method: str, images: Tensor, labels: Tensor, text: Any
) -> None:
    named, wanted = text
    plain, guarded = _model(method), _model(method)
    torch.manual_seed(3)
    _train(plain, images, labels, 12)

    def validate() -> float:
        guarded.eval()
        return float(torch.rand(()))

    guard = Guard(
        DriftMonitor(guarded, images[:8]),
        [Budget("cka_mean", at_least=0.0), Budget.retention(0.01, images, wanted, text_features=named)],
        every=3,
        validate=validate,
        echo=None,
    )
    torch.manual_seed(3)
    _train(guarded, images, labels, 12, guard.step)
    guard.finish()
    for name, value in _weights(plain).items():
        assert torch.equal(value, guarded.get_parameter(name)), name
    assert guard.summary()["outcome"] == "inactive"
    assert guard.summary()["cost_points"] is None
    assert all(module.training for module in guarded.modules())


@pytest.mark.one_in(3)
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("budget", [Budget("cka_mean", at_least=1.5), Budget("embedding_drift", at_most=1e-13)])
def test_a_budget_out_of_reach_gives_back_the_pretrained_weights(
    method: str, budget: Budget, images: Tensor, labels: Tensor
) -> None:
    model = _model(method)
    pretrained = load_model("config:tiny").eval()
    monitor = DriftMonitor(model, images[:16])
    lines: list[str] = []
    guard = Guard(monitor, budget, every=4, echo=lines.append)
    with guard:
        _train(model, images, labels, 10, guard.step)
    assert guard.infeasible
    assert "out of reach, so the pretrained weights are put back" in "\n".join(lines)
    assert "out of reach" in guard.report()
    model.eval()
    with torch.no_grad():
        assert torch.equal(model.embed(images), image_embeddings(pretrained, images))
    if method == "full":
        for name, value in pretrained.vision_model.named_parameters():
            assert torch.equal(value, model.backbone.vision_model.get_parameter(name)), name
        assert torch.equal(pretrained.visual_projection.weight, model.backbone.visual_projection.weight)


def test_a_pretrained_model_outside_is_seen_without_a_start_too(images: Tensor, labels: Tensor) -> None:
    model = _model()
    before = _encoder(_weights(model))
    guard = Guard(DriftMonitor(model, images[:8]), Budget("cka_mean", at_least=1.5), every=2, echo=None)
    _train(model, images, labels, 2, guard.step)
    assert [event.action for event in guard.events] == ["infeasible"]
    for name, value in _encoder(_weights(model)).items():
        assert torch.equal(value, before[name]), name


def test_after_giving_up_only_the_classifier_trains(images: Tensor, labels: Tensor) -> None:
    model = _model()
    guard = Guard(DriftMonitor(model, images[:8]), Budget("cka_mean", at_least=1.5), every=100, echo=None)
    guard.start()
    before = _weights(model)

    def after(step: int) -> None:
        guard.step(step)
        for name, value in _encoder(_weights(model)).items():
            assert torch.equal(value, before[name]), name

    _train(model, images, labels, 3, after)
    assert not torch.equal(model.classifier.weight, before["classifier.weight"])


def test_low_rank_updates_are_scaled_exactly(images: Tensor, labels: Tensor) -> None:
    model = _model("lora", lora_rank=2)
    interpolator = WeightInterpolator(DriftMonitor(model, images[:8]))
    _train(model, images, labels, 6)
    end, start = interpolator.state(), load_model("config:tiny")
    adapted = copy.deepcopy(model.model).merge_and_unload()
    whole = interpolator.distance()
    for alpha in (0.0, 0.25, 0.5, 0.8, 1.0):
        interpolator.interpolate(alpha, end)
        assert interpolator.distance() == pytest.approx(alpha * whole, rel=1e-4)
        merged = copy.deepcopy(model.model).merge_and_unload()
        for name, value in merged.vision_model.named_parameters():
            first, last = start.vision_model.get_parameter(name), adapted.vision_model.get_parameter(name)
            torch.testing.assert_close(value, torch.lerp(first, last, alpha), atol=1e-7, rtol=1e-6)
    for part, value in zip(interpolator.state(), end, strict=True):
        assert torch.equal(part, value)


def test_a_projection_saved_beside_adapters_has_its_own_way_back(images: Tensor) -> None:
    clip = load_model("config:tiny")
    before = clip.visual_projection.weight.detach().clone()
    config = LoraConfig(r=2, target_modules=r".*vision_model.*q_proj", modules_to_save=["visual_projection"])
    adapted = get_peft_model(clip, config)
    interpolator = WeightInterpolator(DriftMonitor(adapted, images[:8]))
    weight = adapted.get_base_model().visual_projection.modules_to_save["default"].weight
    with torch.no_grad():
        weight.add_(1.0)
    interpolator.interpolate(0.0, interpolator.state())
    assert torch.equal(weight, before)


def test_what_the_embedding_does_not_depend_on_is_not_guarded(images: Tensor) -> None:
    model = _model()
    names = WeightInterpolator(DriftMonitor(model, images[:8])).names
    assert names
    assert all("vision_model" in name or "visual_projection" in name for name in names)
    with pytest.raises(ValueError, match="nothing that the image embedding depends on is trained"):
        WeightInterpolator(DriftMonitor(_model("linear_probe"), images[:8]))


def test_merged_adapters_are_refused(images: Tensor) -> None:
    config = LoraConfig(r=2, target_modules=r".*vision_model.*q_proj")
    adapted = get_peft_model(load_model("config:tiny"), config)
    monitor = DriftMonitor(adapted, images[:8])
    adapted.merge_adapter()
    for parameter in adapted.parameters():
        parameter.requires_grad_(True)
    with pytest.raises(ValueError, match="is merged into the weights"):
        Guard(monitor, Budget("cka_mean", at_least=0.9))


# -- zero-shot retention -----------------------------------------------------------------------------


def test_retention_is_kept_with_confidence(images: Tensor, labels: Tensor, text: Any) -> None:
    named, wanted = text
    model = _model()
    budget = Budget.retention(0.8, images, wanted, text_features=named, confidence=0.9)
    guard = Guard(DriftMonitor(model, images[:8]), [budget, Budget("weight_drift", at_most=1.0)], every=5, echo=None)
    with guard:
        _train(model, images, labels, 30, guard.step)
    assert any(event.action == "rewound" for event in guard.events)
    for event in guard.events:
        retention = event.after[0]
        assert retention.value is not None
        assert retention.bound is not None
        assert retention.standard_error is not None
        assert 80 <= retention.bound <= retention.value
        assert retention.value - retention.bound == pytest.approx(1.2816 * retention.standard_error, rel=1e-3)


def test_the_standard_error_is_that_of_the_paired_ratio(images: Tensor, labels: Tensor, text: Any) -> None:
    named, wanted = text
    model = _model()
    meter = Budget.retention(0.5, images, wanted, text_features=named).against(model)
    before = meter._before
    untouched = meter.read(model)
    assert (untouched.value, untouched.standard_error, untouched.bound) == (pytest.approx(100.0), 0.0, 100.0)
    _train(model, images, labels, 30)
    reading = meter.read(model)
    now = meter.budget.probe.correct(model, meter.text)
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, len(now), (4000, len(now)))
    resampled = 100 * now[drawn].mean(1) / before[drawn].mean(1)
    assert reading.value == pytest.approx(100 * now.mean() / before.mean())
    assert reading.standard_error == pytest.approx(resampled.std(), rel=0.1)


def test_a_probe_that_the_pretrained_model_cannot_read_is_refused(images: Tensor, text: Any) -> None:
    named, wanted = text
    model = _model()
    budget = Budget.retention(0.9, images, (np.asarray(wanted) + 5) % 12, text_features=named)
    with pytest.raises(ValueError, match="below twice chance"):
        Guard(DriftMonitor(model, images[:8]), budget)


# -- the classifier follows ----------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_a_classifier_follows_its_embedding(bias: bool) -> None:
    """Scaled down, shifted and a little turned, an embedding is read as before; the layer stays near where it was."""
    generator = torch.Generator().manual_seed(0)
    before, fresh = (torch.randn(n, 8, generator=generator) for n in (60, 500))
    turn = torch.eye(8) + 0.2 * torch.randn(8, 8, generator=generator)
    shift = 2.0 * torch.ones(8) if bias else torch.zeros(8)
    torch.manual_seed(1)
    head = nn.Linear(8, 3, bias=bias)
    wanted = head(fresh).detach()
    moved = 0.4 * fresh @ turn + shift
    unread = (head(moved) - wanted).norm() / wanted.norm()
    follow(head, before, 0.4 * before @ turn + shift)
    assert (head(moved) - wanted).norm() / wanted.norm() < 0.3 * unread
    weight = head.weight.detach().clone()
    follow(head, before, before)
    torch.testing.assert_close(head.weight, nn.Parameter(weight))


def test_in_directions_that_no_image_shows_the_weights_stay() -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(5, 20, generator=generator)
    now = 0.5 * before
    head = nn.Linear(20, 3)
    start = head.weight.detach().clone()
    follow(head, before, now)
    seen = torch.linalg.svd(now - now.mean(0), full_matrices=True)
    unseen = seen.Vh[4:]
    torch.testing.assert_close((head.weight - start) @ unseen.T, torch.zeros(3, 16), atol=1e-5, rtol=0)
    assert (head.weight - start).norm() > 0.01


def test_what_is_taken_back_is_read_as_before(images: Tensor, labels: Tensor) -> None:
    disagreement = {}
    for with_head in (False, True):
        model = _model()
        monitor = DriftMonitor(model, images[:32])
        guard = Guard(
            monitor, Budget("embedding_drift", at_most=2e-4), every=100, head=model.classifier if with_head else None,
            echo=None,
        )  # fmt: skip
        _train(model, images, labels, 20, guard.step)
        with torch.no_grad():
            before = model.eval()(images).logits
            assert guard.check(20).action == "rewound"
            disagreement[with_head] = float((model(images).logits - before).norm())
    assert disagreement[True] < 0.85 * disagreement[False]


# -- what it says, keeps and resumes ----------------------------------------------------------------------


def test_every_action_is_a_line_a_row_and_part_of_the_report(tmp_path: Path, images: Tensor, labels: Tensor) -> None:
    model = _model()
    accuracies = iter([0.7, 0.6, 0.65, 0.5, 0.55, 0.5])
    lines: list[str] = []
    guard = Guard(
        DriftMonitor(model, images[:16]), Budget("embedding_drift", at_most=2e-4), every=10,
        validate=lambda: next(accuracies), folder=tmp_path / "run", echo=lines.append,
    )  # fmt: skip
    with guard:
        _train(model, images, labels, 10, guard.step)
    assert lines[0].startswith("guard at step 10: embedding_drift ")
    assert "validation accuracy 0.7000 to 0.6000" in lines[0]
    (row,) = pq.read_table(tmp_path / "run" / "guard.parquet").to_pylist()
    assert (row["run_id"], row["step"], row["action"], row["metric"]) == ("run", 10, "rewound", "embedding_drift")
    assert row["value"] <= row["limit"] < row["value_before"]
    assert 0 < row["alpha"] < 1
    told = guard.summary()
    assert told["cost_points"] == pytest.approx(10.0)
    assert "a cost of 10.0 points" in guard.report()


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("accuracies", "step", "cost"),
    [
        # Before and after each of three rewinds, five steps apart.
        ((0.70, 0.65, 0.75, 0.74, 0.84, 0.83), 5, 5.0),
        ((0.30, 0.29, 0.60, 0.52, 0.84, 0.83), 10, 8.0),
        ((0.50, 0.50, 0.60, 0.61, 0.70, 0.72), 5, 0.0),
        ((0.20, 0.25, 0.30, 0.34, 0.40, 0.49), 10, -4.0),
        ((0.00, 0.10, 0.10, 0.05, 0.90, 0.90), 10, 5.0),
        ((0.90, 0.80, 0.00, 0.00, 0.00, 0.00), 5, 10.0),
    ],
)
def test_the_cost_compares_one_step_before_and_after(
    accuracies: tuple[float, ...], step: int, cost: float, images: Tensor
) -> None:
    model, given = _model(), iter(accuracies)
    guard = Guard(
        DriftMonitor(model, images[:16]), Budget("embedding_drift", at_most=0.01), every=5,
        validate=lambda: next(given), echo=None,
    )  # fmt: skip
    for checked in (5, 10, 15):
        with torch.no_grad():
            for parameter in model.backbone.vision_model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(checked)))
        guard.check(checked)
    assert [event.action for event in guard.events] == ["rewound"] * 3
    told = guard.summary()
    assert (told["cost_step"], told["cost_points"]) == (step, pytest.approx(cost))
    assert (told["accuracy_outside"], told["accuracy_inside"]) == accuracies[step // 5 * 2 - 2 : step // 5 * 2]
    assert told["accuracy"] == accuracies[-1]
    assert f"at step {step}: " in guard.report()
    assert f"a {'cost' if cost >= 0 else 'gain'} of {abs(cost):.1f} points" in guard.report()


def test_no_check_comes_before_the_first(images: Tensor, labels: Tensor) -> None:
    model = _model()
    guard = Guard(DriftMonitor(model, images[:8]), Budget("cka_mean", at_least=0.0), every=2, first=5, echo=None)
    with guard:
        _train(model, images, labels, 9, guard.step)
    assert [event.step for event in guard.events] == [6, 8, 9]


def test_without_a_validation_function_the_cost_is_not_known(images: Tensor, labels: Tensor) -> None:
    model = _model()
    guard = Guard(DriftMonitor(model, images[:16]), Budget("embedding_drift", at_most=2e-4), every=5, echo=None)
    with guard:
        _train(model, images, labels, 5, guard.step)
    assert guard.summary()["cost_points"] is None
    assert guard.summary()["why_no_cost"] == "no validation function was given"


def test_the_best_checked_state_is_put_back_and_patience_ends(images: Tensor, labels: Tensor) -> None:
    model = _model()
    accuracies = iter([0.5, 0.8, 0.7, 0.6])
    states: dict[int, dict[str, Tensor]] = {}
    guard = Guard(
        DriftMonitor(model, images[:8]), Budget("cka_mean", at_least=0.0), every=2,
        validate=lambda: next(accuracies), keep_best=True, patience=2, echo=None,
    )  # fmt: skip

    def after(step: int) -> None:
        states[step] = _weights(model)
        guard.step(step)

    _train(model, images, labels, 8, after)
    assert guard.should_stop
    guard.finish()
    assert guard.events[-1].action == "best"
    for name, value in states[4].items():
        assert torch.equal(value, model.get_parameter(name)), name


def test_a_protection_counts_more_while_the_budget_is_crossed(images: Tensor, labels: Tensor) -> None:
    model = _model()
    with AttentionPreservation(model, weight=0.5) as preserve:
        guard = Guard(
            DriftMonitor(model, images[:16]), Budget("embedding_drift", at_most=2e-4), every=5, preserve=preserve, echo=None
        )  # fmt: skip
        _train(model, images, labels, 5, guard.step, preserve)
        assert preserve.weight == 1.0
        assert guard.limits.lr_scale < 1


def test_a_lower_rate_is_that_of_the_optimizer(images: Tensor, labels: Tensor) -> None:
    """Taking back three quarters of each step is AdamW at a quarter of its rate, momentum and decay included."""
    ours, theirs = _model(), _model()
    interpolator = WeightInterpolator(DriftMonitor(ours, images[:8]))
    previous = [interpolator.state()]

    def after(step: int) -> None:
        interpolator.scale_step(previous[0], 0.25)
        previous[0] = interpolator.state()

    _train(ours, images, labels, 5, after)
    encoder = [p for name, p in theirs.named_parameters() if p.requires_grad and not name.startswith("classifier.")]
    groups = [{"params": encoder, "lr": RATE / 4}, {"params": list(theirs.classifier.parameters())}]
    _train(theirs, images, labels, 5, optimizer=torch.optim.AdamW(groups, RATE))
    start = _weights(_model())
    for name, value in _weights(theirs).items():
        # The gradient of a key's bias is zero up to rounding, which AdamW divides by itself.
        if not name.endswith("k_proj.bias"):
            moved = (value - start[name]).norm()
            assert (ours.get_parameter(name) - value).norm() <= 1e-3 * moved, name


def test_a_resumed_guard_goes_on_as_if_nothing_had_happened(images: Tensor, labels: Tensor) -> None:
    def guarded() -> tuple[ImageClassifier, Guard]:
        model = _model()
        return model, Guard(DriftMonitor(model, images[:16]), Budget("embedding_drift", at_most=2e-4), 4, echo=None)

    whole, one = guarded()
    optimizer = _train(whole, images, labels, 10, one.step)
    weights, moments, state = _weights(whole), copy.deepcopy(optimizer.state_dict()), copy.deepcopy(one.state_dict())
    _train(whole, images, labels, 10, one.step, first=11, optimizer=optimizer)
    resumed, two = guarded()
    with torch.no_grad():
        for name, parameter in resumed.named_parameters():
            parameter.copy_(weights[name])
    optimizer = torch.optim.AdamW([p for p in resumed.parameters() if p.requires_grad], RATE)
    optimizer.load_state_dict(moments)
    two.load_state_dict(state)
    _train(resumed, images, labels, 10, two.step, first=11, optimizer=optimizer)
    assert two.state_dict() == one.state_dict()
    for name, value in _weights(whole).items():
        assert torch.equal(value, resumed.get_parameter(name)), name


# -- with the watch and the trainer -----------------------------------------------------------------


def test_a_watch_carries_the_guard(tmp_path: Path, images: Tensor, labels: Tensor) -> None:
    model = _model()
    monitor = DriftMonitor(model, images[:16])
    guard = Guard(monitor, Budget("embedding_drift", at_most=2e-4), every=4, echo=None)
    # The alert sees guarded states only.
    alert = Alert("embedding_drift", above=2e-4)
    with DriftWatch(monitor, every=4, alerts=[alert], folder=tmp_path / "drift", guard=guard, echo=None) as watch:
        _train(model, images, labels, 10, watch.step)
    assert not watch.alerts
    assert [event.step for event in guard.events] == [4, 8, 10]
    table = pq.read_table(tmp_path / "drift" / "guard.parquet")
    assert set(table["run_id"].to_pylist()) == {"drift"}
    final = pq.read_table(tmp_path / "drift" / "runs.parquet")["embedding_drift"].to_pylist()[0]
    assert final == monitor.measure().embedding_drift <= 2e-4


def _trainer(
    tmp_path: Path, images: Tensor, labels: Tensor, steps: int
) -> tuple[Trainer, DriftCallback, ImageClassifier]:
    model = _model()
    monitor = DriftMonitor(model, images[:16])
    guard = Guard(monitor, Budget("embedding_drift", at_most=2e-4), every=3, echo=None)
    callback = DriftCallback(monitor, every=3, guard=guard, echo=None)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=steps, per_device_train_batch_size=8, learning_rate=RATE, report_to="none",
        save_strategy="steps", save_steps=5, logging_strategy="no", disable_tqdm=True, use_cpu=True,
        remove_unused_columns=False, dataloader_pin_memory=False, lr_scheduler_type="constant", seed=0,
    )  # fmt: skip
    data = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    trainer = Trainer(model, arguments, train_dataset=data)
    return trainer, callback.attach(trainer), model


def test_the_trainer_keeps_the_budget_and_resumes_it(tmp_path: Path, images: Tensor, labels: Tensor) -> None:
    trainer, callback, model = _trainer(tmp_path, images, labels, 10)
    trainer.train()
    assert callback.guard is not None
    assert [event.step for event in callback.guard.events] == [3, 6, 9, 10]
    assert max(drift.embedding_drift for _, drift in callback.drift) <= 2e-4
    assert any("guard/embedding_drift" in entry for entry in trainer.state.log_history)
    resumed, again, other = _trainer(tmp_path, images, labels, 10)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert again.guard is not None
    assert again.guard.events == callback.guard.events
    for name, value in _weights(model).items():
        assert torch.equal(value, other.get_parameter(name)), name


def test_impossible_guards_are_refused(images: Tensor, text: Any) -> None:
    named, wanted = text
    monitor = DriftMonitor(_model(), images[:8])
    for make, message in (
        (lambda: Budget("cka_men", at_least=0.9), "did you mean"),
        (lambda: Budget("cka_mean"), "give at_least="),
        (lambda: Budget("cka_mean", at_least=0.9, at_most=0.8), "lies above"),
        (lambda: Budget.retention(90, images, wanted, text_features=named), "0.9 for 90%"),
        (lambda: Budget.retention(0.9, iter([images]), wanted, text_features=named), "read again"),  # type: ignore[arg-type]
        (lambda: Guard(monitor, []), "nothing to keep"),
        (lambda: Guard(monitor, Budget("cka_mean", at_least=0.9), head=nn.Identity()), "only a linear layer"),  # type: ignore[arg-type]
        (lambda: Guard(monitor, Budget("cka_mean", at_least=0.9), keep_best=True), "give validate="),
        (lambda: Guard(monitor, Budget("cka_mean", at_least=0.9), every=0), "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
