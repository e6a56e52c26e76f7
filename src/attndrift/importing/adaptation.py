"""How a foreign run was adapted: other words for methods and projections, and settings that nothing in the run uses."""

from __future__ import annotations

import re

import pandas as pd

from attndrift.importing.letters import same_letters, spelling_of
from attndrift.losses.registry import LOSSES
from attndrift.methods.registry import HEADS, METHODS
from attndrift.own_settings import fields_of, owners_of

_PROJECTIONS = {
    **dict.fromkeys(("q", "query", "queries", "toq", "wq", "qproj", "queryproj", "inprojq"), "q"),
    **dict.fromkeys(("k", "key", "keys", "tok", "wk", "kproj", "keyproj", "inprojk"), "k"),
    **dict.fromkeys(("v", "value", "values", "tov", "wv", "vproj", "valueproj", "inprojv"), "v"),
    **dict.fromkeys(("o", "out", "output", "toout", "wo", "oproj", "outproj", "outputproj"), "out"),
}
_ORDER = ("q", "k", "v", "out")


def canonical_targets(text: str) -> str | None:
    """Any spelling of the adapted projections as one, ``q,k,v,out``; None for what names something else.

    >>> [canonical_targets(text) for text in ("v_proj+q_proj", "['query', 'value']", "qkvo", "fc1")]
    ['q,v', 'q,v', 'q,k,v,out', None]
    """
    found: set[str] = set()
    for part in re.findall(r"[^\s,;+|/&\[\](){}'\"]+", same_letters(text)):
        word = re.sub(r"[_.\-]", "", part.rpartition(".")[2])
        if word in ("and", "und"):
            continue
        run_together = re.fullmatch(r"[qkv]+(?:o|out)?(?:proj)?", word)
        if word in _PROJECTIONS:
            found.add(_PROJECTIONS[word])
        elif run_together:
            found |= {_PROJECTIONS[letter] for letter in word.removesuffix("proj").replace("out", "o")}
        else:
            return None
    return ",".join(name for name in _ORDER if name in found) or None


_MEANT = {
    "none": ("zeroshot", "pretrained", "frozen", "untouched", "unadapted", "untrained", "untuned", "offtheshelf", "original",
             "notraining", "nofinetuning", "base", "baseline", "raw", "vanilla", "clip", "ptm", "zs"),
    "full": ("finetune", "finetuned", "finetuning", "fft", "ft", "allparameters", "endtoend", "e2e", "all", "sft"),
    "linear_probe": ("lp", "probe", "probing", "headonly", "classifieronly", "linprobe", "logisticregression"),
    "last_block": ("lastlayer", "lastblocks", "topblock", "toplayer", "finalblock"),
}  # fmt: skip
"""Other words of the field for a method. Nobody can be sure of them, so that they are asked for."""
_LONG = 6


def method_meant(value: str) -> str | None:
    """The method that a word of the field stands for, as likely as not."""
    spelling = re.sub(r"[^a-z0-9]", "", spelling_of(value))
    exact = next((name for name, words in _MEANT.items() if spelling in words), None)
    return exact or next(
        (name for name, words in _MEANT.items() if any(word in spelling for word in words if len(word) >= _LONG)), None
    )


def unused_settings(runs: pd.DataFrame) -> list[str]:
    """In words: settings of runs whose method, head and losses have no such setting, and adapters without a rank."""
    said: list[str] = []
    methods = runs["method"].astype(str)
    losses, heads = runs["loss"].fillna("").astype(str), runs["head"].fillna("").astype(str)
    for name in fields_of([*METHODS, *HEADS, *LOSSES]):
        if runs[name].isna().all():
            continue
        of_methods, of_losses, of_heads = (owners_of(name, registry) for registry in (METHODS, LOSSES, HEADS))
        has = methods.isin(of_methods) | ~methods.isin(METHODS.names()) | heads.isin(of_heads)
        has |= losses.map(lambda text, of=of_losses: any(loss in text for loss in of)).astype(bool)
        whose = ", ".join(f"`{owner}`" for owner in (*of_methods, *of_heads, *of_losses))
        said += _in_vain(runs, name, ~has, f"do not use it: it is a setting of {whose}")
    ranked = methods.isin(owners_of("lora_rank", METHODS)) & runs["lora_rank"].isna() if "lora_rank" in runs else None
    if ranked is not None and ranked.any():
        said.append(
            f"{int(ranked.sum())} runs of adapters have no `lora_rank`: different ranks would count as one method"
        )
    for name, owner in _BELONGS.items():
        said += _in_vain(runs, name, runs[owner].isna(), f"have no `{owner}`")
    return said


_BELONGS = {
    "guard_at_least": "guard",
    "guard_at_most": "guard",
    "guard_outcome": "guard",
    "loss_active_fraction": "loss",
}


def _in_vain(runs: pd.DataFrame, name: str, without: pd.Series[bool], why: str) -> list[str]:
    wrong = runs[name].notna() & without
    if not wrong.any():
        return []
    row = runs.loc[wrong].iloc[0]
    return [
        f"{int(wrong.sum())} runs have a `{name}` and {why}; first `{row['run_id']}` of method `{row['method']}`, with "
        f"{row[name]}. Is the method right? No analysis reads the setting there"
    ]
