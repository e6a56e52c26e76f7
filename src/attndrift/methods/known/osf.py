"""OSF: the top singular directions of the weights stay, the others are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from attndrift.methods.adapter_method import AdapterMethod
from attndrift.methods.registry import method
from attndrift.methods.targets import Targets, exactly, layers_named
from attndrift.own_settings import OwnSettings, setting

ADAPTER = "default"
_KEPT = ("_osf_U_low_init", "_osf_S_low_init", "_osf_V_low_init", "_osf_U_high", "_osf_V_high")


class OSFSettings(OwnSettings):
    """Of the directions."""

    osf_frozen_share: Annotated[float, Field(gt=0, lt=1)] = setting(
        0.5, "share of the singular directions that stay, the largest ones", label="frozen share="
    )
    osf_targets: Targets = setting("q,v", "decomposed layers: q, k, v, out, fc1, fc2, projection", label="on ")


@method
class OSF(AdapterMethod):
    """The smaller singular directions of the adapted weights, projection and classifier are trained.

    The decomposition is kept beside states and checkpoints, so that nothing is decomposed twice.
    """

    name, label, color, order = "osf", "OSF", "#AA4499", 1.95
    source = "Nayak et al. 2025"
    trains = "the smaller singular directions of the adapted weights, the projection and the classifier"
    Settings = OSFSettings
    cost, work = 2.6, 1.3
    adapter_parameters = ".osf_svd_params"
    rewrites_base = True

    def config(self, backbone: Any, settings: Any) -> Any:
        """Of the directions, in every block of the image tower."""
        from peft import OSFConfig  # the facts of a method are read without it

        layers = layers_named(backbone, settings.osf_targets.split(","), setting="osf_targets")
        for name, places in layers.items():
            full = min(backbone.model.get_submodule(places[0]).weight.shape)
            if not int(full * settings.osf_frozen_share):
                raise ValueError(
                    f"osf_frozen_share is {settings.osf_frozen_share:g}; of the {full} directions of layer {name} it leaves "
                    "none frozen"
                )
        return OSFConfig(target_modules=exactly(layers), effective_rank=settings.osf_frozen_share)

    def start_of(self, model: Any) -> dict[str, Any]:
        """The decomposition of every adapted layer."""
        return {
            f"{name}.{part}": getattr(layer, part)[ADAPTER].detach().clone()
            for name, layer in _layers(model)
            for part in _KEPT
            if ADAPTER in getattr(layer, part)
        }

    def rebuild(self, backbone: Any, settings: Any, seed: int, start: Mapping[str, Any]) -> Any:
        """The adapters on a decomposition that was kept."""
        import torch  # the facts of a method are read without it
        from peft.tuners.osf import layer as osf_layer

        decompose = osf_layer.decompose_weight_matrix
        osf_layer.decompose_weight_matrix = _shapes_alone
        try:
            adapted = self.apply(backbone, settings, seed)
        finally:
            osf_layer.decompose_weight_matrix = decompose
        with torch.no_grad():
            for name, layer in _layers(adapted):
                for part in _KEPT:
                    if ADAPTER in getattr(layer, part):
                        getattr(layer, part)[ADAPTER].copy_(start[f"{name}.{part}"])
                for part in ("U_low", "S_low", "V_low"):
                    layer.osf_svd_params[ADAPTER][part].copy_(start[f"{name}._osf_{part}_init"])
        return adapted


def _shapes_alone(weight: Any, top_k: int) -> dict[str, Any]:
    """What peft's decomposition returns, without values: in the shapes of a thin SVD."""
    import torch  # the facts of a method are read without it

    (rows, columns), full = weight.shape, min(weight.shape)
    kind = {"dtype": weight.dtype, "device": weight.device}
    found = {
        "U_high": torch.zeros(rows, top_k, **kind),
        "S_high": torch.zeros(top_k, **kind),
        "V_high": torch.zeros(top_k, columns, **kind),
    }
    low = {
        "U_low": torch.zeros(rows, full - top_k, **kind),
        "S_low": torch.zeros(full - top_k, **kind),
        "V_low": torch.zeros(full - top_k, columns, **kind),
    }
    return found | {name: torch.nn.Parameter(value) for name, value in low.items()} | {"rank_high": top_k}


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.osf import OSFLayer  # the facts of a method are read without it

    return ((name, part) for name, part in model.named_modules() if isinstance(part, OSFLayer))
