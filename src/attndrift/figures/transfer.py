"""Attention and zero-shot transfer: scatter, Pareto front, predictors, interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from attndrift.analysis.intervals import ranks
from attndrift.analysis.measures import headlines
from attndrift.analysis.numbers import format_rate
from attndrift.analysis.signal_sources import signals
from attndrift.figures.labels import label_points
from attndrift.figures.panels import image_words
from attndrift.figures.registry import figure
from attndrift.figures.source import (
    LEVEL,
    Drawing,
    NoData,
    Source,
    error_of,
    over_seeds,
    scaled,
    seeds_text,
    spread_text,
)
from attndrift.figures.style import (
    GREY,
    Look,
    axis_label,
    clip,
    legend,
    looks,
    mark,
    new_figure,
    short_label,
    transfer_name,
    wrap,
    zero_line,
)
from attndrift.methods.registry import in_order, label_of
from attndrift.results.measures import accuracy_words, column_stem
from attndrift.results.tables import transfer_outcomes
from attndrift.retention.image_limits import wilson_limits


def _configurations(source: Source, columns: list[str]) -> pd.DataFrame:
    """Mean, sd and count of ``columns`` over the runs of each configuration, with its method and data set."""
    runs = source.adapted
    grouped = runs.groupby("configuration", sort=False)
    table = grouped.agg(
        method=("method", "first"),
        variant=("variant", "first"),
        dataset=("dataset", "first"),
        n=("run_id", "count"),
    )
    table = table.reset_index()
    for column in columns:
        spread = over_seeds(runs, ["configuration"], column, source.images).set_index("configuration")
        spread = spread.reindex(table["configuration"])
        table[column], table[f"{column}_sd"] = spread["mean"].to_numpy(), spread["sd"].to_numpy()
        error = error_of(spread)
        if error is not None:
            table[f"{column}_below"], table[f"{column}_above"] = error
        if "low" in spread:
            table["low"] = spread["low"].to_numpy()
    return table


def _method_looks(methods: list[str]) -> dict[str, Look]:
    return looks([(method, method) for method in in_order(methods)])


def _scatter(panel: Any, table: pd.DataFrame, x: str, y: str, look: dict[str, Look], datasets: list[str]) -> None:
    for (method, dataset), part in table.groupby(["method", "dataset"], sort=False):
        one = look[str(method)]
        panel.errorbar(
            scaled(x, part[x]),
            scaled(y, part[y]),
            xerr=_bars(x, part),
            yerr=_bars(y, part),
            color=one.color,
            marker=one.marker,
            markerfacecolor=one.color if datasets.index(str(dataset)) == 0 else "white",
            linestyle="none",
            elinewidth=0.5,
        )


def _bars(column: str, part: pd.DataFrame) -> Any:
    if f"{column}_below" not in part:
        return None
    return scaled(column, part[[f"{column}_below", f"{column}_above"]].to_numpy().T)


def _entries(look: dict[str, Look], datasets: list[str]) -> list[tuple[str, Any]]:
    entries: list[tuple[str, Any]] = [
        (label_of(method, short=True), mark(one, line=False)) for method, one in look.items()
    ]
    if len(datasets) > 1:
        first = Line2D([], [], color=GREY, marker="o", linestyle="none")
        other = Line2D([], [], color=GREY, marker="o", markerfacecolor="white", linestyle="none")
        rest = datasets[1] if len(datasets) == 2 else "other data sets"
        entries += [(f"filled: {datasets[0]}", first), (f"open: {rest}", other)]
    return entries


@figure(
    "fig7_collapse_vs_zeroshot",
    title="Attention change and retention",
    section="rq3",
    alt="Scatter plots: retention against changes of attention and representation, a mark a configuration.",
)
def collapse_against_zero_shot(source: Source) -> Drawing:
    """Fig. 7: zero-shot retention against the change of attention and of the embeddings."""
    y = source.retention
    signals = [
        c for c in headlines(last_block=True) if (source.adapted[c].notna() & source.adapted[y].notna()).sum() >= 2
    ]
    if not signals:
        raise NoData("fewer than two runs have both a retention and a structural change")
    table = _configurations(source, [y, *signals])
    table = table[table[y].notna()]
    datasets = [name for name in source.datasets if (table["dataset"] == name).any()]
    look = _method_looks(list(table["method"]))
    rows = -(-len(signals) // 2)
    figure, axes = new_figure(20 + 36 * rows, rows, min(2, len(signals)), sharey=True)
    told: list[str] = []
    for column, panel in zip(signals, axes.flat, strict=False):
        part = table[table[column].notna()]
        _scatter(panel, part, column, y, look, datasets)
        panel.set_xlabel(axis_label(column))
        panel.xaxis.set_major_locator(MaxNLocator(4))
        if column.endswith("change_pct"):
            zero_line(panel, vertical=True)
        told.append(f"{short_label(column)} {_rho(part[column], part[y])}")
    for panel in axes.flat[len(signals) :]:
        panel.set_visible(False)
    for panel in axes[:, 0]:
        panel.set_ylabel(axis_label(y))
    legend(figure, _entries(look, datasets), table["n"], images=image_words(table))
    text = (
        f"Retention of {accuracy_words(transfer_name(y))} against changes of attention and representation; a mark a "
        f"configuration, n = {len(table)} ({seeds_text(table['n'])} each). Spearman rho over configuration means, "
        f"descriptive: {'; '.join(told)}. " + spread_text(table["n"], images=table)
    )
    return Drawing(figure, source.caption(text), table)


def _rho(x: pd.Series, y: pd.Series) -> str:
    if len(x) < 4:
        return f"too few (n = {len(x)})"
    if x.nunique() < 2 or y.nunique() < 2:
        return "constant"
    return f"{float(ranks(x) @ ranks(y)):+.2f}".replace("-", "−")


@figure(
    "pareto_front",
    title="Accuracy and retention",
    section="rq3",
    alt="Scatter plot of accuracy against retention; steps join the configurations that no other one betters.",
)
def pareto_front(source: Source) -> Drawing:
    """Accuracy against retention with the Pareto front, a panel a data set."""
    y = source.retention
    rows = [row for row in source.analysis.tables["pareto"].rows if row["transfer_set"] == transfer_name(y)]
    table = pd.DataFrame(rows)
    known = source.adapted.drop_duplicates("configuration").set_index("configuration")
    if table.empty or not table["configuration"].isin(known.index).any():
        raise NoData("no run has both an accuracy and a retention")
    table = table[table["configuration"].isin(known.index)].copy()
    table["method"] = table["configuration"].map(known["method"])
    for column, name in ((source.accuracy, "accuracy"), (y, "retention_pct")):
        spread = over_seeds(source.adapted, ["configuration"], column, source.images).set_index("configuration")
        error = error_of(spread.reindex(table["configuration"]))
        if error is not None:
            table[f"{name}_below"], table[f"{name}_above"] = error
        low = spread["low"].reindex(table["configuration"]).to_numpy() if "low" in spread else np.nan
        table["low"] = table["low"].fillna(pd.Series(low, index=table.index)) if "low" in table else low
    sizes = table["dataset"].value_counts()
    known_sets = [name for name in source.datasets if name in sizes.index]
    # A panel of two or three marks says what a row of a table says better.
    datasets = [name for name in known_sets[:2] if name == known_sets[0] or sizes[name] >= _FEWEST_MARKS]
    table = table[table["dataset"].isin(datasets)]
    look = _method_looks(list(table["method"]))
    figure, axes = new_figure(14 + 66 * len(datasets), len(datasets), 1)
    for dataset, panel in zip(datasets, axes.flat, strict=True):
        _front(panel, table[table["dataset"] == dataset].sort_values("accuracy", kind="stable"), look)
        panel.set_xlabel(axis_label(source.accuracy))
        panel.set_ylabel(axis_label(y))
        if len(datasets) > 1:
            panel.set_title(wrap(dataset, 40, 1))
    entries: list[tuple[str, Any]] = [(label_of(m, short=True), mark(one, line=False)) for m, one in look.items()]
    entries += [
        ("filled, steps: Pareto-optimal", Line2D([], [], color=GREY, marker="o")),
        ("open: dominated", Line2D([], [], color=GREY, marker="o", markerfacecolor="white", linestyle="none")),
    ]
    legend(figure, entries, table["n_seeds"], images=image_words(table))
    missing = sum(
        _name_points(source, panel, table[table["dataset"] == name])
        for name, panel in zip(datasets, axes.flat, strict=True)
    )
    text = (
        f"Accuracy, and retention of {accuracy_words(transfer_name(y))}, of every configuration (n = {len(table)}); filled "
        "marks, with the steps between them, are those that no other configuration betters in both. The front is that of the "
        "means and ignores their uncertainty. " + spread_text(table["n_seeds"], images=table)
    )
    text += "".join(f" {name}: {sizes[name]} configurations, not drawn." for name in known_sets if name not in datasets)
    text += f" {missing} names have no room." if missing else ""
    return Drawing(figure, source.caption(text), table)


_FEWEST_MARKS = 4
_MOST_NAMES = 10


def _front(panel: Any, part: pd.DataFrame, look: dict[str, Look]) -> None:
    front = part[part["pareto"]]
    # Steps, not straight lines: nothing between two configurations was measured.
    panel.plot(
        100 * front["accuracy"], front["retention_pct"], color=GREY, linewidth=0.9, zorder=1, drawstyle="steps-pre"
    )
    for method, own in part.groupby("method", sort=False):
        one = look[str(method)]
        for on_front, group in own.groupby("pareto"):
            panel.errorbar(
                100 * group["accuracy"],
                group["retention_pct"],
                xerr=None if (error := _bars("accuracy", group)) is None else 100 * error,
                yerr=_bars("retention_pct", group),
                color=one.color,
                marker=one.marker,
                markersize=3.8,
                markerfacecolor=one.color if on_front else "white",
                linestyle="none",
                elinewidth=0.6,
            )
    panel.xaxis.set_major_locator(MaxNLocator(6))
    panel.margins(0.08)


def _name_points(source: Source, panel: Any, part: pd.DataFrame) -> int:
    """Name the configurations of the first screen's table, else those on the front; how many found no room."""
    first = {row["configuration"] for row in source.analysis.tables["overview"].rows}
    named = part[part["configuration"].isin(first)]
    named = named if len(named) else part[part["pareto"]].head(_MOST_NAMES)
    rates = part.groupby("variant")["learning_rate"].nunique()
    points = [
        (100 * row["accuracy"], row["retention_pct"],
         clip(row["variant"] if rates[row["variant"]] < 2 else f"{row['variant']} {format_rate(row['learning_rate'])}", 30))
        for row in named.to_dict("records")
    ]  # fmt: skip
    bars: list[tuple[float, float, float, float]] = []
    for row in part.to_dict("records"):
        x, y = 100 * row["accuracy"], row["retention_pct"]
        across = [100 * row.get(f"accuracy_{end}", 0.0) for end in ("below", "above")]
        up = [row.get(f"retention_pct_{end}", 0.0) for end in ("below", "above")]
        bars += [(x - across[0], y, x + across[1], y), (x, y - up[0], x, y + up[1])]
    return label_points(panel, points, bars)


@figure(
    "predictor_ranking",
    title="Which signal goes with retention",
    section="rq3",
    alt="A row a signal: rank correlation with retention, with its interval.",
)
def predictor_ranking(source: Source) -> Drawing:
    """Which signal goes with retention: Spearman over all runs and within groups, final and early."""
    name = transfer_name(source.retention)
    rows_of = [s for s in source.analysis.tables["signals"].rows if s["transfer_set"] == name and s["rho"] is not None]
    places = [tuple(s[key] for key in ("model_name", "selection_name", "dataset")) for s in rows_of]
    # One target: several are never pooled. The one with most configurations.
    target = max(zip((s["n_configurations"] for s in rows_of), places, strict=True), default=(0, ()))[1]
    own = [s for s, place in zip(rows_of, places, strict=True) if place == target]
    named = _named_signal(source)
    final = [s for s in own if s["when"] == "final"]
    final += [s for s in own if s["signal"] == named and s["signal"] not in {one["signal"] for one in final}]
    if not final:
        raise NoData("no signal has a rank correlation with the retention (too few runs, or constant)")
    early = {s["signal"]: s for s in own if s["when"] == "first epoch"}
    final.sort(key=lambda s: (-abs(s["rho"]), s["signal"]))
    figure, axes = new_figure(24 + 4.4 * len(final))
    panel = axes[0, 0]
    rows: list[dict[str, Any]] = []
    for place, one in enumerate(final):
        rho, low, high = one["rho"], one["low"], one["high"]
        if low is not None and high is not None:
            panel.plot([low, high], [place, place], color="#0072B2", linewidth=1.0)
        panel.plot(rho, place, color="#0072B2", marker="o")
        if one["within_mean"] is not None:
            panel.plot(one["within_mean"], place - 0.2, color="#D55E00", marker="D", markerfacecolor="white")
        first = early.get(one["signal"])
        start = first["rho"] if first else None
        if start is not None:
            panel.plot(start, place + 0.2, color="#009E73", marker="^", markerfacecolor="white")
        rows.append(
            {
                "signal": one["signal"],
                "rho_configurations": rho,
                "low": low,
                "high": high,
                "within_groups_mean": one["within_mean"],
                "n_groups": one["n_groups"],
                "first_epoch_rho": start,
                "n_configurations": one["n_configurations"],
                "n_runs": one["n_runs"],
            }
        )
    panel.set_yticks(range(len(final)), [_signal_label(s["signal"]) for s in final])
    for label, one in zip(panel.get_yticklabels(), final, strict=True):
        label.set_fontweight("bold" if one["signal"] == named else "normal")
    panel.set_ylim(len(final) - 0.5, -0.5)
    panel.set_xlim(-1.06, 1.06)
    panel.grid(axis="y", color="#e4e4e4", linewidth=0.5)
    panel.set_axisbelow(True)
    panel.tick_params(axis="y", length=0)
    zero_line(panel, vertical=True)
    panel.set_xlabel(f"Spearman rho with {wrap(name, 24, 1)} retention")
    data = pd.DataFrame(rows)
    entries: list[tuple[str, Any]] = [
        (
            f"all configurations, {source.analysis.settings.level:.0%} interval",
            Line2D([], [], color="#0072B2", marker="o"),
        )
    ]
    if data["within_groups_mean"].notna().any():
        handle = Line2D([], [], color="#D55E00", marker="D", markerfacecolor="white", linestyle="none")
        entries.append(("within groups, mean", handle))
    if data["first_epoch_rho"].notna().any():
        handle = Line2D([], [], color="#009E73", marker="^", markerfacecolor="white", linestyle="none")
        entries.append(("after the first epoch", handle))
    legend(figure, entries, {1} if source.analysis.data.single_seed else ())
    level = source.analysis.settings.level
    text = (
        f"Rank correlation of each signal with retention on {name} ({target[2]}), ordered by its size. Filled: over configuration "
        f"means (n = {final[0]['n_configurations']} configurations, {final[0]['n_runs']} runs), lines: {level:.0%} "
        f"intervals over configurations (Fisher's z; none below ten configurations); diamonds: mean of the correlations within "
        "the runs of each method; triangles: the same signal after the first epoch; bold: the one that the summary names. |·|: size of the change."
    )
    return Drawing(figure, source.caption(text), data)


def _named_signal(source: Source) -> str | None:
    """The signal that the first screen names."""
    for finding in source.analysis.digest.findings:
        if finding.table == "signals" and finding.rows:
            return str(source.analysis.tables["signals"].rows[finding.rows[0]]["signal"])
    return None


def _signal_label(name: str) -> str:
    source = next(signal for signal in signals() if signal.name == name)
    label = short_label(source.final or source.during)
    return f"|{label}|" if source.absolute else label


@figure(
    "interpolation",
    title="Interpolation between pretrained and adapted weights",
    section="rq3",
    alt="Lines over alpha from pretrained to adapted, a panel a measure.",
    needs=("interpolation",),
)
def interpolation(source: Source) -> Drawing:
    """Accuracy, transfer and drift between the pretrained and the adapted weights."""
    table = source.tables.interpolation
    runs = source.tables.runs.set_index("run_id")
    ids = list(dict.fromkeys(table["run_id"]))[:6]
    stems = [column_stem(name) for name in transfer_outcomes(table)]
    transfer = [c for stem in stems if table[c := f"{stem}_accuracy"].notna().any()]
    columns = [("test_accuracy", axis_label("test_accuracy"))]
    columns += [(str(c), axis_label(str(c))) for c in transfer[:1]]
    columns += [(c, axis_label(c)) for c in headlines() if c in table.columns]
    columns = [(c, label) for c, label in columns if table[c].notna().any()]
    if not columns:
        raise NoData("the interpolation sweeps hold no value that the figure shows")
    rows = -(-len(columns) // 2)
    figure, axes = new_figure(18 + 36 * rows, rows, min(2, len(columns)), sharex=True)
    look = looks([(run_id, str(runs.loc[run_id, "method"])) for run_id in ids])
    banded, wanted, chosen = False, *_chosen(source, transfer[0] if transfer else "", ids)
    for (column, label), panel in zip(columns, axes.flat, strict=False):
        for run_id in ids:
            own = table[(table["run_id"] == run_id) & table[column].notna()].sort_values("alpha")
            one = look[run_id]
            panel.plot(
                own["alpha"], scaled(column, own[column]), color=one.color, marker=one.marker, linestyle=one.line
            )
            banded |= _image_band(panel, own["alpha"], column, own[column], runs.loc[run_id], one)
            if run_id in chosen and column.endswith("_accuracy"):
                at = chosen[run_id][0]
                value = np.interp(at, own["alpha"].to_numpy(float), scaled(column, own[column]))
                panel.plot(at, value, marker="*", markersize=8, color=one.color, markerfacecolor="white", zorder=4)
        panel.set_ylabel(label)
        panel.yaxis.set_major_locator(MaxNLocator(4))
        panel.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "½", "¾", "1"])
        panel.xaxis.set_tick_params(labelbottom=True)
        panel.set_xlabel("alpha (0: pretrained,\n1: adapted)")
        if column.endswith("change_pct"):
            zero_line(panel)
    for panel in axes.flat[len(columns) :]:
        panel.set_visible(False)
    entries = [(_run_label(source, run_id), mark(one)) for run_id, one in look.items()]
    if chosen:
        star = Line2D([], [], color=GREY, marker="*", markersize=8, markerfacecolor="white", linestyle="none")
        entries.append((f"alpha chosen without labels for {wanted:g}%", star))
    legend(figure, entries, {1}, images="bands are 95% intervals over test images" if banded else "")
    bands = f"Bands: {LEVEL:.0%} intervals over the test images of that run (Wilson). " if banded else ""
    left = len(set(table["run_id"])) - len(ids)
    text = (
        "Interpolation (1 − alpha) pretrained + alpha adapted between the weights of single runs "
        f"(n = {len(ids)} run{'' if len(ids) == 1 else 's'}; a line is one run, so no spread over seeds is "
        f"drawn). {bands}alpha = 0 is the pretrained model.{_choice_text(wanted, chosen)}"
        + (f" {left} further sweeps are in the tables." if left else "")
    )
    return Drawing(figure, source.caption(text), table[table["run_id"].isin(ids)])


def _chosen(source: Source, column: str, ids: Sequence[str]) -> tuple[float, dict[str, tuple[float, float | None]]]:
    """The wanted retention, and for each run the alpha chosen by agreement, with the retention there."""
    wanted = source.analysis.settings.wanted_retentions_pct
    if not wanted or not column:
        return 0.0, {}
    middle = sorted(wanted)[len(wanted) // 2]
    return middle, {
        str(row["run_id"]): (float(row["alpha"]), row["retention_pct"])
        for row in source.analysis.tables["interpolation_choice"].rows
        if row["rule"] == "agreement"
        and row["wanted_pct"] == middle
        and row["alpha"] is not None
        and row["run_id"] in ids
        and f"{column_stem(str(row['transfer_set']))}_accuracy" == column
    }


def _choice_text(wanted: float, chosen: dict[str, tuple[float, float | None]]) -> str:
    kept = [f"{value:.1f}" for _, value in chosen.values() if value is not None]
    if not kept:
        return ""
    return (
        f" Stars: the largest alpha at which {wanted:g}% of the predictions on the transfer images are still those of the "
        f"pretrained model, chosen without labels; it retains {', '.join(kept)}% of the pretrained accuracy."
    )


def _image_band(panel: Any, alpha: pd.Series, column: str, values: pd.Series, run: pd.Series, look: Look) -> bool:
    """The interval over images of an accuracy, where the tables say of how many; whether it was drawn."""
    count = "n_test" if column == "test_accuracy" else column.removesuffix("_accuracy") + "_n"
    if not column.endswith("_accuracy") or pd.isna(run.get(count)):
        return False
    low, high = wilson_limits(values * float(run[count]), float(run[count]), LEVEL)
    panel.fill_between(alpha, 100 * low, 100 * high, color=look.color, alpha=0.18, linewidth=0)
    return True


def _run_label(source: Source, run_id: str) -> str:
    row = source.tables.runs.set_index("run_id").loc[run_id]

    method = label_of(str(row["method"]), short=True)
    parts = [str(row["dataset"]), method, format_rate(row["learning_rate"]), f"seed\u00a0{row['seed']}"]
    return " · ".join(parts)
