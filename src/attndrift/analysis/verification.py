"""Results beside published values: how far apart they are, and whether a repetition may be that far away.

The rule. Where both have a deviation over seeds, a repetition is within tolerance if the difference of the means is inside
the 99% interval of Welch's t around 0, widened by half a unit of the last printed digit::

    |ours - published| <= t(0.995, df) * sqrt(sd_published^2 / n + sd_ours^2 / m) + rounding

With one run of ours its deviation is taken to be the published one, with that one's degrees of freedom. A number that was
published without a deviation borrows one, or has a fixed tolerance; both say where they come from. Of exact repetitions,
one number in a hundred is out of tolerance by chance.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype
from scipy import special

from attndrift.analysis.configurations import CONDITION_COLUMNS, method_columns, prepare
from attndrift.analysis.numbers import number
from attndrift.registry import unknown_name
from attndrift.results.measures import MEASURES
from attndrift.results.tables import Tables, columns_of, retention_measures, transfer_columns
from attndrift.study.expected_values import ExpectedValue
from attndrift.study.setting_columns import setting_columns
from attndrift.study.settings import NamedRun, RunSettings, Study, named_measures

LEVEL = 0.99
WITHIN, OUT, INCOMPLETE, MISSING, NOT_MEASURED, NOT_COMPARABLE = (
    "within",
    "out of tolerance",
    "incomplete",
    "missing",
    "not measured",
    "not comparable",
)
"""Verdicts. ``incomplete``: within tolerance so far, but some of its runs are missing or lack the number. ``not measured``:
there are runs, and a transfer set has an accuracy but no retention."""
_LOOSE = (*(name for name in CONDITION_COLUMNS if name != "n_train"), "learning_rate", "seed")
"""Columns in which a result that does not say its setting is taken to have the planned one."""


@dataclass(frozen=True)
class Checked:
    """One published number beside ours; numbers are in the printed unit, null where there are none.

    Attributes:
        where: settings of the runs that it is about.
        runs: planned runs behind it; ``found`` of them have the number.
        digits: decimals of the published number; ``sd_digits`` those of its deviation.
        tolerance: how far ours may be away.
        why: where the tolerance comes from, or why nothing can be compared.
    """

    quantity: str
    where: Mapping[str, Any]
    published: float
    published_sd: float | None
    published_n: int
    digits: int
    sd_digits: int
    ours: float | None
    ours_sd: float | None
    found: int
    runs: int
    difference: float | None
    tolerance: float | None
    verdict: str
    why: str
    source: str


@dataclass(frozen=True)
class Verification:
    """All published numbers of a study beside ours.

    Attributes:
        missing: planned runs that no result belongs to; ``others`` results that belong to no planned run.
    """

    study: str
    rows: list[Checked]
    missing: list[str]
    others: list[str]
    level: float = LEVEL
    counts: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        verdicts = [row.verdict for row in self.rows]
        object.__setattr__(self, "counts", {name: verdicts.count(name) for name in dict.fromkeys(verdicts)})

    @property
    def out_of_tolerance(self) -> bool:
        """Whether any number is."""
        return OUT in self.counts

    @property
    def nothing_compared(self) -> bool:
        """Whether no number has a difference that was judged."""
        return not {WITHIN, OUT, INCOMPLETE} & set(self.counts)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def verify(study: Study, expected: Sequence[ExpectedValue], results: Tables) -> Verification:
    """Compare ``results`` with the published values of ``study``.

    A result belongs to a planned run where all settings that the table ``runs`` holds are equal. Raises ``ValueError`` for a
    quantity that neither the results nor the study know, and for a condition that no run of the study meets.
    """
    numbers, scales = _quantities(results)
    _check_quantities(expected, study, results, scales)
    finished = prepare(results).runs
    matched = _matched(study, finished)
    places = {name for own in matched.values() for name in own}
    rows = [_checked(value, study, matched, numbers, scales) for value in expected]
    about = {run.run_id for value in expected for run in _runs_of(study, value)}
    missing = [name for name, own in matched.items() if not own and name in about]
    others = [str(name) for name in finished["run_id"] if name not in places]
    return Verification(study.name, rows, missing, others)


def _matched(study: Study, finished: pd.DataFrame) -> dict[str, list[str]]:
    """The prepared results of each planned run, by the settings that both tables hold."""
    planned = prepare(
        Tables(runs=pd.DataFrame([{"run_id": run.run_id} | setting_columns(run.settings) for run in study.runs]))
    ).every
    planned, own = (frame.assign(key_seed=frame["seed"].astype("string").fillna("")) for frame in (planned, finished))
    strict = [f"key_{name}" for name in (*method_columns(), "dataset")]
    loose = [f"key_{name}" for name in _LOOSE if name != "dataset"]
    groups = dict(iter(own.groupby(strict, sort=False)))
    found: dict[str, list[str]] = {}
    for row in planned.to_dict("records"):
        part = groups.get(tuple(row[name] for name in strict))
        if part is None:
            found[str(row["run_id"])] = []
            continue
        same = np.ones(len(part), dtype=bool)
        for name in loose:
            same &= ((part[name] == row[name]) | (part[name] == "") | (row[name] == "")).to_numpy(dtype=bool)
        found[str(row["run_id"])] = part.loc[same, "run_id"].astype(str).tolist()
    return {run.run_id: found[run.run_id] for run in study.runs}


def _quantities(results: Tables) -> tuple[pd.DataFrame, dict[str, float]]:
    """The numbers of each result by its name, and the factor between stored and printed numbers of each column."""
    runs = results.runs.set_index("run_id")
    known = {column.name: column for column in columns_of("runs", results.runs)}
    scales = {name: column.scale for name, column in known.items() if column.kind in ("float", "int")}
    # Columns of other programs.
    scales |= {
        str(name): 1.0
        for name in runs
        if name not in known and is_numeric_dtype(runs[name]) and not is_bool_dtype(runs[name])
    }
    # The columns of transfer sets have no printed form in the schema.
    scales |= {
        str(name): 100.0 for name in runs if str(name).startswith("transfer_") and str(name).endswith(("_accuracy", "_pretrained"))
    }  # fmt: skip
    return runs[list(scales)].astype(float), scales


def _check_quantities(
    expected: Sequence[ExpectedValue], study: Study, results: Tables, numbers: Mapping[str, float]
) -> None:
    """Raise ``ValueError`` for a quantity that neither the results hold nor runs of the study will."""
    sets = set[str]()
    measures = {measure: None for _, measure in retention_measures(results.runs)}
    for run in study.runs:
        sets.update(run.settings.transfer)
        measures |= dict.fromkeys(named_measures(run.settings))
    planned = {column.name for measure in measures for one in sorted(sets) for column in transfer_columns(one, measure)}
    means = {f"mean_{measure}_{end}" for measure in measures for end in _ENDS}
    known = sorted(planned | means | set(numbers))
    otherwise = (
        "quantities are the columns of the table runs that hold numbers (docs/tables.md), those of the study's transfer "
        f"sets and measures, and {', '.join(sorted(means))}"
    )
    for name in dict.fromkeys(value.quantity for value in expected):
        if name in known:
            continue
        if name in results.runs:
            raise ValueError(f"published values: column `{name}` of the table runs holds no numbers; {otherwise}")
        raise ValueError(f"published values: {unknown_name('quantity', name, known, otherwise)}")


def _runs_of(study: Study, value: ExpectedValue) -> list[NamedRun]:
    return [run for run in study.runs if all(_meets(run.settings, name, want) for name, want in value.where.items())]


def _meets(settings: RunSettings, name: str, wanted: Any) -> bool:
    held = settings.own.get(name) if name in settings.own else getattr(settings, name, None)
    if isinstance(held, (int, float)) and isinstance(wanted, (int, float)) and not isinstance(held, bool):
        return math.isclose(held, wanted, rel_tol=1e-9)
    return bool(held == wanted)


def _checked(
    value: ExpectedValue,
    study: Study,
    matched: dict[str, list[str]],
    numbers: pd.DataFrame,
    scales: dict[str, float],
) -> Checked:
    planned = _runs_of(study, value)
    if not planned:
        condition = ", ".join(f"{name} {want}" for name, want in value.where.items())
        raise ValueError(f"the published {value.quantity} of {condition}: no run of the study {study.name} is that")
    seen = [
        one
        for run in planned
        if (one := _number_of(run, value, numbers.reindex(matched[run.run_id]), scales)) is not None
    ]
    ours = float(np.mean(seen)) if seen else None
    sd = float(np.std(seen, ddof=1)) if len(seen) > 1 else None
    difference = None if ours is None else ours - value.mean
    tolerance = None if value.not_comparable or not seen else _tolerance(value, sd, len(seen))
    verdict = _verdict(value, difference, tolerance, len(seen) < len(planned))
    why = value.not_comparable or value.why
    if verdict == MISSING:
        without = _without_retention(planned, value, matched, numbers)
        if without:
            reason = "the pretrained model is near chance there, or its accuracy is not in the results"
            verdict, why = NOT_MEASURED, f"no retention on {', '.join(without)}: {reason}"
    return Checked(
        value.quantity, value.where, value.mean, value.deviation, value.n, value.digits, value.sd_digits, ours, sd,
        len(seen), len(planned), difference, tolerance, verdict, why, value.source,
    )  # fmt: skip


_ENDS = ("accuracy", "retention_pct", "change_points")
_OVER_SETS = re.compile(rf"mean_(?P<measure>{'|'.join(MEASURES.names())})_(?P<field>{'|'.join(_ENDS)})")
"""Quantities that are means over all transfer sets of a run."""
_OF_A_SET = re.compile(
    rf"(?P<stem>transfer_(?P<set>.+)_(?:{'|'.join(MEASURES.names())}))_(?:retention|change)(?:_low|_high)?_(?:pct|points)"
)


def _columns(run: NamedRun, value: ExpectedValue) -> list[str]:
    """The columns of the table ``runs`` whose mean is the quantity."""
    over_sets = _OVER_SETS.fullmatch(value.quantity)
    if over_sets is None:
        return [value.quantity]
    return [f"transfer_{name}_{over_sets['measure']}_{over_sets['field']}" for name in run.settings.transfer]


def _without_retention(
    planned: Sequence[NamedRun], value: ExpectedValue, matched: Mapping[str, list[str]], numbers: pd.DataFrame
) -> list[str]:
    """The transfer sets that have an accuracy in results of ``planned``, but not the quantity: they are near chance."""
    found: dict[str, None] = {}
    for run in planned:
        own = numbers.reindex(matched[run.run_id])
        for column in _columns(run, value):
            match = _OF_A_SET.fullmatch(column)
            accuracy = f"{match['stem']}_accuracy" if match else ""
            if match and {accuracy, column} <= set(own) and (own[accuracy].notna() & own[column].isna()).any():
                found[match["set"]] = None
    return list(found)


def _number_of(run: NamedRun, value: ExpectedValue, found: pd.DataFrame, scales: dict[str, float]) -> float | None:
    """The quantity of one run, mean over its results ``found``, as it is printed; null where none has it."""
    columns = _columns(run, value)
    if not columns or not set(columns) <= set(found.columns):
        return None
    # A mean over fewer sets would be another quantity.
    mean = number(found[columns].mean(axis=1, skipna=False).mean())
    return None if mean is None else scales[columns[0]] * mean


def _verdict(value: ExpectedValue, difference: float | None, tolerance: float | None, incomplete: bool) -> str:
    if value.not_comparable:
        return NOT_COMPARABLE
    if difference is None or tolerance is None:
        return MISSING
    if abs(difference) > tolerance + 1e-9:
        return OUT
    return INCOMPLETE if incomplete else WITHIN


def _tolerance(value: ExpectedValue, sd: float | None, m: int) -> float:
    if value.within is not None:
        return value.within + value.rounding
    assert value.sd is not None
    return welch_tolerance(value.sd, value.n, value.df or 1.0, sd, m) + value.rounding


def welch_tolerance(sd: float, n: int, df: float, own_sd: float | None, m: int, level: float = LEVEL) -> float:
    """How far two means over ``n`` and ``m`` seeds of one distribution may be apart, at most, in ``level`` of all cases.

    Args:
        sd: published deviation over seeds, with ``df`` degrees of freedom.
        own_sd: ours; null where ``m`` is 1.

    >>> round(welch_tolerance(1.0, 3, 2, 1.0, 3), 3)  # t(0.995, 4) * sqrt(2 / 3)
    3.759
    """
    a = sd**2 / n
    b = (sd if own_sd is None else own_sd) ** 2 / m
    if a + b == 0:
        return 0.0
    freedom = df if own_sd is None else (a + b) ** 2 / (a**2 / df + b**2 / (m - 1))
    return float(special.stdtrit(freedom, (1 + level) / 2)) * math.sqrt(a + b)
