"""The vision transformers that can be observed, one entry a family, and finding one inside a model.

To add a family, describe in one :class:`Family` how its tower is recognised, where its attention modules
are and which of their submodules put out queries and keys, and append it to ``FAMILIES``. Nothing else
has to change: the observer works from the entry alone. A tap may hand out several parts at once (a
fused ``qkv`` projection gives query and key; a normalised query is tapped at its norm), and a family
without class token points ``queries`` at the token whose attention counts (a pooling head's probe).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from attndrift.observing.errors import ObservationError


@dataclass(frozen=True)
class Tap:
    """One submodule of an attention module whose output holds queries, keys or both.

    Attributes:
        path: path of the submodule, from the attention module.
        read: (attention module, the submodule's positional inputs, its output) to parts by name: ``query``
            and ``key``, each (images, heads, tokens, head_dim), as views and without copying.
    """

    path: str
    read: Callable[[nn.Module, tuple[Any, ...], Any], Mapping[str, Tensor]]


class Block(NamedTuple):
    """One transformer block: its path and its attention's path, both from the tower."""

    path: str
    attention_path: str


@dataclass(frozen=True)
class Family:
    """How to see into one family of vision transformers.

    Attributes:
        name: name of the family.
        models: the classes that it covers, for people.
        recognises: whether a module is the tower itself.
        blocks: the tower's blocks, from the input to the output.
        taps: the taps of every attention module.
        scale: factor of the logits in an attention module.
        prefix_tokens: tokens before the patches: the class token, then registers.
        queries: queries that can be observed, by name, with the index of their token; the first is the
            default.
    """

    name: str
    models: str
    recognises: Callable[[nn.Module], bool]
    blocks: Callable[[nn.Module], list[Block]]
    taps: tuple[Tap, ...]
    scale: Callable[[nn.Module], float]
    prefix_tokens: Callable[[nn.Module], int]
    queries: Mapping[str, int]


def _is_a(module: nn.Module, *names: str) -> bool:
    # By name along the bases: covers subclasses made at run time (FSDP), without importing a library.
    return any(base.__name__ in names for base in type(module).__mro__)


def _split_heads(part: str) -> Callable[[nn.Module, tuple[Any, ...], Any], Mapping[str, Tensor]]:
    def read(attention: nn.Module, _: tuple[Any, ...], output: Tensor) -> Mapping[str, Tensor]:
        heads = output.view(*output.shape[:-1], -1, int(attention.head_dim))  # type: ignore[arg-type]
        return {part: heads.transpose(1, 2)}

    return read


def _is_clip_tower(module: nn.Module) -> bool:
    # Before it was flattened, CLIPVisionModel held the tower as a CLIPVisionTransformer.
    return _is_a(module, "CLIPVisionModel", "CLIPVisionTransformer") and isinstance(
        getattr(module, "encoder", None), nn.Module
    )


def _clip_blocks(tower: nn.Module) -> list[Block]:
    count = len(tower.get_submodule("encoder.layers"))  # type: ignore[arg-type]
    return [Block(f"encoder.layers.{i}", f"encoder.layers.{i}.self_attn") for i in range(count)]


CLIP = Family(
    name="clip",
    models=(
        "CLIP of transformers (CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection, "
        "CLIPForImageClassification), with or without peft adapters"
    ),
    recognises=_is_clip_tower,
    blocks=_clip_blocks,
    taps=(Tap("q_proj", _split_heads("query")), Tap("k_proj", _split_heads("key"))),
    scale=lambda attention: float(attention.scale),  # type: ignore[arg-type]
    prefix_tokens=lambda tower: 1,
    queries={"cls": 0},
)

FAMILIES: dict[str, Family] = {family.name: family for family in (CLIP,)}
"""The families that can be observed, by name."""


class VisionTower(NamedTuple):
    """A vision transformer inside a model: its family, the module, and its path ("" for the model itself)."""

    family: Family
    module: nn.Module
    name: str


def find_vision_tower(model: nn.Module) -> VisionTower:
    """The single vision transformer inside ``model``.

    Looks through wrappers (peft, DataParallel-like modules, a classifier of one's own) and passes text
    towers over. Unpacks as ``family, module, name``.

    Raises:
        ObservationError: no vision transformer of a known family, or more than one.
    """
    if not isinstance(model, nn.Module):
        raise ObservationError(f"expected a torch.nn.Module to observe, got {type(model).__name__}")
    found: list[VisionTower] = []
    for name, module in model.named_modules():
        family = next((family for family in FAMILIES.values() if family.recognises(module)), None)
        if family is not None:
            found.append(VisionTower(family, module, name))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f"`{tower.name}` ({type(tower.module).__name__})" for tower in found)
        raise ObservationError(
            f"{type(model).__name__} holds {len(found)} vision transformers: {names}; pass the submodule that is meant"
        )
    known = "; ".join(family.models for family in FAMILIES.values())
    raise ObservationError(
        f"{type(model).__name__} holds no vision transformer that can be observed; those that can be are: {known}"
    )
