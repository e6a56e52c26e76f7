"""RQ1: does fine-tuning change the entropy of attention, and where?"""

from __future__ import annotations

from attndrift.analysis.measures import LAST_LAYER
from attndrift.analysis.result import Anova, Strength
from attndrift.analysis.wording import (
    Evidence,
    capital,
    closing,
    count_text,
    evidence_text,
    interval_text,
    judge,
    number_text,
    p_text,
    told,
    where_text,
)


def attention_claims(e: Evidence) -> None:
    entropy = [c for c in e.changes if c.measure == "entropy_change_pct"]
    last = {(c.method, c.model, c.selection, c.scope): c for c in e.changes if c.measure == LAST_LAYER}
    if not entropy:
        e.add(
            "rq1 none",
            "RQ1",
            "No run carries a change of attention entropy, so RQ1 cannot be answered.",
            "too few",
        )
    for c in entropy:
        beside = last.get((c.method, c.model, c.selection, c.scope))
        test = c.configurations.tests[0]
        strength = judge(c.n_configurations, c.n_runs, c.n_seeds, test, c.interval, e.settings)
        mean = c.configurations.mean
        fell, rose = c.cells.below_zero, c.cells.above_zero
        direction = "lower" if (mean or 0) < 0 else "higher"
        if fell == rose == 0:
            sentence = (
                f"{capital(c.method)}{where_text(c.model, c.selection, entropy, c.scope)} left the attention "
                f"entropy exactly "
                f"unchanged in all {c.n_runs} runs ({c.label.removesuffix(': descriptive only')})."
            )
            e.add(
                f"rq1 entropy {c.method} {c.scope} {c.model} {c.selection}",
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
            f", {number_text(beside.configurations.mean)}% in the last block"
            + (f" ({interval_text(beside.interval)})" if beside.interval.low is not None else "")
            if beside is not None
            else ", the last block not measured"
        )
        sentence = (
            f"{capital(c.method)}{where_text(c.model, c.selection, entropy, c.scope)} changed the mean attention "
            f"entropy by "
            f"{number_text(mean)}% ({evidence_text(c.interval, test)}){shown}; it fell "
            f"{count_text(fell, c.cells.n)} and rose in {rose}. "
            + closing(
                strength,
                f"Its configurations end with {direction} entropy than the pretrained model",
                "a systematic change of the mean",
                c.label,
            )
        )
        e.add(
            f"rq1 entropy {c.method} {c.scope} {c.model} {c.selection}",
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
            test=told(test),
            label=c.label,
        )
    for a in e.anova:
        if a.metric != "entropy" or a.level != "configurations" or a.scope != "all datasets":
            continue
        _layer_groups(e, a)


def _layer_groups(e: Evidence, a: Anova) -> None:
    means = ", ".join(f"{name} {number_text(value)}%" for name, value in a.means.items())
    same = [x for x in e.anova if x.metric == "entropy"]
    where = where_text(a.model, a.selection, same, a.scope)
    if a.f is None or a.p_greenhouse_geisser is None:
        text = f"no test ({a.reason})"
        strength: Strength = "descriptive" if a.n >= 3 else "too few"
    else:
        holm = f", Holm {p_text(a.p_holm)} among {a.family_size}" if a.p_holm is not None else ""
        text = (
            f"repeated-measures ANOVA F({a.df:.0f}, {a.df_error:.0f}) = {a.f:.2f}, Greenhouse-Geisser "
            f"{p_text(a.p_greenhouse_geisser)}{holm}"
        )
        if a.descriptive or e.n_seeds < 2:
            strength = "descriptive"
        else:
            p = max(a.p_greenhouse_geisser, a.p_holm if a.p_holm is not None else 0.0)
            strength = "supported" if p < e.settings.alpha else "no evidence"
    label = f"n = {a.n} configuration{'' if a.n == 1 else 's'}"
    verdict = closing(
        strength,
        "The change differs between the groups of blocks",
        "a difference between groups of blocks",
        label,
    )
    e.add(
        f"rq1 layers {a.method} {a.model} {a.selection}",
        "RQ1",
        f"Entropy change by blocks under {a.method}{where}: {means}; {text}. {verdict}",
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
