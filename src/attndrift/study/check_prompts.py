"""The part of a study's check that concerns prompts: whether every class has one of its own, that the model takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from attndrift.data.errors import some
from attndrift.data.prompts import clean_class_name, fill
from attndrift.methods.registry import HEADS
from attndrift.retention.prompts import PROMPT_TOKENS, prompt_faults
from attndrift.study.check_findings import Check, State, counted
from attndrift.study.check_splits import SetContents
from attndrift.study.dataset_splits import templates_for
from attndrift.study.settings import Study
from attndrift.study.text_needs import lacks_text_tower

_OTHER_NAMES = "give other `class_names` in the `source` of the dataset"


def check_prompts(
    found: Check,
    study: Study,
    sets: Mapping[str, SetContents],
    configs: Mapping[str, Mapping[str, Any]],
    *,
    full: bool,
) -> None:
    """Class names that are empty or equal, and prompts that are too long, for each model's own tokenizer.

    Without ``full`` only what a run fails on, and the tokenizer is asked only for prompts that may be too long or equal.

    Args:
        sets: by name, where their classes are known.
        configs: of the models, by model, where they are known.
    """
    # What is wrong with a model is said once, with the model.
    bad = {finding.what for finding in found.problems} | set(found.out_of_reach)
    wanted: dict[tuple[str, str, tuple[str, ...]], bool] = {}
    for run in study.runs:
        settings = run.settings
        by_text = HEADS[settings.head].needs_text
        others = [*settings.transfer, *filter(None, [settings.own.get("reference")])]
        for name in (settings.dataset, *others):
            if name not in sets:
                continue
            key = (settings.model, name, templates_for(name, sets[name].templates, sets[name].prompts, settings))
            wanted[key] = wanted.get(key, False) or name in others or by_text
    tokenizer_of = cache(_tokenizer)
    for (model, name, prompts), needed in wanted.items():
        # Of a model without text tower, what needs texts is said with the method.
        if f"model {model}" not in bad and (full or needed) and not lacks_text_tower(model, configs.get(model)):
            most, classes = _most_tokens(configs.get(model, {})), sets[name].class_names
            if full or _may_fail(classes, prompts, most):
                _prompts(found, model, tokenizer_of, name, classes, prompts, most, "problem" if needed else "warning")


def _most_tokens(config: Mapping[str, Any]) -> int:
    """Tokens that the model's text encoder takes; what is wrong with a config is not said here."""
    most = config.get("text_config", {}).get("max_position_embeddings")
    return most if isinstance(most, int) and most > 0 else PROMPT_TOKENS


def _may_fail(classes: Sequence[str], templates: Sequence[str], most: int) -> bool:
    """Whether prompts can be too long or equal: names that differ in letters and digits of ASCII have other tokens."""
    letters = [re.sub(r"[^a-z0-9]", "", clean_class_name(one).lower()) for one in classes]
    # A special token has angle brackets: what follows an end token is not read.
    if "" in letters or len(set(letters)) < len(letters) or not "".join(classes).isascii() or "<" in "".join(classes):
        return True
    # A token is at least one byte; two are start and end.
    return any(len(fill(template, one).encode()) > most - 2 for template in templates for one in classes)


def _tokenizer(model: str) -> Any:
    # Here, as most studies need no tokenizer to be checked.
    from attndrift.models.load import load_processor

    return load_processor(model)[0]


def _prompts(
    found: Check,
    model: str,
    tokenizer_of: Callable[[str], Any],
    name: str,
    classes: Sequence[str],
    templates: Sequence[str],
    most: int,
    state: State,
) -> None:
    what = f"prompts {name}"
    try:
        tokenizer = tokenizer_of(model)
        if tokenizer is None:
            return
        faults = prompt_faults(tokenizer, classes, templates, most=most)
    except Exception as error:
        # Each tokenizer backend has errors of its own.
        found.add(what, "problem", f"the tokenizer of {model} cannot be used: {str(error).splitlines()[0]}")
        return
    twice = dict.fromkeys(one for one, other in faults.equal if one == other)
    equal = [f"{one!r} and {other!r}" for one, other in faults.equal if one != other]
    if faults.empty:
        found.add(what, state, f"classes without a name: number {some(map(str, faults.empty))}", _OTHER_NAMES)
    if twice:
        found.add(what, state, f"classes of one name: {some(twice)}", _OTHER_NAMES)
    if faults.long:
        prompts = some((prompt for prompt, _ in faults.long), 3)
        long = f"{counted(len(faults.long), 'prompt')} longer than {most} tokens: {prompts}"
        found.add(what, state, long, "shorten the names or the templates")
    if equal:
        found.add(
            what, state, f"classes of equal tokens, which {model} cannot tell apart: {some(equal, 3)}", _OTHER_NAMES
        )
    if not (faults.empty or faults.equal or faults.long):
        longest = f"the longest of their prompts has {faults.longest} tokens"
        found.add(what, "ok", f"{counted(len(classes), 'class', 'classes')}; {longest}")
