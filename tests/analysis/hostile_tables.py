"""Random tables of every poor quality that foreign records have, a table set a seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

NAMES = [
    "a|b",
    "x_y%z",
    "<script>alert(1)</script>",
    "`code`",
    "$\\alpha$ & #1",
    "图 é",
    "",
    " ",
    "a\nb",
    "../up",
    "1. x",
]
METHODS = ["full", "full", "lora", "lora", "linear_probe", "last_block", "none", "prompt_tuning", "L|oRA_%"]
_MEASURES = ("best_val_accuracy", "test_accuracy", "cka_mean", "cka_last", "embedding_drift", "weight_drift")
_METRICS = ("entropy", "erf95", "gini", "head_diversity")


class Hostile:
    """``Hostile(seed).tables()``: arguments of :class:`attndrift.results.tables.Tables`."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.n = int(self.random.choice([0, 1, 2, 3, 5, 9, 20, 40]))

    def chance(self, p: float) -> bool:
        return bool(self.random.random() < p)

    def pick(self, values: list[Any], n: int | None = None) -> list[Any]:
        return [values[i] for i in self.random.integers(0, len(values), self.n if n is None else n)]

    def spoiled(self, values: Any) -> Any:
        """Some null, all null, all equal, tied, or as they are."""
        values, kind = np.array(values, dtype=float), self.random.random()
        if kind < 0.15:
            values[self.random.random(len(values)) < 0.4] = np.nan
        elif kind < 0.22:
            values[:] = np.nan
        elif kind < 0.32:
            values[:] = values[0] if len(values) else 0
        elif kind < 0.4:
            values = np.round(values, 1)
        return values

    def runs(self) -> pd.DataFrame:
        n, g = self.n, self.random
        methods = ["none"] * n if self.chance(0.1) else self.pick(METHODS)
        frame = pd.DataFrame({"run_id": [f"{name}{i}" for i, name in enumerate(self.pick(["r", *NAMES]))]})
        frame["method"] = methods
        if self.chance(0.9):
            frame["dataset"] = self.pick(self.pick([*NAMES, "eurosat", "pets"], 3))
        if self.chance(0.85):
            seeds = g.integers(0, int(g.choice([1, 2, 5])), n)
            frame["seed"] = pd.array([None if self.chance(0.1) else int(s) for s in seeds], dtype="Int64")
        if self.chance(0.85):
            frame["learning_rate"] = self.pick([0.0, 1e-6, 1e-5, 1e-4, 1e-3][: int(g.integers(1, 6))])
        for name in _MEASURES:
            if self.chance(0.85):
                frame[name] = self.spoiled(g.random(n))
        for metric in _METRICS:
            before, after = g.random(n), g.random(n)
            if self.chance(0.1):
                before[:] = 0.0
            with np.errstate(all="ignore"):
                changes = 100 * (after - before) / before
            for end, values in (("baseline", before), ("final", after), ("change_pct", changes)):
                if self.chance(0.8):
                    frame[f"{metric}_{end}"] = values if end == "change_pct" else self.spoiled(values)
        if self.chance(0.8):
            frame["entropy_last_layer_change_pct"] = self.spoiled(g.normal(size=n))
        for name in self.pick(["cifar100", "a|b%", "x_accuracy", "$x_1$", "<b>"], int(g.integers(0, 4))):
            accuracy = g.random(n) / 2
            kept = 200 * accuracy * (0.01 if self.chance(0.2) else 1)
            for end, values in (("accuracy", accuracy), ("pretrained", np.full(n, 0.5)), ("retention_pct", kept)):
                if self.chance(0.9):
                    frame[f"transfer_{name}_zero_shot_{end}"] = self.spoiled(values)
            frame[f"transfer_{name}_zero_shot_n"] = 100
        if self.chance(0.4):
            frame["status"] = self.pick(["finished", "diverged", "failed", None, "Done", "weird"])
        for name, values in (
            ("lora_rank", [4, 8, None]),
            ("freeze_layers", [0, 3, None]),
            ("loss", [None, "attention_preservation:0.1", "other|x", "a:1+b:2"]),
            ("loss_weight", [None, 0.1, 1.0]),
            ("weight_decay", [0.0, 0.01]),
            ("lora_targets", ["q,v", "q,k,v,out", None, ""]),
            ("selection", ["test", "validation", None, "odd|"]),
            ("model", ["m1", "m_2|", None]),
            ("data_seed", [0, 1, None]),
            ("selected_epoch", [1.0, 3.0, None]),
            ("experiment", ["E1", None, "A|1"]),
        ):
            if self.chance(0.3):
                frame[name] = self.pick(values)
        return frame

    def tables(self) -> dict[str, pd.DataFrame]:
        g, runs = self.random, self.runs()
        found = {"runs": runs}
        if not self.n:
            return found
        steps = int(g.integers(1, 5))
        if self.chance(0.75):
            rows = self.n * steps
            history = pd.DataFrame(
                {"run_id": np.repeat(runs["run_id"], steps), "step": [*range(0, 10 * steps, 10)] * self.n}
            )
            for name in ("val_accuracy", "cka_mean", "embedding_drift", "train_loss", "entropy", "erf95"):
                if self.chance(0.8):
                    history[name] = self.spoiled(g.random(rows))
            for name in ("entropy_change_pct", "gini_change_pct", "entropy_last_layer_change_pct"):
                if self.chance(0.8):
                    history[name] = self.spoiled(g.normal(size=rows))
            if "train_loss" in history:
                history.loc[history.index[:1], "train_loss"] = np.inf
            if self.chance(0.6):
                history["epoch"] = history["step"] / 10
            found["history"] = history.reset_index(drop=True)
        if self.chance(0.7):
            depth, start = int(g.integers(1, 8)), 0 if self.chance(0.9) else 5
            rows_ = [
                (run, step, layer, head, metric, None if self.chance(0.05) else float(g.random()))
                for run in runs["run_id"]
                for step in (start, 10 * steps)
                for metric in (*_METRICS, "cka", "odd")
                for layer in range(1, depth + 1)
                for head in ((None, 1, 2) if metric == "entropy" else (None,))
            ]
            found["layers"] = pd.DataFrame(rows_, columns=["run_id", "step", "layer", "head", "metric", "value"])
        if self.chance(0.5):
            sweep = [
                {
                    "run_id": run,
                    "alpha": alpha,
                    "test_accuracy": g.random(),
                    "transfer_cifar100_zero_shot_accuracy": g.random() / 2,
                }
                | {
                    "transfer_cifar100_zero_shot_agreement": None if self.chance(0.2) else g.random(),
                    "cka_mean": g.random(),
                }
                for run in runs["run_id"].iloc[:3]
                for alpha in sorted({0.0, *g.random(3).round(2)} if self.chance(0.8) else {0.5})
            ]
            found["interpolation"] = pd.DataFrame(sweep)
        return found
