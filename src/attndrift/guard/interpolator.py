"""What ties a model in training to its pretrained state: the way back, parameter by parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attndrift.drift.monitor import DriftMonitor
from attndrift.metrics.weights import LowRankUpdate
from attndrift.models.checksum import checksums
from attndrift.models.parameters import adapter_types, decomposed_by, plain_low_rank
from attndrift.process_group import DivergedError

SAME = 1e-3  # relative distance of embeddings: a snapshot of another device differs by less
SAME_IN_HALF_PRECISION = 3e-2

State = list[Tensor]
"""Values of the guarded parameters, in order."""


Kind = Literal["weight", "factor", "update"]


@dataclass(frozen=True)
class _Part:
    """One guarded parameter. ``start`` is its pretrained value, or that of an adapter which does nothing yet.

    A plain LoRA pair has none, its update is scaled instead: the ``update`` is its B and goes with its ``factor`` A,
    dW = scale B A.
    """

    name: str
    parameter: nn.Parameter
    kind: Kind
    start: Tensor | None = None
    factor: nn.Parameter | None = None
    scale: float = 1.0

    def squared_distance(self) -> Tensor | float:
        """Squared norm of the change from the pretrained value; an adapter's is counted with its B."""
        if self.start is not None:
            return (self.parameter.detach().float() - self.start.float()).square().sum()
        if self.factor is None:
            return 0.0
        return LowRankUpdate(self.factor.detach(), self.parameter.detach(), self.scale).squared_norm()


class WeightInterpolator:
    """The trained parameters that what is measured depends on, and the line from their pretrained values.

    Full weights lie on theta = (1 - alpha) theta0 + alpha theta1. Of a LoRA pair, whose pretrained update is zero,
    B is scaled by alpha, which puts W0 + alpha (scale B A) on the same line, exactly. The parameters of any other adapter
    (DoRA, IA3, OFT, PiSSA, ...) go along their own line, from where the adapter changed nothing: both ends are the pretrained
    and the trained model, and what lies between is a line of weights for IA3 alone. Whatever the embedding does not depend
    on (a classifier, a text tower) has no place on the line and is left alone: a new head has no pretrained value.

    Args:
        monitor: of the model in training. The weights of its reference are the pretrained ones; of parameters that it knows
            no reference of, the present values, without ``peft`` adapters.
        beside: further trained parameters to guard, by name: those of a text encoder whose features are measured.

    Attributes:
        assumed: names of the parameters whose present values are taken for pretrained.
        late: a parameter was no longer at its reference when this was made.

    Raises:
        ValueError: nothing that the embedding depends on is trained; or adapters that are merged into the weights.
    """

    def __init__(self, monitor: DriftMonitor, beside: Mapping[str, nn.Parameter] | None = None) -> None:
        self.model = monitor.model
        self.assumed: list[str] = []
        trained, known = monitor.embedding_parameters() | dict(beside or {}), monitor.reference_values()
        pairs, factors = _adapter_pairs(self.model, trained)
        originals = _originals(self.model)
        self._parts: list[_Part] = []
        for name, parameter in trained.items():
            if parameter in pairs:
                factor, scale = pairs[parameter]
                self._parts.append(_Part(name, parameter, "update", factor=factor, scale=scale))
            elif parameter in factors:
                self._parts.append(_Part(name, parameter, "factor"))
            else:
                if parameter not in known and parameter not in originals:
                    self.assumed.append(name)
                start = known[parameter] if parameter in known else originals.get(parameter, parameter).detach().clone()
                self._parts.append(_Part(name, parameter, "weight", start.to(parameter)))
        self.late = any(part.start is not None and not torch.equal(part.start, part.parameter) for part in self._parts)
        if not self._parts:
            raise ValueError(
                "guard: nothing that the image embedding depends on is trained, so there is nothing to guard; "
                "a linear probe keeps every budget"
            )

    @property
    def names(self) -> list[str]:
        """Names of the guarded parameters."""
        return [part.name for part in self._parts]

    def state(self) -> State:
        """Copies of the present values."""
        return [part.parameter.detach().clone() for part in self._parts]

    def finite(self) -> bool:
        """Whether every guarded value is a finite number."""
        return all(bool(torch.isfinite(part.parameter).all()) for part in self._parts)

    def distance(self) -> float:
        """Norm of the change of all guarded weights from their pretrained values, together."""
        return math.sqrt(sum(float(part.squared_distance()) for part in self._parts))

    @torch.no_grad()
    def interpolate(self, alpha: float, end: State) -> None:
        """Put the model at ``alpha`` between the pretrained state (0) and ``end`` (1); both ends bit for bit."""
        for part, value in zip(self._parts, end, strict=True):
            if alpha == 1 or part.kind == "factor":
                part.parameter.copy_(value)
            elif part.start is None:
                part.parameter.copy_(value * alpha) if alpha else part.parameter.zero_()
            else:
                # Not lerp at 0, which would make NaN of an end that is not finite.
                part.parameter.copy_(torch.lerp(part.start, value, alpha) if alpha else part.start)

    @torch.no_grad()
    def scale_step(self, before: State, share: float) -> None:
        """Take back all but ``share`` of the way from ``before`` to the present values."""
        for part, value in zip(self._parts, before, strict=True):
            part.parameter.copy_(torch.lerp(value, part.parameter, share) if share else value)


def refuse_unknown_start(interpolator: WeightInterpolator, monitor: DriftMonitor) -> None:
    """Raise where the model, put at the start of the line, is not what ``monitor`` measures against: training has begun.

    Only where present values were taken for pretrained; frozen weights that differ from the reference are the user's choice.
    """
    if not interpolator.assumed:
        return
    try:
        moved = monitor.measure(keep=False).embedding_distance
    except DivergedError:
        moved = math.inf
    precision = next(p for p in interpolator.model.parameters() if p.is_floating_point()).dtype
    same = SAME if precision in (torch.float32, torch.float64) else SAME_IN_HALF_PRECISION
    # Of a text encoder the monitor keeps no weights: where the image encoder has left its reference, so has that.
    known = monitor.reference_checksums
    now = checksums({name: value for name, value in _plain_names(interpolator).items() if name in known})
    trained = any(known[name] != value for name, value in now.items())
    if interpolator.late or trained or moved is None or moved > same:
        raise ValueError(
            f"guard: the model has left the state that its monitor measures against, and of {len(interpolator.assumed)} trained parameters the pretrained values are not known, the first is "
            f"`{interpolator.assumed[0]}`. Make the guard before training begins and before a checkpoint is loaded, or give "
            "DriftMonitor the pretrained model as reference="
        )


def _plain_names(interpolator: WeightInterpolator) -> dict[str, nn.Parameter]:
    """The parameters whose present values are taken for pretrained, by the names that they have without ``peft``."""
    parameters = dict(interpolator.model.named_parameters())
    found = {name: parameters[name] for name in interpolator.assumed}
    return found | {name.removeprefix("base_model.model."): value for name, value in found.items()}


def _adapter_pairs(
    model: nn.Module, trained: Mapping[str, nn.Parameter]
) -> tuple[dict[nn.Parameter, tuple[nn.Parameter, float]], set[nn.Parameter]]:
    """The B of every plain LoRA pair among ``trained`` with its A and scale; and all their As."""
    tuners, _ = adapter_types()
    guarded, decomposed = set(trained.values()), decomposed_by(model.modules())
    pairs: dict[nn.Parameter, tuple[nn.Parameter, float]] = {}
    for name, layer in model.named_modules():
        tuned: Any = layer
        if not isinstance(layer, tuners) or guarded.isdisjoint(tuned.parameters()):
            continue
        adapter = plain_low_rank(tuned)
        if tuned.merged:
            raise ValueError(
                f"guard: the adapter in {name} is merged into the weights, so that its parameters take part no more; "
                "unmerge it (`unmerge_adapter()`)"
            )
        # PiSSA's B starts from a part of the weights: scaling it would lose that part.
        if adapter is None or decomposed:
            continue
        pairs[tuned.lora_B[adapter].weight] = (tuned.lora_A[adapter].weight, float(tuned.scaling[adapter]))
    return pairs, {factor for factor, _ in pairs.values()}


def _originals(model: nn.Module) -> dict[nn.Parameter, nn.Parameter]:
    """The pretrained parameter under each one that ``peft`` trains in its place (``modules_to_save``)."""
    _, copies = adapter_types()
    found: dict[nn.Parameter, nn.Parameter] = {}
    for wrapper in (part for part in model.modules() if isinstance(part, copies) and hasattr(part, "original_module")):
        inner: Any = wrapper
        before = dict(inner.original_module.named_parameters())
        for copied in inner.modules_to_save.values():
            for name, parameter in copied.named_parameters():
                if name in before:
                    found[parameter] = before[name]
    return found
