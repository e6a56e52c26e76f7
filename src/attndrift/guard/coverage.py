"""What is trained and lies outside every budget."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn

from attndrift.guard.budget import Budget, RetentionBudget
from attndrift.retention.text_encoder import text_encoder


def why_unmeasured(
    model: nn.Module, guarded: Collection[str], head: nn.Module | None, budgets: Sequence[Budget | RetentionBudget]
) -> str | None:
    """A warning of parameters that are trained and not measured; None where there are none.

    These are the trained parameters of a model of images and texts that the embedding of an image does not depend on, nor
    a text whose features a budget measures. A classifier behind that model is new and has nothing to keep.

    Args:
        guarded: names of the parameters that are measured.
        head: a classifier that is known to be one.
    """
    try:
        encoder = text_encoder(model)
    except ValueError:
        return None
    inside = set(encoder.parameters()) - set(() if head is None else head.parameters())
    # One number, such as the temperature, scales all logits alike.
    outside = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter in inside and parameter.numel() > 1 and name not in guarded
    ]
    if not outside:
        return None
    retention = [budget for budget in budgets if isinstance(budget, RetentionBudget)]
    remedy = (
        "text_features were given once and stay fixed: give class_names and a tokenizer instead, and texts are encoded anew at every check"
        if retention
        else "a budget on zero-shot accuracy with class_names and a tokenizer measures a text encoder: Budget.retention(...)"
    )
    return (
        f"guard: {len(outside)} trained parameters lie outside what is measured, the first is `{outside[0]}`: no budget sees "
        f"what they change, and they are not rewound. {remedy[0].upper()}{remedy[1:]}. Or freeze them"
    )
