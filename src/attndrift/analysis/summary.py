"""The tables of all runs and of configurations, and the sweeps: rate, rank, freezing, targets, preservation loss, weight decay.

Tables are selected by what the columns say, never by experiment labels: a sweep over a setting is a
set of runs that differ in that setting alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from attndrift.analysis.configurations import (
    Prepared,
    configuration_columns,
    loss_settings,
    method_columns,
    method_label,
    varying,
)
from attndrift.analysis.means import pooled, seed_counts, seeds_in
from attndrift.analysis.measures import Measure
from attndrift.analysis.numbers import number
from attndrift.analysis.result import Table
from attndrift.analysis.settings import AnalysisSettings
from attndrift.losses.registry import LOSSES
from attndrift.methods.registry import HEADS, METHODS
from attndrift.metrics.registry import structure_metrics
from attndrift.own_settings import as_text, fields_of, owners_of, plain_kinds, words_of
from attndrift.results.columns import Column

ONE_SEED = "one seed"


@dataclass(frozen=True)
class Sweep:
    """A sweep: ``setting`` varies, ``tied`` columns follow it, ``methods`` limits which runs take part.

    ``meaning`` is what its table holds, in one phrase.
    """

    name: str
    title: str
    setting: str
    tied: tuple[str, ...] = ()
    methods: tuple[str, ...] | None = None
    default: str = ""
    numeric: bool = True
    meaning: str = ""


def sweeps() -> list[Sweep]:
    """The sweeps of settings that every run has, and of own settings that ask for one."""
    own = []
    for name, field in fields_of([*METHODS, *HEADS, *LOSSES]).items():
        words, numeric = words_of(name, field), bool(plain_kinds(field.annotation) & {int, float})
        if words["sweep"]:
            methods = tuple(owners_of(name, METHODS)) or None
            default = "" if numeric else as_text(field.default)
            tied = f" ({', '.join(words['tied'])} follows it)" if words["tied"] else ""
            meaning = f"runs that differ in `{name}` alone{tied}"
            own.append(
                Sweep(words["sweep_name"], words["sweep"], name, words["tied"], methods, default, numeric, meaning)
            )
    projecting = tuple(method.name for method in METHODS if method.projection is not None)
    return [
        Sweep("rate", "Learning rate", "learning_rate", meaning="runs that differ in the learning rate alone; `sweep` "
              "names what they share, `setting` the value"),
        *own,
        Sweep("freezing", "Frozen blocks", "freeze_layers", default="0",
              meaning="runs that differ in the number of frozen blocks alone"),
        Sweep("loss", "Preservation loss", "loss_name", ("loss_weight", *fields_of(LOSSES)), None, "none", numeric=False,
              meaning="runs that differ in the preservation loss and its weight alone; `none` is the row without"),
        Sweep("weight_decay", "Weight decay", "weight_decay",
              meaning="runs that differ in the weight decay alone"),
        Sweep("projection", "Visual projection", "train_projection", (), projecting, numeric=False,
              meaning="runs that differ in whether the visual projection is trained"),
    ]  # fmt: skip


def plain_columns(*names: tuple[str, str]) -> list[Column]:
    return [Column(name=name, label=label) for name, label in names]


def seed_note(n_seeds: int) -> str:
    return ONE_SEED if n_seeds == 1 else f"{n_seeds} seeds"


def all_runs_table(prepared: Prepared) -> Table:
    """A row a run; the excluded ones keep their numbers, their status says why they are not analysed."""
    every, measures = prepared.every, list(prepared.measures)
    extra = [
        Measure(f"{metric}_{end}", f"{metric} {word}", "", 3)
        for metric in structure_metrics()
        for end, word in (("baseline", "before"), ("final", "after"))
        if every[f"{metric}_{end}"].notna().any()
    ]
    known = [
        ("run_id", "Run"),
        ("experiment", "Experiment"),
        ("model_name", "Model"),
        ("selection_name", "Selection"),
    ]
    known += [("dataset", "Dataset"), ("variant", "Method"), ("learning_rate", "Rate"), ("seed", "Seed")]
    known += [("status", "Status"), ("configuration", "Configuration")]
    columns = plain_columns(*known) + plain_columns(("trainable_parameters", "Trainable parameters"))
    names = [column.name for column in columns]
    frame = every[names + [m.name for m in measures] + [m.name for m in extra]]
    columns += [m.column() for m in (*measures, *extra)]
    columns = [c for c in columns if frame[c.name].notna().any()]
    notes = [] if len(every) else ["There are no runs."]
    if seeds_in(prepared.adapted) == 1:
        notes.append("One seed: no row carries an uncertainty.")
    if prepared.excluded:
        notes.append("Rows whose status is not finished take no part in any test or mean.")
    return Table(
        name="runs",
        title="All runs",
        columns=columns,
        rows=records(frame[[c.name for c in columns]]),
        notes=notes,
    )


def records(frame: pd.DataFrame) -> list[dict[str, object]]:
    """Rows as dictionaries of plain Python values, nulls as None."""
    columns: dict[str, list[object]] = {}
    for name in frame.columns:
        values = frame[name]
        if pd.api.types.is_float_dtype(values.dtype) and isinstance(values.dtype, np.dtype):
            array = values.to_numpy(dtype=float)
            columns[str(name)] = [
                v if ok else None for v, ok in zip(array.tolist(), np.isfinite(array).tolist(), strict=True)
            ]
        else:
            columns[str(name)] = [
                None if missing else _plain(v)
                for v, missing in zip(values.tolist(), values.isna().tolist(), strict=True)
            ]
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)] if names else []


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    return value


def aggregate(runs: pd.DataFrame, measures: Sequence[Measure], identity: Sequence[str]) -> pd.DataFrame:
    """Mean and sample sd over the seeds of each configuration; sd is null for one run."""
    names = [m.name for m in measures]
    groups = runs.groupby("configuration", sort=False)
    first = groups[list(identity)].first()
    mean, sd = groups[names].mean(), groups[names].std(ddof=1)
    # Equal values leave rounding behind in a variance.
    low, high = groups[names].min(), groups[names].max()
    sd = sd.where(~((low == high) & sd.notna()), 0.0)
    sd.columns = pd.Index([f"{name}_sd" for name in names])
    own_mean, own_sd = pooled(runs, names)
    if len(own_mean):
        mean.loc[own_mean.index], sd.loc[own_sd.index] = own_mean, own_sd
    counts = pd.DataFrame({"n_runs": groups.size(), "n_seeds": seed_counts(runs)})
    result = pd.concat([first, counts, mean, sd], axis=1).reset_index()
    result["note"] = result["n_seeds"].map(lambda n: ONE_SEED if n == 1 else "")
    return result


def aggregate_table(prepared: Prepared) -> Table:
    """A row a configuration: mean and sample standard deviation over its seeds."""
    identity = ["model_name", "selection_name", "dataset", "variant", "learning_rate"]
    frame = aggregate(prepared.runs, prepared.measures, identity)
    columns = plain_columns(
        ("configuration", "Configuration"),
        ("model_name", "Model"),
        ("selection_name", "Selection"),
        ("dataset", "Dataset"),
        ("variant", "Method"),
        ("learning_rate", "Rate"),
        ("n_runs", "Runs"),
        ("n_seeds", "Seeds"),
    )
    columns += [*sweep_measures(prepared.measures), Column(name="note", label="Note")]
    return Table(
        name="configurations",
        title="Configurations: mean ± sample standard deviation over seeds",
        columns=columns,
        rows=records(frame[cells_of(columns)]),
        notes=single_seed_notes(frame) if len(frame) else ["There are no analysed runs."],
    )


def sweep_measures(measures: Sequence[Measure]) -> list[Column]:
    return [m.column(sd=True) for m in measures]


def cells_of(columns: Sequence[Column]) -> list[str]:
    """Names of the data columns behind ``columns``: standard deviations follow their means."""
    names: list[str] = []
    for column in columns:
        names.append(column.name)
        if column.sd:
            names.append(column.sd)
    return names


def filled_table(
    name: str, title: str, columns: list[Column], rows: list[dict[str, object]], notes: list[str]
) -> Table:
    """A table of ``rows``, which may lack columns or have others."""
    names = cells_of(columns)
    frame = pd.DataFrame([{key: row.get(key) for key in names} for row in rows], columns=names)
    return Table(name=name, title=title, columns=columns, rows=records(frame), notes=notes)


def single_seed_notes(frame: pd.DataFrame) -> list[str]:
    single = int((frame["n_seeds"] == 1).sum())
    if not single:
        return []
    if single == len(frame):
        return ["One seed in every row: no standard deviation exists and small differences mean nothing."]
    return [f"{single} of {len(frame)} rows rest on one seed and have no standard deviation."]


def sweep_tables(prepared: Prepared, settings: AnalysisSettings) -> list[Table]:
    """One table a kind of sweep; the column ``sweep`` names the runs that share all other settings."""
    shared = ["model_name", "selection_name", "dataset", "variant", "learning_rate"]
    means = aggregate(prepared.adapted, prepared.measures, shared).set_index("configuration", drop=False)
    names = [f"key_{name}" for name in configuration_columns()]
    runs = prepared.adapted[[*names, "key_rest", "method", "dataset", "configuration", "rate_text"]]
    return [_sweep_table(runs, prepared.measures, sweep, means, settings) for sweep in sweeps()]


def sweep_groups(runs: pd.DataFrame, sweep: Sweep, limit: int) -> tuple[list[tuple[pd.DataFrame, str]], int]:
    """Groups of runs equal in everything but the setting: the ``limit`` largest with a label, and how many exist.

    Those with the most values of the setting come first; two values are the least.
    """
    if sweep.methods is not None:
        runs = runs[runs["method"].isin(sweep.methods)]
    if runs.empty:
        return [], 0
    keys = [f"key_{c}" for c in (sweep.setting, *sweep.tied)]
    fixed = [f"key_{c}" for c in configuration_columns() if f"key_{c}" not in keys]
    code = runs.groupby(varying(runs, fixed), sort=False).ngroup().to_numpy()
    setting = runs.groupby(varying(runs, keys), sort=False).ngroup().to_numpy()
    pairs = np.unique(np.column_stack([code, setting]), axis=0)
    values = np.bincount(pairs[:, 0])
    size = np.bincount(code)
    swept = np.flatnonzero(values >= 2)
    swept = swept[np.lexsort((swept, -size[swept], -values[swept]))]
    shown = [runs[code == place] for place in swept[:limit]]
    return [(group, _shared_label(group, sweep)) for group in shown], len(swept)


def _shared_label(group: pd.DataFrame, sweep: Sweep) -> str:
    first = group.iloc[0]
    shared = {c: "" if c in (sweep.setting, *sweep.tied) else str(first[f"key_{c}"]) for c in method_columns()}
    parts = [str(first["dataset"]), method_label(shared)]
    if sweep.name != "rate":
        parts.append(str(first["rate_text"]))
    rest = [part for part in str(first["key_rest"]).split(", ") if part]
    if sweep.name == "weight_decay":
        rest = [part for part in rest if not part.startswith("weight decay")]
    return " · ".join([*parts, *([", ".join(rest)] if rest else [])])


def setting_values(group: pd.DataFrame, sweep: Sweep) -> pd.Series:
    """The swept setting in words, the default where it is not given."""
    text = group[f"key_{sweep.setting}"].astype(object)
    if sweep.setting == "train_projection":
        return text.map({"True": "trained", "False": "frozen"})
    text = text.where(text != "", sweep.default or "not given")
    if sweep.name == "loss":
        own = [f"key_{name}" for name in fields_of(LOSSES)]
        words = [loss_settings(name, row) for name, row in zip(text, group[own].to_dict("records"), strict=True)]
        weight = group["key_loss_weight"].astype(object)
        return (text + " " + weight).str.strip() + pd.Series(words, index=group.index, dtype=object)
    if sweep.name == "rate":
        return group["rate_text"].astype(object)
    return text


def _sweep_table(
    runs: pd.DataFrame, measures: list[Measure], sweep: Sweep, means: pd.DataFrame, settings: AnalysisSettings
) -> Table:
    """``means`` of every configuration, by its name; all runs of a configuration are in the same group."""
    groups, existing = sweep_groups(runs, sweep, settings.max_sweeps)
    notes: list[str] = []
    if existing > len(groups):
        notes.append(f"The {len(groups)} largest of {existing} sweeps are shown.")
    parts: list[pd.DataFrame] = []
    for group, label in groups:
        first = group.drop_duplicates("configuration").set_index("configuration")
        frame = means.loc[first.index].reset_index(drop=True)
        frame["setting"] = setting_values(first, sweep).reindex(frame["configuration"]).to_numpy()
        frame["sweep"] = label
        order = _order(first, sweep).reindex(frame["configuration"]).to_numpy()
        frame = frame.iloc[np.lexsort((frame["setting"].astype(str), order))].reset_index(drop=True)
        parts.append(_mark_preserving(frame))
    columns = plain_columns(
        ("sweep", "Runs that differ in this alone"),
        ("setting", sweep.title),
        ("n_runs", "Runs"),
        ("n_seeds", "Seeds"),
    )
    columns += sweep_measures(measures) + plain_columns(
        ("preserves_best", "Entropy change nearest to 0"), ("note", "Note")
    )
    if parts:
        whole = pd.concat(parts, ignore_index=True)
        whole["configuration"] = whole["configuration"].astype(object)
        notes += single_seed_notes(whole)
        notes.append(
            "`preserves_best` marks the row whose mean entropy change is nearest to 0 within its sweep; a change away "
            "from 0 is no preservation, whatever its sign."
        )
        rows = records(whole[["configuration", *cells_of(columns)]])
    else:
        rows = []
        notes.append(f"No two runs differ in {sweep.title.lower()} alone.")
    columns.insert(0, Column(name="configuration", label="Configuration"))
    return Table(
        name=f"sweep_{sweep.name}",
        title=f"{sweep.title}: runs that differ in nothing else",
        columns=columns,
        rows=rows,
        notes=notes,
    )


def _order(first: pd.DataFrame, sweep: Sweep) -> pd.Series:
    if sweep.name == "loss":
        names = {name: place for place, name in enumerate(sorted(first["key_loss_name"].unique()))}
        weight = pd.to_numeric(first["key_loss_weight"], errors="coerce").fillna(0.0).astype(float)
        return first["key_loss_name"].map(names).astype(float) * 1e9 + weight
    if sweep.numeric:
        text = first[f"key_{sweep.setting}"].replace("", "0" if sweep.default == "0" else "-1")
        return pd.to_numeric(text, errors="coerce").astype(float)
    length = first[f"key_{sweep.setting}"].astype(str).str.len()
    return length.astype(float)


def _mark_preserving(frame: pd.DataFrame) -> pd.DataFrame:
    if "entropy_change_pct" not in frame.columns:
        return frame.assign(preserves_best=None)
    size = frame["entropy_change_pct"].abs()
    best = size.min()
    frame["preserves_best"] = [number(v) is not None and bool(np.isclose(v, best, rtol=0, atol=1e-12)) for v in size]
    return frame
