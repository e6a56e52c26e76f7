"""Findings: short sentences made from rows of the tables, each with the table and the rows that it comes from.

A sentence says no more than the ``verdict`` of its row. Methods are compared at settings that suit them: each at its best
validation accuracy, then at a learning rate near the best of both; where there is none, the finding says that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import pandas as pd

from attndrift.analysis.compute import IMAGES, MONITORED
from attndrift.analysis.configurations import Prepared
from attndrift.analysis.contrasts import EQUIVALENT, MEAN, NONE, ONE, SLOPE, UNCORRECTED, UNTESTED, strength_of
from attndrift.analysis.measures import retention
from attndrift.analysis.numbers import format_rate
from attndrift.analysis.operating import BEST_RETENTION, BEST_VALIDATION
from attndrift.analysis.result import TOPICS, Finding, Strength, Table, rows_where
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.timing import AFTER, BEFORE, NEVER, SAME
from attndrift.losses.registry import short_label_of
from attndrift.methods.registry import DEFAULT_METHOD, in_order
from attndrift.results.measures import accuracy_words

NEAR_BEST = 2.0
"""Points of validation accuracy below a method's best within which a learning rate suits it."""
_MOST_PLACES = 2
_MOST_NAMED = 3
Row = dict[str, Any]


@dataclass
class _Place:
    """One dataset of one model and selection, under its most common conditions; ``usual`` is the method that stands first."""

    settings: AnalysisSettings
    tables: dict[str, Table]
    runs: pd.DataFrame
    where: Row
    said: str
    transfer: str | None
    found: list[Finding] = field(default_factory=list)
    near: dict[str, list[tuple[int, Row]]] = field(default_factory=dict)
    """The rows of this place by table, once they were asked for."""

    def rows(self, table: str, **wanted: Any) -> list[tuple[int, Row]]:
        """(row number, row) of this place, in the order of the table."""
        if table not in self.near:
            self.near[table] = rows_where(enumerate(self.tables[table].rows), self.where)
        return rows_where(self.near[table], wanted)

    def variants(self) -> list[tuple[str, str]]:
        """(method, variant) without additions, in the order of methods: of each method the one of best validation."""
        plain = self.runs[~self.runs["has_addition"]]
        best: dict[str, tuple[float, str]] = {}
        known = {row["variant"]: row["accuracy"] for _, row in self.rows("operating_points", rule=BEST_VALIDATION)}
        for method, variant in plain[["method", "variant"]].drop_duplicates().itertuples(index=False):
            score = (known.get(variant) or -1.0, str(variant))
            best[str(method)] = max(best.get(str(method), (-2.0, "")), score)
        return [(method, best[method][1]) for method in in_order(best)]

    def best(self, variant: str) -> tuple[int, Row] | None:
        """The row of a method at its best validation, for the place's transfer set."""
        found = self.rows("operating_points", rule=BEST_VALIDATION, variant=variant, transfer_set=self.transfer)
        return found[0] if found else None

    def add(self, topic: str, question: str, sentence: str, strength: Strength, table: str, *rows: int) -> None:
        identity = "-".join(filter(None, [topic, *map(str, self.where.values()), str(len(self.found) + 1)]))
        self.found.append(
            Finding(id=identity.lower().replace(" ", "-"), topic=topic, question=question,
                    sentence=self.said + sentence,
                    strength=strength, table=table, rows=list(rows))
        )  # fmt: skip


def generate(
    prepared: Prepared, tables: dict[str, Table], settings: AnalysisSettings, warnings: Sequence[Finding] = ()
) -> list[Finding]:
    """All findings, the most important first: one of each topic in the order of :data:`TOPICS`, then the second ones.

    ``warnings`` are the findings about signals.
    """
    found: list[Finding] = []
    for place in _places(prepared, tables, settings):
        for template in (
            _cost,
            _methods,
            _shared_rate,
            _equal_compute,
            _timing,
            _entropy,
            _structure,
            _additions,
            _rates,
        ):
            template(place)
        found += place.found
    found += warnings
    queues = [[one for one in found if one.topic == topic] for topic in TOPICS]
    return [one for turn in zip_longest(*queues) for one in turn if one is not None]


def _places(prepared: Prepared, tables: dict[str, Table], settings: AnalysisSettings) -> Iterator[_Place]:
    runs = prepared.distinct
    if not len(runs):
        return
    keys = ["model_name", "selection_name", "dataset"]
    sizes = runs.groupby(keys, sort=True).size().sort_values(ascending=False, kind="stable")
    several = {name: runs[name].nunique() > 1 for name in keys}
    for model, selection, dataset in sizes.index[:_MOST_PLACES]:
        own = runs[(runs["model_name"] == model) & (runs["selection_name"] == selection) & (runs["dataset"] == dataset)]
        own = own[own["key_rest"] == own["key_rest"].value_counts().sort_index(kind="stable").idxmax()]
        counts = {
            name: int(own[retention(name).name].notna().sum())
            for name in prepared.transfer
            if retention(name).name in own
        }
        transfer = max(counts, key=lambda name: counts[name], default=None)
        named = [str(dataset)] if several["dataset"] else []
        named += [str(model)] if several["model_name"] else []
        named += [f"selection {selection}"] if several["selection_name"] else []
        where = {
            "model_name": model,
            "selection_name": selection,
            "dataset": dataset,
            "key_rest": own["key_rest"].iloc[0],
        }
        yield _Place(settings, tables, own, where, f"On {', '.join(named)}: " if named else "",
                     transfer if transfer and counts[transfer] else None)  # fmt: skip


# --- words --------------------------------------------------------------------------------------------------------


def _interval(row: Row, flip: bool = False, unit: str = "") -> str:
    """`` (interval -3.1 to 4.0)``; nothing where the row has none."""
    if row["low"] is None or row["high"] is None:
        return ""
    low, high = (-row["high"], -row["low"]) if flip else (row["low"], row["high"])
    return f" (interval {_digits(low, row)}{unit} to {_digits(high, row)}{unit})"


def _digits(value: float, row: Row) -> str:
    """One decimal, and as many more as it takes that a limit that excludes 0 is not printed as 0."""
    digits = 1
    edge = min((abs(v) for v in (row["low"], row["high"]) if v), default=1.0)
    while digits < 4 and edge < 0.5 * 10**-digits and row["low"] * row["high"] > 0:
        digits += 1
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _more(value: float) -> str:
    return "less" if value < 0 else "more"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _compared(first: str, second: str, row: Row, transfer: str, flip: bool = False) -> str:
    """What the row of a difference in retention allows to say of ``first`` against ``second``."""
    value, interval = (-row["estimate"] if flip else row["estimate"]), _interval(row, flip)
    if row["verdict"] == EQUIVALENT:
        return f"{first} retains as much on {transfer} as {second}: {value:+.1f} points{interval}"
    if row["verdict"] == NONE:
        return f"no evidence that {first} and {second} differ in retention on {transfer}: {value:+.1f} points{interval}"
    text = f"{first} retains {abs(value):.1f} points {_more(value)} on {transfer} than {second}{interval}"
    return text + (", which does not hold after correction" if row["verdict"].endswith(UNCORRECTED) else "")


# --- templates ----------------------------------------------------------------------------------------------------


def _cost(place: _Place) -> None:
    """What the usual setting costs: the default method, where it was run, at its best validation."""
    variants = place.variants()
    chosen = next((v for m, v in variants if m == DEFAULT_METHOD), variants[0][1] if variants else None)
    at = place.best(chosen) if chosen else None
    if at is None:
        return
    number, row = at
    test = f" Its test accuracy is {row['test_accuracy']:.1f}%." if row["test_accuracy"] is not None else ""
    place.add(
        "transfer", "RQ2",
        f"{_capital(row['variant'])} at its best validation rate ({format_rate(row['learning_rate'])}) retains "
        f"{row['retention_pct']:.1f}% of the {accuracy_words(str(place.transfer))}{_interval(row, unit='%')}.{test if row['low'] is None else ''}",
        "descriptive" if row["low"] is None else "supported", "operating_points", number,
    )  # fmt: skip


def _methods(place: _Place) -> None:
    """The first method against each other one: at best validation, then at the accuracy that both reach."""
    names = [variant for _, variant in place.variants() if place.best(variant) is not None]
    for other in names[1:]:
        for rule, words in (
            (BEST_VALIDATION, "Each at its best validation rate"),
            (BEST_RETENTION, "With at least {:.1f}% validation accuracy each"),
        ):
            found = place.rows(
                "operating_differences",
                first=names[0],
                second=other,
                rule=rule,
                measure="retention",
                transfer_set=place.transfer,
            )
            for number, row in found:
                accuracy = words.format(row["least_accuracy"] or 0)
                place.add(
                    "methods", "RQ2", f"{accuracy}, {_compared(other, names[0], row, str(place.transfer), flip=True)}.",
                    strength_of(row), "operating_differences", number,
                )  # fmt: skip


def _shared_rate(place: _Place) -> None:
    """The same at one learning rate, if one suits both: never where either is far below its best."""
    names = [variant for _, variant in place.variants() if place.best(variant) is not None]
    accuracy: dict[tuple[str, float], float] = {}
    for _, row in place.rows("configurations"):
        value = next((row[n] for n in ("best_val_accuracy", "test_accuracy") if row.get(n) is not None), None)
        if value is not None and row["learning_rate"] is not None:
            accuracy.setdefault((row["variant"], row["learning_rate"]), 100 * value)
    top = {name: max((v for (n, _), v in accuracy.items() if n == name), default=0.0) for name in names}
    for other in names[1:]:
        rows = place.rows(
            "differences", first=names[0], second=other, contrast=ONE, measure=retention(str(place.transfer)).name
        )
        near = [
            (number, row, min(accuracy.get((n, row["learning_rate"]), 0.0) - top[n] for n in (names[0], other)))
            for number, row in rows if row["learning_rate"] is not None
        ]  # fmt: skip
        suits = [item for item in near if item[2] >= -NEAR_BEST]
        if suits:
            number, row, _ = max(suits, key=lambda item: item[2])
            place.add(
                "methods", "RQ2", f"At the rate {format_rate(row['learning_rate'])}, which suits both, "
                f"{_compared(other, names[0], row, str(place.transfer), flip=True)}.",
                strength_of(row), "differences", number,
            )  # fmt: skip
        elif near:
            one, two = (place.best(name) for name in (names[0], other))
            rates = [format_rate(item[1]["learning_rate"]) if item else "?" for item in (one, two)]
            place.add(
                "methods", "RQ2", f"No shared rate suits both {names[0]} (best at {rates[0]}) and {other} (best at {rates[1]}). "
                "A comparison at equal rates would compare one of them where it fails.",
                "descriptive", "differences", *(number for number, _, _ in near),
            )  # fmt: skip


def _entropy(place: _Place) -> None:
    """What the usual setting does to the attention entropy."""
    chosen = next((variant for _, variant in place.variants() if place.best(variant)), None)
    at = place.best(chosen) if chosen else None
    rate = at[1]["learning_rate"] if at else None
    for number, row in place.rows(
        "changes", variant=chosen, measure="entropy_change_pct", contrast=ONE, learning_rate=rate
    ):
        text = f"At its best validation rate {chosen} changes the attention entropy by {row['estimate']:+.1f}%{_interval(row, unit='%')}"
        if row["verdict"] == EQUIVALENT:
            text += f", which is within {place.settings.equivalent_within_pct:g}%"
        elif row["verdict"] == NONE:
            text = f"No evidence that {chosen} at its best validation rate changes the attention entropy: {row['estimate']:+.1f}%{_interval(row, unit='%')}"
        elif row["verdict"].endswith(UNCORRECTED):
            text += ", which does not hold after correction"
        place.add("entropy", "RQ1", f"{text}.", strength_of(row), "changes", number)


def _equal_compute(place: _Place) -> None:
    """The first method against each other one with the most training images that both saw, where budgets differ or a
    history tells of earlier ones."""
    asked = (f"{place.transfer} retention", MONITORED)
    # Of each method the variant of best validation, as in the other sentences.
    passed_over = set(place.runs["variant"]) - {variant for _, variant in place.variants()}
    rows = [
        item
        for item in place.rows("equal_compute", compute=IMAGES)
        if item[1]["measure"] in asked and item[1]["second"] not in passed_over
    ]
    best: dict[str, tuple[int, Row]] = {}
    for number, row in rows:
        if row["first"] == rows[0][1]["first"]:
            # The retention at the end before the monitored one, and the larger budget before the smaller.
            rank = (row["measure"] != MONITORED, row["budget"])
            kept = best.get(row["second"])
            if kept is None or rank > (kept[1]["measure"] != MONITORED, kept[1]["budget"]):
                best[row["second"]] = (number, row)
    for other, (number, row) in best.items():
        images = "the images of the monitor" if row["measure"] == MONITORED else str(place.transfer)
        place.add(
            "methods", "RQ2", f"After at most {row['budget']:.0f} training images, each at its best validation there, "
            f"{_compared(other, row['first'], row, images, flip=True)}.",
            strength_of(row), "equal_compute", number,
        )  # fmt: skip


def _timing(place: _Place) -> None:
    rows = place.rows("timing", lost=True)
    if not rows:
        return
    order = [row["order"] for _, row in rows]
    same = [str(row["run_id"]) for _, row in rows if row["order"] == SAME]
    named = f" ({', '.join(same[:_MOST_NAMED])}{', ...' * (len(same) > _MOST_NAMED)})" if same else ""
    place.add(
        "entropy", "RQ1",
        f"Of {len(rows)} runs that lost zero-shot transfer on the monitor, the attention entropy had fallen before in "
        f"{order.count(BEFORE)}, at the same evaluation in {len(same)}{named}, later in {order.count(AFTER)}, and never in "
        f"{order.count(NEVER)}.",
        "descriptive", "timing", *(number for number, _ in rows),
    )  # fmt: skip


def _structure(place: _Place) -> None:
    """Where attention changes with the rate: late blocks against early ones, of the first method that has a test."""
    for _, variant in place.variants():
        name = "entropy_late_less_early_pct"
        found = place.rows("changes", variant=variant, measure=name, contrast=SLOPE) or place.rows(
            "changes", variant=variant, measure=name, contrast=ONE
        )
        for number, row in found[:1]:
            if row["verdict"] in (NONE, EQUIVALENT, UNTESTED) or row["verdict"].endswith(UNCORRECTED):
                continue
            per = " for a tenfold rate" if row["contrast"] == SLOPE else ""
            place.add(
                "entropy", "RQ1",
                f"Under {variant} the attention entropy of late blocks changes by {row['estimate']:+.1f} points against that of "
                f"early blocks{per}{_interval(row)}.",
                strength_of(row), "changes", number,
            )  # fmt: skip


def _additions(place: _Place) -> None:
    """What a preservation loss or a guard bought, at the weight with most retention that keeps the accuracy."""
    facts = {
        str(row["variant"]): next((str(row[k]) for k in ("key_loss_name", "key_guard") if row[k]), "")
        for row in place.runs.drop_duplicates("variant").to_dict("records")
    }
    measure = retention(str(place.transfer)).name
    accuracy = {
        (row["first"], row["second"], row["learning_rate"]): row["estimate"]
        for _, row in place.rows("differences", contrast=ONE, measure="test_accuracy")
    }
    best: dict[tuple[str, str], tuple[int, Row]] = {}
    for number, row in place.rows("differences", contrast=ONE, measure=measure):
        kind = facts.get(row["second"], "")
        lost = accuracy.get((row["first"], row["second"], row["learning_rate"]))
        if not kind or facts.get(row["first"]) or (lost is not None and lost > NEAR_BEST):
            continue
        key = (row["first"], kind)
        if key not in best or row["estimate"] < best[key][1]["estimate"]:
            best[key] = (number, row)
    for (first, _), (number, row) in best.items():
        lost = accuracy.get((first, row["second"], row["learning_rate"]))
        cost = "" if lost is None else f" Its test accuracy differs by {-lost:+.1f} points."
        place.add(
            "preservation", "RQ4",
            f"At the rate {format_rate(row['learning_rate'])}, {_compared(row['second'], first, row, str(place.transfer), flip=True)}."
            + (cost if row["low"] is None else ""),
            strength_of(row), "differences", number,
        )  # fmt: skip
    mine = {kind for (_, kind) in best}
    for kind in sorted({k for k in facts.values() if k} - mine):
        if place.transfer is not None and place.rows("differences", measure=measure):
            place.add(
                "preservation", "RQ4",
                f"{_capital(short_label_of(kind))} has no run beside the same without it that keeps the test accuracy within {NEAR_BEST:g} points.",
                "descriptive", "differences",
            )  # fmt: skip


def _rates(place: _Place) -> None:
    """What a tenfold rate costs, where it is tested; and what is preserved at the best validation rate."""
    measure = retention(str(place.transfer)).name
    for _, variant in place.variants():
        for number, row in place.rows("changes", variant=variant, measure=measure, contrast=SLOPE):
            if strength_of(row) == "supported":
                place.add(
                    "rate", "RQ5",
                    f"Under {variant} a tenfold rate changes the retention on {place.transfer} by {row['estimate']:+.1f} points{_interval(row)}.",
                    "supported", "changes", number,
                )  # fmt: skip
        at = place.best(variant)
        rate = at[1]["learning_rate"] if at else None
        alone = place.rows("changes", variant=variant, measure=measure, contrast=ONE, learning_rate=rate)
        over = place.rows("changes", variant=variant, measure=measure, contrast=MEAN)
        same = [item for item in (*alone, *over) if item[1]["verdict"] == EQUIVALENT]
        for number, row in same[:1]:
            where = "at its best validation rate" if row["contrast"] == ONE else "on average over its rates"
            place.add(
                "transfer", "RQ2",
                f"{_capital(variant)} {where} preserves the {accuracy_words(str(place.transfer))} within "
                f"{place.settings.equivalent_within_points:g} points: {row['estimate']:+.1f}{_interval(row)}.",
                "supported", "changes", number,
            )  # fmt: skip
