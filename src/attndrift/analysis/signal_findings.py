"""Findings about signals: which one goes with retention, against which other, and what would have warned.

Only a signal that tells configurations left out of its fit is said to predict; what ranks in sample is said as that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from attndrift.analysis.contrasts import UNCORRECTED
from attndrift.analysis.early_warning import WARNS
from attndrift.analysis.result import Finding, Strength, Table, rows_where
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.signal_sources import MOMENTS, signals
from attndrift.analysis.signals import ADDS, BETTER, NO_EVIDENCE, PREDICTS, RANKS, TARGET

_MOST_TARGETS = 2
_MOMENT = {MOMENTS[0]: "At the end of training", MOMENTS[1]: "After the first epoch"}
Row = dict[str, Any]
Numbered = tuple[int, Row]


@dataclass
class _Target:
    """One target at the earliest moment that has signals; ``said`` names it where there are several."""

    tables: dict[str, Table]
    settings: AnalysisSettings
    where: Row
    said: str
    found: list[Finding] = field(default_factory=list)

    def rows(self, table: str, **wanted: Any) -> list[Numbered]:
        return rows_where(enumerate(self.tables[table].rows), self.where | wanted)

    def add(self, sentence: str, strength: Strength, table: str, *rows: int, topic: str = "warning") -> None:
        place = [str(self.where[name]) for name in TARGET[:-1]]
        identity = "-".join([topic, *place, table, str(len(self.found) + 1)])
        self.found.append(
            Finding(id=identity.lower().replace(" ", "-"), topic=topic, question="RQ3", sentence=self.said + sentence,
                    strength=strength, table=table, rows=list(rows))
        )  # fmt: skip


def signal_findings(tables: dict[str, Table], settings: AnalysisSettings) -> list[Finding]:
    """The findings of the targets with most configurations, from the tables of signals, interpolation and selection."""
    counts: dict[tuple[Any, ...], int] = {}
    for row in tables["signals"].rows:
        key = tuple(row[name] for name in TARGET[:-1])
        counts[key] = max(counts.get(key, 0), row["n_configurations"])
    found: list[Finding] = []
    several = [len({key[place] for key in counts}) > 1 for place in range(3)]
    for key in sorted(counts, key=lambda key: -counts[key])[:_MOST_TARGETS]:
        named = [str(key[place]) for place in (2, 0, 1) if several[place]]
        early = any(row["when"] == MOMENTS[1] and key == tuple(row[name] for name in TARGET[:-1])
                    for row in tables["signals"].rows)  # fmt: skip
        where = dict(zip(TARGET, (*key, MOMENTS[1] if early else MOMENTS[0]), strict=True))
        target = _Target(tables, settings, where, f"On {', '.join(named)}: " if named else "")
        best = _ranked(target)
        if best is not None:
            _compared(target, best)
        _warned(target)
        _turned(target)
        _selected(target, best)
        found += target.found
    return found + _interpolated(tables)


def _refuted(row: Row) -> bool:
    """Whether its test found no evidence, before or after correction."""
    return bool(row["verdict"] == NO_EVIDENCE or row["verdict"].endswith(UNCORRECTED))


def _strength(row: Row, *claims: str) -> Strength:
    return "no evidence" if _refuted(row) else "supported" if row["verdict"].endswith(claims) else "descriptive"


def _label(name: str) -> str:
    label = next(source.label for source in signals() if source.name == name).removesuffix(", mean over blocks")
    if label[0] == "|":
        return f"the size of the {label.strip('|').lower()}"
    return label if label[:2].isupper() else label[:1].lower() + label[1:]


def _limits(row: Row) -> str:
    return "" if row["low"] is None else f" (interval {row['low']:+.2f} to {row['high']:+.2f})"


def _ranked(target: _Target) -> str | None:
    """The measured signal that goes with the retention most closely, early if there is a history."""
    rows = [item for item in target.rows("signals", measured=True) if item[1]["rho"] is not None]
    if not rows:
        return None
    number, row = max(rows, key=lambda item: abs(item[1]["rho"]))
    text = (
        f"{_MOMENT[target.where['when']]}, {_label(row['signal'])} goes with the final retention on "
        f"{target.where['transfer_set']} most closely of the measured signals: rho = {row['rho']:+.2f}{_limits(row)}."
    )
    if row["verdict"] == PREDICTS:
        text += f" It predicts: the retention of a configuration left out is told within {row['held_out_error']:.1f} points."
    elif row["verdict"] == RANKS:
        text += " It ranks these configurations; that it predicts others is not shown."
    elif _refuted(row):
        text += " After correction for all signals there is no evidence."
    target.add(text, _strength(row, PREDICTS, RANKS), "signals", number)
    return str(row["signal"])


def _compared(target: _Target, best: str) -> None:
    """The best signal against the closest measured one, and the closest known from training anyway."""
    for measured in (True, False):
        others = {
            r["signal"]: abs(r["rho"]) for _, r in target.rows("signals", measured=measured) if r["rho"] is not None
        }
        rows = [
            (number, row, row["second"] if row["first"] == best else row["first"])
            for number, row in target.rows("signal_differences") if best in (row["first"], row["second"])
        ]  # fmt: skip
        rows = [item for item in rows if item[2] in others]
        if not rows:
            continue
        number, row, other = max(rows, key=lambda item: others[item[2]])
        sign = 1 if row["first"] == best else -1
        difference = sign * row["difference"]
        low, high = sorted(sign * row[end] for end in ("low", "high")) if row["low"] is not None else (None, None)
        told = f"by {difference:+.2f} in rho{_limits({'low': low, 'high': high})}"
        if row["verdict"].startswith(f"{best} {BETTER}"):
            after = "" if row["verdict"].endswith(BETTER) else ", which does not hold after correction"
            text = f"{_capital(_label(best))} ranks better than {_label(other)}, {told}{after}."
        else:
            text = f"That {_label(best)} ranks better than {_label(other)} is not shown: {told}."
        given = next((r for _, r in target.rows("partial_associations", signal=best, given=other)), None)
        more = []
        if given is not None and given["verdict"] == ADDS:
            more.append(f"given {_label(other)}, it still goes with the retention")
        if row["share_won"] is not None:
            won = row["share_won"] if sign > 0 else 1 - row["share_won"]
            more.append(f"it is right in {won:.0%} of the pairs of configurations that the two order differently")
        if more:
            text += f" {_capital(', and '.join(more))}."
        target.add(text, _strength(row, BETTER), "signal_differences", number)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _warned(target: _Target) -> None:
    """The measured signal whose threshold, taken from the other configurations, warned best."""
    rows = [item for item in target.rows("early_warning", measured=True) if item[1]["threshold"] is not None]
    rows = [item for item in rows if None not in (item[1]["held_out_sensitivity"], item[1]["held_out_specificity"])]
    if not rows:
        return
    number, row = max(rows, key=lambda item: item[1]["held_out_sensitivity"] + item[1]["held_out_specificity"])
    alarms = row["held_out_false_alarms"]
    text = (
        f"{_MOMENT[target.where['when']]}, {_label(row['signal'])} {row['direction']} about {row['threshold']:.3g}"
        f"{row['threshold_unit']} warned of {row['held_out_caught']} of {row['n_damaged']} damaged configurations on "
        f"{target.where['transfer_set']}, with {alarms} false alarm{'' if alarms == 1 else 's'}; each by a threshold from the others."
    )
    if _refuted(row):
        text += " After correction for all signals this is no evidence."
    target.add(text, _strength(row, WARNS), "early_warning", number)


def _turned(target: _Target) -> None:
    """A headline signal that rises with retention in one method and falls with it in another."""
    for source in signals():
        for number, row in target.rows("signals", signal=source.name, when=MOMENTS[0]):
            if source.headline and row["warning"]:
                target.add(f"{_capital(_label(source.name))} {row['warning']}.", "descriptive", "signals", number)


def _selected(target: _Target, best: str | None) -> None:
    """What the best signal would have chosen among the runs near the best validation accuracy."""
    margins = sorted(target.settings.selection_margins)
    if not margins or best is None:
        return
    rows = {
        row["rule"]: (number, row)
        for number, row in target.rows("selection_rules", margin_points=margins[(len(margins) - 1) // 2])
    }
    chosen = next((rule for rule in rows if rule.split(" ")[-1] == best), None)
    if chosen is None or rows[chosen][1]["retention_pct"] is None or rows[chosen][1]["n_runs"] < 2:
        return
    kept = [f"{rows[rule][1]['retention_pct']:.1f}%" for rule in (chosen, "oracle", "random")]
    number, row = rows[chosen]
    target.add(
        f"Of the runs within {row['margin_points']:g} points of the best validation accuracy, the one with the "
        f"{chosen.split(' ')[0]} {_label(best)} retains {kept[0]} on {target.where['transfer_set']}, the best one {kept[1]}, a random "
        f"one {kept[2]}.",
        "descriptive", "selection_rules", number,
    )  # fmt: skip


def _interpolated(tables: dict[str, Table]) -> list[Finding]:
    """How often an alpha that was chosen without labels kept the wanted retention."""
    found: list[Finding] = []
    rows = [item for item in enumerate(tables["interpolation_choice"].rows) if item[1]["retention_pct"] is not None]
    for name in dict.fromkeys(row["transfer_set"] for _, row in rows):
        for rule in dict.fromkeys(row["rule"] for _, row in rows):
            own = [item for item in rows if (item[1]["transfer_set"], item[1]["rule"]) == (name, rule)]
            if not own or rule.startswith("calibrated"):
                continue
            kept = sum(bool(row["retained"]) for _, row in own)
            errors = sorted(row["error_points"] for _, row in own)
            found.append(
                Finding(
                    id=f"interpolation-{name}-{rule}".replace(" ", "-").replace("_", "-"), topic="interpolation",
                    question="RQ3", strength="descriptive", table="interpolation_choice", rows=[number for number, _ in own],
                    sentence=f"Between pretrained and adapted weights, an alpha chosen by {rule.replace('_', ' ')} kept the wanted retention "
                    f"on {name} in {kept} of {len(own)} choices, {errors[0]:+.1f} to {errors[-1]:+.1f} points from it.",
                )
            )  # fmt: skip
    return found
