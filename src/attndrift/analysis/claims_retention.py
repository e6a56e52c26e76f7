"""RQ3: what goes with the loss of zero-shot transfer, and what warns of it."""

from __future__ import annotations

from attndrift.analysis.measures import signals
from attndrift.analysis.result import SelectionRules, Signal, Strength
from attndrift.analysis.wording import (
    Evidence,
    capital,
    closing,
    interval_text,
    judge,
    number_text,
    spread_text,
    test_text,
    told,
    where_text,
)

_SHORTER = {"cka_mean": "mean CKA", "cka_last": "CKA of the last block", "cka_debiased_mean": "debiased mean CKA"}
_TOLD_SIGNALS = ("abs_entropy_change", "entropy_change", "embedding_drift", "weight_drift", "cka_mean")


def _signal_label(name: str) -> str:
    label = next(source.label for source in signals() if source.name == name)
    return _SHORTER.get(name, label[0].lower() + label[1:])


def retention_claims(e: Evidence) -> None:
    scored = [s for s in e.signals if s.scope == "all runs"]
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
        for selection in e.selection_rules:
            if selection.transfer_set == name:
                _selection(e, selection)
    if not any(finding.id.startswith("rq3-") for finding in e.found):
        columns = [f"transfer_{name}_zero_shot_retention_pct" for name in e.transfer_sets]
        kept = sum(
            any(row.get(column) is not None for column in columns)
            for row in e.tables["runs"].rows
            if row.get("variant") != "pretrained"
        )
        e.add(
            "rq3 none",
            "RQ3",
            "No run carries a retention on a transfer set, so RQ3 cannot be answered."
            if not kept
            else f"{kept} run{' carries' if kept == 1 else 's carry'} a retention and no signal varies beside it in three or "
            "more of them, so what goes with the loss of transfer cannot be told.",
            "too few",
        )
    _interpolation(e)


_RULES = {
    "agreement": "agreement with the pretrained model's predictions on the unlabelled transfer images",
    "cka": "mean CKA",
    "embedding_drift": "embedding drift",
}


def _interpolation(e: Evidence) -> None:
    """How well an alpha chosen without labels kept the retention that was wanted."""
    rows = [row for row in e.tables["interpolation_choice"].rows if row["retention_pct"] is not None]
    for name in sorted({str(row["transfer_set"]) for row in rows}):
        for rule, words in _RULES.items():
            mine = [row for row in rows if (row["transfer_set"], row["rule"]) == (name, rule)]
            if not mine:
                continue
            told: list[str] = []
            for wanted in sorted({float(row["wanted_pct"]) for row in mine}, reverse=True):
                own = [row for row in mine if row["wanted_pct"] == wanted]
                kept = sum(bool(row["retained"]) for row in own)
                errors = [float(row["error_points"]) for row in own]
                text = (
                    f"for {wanted:g}% it was reached in {kept} of {len(own)}, the retention there "
                    f"{spread_text(errors, signed=True)} points from the wanted one"
                )
                costs = [
                    100 * (float(row["best_test_accuracy"]) - float(row["test_accuracy"]))
                    for row in own
                    if row["test_accuracy"] is not None and row["best_test_accuracy"] is not None
                ]
                if costs:
                    text += f", the test accuracy {spread_text(costs, signed=True)} points below that of the best alpha"
                told.append(text)
            n = len({row["run_id"] for row in mine})
            e.add(
                f"rq3 {name} interpolation {rule}",
                "RQ3",
                f"Along {n} interpolation sweep{'' if n == 1 else 's'} alpha was chosen by {words} for a wanted "
                f"retention on {name}: {'; '.join(told)}. "
                + ("Descriptive only" if n >= 3 else "Too few sweeps to tell how well the rule does on others")
                + f" (n = {n} run{'' if n == 1 else 's'}).",
                "descriptive" if n >= 3 else "too few",
                rule=rule,
                n_runs=n,
                choices=[
                    {
                        key: row[key]
                        for key in (
                            "run_id",
                            "wanted_pct",
                            "alpha",
                            "retention_pct",
                            "error_points",
                            "retained",
                            "best_alpha",
                        )
                    }
                    for row in mine
                ],
            )


def _signal(e: Evidence, s: Signal, *, best: bool) -> None:
    test = s.spearman_configurations
    strength = judge(s.n_configurations, s.n_runs, s.n_seeds, test, s.interval, e.settings)
    rho = test.statistic or 0.0
    agrees = rho * s.expected_sign > 0
    within = (
        f"within {s.n_groups} dataset x method groups it averages {number_text(s.within_mean)} (absolute "
        f"{number_text(s.within_mean_absolute, signed=False)})"
        if s.within_mean is not None
        else f"within dataset x method groups it is not defined ({s.within_reason})"
    )
    moment = "after the first epoch " if s.when == "first epoch" else ""
    surprise = "" if agrees or strength != "supported" else ", with the sign opposite to its meaning"
    sentence = (
        f"{capital(_signal_label(s.signal))} {moment}ranks the runs by their {s.transfer_set} retention with "
        f"Spearman rho = "
        f"{number_text(s.spearman_runs.statistic)} over {s.n_runs} runs and {number_text(rho)} over "
        f"{s.n_configurations} configurations "
        f"({interval_text(s.interval)}; {test_text(test)}); {within}."
        + (" It is the strongest of the measured signals." if best else "")
        + " "
        + closing(
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
        test=told(test),
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
    spread = interval is not None and interval.low is not None and interval.low != interval.high
    clear = spread and low is not None and low > 0.5
    against = (
        f"{interval_text(interval)}; {'above' if clear else 'not clearly above'} chance, 0.5"
        if spread or best.roc_auc is None or best.roc_auc < 1
        else "it separates these runs without a mistake, so that resampling them shows no uncertainty"
    )
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
        f"Of {len(known)} signals measured {moment}, {_signal_label(best.signal)} tells the {best.n_damaged} "
        f"of {best.n_runs} runs "
        f"that end below {e.settings.damaged_below_pct:g}% {name} retention apart best: ROC area {best.roc_auc:.2f} "
        f"({against}). {extra}",
        strength,
        effect=best.roc_auc,
        signal=best.signal,
        n_damaged=best.n_damaged,
        n_runs=best.n_runs,
        n_configurations=best.n_configurations,
        interval=interval.model_dump() if interval else None,
        label=best.label,
    )


def _selection(e: Evidence, s: SelectionRules) -> None:
    if s.oracle_pct is None or s.n_runs < 2 or s.random_pct is None:
        return
    rules = {choice.rule.split(" ", 1)[1]: choice for choice in s.choices if choice.retention_pct is not None}
    told = [
        f"{_signal_label(name)} {rules[name].retention_pct:.1f}%"
        for name in ("embedding_drift", "weight_drift", "cka_mean", "abs_entropy_change")
        if name in rules
    ]
    if not told:
        return
    where = where_text(s.model, s.selection, e.selection_rules, "all datasets")
    e.add(
        f"rq3 {s.transfer_set} selection {s.dataset} {s.margin_points:g} {s.model} {s.selection}",
        "RQ3",
        f"Among the {s.n_runs} runs within {s.margin_points:g} point{'' if s.margin_points == 1 else 's'} of "
        f"the best validation accuracy on {s.dataset}{where}, the oracle "
        f"retains {s.oracle_pct:.1f}% on {s.transfer_set}, a random choice {s.random_pct:.1f}%; choosing by the "
        f"smallest drift from the "
        f"pretrained model: {', '.join(told)}. One selection from one set of runs: descriptive only.",
        "descriptive",
        oracle_pct=s.oracle_pct,
        random_pct=s.random_pct,
        choices={name: choice.retention_pct for name, choice in rules.items()},
        margin_points=s.margin_points,
        n_runs=s.n_runs,
    )
