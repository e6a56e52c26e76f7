"""What is trained and not measured: parts of a model whose change no number of the drift shows."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from torch import nn

from attndrift.attention.families import TEXT_FAMILIES
from attndrift.models.checksum import checksums
from attndrift.models.module_utils import is_a


class UnmeasuredPart(NamedTuple):
    """A part of a model that is trainable and not measured: its name, its trainable parameters, whether it reads text."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    text: bool

    def __str__(self) -> str:
        count = sum(parameter.numel() for parameter in self.parameters)
        return f"`{self.name}` ({'text tower, ' if self.text else ''}{count:,} parameter{'s' if count > 1 else ''})"


def unmeasured_parts(
    model: nn.Module, measured: Collection[nn.Parameter], prefix: str = ""
) -> Iterator[UnmeasuredPart]:
    """The largest parts of ``model`` that hold trained parameters and none of ``measured``."""
    for name, parameter in model.named_parameters(recurse=False):
        if parameter.requires_grad and parameter not in measured:
            yield UnmeasuredPart(prefix + name, (parameter,), False)
    for name, child in model.named_children():
        parameters = list(child.parameters())
        if any(parameter in measured for parameter in parameters):
            yield from unmeasured_parts(child, measured, f"{prefix}{name}.")
        elif trained := tuple(parameter for parameter in parameters if parameter.requires_grad):
            yield UnmeasuredPart(prefix + name, trained, _reads_text(name, child))


class Training:
    """Which parameters are trained: those that have changed since they were first looked at, or have a gradient now."""

    def __init__(self, model: nn.Module) -> None:
        self._first: dict[nn.Parameter, int] = {}
        self.trained_of(list(model.parameters()))

    def trained_of(self, parameters: Collection[nn.Parameter]) -> set[nn.Parameter]:
        """Those of ``parameters`` that are trained. A trainable one that no step changes is not among them."""
        order = list(parameters)
        sums = checksums({str(place): parameter for place, parameter in enumerate(order)})
        found = set[nn.Parameter]()
        for place, parameter in enumerate(order):
            now = sums.get(str(place), 0)
            if parameter.grad is not None or self._first.setdefault(parameter, now) != now:
                found.add(parameter)
        return found


def _reads_text(name: str, module: nn.Module) -> bool:
    classes = [known for family in TEXT_FAMILIES for known in family.classes]
    return name.lower().startswith("text") or any(is_a(part, *classes) for part in module.modules())


def describe_unmeasured(parts: Collection[UnmeasuredPart]) -> str:
    """One message that names them."""
    said = (
        f"trained, and not measured: {', '.join(map(str, parts))}. The drift does not show their change; freeze what is not "
        "meant to be trained (requires_grad_(False))."
    )
    if any(part.text for part in parts):
        said += (
            " Text features that were computed once stay those of the pretrained text tower: compute them anew for the "
            "zero-shot accuracy of the model as it is"
        )
    return said
