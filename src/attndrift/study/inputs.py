"""What decides a run's result and is no setting, as each run writes it down: ``inputs.json``.

A run writes it before it computes anything. A run that goes on, and every other run of the study that uses the same
model or dataset, must find it unchanged. What is written is made by :mod:`attndrift.study.used_inputs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attndrift.data.errors import some
from attndrift.files import read_json, write_json
from attndrift.formats import numbered
from attndrift.sanitize import redact

INPUTS = "inputs.json"


class InputsChanged(ValueError):
    """What decides a run's result, and is no setting, is not what it was."""


def has_states(folder: Path) -> bool:
    """Whether the run in ``folder`` has a resumable state, so that it goes on from what it began with."""
    return any((folder / "resume").glob("step-*"))


def read_inputs(folder: Path) -> dict[str, Any]:
    """The inputs that the run in ``folder`` wrote down; empty where it wrote none that can be read."""
    try:
        content = read_json(folder / INPUTS)
    except (OSError, ValueError):
        return {}
    found = content.get("inputs") if isinstance(content, dict) else None
    return {n: v for n, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}


def write_inputs(folder: Path, inputs: Mapping[str, Any]) -> None:
    """Write the inputs of the run in ``folder`` down, without secrets."""
    write_json(folder / INPUTS, redact(numbered("run", {"inputs": dict(inputs)})))


def refuse_changed(
    now: Mapping[str, Mapping[str, Any]], before: Mapping[str, Mapping[str, Any]], places: Mapping[str, str]
) -> None:
    """Raise :class:`InputsChanged` where a run has other inputs ``now`` than runs of the study had ``before``, by run.

    ``places``: where an input is read from now, in words, for the message.
    """
    now = dict(redact(dict(now)))  # as they were written down
    for run_id, inputs in before.items():
        for name in sorted(set(now) & set(inputs)):
            if now[name].get("settings") != inputs[name].get("settings"):
                continue
            changes = [
                _change(key, inputs[name].get(key), now[name].get(key))
                for key in dict.fromkeys([*now[name], *inputs[name]])
                if now[name].get(key) != inputs[name].get(key)
            ]
            if changes:
                place = f" ({places[name]})" if name in places else ""
                raise InputsChanged(
                    f"{name}{place} is not what run {run_id} had: {'; '.join(changes)}. Runs of one study must have equal "
                    "inputs: put back what was there, or run the study anew in another folder (--output)"
                )


def _change(name: str, old: Any, new: Any) -> str:
    """One difference, in words."""
    if name == "class names" and isinstance(old, list) and isinstance(new, list):
        return _class_change(old, new)
    if isinstance(old, dict) and isinstance(new, dict):
        return f"{name} {_split_change(old, new)}"
    if isinstance(old, dict) or isinstance(new, dict):
        return f"{name} is {'new' if old is None else 'gone'}"
    if name in ("weights", "tokens"):
        return {"weights": "other weights", "tokens": "its tokenizer makes other tokens of them"}[name]
    return f"`{name}` was {old!r}, now {new!r}"


def _class_change(old: Sequence[Any], new: Sequence[Any]) -> str:
    gone, come = [n for n in old if n not in new], [n for n in new if n not in old]
    parts = [f"{what} {some(map(repr, names), 3)}" for what, names in (("without", gone), ("with", come)) if names]
    return f"other class names, {' and '.join(parts)}" if parts else "its classes in another order"


def _split_change(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    before, now = old.get("counts") or {}, new.get("counts") or {}
    changed = [n for n in dict.fromkeys([*before, *now]) if before.get(n, 0) != now.get(n, 0)]
    if changed:
        counts = (f"{n!r} had {before.get(n, 0)}, now {now.get(n, 0)}" for n in changed)
        return f"has other numbers of images: {some(counts, 3)}"
    if old.get("content") == new.get("content"):
        return "has the same images with other names or labels"
    if old.get("names") == new.get("names"):
        return "has images of the same names with other content"
    return "has as many images, some of them with other names"
