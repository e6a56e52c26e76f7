"""Methods side by side: full against LoRA, preservation losses, frozen blocks, target modules."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.ticker import MaxNLocator

from attndrift.figures.panels import MOST_ROWS, bars, dot_rows, image_words, same_scale
from attndrift.figures.registry import figure
from attndrift.figures.source import (
    Drawing,
    NoData,
    Source,
    error_of,
    over_seeds,
    scaled,
    spread_text,
    structure_columns,
    variants_of,
)
from attndrift.figures.style import axis_label, legend, looks, mark, new_figure, zero_line
from attndrift.losses.registry import short_label_of


@figure(
    "fig5_fullft_vs_lora",
    title="Full fine-tuning and LoRA, primary data set",
    section="rq2",
    alt="A row a configuration, a panel a metric: dots with bars show the structural change.",
)
def full_against_lora(source: Source) -> Drawing:
    """Fig. 5: structural change of full fine-tuning and LoRA on the primary data set."""
    return _full_against_lora(source, source.primary)


@figure(
    "fig5b_fullft_vs_lora_pets",
    title="Full fine-tuning and LoRA, second data set",
    section="rq2",
    alt="A row a configuration, a panel a metric: dots with bars show the structural change.",
)
def full_against_lora_second(source: Source) -> Drawing:
    """Fig. 5b: the same on the second data set."""
    return _full_against_lora(source, source.secondary)


def _full_against_lora(source: Source, dataset: str) -> Drawing:
    runs = source.plain(dataset)
    full, lora = runs[runs["method"] == "full"], runs[runs["method"] == "lora"]
    if full.empty or lora.empty:
        raise NoData(f"{dataset} has no pair of full and LoRA runs without preservation loss and frozen blocks")
    lora = lora[lora["variant"].isin(_qv_first(lora))]
    usual = source.usual_rate(full, variants_of(full)[0][0])
    shared = set(full["rate_text"]) & set(lora["rate_text"])
    full = full[full["rate_text"].isin(shared | {usual})]
    if shared:
        kept = lora[lora["rate_text"].isin(shared)]
        lora = pd.concat([kept, lora[~lora["variant"].isin(kept["variant"])]])
    both = pd.concat([full, lora])
    order = {name: place for place, (name, _) in enumerate(variants_of(both))}
    both = both.assign(order=both["variant"].map(order)).sort_values(["order", "learning_rate"], kind="stable")
    chosen = list(dict.fromkeys(both["configuration"]))[:16]
    figure, data = dot_rows(source, chosen, structure_columns(both, last=True), runs=both)
    data = data.assign(dataset=dataset)
    matched = (
        f"Rates that both methods share: {', '.join(_by_rate(both, shared))}."
        if shared
        else "The methods share no learning rate, so rate and method cannot be told apart."
    )
    text = (
        f"Structural change of full fine-tuning and LoRA on {dataset} against the pretrained model, mean over blocks; "
        f"entropy also of the last block, on one scale. {matched} " + spread_text(data["n"], images=data)
    )
    return Drawing(figure, source.caption(text), data)


def _qv_first(lora: pd.DataFrame) -> list[str]:
    """Variants on q and v alone; where there are none, all."""
    own = lora[lora["key_lora_targets"] == "q,v"]
    return list(dict.fromkeys((own if len(own) else lora)["variant"]))


def _by_rate(runs: pd.DataFrame, rates: set[str]) -> list[str]:
    table = runs[runs["rate_text"].isin(rates)].sort_values("learning_rate", kind="stable")
    return list(dict.fromkeys(table["rate_text"]))


@figure(
    "fig8_regularization",
    title="Regularization",
    section="rq4",
    alt="A row a setting, a panel a measure: dots with bars show accuracy and entropy change.",
)
def regularization(source: Source) -> Drawing:
    """Fig. 8: accuracy and entropy change under APR, entropy floor and weight decay."""
    names: list[str] = []
    for name in ("sweep_loss", "sweep_weight_decay"):
        names += [str(row["configuration"]) for row in _sweep(source, name)]
    names = list(dict.fromkeys(names))[:MOST_ROWS]
    if not names:
        raise NoData("no two runs differ in the preservation loss or the weight decay alone")
    first = source.adapted.drop_duplicates("configuration").set_index("configuration").loc[names]
    decays = first["weight_decay"].astype("float64")
    usual = decays.mode().iloc[0] if decays.notna().any() else None
    several = decays.nunique() > 1
    labels: list[str] = []
    kinds: list[str] = []
    for name in names:
        label, kind = _loss_label({str(k): v for k, v in first.loc[name].to_dict().items()}, usual, several=several)
        labels.append(label)
        kinds.append(kind)
    columns = [source.accuracy, "entropy_change_pct", "entropy_last_layer_change_pct"]
    kept = [c for c in source.retentions if first[c].notna().any()]
    columns.insert(1, kept[0]) if kept else columns.append("gini_change_pct")
    figure, data = dot_rows(source, names, columns, labels=labels, kinds=kinds)
    text = (
        f"Accuracy, {'zero-shot retention ' if kept else ''}and structural change on {first['dataset'].iloc[0]} under attention preservation (APR), entropy floor and weight decay; within a "
        "sweep nothing else differs. A preservation loss preserves the structure where the change is nearest to 0. "
        + spread_text(data["n"], images=data)
    )
    return Drawing(figure, source.caption(text), data)


def _loss_label(row: dict[str, Any], usual: float | None, *, several: bool) -> tuple[str, str]:
    """Row label and kind (which gives the colour) of one configuration of the preservation loss sweeps."""
    decay = row["weight_decay"]
    if row["key_loss_name"]:
        return f"{short_label_of(row['key_loss_name'])} λ\u00a0=\u00a0{row['key_loss_weight']}", str(
            row["key_loss_name"]
        )
    if several and usual is not None and decay != usual:
        return f"weight decay\u00a0{decay:g}", "weight decay"
    return ("none, weight decay\u00a0" + f"{decay:g}" if several else "none"), str(row["method"])


def _sweep(source: Source, name: str) -> list[dict[str, Any]]:
    """Rows of the largest sweep of this kind on the primary data set (or on any, where that has none)."""
    known = set(source.adapted["configuration"])
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in source.analysis.tables[name].rows:
        if row["configuration"] in known:
            groups.setdefault(str(row["sweep"]), []).append(row)
    if not groups:
        return []
    dataset = dict(zip(source.adapted["configuration"], source.adapted["dataset"], strict=True))

    def key(rows: list[dict[str, Any]]) -> tuple[int, int, int]:
        place = source.datasets.index(str(dataset[rows[0]["configuration"]]))
        return -place, len(rows), sum(int(row["n_runs"]) for row in rows)

    return max(groups.values(), key=key)


@figure(
    "extra_frozen_layers",
    title="Frozen blocks",
    section="rq5",
    alt="Bars over the number of frozen blocks, a panel a measure.",
)
def frozen_layers(source: Source) -> Drawing:
    """Accuracy and entropy change against the number of frozen blocks."""
    rows = _sweep(source, "sweep_freezing")
    if not rows:
        raise NoData("no two runs differ in the number of frozen blocks alone")
    runs = source.adapted[source.adapted["configuration"].isin([row["configuration"] for row in rows])].copy()
    runs["frozen"] = runs["freeze_layers"].astype("float64").fillna(0.0)
    columns = [source.accuracy, *source.retentions, "entropy_change_pct", "entropy_last_layer_change_pct"]
    columns = [c for c in columns if runs[c].notna().any()]
    if not columns:
        raise NoData("the runs with frozen blocks have neither accuracy nor entropy change")
    lines = -(-len(columns) // 2)
    figure, axes = new_figure(16 + 36 * lines, lines, min(2, len(columns)))
    look = looks([("full", "full")])["full"]
    tables: list[pd.DataFrame] = []
    for column, panel in zip(columns, axes.flat, strict=False):
        table = over_seeds(runs, ["frozen"], column, source.images).sort_values("frozen")
        error = error_of(table)
        error = None if error is None else scaled(column, error)
        bars(panel, table["frozen"], scaled(column, table["mean"]), error, look)
        panel.set_ylabel(axis_label(column))
        panel.yaxis.set_major_locator(MaxNLocator(4))
        if column.endswith("change_pct"):
            zero_line(panel)
        panel.set_xticks(sorted(runs["frozen"].unique()))
        panel.set_xlabel("Frozen blocks")
        tables.append(table.assign(measure=column))
    for panel in axes.flat[len(columns) :]:
        panel.set_visible(False)
    same_scale(dict(zip(columns, axes.flat, strict=False)), vertical=True)
    data = pd.concat(tables, ignore_index=True)
    method = str(runs["method"].iloc[0])
    rate = str(runs["rate_text"].iloc[0])
    label = "full fine-tuning" if method == "full" else method
    legend(figure, [(f"{label} · {rate}", mark(look))], data["n"], images=image_words(data))
    text = (
        f"Accuracy{', zero-shot retention' if source.retentions else ''} and entropy change of {label} on "
        f"{runs['dataset'].iloc[0]} against the number of frozen blocks, counted from the input; nothing else differs. "
        + spread_text(data["n"], images=data)
    )
    return Drawing(figure, source.caption(text), data)


@figure(
    "extra_lora_qkvo",
    title="LoRA target modules",
    section="rq5",
    alt="Two or more rows of dots, one for each set of adapted projections, a panel a measure.",
)
def lora_targets(source: Source) -> Drawing:
    """LoRA on query and value against all projections."""
    rows = _sweep(source, "sweep_targets")
    if not rows:
        raise NoData("no two LoRA runs differ in the target modules alone")
    names = [str(row["configuration"]) for row in rows]
    labels = [str(row["setting"]) for row in rows]
    runs = source.adapted[source.adapted["configuration"].isin(names)]
    columns = [source.accuracy, *source.retentions, *structure_columns(runs, last=True)]
    figure, data = dot_rows(source, names, columns, labels=labels)
    row = runs.iloc[0]
    text = (
        f"Accuracy and structural change of LoRA r={row['key_lora_rank']} at {row['rate_text']} on {row['dataset']} by "
        "target modules; nothing else differs. " + spread_text(data["n"], images=data)
    )
    return Drawing(figure, source.caption(text), data)
