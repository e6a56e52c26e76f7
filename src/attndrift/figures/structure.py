"""Attention structure by layer: the baseline, change over time, change per configuration."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from attndrift.figures.panels import (
    MOST_ROWS,
    ROW_MM,
    change_norm,
    color_bar,
    evolution,
    heatmap,
    name_groups,
    positions,
    row_axis,
)
from attndrift.figures.registry import figure
from attndrift.figures.source import (
    Drawing,
    NoData,
    Source,
    in_order,
    label_of,
    row_label,
    seeds_text,
    spread_text,
    time_axis,
    usual_variant,
)
from attndrift.figures.style import DIVERGING, axis_label, clip, legend, looks, mark, new_figure, wrap
from attndrift.methods.registry import PRETRAINED
from attndrift.methods.registry import in_order as methods_in_order
from attndrift.metrics.registry import structure_metrics


@figure(
    "fig2_baseline_structure",
    title="Attention structure of the pretrained model",
    section="baseline",
    alt="One panel a metric: its value in each block as a line, the spread over heads as a band.",
    needs=("layers",),
)
def baseline_structure(source: Source) -> Drawing:
    """Fig. 2: the four metrics of the pretrained model, layer by layer, with the spread over heads."""
    frames = [frame for name in source.datasets[:3] if (frame := _baseline(source, name)) is not None]
    if not frames:
        raise NoData("the table `layers` holds nothing at step 0")
    data = pd.concat(frames, ignore_index=True)
    metrics = [metric for metric in structure_metrics() if (data["metric"] == metric).any()]
    if not metrics:
        raise NoData("the table `layers` holds none of the structural metrics at step 0")
    look = looks([(name, f"data set {place}") for place, name in enumerate(data["dataset"].unique())])
    rows = -(-len(metrics) // 2)
    figure, axes = new_figure(14 + 38 * rows, rows, min(2, len(metrics)), sharex=True)
    heads = int(data["heads"].max())
    for metric, panel in zip(metrics, axes.flat, strict=False):
        for place, (name, part) in enumerate(data[data["metric"] == metric].groupby("dataset", sort=False)):
            one = look[str(name)]
            shift = 0.16 * (place - (len(frames) - 1) / 2)
            panel.errorbar(
                part["layer"] + shift,
                part["mean"],
                yerr=part["sd_heads"] if part["sd_heads"].notna().any() else None,
                color=one.color,
                marker=one.marker,
                linestyle=one.line,
                markersize=2.8,
                elinewidth=0.7,
                capsize=1.2,
            )
        panel.set_ylabel(axis_label(metric))
        panel.yaxis.set_major_locator(MaxNLocator(5))
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        panel.xaxis.set_tick_params(labelbottom=True)
        panel.set_xlabel("Block")
    for panel in axes.flat[len(metrics) :]:
        panel.set_visible(False)
    spare = axes.flat[len(metrics)] if len(metrics) < axes.size else None
    legend(figure, [(name, mark(one)) for name, one in look.items()], spare=spare)
    spread = (
        f"Bars: sample standard deviation over {heads} heads."
        if heads > 1
        else "The tables hold no values of single heads, so no spread is drawn."
    )
    probe = _probe(source)
    text = (
        f"Attention structure of the pretrained model ({source.model}) on the probe images{probe}, by block. {spread} "
        "One measurement before training; it has no seeds."
    )
    return Drawing(figure, source.caption(text), data)


def _probe(source: Source) -> str:
    counts = source.runs["n_probe"].dropna().unique()
    return f" (n = {int(counts[0])})" if len(counts) == 1 else ""


def _baseline(source: Source, dataset: str) -> pd.DataFrame | None:
    layers = source.tables.layers
    runs = source.runs[source.runs["dataset"] == dataset]
    order = runs.assign(bare=runs["method"] != PRETRAINED).sort_values(["bare", "run_id"], kind="stable")
    start = layers[(layers["step"] == 0) & layers["run_id"].isin(order["run_id"])]
    for run_id in order["run_id"]:
        own = start[(start["run_id"] == run_id) & start["metric"].isin(list(structure_metrics()))]
        if own.empty:
            continue
        heads = own[own["head"].notna()].groupby(["metric", "layer"])["value"].agg(["mean", "std", "count"])
        means = own[own["head"].isna()].set_index(["metric", "layer"])["value"]
        means = means[~means.index.duplicated()]
        index = means.index.union(heads.index)
        frame = pd.DataFrame(index=index)
        frame["mean"] = means.reindex(index).fillna(heads["mean"].reindex(index))
        frame["sd_heads"] = heads["std"].reindex(index)
        frame["heads"] = heads["count"].reindex(index).fillna(0).astype(int)
        return frame.reset_index().assign(dataset=dataset, run_id=run_id)
    return None


@figure(
    "fig4_layer_entropy_heatmap",
    title="Entropy change by block and time",
    section="rq1",
    alt="Heatmaps of entropy change: blocks upwards, training time to the right, one panel a run.",
    needs=("layers",),
)
def layer_entropy_heatmap(source: Source) -> Drawing:
    """Fig. 4: entropy change by layer and time, full and LoRA on up to two data sets (or at two rates)."""
    chosen = _four(source)
    panels: list[tuple[str, pd.DataFrame, int]] = []
    for name in chosen:
        frame, n = _layer_changes(source, name)
        if frame is not None:
            panels.append((name, frame, n))
    if not panels:
        raise NoData("the table `layers` has no run with entropy at step 0 and at a later step")
    norm = change_norm(np.concatenate([frame.to_numpy().ravel() for _, frame, _ in panels]))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(18 + 40 * rows, rows, columns)
    time = "Epoch" if all(frame.columns.name == "epoch" for _, frame, _ in panels) else "Optimiser step"
    mesh: Any = None
    tables: list[pd.DataFrame] = []
    for (name, frame, n), panel in zip(panels, axes.flat, strict=False):
        mesh = heatmap(panel, frame.columns.to_numpy(dtype=float), frame.index.tolist(), frame.to_numpy(), norm)
        runs = source.adapted
        dataset = str(runs.loc[runs["configuration"] == name, "dataset"].iloc[0])
        seeds = "one seed" if n == 1 else f"{n} seeds"
        title = f"{wrap(label_of(runs, name), 22, 2)}\n{clip(dataset, 12)}, {seeds}"
        panel.set_title(title, fontsize=6.5, fontweight="normal")
        panel.set_xlabel(time)
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        long = frame.reset_index().melt(id_vars="layer", var_name="time", value_name="entropy_change_pct")
        tables.append(long.assign(configuration=name, n_runs=n))
    for panel in axes[:, 0]:
        panel.set_ylabel("Block")
    for panel in axes.flat[len(panels) :]:
        panel.set_visible(False)
    color_bar(figure, mesh, axes, "Entropy change (%)", below=True)
    text = (
        "Change of attention entropy against the pretrained model by block and time, mean over heads and probe images. "
        "Colours are centred on 0 and shared by all panels; each panel is the mean over its runs "
        f"(n = {', '.join(str(n) for _, _, n in panels)}), their spread is not drawn."
    )
    return Drawing(figure, source.caption(text), pd.concat(tables, ignore_index=True))


def _four(source: Source) -> list[str]:
    """Up to four configurations: the first two methods on two data sets, else each at its lowest and highest rate."""
    names: list[str] = []
    two = len(source.datasets) > 1
    for dataset in source.datasets[:2]:
        runs = source.plain(dataset)
        for method in methods_in_order(runs["method"])[:2]:
            own = runs[runs["method"] == method]
            variant = usual_variant(own, method)
            own = own[own["variant"] == variant].sort_values(["learning_rate", "run_id"], kind="stable")
            if two:
                own = own[own["rate_text"] == source.usual_rate(own, variant)]
                names.append(str(own["configuration"].iloc[0]))
            else:
                names += [str(own["configuration"].iloc[0]), str(own["configuration"].iloc[-1])]
    names = list(dict.fromkeys(names))
    return names[:4] if names else source.representatives(source.primary)[:4]


def _layer_changes(source: Source, configuration: str) -> tuple[pd.DataFrame | None, int]:
    """Entropy change in percent, layers x time, mean over the runs that have layers; and their number."""
    ids = source.adapted.loc[source.adapted["configuration"] == configuration, "run_id"]
    layers = source.tables.layers
    own = layers[layers["run_id"].isin(ids) & (layers["metric"] == "entropy") & layers["head"].isna()]
    if own.empty:
        return None, 0
    wide = own.pivot_table(index=["run_id", "layer"], columns="step", values="value")
    if 0 not in wide.columns or wide.shape[1] < 2:
        return None, 0
    change = 100 * wide.sub(wide[0], axis=0).div(wide[0], axis=0)
    frame = change.groupby("layer").mean()
    history = source.tables.history
    history = history[history["run_id"].isin(ids)]
    column, _ = time_axis(history) if len(history) else ("step", "")
    frame.columns.name = "step"
    if column == "epoch":
        epoch = history.drop_duplicates("step").set_index("step")["epoch"]
        if set(frame.columns) <= set(epoch.index):
            frame.columns = pd.Index([float(epoch[step]) for step in frame.columns], name="epoch")
    return frame, int(own["run_id"].nunique())


@figure(
    "layer_change_heatmap",
    title="Entropy change of every configuration by block",
    section="rq1",
    alt="Heatmap of entropy change: a row a configuration, a column a block.",
    needs=("layers",),
)
def layer_change_heatmap(source: Source) -> Drawing:
    """Final entropy change of every configuration, block by block."""
    table = source.analysis.tables["change_per_layer"]
    rows = [row for row in table.rows if row["metric"] == "entropy"]
    names = set(source.adapted["configuration"])
    rows = [row for row in rows if row["configuration"] in names]
    if not rows:
        raise NoData("the table `layers` has no run with entropy at the first and the measured step")
    left = max(0, len(rows) - MOST_ROWS)
    order = {name: place for place, name in enumerate(in_order(source, [str(row["configuration"]) for row in rows]))}
    rows = sorted(rows, key=lambda row: order[str(row["configuration"])])[:MOST_ROWS]
    layers = sorted(
        int(key.removeprefix("layer_")) for key in rows[0] if key.startswith("layer_") and not key.endswith("_sd")
    )
    values = np.array([[_value(row.get(f"layer_{layer}")) for layer in layers] for row in rows])
    keep = np.isfinite(values).any(axis=0)
    values, layers = values[:, keep], [layer for layer, good in zip(layers, keep, strict=True) if good]
    labels = [wrap(row_label(source, str(row["configuration"])), 30) for row in rows]
    places = positions(labels)
    figure, axes = new_figure(24 + ROW_MM * places[-1])
    panel = axes[0, 0]
    mesh = panel.pcolormesh(
        np.arange(len(layers) + 1) + 0.5,
        np.concatenate([[-0.675], places]) + _half(labels),
        np.ma.masked_invalid(values),
        cmap=DIVERGING,
        norm=change_norm(values),
        rasterized=True,
    )
    panel.set_facecolor("#d9d9d9")
    panel.spines[["top", "right"]].set_visible(True)
    row_axis(panel, places, labels)
    step = 1 if len(layers) <= 14 else 2
    panel.set_xticks(range(1, len(layers) + 1, step), [str(layer) for layer in layers[::step]])
    panel.tick_params(length=0)
    panel.set_xlabel("Block")
    name_groups(panel, places, [str(row["dataset"]) for row in rows])
    color_bar(figure, mesh, panel, "Entropy change (%)", below=True)
    seeds = [int(row["n_seeds"]) for row in rows]
    legend(figure, [], {1} if set(seeds) == {1} else ())
    text = (
        "Change of attention entropy from the pretrained to the measured checkpoint, by configuration and block (mean "
        f"over heads, probe images and seeds; n = {len(rows)} configurations, {seeds_text(seeds)} each). Grey: not "
        "measured. The standard deviations over seeds are in the table beside the figure."
    )
    if left:
        text += f" {left} further configurations are in the tables of the analysis."
    data = pd.DataFrame([{k: row.get(k) for k in (*_FIRST, *_layer_keys(layers))} for row in rows])
    return Drawing(figure, source.caption(text), data)


_FIRST = ("configuration", "dataset", "variant", "learning_rate", "n_runs", "n_seeds")


def _layer_keys(layers: list[int]) -> list[str]:
    return [f"layer_{layer}{suffix}" for layer in layers for suffix in ("", "_sd")]


def _half(labels: list[str]) -> Any:
    """From the centre of each row to its lower edge, in lines; the first entry is the upper edge of the first."""
    heights = [(1 + label.count("\n") + 0.35) / 2 for label in labels]
    return np.asarray([0.675 - heights[0], *heights])


def _value(value: Any) -> float:
    return float("nan") if value is None else float(value)


@figure(
    "fig9_head_diversity",
    title="Head diversity during training",
    section="rq1",
    alt="Lines over training time: change of head diversity, a line a method.",
    needs=("history",),
)
def head_diversity_evolution(source: Source) -> Drawing:
    """Fig. 9: head diversity over training."""
    return _evolution_of(source, "head_diversity_change_pct", "head diversity")


@figure(
    "extra_erf95_evolution",
    title="ERF@0.95 during training",
    section="rq1",
    alt="Lines over training time: change of the effective receptive field, a line a method.",
    needs=("history",),
)
def erf95_evolution(source: Source) -> Drawing:
    """ERF@0.95 over training."""
    return _evolution_of(source, "erf95_change_pct", "ERF@0.95 (the share of patches that hold 95% of the attention)")


def _evolution_of(source: Source, column: str, words: str) -> Drawing:
    chosen: list[str] = []
    for dataset in source.datasets[:2]:
        chosen += source.representatives(dataset)
    if not chosen:
        raise NoData("there is no adapted run")
    figure, data = evolution(source, [column], chosen)
    text = (
        f"Change of {words} against the pretrained model during training, mean over blocks, heads and probe images. "
        + spread_text(data["n"], "Bands")
    )
    return Drawing(figure, source.caption(text), data)
