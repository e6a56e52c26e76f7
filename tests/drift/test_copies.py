"""What observes a model may be pickled and copied with it: the copy works, and nothing of the observation lives in it."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from transformers import CLIPModel, TrainerCallback

from attndrift import Budget, Guard, observe
from attndrift.callbacks import DriftCallback
from attndrift.drift import Alert, AlertEvent, DriftMonitor, DriftWatch
from attndrift.losses import AttentionCache, AttentionPreservation, EntropyFloor, PreservationLossError
from attndrift.models import load_model
from training_loops import Classifier, trainer_of


@pytest.fixture
def clip() -> CLIPModel:
    torch.manual_seed(0)
    return load_model("config:tiny")


@pytest.fixture
def images() -> Tensor:
    return torch.randn(8, 3, 28, 28, generator=torch.Generator().manual_seed(1))


# -- a model that is watched ---------------------------------------------------------------------------


def _deepcopied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def _saved(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _pickled(model: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(model))


def _pickled_by_python(model: nn.Module) -> Any:
    file = io.BytesIO()
    pickle._Pickler(file).dump(model)  # type: ignore[attr-defined]  # as dill and cloudpickle go on from
    return pickle.loads(file.getvalue())


def _averaged(model: nn.Module) -> Any:
    return AveragedModel(model).module


def _twice(model: nn.Module) -> nn.Module:
    return copy.deepcopy(_pickled(model))


COPIES = [_deepcopied, _saved, _pickled, _pickled_by_python, _averaged, _twice]


@contextmanager
def _observed(model: nn.Module, images: Tensor) -> Iterator[None]:
    with observe(model, gradients=True, hidden=True):
        model.get_image_features(pixel_values=images)  # type: ignore[operator]
        yield


@contextmanager
def _observed_twice(model: nn.Module, images: Tensor) -> Iterator[None]:
    with observe(model), observe(model, full_maps=True):
        yield


@contextmanager
def _preserved(model: nn.Module, images: Tensor) -> Iterator[None]:
    with AttentionPreservation(model, 0.5):
        model.get_image_features(pixel_values=images)  # type: ignore[operator]
        yield


@contextmanager
def _cached(model: nn.Module, images: Tensor) -> Iterator[None]:
    with AttentionPreservation(model, 0.5, teacher=AttentionCache(model, images)):
        yield


@contextmanager
def _held(model: nn.Module, images: Tensor) -> Iterator[None]:
    """The loss is an attribute of the model, as in a module of Lightning."""
    model.preserve = EntropyFloor(model, 0.5, probe=images)  # type: ignore[assignment]
    yield
    model.preserve.close()  # type: ignore[operator]
    del model.preserve


@contextmanager
def _monitored(model: nn.Module, images: Tensor) -> Iterator[None]:
    model.monitor = DriftMonitor(model, images)  # type: ignore[assignment]
    with DriftWatch(model.monitor, alerts=[Alert("cka_mean", below=0, action="stop")], echo=None):
        yield
    del model.monitor


WATCHERS = [_observed, _observed_twice, _preserved, _cached, _held, _monitored]
_KINDS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip


def _hooks(model: nn.Module) -> dict[str, list[int]]:
    return {
        f"{name}.{kind}": list(getattr(module, kind))
        for name, module in model.named_modules()
        for kind in _KINDS
        if getattr(module, kind)
    }


@pytest.mark.one_in(5)
@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("watcher", WATCHERS)
def test_a_copy_of_a_watched_model_works_and_has_none_of_its_hooks(
    clip: CLIPModel, images: Tensor, watcher: Any, copied: Callable[[nn.Module], Any]
) -> None:
    seen: list[int] = []
    own = clip.vision_model.register_forward_hook(_Counts(seen))
    expected = clip.get_image_features(pixel_values=images).pooler_output
    with watcher(clip, images):
        during = copied(clip)
    after = copied(clip)
    for made in (during, after):
        assert list(_hooks(made)) == ["vision_model._forward_hooks"], "what the user has registered is kept"
        assert torch.equal(made.get_image_features(pixel_values=images).pooler_output, expected)
        made.get_image_features(pixel_values=images).pooler_output.sum().backward()
        with observe(made) as seen_again:
            made.get_image_features(pixel_values=images)
        assert len(seen_again.attention) == 3
    own.remove()
    assert _hooks(clip) == {}
    assert not any(vars(getattr(module, kind)) for module in clip.modules() for kind in _KINDS)


class _Counts:
    def __init__(self, seen: list[int]) -> None:
        self.seen = seen

    def __call__(self, *_: Any) -> None:
        self.seen.append(1)


def test_a_pickled_model_calls_new_hooks_as_they_are_registered(clip: CLIPModel, images: Tensor) -> None:
    """The numbers of hooks begin anew in another process: what is noted of the old ones would be taken for the new ones."""
    with observe(clip, hidden=True):
        made = _pickled(clip)
    numbers = {number for module in clip.modules() for kind in _KINDS for number in getattr(module, kind)}
    assert numbers == set()
    assert all(not getattr(module, kind) for module in made.modules() for kind in _KINDS)


def test_the_copy_of_a_loss_says_that_it_watches_nothing(clip: CLIPModel, images: Tensor) -> None:
    preserve = AttentionPreservation(clip, 0.5)
    clip.get_image_features(pixel_values=images)
    for made in (copy.deepcopy(preserve), pickle.loads(pickle.dumps(preserve))):
        for arguments in ((), (clip,)):
            with pytest.raises(PreservationLossError, match=r"copied or unpickled with its model.* make a new one"):
                made(*arguments)
        made.close()
    assert preserve().requires_grad


def test_a_model_may_be_saved_in_the_middle_of_a_preserved_training(
    clip: CLIPModel, images: Tensor, tmp_path: Path
) -> None:
    made: list[Any] = []

    class Save(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            made.append(_saved(model))

    model = Classifier(clip)
    callback = DriftCallback(DriftMonitor(model, images), preserve=AttentionPreservation(model, 1.0), echo=None)
    trainer_of(model, images, tmp_path, callback, Save()).train()
    assert len(made) == 4
    assert all(_hooks(one) == {} for one in made)
    assert made[-1](images, torch.zeros(8, dtype=torch.long))["loss"].requires_grad


# -- monitor, watch and callback -----------------------------------------------------------------------


def at_top(event: AlertEvent) -> None:
    """An action that pickle finds by name."""


def _embedding(clip: CLIPModel, images: Tensor) -> DriftMonitor:
    model = Classifier(clip)
    return DriftMonitor(model, images, embed=model.embed)


def probe_at_top() -> list[Tensor]:
    return [torch.randn(8, 3, 28, 28, generator=torch.Generator().manual_seed(1))]


def no_weights() -> tuple[float, None]:
    return 0.5, None


def _lora(clip: nn.Module) -> Any:
    return get_peft_model(clip, LoraConfig(r=2, target_modules=r".*vision_model.*\.(q_proj|v_proj)"))


MONITORS: dict[str, Callable[[CLIPModel, Tensor], DriftMonitor]] = {
    "tensor": lambda clip, images: DriftMonitor(clip, images),
    "list": lambda clip, images: DriftMonitor(clip, list(images)),
    "function": lambda clip, images: DriftMonitor(clip, probe_at_top),
    "adapters": lambda clip, images: DriftMonitor(_lora(clip), images),
    "weights": lambda clip, images: DriftMonitor(clip, images, weight_drift=no_weights),
    "embed": _embedding,
    "reference": lambda clip, images: DriftMonitor(clip, images, reference=copy.deepcopy(clip)),
}


@pytest.mark.one_in(4)
@pytest.mark.parametrize("copied", [copy.deepcopy, _pickled, _saved])
@pytest.mark.parametrize("made", MONITORS)
def test_a_monitor_goes_with_its_model(clip: CLIPModel, images: Tensor, made: str, copied: Any) -> None:
    monitor = MONITORS[made](clip, images)
    with torch.no_grad():
        monitor.model.get_parameter(next(n for n, p in monitor.model.named_parameters() if "layers.1" in n)).add_(0.1)
    there = copied(monitor)
    assert there.model is not monitor.model
    assert there.measure().values() == monitor.measure().values()
    with torch.no_grad():
        for parameter in there.model.parameters():
            parameter.mul_(1.1)
    if made != "weights":
        assert there.measure().weight_drift > monitor.measure().weight_drift


def _watch(clip: CLIPModel, images: Tensor, **options: Any) -> Any:
    return DriftWatch(DriftMonitor(clip, images), **({"echo": None} | options))


def _callback(clip: CLIPModel, images: Tensor, **options: Any) -> Any:
    return DriftCallback(DriftMonitor(clip, images), **options)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("copied", [copy.deepcopy, _pickled, _saved])
@pytest.mark.parametrize("make", [_watch, _callback])
def test_a_watch_and_a_callback_go_on_where_they_were(
    clip: CLIPModel, images: Tensor, tmp_path: Path, make: Any, copied: Any
) -> None:
    alerts = [Alert("cka_mean", below=0.0, action="stop"), Alert("weight_drift", above=9.0, action=at_top)]
    made = make(clip, images, every=2, alerts=alerts, folder=tmp_path / "drift", on_drift=None, existing="replace")
    watch = getattr(made, "watch", made)
    watch.start()
    watch.step(2)
    there = copied(made)
    watch = getattr(there, "watch", there)
    with torch.no_grad():
        watch.monitor.model.visual_projection.weight.mul_(1.2)
    watch.step(4)
    watch.finish(4)
    assert [step for step, _ in there.drift] == [0, 2, 4]
    assert watch.best_step == 4
    assert [step for step, _ in made.drift] == [0, 2]


def test_a_pickled_callback_is_attached_anew(clip: CLIPModel, images: Tensor, tmp_path: Path) -> None:
    model = Classifier(clip)
    preserve = AttentionPreservation(model, 1.0)
    callback = DriftCallback(DriftMonitor(model, images), every=2, echo=None)
    preserved = DriftCallback(DriftMonitor(model, images), preserve=preserve, echo=None)
    trainer_of(model, images, tmp_path, callback).train()
    there = _pickled(callback)
    trainer_of(there.monitor.model, images, tmp_path, there).train()
    assert [step for step, _ in there.drift] == [0, 2, 4]
    with pytest.raises(PreservationLossError, match="make a new one"):
        _pickled(preserved).preserve()


FUNCTIONS: dict[str, Callable[[CLIPModel, Tensor], Any]] = {
    "DriftMonitor: `embed`": lambda clip, images: DriftMonitor(
        clip, images, embed=lambda pixels: clip.get_image_features(pixel_values=pixels).pooler_output
    ),
    "DriftMonitor: `probe`": lambda clip, images: DriftMonitor(clip, lambda: [images]),
    "DriftMonitor: `weight_drift`": lambda clip, images: DriftMonitor(clip, images, weight_drift=lambda: (0.0, None)),
    "DriftWatch: `on_drift`": lambda clip, images: _watch(clip, images, on_drift=lambda *_: None),
    "DriftWatch: `echo`": lambda clip, images: _watch(clip, images, echo=lambda _: None),
    "DriftCallback: `on_drift`": lambda clip, images: _callback(clip, images, on_drift=lambda *_: None),
    "Alert: `action`": lambda clip, images: _watch(clip, images, alerts=[Alert("cka_mean", below=0.5, action=lambda _: 1)]),
}  # fmt: skip


@pytest.mark.parametrize("what", FUNCTIONS)
def test_a_function_that_pickle_cannot_find_is_named(clip: CLIPModel, images: Tensor, what: str) -> None:
    made = FUNCTIONS[what](clip, images)
    with pytest.raises(TypeError, match=rf"{what} is .*<lambda>.* at the top of a module"):
        pickle.dumps(made)
    copy.deepcopy(made)


def measured_elsewhere(monitor: DriftMonitor, found: Any) -> None:
    """Run in a spawned process."""
    torch.set_num_threads(1)
    found.put(monitor.measure().values())


@pytest.mark.slow
def test_a_spawned_worker_measures_what_its_parent_measures(clip: CLIPModel, images: Tensor) -> None:
    monitor = DriftMonitor(clip, images)
    with torch.no_grad():
        clip.visual_projection.weight.mul_(1.2)
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    worker = context.Process(target=measured_elsewhere, args=(monitor, found))
    worker.start()
    there = found.get(timeout=300)
    worker.join()
    here = monitor.measure().values()
    assert {name for name in here if here[name] is None} == {name for name in there if there[name] is None}
    assert [value for value in there.values() if value is not None] == pytest.approx(
        [value for value in here.values() if value is not None], rel=1e-6, abs=1e-9
    )


def test_a_guard_is_pickled() -> None:
    pixels = torch.randn(8, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    guard = Guard(DriftMonitor(load_model("config:tiny"), pixels), Budget("weight_drift", at_most=0.1))
    copied = pickle.loads(pickle.dumps(guard))
    assert copied.meter.pretrained == guard.meter.pretrained
    assert copied.summary() == guard.summary()
