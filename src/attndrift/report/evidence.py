"""Transfer accuracies with what gives them meaning: prompts, classes, split, preprocessing, embedding drift."""

from __future__ import annotations

import pandas as pd

from attndrift.analysis.numbers import number
from attndrift.analysis.result import Analysis, Table
from attndrift.report.records import Record, Records, compact
from attndrift.results.columns import Column
from attndrift.results.measures import column_stem, set_and_measure, unconverged
from attndrift.results.tables import Tables

_SIDES = ("adapted", "pretrained")


def transfer_table(analysis: Analysis, tables: Tables, records: Records) -> Table:
    """A row a run and transfer set; what no record holds is said to be missing, never guessed."""
    variants = {str(row["run_id"]): row.get("variant") for row in analysis.tables["runs"].rows}
    rows: list[dict[str, object]] = []
    evaluations: dict[str, dict[str, str]] = {}
    unknown = 0
    for name in analysis.data.transfer_sets:
        prefix, (of_set, measure) = column_stem(name), set_and_measure(name)
        if f"{prefix}_accuracy" not in tables.runs.columns:
            continue
        frame = tables.runs[tables.runs[f"{prefix}_accuracy"].notna() | tables.runs[f"{prefix}_retention_pct"].notna()]
        for run in frame.to_dict("records"):
            run_id = str(run["run_id"])
            record = records.found.get(run_id)
            described = evidence(record, of_set, measure) if record else None
            unknown += described is None
            key = ""
            if described:
                # Runs that were evaluated alike share a letter, and the evaluation is printed once.
                key = next((k for k, known in evaluations.items() if known == described), f"P{len(evaluations) + 1}")
                evaluations[key] = described
            moved = record.get("transfer", of_set, measure, "adapted", "embeddings_moved_mean") if record else None
            why = record.get("nulls", f"{prefix}_retention_pct") if record else None
            said = {end: record.get("transfer", of_set, measure, end) if record else None for end in _SIDES}
            fit = unconverged(said["pretrained"], said["adapted"], ("the pretrained model", "this one"))
            count = run[f"{prefix}_n"]
            rows.append(
                {
                    "run_id": run_id,
                    "variant": variants.get(run_id),
                    "learning_rate": number(run["learning_rate"]),
                    "transfer_set": name,
                    "accuracy": number(run[f"{prefix}_accuracy"]),
                    "pretrained": number(run[f"{prefix}_pretrained"]),
                    "retention": number(run[f"{prefix}_retention_pct"]),
                    "low": number(run.get(f"{prefix}_retention_low_pct")),
                    "high": number(run.get(f"{prefix}_retention_high_pct")),
                    "embedding_drift": number(run["embedding_drift"]),
                    "moved": number(moved),
                    "n": None if pd.isna(count) else int(count),
                    "evaluation": key or "not recorded",
                    "note": "; ".join(str(one) for one in (why, fit) if one) or None,
                }
            )
    notes = [
        "Embedding drift, 1 - mean cosine on the probe images, says how far the embeddings moved; where it is 0 "
        "the accuracy is that of the pretrained model.",
        "Embeddings moved: mean Euclidean distance between the embeddings of the transfer images before and after, "
        "over the mean norm before.",
        "Lower and upper end: the paired 95% interval of the retention over the images (Bonett and Price).",
    ]
    notes += [f"{key}: " + "; ".join(f"{n}: {v}" for n, v in what.items()) + "." for key, what in evaluations.items()]
    if unknown:
        notes.append(
            f"For {unknown} of the accuracies no record says which prompts, class names, split and preprocessing were used; "
            "published zero-shot values of one model differ by several points for such reasons."
        )
    columns = [
        Column(name="run_id", label="Run"),
        Column(name="variant", label="Method"),
        Column(name="learning_rate", label="Rate"),
        Column(name="transfer_set", label="Transfer set"),
        Column(name="accuracy", label="Accuracy", unit="%", digits=2, scale=100.0),
        Column(name="pretrained", label="Pretrained", unit="%", digits=2, scale=100.0),
        Column(name="retention", label="Retention", unit="%", digits=1),
        Column(name="low", label="Lower end", unit="%", digits=1),
        Column(name="high", label="Upper end", unit="%", digits=1),
        Column(name="embedding_drift", label="Embedding drift", digits=4),
        Column(name="moved", label="Embeddings moved", digits=4),
        Column(name="n", label="Images"),
        Column(name="evaluation", label="Evaluation"),
        Column(name="note", label="Note"),
    ]
    return Table(
        name="transfer", title="Retention through the adapted encoder", columns=columns, rows=rows, notes=notes
    )


_OF_EVERY_MEASURE = ("accuracy", "accuracy_interval", "n")


def evidence(record: Record, name: str, measure: str) -> dict[str, str] | None:
    """How the accuracy on ``name`` by ``measure`` was taken; None where the record does not say."""
    adapted = next((found for end in _SIDES if (found := record.get("transfer", name, measure, end))), None)
    if not isinstance(adapted, dict):
        return None
    classes = adapted.get("class_names")
    templates = adapted.get("templates")
    if classes is None and templates is None:
        # What a measure without texts says of itself: neighbours, bank, ...
        said = {key: compact(value) for key, value in adapted.items() if key not in _OF_EVERY_MEASURE}
        return {"measure": measure, **said} if said else None
    shown = ", ".join(str(c) for c in classes[:3]) if isinstance(classes, list) else ""
    return {
        "set": f"{compact(adapted.get('dataset'))}, split {compact(adapted.get('split'))}",
        "prompts": " | ".join(f"“{t}”" for t in templates) if isinstance(templates, list) else compact(templates),
        "class names": f"{len(classes)} ({shown}, ...)" if isinstance(classes, list) else compact(classes),
        "preprocessing": preprocessing_text(adapted.get("preprocessing") or record.get("preprocessing")),
    }


_RESAMPLE = {0: "nearest", 1: "Lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "Hamming"}


def preprocessing_text(settings: object) -> str:
    """The image processor's settings in words."""
    if not isinstance(settings, dict):
        return "not recorded"
    parts: list[str] = []
    for name, value in settings.items():
        if name == "do_resize" or name == "do_center_crop":
            if not value:
                parts.append("no " + name.removeprefix("do_").replace("_", " "))
        elif name == "size" and isinstance(value, dict):
            parts.append("resize to " + " x ".join(f"{k.replace('_', ' ')} {v}" for k, v in value.items()))
        elif name == "crop_size" and isinstance(value, dict):
            parts.append("centre crop " + " x ".join(str(v) for v in value.values()))
        elif name == "resample":
            parts.append(f"{_RESAMPLE.get(value, value)} resampling")
        elif name in ("image_mean", "image_std") and isinstance(value, list):
            parts.append(f"{name.removeprefix('image_')} " + "/".join(f"{v:.4g}" for v in value))
        else:
            parts.append(f"{name} {compact(value)}")
    return ", ".join(parts)
