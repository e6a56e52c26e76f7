"""RQ4 and RQ5: preservation losses, learning rate and the other settings."""

from __future__ import annotations

from attndrift.analysis.measures import outcomes
from attndrift.analysis.wording import (
    Evidence,
    accuracy_text,
    capital,
    closing,
    entropy_text,
    interval_text,
    judge,
    number_text,
    seeds_text,
    sweeps_of,
    test_text,
    told,
)


def loss_claims(e: Evidence) -> None:
    sweeps = sweeps_of(e.tables["sweep_loss"])
    if not sweeps:
        e.add(
            "rq4 none",
            "RQ4",
            "No two runs differ in the preservation loss alone, so RQ4 cannot be answered.",
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
                f"{capital(name.replace('_', ' '))} on {label}: the mean entropy change is {verdict}; nearest "
                f"to 0 is "
                f"{best['setting']} ({entropy_text(best)}; {accuracy_text(best)}), without it "
                f"{entropy_text(base)}; {accuracy_text(base)}. "
                f"Preserving means a change near 0, whatever its sign ({seeds_text([*mine, base])}).",
                "descriptive" if len(mine) + 1 >= 3 else "too few",
                settings={str(row["setting"]): row["entropy_change_pct"] for row in (base, *mine)},
                nearest_to_zero=str(best["setting"]),
                nearer_than_none=[str(row["setting"]) for row in nearer],
                n_seeds=min(int(row["n_seeds"]) for row in (base, *mine)),
                n_configurations=len(mine) + 1,
            )

    if sweeps and not any(finding.question == "RQ4" for finding in e.found):
        e.add(
            "rq4 none",
            "RQ4",
            "No preservation loss can be set beside the same run without it with an entropy change in both, so RQ4 cannot be "
            "answered.",
            "too few",
        )


Span = tuple[float, str, str, int]
"""Points of entropy change between the ends of one sweep, the setting, the sweep, and seeds at the least."""


def setting_claims(e: Evidence) -> None:
    """RQ5: what the learning rate does, and how far each other setting moves the entropy."""
    _rate_claims(e)
    spans = _span_claims(e)
    if not any(finding.question == "RQ5" for finding in e.found):
        e.add(
            "rq5 none",
            "RQ5",
            "No two runs with a measured change differ in one hyperparameter alone, so RQ5 cannot be answered.",
            "too few",
        )
    _widest_span(e, spans)


def _rate_claims(e: Evidence) -> None:
    swept = [r for r in e.rates if r.measure == "entropy_change_pct" or r.measure.endswith("_retention_pct")]
    for r in swept:
        spearman, pearson = r.configurations.spearman, r.configurations.pearson
        if spearman.statistic is None:
            continue
        strength = judge(
            r.n_configurations, r.n_runs, r.n_seeds, spearman, r.configurations.spearman_interval, e.settings
        )
        measure = next(m for m in outcomes(e.transfer_sets) if m.name == r.measure)
        interval = r.configurations.spearman_interval
        cells = r.cells.spearman.statistic
        sentence = (
            f"{capital(measure.label)} against "
            f"log10 learning rate, {r.sweep} "
            f"({len(r.rates)} rates): Spearman rho = {number_text(spearman.statistic, 3)} and Pearson r = "
            f"{number_text(pearson.statistic, 3)} over {r.n_configurations} configuration means "
            f"({interval_text(interval, 3)}; {test_text(spearman)}; "
            f"{test_text(pearson)}), rho = {number_text(cells, 3)} over {r.n_runs} cells. "
            + closing(
                strength,
                f"The {measure.label[0].lower() + measure.label[1:]} "
                f"{'falls' if spearman.statistic < 0 else 'rises'} with the rate",
                "a monotone effect of the rate",
                r.label,
            )
        )
        e.add(
            f"rq5 rate {r.sweep} {r.measure} {r.model} {r.selection}",
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
            test=told(spearman),
            label=r.label,
        )


def _span_claims(e: Evidence) -> list[Span]:
    ranges: list[Span] = []
    for kind, word in (
        ("rate", "learning rate"),
        ("rank", "LoRA rank"),
        ("freezing", "frozen blocks"),
        ("targets", "LoRA target modules"),
        ("weight_decay", "weight decay"),
        ("projection", "visual projection"),
    ):
        for label, rows in sweeps_of(e.tables[f"sweep_{kind}"]).items():
            known = [row for row in rows if row.get("entropy_change_pct") is not None]
            if len(known) < 2:
                continue
            low = min(known, key=lambda row: row["entropy_change_pct"])
            high = max(known, key=lambda row: row["entropy_change_pct"])
            spread = high["entropy_change_pct"] - low["entropy_change_pct"]
            ranges.append((spread, word, label, min(int(row["n_seeds"]) for row in known)))
            if kind == "rate" and len(known) > 2:
                # Three rates and more are tested above.
                continue
            seeds = seeds_text(known)
            e.add(
                f"rq5 {kind} {label}",
                "RQ5",
                f"{capital(word)} on {label}: over {len(known)} settings the mean entropy change spans "
                f"{spread:.2f} points, from "
                f"{low['setting']} ({entropy_text(low)}; {accuracy_text(low)}) to {high['setting']} "
                f"({entropy_text(high)}; {accuracy_text(high)})"
                + ("; how much of it seeds alone would give is not known" if "one seed" in seeds else "")
                + f" ({seeds}).",
                "descriptive" if len(known) >= 3 or "one seed" not in seeds else "too few",
                span=spread,
                settings={str(row["setting"]): row["entropy_change_pct"] for row in known},
                n_seeds=min(int(row["n_seeds"]) for row in known),
                n_configurations=len(known),
            )
    return ranges


def _widest_span(e: Evidence, ranges: list[Span]) -> None:
    if len({word for _, word, _, _ in ranges}) > 1:
        widest: dict[str, Span] = {}
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
            + ". The spans depend on the values tried, so this is a description, not a test"
            + (" (one seed)." if one else "."),
            "descriptive",
            spans={word: spread for spread, word, _, _ in order},
        )
