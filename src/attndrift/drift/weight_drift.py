"""Weight drift of a vision tower and its projection against copies of their pretrained parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from attndrift.drift.measured_model import MeasuredModel
from attndrift.metrics.deferred import DeferredScalars
from attndrift.metrics.weights import LowRankUpdate, squared_norm_deferred, weight_drift_deferred
from attndrift.models.own_layers import OWN_FUNCTION
from attndrift.models.parameters import has_adapters, live_parameters, parameter_names

WeightDrift = Callable[[], tuple[float | None, float | None]]
"""Returns the weight drift of the vision transformer and of its projection."""


class ParameterDrift:
    """The :data:`WeightDrift` of ``measured`` against copies of the parameters of ``origin``, read by ``values``.

    ``known``: whether these are the reference's weights, which a snapshot does not hold.
    """

    def __init__(
        self,
        measured: MeasuredModel,
        origin: MeasuredModel,
        values: Callable[[nn.Module], dict[str, Tensor]],
        *,
        known: bool = True,
    ) -> None:
        self._model, self._known = measured.model, known
        found = origin.split([values(part) for part in origin.parts])
        self._before = [{name: value.clone() for name, value in part.items()} for part in found]
        deferred = DeferredScalars()
        norms = [squared_norm_deferred(part, deferred) for part in self._before]
        self._norms = [norm() for norm in norms]
        if origin is not measured or any(has_adapters(part) for part in measured.parts):
            self()  # a reference of other shapes, or an adapter that cannot be told, is an error now, not at the first measurement

    def __call__(self) -> tuple[float, float | None]:
        deferred = DeferredScalars()
        measured = MeasuredModel.of(self._model)
        parts = measured.parts
        live = measured.split([live_parameters(part, before) for part, before in self._known_of(parts)])
        found = []
        # Without a projection on either side, the tower alone.
        for place, (before, now, norm) in enumerate(zip(self._before, live, self._norms, strict=False)):
            _refuse_others(measured.modules[parts[min(place, len(parts) - 1)]], before, now)
            found.append(weight_drift_deferred(before, now, deferred, pretrained_squared_norm=norm))
        tower, *others = found
        return tower(), (others[0]() if others else None)

    def reference_values(self) -> dict[nn.Parameter, Tensor]:
        """The copies by the parameter that each is of, where they are the reference's weights."""
        return {
            parameter: before[name]
            for part, before in self._known_of(MeasuredModel.of(self._model).parts)
            for parameter, name in parameter_names(part, before).items()
            if self._known and name in before
        }

    def _known_of(self, parts: Sequence[nn.Module]) -> list[tuple[nn.Module, dict[str, Tensor]]]:
        """Each of ``parts`` with the reference's values inside it; a tower may hold its projection."""
        if len(parts) == 1:
            return [(parts[0], {name: value for before in self._before for name, value in before.items()})]
        return list(zip(parts, self._before, strict=False))


def _refuse_others(where: str, before: Mapping[str, Tensor], now: Mapping[str, Tensor | LowRankUpdate]) -> None:
    """Raise ValueError where a part of the model has other parameters than the reference has, or of other shapes."""
    within = f"{where}." if where else ""
    remedy = (
        "Give a reference= of the same architecture; where layers were added or replaced after the monitor was made, make it "
        f"after that; or {OWN_FUNCTION}"
    )
    for found, known, side in ((now, before, "the reference"), (before, now, "the model")):
        names = [name for name in found if name not in known]
        if names:
            raise ValueError(
                f"weight drift: {side} lacks {len(names)} of the parameters to compare, the first is `{within}{names[0]}` "
                f"{tuple(found[names[0]].shape)}. {remedy}"
            )
    for name, value in now.items():
        if tuple(value.shape) != tuple(before[name].shape):
            raise ValueError(
                f"weight drift: `{within}{name}` has shape {tuple(value.shape)} in the model and {tuple(before[name].shape)} in "
                f"the reference. {remedy}"
            )


def computed_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Parameters of ``module`` as it computes with them."""
    values = live_parameters(module, {})
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
