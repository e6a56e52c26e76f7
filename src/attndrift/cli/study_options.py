"""The options of every command that takes a study: said once, for ``run`` and ``check``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_type_hints

import typer

from attndrift.cli.console import OnlyOption, fail, number_option

if TYPE_CHECKING:
    from attndrift.study.launchers import Options
    from attndrift.study.settings import Study

PROCESSES = "in-process"
"""The launcher that is used where no other is asked for: this machine."""


def is_s3(place: str) -> bool:
    """Whether a place for a study is the URL of an S3 store."""
    return place.startswith(("s3://", "s3a://"))


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """A study as it is asked for on the command line, and how it is to be run. A field is an option."""

    study: Annotated[str, typer.Argument(help="A preset (see `attndrift list presets`) or a study file (YAML).")]
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Study folder, or a URL (s3://...); default: studies/NAME.")
    ] = None
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value for every run, or DATASET.key=value. Repeatable.")
    ] = None
    dataset: Annotated[list[str] | None, typer.Option("--dataset", help="OLD=NEW: use another target. Repeatable.")] = (
        None
    )
    replace: Annotated[
        list[str] | None, typer.Option("--replace", help="FIELD:OLD=NEW: another value, also in grids. Repeatable.")
    ] = None
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="Repeat every run with each of these seeds, e.g. 0,1,2.")
    ] = None
    only: OnlyOption = None
    limit: Annotated[int | None, number_option("--limit", least=1, help="At most this many runs.")] = None
    keep: Annotated[str | None, typer.Option("--keep", help="Checkpoints to keep: best, best+final or all.")] = None
    report_to: Annotated[
        str | None,
        typer.Option(
            "--report-to",
            help="Where the history goes while runs train: tensorboard (the default), wandb, mlflow, trackio, several "
            "with commas, or none.",
        ),
    ] = None
    jobs: Annotated[
        int, number_option("--jobs", "-j", least=1, help="Runs at a time, each in a process with its own threads.")
    ] = 1
    time_limit: Annotated[
        str | None, typer.Option("--time-limit", help="End a run that takes longer, e.g. 30m or 2h; others go on.")
    ] = None
    engine: Annotated[str, typer.Option("--engine", help="Where runs are run (see `attndrift list launchers`).")] = (
        PROCESSES
    )
    address: Annotated[
        str | None,
        typer.Option("--address", help="ray: of the cluster; default: $RAY_ADDRESS, or one is started here."),
    ] = None
    cpus_per_run: Annotated[
        float | None,
        number_option("--cpus-per-run", decimal=True, help="ray, slurm: cores a run; default: its `threads`."),
    ] = None
    gpus_per_run: Annotated[
        float,
        number_option("--gpus-per-run", decimal=True, help="ray, slurm: accelerators a run; ray: also 0.5 and so on."),
    ] = 0.0
    retries: Annotated[
        int, number_option("--retries", help="ray, slurm: how often a run goes on after its worker died.")
    ] = 3
    scheduler: Annotated[
        list[str] | None,
        typer.Option("--scheduler", help="slurm: KEY=VALUE, e.g. slurm_partition=gpu, timeout_min=60. Repeatable."),
    ] = None

    def load(self) -> Study:
        """The study, with what the options change in it. Raises ``StudyError``."""
        from attndrift.study.loading import load_study, parse_overrides, parse_replacements, parse_seeds

        overrides = parse_overrides(self.settings or [])
        if self.keep is not None:
            overrides["keep"] = self.keep
        if self.report_to is not None:
            overrides["trackers"] = [name for name in self.report_to.split(",") if name != "none"]
        chosen = load_study(
            self.study,
            overrides=overrides,
            datasets=dict(_renamed(pair) for pair in self.dataset or []),
            replacements=parse_replacements(self.replace or []),
            seeds=None if self.seeds is None else parse_seeds(self.seeds),
        )
        if self.only:
            chosen = chosen.select(self.only)
        return chosen if self.limit is None else chosen.model_copy(update={"runs": chosen.runs[: self.limit]})

    def extras(self) -> list[str]:
        """The extras of the package that running it needs, ``study`` first."""
        from attndrift.study.launchers.registry import LAUNCHERS

        extra = LAUNCHERS[self.engine].extra
        return ["study", *([extra] if extra else []), *(["s3"] if is_s3(self.output or "") else [])]

    def folder(self, study: Study) -> str:
        """Where ``study`` is kept: a folder or a URL."""
        return self.output or str(Path("studies") / study.name)

    def launching(self) -> Options:
        """What was asked of the launcher."""
        from attndrift.study.launchers import Options
        from attndrift.study.time_limit import parse_time

        return Options(
            jobs=self.jobs,
            time_limit=None if self.time_limit is None else parse_time(self.time_limit),
            address=self.address,
            cpus_per_run=self.cpus_per_run,
            gpus_per_run=self.gpus_per_run,
            retries=self.retries,
            scheduler=tuple(self.scheduler or ()),
        )


def _renamed(pair: str) -> tuple[str, str]:
    old, separator, new = pair.partition("=")
    if not (separator and old and new):
        fail(f"--dataset {pair}: write it as OLD=NEW")
    return old, new


def with_study_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command(asked, ...)`` the options of :class:`StudyOptions`, before its own."""
    shared = fields(StudyOptions)
    hints = get_type_hints(StudyOptions, include_extras=True)
    own_hints = get_type_hints(command, include_extras=True)

    @functools.wraps(command)
    def called(**values: object) -> None:
        asked = {field.name: values.pop(field.name) for field in shared}
        command(StudyOptions(**asked), **values)  # type: ignore[arg-type]

    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.name == "study" else field.default,
            annotation=hints[field.name],
        )
        for field in shared
    ]
    _, *own = inspect.signature(command).parameters.values()
    parameters += [one.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=own_hints[one.name]) for one in own]
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in parameters}
    del called.__wrapped__
    return called
