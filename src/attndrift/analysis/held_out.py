"""What a signal says of configurations that it was not fitted on: thresholds that warn, and curves that predict.

Pure functions on arrays of one value a configuration. A ``score`` is a signal turned so that more of it is worse. A fold
is left out as a whole: a configuration with all its seeds, or a dataset with all its configurations.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from attndrift.analysis.intervals import standard_error
from attndrift.analysis.numbers import Floats
from attndrift.analysis.rank_intervals import roc_area

MOST_LEFT_OUT, FOLDS = 50, 20
"""Each configuration is a fold up to so many; beyond it there are so many folds."""
Mask = NDArray[np.bool_]


def folds_of(n: int) -> NDArray[np.intp]:
    """The fold of each of ``n`` configurations."""
    return np.arange(n) % max(n if n <= MOST_LEFT_OUT else FOLDS, 1)


def best_thresholds(score: Floats, damaged: Mask, used: Mask) -> Floats:
    """Above which score to warn, a threshold for each row of ``used`` (folds, units) from the units that it marks.

    There sensitivity + specificity is largest, midway between two scores; of equally good ones the middle one. Infinite
    where no threshold does better than chance, NaN without both classes.
    """
    order = np.argsort(score, kind="stable")
    s, bad, used = score[order], damaged[order], used[:, order]
    after = np.minimum.accumulate(np.where(used, s, np.inf)[:, ::-1], axis=1)[:, ::-1]
    after = np.column_stack([after[:, 1:], np.full(len(used), np.inf)])
    of_bad, of_good = np.cumsum(used & bad, axis=1), np.cumsum(used & ~bad, axis=1)
    both = (of_bad[:, -1] > 0) & (of_good[:, -1] > 0)
    gain = of_good / np.maximum(of_good[:, -1:], 1) - of_bad / np.maximum(of_bad[:, -1:], 1)
    gain[~(used & (s < after) & np.isfinite(after))] = 0.0
    most = gain.max(axis=1, keepdims=True)
    best = (gain >= most - 1e-12) & (gain > 0)
    middle = np.cumsum(best, axis=1) > best.sum(axis=1, keepdims=True) // 2
    at = middle.argmax(axis=1)
    rows = np.arange(len(used))
    between = (s[at] + after[rows, at]) / 2
    return np.where(both, np.where(best.any(axis=1), between, np.inf), np.nan)


def best_threshold(score: Floats, damaged: Mask) -> float:
    """:func:`best_thresholds` from all units."""
    return float(best_thresholds(score, damaged, np.ones((1, len(score)), dtype=bool))[0])


def held_out_warnings(score: Floats, damaged: Mask, folds: NDArray[np.intp]) -> Floats:
    """1 where a configuration is warned of by the threshold of the other folds, else 0; NaN where they have none."""
    known, fold = np.unique(folds, return_inverse=True)
    threshold = best_thresholds(score, damaged, folds != known[:, None])[fold]
    return np.where(np.isnan(threshold), np.nan, score > threshold)


def _log_choose(n: int, k: NDArray[np.intp] | int) -> Floats:
    """Logarithm of the ways to choose ``k`` of ``n``; minus infinity beyond them."""
    with np.errstate(invalid="ignore"):
        ways = special.gammaln(n + 1) - special.gammaln(np.add(k, 1)) - special.gammaln(n - np.add(k, 0) + 1)
    return np.where((np.asarray(k) >= 0) & (np.asarray(k) <= n), ways, -np.inf)


def confusion(warned: Floats, damaged: Mask) -> dict[str, Any]:
    """Counts and shares of ``warned`` (units,) against ``damaged``, and p that they go together by chance.

    p is Fisher's exact one, one-sided. Units with NaN are left out; a share without units is None.
    """
    known = np.isfinite(warned)
    bad, good = warned[known & damaged], warned[known & ~damaged]
    caught, false_alarms = int(bad.sum()), int(good.sum())
    p = None
    if len(bad) and len(good):
        warnings = caught + false_alarms
        more = np.arange(caught, min(len(bad), warnings) + 1)
        ways = _log_choose(len(bad), more) + _log_choose(len(good), warnings - more)
        p = float(min(1.0, np.exp(ways - _log_choose(len(bad) + len(good), warnings)).sum()))
    return {
        "sensitivity": caught / len(bad) if len(bad) else None,
        "specificity": 1 - false_alarms / len(good) if len(good) else None,
        "caught": caught,
        "false_alarms": false_alarms,
        "p": p,
    }


def warning_p(warned: Floats, score: Floats, damaged: Mask) -> float | None:
    """p that held-out warnings (units,) are chance: the larger of two, both one-sided.

    Fisher's exact one of the warnings alone is too small, because their thresholds were learned from units that share all
    but one of theirs. So the scores have to be higher where damaged too: the normal p of Mann and Whitney's U.
    """
    p = confusion(warned, damaged)["p"]
    if p is None:
        return None
    n = int(damaged.sum() * (~damaged).sum())
    above = n * (roc_area(score, damaged) - 0.5)
    return max(p, float(special.ndtr(-(above - 0.5) / math.sqrt(n * (len(score) + 1) / 12))))


def _falling(values: Floats, weights: NDArray[Any] | None = None) -> Floats:
    # Imported here: it takes as long to load as all else that the analysis needs of scipy.
    from scipy.optimize import isotonic_regression

    return np.asarray(isotonic_regression(values, weights=weights, increasing=False).x, dtype=np.float64)


def falling_curve(score: Floats, kept: Floats) -> tuple[Floats, Floats]:
    """The never rising curve of ``kept`` over ``score`` with least squares: the distinct scores, and the curve there."""
    values, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=kept) / counts
    return values, _falling(means, counts)


def held_out_errors(score: Floats, kept: Floats, folds: NDArray[np.intp]) -> tuple[Floats, Floats]:
    """Absolute errors of the retention of each configuration, predicted from the other folds: by the curve of the
    signal, and by their mean alone. Points of retention."""
    curve, mean = np.full(len(score), np.nan), np.full(len(score), np.nan)
    order = np.argsort(score, kind="stable")
    distinct = bool((np.diff(score[order]) > 0).all())
    for fold in np.unique(folds):
        out = folds == fold
        others = order[~out[order]]
        if len(others) >= 3:
            x, y = score[others], kept[others]
            knots = (x, _falling(y)) if distinct else falling_curve(x, y)
            curve[out], mean[out] = np.interp(score[out], *knots), y.mean()
    return np.abs(curve - kept), np.abs(mean - kept)


def gain_p(errors: Floats, plain: Floats) -> float | None:
    """One-sided p that ``errors`` are no smaller than ``plain`` ones, a pair a configuration (paired t test)."""
    gain = (plain - errors)[np.isfinite(errors)]
    if len(gain) < 3 or np.ptp(gain) <= 1e-12:
        return None
    return float(special.stdtr(len(gain) - 1, -gain.mean() / standard_error(gain)))
