"""Claims in words, generated from tested numbers.

Every sentence carries effect, n, interval with the unit resampled, and correction; what it is
allowed to say follows from them alone. ``supported`` needs at least ``min_configurations``
configurations, a Holm-corrected p below ``alpha`` on configuration means and an interval without 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from attndrift.analysis.measures import LAST_LAYER, SIGNALS, outcomes
from attndrift.analysis.result import (
    Anova,
    Change,
    Comparison,
    Finding,
    Interval,
    RateCorrelation,
    Selection,
    Signal,
    Strength,
    Table,
    Test,
)
from attndrift.analysis.settings import AnalysisSettings

_SIGNAL_LABELS = {source.name: source.label[0].lower() + source.label[1:] for source in SIGNALS} | {
    "cka_mean": "mean CKA",
    "cka_last": "CKA of the last block",
    "cka_debiased_mean": "debiased mean CKA",
}
_TOLD_SIGNALS = ("abs_entropy_change", "entropy_change", "embedding_drift", "weight_drift", "cka_mean")


@dataclass
class Evidence:
    """What the findings are made of."""

    settings: AnalysisSettings
    tables: dict[str, Table]
    changes: list[Change]
    comparisons: list[Comparison]
    rates: list[RateCorrelation]
    anova: list[Anova]
    signals: list[Signal]
    selections: list[Selection]
    transfer_sets: list[str]
    n_seeds: int
    found: list[Finding] = field(default_factory=list)

    def add(self, identity: str, question: str, sentence: str, strength: Strength, **evidence: Any) -> None:
        slug = re.sub(r"[^a-z0-9]+", "-", identity.lower()).strip("-")
        used = {finding.id for finding in self.found}
        number = 2
        unique = slug
        while unique in used:
            unique, number = f"{slug}-{number}", number + 1
        self.found.append(
            Finding(id=unique, question=question, sentence=sentence, strength=strength, evidence=evidence)
        )


def generate(evidence: Evidence) -> list[Finding]:
    """All findings, in the order of the questions; a question without data gets a finding that says so."""
    for question in (_rq1, _rq2, _rq3, _rq4, _rq5):
        question(evidence)
    return evidence.found


def judge(
    n_configurations: int,
    n_cells: int,
    test: Test | None,
    interval: Interval | None,
    settings: AnalysisSettings,
) -> Strength:
    """What a claim about a direction may be called."""
    if n_cells < 3:
        return "too few"
    if n_configurations < settings.min_configurations:
        return "descriptive"
    if test is None or test.p is None:
        return "descriptive"
    p = test.p_holm if test.p_holm is not None else test.p
    return "supported" if p < settings.alpha and _excludes_zero(interval) else "no evidence"


def _excludes_zero(interval: Interval | None) -> bool:
    if interval is None or interval.low is None or interval.high is None:
        return False
    return interval.low > 0 or interval.high < 0


def _number(value: float | None, digits: int = 2, signed: bool = True) -> str:
    if value is None:
        return "not known"
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def _interval(interval: Interval | None, digits: int = 2, scale: float = 1.0) -> str:
    if interval is None or interval.low is None or interval.high is None:
        return f"no interval ({interval.reason})" if interval is not None and interval.reason else "no interval"
    if interval.reason and interval.low == interval.high:
        return f"no interval ({interval.reason})"
    low, high = _number(interval.low * scale, digits), _number(interval.high * scale, digits)
    return f"{interval.level:.0%} interval {low} to {high}, {interval.n} {interval.unit}s resampled"


def _test(test: Test | None) -> str:
    if test is None:
        return "not tested"
    if test.p is None:
        return f"{test.name}: no p value ({test.reason})"
    text = f"{test.name} {_p(test.p)}"
    if test.p_holm is not None:
        text += f", Holm {_p(test.p_holm)} among {test.family_size}"
    return text


def _told(test: Test | None) -> dict[str, Any] | None:
    return None if test is None else test.model_dump()


def _count(part: int, whole: int) -> str:
    return f"in {part} of {whole} cells"


def _closing(strength: Strength, supported: str, none: str, label: str) -> str:
    if strength == "supported":
        return f"{supported} ({label})."
    if strength == "no evidence":
        return f"There is no evidence for {none} ({label})."
    label = label.removesuffix(": descriptive only")
    if strength == "descriptive":
        return f"Descriptive only ({label})."
    return f"Too few runs to tell ({label})."


def _where(model: str, protocol: str, items: list[Any], scope: str) -> str:
    """The words that tell one group of runs from the others: model and protocol only where several exist."""
    parts = [] if scope == "all datasets" else [scope]
    if len({item.model for item in items}) > 1:
        parts.append(model)
    if len({item.protocol for item in items}) > 1:
        parts.append(f"protocol {protocol}")
    return f" ({', '.join(parts)})" if parts else ""


def _rq1(e: Evidence) -> None:
    entropy = [c for c in e.changes if c.measure == "entropy_change_pct"]
    last = {(c.method, c.model, c.protocol, c.scope): c for c in e.changes if c.measure == LAST_LAYER.name}
    if not entropy:
        e.add(
            "rq1 none",
            "RQ1",
            "No run carries a change of attention entropy, so RQ1 cannot be answered.",
            "too few",
        )
    for c in entropy:
        beside = last.get((c.method, c.model, c.protocol, c.scope))
        test = c.configurations.tests[0]
        strength = judge(c.n_configurations, c.n_runs, test, c.interval, e.settings)
        mean = c.configurations.mean
        fell, rose = c.cells.below_zero, c.cells.above_zero
        direction = "lower" if (mean or 0) < 0 else "higher"
        if fell == rose == 0:
            sentence = (
                f"{_capital(c.method)}{_where(c.model, c.protocol, entropy, c.scope)} left the attention entropy exactly "
                f"unchanged in all {c.n_runs} runs ({c.label.removesuffix(': descriptive only')})."
            )
            e.add(
                f"rq1 entropy {c.method} {c.scope} {c.model} {c.protocol}",
                "RQ1",
                sentence,
                "descriptive",
                effect=0.0,
                n_configurations=c.n_configurations,
                n_runs=c.n_runs,
                n_seeds=c.n_seeds,
                label=c.label,
            )
            continue
        shown = (
            f", {_number(beside.configurations.mean)}% in the last block ({_interval(beside.interval)})"
            if beside is not None
            else ", the last block not measured"
        )
        sentence = (
            f"{_capital(c.method)}{_where(c.model, c.protocol, entropy, c.scope)} changed the mean attention entropy by "
            f"{_number(mean)}% ({_interval(c.interval)}; {_test(test)}){shown}; it fell {_count(fell, c.cells.n)} and rose in {rose}. "
            + _closing(
                strength,
                f"Its configurations end with {direction} entropy than the pretrained model",
                "a systematic change of the mean",
                c.label,
            )
        )
        e.add(
            f"rq1 entropy {c.method} {c.scope} {c.model} {c.protocol}",
            "RQ1",
            sentence,
            strength,
            effect=mean,
            unit="percent",
            last_block=beside.configurations.mean if beside else None,
            last_block_interval=beside.interval.model_dump() if beside else None,
            below_zero=fell,
            above_zero=rose,
            n_configurations=c.n_configurations,
            n_runs=c.n_runs,
            n_seeds=c.n_seeds,
            interval=c.interval.model_dump(),
            test=_told(test),
            label=c.label,
        )
    for a in e.anova:
        if a.metric != "entropy" or a.level != "configurations" or a.scope != "all datasets":
            continue
        _layer_groups(e, a)


def _layer_groups(e: Evidence, a: Anova) -> None:
    means = ", ".join(f"{name} {_number(value)}%" for name, value in a.means.items())
    same = [x for x in e.anova if x.metric == "entropy"]
    where = _where(a.model, a.protocol, same, a.scope)
    if a.f is None or a.p_greenhouse_geisser is None:
        text = f"no test ({a.reason})"
        strength: Strength = "descriptive" if a.n >= 3 else "too few"
    else:
        holm = f", Holm {_p(a.p_holm)} among {a.family_size}" if a.p_holm is not None else ""
        text = (
            f"repeated-measures ANOVA F({a.df:.0f}, {a.df_error:.0f}) = {a.f:.2f}, Greenhouse-Geisser "
            f"{_p(a.p_greenhouse_geisser)}{holm}"
        )
        if a.descriptive:
            strength = "descriptive"
        else:
            p = max(a.p_greenhouse_geisser, a.p_holm if a.p_holm is not None else 0.0)
            strength = "supported" if p < e.settings.alpha else "no evidence"
    label = f"n = {a.n} configuration{'' if a.n == 1 else 's'}"
    closing = _closing(
        strength,
        "The change differs between the groups of blocks",
        "a difference between groups of blocks",
        label,
    )
    e.add(
        f"rq1 layers {a.method} {a.model} {a.protocol}",
        "RQ1",
        f"Entropy change by blocks under {a.method}{where}: {means}; {text}. {closing}",
        strength,
        means=a.means,
        f=a.f,
        p=a.p,
        p_greenhouse_geisser=a.p_greenhouse_geisser,
        p_holm=a.p_holm,
        epsilon=a.epsilon,
        n_configurations=a.n,
        unit="configuration",
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _rq2(e: Evidence) -> None:
    names = {m.name: m for m in outcomes(e.transfer_sets)}
    wanted = ["entropy_change_pct", LAST_LAYER.name, "cka_mean", "embedding_drift", "test_accuracy"]
    wanted += [f"transfer_{name}_retention_pct" for name in e.transfer_sets]
    pairs = [c for c in e.comparisons if c.measure in wanted]
    if not pairs:
        _unmatched(e)
    for c in pairs:
        if c.scope != "all datasets" or not _worth_telling(c):
            continue
        measure = names[c.measure]
        scale, digits = measure.scale, measure.digits if measure.digits is not None else 3
        points = " points" if measure.unit in ("%", "fraction") else ""
        test = c.configurations.tests[0]
        strength = judge(c.n_configurations, c.n_cells, test, c.interval, e.settings)
        mean = c.cells.mean
        lower = c.cells.below_zero
        d_z = f", d_z = {_number(c.cells.d_z)} on cells" if c.cells.d_z is not None else ""
        cells_test = c.cells.tests[0]
        sentence = (
            f"On {c.n_cells} identical cells{_where(c.model, c.protocol, pairs, c.scope)} {c.first} and {c.second} differ in "
            f"{measure.label[0].lower() + measure.label[1:] if not measure.label.startswith('CKA') else measure.label} by "
            f"{_number(None if mean is None else mean * scale, digits)}{points} "
            f"({_shown(c.first_mean, measure.scale, digits)} against {_shown(c.second_mean, measure.scale, digits)}; "
            f"{_interval(c.interval, digits, scale)}{d_z}; on configuration means {_test(test)}; on cells {_test(cells_test)}); "
            f"{c.first} is lower {_count(lower, c.cells.n)}. "
            + _closing(
                strength,
                f"{_capital(c.first)} is {'lower' if (mean or 0) < 0 else 'higher'} than {c.second}",
                "a difference",
                c.label,
            )
        )
        e.add(
            f"rq2 {c.first} {c.second} {c.measure} {c.model} {c.protocol}",
            "RQ2",
            sentence,
            strength,
            effect=mean,
            unit=c.unit,
            first_mean=c.first_mean,
            second_mean=c.second_mean,
            d_z=c.cells.d_z,
            below_zero=lower,
            n_cells=c.n_cells,
            n_configurations=c.n_configurations,
            n_seeds=c.n_seeds,
            interval=c.interval.model_dump(),
            test=_told(test),
            cells_test=_told(cells_test),
            label=c.label,
        )
    _iso(e)


def _worth_telling(c: Comparison) -> bool:
    """Everything about full fine-tuning and about well-covered pairs; of the others entropy and retention."""
    main = c.measure == "entropy_change_pct" or c.measure.endswith("_retention_pct")
    return main or c.n_configurations >= 3 or c.first == "full"


def _shown(value: float | None, scale: float, digits: int) -> str:
    return _number(None if value is None else value * scale, digits, signed=False)


def _unmatched(e: Evidence) -> None:
    rows = e.tables["configurations"].rows
    rates: dict[str, set[str]] = {}
    for row in rows:
        if row["variant"] == "pretrained" or row["learning_rate"] is None:
            continue
        if row["variant"] == "full" or str(row["variant"]).startswith("LoRA"):
            rates.setdefault(str(row["variant"]), set()).add(f"{row['learning_rate']:g}")
    if len(rates) > 1:
        listed = "; ".join(f"{name} at {', '.join(sorted(values, key=float))}" for name, values in rates.items())
        sentence = (
            "No two methods share a (dataset, settings, rate, seed) cell, so the effect of the method cannot be told from "
            f"that of the learning rate ({listed})."
        )
    else:
        sentence = "The tables hold no two methods on identical cells, so RQ2 cannot be answered."
    e.add(
        "rq2 unmatched",
        "RQ2",
        sentence,
        "too few",
        rates={name: sorted(v, key=float) for name, v in rates.items()},
    )


def _iso(e: Evidence) -> None:
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in e.tables["iso_accuracy"].rows:
        if row["learning_rate"] is None or row["why"] == "setting":
            continue
        key = (
            row["model_name"],
            row["protocol_name"],
            row["dataset"],
            row["conditions"],
            row["why"],
            row["target"],
        )
        groups.setdefault(key, []).append(row)
    for (_, _, dataset, _, why, target), rows in groups.items():
        named = [row for row in rows if f" {row['variant']} and " in f" {why}" or f"and {row['variant']} both" in why]
        if len(named) != 2 or "full" not in {row["variant"] for row in named}:
            continue
        for name in e.transfer_sets[:2]:
            column = f"transfer_{name}_retention_pct"
            if any(row.get(column) is None for row in named):
                continue
            told = " and ".join(
                f"{row['variant']} (rate {row['learning_rate']:.2g}) keeps {row[column]:.1f}%" for row in named
            )
            seeds = min(int(row["n_seeds"]) for row in named)
            note = (
                "one seed: descriptive only"
                if seeds == 1
                else "interpolated between configuration means: descriptive only"
            )
            e.add(
                f"rq2 iso {dataset} {name} {' '.join(str(row['variant']) for row in named)}",
                "RQ2",
                f"At equal validation accuracy ({100 * target:.1f}%) on {dataset}, {told} of the zero-shot accuracy on {name} ({note}).",
                "descriptive",
                target=target,
                points=[
                    {"method": r["variant"], "learning_rate": r["learning_rate"], "retention_pct": r[column]}
                    for r in named
                ],
                n_seeds=seeds,
            )


def _rq3(e: Evidence) -> None:
    scored = [s for s in e.signals if s.scope == "all runs"]
    if not scored:
        e.add(
            "rq3 none",
            "RQ3",
            "No run carries a retention on a transfer set, so RQ3 cannot be answered.",
            "too few",
        )
        return
    for name in e.transfer_sets:
        for when in ("final", "first epoch"):
            here = [s for s in scored if s.transfer_set == name and s.when == when]
            known = [s for s in here if s.spearman_configurations.statistic is not None]
            if not known:
                continue
            measured = [s for s in known if s.signal not in ("learning_rate", "validation_accuracy")]
            best = max(measured, key=lambda s: abs(s.spearman_configurations.statistic or 0.0), default=None)
            told = [s for s in known if s.signal in _TOLD_SIGNALS]
            if best is not None and best not in told:
                told.insert(0, best)
            for s in told:
                _signal(e, s, best=s is best)
            _warning(e, here, name, when)
        for selection in e.selections:
            if selection.transfer_set == name:
                _selection(e, selection)


def _signal(e: Evidence, s: Signal, *, best: bool) -> None:
    test = s.spearman_configurations
    strength = judge(s.n_configurations, s.n_runs, test, s.interval, e.settings)
    rho = test.statistic or 0.0
    agrees = rho * s.expected_sign > 0
    within = (
        f"within {s.n_groups} dataset x method groups it averages {_number(s.within_mean)} (absolute {_number(s.within_mean_absolute, signed=False)})"
        if s.within_mean is not None
        else f"within dataset x method groups it is not defined ({s.within_reason})"
    )
    moment = "after the first epoch " if s.when == "first epoch" else ""
    surprise = "" if agrees or strength != "supported" else ", with the sign opposite to its meaning"
    sentence = (
        f"{_capital(_SIGNAL_LABELS[s.signal])} {moment}ranks the runs by their {s.transfer_set} retention with Spearman rho = "
        f"{_number(s.spearman_runs.statistic)} over {s.n_runs} runs and {_number(rho)} over {s.n_configurations} configurations "
        f"({_interval(s.interval)}; {_test(test)}); {within}."
        + (" It is the strongest of the measured signals." if best else "")
        + " "
        + _closing(
            strength,
            f"It predicts retention over all configurations{surprise}",
            "a monotone relation",
            s.label,
        )
    )
    e.add(
        f"rq3 {s.transfer_set} {s.when} {s.signal}",
        "RQ3",
        sentence,
        strength,
        effect=rho,
        spearman_runs=s.spearman_runs.statistic,
        within_mean=s.within_mean,
        within_mean_absolute=s.within_mean_absolute,
        n_groups=s.n_groups,
        best=best,
        n_runs=s.n_runs,
        n_configurations=s.n_configurations,
        n_seeds=s.n_seeds,
        interval=s.interval.model_dump(),
        test=_told(test),
        label=s.label,
    )


def _warning(e: Evidence, here: list[Signal], name: str, when: str) -> None:
    known = [s for s in here if s.roc_auc is not None and s.signal not in ("learning_rate", "validation_accuracy")]
    if not known:
        return
    best = max(known, key=lambda s: s.roc_auc or 0.0)
    interval = best.roc_interval
    low = None if interval is None else interval.low
    few = best.n_configurations < e.settings.min_configurations
    clear = low is not None and low > 0.5
    strength: Strength = "descriptive"
    moment = "at the end" if when == "final" else "after the first epoch"
    extra = (
        "The best of several signals was picked on the same runs, so its area is optimistic: descriptive only."
        if not few
        else f"Descriptive only ({best.label.removesuffix(': descriptive only')})."
    )
    e.add(
        f"rq3 {name} warning {when}",
        "RQ3",
        f"Of {len(known)} signals measured {moment}, {_SIGNAL_LABELS[best.signal]} tells the {best.n_damaged} of {best.n_runs} runs "
        f"that end below {e.settings.damaged_below_pct:g}% {name} retention apart best: ROC area {best.roc_auc:.2f} "
        f"({_interval(interval)}; {'above' if clear else 'not clearly above'} chance, 0.5). {extra}",
        strength,
        effect=best.roc_auc,
        signal=best.signal,
        n_damaged=best.n_damaged,
        n_runs=best.n_runs,
        n_configurations=best.n_configurations,
        interval=interval.model_dump() if interval else None,
        label=best.label,
    )


def _selection(e: Evidence, s: Selection) -> None:
    if s.oracle_pct is None or s.n_runs < 2 or s.random_pct is None:
        return
    rules = {choice.rule.split(" ", 1)[1]: choice for choice in s.choices if choice.retention_pct is not None}
    told = [
        f"{_SIGNAL_LABELS[name]} {rules[name].retention_pct:.1f}%"
        for name in ("embedding_drift", "weight_drift", "cka_mean", "abs_entropy_change")
        if name in rules
    ]
    if not told:
        return
    where = _where(s.model, s.protocol, e.selections, "all datasets")
    e.add(
        f"rq3 {s.transfer_set} selection {s.dataset} {s.margin_points:g} {s.model} {s.protocol}",
        "RQ3",
        f"Among the {s.n_runs} runs within {s.margin_points:g} point{'' if s.margin_points == 1 else 's'} of the best validation accuracy on {s.dataset}{where}, the oracle "
        f"keeps {s.oracle_pct:.1f}% on {s.transfer_set}, a random choice {s.random_pct:.1f}%; choosing by the smallest drift from the "
        f"pretrained model: {', '.join(told)}. One selection from one set of runs: descriptive only.",
        "descriptive",
        oracle_pct=s.oracle_pct,
        random_pct=s.random_pct,
        choices={name: choice.retention_pct for name, choice in rules.items()},
        margin_points=s.margin_points,
        n_runs=s.n_runs,
    )


def _sweeps(table: Table) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in table.rows:
        groups.setdefault(str(row["sweep"]), []).append(row)
    return groups


def _seeds(rows: list[dict[str, Any]]) -> str:
    n = min(int(row["n_seeds"]) for row in rows)
    if n == 1:
        return "one seed: descriptive only"
    return f"{n} seeds of one configuration each: descriptive only"


def _entropy(row: dict[str, Any]) -> str:
    spread = row.get("entropy_change_pct_sd")
    text = _number(row.get("entropy_change_pct")) + "%"
    text += f" ± {spread:.2f}" if spread is not None else ""
    last = row.get(LAST_LAYER.name)
    return text + (f", last block {_number(last)}%" if last is not None else ", last block not measured")


def _accuracy(row: dict[str, Any]) -> str:
    for name, word in (("test_accuracy", "test"), ("best_val_accuracy", "validation")):
        if row.get(name) is not None:
            return f"{word} accuracy {100 * row[name]:.2f}%"
    return "accuracy not given"


def _rq4(e: Evidence) -> None:
    sweeps = _sweeps(e.tables["sweep_regularizer"])
    if not sweeps:
        e.add(
            "rq4 none",
            "RQ4",
            "No two runs differ in the regularizer alone, so RQ4 cannot be answered.",
            "too few",
        )
    for label, rows in sweeps.items():
        known = [row for row in rows if row.get("entropy_change_pct") is not None]
        base = next((row for row in known if row["setting"] == "none"), None)
        with_it = [row for row in known if row["setting"] != "none"]
        if base is None or not with_it:
            continue
        for name in sorted({str(row["setting"]).split(" ")[0] for row in with_it}):
            mine = [row for row in with_it if str(row["setting"]).split(" ")[0] == name]
            best = min(mine, key=lambda row: abs(row["entropy_change_pct"]))
            nearer = [row for row in mine if abs(row["entropy_change_pct"]) < abs(base["entropy_change_pct"])]
            verdict = (
                f"nearer to 0 than without it at {len(nearer)} of {len(mine)} weights"
                if nearer
                else "at no weight nearer to 0 than without it"
            )
            e.add(
                f"rq4 {label} {name}",
                "RQ4",
                f"{_capital(name.replace('_', ' '))} on {label}: the mean entropy change is {verdict}; nearest to 0 is "
                f"{best['setting']} ({_entropy(best)}; {_accuracy(best)}), without it {_entropy(base)}; {_accuracy(base)}. "
                f"Preserving means a change near 0, whatever its sign ({_seeds([*mine, base])}).",
                "descriptive" if len(mine) + 1 >= 3 else "too few",
                settings={str(row["setting"]): row["entropy_change_pct"] for row in (base, *mine)},
                nearest_to_zero=str(best["setting"]),
                nearer_than_none=[str(row["setting"]) for row in nearer],
                n_seeds=min(int(row["n_seeds"]) for row in (base, *mine)),
                n_configurations=len(mine) + 1,
            )


def _rq5(e: Evidence) -> None:
    told = [r for r in e.rates if r.measure == "entropy_change_pct" or r.measure.endswith("_retention_pct")]
    for r in told:
        spearman, pearson = r.configurations.spearman, r.configurations.pearson
        if spearman.statistic is None:
            continue
        strength = judge(r.n_configurations, r.n_runs, spearman, r.configurations.spearman_interval, e.settings)
        measure = next(m for m in outcomes(e.transfer_sets) if m.name == r.measure)
        interval = r.configurations.spearman_interval
        cells = r.cells.spearman.statistic
        sentence = (
            f"{_capital(measure.label.lower() if not measure.label[:4].isupper() else measure.label)} against log10 learning rate, {r.sweep} "
            f"({len(r.rates)} rates): Spearman rho = {_number(spearman.statistic, 3)} and Pearson r = "
            f"{_number(pearson.statistic, 3)} over {r.n_configurations} configuration means ({_interval(interval, 3)}; {_test(spearman)}; "
            f"{_test(pearson)}), rho = {_number(cells, 3)} over {r.n_runs} cells. "
            + _closing(
                strength,
                f"The {measure.label.lower()} {'falls' if spearman.statistic < 0 else 'rises'} with the rate",
                "a monotone effect of the rate",
                r.label,
            )
        )
        e.add(
            f"rq5 rate {r.sweep} {r.measure} {r.model} {r.protocol}",
            "RQ5",
            sentence,
            strength,
            effect=spearman.statistic,
            pearson=pearson.statistic,
            spearman_cells=cells,
            rates=r.rates,
            n_configurations=r.n_configurations,
            n_cells=r.n_runs,
            n_seeds=r.n_seeds,
            interval=interval.model_dump() if interval else None,
            test=_told(spearman),
            label=r.label,
        )
    ranges: list[tuple[float, str, str, int]] = []
    for kind, word in (
        ("rate", "learning rate"),
        ("rank", "LoRA rank"),
        ("freezing", "frozen blocks"),
        ("targets", "LoRA target modules"),
        ("weight_decay", "weight decay"),
        ("projection", "visual projection"),
    ):
        for label, rows in _sweeps(e.tables[f"sweep_{kind}"]).items():
            known = [row for row in rows if row.get("entropy_change_pct") is not None]
            if len(known) < 2:
                continue
            low = min(known, key=lambda row: row["entropy_change_pct"])
            high = max(known, key=lambda row: row["entropy_change_pct"])
            spread = high["entropy_change_pct"] - low["entropy_change_pct"]
            ranges.append((spread, word, label, min(int(row["n_seeds"]) for row in known)))
            if kind == "rate":
                continue
            seeds = _seeds(known)
            e.add(
                f"rq5 {kind} {label}",
                "RQ5",
                f"{_capital(word)} on {label}: over {len(known)} settings the mean entropy change spans {spread:.2f} points, from "
                f"{low['setting']} ({_entropy(low)}; {_accuracy(low)}) to {high['setting']} ({_entropy(high)}; {_accuracy(high)})"
                + ("; how much of it seeds alone would give is not known" if "one seed" in seeds else "")
                + f" ({seeds}).",
                "descriptive" if len(known) >= 3 or "one seed" not in seeds else "too few",
                span=spread,
                settings={str(row["setting"]): row["entropy_change_pct"] for row in known},
                n_seeds=min(int(row["n_seeds"]) for row in known),
                n_configurations=len(known),
            )
    if not told and not ranges:
        e.add(
            "rq5 none",
            "RQ5",
            "No two runs differ in one hyperparameter alone, so RQ5 cannot be answered.",
            "too few",
        )
    if len({word for _, word, _, _ in ranges}) > 1:
        widest: dict[str, tuple[float, str, str, int]] = {}
        for item in ranges:
            if item[1] not in widest or item[0] > widest[item[1]][0]:
                widest[item[1]] = item
        order = sorted(widest.values(), key=lambda item: -item[0])
        one = min(item[3] for item in order) == 1
        e.add(
            "rq5 widest",
            "RQ5",
            "Widest span of the mean entropy change within one sweep: "
            + "; ".join(f"{word} {spread:.2f} points ({label})" for spread, word, label, _ in order)
            + f". The spans depend on the values tried, so this is a description, not a test{' (one seed)' if one else ''}.",
            "descriptive",
            spans={word: spread for spread, word, _, _ in order},
        )
