"""The monitor: a model against a reference state on a fixed probe set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from attndrift.attention.families import find_vision_tower
from attndrift.drift.drift import Drift, Snapshot
from attndrift.drift.probe import Batches, Probe, batches_of
from attndrift.drift.snapshot import WeightDrift, begin_snapshot
from attndrift.metrics.deferred import DeferredScalars
from attndrift.metrics.weights import squared_norm_deferred, weight_drift_deferred
from attndrift.models.embedding import image_embeddings
from attndrift.models.evaluation import preserve_state, unwrapped
from attndrift.models.module_utils import named_modules
from attndrift.models.parameters import bare, bare_parameters, has_adapters, live_parameters
from attndrift.process_group import Processes


class DriftMonitor:
    """Measures a model against a reference state on a fixed probe set, whenever it is called.

    ::

        monitor = DriftMonitor(model, probe_images)
        ...                                     # any training
        print(monitor.measure().line())

    Nothing of the model or of the training is touched: parameters, gradients, training flags and the random
    states stay as they are. Works with ``peft`` adapters, frozen parts, gradient checkpointing, ``torch.compile``
    and ``autocast``, whose precision is left aside: a measurement runs in that of the weights.

    Where ``torch.distributed`` is initialised by the time of a measurement, every process must measure; each takes
    its share of the images and all get the same result, that of one process alone.

    Args:
        model: any module with one vision transformer inside that :func:`attndrift.observe` can see into.
        probe: the probe images, normalised as the model takes them: one tensor (images, 3, height, width); what an
            image processor returns; a list, dataset or ``DataLoader``, whose images are read once and kept; or a
            callable that yields batches, the same ones at each call. In each process the same ones.
        reference: the state to measure against: a :class:`Snapshot` of the same images, or a model. By default
            the model as it is now, without its ``peft`` adapters: the bare model.
        embed: images to embeddings, of the live model; by default as the model's family has it.
        weight_drift: returns (vision transformer, projection) drift; by default the parameters of the vision
            tower, and of a module called ``visual_projection`` if there is one, against the reference model's
            (the present bare ones where ``reference`` is a snapshot). Takes a copy of them.
        batch_size: images a forward pass, where ``probe`` is one tensor.
        distributed: False measures in this process alone whatever process group there is.

    Raises:
        ObservationError: a model that cannot be observed.
        TypeError: a probe of something else than normalised images.
        ValueError: merged adapters, sharded parameters, an empty probe set, or a reference of another shape.
        DivergedError: a reference whose hidden states or embeddings are not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Probe,
        *,
        reference: Snapshot | nn.Module | None = None,
        embed: Callable[[Tensor], Tensor] | None = None,
        weight_drift: WeightDrift | None = None,
        batch_size: int = 200,
        distributed: bool = True,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.model = unwrapped(model)
        self._distributed = distributed
        self._embed = embed
        modules = named_modules(self.model)
        _refuse_sharded(modules)
        # As many images at a time in each process, and they may become more than one after this.
        self._batches: Batches = batches_of(probe, lambda: batch_size * self.processes.count, self.model)
        origin, values = self.model, bare_parameters
        if isinstance(reference, Snapshot):
            self.reference = reference
            self._weight_drift = weight_drift or _ParameterDrift(self.model, origin, values)
            return
        if reference is None:
            with bare(self.model, modules):
                under_way = begin_snapshot(self.model, self._batches(), embed, processes=self.processes)
        else:
            if embed is not None:
                raise ValueError("embed belongs to the live model: with it, give the reference as a Snapshot")
            origin, values = unwrapped(reference), _computed_parameters
            under_way = begin_snapshot(origin, self._batches(), processes=self.processes)
        with under_way.meanwhile():
            self._weight_drift = weight_drift or _ParameterDrift(self.model, origin, values)
        self.reference = under_way.read()

    @property
    def processes(self) -> Processes:
        """The processes that measure together, as they are now: a trainer may start them after this was made."""
        return Processes.current() if self._distributed else Processes()

    def measure(self) -> Drift:
        """Measure now. Raises :class:`DivergedError` where the model has left the finite numbers."""
        return measure_drift(
            self.reference, self.model, self._batches(), self._weight_drift, self._embed, processes=self.processes
        )

    def embeddings(self) -> Tensor:
        """What the model makes of the probe images now: (images, dimensions), float32, on the CPU; all in every process."""
        weight = next(p for p in find_vision_tower(self.model).module.parameters() if p.is_floating_point())
        embed = self._embed or partial(image_embeddings, self.model)
        processes, rows, sizes = self.processes, list[Tensor](), list[int]()
        with preserve_state(self.model), processes.agreeing():
            for batch in self._batches():
                part, _ = processes.share(batch, sum(sizes))
                rows.append(embed(part.to(weight.device, weight.dtype)).float().cpu())
                sizes.append(len(batch))
        return processes.join(torch.cat(rows), sizes)

    def embedding_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters of the model that the embedding of an image depends on, by name.

        Asked of the graph of one probe image: a classifier behind the embedding is not among them, nor a text tower.
        """
        trained = {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        if not trained:
            return {}
        weight = next(p for p in find_vision_tower(self.model).module.parameters() if p.is_floating_point())
        with preserve_state(self.model):
            pixels = next(iter(self._batches()))[:1].to(weight.device, weight.dtype)
            with torch.enable_grad():
                embedded = (self._embed or partial(image_embeddings, self.model))(pixels)
                if not embedded.requires_grad:
                    return {}
                gradients = torch.autograd.grad(embedded.sum(), list(trained.values()), allow_unused=True)
        return {name: trained[name] for name, found in zip(trained, gradients, strict=True) if found is not None}


def measure_drift(
    reference: Snapshot,
    model: nn.Module,
    batches: Iterable[Tensor],
    weight_drift: WeightDrift,
    embed: Callable[[Tensor], Tensor] | None = None,
    *,
    processes: Processes | None = None,
) -> Drift:
    """How far ``model`` is from ``reference``, a snapshot of the same images.

    Args and Raises: as for :func:`take_snapshot`, and what ``weight_drift`` raises.
    """
    return begin_snapshot(model, batches, embed, processes=processes).drift(reference, weight_drift)


def _refuse_sharded(modules: Mapping[nn.Module, str]) -> None:
    for module, name in modules.items():
        for own, parameter in module._parameters.items():
            # A parameter made of a DTensor is one.
            if parameter is not None and (type(parameter).__name__ == "DTensor" or hasattr(parameter, "ds_id")):
                raise ValueError(
                    f"{name}{'.' if name else ''}{own} is sharded over processes (FSDP, tensor parallelism or ZeRO stage 3), "
                    "and its drift cannot be measured; train with DistributedDataParallel, or measure checkpoints"
                )


def _computed_parameters(module: nn.Module) -> dict[str, Tensor]:
    values = live_parameters(module, {})
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _projection(model: nn.Module) -> nn.Module | None:
    found = [part for part, name in named_modules(model).items() if name.rpartition(".")[2] == "visual_projection"]
    return found[0] if len(found) == 1 else None


class _ParameterDrift:
    """Weight drift of the vision tower and of the projection, against copies of the parameters of ``origin``."""

    def __init__(self, model: nn.Module, origin: nn.Module, values: Callable[[nn.Module], dict[str, Tensor]]) -> None:
        self._model = model
        projection = _projection(origin)
        parts = [find_vision_tower(origin).module] + ([] if projection is None else [projection])
        self._before = [{name: value.clone() for name, value in values(part).items()} for part in parts]
        deferred = DeferredScalars()
        norms = [squared_norm_deferred(part, deferred) for part in self._before]
        self._norms = [norm() for norm in norms]
        if origin is not model or has_adapters(model):
            self()  # a reference of other shapes, or an adapter that cannot be told, is an error now, not at the first measurement

    def __call__(self) -> tuple[float, float | None]:
        projection = _projection(self._model)
        parts = [find_vision_tower(self._model).module] + ([] if projection is None else [projection])
        deferred = DeferredScalars()
        # Without a projection on either side, the tower alone.
        tower, *others = [
            weight_drift_deferred(before, live_parameters(part, before), deferred, pretrained_squared_norm=norm)
            for part, before, norm in zip(parts, self._before, self._norms, strict=False)
        ]
        return tower(), (others[0]() if others else None)
