"""Weight drift of a vision tower and its projection against copies of their pretrained parameters."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from attndrift.drift.measured_model import MeasuredModel
from attndrift.metrics.deferred import DeferredScalars
from attndrift.metrics.weights import squared_norm_deferred, weight_drift_deferred
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
        self._before = [{name: value.clone() for name, value in values(part).items()} for part in origin.parts]
        deferred = DeferredScalars()
        norms = [squared_norm_deferred(part, deferred) for part in self._before]
        self._norms = [norm() for norm in norms]
        if origin is not measured or any(has_adapters(part) for part in measured.parts):
            self()  # a reference of other shapes, or an adapter that cannot be told, is an error now, not at the first measurement

    def __call__(self) -> tuple[float, float | None]:
        deferred = DeferredScalars()
        # Without a projection on either side, the tower alone.
        tower, *others = [
            weight_drift_deferred(before, live_parameters(part, before), deferred, pretrained_squared_norm=norm)
            for part, before, norm in zip(MeasuredModel.of(self._model).parts, self._before, self._norms, strict=False)
        ]
        return tower(), (others[0]() if others else None)

    def reference_values(self) -> dict[nn.Parameter, Tensor]:
        """The copies by the parameter that each is of, where they are the reference's weights."""
        return {
            parameter: before[name]
            for part, before in zip(MeasuredModel.of(self._model).parts, self._before, strict=False)
            for parameter, name in parameter_names(part, before).items()
            if self._known and name in before
        }


def computed_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Parameters of ``module`` as it computes with them."""
    values = live_parameters(module, {})
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
