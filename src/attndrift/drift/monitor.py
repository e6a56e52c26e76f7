"""The monitor: a model against a reference state on a fixed probe set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from attndrift.drift.activation_change import ActivationChange
from attndrift.drift.alerts import logger
from attndrift.drift.coverage import Training, describe_unmeasured, unmeasured_parts
from attndrift.drift.drift import Drift, Snapshot
from attndrift.drift.knn_retention import KNNRetention
from attndrift.drift.measured_model import MeasuredModel
from attndrift.drift.probe import Probe, read_probe, refuse_few
from attndrift.drift.snapshot import begin_snapshot
from attndrift.drift.text_drift import FixedTexts, TextDrift
from attndrift.drift.weight_drift import ParameterDrift, WeightDrift, computed_parameters
from attndrift.extras import importing
from attndrift.metrics.representation import cross_layer_cka
from attndrift.models.checksum import checksums
from attndrift.models.evaluation import same_random_state
from attndrift.models.input_images import checked_images
from attndrift.models.parameters import bare, bare_parameters
from attndrift.models.pickling import Picklable
from attndrift.process_group import Processes


class DriftMonitor(Picklable):
    """Measures a model against a reference state on a fixed probe set, whenever it is called.

    ::

        monitor = DriftMonitor(model, probe_images)
        ...                                     # any training
        print(monitor.measure().line())

    Nothing of the model or of the training is touched: parameters, gradients, training flags and the random
    states stay as they are. Works with ``peft`` adapters, frozen parts, gradient checkpointing, ``torch.compile``
    and ``autocast``, whose precision is left aside: a measurement runs in that of the weights. What is trained and not
    measured, as a text tower without ``text``, is warned of. A monitor can be pickled, with its model and its probe images.

    Where ``torch.distributed`` is initialised by the time of a measurement, every process must measure; each takes
    its share of the images and all get the same result, that of one process alone.

    Args:
        model: any module with one vision transformer inside that :func:`attndrift.observe` can see into.
        probe: the probe images, normalised as the model takes them: one tensor (images, 3, height, width); what an
            image processor returns; a list, dataset or ``DataLoader``, whose images are read once and kept; or a
            callable that yields batches, the same ones at each call. In each process the same ones. At least 4
            different images.
        reference: the state to measure against: a :class:`Snapshot` of the same images, or a model. By default
            the model as it is now, without its ``peft`` adapters: the bare model.
        embed: images to embeddings, of the live model; by default as the model's family has it.
        weight_drift: function that returns (tower drift, projection drift). By default the vision tower, and
            ``visual_projection`` if present, are compared with a copy of the reference's weights; if ``reference`` is a
            snapshot, with the current bare weights. With a function of your own there are no warnings about parts that
            are not measured.
        batch_size: images a forward pass, where ``probe`` is one tensor.
        text: measures the text side of the model; :class:`FixedTexts` where that is not trained, for the modality gap alone.
        activations: measures what the changed weights change in the outputs of linear layers; not measured without.
        knn: measures k-NN accuracy on labelled images, which needs no text tower; not measured without.
        distributed: False measures in this process alone whatever process group there is.

    Attributes:
        reference: the state to measure against.
        text: as given.
        measured: what has been measured, by step; by number where the steps were not said.
        reference_checksums: of the reference's parameters whose weight drift is not measured, by name; empty where it is a
            snapshot.

    Raises:
        ObservationError: a model that cannot be observed.
        TypeError: a probe of something else than normalised images.
        ValueError: merged adapters, sharded parameters, fewer than 4 different probe images, or a reference of another
            shape.
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
        text: TextDrift | FixedTexts | None = None,
        activations: ActivationChange | None = None,
        knn: KNNRetention | None = None,
        distributed: bool = True,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        if knn is not None and not isinstance(knn, KNNRetention):
            raise TypeError(
                f"knn is a {type(knn).__name__}; it must be a KNNRetention: knn=KNNRetention(model, (queries, labels), "
                "(bank, bank_labels))"
            )
        measured = MeasuredModel.of(model)
        _refuse_sharded(measured.modules)
        self.model = self.trained = measured.model
        self.measured: dict[int, Drift] = {}
        self._batch_size, self._distributed = batch_size, distributed
        self._embed, self.text, self._activations, self._knn = embed, text, activations, knn
        with same_random_state(self.model):
            self._probe = read_probe(probe)
        self._training = Training(self.model)
        self._warns, self._warned_of = weight_drift is None, frozenset[nn.Parameter]()
        # Of the weights that no copy is kept of, as of a text tower, at least whether they are still those.
        self.reference_checksums: Mapping[str, int] = {}
        origin, values = measured, bare_parameters
        if isinstance(reference, Snapshot):
            self._check_against(reference)
            self.reference = reference
            self._weight_drift = weight_drift or ParameterDrift(measured, origin, values, known=False)
            refuse_few(self.reference.hidden)
            return
        if reference is None:
            with bare(measured.model, measured.modules):
                under_way = begin_snapshot(
                    measured, checked_images(self._batches(), "probe"), embed, processes=self.processes
                )
        else:
            if embed is not None:
                raise ValueError("embed belongs to the live model: with it, give the reference as a Snapshot")
            origin, values = MeasuredModel.of(reference), computed_parameters
            under_way = begin_snapshot(origin, checked_images(self._batches(), "probe"), processes=self.processes)
        with under_way.meanwhile():
            self._weight_drift = weight_drift or ParameterDrift(measured, origin, values)
        self.reference = under_way.read()
        refuse_few(self.reference.hidden)
        weighed = {parameter for part in origin.parts for parameter in part.parameters()}
        others = {name: value for name, value in origin.model.named_parameters() if value not in weighed}
        self.reference_checksums = checksums(others)

    def _check_against(self, reference: Snapshot) -> None:
        """Look at the probe images, of which ``reference`` must be."""
        count = sum(len(batch) for batch in checked_images(self._batches(), "probe"))
        known = reference.hidden.shape[1]
        if count != known:
            raise ValueError(
                f"reference: a snapshot of {known} images, and the probe has {count}; take the snapshot of the probe's images, "
                "in the same order"
            )

    def _batches(self) -> Iterable[Tensor]:
        if isinstance(self._probe, Tensor):
            # As many images at a time in each process, however many there are by now.
            return self._probe.split(self._batch_size * self.processes.count)
        return self._probe()

    @property
    def processes(self) -> Processes:
        """The processes that measure together, as they are now: a trainer may start them after this was made."""
        return Processes.current() if self._distributed else Processes()

    def measure(self, step: int | None = None, *, keep: bool = True) -> Drift:
        """Measure now, after ``step``. Raises :class:`DivergedError` where the model has left the finite numbers.

        ``keep``: hold it in :attr:`measured`, which :meth:`plot` draws; False for a state that the training does not keep.
        """
        batches = self._batches()
        if not isinstance(self._probe, Tensor):
            batches = checked_images(batches, "probe", warn=False, wait=False)  # a function may yield others each time
        drift = measure_drift(
            self.reference, self.model, batches, self._weight_drift, self._embed, self.text, self._activations,
            processes=self.processes,
        )  # fmt: skip
        if self._knn is not None:
            numbers, missing = self._knn(self.processes)
            drift = replace(drift, numbers={**drift.numbers, **numbers}, missing={**drift.missing, **missing})
        if self._warns and self.processes.first:
            self._warn_of_unmeasured()
        if keep:
            self.measured[max(self.measured, default=-1) + 1 if step is None else step] = drift
        return drift

    def plot(self, ax: Any = None) -> Any:
        """Draw what has been measured over the steps, in the place of ``ax`` or a figure of its own: an array of axes."""
        # Here, as drawing needs packages that measuring does not.
        with importing("report", "monitor.plot()"):
            from attndrift.figures.drifts import plot_measurements
        return plot_measurements(sorted(self.measured.items()), ax=ax)

    def cross_layer_cka(self, *, debiased: bool = True) -> Tensor:
        """CKA of every block of the reference with every block of the model as it is now: (blocks, blocks), float64.

        Takes a pass over the probe images, as a measurement does, and 8 bytes a block for every pair of images.
        """
        under_way = begin_snapshot(MeasuredModel.of(self.model), self._batches(), self._embed, processes=self.processes)
        return cross_layer_cka(self.reference.hidden, under_way.read().hidden, debiased=debiased)

    def plot_cross_layer_cka(self, ax: Any = None) -> Any:
        """Draw :meth:`cross_layer_cka` as a heatmap, in the place of ``ax`` or a figure of its own: one axis."""
        with importing("report", "monitor.plot_cross_layer_cka()"):
            from attndrift.figures.cross_layer import plot_cross_layer_cka
        return plot_cross_layer_cka(self.cross_layer_cka(), ax)

    def _warn_of_unmeasured(self) -> None:
        """Warn once about trained parts that no measurement covers; again if more parts are trained later."""
        weighed = {parameter for part in MeasuredModel.of(self.model).parts for parameter in part.parameters()}
        weighed |= set(() if self.text is None else self.text.parameters().values())
        trainable = {one for part in unmeasured_parts(self.trained, weighed) for one in part.parameters}
        candidates = self._training.trained_of(trainable - self._warned_of)
        if not candidates:
            return
        try:
            reaching = self._reach_embedding(list(candidates))
        except RuntimeError:
            # An `embed` of one's own need not be differentiable.
            reaching = set()
        # What was warned of, and what is trainable and not trained, is left out as if it were measured.
        parts = list(unmeasured_parts(self.trained, weighed | reaching | (trainable - candidates)))
        if parts:
            logger.warning(describe_unmeasured(parts))
        self._warned_of |= frozenset(candidates)

    def embeddings(self) -> Tensor:
        """What the model makes of the probe images now: (images, dimensions), float32, on the CPU; all in every process."""
        measured, processes = MeasuredModel.of(self.model), self.processes
        rows, sizes = list[Tensor](), list[int]()
        with measured.preserved(), processes.agreeing():
            for batch in self._batches():
                part, _ = processes.share(batch, sum(sizes))
                rows.append(measured.embed(part, self._embed).float().cpu())
                sizes.append(len(batch))
        return processes.join(torch.cat(rows), sizes)

    def embedding_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters of the model that the embedding of an image depends on, by name.

        Asked of the graph of one probe image: a classifier behind the embedding is not among them, nor a text tower.
        """
        trained = {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        reaching = self._reach_embedding(list(trained.values()))
        return {name: parameter for name, parameter in trained.items() if parameter in reaching}

    def _reach_embedding(self, parameters: Sequence[nn.Parameter]) -> set[nn.Parameter]:
        """Those of ``parameters``, all of them trained, that the embedding of an image depends on."""
        if not parameters:
            return set()
        measured = MeasuredModel.of(self.model)
        with measured.preserved(), torch.enable_grad():
            embedded = measured.embed(next(iter(self._batches()))[:1], self._embed)
            if not embedded.requires_grad:
                return set()
            gradients = torch.autograd.grad(embedded.sum(), list(parameters), allow_unused=True)
        return {one for one, gradient in zip(parameters, gradients, strict=True) if gradient is not None}

    def reference_values(self) -> dict[nn.Parameter, Tensor]:
        """The reference's values of the model's parameters, of those whose weight drift this measures; not to be changed.

        Empty where ``reference`` is a snapshot, which holds no weights, and with a ``weight_drift`` of one's own.
        """
        return self._weight_drift.reference_values() if isinstance(self._weight_drift, ParameterDrift) else {}


def measure_drift(
    reference: Snapshot,
    model: nn.Module,
    batches: Iterable[Tensor],
    weight_drift: WeightDrift,
    embed: Callable[[Tensor], Tensor] | None = None,
    text: TextDrift | FixedTexts | None = None,
    activations: ActivationChange | None = None,
    *,
    processes: Processes | None = None,
) -> Drift:
    """How far ``model`` is from ``reference``, a snapshot of the same images, and its text side from that of ``text``.

    Args and Raises: as for :func:`take_snapshot`, and what ``weight_drift``, ``text`` and ``activations`` raise.
    """
    under_way = begin_snapshot(MeasuredModel.of(model), batches, embed, processes=processes)
    blocks = {} if activations is None else {activations.METRIC: lambda: activations(model)}
    return under_way.drift(reference, weight_drift, text, blocks)


def _refuse_sharded(modules: Mapping[nn.Module, str]) -> None:
    for module, name in modules.items():
        for own, parameter in module._parameters.items():
            # A parameter made of a DTensor is one.
            if parameter is not None and (type(parameter).__name__ == "DTensor" or hasattr(parameter, "ds_id")):
                raise ValueError(
                    f"{name}{'.' if name else ''}{own} is sharded over processes (FSDP, tensor parallelism or ZeRO stage 3), "
                    "and its drift cannot be measured; train with DistributedDataParallel, or measure checkpoints"
                )
