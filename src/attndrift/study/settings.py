"""The one settings object of a run, and the study that a YAML file describes.

``RunSettings`` holds everything that decides what a run computes: two runs with equal settings (and
equal versions, on one machine) give equal results. A ``Study`` is an ordered list of runs with unique
names. Loading, presets and overrides are in :mod:`attndrift.study.loading`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

from attndrift.data.prompts import OWN
from attndrift.data.registry import expand_suites
from attndrift.losses.names import canonical_losses, parse_losses
from attndrift.losses.registry import LOSSES
from attndrift.methods.frozen_blocks import FrozenBlocks
from attndrift.methods.registry import CONTRASTIVE, DEFAULT_HEAD, DEFAULT_METHOD, FROZEN, HEADS, METHODS, Method
from attndrift.methods.towers import tower_problem
from attndrift.models.backbone import scheme_of
from attndrift.own_settings import Owner, OwnSettings, StrictSettings, fields_of, owners_of, spoken, validated
from attndrift.registry import RegistrationError, Registry, unknown_name
from attndrift.results.measures import MEASURES, measure_of_metric
from attndrift.study.optimisation import optimisation_names
from attndrift.study.outcomes.registry import canonical_outcomes, parse_outcome
from attndrift.study.set_descriptions import DatasetSource, checked_prompts, other_sets
from attndrift.study.trained_parts import part_names
from attndrift.trackers import TRACKERS

Selection = Literal["test", "validation"]

# A name becomes a folder: it cannot climb out of the study folder, nor hide in it.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,119}$"
_LONGEST_NAME = 120

DEFAULT_WEIGHT_DECAY = 0.01

_REGISTRIES: dict[str, Registry[Any]] = {
    "method": METHODS,
    "text_tower": METHODS,
    "head": HEADS,
    "measures": MEASURES,
    "trackers": TRACKERS,
}
"""The settings whose words are names of registered members."""

FLOAT16_ON_CPU = "`precision` float16 needs an accelerator; on a CPU it is float32 or bfloat16 (or auto)"


class RunSettings(StrictSettings):
    """Everything that decides what one run computes: the fields below, and the own settings of what it names.

    A method, a head, a loss or a measure brings settings of its own (:class:`~attndrift.own_settings.OwnSettings`), which stand
    beside these: ``RunSettings(dataset="tiles", method="lora", lora_rank=4)``. They are checked by their owner, filled
    with its defaults, and part of the settings' JSON and hash. :meth:`settings_of` has them.
    """

    model_config = ConfigDict(extra="allow")

    experiment: str | None = Field(None, pattern=NAME_PATTERN, description="label in the matrix: E2, A1, ...")
    model: str = Field(
        "embedded",
        min_length=1,
        description="folder, hub NAME or NAME@REVISION, `embedded`, `config:NAME`, `timm:NAME` or `open_clip:NAME`",
    )
    dataset: str = Field(pattern=NAME_PATTERN, description="fine-tuning target")
    source: DatasetSource | None = Field(None, description="where the target is, if it is not in the registry")
    sources: dict[str, DatasetSource] = Field(
        {}, description="the same of transfer and reference sets, by name; a study file gives it under `datasets`"
    )
    selection: Selection = Field(
        "validation", description="where the epoch is selected; test: on the split that is also reported"
    )
    method: str = Field(DEFAULT_METHOD, description="what is trained; none: the pretrained model")

    learning_rate: Annotated[float, Field(gt=0, le=10)] = Field(1e-5, description="peak rate of AdamW")
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(
        DEFAULT_WEIGHT_DECAY, description="of AdamW, on all trained parameters"
    )
    head_learning_rate: Annotated[float, Field(gt=0, le=10)] | None = Field(
        None, description="peak rate of the classifier; default: `learning_rate`"
    )
    projection_learning_rate: Annotated[float, Field(gt=0, le=10)] | None = Field(
        None, description="peak rate of the visual projection; default: `learning_rate`"
    )
    text_learning_rate: Annotated[float, Field(gt=0, le=10)] | None = Field(
        None, description="peak rate of the text tower and its projection; default: `learning_rate`"
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="factor of the rate from each block to the one before it, in both towers; 1: one rate"
    )
    spd: Annotated[float, Field(ge=0, le=100)] = Field(
        0.0, description="strength of selective projection decay: steps that lead back are projected towards the start"
    )
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="of AdamW, of the mean gradient")
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = Field(0.999, description="of AdamW, of the mean square")
    epochs: Annotated[int, Field(ge=0, le=10_000)] = Field(20, description="passes over the training images")
    steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(
        None, description="optimiser steps; where given, `epochs` is not read, and is recorded as 0"
    )
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = Field(64, description="images an optimiser step")
    gradient_accumulation: Annotated[int, Field(ge=1, le=4096)] = Field(
        1, description="micro-batches an optimiser step; batch_size is divided by it"
    )
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05, description="share of the steps in which the rate rises, never all of them; then it falls by a cosine"
    )
    warmup_steps: Annotated[int, Field(ge=0)] | None = Field(
        None, description="the steps in which the rate rises; where given, `warmup` is not read"
    )
    clip_norm: Annotated[float, Field(ge=0)] = Field(1.0, description="largest norm of the gradient; 0: any")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the training's forward passes; auto: mixed on CUDA, float32 elsewhere"
    )
    flip: bool = Field(True, description="random horizontal flip")
    cuda_graphs: bool = Field(
        True, description="on a CUDA device, record a step of the training once and replay it, where that can be done"
    )

    train_projection: bool | None = Field(
        None, description="whether the visual projection is trained; default: as the method does"
    )
    freeze_layers: Annotated[int, Field(ge=0)] = Field(
        0, description="frozen blocks, from the input, for a method that can"
    )
    freeze_blocks: FrozenBlocks | None = Field(
        None, description="further frozen blocks of the image tower: first:2, last:3, 1,5-8; 1 is the one at the input"
    )
    text_tower: str = Field(
        FROZEN, description="how the text tower is trained: frozen, or a method, whose settings both towers then share"
    )
    train_text_projection: bool | None = Field(
        None, description="whether the text projection is trained; default: as the method of the text tower does"
    )
    text_freeze_blocks: FrozenBlocks | None = Field(
        None, description="frozen blocks of the text tower, as `freeze_blocks`"
    )
    train_temperature: bool = Field(False, description="whether the logit scale is trained")
    head: str = Field(
        DEFAULT_HEAD, description="the classifier: trained, text, cosine, lp_ft, live_text or contrastive"
    )

    loss: str | None = Field(
        None, description="preservation losses and their weights: attention_preservation:0.1+entropy_floor:0.01"
    )

    outcomes: tuple[str, ...] = Field(
        (), description="models made of the run without training anew, a row each: wise_ft:0.5, ema:0.999"
    )

    guard: str | None = Field(
        None,
        description="keeps this within a budget: retention_pct (zero-shot), knn_retention_pct, ..., or a metric of the monitor",
    )
    guard_at_least: float | None = Field(None, description="the budget, in the metric's unit (retention: percent)")
    guard_at_most: float | None = Field(None, description="the budget's upper limit, in the metric's unit")
    guard_confidence: Annotated[float, Field(ge=0.5, lt=1)] = Field(0.9, description="of the bound on retention")
    guard_checks_per_epoch: Annotated[int, Field(ge=1, le=1000)] = Field(5, description="checks of the budget")
    guard_from: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of the training that goes by before the guard's first check"
    )

    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(42, description="initialisation, order, flips, dropout")
    data_seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(42, description="splits, subsets and probe")
    train_per_class: Annotated[int, Field(ge=1)] | None = Field(
        None, description="training images a class; default all"
    )
    validation_per_class: Annotated[int, Field(ge=1)] | None = Field(
        None, description="validation images a class; default: `validation_fraction`"
    )
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="share of each class of the training split that validates"
    )
    probe_size: Annotated[int, Field(ge=4)] | None = Field(
        None,
        description="images that structure and drift are measured on; default 200, and at most a tenth of the training split",
    )
    probe_per_class: Annotated[int, Field(ge=1)] | None = Field(None, description="instead of `probe_size`")
    test_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="test images; default all")
    unreadable: Literal["error", "skip"] = Field("error", description="what to do with images that cannot be decoded")

    transfer: tuple[str, ...] = Field((), description="transfer sets or suites, evaluated after the run")
    measures: tuple[str, ...] = Field(
        ("zero_shot",), min_length=1, description="retention measures on the transfer sets (attndrift list measures)"
    )
    missing_sets: Literal["error", "skip"] = Field(
        "error", description="what to do where transfer sets cannot be had; skip: name them and go on with the others"
    )
    duplicates: Literal["error", "drop"] = Field(
        "error", description="what to do with images of transfer sets that are near-duplicates of training images"
    )
    transfer_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="images a set; default all")
    bank_limit: Annotated[int, Field(ge=1)] | None = Field(
        None, description="training images of a transfer set that measures such as knn learn from; default all"
    )
    guard_probe_per_class: Annotated[int, Field(ge=1)] | None = Field(
        None, description="images a class of the first transfer set that guards see, and no run is evaluated on"
    )
    monitor_zero_shot_images: Annotated[int, Field(ge=0)] = Field(
        1000, description="images of the first set's training split, at epoch ends; no run is evaluated on them"
    )
    prompts: tuple[str, ...] = Field(
        ("a photo of a {class}.",),
        min_length=1,
        description="templates, or the name of an ensemble (cifar, eurosat, pets, ...); own: for each set that made for it",
    )

    evaluations_per_epoch: Annotated[int, Field(ge=1, le=1000)] = Field(5, description="measurements of drift")
    activation_change: bool = Field(
        False,
        description="measure the relative activation change of each block too; a pass over the probe once, then products",
    )
    evaluation_batch_size: Annotated[int, Field(ge=1)] = Field(200, description="images a pass without gradients")
    checkpoints_per_epoch: Annotated[int, Field(ge=1, le=1000)] = Field(
        1,
        description="resumable states an epoch; fewer on an accelerator, where they would take more than 5% of the time",
    )
    map_images: Annotated[int, Field(ge=0, le=64)] = Field(8, description="probe images in maps.npz")
    trackers: tuple[str, ...] = Field(
        ("tensorboard",), description="where the history goes while a run trains (attndrift list trackers)"
    )
    keep: Literal["best", "best+final", "all"] = Field("best+final", description="checkpoints that stay")
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(2, description="CPU threads; they change sums")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where the run computes")

    @field_validator("transfer", "measures", "trackers", "prompts", "outcomes", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("loss", mode="before")
    @classmethod
    def _canonical_losses(cls, value: Any) -> Any:
        if isinstance(value, dict):
            value = canonical_losses(value)
        return canonical_losses(parse_losses(value)) if isinstance(value, str) else value

    @field_validator("outcomes")
    @classmethod
    def _canonical_outcomes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return canonical_outcomes(value)

    @field_validator("prompts")
    @classmethod
    def _prompts_have_a_class(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return value if value == (OWN,) else checked_prompts(value)

    @field_validator(*_REGISTRIES)
    @classmethod
    def _registered(cls, value: Any, info: ValidationInfo) -> Any:
        for name in (value,) if isinstance(value, str) else value:
            _REGISTRIES[str(info.field_name)][name]  # an unknown name is an error with a near match
        return value if isinstance(value, str) else tuple(dict.fromkeys(value))

    @field_validator("transfer")
    @classmethod
    def _transfer_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not re.fullmatch(NAME_PATTERN, name):
                raise ValueError(f"{name!r} is not the name of a dataset")
        if len(set(value)) < len(value):
            raise ValueError("a transfer set is named twice")
        return value

    @model_validator(mode="after")
    def _possible(self) -> RunSettings:
        method = self.facts
        self._take_own_settings()
        if self.train_projection and method.projection is None:
            raise ValueError(f"`train_projection` cannot be true with method: {self.method}")
        if self.train_projection is None:
            object.__setattr__(self, "train_projection", bool(method.projection))
        if self.train_text_projection is None:
            object.__setattr__(self, "train_text_projection", bool(METHODS[self.text_tower].projection))
        _check_towers(self)
        if self.loss is not None and not method.moves_encoder:
            raise ValueError(f"`loss` does nothing with method: {self.method}, which leaves the image encoder as it is")
        _check_losses(self)
        if self.outcomes and not method.adapts:
            raise ValueError(f"`outcomes` does nothing with method: {self.method}, which trains nothing")
        _check_outcomes(self)
        _check_guard(self)
        if self.precision == "float16" and self.device == "cpu":
            raise ValueError(FLOAT16_ON_CPU)
        if self.selection == "test" and self.validation_per_class is not None:
            raise ValueError(
                "`validation_per_class` has no meaning with selection: test, which validates on the whole held-out "
                "split; shorten that with `test_limit`, or use selection: validation"
            )
        if self.batch_size % self.gradient_accumulation:
            raise ValueError("`batch_size` must be a multiple of `gradient_accumulation`")
        _check_optimisation(self)
        origin = None if self.source is None else self.source.origin
        object.__setattr__(self, "transfer", expand_suites(self.transfer, self.dataset, origin))
        own = {name: one for name, one in self.sources.items() if name in other_sets(self)}
        object.__setattr__(self, "sources", own)
        if self.dataset in self.transfer:
            raise ValueError(f"`transfer` names the target {self.dataset!r} itself: it would not be zero-shot")
        return self

    def _take_own_settings(self) -> None:
        """Check the settings that are none of every run by their owners, and fill in these owners' defaults."""
        given = self.__pydantic_extra__
        assert given is not None
        losses = (LOSSES[name] for name in self.losses)
        measures = (MEASURES[name] for name in named_measures(self))
        owners: list[Owner] = [METHODS[self.method], METHODS[self.text_tower], HEADS[self.head], *losses, *measures]
        for name, value in given.items():
            if not owners_of(name, owners):
                raise _refused(name, value, self)
        checked: dict[str, Any] = {}
        for owner in owners:
            checked |= dict(validated(owner, given))
        given.clear()
        given.update(checked)

    def settings_of(self, owner: Owner) -> OwnSettings:
        """The own settings of the run's method, its head, or one of its losses or measures."""
        return validated(owner, self.__pydantic_extra__ or {})

    @property
    def own(self) -> dict[str, Any]:
        """The own settings of everything that the run names, by their names."""
        return dict(self.__pydantic_extra__ or {})

    @property
    def facts(self) -> Method:
        """The method."""
        return METHODS[self.method]

    @property
    def trains_text(self) -> bool:
        """Whether text features or the temperature change, so that nothing of them may be cached."""
        return self.text_tower != FROZEN or bool(self.train_text_projection) or self.train_temperature

    @property
    def losses(self) -> dict[str, float]:
        """The preservation losses and their weights."""
        return parse_losses(self.loss)

    def to_json(self) -> dict[str, Any]:
        """Plain values, every field, in order."""
        return self.model_dump(mode="json")

    @property
    def hash(self) -> str:
        """SHA-256 of the settings: equal settings, equal hash."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def _check_towers(settings: RunSettings) -> None:
    """Raise ``ValueError`` for parts of the towers that do not go together, and a run that trains nothing."""
    problem, method = tower_problem(settings), settings.facts
    if problem is not None:
        raise ValueError(f"`{problem[0]}` {problem[1]}")
    others = settings.trains_text or settings.train_projection
    if method.adapts and not (method.moves_encoder or HEADS[settings.head].trained or others):
        raise ValueError(f"`head` {settings.head} is frozen, and method: {settings.method} trains nothing else")
    scheme = scheme_of(settings.model) if HEADS[settings.head].live else None
    if scheme is not None and not scheme[0].text_tower:
        raise ValueError(
            f"`head`: {settings.head} needs a text tower, which a {scheme[0].label} (`model`) does not have"
        )
    if settings.head == CONTRASTIVE and settings.batch_size < 2:
        raise ValueError(
            f"`batch_size` is 1; head: {settings.head} compares the images of a batch, so it needs 2 or more"
        )
    if settings.head == CONTRASTIVE and settings.gradient_accumulation > 1:
        raise ValueError(
            f"`gradient_accumulation` is {settings.gradient_accumulation}; head: {settings.head} compares all images of a "
            "batch, which accumulation would divide"
        )


def _check_outcomes(settings: RunSettings) -> None:
    """Raise ``ValueError`` for an outcome that needs images which the run does not monitor."""
    for text in settings.outcomes:
        needs = parse_outcome(text)[0].needs_unlabelled
        if needs and not (settings.transfer and settings.monitor_zero_shot_images):
            raise ValueError(f"`outcomes`: {text} needs a set in `transfer` with text, and `monitor_zero_shot_images`")


def _check_optimisation(settings: RunSettings) -> None:
    """Raise ``ValueError`` for an optimisation that cannot be; a training that is counted in steps has no epochs."""
    method = settings.facts
    if not method.adapts or settings.steps is not None:
        object.__setattr__(settings, "epochs", 0)
    elif settings.epochs == 0:
        raise ValueError("`epochs` must be at least 1; the pretrained model is method: none")
    if not method.adapts:
        object.__setattr__(settings, "steps", None)
        return
    if not (method.moves_encoder or settings.trains_text):
        for name, wanted in (("layer_decay", settings.layer_decay != 1), ("spd", settings.spd != 0)):
            if wanted:
                raise ValueError(
                    f"`{name}` does nothing with method: {settings.method}, which leaves the image encoder as it is"
                )
    if settings.head_learning_rate is not None and not HEADS[settings.head].trained:
        raise ValueError(f"`head_learning_rate` does nothing with head: {settings.head}, which is frozen")
    if settings.projection_learning_rate is not None and not settings.train_projection:
        raise ValueError("`projection_learning_rate` needs `train_projection: true`; this run does not train it")
    if settings.text_learning_rate is not None and not (
        settings.text_tower != FROZEN or settings.train_text_projection
    ):
        raise ValueError(f"`text_learning_rate` needs `text_tower`, a method; this run has text_tower: {FROZEN}")
    if settings.warmup_steps is not None and settings.steps is not None and settings.warmup_steps >= settings.steps:
        raise ValueError(f"`warmup_steps` is {settings.warmup_steps}; it must be below `steps`, {settings.steps}")


def _check_losses(settings: RunSettings) -> None:
    """Raise ``ValueError`` for losses that cannot be together, or of a model or dataset that they cannot have."""
    losses = [LOSSES[name] for name in settings.losses]
    for loss in losses[1:]:
        if loss.teacher != losses[0].teacher:
            raise ValueError(
                f"`loss`: {losses[0].name} holds to {losses[0].teacher}, {loss.name} to {loss.teacher}; a run has one teacher"
            )
    if settings.own.get("reference") == settings.dataset:
        raise ValueError(f"`reference` names the target {settings.dataset!r} itself; name another dataset")
    by_text = [loss.name for loss in losses if "text tower" in loss.needs]
    scheme = scheme_of(settings.model) if by_text else None
    if scheme is not None and not scheme[0].text_tower:
        raise ValueError(f"`loss`: {by_text[0]} needs a text tower, which a {scheme[0].label} (`model`) does not have")


def named_measures(settings: RunSettings) -> tuple[str, ...]:
    """Every retention measure that a run, one of its sets or its guard names."""
    of_sets = [name for one in settings.sources.values() for name in one.measures or ()]
    guarded = measure_of_metric(settings.guard) if settings.guard else None
    return tuple(dict.fromkeys([*settings.measures, *of_sets, *([guarded] if guarded else [])]))


def _check_guard(settings: RunSettings) -> None:
    """Raise ``ValueError`` for a guard without a budget, or with one that cannot be."""
    limits = [settings.guard_at_least, settings.guard_at_most]
    if settings.guard is None:
        if limits != [None, None]:
            raise ValueError("`guard_at_least` and `guard_at_most` need `guard`, the quantity that they limit")
        return
    if not (settings.facts.moves_encoder or settings.text_tower != FROZEN or settings.train_text_projection):
        raise ValueError(f"`guard` does nothing with method: {settings.method}, whose encoder cannot change")
    if limits == [None, None]:
        raise ValueError("`guard` needs `guard_at_least`, `guard_at_most` or both")
    measure = measure_of_metric(settings.guard)
    if measure is None:
        # Imported where it is needed: the settings themselves need no torch.
        from attndrift.guard.budget import Budget, of_text

        if of_text(settings.guard) and not settings.trains_text:
            raise ValueError(f"`guard`: {settings.guard} is measured where the text side is trained; give `text_tower`")
        Budget(settings.guard, at_least=settings.guard_at_least, at_most=settings.guard_at_most)
    else:
        if settings.guard_at_least is None or settings.guard_at_most is not None:
            raise ValueError(f"`guard: {settings.guard}` takes `guard_at_least` alone, in percent")
        if not settings.transfer or settings.guard_probe_per_class is None:
            raise ValueError(
                f"`guard: {settings.guard}` needs a set in `transfer`, and `guard_probe_per_class`: the images of it that "
                "the guard measures on, which are left out of the evaluation"
            )


def own_fields() -> dict[str, FieldInfo]:
    """The settings that registered methods, heads, losses and measures bring, by name.

    Raises :class:`~attndrift.registry.RegistrationError` for one with the name of a setting of every run.
    """
    found = fields_of([*METHODS, *HEADS, *LOSSES, *MEASURES])
    for name in found:
        if name in RunSettings.model_fields:
            whose = owners_of(name, [*METHODS, *HEADS, *LOSSES, *MEASURES])[0]
            raise RegistrationError(f"`{whose}`: its setting `{name}` is one of every run; choose another name")
    return found


def setting_names() -> list[str]:
    """Every name that a study file may give."""
    return [*RunSettings.model_fields, *own_fields()]


def needs_of(name: str) -> str:
    """What a run must have for the own setting ``name``: ``method: lora``, in words."""
    kinds = (("method", METHODS), ("head", HEADS), ("loss", LOSSES), ("measures", MEASURES))
    return " or ".join(f"{kind}: {', '.join(found)}" for kind, owners in kinds if (found := owners_of(name, owners)))


def applies(name: str, raw: Mapping[str, Any]) -> bool:
    """Whether a setting that runs share concerns one with the settings ``raw``, which are not checked yet."""
    method = raw.get("method", DEFAULT_METHOD)
    if method not in METHODS:
        return True  # which is refused by its name
    facts = METHODS[method]
    text = raw.get("text_tower", FROZEN) if facts.beside_text else FROZEN
    of_text = METHODS[text] if text in METHODS else METHODS[FROZEN]
    trains_text = text != FROZEN or (facts.beside_text and raw.get("train_text_projection") is True)
    moves = facts.moves_encoder or trains_text
    able = {
        "freeze_layers": facts.freezes_blocks,
        "freeze_blocks": facts.freezes_blocks,
        **dict.fromkeys(("text_tower", "train_text_projection", "train_temperature"), facts.beside_text),
        "text_freeze_blocks": of_text.freezes_blocks,
        "text_learning_rate": trains_text,
        "train_projection": facts.projection is not None,
        "head": facts.adapts,
        "outcomes": facts.adapts,
        "layer_decay": moves,
        "spd": moves,
        "projection_learning_rate": raw.get("train_projection", facts.projection) is True,
        "loss": facts.moves_encoder,
        **dict.fromkeys(("guard", "guard_at_least", "guard_at_most"), moves),
    }
    if name in RunSettings.model_fields or name not in own_fields():
        return able.get(name, True)
    given = raw.get("loss") if able["loss"] else None
    try:
        losses = parse_losses(canonical_losses(given) if isinstance(given, dict) else given)
    except (ValueError, TypeError):
        return True  # which is refused by its name
    head = raw.get("head", DEFAULT_HEAD)
    heads = [HEADS[head]] if able["head"] and head in HEADS else []
    measures = [MEASURES[one] for one in _asked_measures(raw) if one in MEASURES]
    return bool(owners_of(name, [facts, of_text, *heads, *(LOSSES[loss] for loss in losses), *measures]))


def _asked_measures(raw: Mapping[str, Any]) -> set[str]:
    """As :func:`named_measures`, of settings that are not checked yet."""
    sources = raw.get("sources")
    given = [raw, *(sources.values() if isinstance(sources, Mapping) else ())]
    found = {measure_of_metric(str(raw.get("guard"))) or ""}
    for one in given:
        asked = one.get("measures") if isinstance(one, Mapping) else getattr(one, "measures", None)
        found |= {asked} if isinstance(asked, str) else {str(name) for name in asked or ()}
    return found


def _refused(name: str, value: Any, run: RunSettings) -> ValidationError:
    """The error of a setting that nothing of the run has: another's, or nobody's."""
    needed = needs_of(name)
    if needed:
        kinds = [kind for kind in ("method", "head", "loss", "measures") if f"{kind}:" in needed]
        values = (getattr(run, kind) for kind in kinds)
        spelled = (", ".join(value) if isinstance(value, tuple) else value for value in values)
        has = ", ".join(f"{kind}: {value}" for kind, value in zip(kinds, spelled, strict=True))
        kind, message = "other_owner", f"`{name}` needs {needed}; this run has {has}"
    else:
        kind, message = (
            "extra_forbidden",
            unknown_name("setting", name, setting_names(), "`attndrift list settings` shows every setting"),
        )
    detail = InitErrorDetails(type=PydanticCustomError(kind, message), loc=(name,), input=value)
    return ValidationError.from_exception_data("RunSettings", [detail])


class NamedRun(BaseModel):
    """A run of a study: its folder name, its settings, and the commit of its model where that is on a hub."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str = Field(pattern=NAME_PATTERN)
    settings: RunSettings
    model_revision: str | None = Field(default=None, description="settled when the study is prepared")


class Study(BaseModel):
    """An ordered list of runs with unique names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=NAME_PATTERN)
    description: str = ""
    runs: tuple[NamedRun, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique(self) -> Study:
        seen: dict[str, str] = {}
        for run in self.runs:
            if run.run_id in seen:
                raise ValueError(f"two runs are called {run.run_id!r}")
            seen[run.run_id] = run.settings.hash
        return self

    def select(self, names: list[str]) -> Study:
        """The runs named in ``names``, by run or by experiment label; ``ValueError`` for an unknown name."""
        for name in names:
            if not any(name in (run.run_id, run.settings.experiment) for run in self.runs):
                known = [text for run in self.runs for text in (run.settings.experiment, run.run_id) if text]
                raise ValueError(unknown_name("run", name, known, "--dry-run shows every run"))
        kept = [r for r in self.runs if r.run_id in names or r.settings.experiment in names]
        return self.model_copy(update={"runs": tuple(kept)})


def run_name(settings: RunSettings, *, with_model: bool = False, with_data_seed: bool = False) -> str:
    """The folder name of a run: label, target, method and what departs from the method's defaults."""
    parts = [settings.experiment] if settings.experiment else []
    parts.append(settings.dataset)
    if with_model:
        parts.append(re.sub(r"[^A-Za-z0-9.-]+", "-", settings.model.rstrip("/").split("/")[-1]).strip("-."))
    method, head = settings.facts, HEADS[settings.head]
    parts += method.run_name(settings.settings_of(method))
    if bool(settings.train_projection) != bool(method.projection):
        parts.append("projection" if settings.train_projection else "frozen-projection")
    if settings.freeze_layers:
        parts.append(f"freeze{settings.freeze_layers}")
    parts += part_names(settings)
    if method.adapts:
        parts += head.run_name(settings.settings_of(head))
    for name, weight in settings.losses.items():
        parts.append(LOSSES[name].run_name(spoken(weight), settings.settings_of(LOSSES[name])))
    if settings.guard:
        limits = [spoken(limit) for limit in (settings.guard_at_least, settings.guard_at_most) if limit is not None]
        parts.append(f"guard-{settings.guard.removesuffix('_pct').replace('_', '-')}{'-'.join(limits)}")
    if method.adapts:
        if settings.weight_decay != DEFAULT_WEIGHT_DECAY:
            parts.append(f"wd{spoken(settings.weight_decay)}")
        parts += optimisation_names(settings)
        if settings.steps is not None:
            parts.append(f"steps{settings.steps}")
        parts += [f"lr{spoken(settings.learning_rate)}", f"s{settings.seed}"]
    if with_data_seed:
        parts.append(f"d{settings.data_seed}")
    name = "_".join(parts)
    if len(name) <= _LONGEST_NAME:
        return name
    # Still one name for one run, and another for every other.
    return f"{name[: _LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
