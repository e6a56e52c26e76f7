"""Change per layer, of early, middle and late blocks, and the pretrained baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from attndrift.analysis.configurations import Prepared
from attndrift.analysis.dynamics import EPOCH_SLACK, History
from attndrift.analysis.means import seed_counts
from attndrift.analysis.numbers import Floats, number
from attndrift.analysis.result import Table
from attndrift.analysis.summary import plain_columns, records
from attndrift.methods.registry import PRETRAINED
from attndrift.metrics.registry import METRICS, structure_metrics
from attndrift.results.columns import Column
from attndrift.results.means import SEEDS, seeds_behind

GROUPS = ("early", "middle", "late")


@dataclass
class LayerValues:
    """Values per run and layer: ``first`` and ``final`` (runs, layers) a metric, NaN where not measured."""

    first: dict[str, Floats]
    final: dict[str, Floats]
    layers: int

    def change(self, metric: str) -> Floats:
        """100 (final - first) / first, NaN where the first value is 0."""
        first, final = self.first[metric], self.final[metric]
        with np.errstate(divide="ignore", invalid="ignore"):
            result = 100.0 * (final - first) / first
        return np.where(np.isfinite(result), result, np.nan)


def measured_steps(prepared: Prepared, history: History, epoch: Floats) -> Floats:
    """The step at which the final values of each run were taken; infinite (the last one) where unknown.

    Selection ``test`` measures after the last epoch, any other one at the selected checkpoint.
    """
    runs = prepared.runs
    selected = runs["selected_epoch"].to_numpy(dtype=float)
    last_step = (runs["selection"].astype(object) == "test").to_numpy()
    target = np.where(last_step, np.inf, selected)
    step = history.values("step")
    if not len(step):
        return np.full(len(runs), np.inf)
    with np.errstate(invalid="ignore"):
        rows = history.last(np.isfinite(epoch) & (epoch <= target[history.run] + EPOCH_SLACK))
    known = (rows >= 0) & np.isfinite(target)
    return np.where(known, history.take("step", rows), np.inf)


def layer_values(prepared: Prepared, layers: pd.DataFrame, steps: Floats, notes: list[str]) -> LayerValues:
    """Layer means of the structural metrics (and CKA) at the first and at the measured step of every run."""
    wanted = (*structure_metrics(), "cka")
    frame = layers[layers["head"].isna().to_numpy() & layers["metric"].isin(wanted).to_numpy()]
    position = pd.Index(prepared.runs["run_id"].astype(object))
    codes, names = pd.factorize(frame["run_id"])
    of_name = position.get_indexer(pd.Index(names).astype(object))
    run = of_name[codes].astype(np.intp) if len(codes) else np.zeros(0, dtype=np.intp)
    step = frame["step"].to_numpy(dtype=float)
    layer = frame["layer"].to_numpy(dtype=np.int64)
    metric = pd.Categorical(frame["metric"], categories=list(wanted)).codes.astype(np.intp)
    value = frame["value"].to_numpy(dtype=float)
    depth = int(layer.max()) if len(layer) else 0
    shape = (len(wanted), len(prepared.runs), depth)
    first, final = np.full(shape, np.nan), np.full(shape, np.nan)
    keep = (run >= 0) & np.isfinite(value)
    run, step, layer, metric, value = (array[keep] for array in (run, step, layer, metric, value))
    start = np.full(len(prepared.runs), np.inf)
    np.minimum.at(start, run, step)
    late_start = np.isfinite(start) & (start > 0)
    if late_start.any():
        name = prepared.runs["run_id"].iloc[int(np.flatnonzero(late_start)[0])]
        notes.append(
            f"In {int(late_start.sum())} runs (first: `{name}`) the table `layers` does not begin at step 0, so the "
            "pretrained layer values are unknown and no change per layer is given."
        )
    at_start = (step == start[run]) & (step == 0)
    first[metric[at_start], run[at_start], layer[at_start] - 1] = value[at_start]
    within = (step <= steps[run]) & (step > start[run])
    late = np.full(len(prepared.runs), -np.inf)
    np.maximum.at(late, run[within], step[within])
    at_end = within & (step == late[run])
    final[metric[at_end], run[at_end], layer[at_end] - 1] = value[at_end]
    off = np.isfinite(late) & np.isfinite(steps) & (late != steps)
    if off.any():
        name = prepared.runs["run_id"].iloc[int(np.flatnonzero(off)[0])]
        notes.append(
            f"In {int(off.sum())} runs (first: `{name}`) the table `layers` has no row at the selected step; "
            f"the last one "
            "before it is used."
        )
    return LayerValues(dict(zip(wanted, first, strict=True)), dict(zip(wanted, final, strict=True)), depth)


def change_per_layer(prepared: Prepared, values: LayerValues, notes: list[str]) -> Table:
    """Mean and sample sd over seeds of the change in each layer, a row a configuration and metric."""
    runs = prepared.runs
    adapted = np.flatnonzero((runs["method"] != PRETRAINED).to_numpy())
    parts: list[pd.DataFrame] = []
    layer_names = [f"layer_{place}" for place in range(1, values.layers + 1)]
    for metric in structure_metrics():
        change = pd.DataFrame(values.change(metric)[adapted], columns=layer_names)
        for name in ("configuration", "dataset", "variant", "learning_rate", "replicate"):
            change[name] = runs[name].to_numpy()[adapted]
        change[SEEDS] = seeds_behind(runs).to_numpy()[adapted]
        change = change[change[layer_names].notna().any(axis=1)] if layer_names else change.iloc[:0]
        if change.empty:
            continue
        groups = change.groupby("configuration", sort=False)
        sd = groups[layer_names].std(ddof=1)
        sd.columns = pd.Index([f"{name}_sd" for name in layer_names])
        counts = pd.DataFrame({"n_runs": groups.size(), "n_seeds": seed_counts(change)})
        whole = pd.concat(
            [groups[["dataset", "variant", "learning_rate"]].first(), counts, groups[layer_names].mean(), sd],
            axis=1,
        ).reset_index()
        whole.insert(1, "metric", metric)
        parts.append(whole)
    columns = plain_columns(
        ("configuration", "Configuration"),
        ("metric", "Metric"),
        ("dataset", "Dataset"),
        ("variant", "Method"),
        ("learning_rate", "Rate"),
        ("n_runs", "Runs"),
        ("n_seeds", "Seeds"),
    )
    columns += [
        Column(name=name, label=name.removeprefix("layer_"), unit="%", digits=2, signed=True, sd=f"{name}_sd")
        for name in layer_names
    ]
    table_notes = ["Change of the layer mean, percent, from the first step to the measured one."]
    rows: list[dict[str, object]] = []
    if parts:
        rows = records(pd.concat(parts, ignore_index=True))
        if all(row["n_seeds"] == 1 for row in rows):
            table_notes.append("One seed: no standard deviation.")
    else:
        table_notes.append("The table `layers` holds no layer means at two steps of any adapted run.")
        notes.append(table_notes[-1])
    return Table(name="change_per_layer", title="Change per layer", columns=columns, rows=rows, notes=table_notes)


def thirds(layers: int) -> list[NDArray[np.intp]]:
    """Early, middle and late blocks; what does not divide by three goes to the earlier groups."""
    return [part.astype(np.intp) for part in np.array_split(np.arange(layers), 3)]


def block_changes(prepared: Prepared, values: LayerValues, notes: list[str]) -> pd.DataFrame:
    """Change (percent) of early, middle and late blocks, and late less early, of each metric: a row a run."""
    runs = prepared.runs
    depths = np.isfinite(values.first["entropy"]).sum(axis=1)
    found: dict[str, Floats] = {}
    for metric in structure_metrics():
        change = values.change(metric)
        means = np.full((len(runs), len(GROUPS)), np.nan)
        for depth in np.unique(depths[depths >= len(GROUPS)]):
            rows = np.flatnonzero(depths == depth)
            for place, blocks in enumerate(thirds(int(depth))):
                means[rows, place] = change[np.ix_(rows, blocks)].mean(axis=1)
        if np.isfinite(means).any():
            found |= {f"{metric}_{name}_blocks_change_pct": means[:, place] for place, name in enumerate(GROUPS)}
            found[f"{metric}_late_less_early_pct"] = means[:, -1] - means[:, 0]
    if found:
        notes += _block_notes(runs["model"], depths)
    return pd.DataFrame(found, index=runs.index)


def _block_notes(models: pd.Series[Any], depths: NDArray[np.intp]) -> list[str]:
    """Which blocks are early, middle and late: a sentence for each number of blocks, with the models that have it."""
    told = []
    for depth in np.unique(depths[depths > 0]).tolist():
        names = [f"`{name}`" for name in models[depths == depth].dropna().astype(str).unique()]
        parts = [f"{name} {b[0] + 1}-{b[-1] + 1}" for name, b in zip(GROUPS, thirds(depth), strict=True) if len(b)]
        groups = ", ".join(parts) if depth >= len(GROUPS) else f"too few for {', '.join(GROUPS)}"
        more = f" and {len(names) - 5} more models" if len(names) > 5 else ""
        told.append(f"Blocks of {', '.join(names[:5]) or 'a model without a name'}{more} ({depth}): {groups}.")
    return told


def baseline_tables(prepared: Prepared, values: LayerValues, layers: pd.DataFrame, notes: list[str]) -> list[Table]:
    """The pretrained model: mean and sd over layers, and each layer and head, for every model and dataset.

    Rows of method ``none`` are used; where a dataset has none, the first step of its other runs, which
    is the same model.
    """
    summary: list[dict[str, object]] = []
    per_layer: list[dict[str, object]] = []
    per_head: list[dict[str, object]] = []
    heads_all = layers[
        layers["head"].notna().to_numpy() & layers["metric"].isin((*structure_metrics(), "cls_mass")).to_numpy()
    ]
    columns = ["model_name", "dataset", "run_id", "method", *(f"{metric}_baseline" for metric in structure_metrics())]
    for (model, dataset), group in prepared.runs[columns].groupby(["model_name", "dataset"], sort=True):
        pretrained = group[group["method"] == PRETRAINED]
        used = pretrained if len(pretrained) else group
        identity = {"model_name": str(model), "dataset": str(dataset)}
        source = "method none" if len(pretrained) else "first step of the adapted runs"
        heads = _first_heads(heads_all, used)
        means = {metric: _mean_of_known(values.first[metric][used.index]) for metric in structure_metrics()}
        rows = (_baseline_row(metric, means[metric], used, heads) for metric in structure_metrics())
        summary += [{**identity, **row, "source": source} for row in rows if row is not None]
        per_layer += [{**identity, **row} for row in _layer_rows(means, heads)]
        if len(heads):
            wide = heads.pivot_table(index=["layer", "head"], columns="metric", values="value").reset_index()
            per_head += [{**identity, **row} for row in records(wide)]
    if not summary:
        notes.append("There is no pretrained baseline in the tables.")
    return [_baseline_summary(summary), _baseline_layers(per_layer, bool(per_head)), _baseline_heads(per_head)]


def _mean_of_known(values: Floats) -> Floats:
    """Means over the runs (runs, layers) of what was measured; NaN where nothing was."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0).sum(axis=0)
    return np.divide(total, count, out=np.full(values.shape[1], np.nan), where=count > 0)


def _baseline_row(
    metric: str, layer_means: Floats, used: pd.DataFrame, heads: pd.DataFrame
) -> dict[str, object] | None:
    """Mean and spread of one metric of the pretrained model; None where the runs do not give it."""
    present = layer_means[np.isfinite(layer_means)]
    given = used[f"{metric}_baseline"].dropna()
    if not len(given) and not len(present):
        return None
    of_heads = heads[heads["metric"] == metric]["value"].to_numpy(dtype=float) if len(heads) else np.zeros(0)
    of_heads = of_heads[np.isfinite(of_heads)]  # a null of one head is none of all
    return {
        "metric": metric,
        "mean": float(given.mean()) if len(given) else float(present.mean()),
        "sd_layers": float(np.std(present, ddof=1)) if len(present) > 1 else None,
        "lowest_layer": float(present.min()) if len(present) else None,
        "highest_layer": float(present.max()) if len(present) else None,
        "n_layers": len(present),
        "sd_heads": float(np.std(of_heads, ddof=1)) if len(of_heads) > 1 else None,
        "n_heads": len(of_heads),
        "n_runs": len(used),
        "note": "" if len(present) else "no layer values: mean only",
    }


_MODEL_AND_DATASET = (("model_name", "Model"), ("dataset", "Dataset"))


def _baseline_summary(rows: list[dict[str, object]]) -> Table:
    notes = ["The sample standard deviation is over layers (over layers and heads where heads are given)."]
    if not rows:
        notes.append("No run carries baseline values.")
    return Table(
        name="baseline",
        title="Pretrained attention structure",
        columns=[
            *plain_columns(*_MODEL_AND_DATASET, ("metric", "Metric")),
            Column(name="mean", label="Mean", digits=3, sd="sd_layers"),
            Column(name="lowest_layer", label="Lowest layer", digits=3),
            Column(name="highest_layer", label="Highest layer", digits=3),
            Column(name="n_layers", label="Layers"),
            Column(name="sd_heads", label="Sd over heads", digits=3),
            *plain_columns(("n_heads", "Heads"), ("n_runs", "Runs"), ("source", "Source"), ("note", "Note")),
        ],
        rows=rows,
        notes=notes,
    )


def _baseline_layers(rows: list[dict[str, object]], with_heads: bool) -> Table:
    return Table(
        name="baseline_layers",
        title="Pretrained attention structure, layer by layer (mean ± sd over heads)",
        columns=[
            *plain_columns(*_MODEL_AND_DATASET, ("layer", "Layer"), ("n_heads", "Heads")),
            *[Column(name=m, label=METRICS[m].label, digits=3, sd=f"{m}_sd_heads") for m in structure_metrics()],
        ],
        rows=rows,
        notes=[] if with_heads else ["The tables hold no values of single heads, so no spread over heads."],
    )


def _baseline_heads(rows: list[dict[str, object]]) -> Table:
    return Table(
        name="baseline_heads",
        title="Pretrained attention structure, head by head",
        columns=[
            *plain_columns(*_MODEL_AND_DATASET, ("layer", "Layer"), ("head", "Head")),
            *[Column(name=m, label=METRICS[m].label, digits=3) for m in structure_metrics()],
            Column(name="cls_mass", label=METRICS["cls_mass"].label, digits=3),
        ],
        rows=[{"cls_mass": None, **dict.fromkeys(structure_metrics()), **row} for row in rows],
        notes=[] if rows else ["The tables hold no values of single heads."],
    )


def _first_heads(heads: pd.DataFrame, used: pd.DataFrame) -> pd.DataFrame:
    """Head values at the first step of one run (they are the same pretrained model in all): the first with any."""
    present = set(heads["run_id"]) if len(heads) else set()
    for run_id in used["run_id"]:
        if run_id in present:
            mine = heads[heads["run_id"] == run_id]
            return mine[mine["step"] == mine["step"].min()].sort_values(["metric", "layer", "head"])
    return heads.iloc[:0]


def _layer_rows(means: dict[str, Floats], heads: pd.DataFrame) -> list[dict[str, object]]:
    depth = max((len(v) for v in means.values()), default=0)
    groups = heads.groupby(["metric", "layer"])["value"] if len(heads) else None
    spread: dict[Any, float] = {} if groups is None else groups.std(ddof=1).to_dict()
    counts: dict[Any, int] = {} if groups is None else groups.size().to_dict()
    rows: list[dict[str, object]] = []
    for place in range(depth):
        if not any(np.isfinite(v[place]) for v in means.values()):
            continue
        row: dict[str, Any] = {"layer": place + 1, "n_heads": 0}
        for metric, value in means.items():
            row[metric] = number(value[place])
            key = (metric, place + 1)
            row[f"{metric}_sd_heads"] = number(spread.get(key))
            row["n_heads"] = max(int(counts.get(key, 0)), row["n_heads"])
        rows.append(row)
    return rows
