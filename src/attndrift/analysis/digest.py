"""What a reader needs first: a verdict, caveats said once, a table of six to ten rows, and five findings.

All of it is about one model and one dataset, those of most runs, and every method stands at its best validation setting.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pandas as pd

from attndrift.analysis import sentences as say
from attndrift.analysis.configurations import ADDITIONS, Prepared
from attndrift.analysis.contrasts import ONE, UNCORRECTED, strength_of
from attndrift.analysis.early_warning import WARNS
from attndrift.analysis.findings import NEAR_BEST
from attndrift.analysis.formats import cell
from attndrift.analysis.image_intervals import ImageIntervals, Outcomes
from attndrift.analysis.intervals import MINIMUM_SEEDS, t_row
from attndrift.analysis.measures import LAST_LAYER, retention
from attndrift.analysis.numbers import number
from attndrift.analysis.operating import BEST_VALIDATION
from attndrift.analysis.power import PUBLISHED_SPREAD
from attndrift.analysis.result import Digest, Finding, Strength, Summary, Table, rows_where
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.signal_sources import MOMENTS, signals
from attndrift.analysis.signals import PREDICTS, RANKS
from attndrift.analysis.timing import BEFORE, SAME
from attndrift.methods.registry import DEFAULT_METHOD, in_order, label_of
from attndrift.results.columns import Column

FEWEST_ROWS, MOST_ROWS = 6, 10
VALIDATION, TEST = "validation", "test"
_FEWEST_CONFIGURATIONS = 6
"""Fewer name no signal: chance orders five as well as can be in one of sixty studies."""
_MOMENT = {MOMENTS[0]: "At the end", MOMENTS[1]: "After the first epoch"}
Row = dict[str, Any]


@dataclass(frozen=True)
class _Place:
    """The runs that the first screen is about, and its rows; ``rows`` are in the order that they are printed in."""

    runs: pd.DataFrame
    where: Row
    transfer: str | None
    rows: list[Row]
    damage: str
    left_out: int
    """Variants that have no row."""

    def find(self, table: Table, **wanted: Any) -> list[tuple[int, Row]]:
        """(row number, row) of ``table`` that are about this place."""
        return rows_where(enumerate(table.rows), self.where | wanted)

    @property
    def best(self) -> Row | None:
        return next((row for row in self.rows if row["best"]), None)

    def plain(self) -> list[Row]:
        """A row a method without additions, its best validated variant, the usual method first."""
        found: dict[str, Row] = {}
        for row in sorted(self.rows, key=lambda row: -row["score"]):
            if not row["kind"] and row["at_best"]:
                found.setdefault(row["method"], row)
        names = in_order(found)
        return [found[name] for name in sorted(names, key=lambda name: name != DEFAULT_METHOD)]


def digest(
    prepared: Prepared, tables: dict[str, Table], data: Summary, settings: AnalysisSettings, outcomes: Outcomes
) -> tuple[Digest, Table]:
    """The first screen and its table. ``outcomes``: which images were right, for intervals where there is one seed."""
    place = _place(prepared, settings, ImageIntervals(outcomes, settings.level))
    table = _table(place, settings)
    if place is None:
        return Digest(verdict=say.NOTHING, caveats=[], findings=[]), table
    found = [_cost, _methods, _timing, _preservation, _warning]
    best, plain = place.best, [row for row in place.plain() if row["retention_pct"] is not None]
    other = next((row for row in plain if best is not None and row["variant"] != best["variant"]), None)
    dataset = str(place.where["dataset"])
    if prepared.adapted["model_name"].nunique() > 1:
        dataset += f" with {place.where['model_name']}"
    verdict = say.verdict(best, other, place.transfer, dataset) if best else say.NOTHING
    findings = [one for make in found if (one := make(place, tables)) is not None]
    return Digest(verdict=verdict, caveats=_caveats(prepared, place, data, settings), findings=findings), table


# --- the rows -------------------------------------------------------------------------------------------------------


def _place(prepared: Prepared, settings: AnalysisSettings, images: ImageIntervals) -> _Place | None:
    runs = prepared.distinct
    if not len(runs):
        return None
    keys = ["model_name", "selection_name", "dataset"]
    sizes = runs.groupby(keys, sort=True).size()
    where = dict(zip(keys, sizes.index[int(sizes.to_numpy().argmax())], strict=True))
    own = runs[(runs[keys] == pd.Series(where)).all(axis=1)]
    own = own[own["key_rest"] == own["key_rest"].value_counts().sort_index(kind="stable").idxmax()]
    counts = {
        name: int(own[retention(name).name].notna().sum()) for name in prepared.transfer if retention(name).name in own
    }
    transfer = max(counts, key=lambda name: counts[name], default=None)
    transfer = transfer if transfer and counts[transfer] else None
    rows = [_row(part, transfer, settings, images) for _, part in own.groupby("configuration", sort=False)]
    _score(rows)
    chosen = _chosen(rows)
    left_out = len({row["variant"] for row in rows} - {row["variant"] for row in chosen})
    return _Place(
        own,
        where | {"key_rest": own["key_rest"].iloc[0]},
        transfer,
        chosen,
        say.damage(settings.damaged_below_pct),
        left_out,
    )


def _row(runs: pd.DataFrame, transfer: str | None, settings: AnalysisSettings, images: ImageIntervals) -> Row:
    """One configuration: means over its seeds, and the interval of its retention."""
    first = runs.iloc[0]
    facts = {name: first[name] for name in ("configuration", "method", "variant")}
    kind = next((f"{name}:{first[name]}" for name in ADDITIONS if first[name]), "")
    # Frozen blocks are one kind whatever their number, as a loss is one whatever its weight.
    kind = kind.partition(":")[0] if kind.startswith("key_freeze") else kind

    def mean(column: str, scale: float = 1.0) -> float | None:
        value = number(runs[column].mean()) if column in runs and runs[column].notna().any() else None
        return None if value is None else scale * value

    row = facts | {
        "kind": kind,
        "learning_rate": number(first["learning_rate"]),
        "validation_accuracy": mean("best_val_accuracy", 100.0),
        "test_accuracy": mean("test_accuracy", 100.0),
        "retention_pct": None,
        "low": None,
        "high": None,
        "entropy_change_pct": mean("entropy_change_pct"),
        LAST_LAYER: mean(LAST_LAYER),
        "cka_mean": mean("cka_mean"),
        "n_seeds": int(runs["replicate"].nunique()),
        "over": "",
        "best": False,
    }
    column = retention(transfer).name if transfer else None
    if column is None or runs[column].isna().all():
        return row
    # Runs of one seed are no independent runs.
    kept = runs.groupby("replicate")[column].mean().dropna()
    own = t_row(kept.to_numpy(dtype=float), settings.level)
    row |= {"retention_pct": own["mean"], "low": own["low"], "high": own["high"]}
    row["over"] = "seeds" if own["low"] is not None else ""
    if len(runs) == 1:
        low, high = (number(end) for end in images.retention(first.to_dict(), str(transfer)))
        row |= {"low": low, "high": high, "over": "images" if low is not None else ""}
    return row


def _score(rows: list[Row]) -> None:
    """Give each row what chooses: ``score``, ``by`` (validation, or test where a row lacks that), and ``tie``.

    ``tie``: of the other rates of the same method with the same score, the one that retains least.
    """
    by = VALIDATION if all(row["validation_accuracy"] is not None for row in rows) else TEST
    for row in rows:
        value = row[f"{by}_accuracy"]
        row |= {"by": by, "score": -1.0 if value is None else float(value), "tie": None}
    for row in rows:
        equal = [
            one for one in rows
            if one is not row and one["variant"] == row["variant"] and abs(one["score"] - row["score"]) < 1e-9
            and one["score"] >= 0 and one["retention_pct"] is not None and one["learning_rate"]
        ]  # fmt: skip
        row["tie"] = min(equal, key=lambda one: float(one["retention_pct"]), default=None)


def _chosen(rows: list[Row]) -> list[Row]:
    """At most ten rows: each method, and each kind of addition, at its best validation; other rates where few are left."""
    ranked = sorted(rows, key=lambda row: -row["score"])
    first: dict[tuple[str, str], Row] = {}
    for row in ranked:
        first.setdefault((row["method"], row["kind"] or row["variant"]), row)
    best_of_variant: dict[str, Row] = {}
    for row in ranked:
        best_of_variant.setdefault(row["variant"], row)
    for row in rows:
        row["at_best"] = best_of_variant[row["variant"]] is row
    plain = [row for row in first.values() if not row["kind"]]
    added = [row for row in first.values() if row["kind"]]
    usual = [row for row in plain if row["method"] == DEFAULT_METHOD]
    chosen = [*usual, *(row for row in plain if row not in usual)][: MOST_ROWS - min(3, len(added))]
    chosen += added[: MOST_ROWS - len(chosen)]
    for row in ranked:
        if len(chosen) >= min(FEWEST_ROWS, len(rows)):
            break
        if not any(row is one for one in chosen):
            chosen.append(row)
    if ranked and ranked[0]["score"] >= 0:
        top = max(chosen, key=lambda row: float(row["score"]))
        top["best"] = True
    methods = in_order({row["method"] for row in chosen})
    return sorted(chosen, key=lambda row: (
        bool(row["kind"]), methods.index(row["method"]), _natural(row["variant"]), row["learning_rate"] or 0.0
    ))  # fmt: skip


def _natural(text: str) -> list[tuple[float, str]]:
    """Ranks in the order of their numbers: r=8 before r=16."""
    return [(float(part), "") if part.isdigit() else (-1.0, part) for part in re.split(r"(\d+)", text)]


@dataclass(frozen=True)
class OverviewRow:
    """A row of the table ``overview`` as it is printed; ``best``: the row of best validation."""

    cells: tuple[str, ...]
    best: bool


OVERVIEW_HEADINGS = (
    "Method", "Rate", "Test (%)", "Retention (%)", "Entropy (%)", "Last block (%)", "CKA",
)  # fmt: skip
"""Headings of :class:`OverviewRow`; entropy and last block are changes of the attention entropy."""


def overview_rows(table: Table) -> list[OverviewRow]:
    """The rows of ``overview`` with the interval beside its retention."""
    columns = {column.name: column for column in table.columns}

    def text(row: Row, name: str) -> str:
        return cell(columns[name], row)

    found = []
    for row in table.rows:
        kept = text(row, "retention_pct")
        if row["low"] is not None and row["high"] is not None:
            kept += f" [{row['low']:.0f}, {row['high']:.0f}]"
        before, after = ("variant", "learning_rate", "test_accuracy"), ("entropy_change_pct", LAST_LAYER, "cka_mean")
        cells = (*(text(row, name) for name in before), kept, *(text(row, name) for name in after))
        found.append(OverviewRow(cells, bool(row["best"])))
    return found


def _table(place: _Place | None, settings: AnalysisSettings) -> Table:
    columns = [
        Column("dataset", "Dataset"), Column("configuration", "Configuration"), Column("variant", "Method"),
        Column("learning_rate", "Rate"), Column("n_seeds", "Seeds"),
        Column("validation_accuracy", "Validation accuracy", unit="%", digits=1),
        Column("test_accuracy", "Test accuracy", unit="%", digits=1),
        Column("retention_pct", "Retention", unit="%", digits=1),
        Column("low", "Low", unit="%", digits=1), Column("high", "High", unit="%", digits=1),
        Column("over", "Interval over"),
        Column("entropy_change_pct", "Entropy change", unit="%", digits=1, signed=True),
        Column(LAST_LAYER, "Last block", unit="%", digits=1, signed=True),
        Column("cka_mean", "CKA", digits=3), Column("best", "Best validation"),
    ]  # fmt: skip
    rows = [] if place is None else place.rows
    dataset = None if place is None else place.where["dataset"]
    shown = [{column.name: row.get(column.name, dataset) for column in columns} for row in rows]
    notes = [
        f"Each method, and each kind of addition, at its best validation setting; other settings fill up to {FEWEST_ROWS} rows.",
        f"Intervals: {settings.level:.0%}, over seeds, or over test images where there is one run.",
    ]
    if place is not None and place.left_out:
        notes.append(
            f"{place.left_out} other variants of method and addition have no row here; the table `configurations` has all."
        )
    return Table(
        name="overview", title="Methods at their best validation setting", columns=columns, rows=shown, notes=notes
    )


def _caveats(prepared: Prepared, place: _Place, data: Summary, settings: AnalysisSettings) -> list[str]:
    told = []
    if data.single_seed:
        spreads = [f"{spread:g} ({label_of(name)})" for name, spread in PUBLISHED_SPREAD.items()]
        told.append(say.one_seed(", ".join(spreads) + " points"))
    else:
        told.append(say.seeds(data.n_seeds, settings.level, MINIMUM_SEEDS))
    if any(row["over"] == "images" for row in place.rows):
        told.append(say.OVER_IMAGES)
    if place.rows and place.rows[0]["by"] == TEST:
        told.append(say.NO_VALIDATION)
    if place.where["selection_name"] == "test":
        told.append(say.TEST_SELECTION)
    images = place.runs["n_test"].dropna() if "n_test" in place.runs else pd.Series(dtype=float)
    if len(images) and images.min() < 1000:
        told.append(say.few_images(int(images.min())))
    own = prepared.adapted["model_name"] == place.where["model_name"]
    rest = prepared.adapted[own & (prepared.adapted["dataset"] != place.where["dataset"])]
    if len(rest):
        told.append(say.elsewhere(_settings_of(rest, "dataset")))
    if not own.all():
        model = str(place.where["model_name"])
        told.append(say.other_models(model, _settings_of(prepared.adapted[~own], "model_name")))
    if data.excluded:
        told.append(say.excluded(len(data.excluded), data.n_runs))
    return told


def _settings_of(runs: pd.DataFrame, column: str) -> list[str]:
    """Each value of ``column`` with its number of settings."""
    counts = runs.groupby(column, sort=True)["configuration"].nunique()
    return [f"{name} ({count} setting{'' if count == 1 else 's'})" for name, count in counts.items()]


# --- the findings ---------------------------------------------------------------------------------------------------


def _finding(topic: str, question: str, sentence: str, strength: Strength, table: str, *rows: int) -> Finding:
    return Finding(
        id=f"first-{topic}",
        topic=topic,
        question=question,
        sentence=sentence,
        strength=strength,
        table=table,
        rows=list(rows),
    )


def _cost(place: _Place, tables: dict[str, Table]) -> Finding | None:
    """What the usual setting costs."""
    row = next((row for row in place.plain() if row["retention_pct"] is not None), None)
    if row is None:
        return None
    number_ = next(i for i, one in enumerate(place.rows) if one is row)
    strength: Strength = "supported" if row["over"] == "seeds" else "descriptive"
    return _finding("transfer", "RQ2", say.cost(row, str(place.transfer)), strength, "overview", number_)


def _methods(place: _Place, tables: dict[str, Table]) -> Finding | None:
    """The usual method and the best validated other one: each at its best, then at a shared rate that suits both."""
    plain = [row for row in place.plain() if row["retention_pct"] is not None]
    if len(plain) < 2:
        return None
    first, second = plain[0], max(plain[1:], key=lambda row: float(row["score"]))
    table = tables["operating_differences"]
    own = _difference(
        place, table, first, second, rule=BEST_VALIDATION, measure="retention", transfer_set=place.transfer
    )
    text = say.methods(first, second, own[1] if own else None)
    shared = _shared(place, tables, first, second)
    # An interval at the own settings leaves no room for a second one.
    text += say.NO_SHARED_RATE if shared is None else say.shared_rate(
        say.difference(second["variant"], first["variant"], shared | {"low": None})
    )  # fmt: skip
    if own is None:
        return _finding("methods", "RQ2", text, "descriptive", "overview")
    return _finding("methods", "RQ2", text, strength_of(own[1]), table.name, own[0])


def _difference(place: _Place, table: Table, first: Row, second: Row, **wanted: Any) -> tuple[int, Row] | None:
    """The row of ``second`` less ``first``, whichever way round the table has it."""
    names = (first["variant"], second["variant"])
    for number_, row in place.find(table, **wanted):
        if (row["second"], row["first"]) == names:
            return number_, row
        if (row["first"], row["second"]) == names:
            low, high = (None if row[end] is None else -row[end] for end in ("high", "low"))
            return number_, row | {"estimate": -row["estimate"], "low": low, "high": high}
    return None


def _suits(place: _Place) -> dict[str, set[float]]:
    """The learning rates of each variant near its best validation accuracy: elsewhere it fails."""
    column = "best_val_accuracy" if place.runs["best_val_accuracy"].notna().any() else "test_accuracy"
    means = place.runs.groupby(["variant", "learning_rate"])[column].mean()
    best = means.groupby(level=0).transform("max")
    found: dict[str, set[float]] = {}
    for variant, rate in means.index[100 * means >= 100 * best - NEAR_BEST]:
        found.setdefault(str(variant), set()).add(float(rate))
    return found


def _shared(place: _Place, tables: dict[str, Table], first: Row, second: Row) -> Row | None:
    suits = _suits(place)
    rates = suits.get(first["variant"], set()) & suits.get(second["variant"], set())
    measure = retention(str(place.transfer)).name
    # The rate nearest to that of the usual method: no result may choose it.
    for rate in sorted(rates, key=lambda rate: (abs(rate - (first["learning_rate"] or 0.0)), rate)):
        found = _difference(
            place, tables["differences"], first, second, contrast=ONE, measure=measure, learning_rate=rate
        )
        if found:
            return found[1]
    return None


def _timing(place: _Place, tables: dict[str, Table]) -> Finding | None:
    """Whether attention collapsed before or after the transfer was lost."""
    rows = place.find(tables["timing"])
    lost = [(number_, row["order"]) for number_, row in rows if row["lost"]]
    order = [one for _, one in lost]
    before, same = order.count(BEFORE), order.count(SAME)
    text = say.timing(place.damage, len(lost), len(rows), before, same) if rows else say.NO_TIMING
    return _finding("entropy", "RQ1", text, "descriptive", "timing", *(number_ for number_, _ in lost))


def _preservation(place: _Place, tables: dict[str, Table]) -> Finding | None:
    """What the best validated preservation loss or guard bought, against the same rate without it."""
    kinds = [row for row in place.rows if row["kind"].startswith(ADDITIONS[:2]) and row["retention_pct"] is not None]
    suits, bases = _suits(place), {row["method"]: row for row in place.plain()}
    measure, table = retention(str(place.transfer)).name, tables["differences"]
    missed = say.NO_PRESERVATION
    for row in sorted(kinds, key=lambda row: -row["score"]):
        base, rate = bases.get(row["method"]), row["learning_rate"]
        found = base and _difference(place, table, base, row, contrast=ONE, measure=measure, learning_rate=rate)
        if not base or not found:
            continue
        if rate is not None and rate not in suits.get(base["variant"], ()):
            missed = say.PRESERVATION_ELSEWHERE
        else:
            paid = _difference(place, table, base, row, contrast=ONE, measure="test_accuracy", learning_rate=rate)
            accuracy = paid[1]["estimate"] if paid else None
            text = say.bought(row, base["variant"], found[1], accuracy)
            return _finding("preservation", "RQ4", text, strength_of(found[1]), table.name, found[0])
    return _finding("preservation", "RQ4", missed, "descriptive", table.name) if place.transfer else None


def _warning(place: _Place, tables: dict[str, Table]) -> Finding | None:
    """The label-free signal that goes with retention most closely, early where there is a history, and what it warned of."""
    named = named_signal(place.where, place.transfer, tables)
    if place.transfer is None:
        return None
    if named is None:
        return _finding("warning", "RQ3", say.NO_SIGNAL, "descriptive", "signals")
    number_, row = named
    source = next(one for one in signals() if one.name == row["signal"])
    label = source.label.removesuffix(", mean over blocks")
    label = f"the size of {label.strip('|')}" if label[0] == "|" else label
    label = label if label[:2].isupper() else label[:1].lower() + label[1:]
    text = say.signal(_MOMENT[row["when"]], label, row)
    where = place.where | {"transfer_set": place.transfer, "when": row["when"], "signal": row["signal"]}
    warned = next((one for _, one in place.find(tables["early_warning"], **where)), None)
    if warned is not None and warned["held_out_caught"] is not None and row["low"] is None:
        text += say.warned(place.damage, warned)
    refuted = row["verdict"] == "no evidence" or row["verdict"].endswith(UNCORRECTED)
    claims = row["verdict"].endswith((PREDICTS, RANKS, WARNS))
    strength: Strength = "no evidence" if refuted else "supported" if claims else "descriptive"
    return _finding("warning", "RQ3", text, strength, "signals", number_)


def named_signal(where: Row, transfer: str | None, tables: dict[str, Table]) -> tuple[int, Row] | None:
    """The row of ``signals`` that the first screen names: of the measured ones the closest, at the earliest moment.

    The zero-shot monitor is none: it is the outcome itself, on other images.
    """
    monitors = {one.name for one in signals() if one.during.startswith("monitor_")}
    names = ("model_name", "selection_name", "dataset")
    rows = [
        (place, row)
        for place, row in enumerate(tables["signals"].rows)
        if row["transfer_set"] == transfer and row["measured"] and row["rho"] is not None
        and row["signal"] not in monitors and row["n_configurations"] >= _FEWEST_CONFIGURATIONS
        and all(row[name] == where[name] for name in names)
    ]  # fmt: skip
    early = [item for item in rows if item[1]["when"] == MOMENTS[1]]
    return max(early or rows, key=lambda item: abs(item[1]["rho"]), default=None)
