"""Method, limits and reproducibility: generated from the settings and the records, never from memory."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

from attndrift.analysis.result import Table
from attndrift.methods.registry import PRETRAINED, in_order, label_of
from attndrift.metrics.registry import METRICS
from attndrift.report.blocks import Block, Bullets, Text, counted, table_block
from attndrift.report.evidence import preprocessing_text
from attndrift.report.page import Page
from attndrift.report.records import Records, compact, shared_and_varying
from attndrift.report.registry import section
from attndrift.results.columns import Column


@section("method", title="Method", order=800, appendix=True)
def method(page: Page) -> list[Block]:
    """Definitions of the metrics, selection, and what the statistics resample."""
    analysis, settings = page.analysis, page.analysis.settings
    rows: list[dict[str, Any]] = [
        {"name": m.name, "meaning": m.meaning, "unit": m.unit, "range": m.range, "source": m.source} for m in METRICS
    ]
    columns = [Column(name=n, label=n.capitalize()) for n in ("name", "meaning", "unit", "range", "source")]
    metrics = Table(name="metrics", title="Metrics", columns=columns, rows=rows, notes=[])
    return [
        Text(
            "Let a be the attention of the class token to the N image patches in one image, head and layer: the "
            "softmax over all tokens, without the class and register tokens, renormalised to sum to 1. A model "
            "without a class token is queried through its pooling head. Metrics are means over probe images, then "
            "heads, then layers; every image counts once. A relative change is 100 (M - M0) / M0, for a mean that of "
            "the mean. The last block stands beside the mean over layers, because a mean hides opposite changes "
            "in single layers. Preserving means a change near 0, whatever its sign."
        ),
        table_block(metrics, written=False),
        Bullets([_selection(name) for name in analysis.data.selections] or ["The tables name no selection."]),
        Text(
            "Retention is 100 x adapted / pretrained accuracy on a transfer set, both through the live image encoder and "
            "its projection; it is null where the pretrained accuracy is at chance. A set is measured by zero-shot accuracy where its name stands alone."
        ),
        Bullets(
            [
                "A configuration is a method with its dataset, model, selection, settings and rate; its runs differ "
                "in seed alone. A learning rate is a fixed factor of the design, seeds are its replicates.",
                "Methods are compared at the same model, selection, dataset, settings and rates, seed by seed: each "
                "seed gives one number, the mean or the slope over the rates. Intervals "
                f"({settings.level:.0%}) and p values are Student's t over these numbers; with fewer than three seeds "
                "there are none. Methods without a shared seed are compared by Welch's t.",
                "Beside equal rates, each method is taken at its best validation accuracy, and at its best retention "
                "with the accuracy that both reach; only rates that were run are used.",
                "p values are corrected by Holm within the tests of one measure, one contrast and one method with all "
                f"others; below {settings.alpha:g} a finding is supported.",
                f"Preserved, or equivalent, means within {settings.equivalent_within_points:g} points (accuracy, "
                f"retention) or {settings.equivalent_within_pct:g}% (attention), by two one-sided t tests.",
                f"Collapse begins at the first evaluation with an entropy change of {settings.collapse_onset_pct:g}% "
                "or lower; a run has converged at the first evaluation within "
                f"{settings.convergence_points:g} points of its validation accuracy.",
            ]
        ),
    ]


def _selection(name: str) -> str:
    known = {
        "test": "Selection `test`: the held-out split selects the epoch, is reported, and gives the probe images; "
        "structure is measured after the last epoch. Accuracies are therefore optimistic.",
        "validation": "Selection `validation`: training, validation and probe images are disjoint parts of the training "
        "split; validation selects the epoch; the test split is read once, for the selected checkpoint, where "
        "structure is measured too.",
    }
    return known.get(name, f"Selection `{name}`: not one of this program; see its source.")


@section("limits", title="Limits", order=900, appendix=True)
def limits(page: Page) -> list[Block]:
    """What the evidence cannot show; each line is there because the data calls for it."""
    data, items = page.analysis.data, list[str]()
    runs = page.tables.runs
    analysed = runs[~runs["run_id"].isin([e.run_id for e in data.excluded])]
    adapted = analysed[analysed["method"] != PRETRAINED]
    if data.single_seed:
        items.append("One seed: no number carries an uncertainty between seeds, and small differences mean nothing.")
    else:
        items.append(
            f"{data.n_seeds} seeds: spreads between seeds are estimated from few values."
            if data.n_seeds < 10
            else f"{data.n_seeds} seeds."
        )
    if analysed["data_seed"].dropna().nunique() == 1:
        items.append("One data seed: splits, subsets and probe images are the same in all runs; their choice adds no")
        items[-1] += " spread here, so the intervals do not cover it."
    if len(data.datasets) == 1:
        items.append(f"One dataset (`{data.datasets[0]}`): nothing here shows that another one behaves alike.")
    if len(data.models) == 1:
        items.append(f"One model (`{data.models[0]}`): other sizes and families may behave differently.")
    if "test" in data.selections:
        items.append(
            "Selection `test` selects the epoch on the split that it reports and takes the probe images from it: "
            "its accuracies are optimistic, and validation and test accuracy are one number."
        )
    items += _cka_limits(analysed, page.records)
    items += _rate_limits(adapted)
    if not data.transfer_sets:
        items.append("No retention was measured, so nothing is said about forgetting.")
    elif len(data.transfer_sets) == 1:
        items.append(f"One transfer set (`{data.transfer_sets[0]}`): retention may differ on others.")
    items += _left_out(page.records)
    small = analysed["n_test"].dropna()
    if len(small) and small.min() < 1000:
        n = int(small.min())
        items.append(f"As few as {n} test images: one image is {100 / n:.2g} points of accuracy.")
    items += [
        "Attention, CKA and drift are measured on a fixed probe set of images, not on the test set.",
        "Association is not cause: attention, representation and weights change together.",
    ]
    if data.excluded:
        items.append(f"Not analysed: {counted(len(data.excluded), 'run')}, listed below.")
    return [Bullets(items)]


def _left_out(records: Records) -> list[str]:
    """Sets that runs went on without, near-duplicates that they left out, and images that were not compared for them."""
    absent: Counter[str] = Counter()
    dropped: dict[str, set[int]] = {}
    compared: dict[str, None] = {}
    for record in records.found.values():
        absent.update(list(record.get("absent") or {}))
        for name, told in (record.get("transfer") or {}).items():
            if told.get("duplicates"):
                dropped.setdefault(name, set()).add(len(told["duplicates"]))
            for whose, counts in (told.get("compared") or {}).items():
                compared[" of ".join(f"{count:,}" for count in counts) + f" {whose}"] = None
    items = []
    if absent:
        sets = ", ".join(f"`{name}` ({counted(runs, 'run')})" for name, runs in sorted(absent.items()))
        items.append(f"Transfer sets that could not be had, so that nothing is said about them: {sets}.")
    if dropped:
        sets = ", ".join(f"{_range(counts)} of `{name}`" for name, counts in sorted(dropped.items()))
        items.append(f"Images dropped as near-duplicates of training images: {sets}.")
    if compared:
        items.append(f"Near-duplicates were looked for among a part of the images: {', '.join(sorted(compared))}.")
    return items


def _range(counts: set[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _cka_limits(analysed: Any, records: Records) -> list[str]:
    if not analysed["cka_mean"].notna().any():
        return []
    levels = {round(float(v), 2) for r in records.found.values() if (v := r.get("cka_chance_level")) is not None}
    probe = analysed["n_probe"].dropna()
    images = f"{int(probe.min())} to {int(probe.max())}" if len(probe) and probe.min() != probe.max() else None
    images = images or (str(int(probe.min())) if len(probe) else "an unrecorded number of")
    text = (
        f"CKA is biased upwards where probe images ({images}) are not many more than dimensions: "
        "read it beside the debiased form"
    )
    if levels:
        shown = ", ".join(f"{level:.2f}" for level in sorted(levels))
        return [f"{text} and beside its chance level, {shown} for independent Gaussian representations of that size."]
    return [f"{text}. The chance level is not recorded (for 200 images x 768 dimensions it is 0.79)."]


def _rate_limits(adapted: Any) -> list[str]:
    rates = {
        str(method): {f"{rate:g}" for rate in group.dropna()}
        for method, group in adapted.groupby("method")["learning_rate"]
    }
    told = []
    for first, second in itertools.combinations(in_order(name for name, own in rates.items() if own), 2):
        one, other = rates[first], rates[second]
        names = f"{label_of(first)} and {label_of(second)}"
        if not one & other:
            told.append(
                f"{names} share no rate ({_rates(one)} and {_rates(other)}): their difference is one of method and rate "
                "together."
            )
        elif one != other:
            told.append(
                f"{names} share only some rates ({_rates(one & other)}); comparisons on identical cells use these alone, "
                "while other tables mix method and rate."
            )
    return told


def _rates(rates: set[str]) -> str:
    return ", ".join(sorted(rates, key=float))


@section("reproducibility", title="Reproducibility", order=1000, appendix=True)
def reproducibility(page: Page) -> list[Block]:
    """Settings, versions, hashes, hardware and time, from the records of the runs."""
    records, blocks = page.records, list[Block]()
    found = records.found
    if not found:
        blocks.append(
            Text(
                "No run record lies beside the tables (they are foreign, or were moved without their runs), so "
                "settings beyond the columns of `runs`, versions, hashes, hardware and time are unknown.",
                warning=True,
            )
        )
    else:
        if records.missing:
            blocks.append(
                Text(f"Without a record: {counted(len(records.missing), 'run')}; what follows is about the rest.", True)
            )
        blocks += [*_same_in_all(records), *_settings(records), _run_evidence(records)]
    if records.problems:
        blocks.append(Bullets(records.problems))
    thresholds = page.analysis.settings.model_dump(mode="json")
    rows = [{"name": name, "value": compact(value)} for name, value in thresholds.items()]
    table = Table(
        name="analysis_settings", title="Settings of the analysis", columns=_pair("Setting"), rows=rows, notes=[]
    )
    blocks.append(table_block(table, written=False))
    return blocks


def _pair(label: str) -> list[Column]:
    return [Column(name="name", label=label), Column(name="value", label="Value")]


def _same_in_all(records: Records) -> list[Any]:
    facts: dict[str, Counter[str]] = {}
    for record in records.found.values():
        entries: dict[str, Any] = {f"version {k}": v for k, v in (record.get("versions") or {}).items()}
        entries |= {f"hardware: {k}": v for k, v in (record.get("hardware") or {}).items()}
        entries["precision"] = record.get("precision")
        entries["deterministic"] = record.get("deterministic")
        entries["model"] = record.get("hashes", "model", "source")
        entries["model weights, SHA-256"] = record.get("hashes", "model", "weights_sha256")
        dataset = record.get("data", "name") or record.get("settings", "dataset") or "?"
        entries[f"data {dataset}, SHA-256"] = record.get("hashes", "data")
        for key in ("origin", "config", "licence", "train_split", "test_split"):
            entries[f"data {dataset}: {key.replace('_', ' ')}"] = record.get("data", key)
        entries["preprocessing"] = preprocessing_text(record.get("preprocessing"))
        for name, value in entries.items():
            if value is not None:
                facts.setdefault(name, Counter())[compact(value)] += 1
    rows = [
        {
            "name": name,
            "value": next(iter(values))
            if len(values) == 1
            else "; ".join(f"{value} ({counted(count, 'run')})" for value, count in values.most_common()),
        }
        for name, values in facts.items()
    ]
    table = Table(
        name="environment", title="Versions, hardware, model and data", columns=_pair("What"), rows=rows, notes=[]
    )
    return [table_block(table, written=False)]


def _settings(records: Records) -> list[Any]:
    settings = {run_id: r.get("settings") or {} for run_id, r in records.found.items()}
    shared, varying = shared_and_varying(settings)
    rows = [{"name": name, "value": value} for name, value in shared.items()]
    table = Table(
        name="shared_settings", title="Settings shared by all runs", columns=_pair("Setting"), rows=rows, notes=[]
    )
    blocks = [table_block(table, written=False)]
    if varying and len(varying[0]) > 1:
        columns = [Column(name=name, label="Run" if name == "run_id" else name) for name in varying[0]]
        rest = Table(
            name="varying_settings", title="Settings that differ", columns=columns, rows=list(varying), notes=[]
        )
        blocks.append(table_block(rest, limit=500, written=False))
    return blocks


def _run_evidence(records: Records) -> Any:
    rows: list[dict[str, Any]] = []
    total = 0.0
    for run_id, record in records.found.items():
        seconds = record.get("time", "seconds")
        total += float(seconds) if isinstance(seconds, (int, float)) else 0.0
        nulls = record.get("nulls") or {}
        rows.append(
            {
                "run_id": run_id,
                "status": record.get("status"),
                "seconds": seconds,
                "started": record.get("started"),
                "checkpoint": record.get("measured_checkpoint"),
                "chance": record.get("cka_chance_level"),
                "hash": record.get("settings_hash"),
                "problem": compact(record.get("problem")) if record.get("problem") else None,
                "nulls": "; ".join(f"{name}: {why}" for name, why in nulls.items()) or None,
            }
        )
    columns = [
        Column(name="run_id", label="Run"),
        Column(name="status", label="Status"),
        Column(name="seconds", label="Time", unit="s", digits=1),
        Column(name="started", label="Started"),
        Column(name="checkpoint", label="Measured checkpoint"),
        Column(name="chance", label="CKA chance level", digits=3),
        Column(name="hash", label="Settings, SHA-256"),
        Column(name="problem", label="Problem"),
        Column(name="nulls", label="Not measured, and why"),
    ]
    notes = [f"Time in all: {total / 3600:.2f} hours ({total:.0f} s)."]
    table = Table(
        name="run_evidence", title="Runs: time, checkpoint and settings hash", columns=columns, rows=rows, notes=notes
    )
    return table_block(table, limit=500, written=False)
