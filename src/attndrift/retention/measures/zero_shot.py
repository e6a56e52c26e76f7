"""Zero-shot accuracy: the class whose name is nearest, by cosine with text features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attndrift.results.measures import MEASURES, RetentionMeasure

if TYPE_CHECKING:
    from attndrift.retention.task import RetentionTask
    from attndrift.retention.zero_shot import ZeroShotResult


def zero_shot(model: Any, task: RetentionTask) -> ZeroShotResult:
    """Zero-shot accuracy of ``model`` on the queries."""
    # Imported here, so that a list of measures needs no torch.
    from attndrift.retention.zero_shot import evaluate_zero_shot

    return evaluate_zero_shot(
        model,
        task.queries.images,
        task.queries.labels,
        text_features=task.text,
        batch_size=task.batch_size,
        pretrained_embeddings=task.pretrained_embeddings,
        weight_drift=task.weight_drift,
        preprocessing=task.preprocessing,
        dataset=task.dataset,
        split=task.split,
        processes=task.processes,
    )


MEASURES.register(
    RetentionMeasure(
        name="zero_shot",
        label="zero-shot accuracy",
        meaning="top-1 accuracy by cosine with the class names",
        source="Radford et al. 2021",
        evaluate=zero_shot,
        needs_text=True,
        cost="one text pass a class and prompt, once a study",
    )
)
