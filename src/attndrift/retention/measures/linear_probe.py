"""Accuracy of a linear probe: logistic regression on frozen features of the set's own training split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from attndrift.extras import importing
from attndrift.own_settings import OwnSettings, setting
from attndrift.results.measures import MEASURES, RetentionMeasure

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from attndrift.retention.task import RetentionResult, RetentionTask

# Imports inside functions: these packages take time to load, which only who needs them pays.


class Settings(OwnSettings):
    """How the regularisation of the probe is chosen."""

    probe_c_values: Annotated[int, Field(ge=1, le=200)] = setting(
        12, "values of C that the linear probe of retention tries, evenly from 1e-6 to 1e5 in log; 45 are DINOv2's"
    )
    probe_iterations: Annotated[int, Field(ge=1)] = setting(
        1000, "steps of L-BFGS for each value of C of that probe, at most"
    )


class FittedProbe(NamedTuple):
    """What a probe says of the queries, (queries,) classes, its C, and whether its fit ended before the last step."""

    predictions: NDArray[np.int64]
    c: float
    converged: bool


def held_out(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """A tenth of each class, at least one image where it has two, spread evenly over it: (images,).

    >>> import numpy as np
    >>> np.flatnonzero(held_out(np.array([0, 0, 1, 0, 1, 2]))).tolist()
    [1, 4]
    """
    import numpy as np

    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        count = max(1, len(own) // 10) if len(own) > 1 else 0
        chosen[own[[(2 * place + 1) * len(own) // (2 * count) for place in range(count)]]] = True
    return chosen


def fit_probe(
    queries: NDArray[Any], bank: NDArray[Any], labels: NDArray[np.int64], values: int = 12, iterations: int = 1000
) -> FittedProbe:
    """The class of each query by multinomial logistic regression with an L2 penalty, fitted to the bank in float64.

    C, the inverse strength of the penalty, is that of the highest accuracy on a tenth of the bank that is held out (of
    equals the smallest), or 1 where no class has two images; then all of the bank is fitted.

    Args:
        queries: (queries, dimensions); ``bank``: (images, dimensions). Features as they are, not normalised.
        labels: (images,), classes of the bank.
        values: values of C tried, evenly from 1e-6 to 1e5 in log; ``iterations``: steps of L-BFGS for each.

    Raises ``ValueError`` where the bank has one class alone.
    """
    import warnings

    import numpy as np

    with importing("study", "the linear probe"):
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits
    import torch

    if len(np.unique(labels)) < 2:
        raise ValueError("linear_probe: its bank has images of one class alone; a probe needs two classes")
    known, asked = np.asarray(bank, dtype=np.float64), np.asarray(queries, dtype=np.float64)
    out = held_out(labels)
    # One fit goes on from the one before: each strength of the penalty has one optimum, wherever the search begins. A fit
    # that ends at the last step is short of it, at a place that depends on where it began: on the values of C before.
    probe = LogisticRegression(max_iter=iterations, tol=1e-6, warm_start=True)
    chosen, best = 1.0, -1.0
    # The number of threads changes sums; torch's is a setting of a run.
    with warnings.catch_warnings(), threadpool_limits(torch.get_num_threads()):
        warnings.simplefilter("ignore", ConvergenceWarning)
        for c in 10.0 ** np.linspace(-6, 5, values) if out.any() and len(np.unique(labels[~out])) > 1 else ():
            accuracy = probe.set_params(C=float(c)).fit(known[~out], labels[~out]).score(known[out], labels[out])
            if accuracy > best:
                chosen, best = float(c), accuracy
            if best == 1.0:  # no larger C has a higher accuracy
                break
        probe.set_params(C=chosen, warm_start=False).fit(known, labels)
        predictions = probe.predict(asked).astype(np.int64)
    return FittedProbe(predictions, chosen, bool(probe.n_iter_.max() < iterations))


def linear_probe(model: Any, task: RetentionTask) -> RetentionResult:
    """Accuracy on the queries of a linear probe on the features of ``model``, fitted to the bank of the task."""
    from attndrift.retention.task import RetentionResult

    assert task.bank is not None
    assert isinstance(task.settings, Settings)
    bank = task.bank()
    found = fit_probe(
        task.embed(model, task.queries).numpy(), task.embed(model, bank).numpy(), bank.labels,
        task.settings.probe_c_values, task.settings.probe_iterations,
    )  # fmt: skip
    detail = {"c": found.c, "converged": found.converged, "bank": len(bank.labels)}
    return RetentionResult(found.predictions == task.queries.labels, found.predictions, detail)


MEASURES.register(
    RetentionMeasure(
        name="linear_probe",
        label="linear-probe accuracy",
        meaning="top-1 accuracy of logistic regression on frozen features, C chosen on a held-out tenth of the bank",
        source="Oquab et al. 2023; Kornblith et al. 2019",
        evaluate=linear_probe,
        needs_bank=True,
        cost="embeds the bank too; then a fit for each value of C",
        # About 20 steps a fit, each two products of the features; 13 fits by default.
        operations=lambda queries, bank, dimensions, classes: 13 * 20 * 4.0 * bank * dimensions * classes,
        Settings=Settings,
    )
)
