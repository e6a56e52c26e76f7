"""Section 6.1 of the original study (published values, one seed), and its printed changes, as data."""

from __future__ import annotations

from typing import Any

import pandas as pd

METRICS = ("entropy", "erf95", "gini", "head_diversity")

# name: settings, best accuracy, entropy before/after, ERF, Gini, head diversity, printed entropy change
_ROWS = """
E2||0.9930|3.683 3.678|0.863 0.848|0.309 0.298|0.075 0.075|-0.14
E3|dataset=pets epochs=30|0.9079|3.638 3.572|0.838 0.803|0.348 0.385|0.105 0.067|-1.82
E4|lora_rank=4|0.9867|3.683 3.719|0.863 0.872|0.309 0.279|0.075 0.078|0.98
E5|lora_rank=8|0.9896|3.683 3.705|0.863 0.866|0.309 0.289|0.075 0.081|0.58
E6|lora_rank=16|0.9893|3.683 3.700|0.863 0.863|0.309 0.293|0.075 0.079|0.44
E7|dataset=pets epochs=30 lora_rank=8|0.9207|3.638 3.611|0.838 0.816|0.348 0.359|0.105 0.089|-0.73
A1 1e-6|learning_rate=1e-6|0.9885|3.683 3.737|0.863 0.879|0.309 0.258|0.075 0.066|1.45
A1 5e-6|learning_rate=5e-6|0.9911|3.683 3.695|0.863 0.858|0.309 0.289|0.075 0.072|0.33
A1 5e-5|learning_rate=5e-5|0.9889|3.683 3.529|0.863 0.789|0.309 0.382|0.075 0.113|-4.19
A1 1e-4|learning_rate=1e-4|0.9785|3.683 3.300|0.863 0.707|0.309 0.486|0.075 0.183|-10.40
A2|lora_rank=8 lora_targets=q,k,v,out|0.9893|3.683 3.708|0.863 0.866|0.309 0.288|0.075 0.077|0.67
A3 3|freeze_layers=3|0.9911|3.683 3.682|0.863 0.851|0.309 0.295|0.075 0.073|-0.04
A3 6|freeze_layers=6|0.9885|3.683 3.682|0.863 0.851|0.309 0.299|0.075 0.072|-0.02
A3 9|freeze_layers=9|0.9867|3.683 3.685|0.863 0.860|0.309 0.306|0.075 0.075|0.06
R1 0.01|loss=attention_preservation:0.01|0.9926|3.683 3.715|0.863 0.875|0.309 0.282|0.075 0.071|0.86
R1 0.1|loss=attention_preservation:0.1|0.9919|3.683 3.704|0.863 0.871|0.309 0.293|0.075 0.074|0.56
R1 1.0|loss=attention_preservation:1|0.9896|3.683 3.686|0.863 0.864|0.309 0.307|0.075 0.075|0.09
R2 0.01|loss=entropy_floor:0.01|0.9911|3.683 3.705|0.863 0.862|0.309 0.290|0.075 0.073|0.58
R2 0.1|loss=entropy_floor:0.1|0.9907|3.683 3.712|0.863 0.865|0.309 0.284|0.075 0.072|0.79
R3 0.0|weight_decay=0.0|0.9919|3.683 3.677|0.863 0.847|0.309 0.300|0.075 0.076|-0.18
R3 0.1|weight_decay=0.1|0.9915|3.683 3.674|0.863 0.846|0.309 0.302|0.075 0.074|-0.25
"""

_NUMBERS = ("learning_rate", "loss_weight", "weight_decay", "epochs")
_COUNTS = ("lora_rank", "freeze_layers")


def _parse() -> tuple[dict[str, dict[str, Any]], dict[str, float], dict[str, float], dict[str, dict[str, Any]]]:
    values, accuracy, change, settings = {}, {}, {}, {}
    for line in _ROWS.strip().splitlines():
        name, given, best, *pairs, printed = line.split("|")
        values[name] = {m: tuple(float(v) for v in pair.split()) for m, pair in zip(METRICS, pairs, strict=True)}
        accuracy[name], change[name] = float(best), float(printed)
        parsed: dict[str, Any] = dict(part.split("=") for part in given.split())
        for key in _NUMBERS:
            if key in parsed:
                parsed[key] = float(parsed[key])
        for key in _COUNTS:
            if key in parsed:
                parsed[key] = int(parsed[key])
        settings[name] = parsed
    return values, accuracy, change, settings


EXPERIMENTS, ACCURACY, ENTROPY_CHANGE, SETTINGS = _parse()

# Sections 3.2, 3.4 and 3.6; the entropy changes are those of 6.1.
PRINTED_CHANGES: dict[str, dict[str, float]] = {
    "entropy": ENTROPY_CHANGE,
    "erf95": {
        "E2": -1.73,
        "E3": -4.22,
        "E4": 1.10,
        "E5": 0.37,
        "E6": 0.03,
        "E7": -2.63,
        "A1 1e-6": 1.93,
        "A1 5e-6": -0.49,
        "A1 5e-5": -8.49,
        "A1 1e-4": -18.02,
    },
    "gini": {
        "E2": -3.53,
        "E3": 10.53,
        "E4": -9.96,
        "E5": -6.48,
        "E6": -5.43,
        "E7": 3.24,
        "A1 1e-6": -16.63,
        "A1 5e-6": -6.66,
        "A1 5e-5": 23.42,
        "A1 1e-4": 56.90,
    },
    "head_diversity": {"E2": -0.73, "E3": -35.85, "E4": 3.81, "E5": 7.11, "E6": 5.11, "E7": -14.97, "A2": 2.89},
}


def original_study_tables() -> pd.DataFrame:
    """The table ``runs`` of the 21 experiments; the printed entropy changes, the others from their ends."""
    rows = []
    for name, settings in SETTINGS.items():
        lora = "lora_rank" in settings
        row: dict[str, Any] = {
            "run_id": name,
            "study": "original study",
            "experiment": name.split()[0],
            "selection": "test",
            "model": "openai/clip-vit-base-patch32",
            "dataset": "eurosat",
            "method": "lora" if lora else "full",
            "learning_rate": 1e-4 if lora else 1e-5,
            "seed": 42,
            "epochs": 20.0,
            "batch_size": 64,
            "weight_decay": 0.01,
            "best_val_accuracy": ACCURACY[name],
            "entropy_change_pct": ENTROPY_CHANGE[name],
            **({"lora_alpha": 2.0 * settings["lora_rank"], "lora_targets": "q,v"} if lora else {}),
            **settings,
        }
        for metric in METRICS:
            row[f"{metric}_baseline"], row[f"{metric}_final"] = EXPERIMENTS[name][metric]
        rows.append(row)
    return pd.DataFrame(rows)
