"""PiSSA: LoRA that starts from the principal singular directions of the weights."""

from __future__ import annotations

from attndrift.methods.known._decomposed_lora import DecomposedLoRA
from attndrift.methods.registry import method


@method
class PiSSA(DecomposedLoRA):
    """The principal part of each weight is trained, the rest stays."""

    name, label, color, order = "pissa", "PiSSA", "#332288", 1.3
    source = "Meng et al. 2024"
    trains = "the principal singular directions of the adapted weights, the projection and the classifier"
    decomposition = "pissa"
