"""From the rows of ``runs`` to methods, configurations, replicates and cells.

A *method* is how the model is adapted (method, rank, targets, projection, frozen blocks,
preservation losses). A *configuration* is a method on a dataset under fixed conditions and one learning
rate; its runs differ in nothing but their seeds. A *cell* is one (conditions, rate, seed).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from attndrift.analysis.measures import Measure, outcomes
from attndrift.analysis.numbers import format_rate
from attndrift.analysis.result import Excluded
from attndrift.losses.names import split_weight
from attndrift.losses.registry import LOSSES, short_label_of
from attndrift.methods.registry import DEFAULT_HEAD, FROZEN, HEADS, METHODS, PRETRAINED
from attndrift.metrics.registry import structure_metrics
from attndrift.own_settings import Owner, as_text, fields_of, words_of
from attndrift.results.columns import own_setting_columns
from attndrift.results.means import seeds_behind
from attndrift.results.measures import column_stem
from attndrift.results.tables import TABLES, Tables, infinite_values, transfer_outcomes
from attndrift.study.optimisation import optimisation_label
from attndrift.study.outcomes.registry import outcome_label
from attndrift.study.trained_parts import parts_label, text_tower_of

CONDITION_COLUMNS = ("model", "selection", "dataset", "epochs", "batch_size", "weight_decay", "n_train")

ADDITIONS = ("key_loss_name", "key_guard", "key_freeze_layers", "key_outcome")
"""Columns of prepared runs with what is added to a method, empty where nothing is; ``has_addition`` has them together."""


def method_columns() -> tuple[str, ...]:
    """The columns that tell methods apart: what every run has, and what registered methods, heads and losses bring."""
    own = (column.name for column in own_setting_columns())
    return (
        "method", *own, "train_projection", "freeze_layers", "trained_parts", "head", "optimisation", "outcome", "loss_name", "loss_weight",
        "guard", "guard_at_least", "guard_at_most",
    )  # fmt: skip


def configuration_columns() -> tuple[str, ...]:
    """The columns that are equal in all runs of a configuration."""
    return (*method_columns(), *CONDITION_COLUMNS, "learning_rate")


NOT_GIVEN = "not given"
_TELLING = 3
"""Equal numbers of so many measures are no chance."""
_FINISHED = {"finished", "done", "complete", "completed", "ok", "success"}


@dataclass
class Prepared:
    """Runs in a fixed order with their configurations; ``runs`` holds the analysed ones only."""

    runs: pd.DataFrame
    every: pd.DataFrame
    transfer: list[str]
    measures: list[Measure]
    excluded: list[Excluded]
    notes: list[str] = field(default_factory=list)

    @cached_property
    def adapted(self) -> pd.DataFrame:
        """The analysed runs without the pretrained rows (method ``none``)."""
        return self.runs[self.runs["method"] != PRETRAINED]

    @cached_property
    def distinct(self) -> pd.DataFrame:
        """The adapted runs without those that give another configuration's answers once more: what tests count."""
        adapted = self.adapted
        return adapted[~adapted["repeated"]]


def _text(values: pd.Series) -> pd.Series:
    """Values as text that is equal exactly where they are the same setting; floats to six digits."""

    def one(value: Any) -> str:
        if pd.isna(value):
            return ""
        return as_text(float(value) if isinstance(value, np.floating) else value)

    names = {value: one(value) for value in pd.unique(values) if not pd.isna(value)}
    if not names:
        # Most settings of most studies.
        return pd.Series("", index=values.index, dtype=object)
    return values.map(names).astype(object).fillna("").astype(object)


def method_label(keys: Mapping[str, str]) -> str:
    """The method in words; ``keys`` holds the columns of :func:`method_columns` as text, blank where they do not apply."""
    method = keys["method"]
    if method in METHODS:
        facts = METHODS[method]
        label = facts.describe(keys)
        if facts.projection and keys["train_projection"] == "False":
            label += ", frozen projection"
        if facts.adapts and not facts.projection and keys["train_projection"] == "True":
            label += " + projection"
    else:
        given = (name for name in fields_of(METHODS) if keys[name])
        label = ", ".join([method, *(f"{name.replace('_', ' ')} {keys[name]}" for name in given)])
    if keys["freeze_layers"]:
        label += f", {keys['freeze_layers']} block{'' if keys['freeze_layers'] == '1' else 's'} frozen"
    if keys["trained_parts"]:
        label += f", {parts_label(keys['trained_parts'])}"
    if keys["head"]:
        known = HEADS[keys["head"]].label if keys["head"] in HEADS else f"head {keys['head']}"
        label += ", ".join(["", known, *_departed(HEADS, [keys["head"]], keys)])
    if keys["loss_name"]:
        label += f" + {short_label_of(keys['loss_name'])}" + (f" {keys['loss_weight']}" if keys["loss_weight"] else "")
        label += loss_settings(keys["loss_name"], {f"key_{name}": value for name, value in keys.items()})
    if keys["guard"]:
        limits = [
            f"{sign} {keys[name]}" for name, sign in (("guard_at_least", "≥"), ("guard_at_most", "≤")) if keys[name]
        ]
        label += (
            f", guarded: {keys['guard'].removesuffix('_pct').replace('_retention', ' retention')} {', '.join(limits)}"
        )
    if keys["optimisation"]:
        label += f", {optimisation_label(keys['optimisation'])}"
    return label + (f", {outcome_label(keys['outcome'])}" if keys["outcome"] else "")


def loss_settings(text: str, row: Mapping[Any, Any]) -> str:
    """Own settings of a run's losses in words, where they are not the defaults; ``row`` has them as ``key_NAME``."""
    keys = {str(name).removeprefix("key_"): value for name, value in row.items()}
    return "".join(f" ({words})" for words in _departed(LOSSES, _loss_names(text), keys))


def _departed(registry: Any, names: Iterable[str], keys: Mapping[str, str]) -> list[str]:
    """Own settings of heads or losses in words, where they are not the defaults."""
    fields = fields_of(registry[name] for name in names if name in registry)
    return [
        f"{words_of(name, field)['label']}{keys[name]}"
        for name, field in fields.items()
        if keys[name] not in ("", as_text(field.default))
    ]


def _loss_names(text: str) -> list[str]:
    """The losses of one run, where it has several too."""
    return [part.partition(":")[0].strip() for part in text.split("+")]


def _reason(status: Any) -> str | None:
    """Why a run of this status is not analysed; None where it is. An absent status counts as finished."""
    if pd.isna(status) or str(status).strip().lower() in _FINISHED:
        return None
    return f"status is `{status}`"


def _keys(runs: pd.DataFrame) -> pd.DataFrame:
    """The settings as text, with the spellings that mean the same made the same."""
    keys = pd.DataFrame({column: _text(runs[column]) for column in configuration_columns()}, index=runs.index)
    keys.loc[keys["head"] == DEFAULT_HEAD, "head"] = ""
    keys.loc[keys["freeze_layers"] == "0", "freeze_layers"] = ""
    weightless = keys["loss_name"].str.lower().isin(["", "none"]) | (keys["loss_weight"] == "0")
    keys.loc[weightless, ["loss_name", "loss_weight"]] = ""
    # Absent means the method's default.
    never = keys["method"].isin([method.name for method in METHODS if not method.projection])
    absent = keys["train_projection"] == ""
    keys.loc[absent, "train_projection"] = np.where(never[absent], "False", "True")
    _canonical_own_settings(keys)
    keys.loc[
        keys["method"] == PRETRAINED,
        [c for c in keys.columns if c not in ("method", "model", "dataset")],
    ] = ""
    return keys


def _canonical_own_settings(keys: pd.DataFrame) -> None:
    """Own settings by their owners, in place: in one spelling, the defaults where not given, blank where no owner is."""
    own = [column.name for column in own_setting_columns()]
    given = keys[["method", "trained_parts", "head", "loss_name", *own]]
    distinct = given.drop_duplicates()
    canonical: dict[tuple[str, ...], list[str]] = {}
    for row in distinct.itertuples(index=False, name=None):
        method, parts, head, loss = row[:4]
        values = dict(zip(own, row[4:], strict=True))
        # Of a method that is not known nobody can say which settings are its own.
        found = METHODS[method].canonical(values) if method in METHODS else {n: values[n] for n in fields_of(METHODS)}
        others: list[Owner] = [HEADS[head]] if head in HEADS else []
        others += [LOSSES[name] for name in _loss_names(loss) if name in LOSSES]
        text = text_tower_of(parts)
        if text in METHODS and text != method:
            found = METHODS[text].canonical(values) | found
        for name, info in fields_of(others).items():
            found.setdefault(name, values[name] or as_text(info.default))
        canonical[row] = [found.get(name, "") for name in own]
    rows = [canonical[row] for row in given.itertuples(index=False, name=None)]
    for place, name in enumerate(own):
        keys[name] = pd.Series([row[place] for row in rows], index=keys.index, dtype=object)


def varying(keys: pd.DataFrame, names: list[str]) -> list[str]:
    """Those of ``names`` that have several values; one at least. Rows that these tell apart are all that ``names`` do."""
    first = keys[names].iloc[:1].to_numpy()
    varies = (keys[names].to_numpy() != first).any(axis=0)
    return [name for name, one in zip(names, varies.tolist(), strict=True) if one] or names[:1]


def _ignore_near_constant(runs: pd.DataFrame, keys: pd.DataFrame, notes: list[str]) -> None:
    """Blank settings that differ between the seeds of what is otherwise one configuration (n_train, mostly)."""
    for column in ("n_train",):
        if keys[column].nunique() < 2:
            continue
        names = list(keys.columns)
        with_it = keys.groupby(varying(keys, names), sort=False).ngroup()
        without = keys.groupby(varying(keys, [c for c in names if c != column]), sort=False).ngroup()
        if with_it.nunique() == len(keys) and without.nunique() < 0.75 * len(keys):
            values = pd.to_numeric(runs[column], errors="coerce")
            if values.max() <= 1.1 * values.min():
                keys[column] = ""
                notes.append(f"`{column}` differs a little from run to run and is not told apart as a setting.")


def _derive_changes(runs: pd.DataFrame, notes: list[str]) -> None:
    """Fill null relative changes from baseline and final, and compare those that are given with them."""
    for metric in structure_metrics():
        baseline, final = runs[f"{metric}_baseline"], runs[f"{metric}_final"]
        name = f"{metric}_change_pct"
        given = runs[name].to_numpy(dtype=float, copy=True)
        base = baseline.to_numpy(dtype=float)
        last = final.to_numpy(dtype=float)
        with np.errstate(divide="ignore", invalid="ignore"):
            derived = 100.0 * (last - base) / base
        usable = np.isfinite(derived)
        fill = ~np.isfinite(given) & usable
        if fill.any():
            given[fill] = derived[fill]
            notes.append(
                f"`{name}` is null in {int(fill.sum())} runs and was computed there from `{metric}_baseline` "
                f"and `{metric}_final`."
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            # Baselines and finals printed to three decimals allow this much.
            allowed = 100.0 * 0.0005 * (1 + np.abs(last / base)) / np.abs(base) * 1.05 + 0.011
        wrong = usable & np.isfinite(given) & (np.abs(given - derived) > allowed)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            notes.append(
                f"`{name}` contradicts `{metric}_baseline` and `{metric}_final` in {int(wrong.sum())} runs, first in "
                f"`{runs['run_id'].iloc[row]}`: {given[row]:.4g} is given, {derived[row]:.4g} follows from them. "
                "The given values are used."
            )
        runs[name] = given


def _name_what_is_missing(tables: Tables, runs: pd.DataFrame, notes: list[str]) -> None:
    """Notes on infinite numbers and on runs without a data set or a seed; those get names, in place."""
    for table in TABLES:
        for column, count in infinite_values(getattr(tables, table)).items():
            notes.append(f"`{column}` is infinite in {count} rows of the table `{table}`; read there as null.")
    nameless = runs["dataset"].isna()
    if nameless.any():
        runs.loc[nameless, "dataset"] = NOT_GIVEN
        notes.append(f"{int(nameless.sum())} of {len(runs)} runs name no data set: they are taken to share one.")
    means = seeds_behind(runs) > 1
    if means.any():
        notes.append(
            f"{int(means.sum())} of {len(runs)} rows are means over several seeds (`n_seeds`). Where seeds are counted, theirs "
            "are; a test that needs single runs takes such a row as one value."
        )
    unseeded = int((runs["seed"].isna() & ~means & (runs["method"] != PRETRAINED)).sum())
    if unseeded:
        notes.append(
            f"{unseeded} of {len(runs)} runs name no seed: they count as one seed, so nothing that needs several is "
            "claimed from them."
        )


def _split_losses(runs: pd.DataFrame) -> None:
    """Add ``loss_name`` and ``loss_weight``: one loss is a name and a weight that can be swept, several are one name."""
    losses = [split_weight(None if pd.isna(text) else str(text)) for text in runs["loss"]]
    runs["loss_name"] = pd.Series([name for name, _ in losses], index=runs.index, dtype=object)
    runs["loss_weight"] = pd.Series([weight for _, weight in losses], index=runs.index, dtype="float64")


def _excluded(runs: pd.DataFrame, sets: list[str], pretrained: pd.Series[bool]) -> list[Excluded]:
    """The runs that are listed and not analysed, with the reason."""
    excluded = [
        Excluded(run_id=str(run_id), status=str(status), reason=reason)
        for run_id, status in zip(runs["run_id"].tolist(), runs["status"].tolist(), strict=True)
        if (reason := _reason(status)) is not None
    ]
    outcome_columns = [m.name for m in outcomes(sets) if m.name in runs.columns]
    outcome_columns += [f"{metric}_final" for metric in structure_metrics()]
    bare = runs[outcome_columns].isna().all(axis=1) & ~pretrained
    listed = {item.run_id for item in excluded}
    return excluded + [
        Excluded(run_id=str(name), status="finished", reason="no outcome is given")
        for name in runs.loc[bare, "run_id"]
        if name not in listed
    ]


def prepare(tables: Tables) -> Prepared:
    """Order the runs, name their methods and configurations, set aside those that cannot be analysed."""
    notes: list[str] = []
    runs = _text_as_objects(tables.runs.sort_values("run_id", kind="stable").reset_index(drop=True))
    sets = transfer_outcomes(runs)
    _name_what_is_missing(tables, runs, notes)
    _derive_changes(runs, notes)
    _split_losses(runs)
    keys = _keys(runs)
    _ignore_near_constant(runs, keys, notes)

    runs["variant"] = ""
    columns = method_columns()
    method_keys = keys[list(columns)]
    distinct = method_keys.drop_duplicates()
    labels = {
        row: method_label(dict(zip(columns, row, strict=True))) for row in distinct.itertuples(index=False, name=None)
    }
    runs["variant"] = pd.Series(
        [labels[row] for row in method_keys.itertuples(index=False, name=None)],
        index=runs.index,
        dtype=object,
    )
    # All at once: a frame that grows by a hundred columns one by one becomes slow, and pandas warns of it.
    of_keys = keys[list(dict.fromkeys((*CONDITION_COLUMNS, *columns, "learning_rate")))].add_prefix("key_")
    runs = pd.concat([runs, of_keys], axis=1)
    # A frozen image tower always stands beside something: that is the method.
    parts_added = (runs["key_trained_parts"] != "") & (runs["method"] != FROZEN)
    runs["has_addition"] = (runs[list(ADDITIONS)] != "").any(axis=1) | parts_added
    runs["key_rest"] = _conditions(keys)
    runs["model_name"] = runs["key_model"].where(runs["key_model"] != "", NOT_GIVEN)
    runs["selection_name"] = runs["key_selection"].where(runs["key_selection"] != "", NOT_GIVEN)
    runs["rate_text"] = runs["learning_rate"].map({v: format_rate(v) for v in runs["learning_rate"].dropna().unique()})
    runs["rate_text"] = runs["rate_text"].astype(object).where(runs["learning_rate"].notna(), "rate not given")
    pretrained = runs["method"] == PRETRAINED
    name = runs["dataset"].astype(object) + " · " + runs["variant"]
    name = name.where(pretrained, name + " · " + runs["rate_text"])
    runs["configuration"] = name.where(runs["key_rest"] == "", name + " · " + runs["key_rest"])
    runs["replicate"] = _text(runs["seed"]) + "/" + _text(runs["data_seed"])
    parts = [keys[column].tolist() for column in (*CONDITION_COLUMNS, "learning_rate")]
    runs["conditions"] = pd.Series(["|".join(row) for row in zip(*parts, strict=True)], index=runs.index, dtype=object)

    excluded = _excluded(runs, sets, pretrained)
    order = runs.assign(rate=runs["learning_rate"].fillna(-1.0)).sort_values(
        ["model_name", "dataset", "variant", "key_rest", "rate", "seed", "data_seed", "run_id"], kind="stable"
    )
    every = runs.loc[order.index].reset_index(drop=True)
    keep = ~every["run_id"].isin([item.run_id for item in excluded])
    kept = every[keep].reset_index(drop=True)
    if excluded:
        reasons = Counter(item.reason for item in excluded)
        shown = "; ".join(f"{count}: {reason}" for reason, count in sorted(reasons.items()))
        notes.append(f"{len(excluded)} of {len(runs)} runs are listed but not analysed ({shown}).")
    _count_duplicates(kept, notes)
    measures = [m for m in outcomes(sets) if m.name in kept.columns and kept[m.name].notna().any()]
    kept["repeated"] = _repeated(kept, [m.name for m in measures], notes)
    absent = [f"`{m.name}`" for m in outcomes(sets) if m not in measures]
    if absent:
        notes.append(f"Not measured in any analysed run: {', '.join(absent)}.")
    for transfer_set in sets:
        accuracy, kept_pct = (f"{column_stem(transfer_set)}_{end}" for end in ("accuracy", "retention_pct"))
        if kept_pct in kept.columns and kept[kept_pct].isna().all() and kept[accuracy].notna().any():
            notes.append(
                f"Retention on `{transfer_set}` is null in every run although accuracies are given: it is not "
                "derived here, because it is meaningless where the pretrained accuracy is at chance."
            )
    return Prepared(kept, every, sets, measures, excluded, notes)


def _text_as_objects(frame: pd.DataFrame) -> pd.DataFrame:
    """Text of the library of tables takes ten times as long to select rows of, which is done a thousand times."""
    text = [str(name) for name, kind in frame.dtypes.items() if isinstance(kind, pd.StringDtype)]
    return frame.assign(**{name: frame[name].astype(object).where(frame[name].notna(), None) for name in text}).copy()


def _conditions(keys: pd.DataFrame) -> pd.Series:
    """The conditions that differ within a dataset, in words; empty where none does."""
    words = {
        "model": "{}",
        "selection": "selection {}",
        "epochs": "{} epochs",
        "batch_size": "batch {}",
        "weight_decay": "weight decay {}",
        "n_train": "{} training images",
    }
    parts: list[NDArray[Any]] = []
    adapted = keys["method"] != PRETRAINED
    for column, template in words.items():
        differs = keys.loc[slice(None) if column == "model" else adapted, column].nunique() > 1
        if column == "model" or not differs:
            varies = pd.Series(differs, index=keys.index)
        else:
            counts = keys[adapted].groupby(["dataset", "model"])[column].transform("nunique")
            varies = (counts > 1).reindex(keys.index, fill_value=False)
        texts = {v: template.format(v or NOT_GIVEN) for v in keys[column].unique()}
        shown = varies & (adapted | (column == "model"))
        parts.append(np.where(shown, keys[column].map(texts), ""))
    if not len(keys):
        return pd.Series([], dtype=object)
    rows = zip(*parts, strict=True)
    cache: dict[tuple[str, ...], str] = {}
    joined: list[str] = []
    for row in rows:
        if row not in cache:
            cache[row] = ", ".join(part for part in row if part)
        joined.append(cache[row])
    return pd.Series(joined, index=keys.index, dtype=object)


def _count_duplicates(runs: pd.DataFrame, notes: list[str]) -> None:
    adapted = runs[runs["method"] != PRETRAINED]
    twice = adapted.duplicated(["configuration", "replicate"], keep=False)
    if twice.any():
        first = adapted.loc[twice, "run_id"].iloc[0]
        notes.append(
            f"{int(twice.sum())} runs share configuration and seed with another (first: `{first}`); "
            "in paired tests they count as one cell, their mean."
        )


def _repeated(runs: pd.DataFrame, names: list[str], notes: list[str]) -> pd.Series:
    """Runs whose whole configuration gives, seed by seed, the numbers of one of another weight decay."""
    told = runs[names].notna().sum(axis=1) >= _TELLING
    same = [f"key_{c}" for c in configuration_columns() if c != "weight_decay"]
    again = runs.duplicated([*same, "replicate", *names]) & told & (runs["method"] != PRETRAINED)
    whole = again.groupby(runs["configuration"]).transform("all").astype(bool)
    n = runs.loc[whole, "configuration"].nunique()
    if n:
        notes.append(
            f"{n} configurations repeat the numbers of another one of a different weight decay, seed by seed (first: "
            f"`{runs.loc[whole, 'configuration'].iloc[0]}`); tests count each once."
        )
    return whole


def configuration_means(runs: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Means over the runs of each configuration, in the order of the runs; index: configuration."""
    return runs.groupby("configuration", sort=False)[columns].mean()


def evidence_label(n_configurations: int, n_seeds: int, minimum: int) -> str:
    """`n = 5 configurations, one seed: descriptive only`, or the plain count where it suffices."""
    noun = "configuration" if n_configurations == 1 else "configurations"
    seeds = "one seed" if n_seeds == 1 else f"{n_seeds} seeds"
    text = f"n = {n_configurations} {noun}, {seeds}"
    return f"{text}: descriptive only" if n_configurations < minimum or n_seeds == 1 else text
