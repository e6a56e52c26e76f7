"""OLoRA: LoRA that starts from an orthonormal basis of the weights."""

from __future__ import annotations

from attndrift.methods.known._decomposed_lora import DecomposedLoRA
from attndrift.methods.registry import method


@method
class OLoRA(DecomposedLoRA):
    """The first rows and columns of each weight's QR decomposition are trained, the rest stays."""

    name, label, color, order = "olora", "OLoRA", "#6699CC", 1.4
    source = "Büyükakyüz 2024"
    trains = "an orthonormal part (QR) of the adapted weights, the projection and the classifier"
    decomposition = "olora"
