"""What a signal says of configurations that it was not fitted on: thresholds that warn, and curves that predict.

Pure functions on arrays of one value a configuration. A ``score`` is a signal turned so that more of it is worse. A fold
is left out as a whole: a configuration with all its seeds, or a dataset with all its configurations.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import isotonic_regression

from attndrift.analysis.numbers import Floats

MOST_FOLDS = 50
"""Each configuration is a fold up to this many; beyond it, several share one."""
Mask = NDArray[np.bool_]


def folds_of(n: int) -> NDArray[np.intp]:
    """The fold of each of ``n`` configurations."""
    return np.arange(n) % max(min(n, MOST_FOLDS), 1)


def best_threshold(score: Floats, damaged: Mask) -> float:
    """Above which score to warn: where sensitivity + specificity is largest, midway between two scores.

    Of equally good ones the middle one. Infinite where no threshold does better than chance, NaN without both classes.
    """
    if damaged.all() or not damaged.any():
        return float("nan")
    values = np.unique(score)
    between = (values[1:] + values[:-1]) / 2
    bad, good = np.sort(score[damaged]), np.sort(score[~damaged])
    warned = 1 - np.searchsorted(bad, between, side="right") / len(bad)
    quiet = np.searchsorted(good, between, side="right") / len(good)
    if not len(between) or (warned + quiet).max() <= 1:
        return float("inf")
    best = np.flatnonzero(warned + quiet >= (warned + quiet).max() - 1e-12)
    return float(between[best[len(best) // 2]])


def held_out_warnings(score: Floats, damaged: Mask, folds: NDArray[np.intp]) -> Floats:
    """1 where a configuration is warned of by the threshold of the other folds, else 0; NaN where they have none."""
    result = np.full(len(score), np.nan)
    for fold in np.unique(folds):
        out = folds == fold
        threshold = best_threshold(score[~out], damaged[~out])
        result[out] = np.nan if np.isnan(threshold) else score[out] > threshold
    return result


def confusion(warned: Floats, damaged: Mask) -> dict[str, Any]:
    """Counts and shares of ``warned`` (units,) against ``damaged``, and p that they go together by chance.

    p is Fisher's exact one, one-sided. Units with NaN are left out; a share without units is None.
    """
    known = np.isfinite(warned)
    bad, good = warned[known & damaged], warned[known & ~damaged]
    caught, false_alarms = int(bad.sum()), int(good.sum())
    p = None
    if len(bad) and len(good):
        table = [[caught, len(bad) - caught], [false_alarms, len(good) - false_alarms]]
        p = float(stats.fisher_exact(table, alternative="greater").pvalue)
    return {
        "sensitivity": caught / len(bad) if len(bad) else None,
        "specificity": 1 - false_alarms / len(good) if len(good) else None,
        "caught": caught,
        "false_alarms": false_alarms,
        "p": p,
    }


def falling_curve(score: Floats, kept: Floats) -> tuple[Floats, Floats]:
    """The never rising curve of ``kept`` over ``score`` with least squares: the distinct scores, and the curve there."""
    values, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=kept) / counts
    return values, np.asarray(isotonic_regression(means, weights=counts, increasing=False).x, dtype=np.float64)


def held_out_errors(score: Floats, kept: Floats, folds: NDArray[np.intp]) -> tuple[Floats, Floats]:
    """Absolute errors of the retention of each configuration, predicted from the other folds: by the curve of the
    signal, and by their mean alone. Points of retention."""
    curve, mean = np.full(len(score), np.nan), np.full(len(score), np.nan)
    for fold in np.unique(folds):
        out = folds == fold
        if (~out).sum() >= 3:
            curve[out] = np.interp(score[out], *falling_curve(score[~out], kept[~out]))
            mean[out] = kept[~out].mean()
    return np.abs(curve - kept), np.abs(mean - kept)


def gain_p(errors: Floats, plain: Floats) -> float | None:
    """One-sided p that ``errors`` are no smaller than ``plain`` ones, a pair a configuration (paired t test)."""
    gain = (plain - errors)[np.isfinite(errors)]
    if len(gain) < 3 or np.ptp(gain) <= 1e-12:
        return None
    return float(stats.ttest_1samp(gain, 0.0, alternative="greater").pvalue)
