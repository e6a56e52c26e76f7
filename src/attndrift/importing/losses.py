"""The preservation losses of imported runs: their names and weights, and the table ``losses`` beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from attndrift.importing.cells import NULLS
from attndrift.importing.letters import spelling_of
from attndrift.importing.vocabulary import refuse_unknown
from attndrift.losses.names import BETWEEN, canonical_losses
from attndrift.losses.registry import LOSSES
from attndrift.results.tables import TableError

_TOLERANCE = 1e-6


def check_losses(runs: pd.DataFrame, where: str, notes: list[str]) -> None:
    """Bring the column ``loss`` of ``runs`` to its canonical form (``NAME:WEIGHT+NAME:WEIGHT``), in place.

    Raises :class:`TableError` for numbers, a known loss without a weight, a weight that is none, and a name that is near
    a known one. Other names are kept as losses of their own, with a note.
    """
    if "loss" not in runs.columns:
        return
    for value in runs["loss"].dropna().unique():
        new = None if str(value).strip().lower() in NULLS else _canonical(str(value), where, notes)
        if new != value:
            same = (runs["loss"] == value).fillna(False).astype(bool)
            runs.loc[same, "loss"] = new
            notes.append(f"{int(same.sum())} cells `{value}` of `loss` read as {f'`{new}`' if new else 'null'}")


def _canonical(text: str, where: str, notes: list[str]) -> str:
    if _number(text) is not None:
        raise TableError(
            f"{where}: column `loss` holds the number `{text}`; it names preservation losses with their weights "
            f"(NAME:WEIGHT). If it is the training loss: --rename loss=their_loss. If it is the weight of a loss: "
            f'--map "loss:{text}={next(iter(LOSSES)).name}:{text}". If it means that there was none: --null {text}'
        )
    parts = split_losses(text)
    known: dict[str, float | None] = {}
    for written, weight in parts.items():
        name = _name(written, text, where, notes)
        if name in known:
            raise TableError(f"{where}: column `loss` holds `{text}`, which names `{name}` twice")
        known[name] = _weight(name, weight, text, where) if weight is not None or name in LOSSES.names() else None
    if not set(known) <= set(LOSSES.names()) and len(known) == len(parts) and None in known.values():
        return text.strip()
    return canonical_losses(known) or text


def _name(written: str, text: str, where: str, notes: list[str]) -> str:
    names = LOSSES.names()
    spelling = spelling_of(written)
    for loss in LOSSES:
        if spelling in {spelling_of(word) for word in (loss.name, loss.label, loss.short_label)}:
            return loss.name
    refuse_unknown(written, "loss", names, where, notes, within=text)
    return written


def _weight(name: str, weight: str | None, text: str, where: str) -> float:
    number = None if weight is None else _number(weight)
    if number is None or not (math.isfinite(number) and number >= 0):
        what = "has no weight" if weight is None else f"has the weight `{weight}`, which is no number of at least 0"
        raise TableError(
            f"{where}: column `loss` holds `{text}`: `{name}` {what}; write NAME:WEIGHT, for example "
            f'--map "loss:{text}={name}:0.1"'
        )
    return number


def _number(text: str) -> float | None:
    try:
        return float(text.strip().removesuffix("%").replace(",", "."))
    except ValueError:
        return None


def split_losses(text: str) -> dict[str, str | None]:
    """The names in a cell and their weights as they are written; None where a name has none."""
    found: dict[str, str | None] = {}
    for part in BETWEEN.split(text):
        name, colon, weight = part.strip().partition(":")
        found[name.strip()] = weight.strip() if colon else None
    return found


def derive_losses(frames: dict[str, pd.DataFrame], where: str) -> list[str]:
    """Make the table ``losses`` from ``runs.loss``, or ``runs.loss`` from it, in place; returns what was done, in words.

    Raises :class:`TableError` where both are given and contradict each other.
    """
    runs, losses = frames["runs"], frames.get("losses")
    given = "loss" in runs.columns and runs["loss"].notna().any()
    if losses is None or losses.empty:
        if not given:
            return []
        rows = [row for run in runs.to_dict("records") for row in _rows(run)]
        frames["losses"] = pd.DataFrame(rows, columns=["run_id", "loss", "weight", "active_fraction"])
        return ["the table `losses` was absent and is made from the column `loss` of `runs`"]
    listed = {
        str(run): {row["loss"]: row.get("weight") for row in group.to_dict("records")}
        for run, group in losses.groupby("run_id", sort=False)
    }
    if not given:
        names = runs["run_id"].astype(str)
        runs["loss"] = [_text(listed[name]) if name in listed else None for name in names]
        return ["the column `loss` of `runs` was absent and is made from the table `losses`"]
    for run in runs.to_dict("records"):
        name = str(run["run_id"])
        here = {row["loss"]: row["weight"] for row in _rows(run)}
        if not _equal(here, listed.get(name, {})):
            raise TableError(
                f"{where}: run `{name}` has the loss `{run['loss']}`, and the table `losses` has "
                f"`{_text(listed.get(name, {})) or 'none'}` for it; correct one of them, or leave the table `losses` out: it is "
                "made from the column"
            )
    return []


def _rows(run: Mapping[Any, Any]) -> list[dict[str, Any]]:
    text = run.get("loss")
    if text is None or pd.isna(text):
        return []
    parts = split_losses(str(text))
    active = run.get("loss_active_fraction") if len(parts) == 1 else None
    return [
        {"run_id": run["run_id"], "loss": name, "weight": None if weight is None else _number(weight), "active_fraction": active}
        for name, weight in parts.items()
    ]  # fmt: skip


def _text(losses: Mapping[str, Any]) -> str:
    return "+".join(name if pd.isna(weight) else f"{name}:{weight:.12g}" for name, weight in sorted(losses.items()))


def _equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    def close(a: Any, b: Any) -> bool:
        return bool((pd.isna(a) and pd.isna(b)) or math.isclose(float(a), float(b), rel_tol=_TOLERANCE))

    return set(one) == set(other) and all(
        pd.isna(one[name]) == pd.isna(other[name]) and close(one[name], other[name]) for name in one
    )
