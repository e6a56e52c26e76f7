"""What a practitioner must know first, one sentence a topic, with the uncertainty that the study allows.

The order of :data:`~attndrift.analysis.result.TOPICS`: what the used rates cost in zero-shot transfer; full
fine-tuning against LoRA where their rates meet; whether the entropy fell, and at which rate; whether a
preservation loss retained the transfer; which signal warned. A number of one run carries an interval over images
(:mod:`attndrift.analysis.image_intervals`), which is no interval over seeds, and the sentence says so; a mean of
three or more seeds carries a t interval over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from attndrift.analysis.bootstrap import t_interval
from attndrift.analysis.image_intervals import ImageIntervals
from attndrift.analysis.measures import LAST_LAYER, signals
from attndrift.analysis.result import Interval, Signal
from attndrift.analysis.wording import Evidence, capital, interval_text, judge, number_text, test_text
from attndrift.losses.registry import LOSSES
from attndrift.methods.registry import METHODS
from attndrift.own_settings import fields_of

_MOST_RATES = 5
ENTROPY, LAST = "entropy_change_pct", LAST_LAYER


@dataclass
class _Ground:
    """The runs that the sentences are about: one model and selection, one dataset under its usual conditions."""

    runs: pd.DataFrame
    dataset: str
    transfer: str | None
    images: ImageIntervals
    level: float

    @property
    def retention(self) -> str:
        return f"transfer_{self.transfer}_zero_shot_retention_pct"

    @property
    def plain(self) -> pd.DataFrame:
        return self.runs[
            (self.runs["key_loss_name"] == "")
            & (self.runs["key_freeze_layers"] == "")
            & (self.runs["key_outcome"] == "")
        ]


def headline_claims(e: Evidence, runs: pd.DataFrame, images: ImageIntervals) -> None:
    """Add the sentences that ``runs`` (the analysed adapted runs of one study) have the numbers for."""
    for place, ground in enumerate(_grounds(e, runs, images)):
        if ground.transfer is not None:
            _transfer_lost(e, ground)
            _full_against_lora(e, ground)
            _losses(e, ground)
        _entropy(e, ground)
        if place == 0 and ground.transfer is not None:
            _warning(e, ground.transfer)


def _grounds(e: Evidence, runs: pd.DataFrame, images: ImageIntervals) -> list[_Ground]:
    """The two datasets with most runs, of the model and selection with most."""
    for column in ("model_name", "selection_name"):
        if len(runs):
            runs = runs[runs[column] == runs[column].value_counts().sort_index(kind="stable").idxmax()]
    grounds: list[_Ground] = []
    counts = runs["dataset"].value_counts()
    for dataset in sorted(counts.index, key=lambda name: (-int(counts[name]), str(name)))[:2]:
        own = runs[runs["dataset"] == dataset]
        own = own[own["key_rest"] == own["key_rest"].value_counts().sort_index(kind="stable").idxmax()]
        # In the order of the study, which names its main set first.
        names = sorted(
            e.transfer_sets, key=lambda name: list(own.columns).index(f"transfer_{name}_zero_shot_retention_pct")
        )
        measured = {name: int(own[f"transfer_{name}_zero_shot_retention_pct"].notna().sum()) for name in names}
        best = max(measured, key=lambda name: measured[name], default=None)
        transfer = best if best is not None and measured[best] else None
        grounds.append(_Ground(own, str(dataset), transfer, images, e.settings.level))
    return grounds


def _retention(ground: _Ground, own: pd.DataFrame) -> tuple[float, Interval]:
    """Mean retention of a configuration's runs and its interval: over seeds, or of one run over images."""
    own = own[own[ground.retention].notna()]
    if len(own) == 1:
        interval = ground.images.retention(_row(own), str(ground.transfer))
    else:
        interval = t_interval(_by_seed(own, ground.retention), ground.level)
    return float(own[ground.retention].mean()), interval


def _by_seed(own: pd.DataFrame, column: str) -> list[float]:
    """Means of the runs of each seed: runs of one seed, or of none that is given, are no sample of seeds."""
    return [float(value) for value in own.groupby("replicate", sort=True)[column].mean().dropna()]


def _row(own: pd.DataFrame) -> Mapping[str, Any]:
    return {str(key): value for key, value in own.iloc[0].to_dict().items()}


def _difference(ground: _Ground, first: pd.DataFrame, second: pd.DataFrame, column: str, level: float) -> Any:
    """Difference of the means over the seeds that both have, in points, and its interval; None without such seeds."""
    scale = 100.0 if column.endswith("_accuracy") else 1.0
    one, two = (frame[frame[column].notna()].groupby("replicate")[column].mean() for frame in (first, second))
    shared = one.index.intersection(two.index)
    if not len(shared):
        return None
    values = (scale * (one[shared] - two[shared])).tolist()
    if len(shared) > 1:
        return float(np.mean(values)), t_interval(values, level)
    a, b = (_row(frame[frame["replicate"] == shared[0]]) for frame in (first, second))
    images = ImageIntervals(ground.images.outcomes, level)
    if column.endswith("_accuracy"):
        return values[0], images.accuracy_difference(a, b, column)
    return values[0], images.retention_difference(a, b, str(ground.transfer))


def _limits(interval: Interval, *, signed: bool = False, digits: int = 1) -> str:
    if interval.low is None or interval.high is None:
        return f"no interval: {interval.reason}"
    nearest = min(abs(interval.low), abs(interval.high))
    # A limit that excludes 0 is not printed as one that touches it.
    while _excludes(interval) and digits < 4 and 0 < nearest < 0.5 * 10**-digits:
        digits += 1
    return f"{number_text(interval.low, digits, signed)} to {number_text(interval.high, digits, signed)}"


def _kind(intervals: Sequence[Interval], paired: str = "") -> str:
    """What the intervals of a sentence are over, and what they leave out."""
    known = [one for one in intervals if one.low is not None]
    if not known:
        return "No interval can be given."
    level = f"{100 * known[0].level:.3g}%"
    texts: list[str] = []
    images = [one for one in known if one.unit == "image"]
    if images:
        n = sorted({one.n for one in images})
        count = f"{n[0]:,}" if len(n) == 1 else f"{n[0]:,} to {n[-1]:,}"
        texts.append(
            f"over the {count} test images of one run each{paired}; one seed: other seeds would add to them, by how "
            "much is not known"
        )
    seeds = [one for one in known if one.unit == "seed"]
    if seeds:
        n = sorted({one.n for one in seeds})
        texts.append(f"Student's t over {n[0] if len(n) == 1 else f'{n[0]} to {n[-1]}'} seeds")
    return f"In brackets: {level} intervals, {'; '.join(texts)}."


def _by_rate(runs: pd.DataFrame) -> list[tuple[str, float, pd.DataFrame]]:
    """(rate in words, rate, runs), from the lowest."""
    own = runs[runs["learning_rate"].notna()]
    return [(str(part["rate_text"].iloc[0]), float(str(rate)), part) for rate, part in own.groupby("learning_rate")]


def _shown(items: list[Any]) -> list[Any]:
    """At most five, the first and the last among them."""
    if len(items) <= _MOST_RATES:
        return items
    places = np.unique(np.linspace(0, len(items) - 1, _MOST_RATES).round().astype(int))
    return [items[place] for place in places]


def _lora(runs: pd.DataFrame) -> str | None:
    """The LoRA variant with most runs; rank 8 where several tie."""
    own = runs[runs["method"] == "lora"]
    if own.empty:
        return None
    counts = own["variant"].value_counts()
    return min((str(v) for v in counts.index[counts == counts.max()]), key=lambda v: (v != "LoRA r=8", v))


def _transfer_lost(e: Evidence, ground: _Ground) -> None:
    plain = ground.plain
    plain = plain[plain[ground.retention].notna()]
    for variant in [v for v in ("full", _lora(plain)) if v is not None]:
        rates = _by_rate(plain[plain["variant"] == variant])
        if not rates:
            continue
        found = [(text, rate, *_retention(ground, own), own) for text, rate, own in rates]
        told = ", ".join(f"{mean:.1f}% ({_limits(one)}) at {text}" for text, _, mean, one, _ in _shown(found))
        means = [mean for _, _, mean, _, _ in found]
        trend = ", less at every higher rate" if len(means) > 2 and all(np.diff(means) < 0) else ""
        best = max(found, key=lambda item: float(np.nan_to_num(item[4]["best_val_accuracy"].mean(), nan=-1.0)))
        chosen = (
            f" The best validation accuracy among {len(found)} rates is at {best[0]}, where {best[2]:.1f}% is retained."
            if len(found) > 1 and best[4]["best_val_accuracy"].notna().any()
            else ""
        )
        worst = min(found, key=lambda item: item[2])
        e.add(
            f"headline transfer {ground.dataset} {variant}",
            "RQ3",
            f"{capital(variant)} on {ground.dataset} retains {told} of the pretrained zero-shot accuracy on "
            f"{ground.transfer}{trend}.{chosen} {_kind([item[3] for item in found])}",
            "descriptive",
            topic="transfer",
            weight=max(0.0, 100 - worst[2]),
            effect=worst[2],
            interval=worst[3].model_dump(),
            retention_pct={text: mean for text, _, mean, _, _ in found},
            intervals={text: one.model_dump() for text, _, _, one, _ in found},
            n_runs=sum(len(own) for *_, own in found),
            n_configurations=len(found),
        )


def _full_against_lora(e: Evidence, ground: _Ground) -> None:
    plain = ground.plain
    full, variant = plain[plain["variant"] == "full"], _lora(plain)
    if full.empty or variant is None:
        return
    lora = plain[plain["variant"] == variant]
    shared = sorted(set(full["rate_text"]) & set(lora["rate_text"]), key=lambda r: _rate_of(plain, r))
    if not shared:
        # A comparison at different rates says nothing about the methods, so none is made.
        return
    accuracy = "test_accuracy" if plain["test_accuracy"].notna().any() else "best_val_accuracy"
    told: list[str] = []
    found: dict[str, tuple[float, Interval]] = {}
    used: list[Interval] = []
    level = 1 - (1 - ground.level) / len(shared)
    for rate in shared:
        one, two = full[full["rate_text"] == rate], lora[lora["rate_text"] == rate]
        kept = _difference(ground, one, two, ground.retention, level)
        if kept is None:
            continue
        found[rate] = kept
        used.append(kept[1])
        scored = _difference(ground, one, two, accuracy, level)
        text = (
            f"at {rate} {_retention(ground, one)[0]:.1f}% against {_retention(ground, two)[0]:.1f}%, a difference of "
            f"{number_text(kept[0], 1)} points ({_limits(kept[1], signed=True)})"
        )
        if scored is not None:
            word = "test" if accuracy == "test_accuracy" else "validation"
            text += f", of {number_text(scored[0], 1)} points in {word} accuracy ({_limits(scored[1], signed=True)})"
        told.append(text)
    if not found:
        return
    largest = max(found.values(), key=lambda item: abs(item[0]))
    holds = sum(_excludes(one) for _, one in found.values())
    family = f" The level is that of all {len(shared)} rates together (Bonferroni)." if len(shared) > 1 else ""
    e.add(
        f"headline methods {ground.dataset} {variant}",
        "RQ2",
        f"At the rate{'s' if len(found) > 1 else ''} that both were run at on {ground.dataset}, full fine-tuning and "
        f"{variant} retain of the zero-shot accuracy on {ground.transfer}: {'; '.join(_shown(told))}. The interval of "
        f"the retentions' difference excludes 0 at {holds} of {len(found)} rate{'' if len(found) == 1 else 's'}. "
        f"{_kind(used, ', in pairs where the same images were kept')}{family}",
        "descriptive",
        topic="methods",
        weight=abs(largest[0]) if holds else 0.0,
        effect=largest[0],
        interval=largest[1].model_dump(),
        differences={rate: value for rate, (value, _) in found.items()},
        intervals={rate: one.model_dump() for rate, (_, one) in found.items()},
        n_configurations=len(found),
    )


def _rate_of(runs: pd.DataFrame, text: str) -> float:
    return float(runs.loc[runs["rate_text"] == text, "learning_rate"].iloc[0])


def _excludes(interval: Interval) -> bool:
    return interval.low is not None and interval.high is not None and (interval.low > 0 or interval.high < 0)


def _entropy(e: Evidence, ground: _Ground) -> None:
    plain = ground.plain
    own = plain[(plain["variant"] == "full") & plain[ENTROPY].notna()]
    rates = _by_rate(own)
    if not rates:
        return
    onset = e.settings.collapse_onset_pct
    means = {text: float(part[ENTROPY].mean()) for text, _, part in rates}
    intervals = {text: t_interval(_by_seed(part, ENTROPY), ground.level) for text, _, part in rates}
    told: list[str] = []
    for text, _, part in _shown(rates):
        bracket = f" ({_limits(intervals[text], signed=True, digits=2)})" if intervals[text].low is not None else ""
        last = part[LAST].mean()
        block = f", last block {number_text(float(last))}%" if pd.notna(last) else ", last block not measured"
        told.append(f"{number_text(means[text])}%{bracket}{block} at {text}")
    fell = [text for text, _, _ in rates if means[text] <= onset]
    where = (
        f"the mean fell by {-onset:g}% or more at {', '.join(fell)}" + _elsewhere(len(rates) - len(fell))
        if fell
        else f"the mean fell by {-onset:g}% or more at none of {len(rates)} rates"
        if len(rates) > 1
        else f"the mean did not fall by {-onset:g}% or more"
    )
    kept = _lost_without_a_fall(ground, rates, means)
    trend, interval = _entropy_trend(e, ground)
    single = all(one.low is None for one in intervals.values())
    caveat = (
        " The changes have no interval of their own: one seed, and entropies of single images are not kept."
        if single and own["replicate"].nunique() == 1
        else f" {_kind(list(intervals.values()))}"
    )
    largest = max(means.values(), key=abs)
    own_intervals = [one for one in intervals.values() if one.low is not None]
    if own_intervals:
        # That of the largest change, where seeds give one; else that of the trend.
        interval = intervals[max(means, key=lambda text: abs(means[text]))]
    e.add(
        f"headline entropy {ground.dataset}",
        "RQ1",
        f"Full on {ground.dataset} changed the mean attention entropy by {'; '.join(told)}: {where}.{kept}{trend}"
        f"{caveat}",
        "descriptive",
        topic="entropy",
        weight=abs(largest),
        effect=largest,
        interval=interval.model_dump() if interval is not None else None,
        entropy_change_pct=means,
        fell_at=fell,
        n_configurations=len(rates),
        n_runs=len(own),
    )


def _lost_without_a_fall(ground: _Ground, rates: list[tuple[str, float, pd.DataFrame]], means: dict[str, float]) -> str:
    """The highest rate at which the entropy rose and transfer was lost all the same, in words; empty where none."""
    if ground.transfer is None:
        return ""
    for text, _, part in reversed(rates):
        if means[text] <= 0 or not part[ground.retention].notna().any():
            continue
        value, limits = _retention(ground, part)
        if limits.high is not None and limits.high < 90:
            return (
                f" Transfer was lost without a fall: at {text}, with an entropy change of "
                f"{number_text(means[text])}%, {value:.1f}% ({_limits(limits)}) of the zero-shot accuracy on "
                f"{ground.transfer} is retained."
            )
    return ""


def _entropy_trend(e: Evidence, ground: _Ground) -> tuple[str, Interval | None]:
    """The entropy change against the rate in words, and the interval of its correlation, or of the mean change."""
    trend = ""
    interval: Interval | None = None
    for r in e.rates:
        own = (r.measure, r.method, r.dataset) == (ENTROPY, "full", ground.dataset)
        if own and r.configurations.spearman.statistic is not None:
            interval = r.configurations.spearman_interval
            trend = (
                f" Against the log rate: Spearman rho = {number_text(r.configurations.spearman.statistic)} over "
                f"{r.n_configurations} configurations ({interval_text(interval)})."
            )
            break
    if interval is None or interval.low is None or interval.low == interval.high:
        # The order of the rates is perfect, or they are too few: then over what the rates do on average.
        scopes = (ground.dataset, "all datasets") if len(_datasets(e)) == 1 else (ground.dataset,)
        mean = next((c for c in e.changes if (c.method, c.measure) == ("full", ENTROPY) and c.scope in scopes), None)
        if mean is not None and mean.interval.low is not None:
            interval = mean.interval
            trend += (
                f" Over {mean.n_configurations} configurations the mean change is "
                f"{number_text(mean.configurations.mean)}% ({interval_text(interval)})."
            )
    return trend, interval


def _elsewhere(others: int) -> str:
    if not others:
        return ""
    return " and not at the other rate" if others == 1 else f" and at none of the other {others} rates"


def _datasets(e: Evidence) -> set[str]:
    rows = e.tables["configurations"].rows
    return {str(row["dataset"]) for row in rows if row["variant"] != "pretrained"}


def _losses(e: Evidence, ground: _Ground) -> None:
    runs = ground.runs[ground.runs[ground.retention].notna() & (ground.runs["key_outcome"] == "")]
    adaptation = ["key_head", *(f"key_{name}" for name in fields_of(METHODS))]
    for kind in sorted(set(runs["key_loss_name"]) - {""}):
        mine = runs[runs["key_loss_name"] == kind]
        # The rate and method at which it was tried most, against the same without it.
        groups = mine.groupby(["method", "rate_text", "key_freeze_layers"], sort=True)
        _, mine = max(groups, key=lambda item: item[1]["key_loss_weight"].nunique())
        first = mine.iloc[0]
        base = runs[
            (runs["key_loss_name"] == "")
            & (runs["method"] == first["method"])
            & (runs["rate_text"] == first["rate_text"])
            & (runs["key_freeze_layers"] == first["key_freeze_layers"])
            & (runs[adaptation] == first[adaptation]).all(axis=1)
        ]
        weights = sorted(set(mine["key_loss_weight"]), key=lambda w: float(w or 0))
        level = 1 - (1 - ground.level) / max(len(weights), 1)
        found: dict[str, tuple[float, Interval]] = {}
        told: list[str] = []
        for weight in weights:
            own = mine[mine["key_loss_weight"] == weight]
            result = _difference(ground, own, base, ground.retention, level)
            if result is None:
                continue
            found[weight] = result
            told.append(
                f"{number_text(result[0], 1)} points ({_limits(result[1], signed=True)}) at weight {weight}, entropy "
                f"change {number_text(float(own[ENTROPY].mean()))}%"
            )
        if not found:
            continue
        holds = [weight for weight, (_, one) in found.items() if _excludes(one)]
        largest = max((found[w] for w in (holds or found)), key=lambda item: abs(item[0]))
        outcome = (
            f"the interval excludes 0 at weight {', '.join(holds)} only"
            if holds and len(holds) < len(found)
            else "the interval excludes 0 at every weight"
            if holds
            else "the interval excludes 0 at no weight"
        )
        family = f" The level is that of all {len(found)} weights together (Bonferroni)." if len(found) > 1 else ""
        e.add(
            f"headline preservation {ground.dataset} {kind}",
            "RQ4",
            f"With {LOSSES[kind].label if kind in LOSSES else kind} on {ground.dataset} ({first['method']}, {first['rate_text']}) the retention on "
            f"{ground.transfer} differs from that without it by {'; '.join(told)} (without it: "
            f"{_retention(ground, base)[0]:.1f}% retained, entropy change {number_text(float(base[ENTROPY].mean()))}%): "
            f"{outcome}. {_kind([one for _, one in found.values()], ', in pairs where the same images were kept')}{family}",
            "descriptive",
            topic="preservation",
            weight=abs(largest[0]) if holds else 0.0,
            effect=largest[0],
            interval=largest[1].model_dump(),
            differences={weight: value for weight, (value, _) in found.items()},
            intervals={weight: one.model_dump() for weight, (_, one) in found.items()},
            n_configurations=len(found) + 1,
        )  # fmt: skip


def _warning(e: Evidence, transfer: str) -> None:
    labels = {source.name: source.label for source in signals()}
    for when in ("first epoch", "final"):
        known = [
            s for s in e.signals
            if s.scope == "all runs" and s.transfer_set == transfer and s.when == when
            and s.signal not in ("learning_rate", "validation_accuracy")
            and s.spearman_configurations.statistic is not None
        ]  # fmt: skip
        if not known:
            continue
        best = max(known, key=lambda s: abs(s.spearman_configurations.statistic or 0.0))
        entropy = next((s for s in known if s.signal == "entropy_change"), None)

        def told(s: Signal) -> str:
            return f"{number_text(s.spearman_configurations.statistic)} ({interval_text(s.interval)})"

        moment = "After the first epoch" if when == "first epoch" else "At the end of training"
        beside = f"; the change of entropy does so with {told(entropy)}" if entropy is not None is not best else ""
        strength = judge(
            best.n_configurations, best.n_runs, best.n_seeds, best.spearman_configurations, best.interval, e.settings
        )
        seeds = "one seed each" if best.n_seeds == 1 else f"{best.n_seeds} seeds"
        e.add(
            f"headline warning {transfer}",
            "RQ3",
            f"{moment}, {labels[best.signal][:1].lower() + labels[best.signal][1:] if not labels[best.signal].startswith('CKA') else labels[best.signal]} "
            f"ranks the {best.n_configurations} configurations ({seeds}) by their final retention on {transfer} best of "
            f"{len(known)} signals, Spearman rho = {told(best)}, {test_text(best.spearman_configurations)}{beside}. The best was picked on the same runs, so its rho "
            "is optimistic; configurations differ in method, dataset and rate at once.",
            strength,
            topic="warning",
            weight=abs(best.spearman_configurations.statistic or 0.0),
            effect=best.spearman_configurations.statistic,
            signal=best.signal,
            when=when,
            interval=best.interval.model_dump(),
            n_configurations=best.n_configurations,
            n_runs=best.n_runs,
            n_seeds=best.n_seeds,
        )
        return
