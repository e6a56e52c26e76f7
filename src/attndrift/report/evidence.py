"""Transfer accuracies with what gives them meaning: prompts, classes, split, preprocessing, embedding drift."""

from __future__ import annotations

import pandas as pd

from attndrift.analysis.numbers import number
from attndrift.analysis.result import Analysis, Table
from attndrift.report.records import Record, Records, compact
from attndrift.results.columns import Column
from attndrift.results.tables import Tables


def transfer_table(analysis: Analysis, tables: Tables, records: Records) -> Table:
    """A row a run and transfer set; what no record holds is said to be missing, never guessed."""
    variants = {str(row["run_id"]): row.get("variant") for row in analysis.tables["runs"].rows}
    rows: list[dict[str, object]] = []
    evaluations: dict[str, dict[str, str]] = {}
    unknown = 0
    for name in analysis.data.transfer_sets:
        prefix = f"transfer_{name}_zero_shot"
        if f"{prefix}_accuracy" not in tables.runs.columns:
            continue
        frame = tables.runs[tables.runs[f"{prefix}_accuracy"].notna() | tables.runs[f"{prefix}_retention_pct"].notna()]
        for run in frame.to_dict("records"):
            run_id = str(run["run_id"])
            record = records.found.get(run_id)
            described = evidence(record, name) if record else None
            unknown += described is None
            key = ""
            if described:
                # Runs that were evaluated alike share a letter, and the evaluation is printed once.
                key = next((k for k, known in evaluations.items() if known == described), f"P{len(evaluations) + 1}")
                evaluations[key] = described
            moved = record.get("transfer", name, "adapted", "embeddings_moved_mean") if record else None
            why = record.get("nulls", f"{prefix}_retention_pct") if record else None
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
                    "embedding_drift": number(run["embedding_drift"]),
                    "moved": number(moved),
                    "n": None if pd.isna(count) else int(count),
                    "evaluation": key or "not recorded",
                    "note": why,
                }
            )
    notes = [
        "Embedding drift, 1 - mean cosine on the probe images, says how far the embeddings moved; where it is 0 "
        "the accuracy is that of the pretrained model.",
        "Embeddings moved: mean Euclidean distance between the embeddings of the transfer images before and after, "
        "over the mean norm before.",
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
        Column(name="embedding_drift", label="Embedding drift", digits=4),
        Column(name="moved", label="Embeddings moved", digits=4),
        Column(name="n", label="Images"),
        Column(name="evaluation", label="Evaluation"),
        Column(name="note", label="Note"),
    ]
    return Table(
        name="transfer", title="Zero-shot transfer through the adapted encoder", columns=columns, rows=rows, notes=notes
    )


def evidence(record: Record, name: str) -> dict[str, str] | None:
    """How the accuracy on ``name`` was taken; None where the record does not say."""
    adapted = record.get("transfer", name, "adapted") or record.get("transfer", name, "pretrained")
    if not isinstance(adapted, dict):
        return None
    classes = adapted.get("class_names")
    templates = adapted.get("templates")
    if classes is None and templates is None:
        return None
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
