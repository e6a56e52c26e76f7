"""The words of the first screen: every template of the verdict, the caveats and the five findings, and nothing else.

A finding has at most two short sentences and four numbers. Numbers come in already chosen; see ``digest.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attndrift.analysis.contrasts import EQUIVALENT, NONE, UNCORRECTED
from attndrift.analysis.numbers import format_rate
from attndrift.methods.registry import DEFAULT_METHOD
from attndrift.results.measures import accuracy_words

Row = Mapping[str, Any]


def name(variant: str) -> str:
    """`full` alone says too little at the start of a text."""
    return "full fine-tuning" if variant == DEFAULT_METHOD else variant


def setting(row: Row) -> str:
    """`full fine-tuning at 1e-4`."""
    rate = f" at {format_rate(row['learning_rate'])}" if row["learning_rate"] else ""
    tied = f" (tied with {format_rate(row['tie']['learning_rate'])})" if row["tie"] else ""
    return name(row["variant"]) + rate + tied


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def interval(row: Row, *, flip: bool = False) -> str:
    """`` (66.0 to 80.1)``; nothing where there is none."""
    if row.get("low") is None or row.get("high") is None:
        return ""
    low, high = (-row["high"], -row["low"]) if flip else (row["low"], row["high"])
    return f" ({low:.1f} to {high:.1f})"


# --- verdict --------------------------------------------------------------------------------------------------------


def verdict(best: Row, other: Row | None, transfer: str | None, dataset: str) -> str:
    """``best``: the row of best validation; ``other``: the usual method, or the best other one where it is the best.

    ``dataset``: with the model where there are several.
    """
    accuracy = "" if best["test_accuracy"] is None else f" ({best['test_accuracy']:.1f}% test accuracy)"
    text = f"On {dataset}, {setting(best)} {'validates best' if best['by'] == 'validation' else 'has the best test accuracy'}{accuracy}"
    if transfer is None or best["retention_pct"] is None:
        return f"{text}; no retention was measured."
    text += f" and retains {best['retention_pct']:.0f}% of the {accuracy_words(transfer)}"
    if other is None or other["retention_pct"] is None:
        return f"{text}."
    return f"{text}; {setting(other)} retains {other['retention_pct']:.0f}%."


NOTHING = "No adapted run has finished: only the pretrained model can be described."


# --- caveats --------------------------------------------------------------------------------------------------------


def one_seed(spreads: str) -> str:
    return f"One seed: in published runs another one moved retention by {spreads}."


def seeds(count: int, level: float, minimum: int) -> str:
    if count < minimum:
        return f"{count} seeds: too few for intervals and tests over seeds, which need {minimum}."
    return f"{count} seeds: intervals are {level:.0%}, over seeds."


OVER_IMAGES = "Intervals are over test images and say nothing about another seed."
NO_VALIDATION = "No validation accuracy: test accuracy chose the settings, so it is optimistic."
TEST_SELECTION = "The test split also selected the epoch, so the accuracies are optimistic."


def excluded(count: int, of: int) -> str:
    return f"{count} of {of} runs are not analysed; the appendix says why."


def elsewhere(others: Sequence[str]) -> str:
    return f"Also run, and under all runs: {', '.join(others)}."


def other_models(model: str, others: Sequence[str]) -> str:
    return f"This is about {model} alone. Also run, and under all runs: {', '.join(others)}."


def few_images(count: int) -> str:
    return f"One of the {count} test images is {100 / count:.2g} points of accuracy."


# --- findings -------------------------------------------------------------------------------------------------------


def cost(row: Row, transfer: str) -> str:
    accuracy = "" if row["test_accuracy"] is None else f" Its test accuracy is {row['test_accuracy']:.1f}%."
    if row["tie"]:
        tied = row["tie"]
        accuracy = (
            f" At {format_rate(tied['learning_rate'])} it validates as well and retains {tied['retention_pct']:.1f}%."
        )
    return (
        f"{capital(name(row['variant']))} at its best {row['by']} rate retains {row['retention_pct']:.1f}%"
        f"{interval(row)} of the {accuracy_words(transfer)}.{accuracy}"
    )


def methods(first: Row, second: Row, compared: Row | None) -> str:
    """Each at its best validation; ``compared``: the tested row of second less first."""
    text = (
        f"At its best {second['by']} rate {second['variant']} retains {second['retention_pct']:.1f}%, "
        f"{name(first['variant'])} {first['retention_pct']:.1f}%."
    )
    if compared is None or compared["low"] is None:
        return text
    return f"Each at its best {second['by']} rate, {difference(second['variant'], first['variant'], compared)}."


def shared_rate(text: str) -> str:
    return f" At a rate that suits both, {text}."


NO_SHARED_RATE = " No learning rate that was run suits both."


def difference(first: str, second: str, row: Row) -> str:
    """What a tested difference of retention (first less second, in points) allows to say."""
    first, second, value = name(first), name(second), row["estimate"]
    if row["verdict"] == EQUIVALENT:
        return f"{first} retains as much as {second}: {value:+.1f} points{interval(row)}"
    if row["verdict"] == NONE:
        return f"{first} and {second} do not differ beyond chance: {value:+.1f} points{interval(row)}"
    if not round(value, 1):
        return f"{first} retains the same as {second}, to 0.1 points{interval(row)}"
    text = f"{first} retains {abs(value):.1f} points {'less' if value < 0 else 'more'} than {second}{interval(row)}"
    return text + (", not after correction" if row["verdict"].endswith(UNCORRECTED) else "")


def damage(below_pct: float) -> str:
    """The retention below which a run is called damaged."""
    return "half of the transfer" if below_pct == 50 else f"{below_pct:g}% retention"


def timing(limit: str, lost: int, of: int, before: int, same: int) -> str:
    runs = f"{of} run{'' if of == 1 else 's'}"
    if not lost:
        return f"None of {runs} fell below {limit} at any evaluation, so nothing shows whether attention falls first."
    rest = ", later or never in the rest" if lost > before + same else ""
    return (
        f"Of {runs} {lost} fell below {limit} at some evaluation. "
        f"Attention entropy had begun to fall before that in {before}, at the same evaluation in {same}{rest}."
    )


NO_TIMING = "No run measured retention and entropy while it trained, so which fell first is not known."


def bought(added: Row, base: str, compared: Row, accuracy: float | None) -> str:
    price = "" if accuracy is None else f" Its test accuracy differs by {round(accuracy, 1) + 0.0:+.1f} points."
    rate = f"At {format_rate(added['learning_rate'])}" if added["learning_rate"] else "At the same settings"
    return f"{rate}, {difference(added['variant'], base, compared)}.{price}"


PRESERVATION_ELSEWHERE = "Preservation was run only at rates that do not suit the same setting without it."
NO_PRESERVATION = "No preservation loss or guard was run beside the same setting without it."


def signal(when: str, label: str, row: Row) -> str:
    limits = "" if row["low"] is None else f" ({row['low']:+.2f} to {row['high']:+.2f})"
    return f"{when}, {label} goes most closely with the final retention: Spearman rho {row['rho']:+.2f}{limits}."


def warned(limit: str, row: Row) -> str:
    """Of the same signal, by thresholds from the other configurations."""
    alarms = row["held_out_false_alarms"]
    false = "no false alarm" if not alarms else f"{alarms} false alarm{'' if alarms == 1 else 's'}"
    return (
        f" A threshold set on the other settings caught {row['held_out_caught']} of the {row['n_damaged']} that ended "
        f"below {limit}, with {false}."
    )


NO_SIGNAL = "No signal can be ranked: too few configurations, or all retain the same."
