"""The one settings object of a run, and the study that a YAML file describes.

``RunSettings`` holds everything that decides what a run computes: two runs with equal settings (and
equal versions, on one machine) give equal results. A ``Study`` is an ordered list of runs with unique
names. Loading, presets and overrides are in :mod:`attndrift.study.loading`.
"""

from __future__ import annotations

import hashlib
import json
import re
from types import NoneType
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from attndrift.losses.names import canonical_losses, parse_losses

Method = Literal["full", "lora", "linear_probe", "last_block", "none"]
Selection = Literal["test", "validation"]
LoraTargets = Literal["q,v", "q,k,v,out"]

# A name becomes a folder: it cannot climb out of the study folder, nor hide in it.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,119}$"

DEFAULT_WEIGHT_DECAY = 0.01

FLOAT16_ON_CPU = "`precision` float16 needs an accelerator; on a CPU it is float32 or bfloat16 (or auto)"


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that an annotation is made of."""
    inner = get_args(annotation)
    return set().union(*(_kinds(part) for part in inner)) if inner else {annotation}


class DatasetSource(BaseModel):
    """Images that are not in the registry: a local folder or a hub name, and the columns to read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str | None = Field(None, description="local folder: Parquet files, or one folder of images a class")
    hub: str | None = Field(None, description="name on the hub, e.g. tanganke/eurosat")
    config: str | None = Field(None, description="configuration of a hub dataset that has several")
    revision: str | None = Field(None, description="commit, branch or tag of a hub dataset; default: its newest commit")
    image_column: str | None = Field(None, description="column of the images; default: the only one of images")
    label_column: str | None = Field(
        None, description="column of the labels; default: `label`, or the only one of classes"
    )
    id_column: str | None = Field(None, description="column that names each image; default: `image_id` or `id`")
    train_split: str | None = Field(None, description="split that trains, validates and probes; default: train")
    test_split: str | None = Field(
        None, description="split that is reported; default: test, else validation, valid, val"
    )
    class_names: tuple[str, ...] | None = Field(None, description="names of the classes in the order of their labels")
    origin: str | None = Field(None, description="source of the images; a target and a transfer set must not share it")

    @model_validator(mode="after")
    def _one_source(self) -> DatasetSource:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of `path` (a local folder) and `hub` (a hub name)")
        return self


class RunSettings(BaseModel):
    """Everything that decides what one run computes."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    experiment: str | None = Field(None, pattern=NAME_PATTERN, description="label in the matrix: E2, A1, ...")
    model: str = Field(
        "embedded", min_length=1, description="folder, hub NAME or NAME@REVISION, `embedded`, or `config:NAME`"
    )
    dataset: str = Field(pattern=NAME_PATTERN, description="fine-tuning target")
    source: DatasetSource | None = Field(None, description="where the target is, if it is not in the registry")
    selection: Selection = Field(
        "validation", description="where the epoch is selected; test: on the split that is also reported"
    )
    method: Method = Field("full", description="what is trained; none: the pretrained model")

    learning_rate: Annotated[float, Field(gt=0, le=10)] = Field(1e-5, description="peak rate of AdamW")
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(
        DEFAULT_WEIGHT_DECAY, description="of AdamW, on all trained parameters"
    )
    epochs: Annotated[int, Field(ge=0, le=10_000)] = Field(20, description="passes over the training images")
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = Field(64, description="images an optimiser step")
    gradient_accumulation: Annotated[int, Field(ge=1, le=4096)] = Field(
        1, description="micro-batches an optimiser step; batch_size is divided by it"
    )
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05, description="share of the steps in which the rate rises; then it falls by a cosine"
    )
    clip_norm: Annotated[float, Field(ge=0)] = Field(1.0, description="largest norm of the gradient; 0: any")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the training's forward passes; auto: mixed on CUDA, float32 elsewhere"
    )
    flip: bool = Field(True, description="random horizontal flip")
    cuda_graphs: bool = Field(
        True, description="on a CUDA device, record a step of the training once and replay it, where that can be done"
    )

    lora_rank: Annotated[int, Field(ge=1, le=1024)] | None = Field(None, description="method lora: default 8")
    lora_alpha: Annotated[float, Field(gt=0)] | None = Field(None, description="default: twice the rank")
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(None, description="method lora: default 0.05")
    lora_targets: LoraTargets | None = Field(None, description="adapted projections; method lora: default q,v")
    train_projection: bool | None = Field(None, description="default: full and lora train it, last_block does not")
    freeze_layers: Annotated[int, Field(ge=0)] = Field(0, description="method full: frozen blocks, from the input")
    head: Literal["trained", "text"] = Field("trained", description="text: the classifier starts from text features")

    loss: str | None = Field(
        None, description="preservation losses and their weights: attention_preservation:0.1+entropy_floor:0.01"
    )
    entropy_floor_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        0.7, description="loss entropy_floor: the floor as a share of the pretrained layer mean"
    )

    guard: str | None = Field(None, description="keeps this within a budget: retention_pct, or a metric of the monitor")
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
    probe_size: Annotated[int, Field(ge=4)] = Field(
        200, description="images that structure and drift are measured on; debiased CKA needs four"
    )
    probe_per_class: Annotated[int, Field(ge=1)] | None = Field(None, description="instead of `probe_size`")
    test_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="test images; default all")
    unreadable: Literal["error", "skip"] = Field("error", description="what to do with images that cannot be decoded")

    transfer: tuple[str, ...] = Field((), description="zero-shot sets, evaluated after the run")
    transfer_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="images a set; default all")
    guard_probe_per_class: Annotated[int, Field(ge=1)] | None = Field(
        None, description="images a class of the first transfer set that guards see, and no run is evaluated on"
    )
    monitor_zero_shot_images: Annotated[int, Field(ge=0)] = Field(
        1000, description="images of the first set, at epoch ends"
    )
    prompts: tuple[str, ...] = Field(
        ("a photo of a {class}.",),
        min_length=1,
        description="templates, or the name of an ensemble: cifar, eurosat, pets",
    )

    evaluations_per_epoch: Annotated[int, Field(ge=1, le=1000)] = Field(5, description="measurements of drift")
    evaluation_batch_size: Annotated[int, Field(ge=1)] = Field(200, description="images a pass without gradients")
    checkpoints_per_epoch: Annotated[int, Field(ge=1, le=1000)] = Field(
        1,
        description="resumable states an epoch; fewer on an accelerator, where they would take more than 5% of the time",
    )
    map_images: Annotated[int, Field(ge=0, le=64)] = Field(8, description="probe images in maps.npz")
    keep: Literal["best", "best+final", "all"] = Field("best+final", description="checkpoints that stay")
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(2, description="CPU threads; they change sums")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where the run computes")

    @field_validator("*", mode="before")
    @classmethod
    def _no_other_type(cls, value: Any, info: ValidationInfo) -> Any:
        """A text is no number, and yes is not 1: what was meant is unsure, so it is not guessed."""
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        if bool in kinds and not isinstance(value, (bool, NoneType)):
            raise ValueError("must be true or false")
        if kinds & {int, float} and str not in kinds and isinstance(value, (bool, str)):
            raise ValueError("must be a number" + (", without quotation marks" if isinstance(value, str) else ""))
        return value

    @field_validator("transfer", "prompts", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("loss", mode="before")
    @classmethod
    def _canonical_losses(cls, value: Any) -> Any:
        if isinstance(value, dict):
            value = canonical_losses(value)
        return canonical_losses(parse_losses(value)) if isinstance(value, str) else value

    @field_validator("prompts", mode="before")
    @classmethod
    def _named_ensemble(cls, value: Any) -> Any:
        from attndrift.data.prompts import TEMPLATES

        name = value[0] if isinstance(value, (tuple, list)) and len(value) == 1 else value
        return TEMPLATES[name] if isinstance(name, str) and name in TEMPLATES else value

    @field_validator("prompts")
    @classmethod
    def _prompts_have_a_class(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in value:
            if prompt.count("{class}") != 1:
                raise ValueError(
                    f"the prompt {prompt!r} must hold {{class}} exactly once, or be the name of an ensemble: "
                    "default, cifar, eurosat, pets"
                )
        return value

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
        lora_only = {
            "lora_rank": self.lora_rank,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "lora_targets": self.lora_targets,
        }
        if self.method == "lora":
            rank = self.lora_rank if self.lora_rank is not None else 8
            defaults = {
                "lora_rank": rank,
                "lora_alpha": 2.0 * rank,
                "lora_dropout": 0.05,
                "lora_targets": "q,v",
            }
            for name, default in defaults.items():
                if lora_only[name] is None:
                    object.__setattr__(self, name, default)
        else:
            given = [name for name, value in lora_only.items() if value is not None]
            if given:
                raise ValueError(f"`{given[0]}` needs method: lora; this run has method: {self.method}")
        if self.freeze_layers and self.method != "full":
            raise ValueError(f"`freeze_layers` needs method: full; this run has method: {self.method}")
        if self.train_projection and self.method in ("linear_probe", "none"):
            raise ValueError(f"`train_projection` cannot be true with method: {self.method}")
        if self.train_projection is None:
            object.__setattr__(self, "train_projection", self.method in ("full", "lora"))
        if self.loss is not None and self.method in ("linear_probe", "none"):
            raise ValueError(f"`loss` does nothing with method: {self.method}, whose attention cannot change")
        self._check_guard()
        if self.precision == "float16" and self.device == "cpu":
            raise ValueError(FLOAT16_ON_CPU)
        if self.selection == "test" and self.validation_per_class is not None:
            raise ValueError(
                "`validation_per_class` has no meaning with selection: test, which validates on the whole held-out "
                "split; shorten that with `test_limit`, or use selection: validation"
            )
        if self.batch_size % self.gradient_accumulation:
            raise ValueError("`batch_size` must be a multiple of `gradient_accumulation`")
        if self.method == "none":
            object.__setattr__(self, "epochs", 0)
        elif self.epochs == 0:
            raise ValueError("`epochs` must be at least 1; the pretrained model is method: none")
        if self.dataset in self.transfer:
            raise ValueError(f"`transfer` names the target {self.dataset!r} itself: it would not be zero-shot")
        return self

    def _check_guard(self) -> None:
        limits = [self.guard_at_least, self.guard_at_most]
        if self.guard is None:
            if limits != [None, None]:
                raise ValueError("`guard_at_least` and `guard_at_most` need `guard`, the quantity that they limit")
            return
        if self.method in ("linear_probe", "none"):
            raise ValueError(f"`guard` does nothing with method: {self.method}, whose encoder cannot change")
        if limits == [None, None]:
            raise ValueError("`guard` needs `guard_at_least`, `guard_at_most` or both")
        if self.guard != "retention_pct":
            # Imported where it is needed: the settings themselves need no torch.
            from attndrift.guard.budget import Budget

            Budget(self.guard, at_least=self.guard_at_least, at_most=self.guard_at_most)
        else:
            if self.guard_at_least is None or self.guard_at_most is not None:
                raise ValueError("`guard: retention_pct` takes `guard_at_least` alone, in percent")
            if not self.transfer or self.guard_probe_per_class is None:
                raise ValueError(
                    "`guard: retention_pct` needs a set in `transfer`, and `guard_probe_per_class`: the images of it that "
                    "the guard measures on, which are left out of the evaluation"
                )

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
                known = ", ".join(dict.fromkeys(r.settings.experiment or r.run_id for r in self.runs))
                raise ValueError(f"no run is called {name!r}; this study has {known}")
        kept = [r for r in self.runs if r.run_id in names or r.settings.experiment in names]
        return self.model_copy(update={"runs": tuple(kept)})


def _number(value: float) -> str:
    """1e-5 and 0.01 as they are spoken."""
    text = f"{value:g}" if value == 0 or value >= 1e-3 else f"{value:.6e}"
    text = re.sub(r"\.?0+e", "e", text)
    return re.sub(r"e([+-])0*(\d+)", r"e\1\2", text)


def run_name(settings: RunSettings, *, with_model: bool = False, with_data_seed: bool = False) -> str:
    """The folder name of a run: label, target, method and what departs from the method's defaults."""
    parts = [settings.experiment] if settings.experiment else []
    parts.append(settings.dataset)
    if with_model:
        parts.append(re.sub(r"[^A-Za-z0-9.-]+", "-", settings.model.rstrip("/").split("/")[-1]).strip("-."))
    if settings.method == "lora":
        parts.append(f"lora-r{settings.lora_rank}")
        if settings.lora_targets != "q,v":
            parts.append("qkvo")
        if settings.lora_alpha != 2.0 * (settings.lora_rank or 0):
            parts.append(f"alpha{_number(settings.lora_alpha or 0)}")
        if not settings.train_projection:
            parts.append("frozen-projection")
    else:
        parts.append(settings.method.replace("_", "-"))
        if settings.method == "last_block" and settings.train_projection:
            parts.append("projection")
        if settings.method == "full" and not settings.train_projection:
            parts.append("frozen-projection")
    if settings.freeze_layers:
        parts.append(f"freeze{settings.freeze_layers}")
    for name, weight in settings.losses.items():
        parts.append(f"{name.replace('_', '-')}{_number(weight)}")
    if settings.guard:
        limits = [_number(limit) for limit in (settings.guard_at_least, settings.guard_at_most) if limit is not None]
        parts.append(f"guard-{settings.guard.removesuffix('_pct').replace('_', '-')}{'-'.join(limits)}")
    if settings.weight_decay != DEFAULT_WEIGHT_DECAY:
        parts.append(f"wd{_number(settings.weight_decay)}")
    if settings.method != "none":
        parts += [f"lr{_number(settings.learning_rate)}", f"s{settings.seed}"]
    if with_data_seed:
        parts.append(f"d{settings.data_seed}")
    return "_".join(parts)
