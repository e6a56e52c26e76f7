"""Names of runs that are nearly the same, within the table ``runs`` and across tables."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

import pandas as pd

from attndrift.importing.letters import same_letters
from attndrift.results.tables import TableError


def name_runs(frame: pd.DataFrame, notes: list[str]) -> None:
    """Bring names of runs to one Unicode form (NFC), in place."""
    for column in ("run_id", "parent_run"):
        if column not in frame.columns:
            continue
        plain = frame[column].map(lambda name: unicodedata.normalize("NFC", name) if isinstance(name, str) else name)
        changed = frame[column].notna() & (plain != frame[column]).fillna(False).astype(bool)
        if changed.any():
            notes.append(f"{int(changed.sum())} cells of `{column}` brought to one Unicode form (NFC)")
            frame[column] = plain


def check_run_names(frames: Mapping[str, pd.DataFrame], sources: Mapping[str, str]) -> None:
    """Raise :class:`TableError` for names of runs that differ in nothing but case, width or spaces, within and across tables."""
    if "run_id" not in frames["runs"].columns:
        return
    seen: dict[str, str] = {}
    for name in frames["runs"]["run_id"].dropna().astype(str):
        other = seen.setdefault(_run_spelling(name), name)
        if other != name:
            raise TableError(
                f"{sources['runs']}: the runs `{other}` and `{name}` differ in nothing but case, width or spaces. If they are "
                f'one, keep one row; if they are two, name one apart: --map "run_id:{name}={name} (2)"'
            )
    known = set(seen.values())
    for table, frame in frames.items():
        for column in ("run_id", "parent_run"):
            for name in frame[column].dropna().astype(str).unique() if column in frame.columns else ():
                near = seen.get(_run_spelling(name))
                if name not in known and near:
                    raise TableError(
                        f'{sources[table]}: `{column}` holds `{name}`, and the run is called `{near}`: --map "{table}.{column}:{name}={near}"'
                    )


def _run_spelling(name: str) -> str:
    return re.sub(r"\s+", " ", same_letters(name)).strip()
