"""The command line: parse, call, print. Everything it does is a Python function elsewhere."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from attndrift.version import __version__

app = typer.Typer(
    name="attndrift",
    help="See what fine-tuning does to CLIP: its attention, representation, weights and zero-shot transfer.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    add_completion=False,
)

StudyArgument = Annotated[str, typer.Argument(help="A preset (see `attndrift list presets`) or a study file (YAML).")]
FolderArgument = Annotated[Path, typer.Argument(help="A study folder, or any folder that holds the tables.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="Where to write.")]
AnalysisOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE of the analysis (docs/analysis-schema.md), e.g. level=0.9. Repeatable."),
]

EXIT_PROBLEM = 1
TOP_FINDINGS = 5
DEMO_JOBS = 4
"""Most runs of the demo at a time: each takes about half a gigabyte."""
EXIT_CONDITION = 3
EXIT_DEFECT = 70
EXIT_INTERRUPTED = 130


def _complain(message: object) -> None:
    from attndrift.sanitize import sanitize

    typer.secho(f"attndrift: {sanitize(message)}", fg=typer.colors.RED, err=True)


def _fail(message: str) -> NoReturn:
    _complain(message)
    raise typer.Exit(EXIT_PROBLEM)


def _print_json(value: Any) -> None:
    from attndrift.files import plain

    # A name may hold bytes that are no text; in JSON they are escapes, as in the files.
    text = json.dumps(plain(value), indent=1, ensure_ascii=False)
    typer.echo(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def _example(text: str) -> str:
    return f"Example:  [bold]{text}[/bold]"


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


SettingsOption = Annotated[
    list[str] | None, typer.Option("--set", help="key=value for every run, or DATASET.key=value. Repeatable.")
]
PlaceOption = Annotated[
    str | None, typer.Option("--output", "-o", help="Study folder, or a URL (s3://...); default: studies/NAME.")
]
DatasetOption = Annotated[list[str] | None, typer.Option("--dataset", help="OLD=NEW: use another target. Repeatable.")]
ReplaceOption = Annotated[
    list[str] | None, typer.Option("--replace", help="FIELD:OLD=NEW: another value, also in grids. Repeatable.")
]
SeedsOption = Annotated[
    str | None, typer.Option("--seeds", help="Repeat every run with each of these seeds, e.g. 0,1,2.")
]
OnlyOption = Annotated[
    list[str] | None, typer.Option("--only", help="A run's name or its label (E2, A1, ...). Repeatable.")
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="At most this many runs.")]
KeepOption = Annotated[str | None, typer.Option("--keep", help="Checkpoints to keep: best, best+final or all.")]
JobsOption = Annotated[
    int, typer.Option("--jobs", "-j", min=1, help="Runs at a time, each in a process with its own threads.")
]
TimeLimitOption = Annotated[
    str | None, typer.Option("--time-limit", help="End a run that takes longer, e.g. 30m or 2h; others go on.")
]
EngineOption = Annotated[str, typer.Option("--engine", help="Where runs are run: in-process, ray or slurm.")]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="ray: of the cluster; default: $RAY_ADDRESS, or one is started here.")
]
CpusOption = Annotated[
    float | None, typer.Option("--cpus-per-run", min=0, help="ray, slurm: cores a run; default: its `threads`.")
]
GpusOption = Annotated[
    float, typer.Option("--gpus-per-run", min=0, help="ray, slurm: accelerators a run; ray: also 0.5 and so on.")
]
RetriesOption = Annotated[
    int, typer.Option("--retries", min=0, help="ray, slurm: how often a run goes on after its worker died.")
]
SchedulerOption = Annotated[
    list[str] | None,
    typer.Option("--scheduler", help="slurm: KEY=VALUE, e.g. slurm_partition=gpu, timeout_min=60. Repeatable."),
]


@app.command(epilog=_example("attndrift run collapse-21 --dataset pets=critters --set model=embedded --set epochs=3"))
def run(
    study: StudyArgument,
    output: PlaceOption = None,
    settings: SettingsOption = None,
    dataset: DatasetOption = None,
    replace: ReplaceOption = None,
    seeds: SeedsOption = None,
    only: OnlyOption = None,
    limit: LimitOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the study, print the runs, their size and cost; run nothing.")
    ] = False,
    keep: KeepOption = None,
    jobs: JobsOption = 1,
    time_limit: TimeLimitOption = None,
    engine: EngineOption = "in-process",
    address: AddressOption = None,
    cpus_per_run: CpusOption = None,
    gpus_per_run: GpusOption = 0.0,
    retries: RetriesOption = 3,
    scheduler: SchedulerOption = None,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Object store: replace the driver that works on the study there.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print every evaluation.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a study; what is done already is kept, what was interrupted goes on."""
    from attndrift.sanitize import sanitize_line
    from attndrift.study.check import check_study, fetch_downloads
    from attndrift.study.check_findings import counted, download_lines, problem_message

    chosen = _chosen_study(study, settings, dataset, replace, seeds, only, limit, keep)
    options = _engine_options(jobs, time_limit, address, cpus_per_run, gpus_per_run, retries, scheduler)
    where = output or str(Path("studies") / chosen.name)
    # Of the processes of a launcher the first alone checks, speaks and downloads; the others wait for it.
    if int(os.environ.get("RANK", "0")) == 0:
        found = check_study(chosen, where, engine=engine, options=options)
        if found.out_of_reach or (found.problems and not dry_run):
            _fail(problem_message(found))
        for line in download_lines(found):
            typer.echo(line, err=True)
        if dry_run:
            _dry_run(chosen, found, elsewhere=engine != "in-process", as_json=as_json)
            return
        if engine == "in-process":
            # Once and here: several processes would download the same files, and fail one after the other.
            fetch_downloads(chosen, found)
    outcome = _run_study(chosen, where, engine=engine, options=options, take_over=take_over, verbose=verbose)
    if as_json:
        _print_json({"folder": where, "runs": outcome.statuses})
    else:
        counts = ", ".join(f"{outcome.count(s)} {s}" for s in dict.fromkeys(outcome.statuses.values()))
        typer.echo(sanitize_line(f"{where}: {counts}. Tables: runs.parquet, history.parquet, layers.parquet"))
    if outcome.count("failed"):
        names = [name for name, status in outcome.statuses.items() if status == "failed"]
        _fail(f"{counted(len(names), 'run')} failed ({', '.join(names[:3])}); see log.txt in {where}/runs")


def _dry_run(study: Any, found: Any, *, elsewhere: bool, as_json: bool) -> None:
    """Print the runs. Exit code 1 where the study, or one of its runs, cannot run."""
    from attndrift.study.check_findings import counted, problem_message
    from attndrift.study.plan import plan, print_plan

    planned = plan(study, elsewhere=elsewhere)
    if as_json:
        _print_json([row.to_json() for row in planned])
    else:
        print_plan(study, planned)
    if found.problems:
        _fail(problem_message(found))
    cannot = [row.run_id for row in planned if row.note]
    if cannot:
        _fail(f"{counted(len(cannot), 'run')} cannot run as planned ({', '.join(cannot[:3])}); see above")


def _chosen_study(
    study: str,
    settings: list[str] | None,
    dataset: list[str] | None,
    replace: list[str] | None,
    seeds: str | None,
    only: list[str] | None,
    limit: int | None,
    keep: str | None,
) -> Any:
    from attndrift.study.loading import load_study, parse_overrides, parse_replacements, parse_seeds

    overrides = parse_overrides(settings or [])
    if keep is not None:
        overrides["keep"] = keep
    chosen = load_study(
        study,
        overrides=overrides,
        datasets=_pairs(dataset or [], "--dataset"),
        replacements=parse_replacements(replace or []),
        seeds=None if seeds is None else parse_seeds(seeds),
    )
    if only:
        chosen = chosen.select(only)
    return chosen if limit is None else chosen.model_copy(update={"runs": chosen.runs[:limit]})


def _engine_options(
    jobs: int,
    time_limit: str | None,
    address: str | None,
    cpus_per_run: float | None,
    gpus_per_run: float,
    retries: int,
    scheduler: list[str] | None,
) -> Any:
    from attndrift.study.launchers import Options
    from attndrift.study.launchers.processes import parse_time

    return Options(
        jobs=jobs,
        time_limit=None if time_limit is None else parse_time(time_limit),
        address=address,
        cpus_per_run=cpus_per_run,
        gpus_per_run=gpus_per_run,
        retries=retries,
        scheduler=tuple(scheduler or ()),
    )


@app.command(epilog=_example("attndrift check collapse-21"))
def check(
    study: StudyArgument,
    output: PlaceOption = None,
    settings: SettingsOption = None,
    dataset: DatasetOption = None,
    replace: ReplaceOption = None,
    seeds: SeedsOption = None,
    only: OnlyOption = None,
    limit: LimitOption = None,
    keep: KeepOption = None,
    jobs: JobsOption = 1,
    time_limit: TimeLimitOption = None,
    engine: EngineOption = "in-process",
    address: AddressOption = None,
    cpus_per_run: CpusOption = None,
    gpus_per_run: GpusOption = 0.0,
    retries: RetriesOption = 3,
    scheduler: SchedulerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether a study can run: models, images, prompts, packages, engine, device, disk. Exit code 1: it cannot."""
    from attndrift.study.check import check_study
    from attndrift.study.check_findings import print_check

    chosen = _chosen_study(study, settings, dataset, replace, seeds, only, limit, keep)
    options = _engine_options(jobs, time_limit, address, cpus_per_run, gpus_per_run, retries, scheduler)
    where = output or str(Path("studies") / chosen.name)
    found = check_study(chosen, where, engine=engine, options=options, full=True)
    if as_json:
        _print_json(found.to_json())
    else:
        print_check(found)
    if found.problems:
        raise typer.Exit(EXIT_PROBLEM)


def _run_study(
    study: Any, where: str | Path, *, engine: str, options: Any, take_over: bool = False, verbose: bool = False
) -> Any:
    from attndrift.cli.progress import StudyConsole
    from attndrift.cli.run_table import StudyTable
    from attndrift.study.driver import DriverReplaced
    from attndrift.study.launchers import make_engine
    from attndrift.study.launchers.processes import LazyExecutor
    from attndrift.study.runner import run_study

    chosen = make_engine(engine, options)
    table, lines = StudyTable(verbose=verbose), StudyConsole(verbose=verbose)
    reporter, live = (lines, lines.progress) if engine == "in-process" else (table, table)
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
            if options.time_limit is not None:
                _fail("--time-limit: not where a launcher's processes train each run together; the launcher has one")
            if engine != "in-process" or options.jobs > 1:
                _fail("a launcher's processes train each run together, one run after the other: no --engine, no --jobs")
            return _run_distributed(study, where, lines, take_over=take_over)
        with live:
            return run_study(study, where, LazyExecutor(), reporter, engine=chosen, take_over=take_over)
    except DriverReplaced as error:
        _fail(str(error))
    except KeyboardInterrupt:
        typer.secho("\nattndrift: stopped; the same command goes on where this one was", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _run_distributed(study: Any, where: str | Path, reporter: Any, *, take_over: bool) -> Any:
    """A launcher has started several processes, which train each run together."""
    from attndrift.study.distributed import DistributedSession, RankFailure
    from attndrift.study.executor import Executor
    from attndrift.study.runner import run_study

    try:
        with DistributedSession() as session, Executor(session=session) as execute:
            if session.rank == 0:
                with reporter.progress:
                    return run_study(study, where, execute, reporter, take_over=take_over)
            execute.run_worker()
    except RankFailure as error:
        _fail(str(error))
    raise typer.Exit  # the main process reports


@app.command(epilog=_example("attndrift demo"))
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Study folder.")] = Path("studies/demo"),
    only: Annotated[
        list[str] | None, typer.Option("--only", help="A run's name or its label (E2, A1, ...). Repeatable.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Runs at a time; default: one a core, at most 4.")
    ] = None,
) -> None:
    """Run the 21 runs on the small embedded model and drawn images, then report on them. No network needed."""
    from attndrift.study.check_findings import counted
    from attndrift.study.launchers import Options
    from attndrift.study.launchers.processes import jobs_that_fit
    from attndrift.study.loading import load_study

    study = load_study("demo")
    if only:
        study = study.select(only)
    settings = [one.settings for one in study.runs]
    jobs = jobs or jobs_that_fit(settings, at_most=DEMO_JOBS)
    outcome = _run_study(study, output, engine="in-process", options=Options(jobs=jobs))
    analysis, drawn, (_, html) = _write_report(output, output, processes=jobs)
    figures_drawn = sum(figure.left_out is None for figure in drawn)
    typer.echo(f"\nreport:  {html}\nfigures: {output / 'figures'} ({figures_drawn})\ntables:  {output / 'tables'}")
    typer.echo("\nWhat the numbers say first:")
    for finding in analysis.most_important(TOP_FINDINGS):
        typer.echo(f"  - {finding.sentence}")
    if outcome.count("failed"):
        _fail(f"{counted(outcome.count('failed'), 'run')} failed; see log.txt in {output / 'runs'}")


def _pairs(values: list[str], option: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for value in values:
        old, separator, new = value.partition("=")
        if not (separator and old and new):
            _fail(f"{option} {value}: write it as OLD=NEW")
        pairs[old] = new
    return pairs


@app.command(epilog=_example("attndrift collect studies/collapse-21"))
def collect(folder: Annotated[Path, typer.Argument(help="A study folder.")], as_json: JsonOption = False) -> None:
    """Write the tidy tables (Parquet) of a study from its run folders."""
    from attndrift.study.collect import collect as collect_study

    tables, missing = collect_study(folder)
    if as_json:
        _print_json({"runs": len(tables.runs), "history": len(tables.history), "layers": len(tables.layers),
                     "without_record": missing})  # fmt: skip
        return
    typer.echo(
        f"{folder}: {len(tables.runs)} runs, {len(tables.history)} evaluations, {len(tables.layers)} layer values"
    )
    if missing:
        typer.echo(f"not run yet, or not finished: {', '.join(missing)}")


@app.command(epilog=_example("attndrift fetch s3://bucket/studies/mine studies/mine"))
def fetch(
    url: Annotated[str, typer.Argument(help="Where the study is: s3://BUCKET/STUDY, or any URL that fsspec opens.")],
    folder: Annotated[Path, typer.Argument(help="A local folder for it.")],
    as_json: JsonOption = False,
) -> None:
    """Copy a study out of an object store, with its tables, so that every other command works on it."""
    from attndrift.sanitize import sanitize_line
    from attndrift.study.object_storage import ObjectStorage
    from attndrift.study.storage_url import open_storage

    storage = open_storage(url)
    if not isinstance(storage, ObjectStorage):
        _fail(f"{url}: that is a folder, which needs no fetching")
    count = storage.fetch(folder, lambda name: typer.echo(sanitize_line(name), err=True))
    if as_json:
        _print_json({"folder": str(folder), "fetched": count})
    else:
        typer.echo(f"{folder}: {count} files fetched")


@app.command(
    "import",
    epilog=_example(
        "attndrift import their-results/ --output imported --rename lr=learning_rate --scale test_accuracy=0.01"
    ),
)
def import_(
    tables: Annotated[
        list[Path],
        typer.Argument(help="A folder, or files: runs, history, layers, interpolation as Parquet, CSV, TSV or JSON."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the tables; must not hold tables.")],
    rename: Annotated[
        list[str] | None, typer.Option("--rename", help="THEIRS=OURS: a column's name. Repeatable.")
    ] = None,
    scale: Annotated[
        list[str] | None, typer.Option("--scale", help="COLUMN=FACTOR, e.g. percent to 0..1: =0.01. Repeatable.")
    ] = None,
    null: Annotated[
        list[str] | None, typer.Option("--null", help="A word that means null in any column. Repeatable.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Say what would come in and what is missing; write nothing.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace tables that are in the folder.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring foreign records into the tables, checking columns, types and units."""
    from attndrift.results.importing import import_tables, parse_renames, parse_scales

    report = import_tables(
        tables[0] if len(tables) == 1 else tables,
        output,
        rename=parse_renames(rename or []),
        scale=parse_scales(scale or []),
        nulls=null or (),
        check_only=check,
        overwrite=overwrite,
    )
    if as_json:
        _print_json(dataclasses.asdict(report))
    else:
        typer.echo(str(report))


@app.command(epilog=_example("attndrift analyze studies/collapse-21 --set damaged_below_pct=60"))
def analyze(
    folder: FolderArgument, output: OutputOption = None, settings: AnalysisOption = None, as_json: JsonOption = False
) -> None:
    """Compute the statistics of a study: analysis.json, and tables as CSV, Markdown and LaTeX."""
    from attndrift.analysis.storing import write_analysis

    analysis = _analysis(folder, settings)
    target = output or folder
    paths = write_analysis(analysis, target)
    if as_json:
        typer.echo(analysis.to_json(), nl=False)
        return
    for finding in analysis.findings:
        typer.echo(f"[{finding.question}] {finding.sentence}")
    typer.echo(f"{len(paths)} files below {target}")


def _analysis(folder: Path, settings: list[str] | None = None) -> Any:
    from attndrift.analysis.core import analyze as analyze_tables
    from attndrift.analysis.image_intervals import read_image_outcomes
    from attndrift.analysis.loading import load_tables
    from attndrift.analysis.settings import parse_analysis_settings

    chosen = parse_analysis_settings(settings or [])
    _collect_if_study(folder)
    return analyze_tables(load_tables(folder), settings=chosen, outcomes=read_image_outcomes(folder))


@app.command(epilog=_example("attndrift figures studies/collapse-21 --only pareto_front"))
def figures(
    folder: FolderArgument,
    output: OutputOption = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="A figure's name. Repeatable.")] = None,
    settings: AnalysisOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw the figures of a study (PNG and SVG), each with the table that it shows."""
    from attndrift.figures.draw import draw_figures
    from attndrift.results.tables import read_tables

    analysis = _analysis(folder, settings)
    drawn = draw_figures(read_tables(folder), output or folder / "figures", maps=folder, analysis=analysis, only=only)
    if as_json:
        _print_json([dataclasses.asdict(figure) for figure in drawn])
        return
    for figure in drawn:
        typer.echo(f"{figure.name}: " + (f"left out, {figure.left_out}" if figure.left_out else str(figure.files[0])))


@app.command(epilog=_example("attndrift report studies/collapse-21"))
def report(
    folder: FolderArgument, output: OutputOption = None, settings: AnalysisOption = None, as_json: JsonOption = False
) -> None:
    """Write report.md and a self-contained report.html, with the figures and every statistic."""
    _, drawn, (markdown, html) = _write_report(folder, output or folder, settings)
    if as_json:
        _print_json({"markdown": markdown, "html": html, "figures": [figure.name for figure in drawn]})
    else:
        typer.echo(f"{markdown}\n{html}")


def _write_report(
    folder: Path, output: Path, settings: list[str] | None = None, *, processes: int = 1
) -> tuple[Any, list[Any], tuple[Path, Path]]:
    from attndrift.analysis.storing import write_analysis
    from attndrift.figures.draw import draw_figures
    from attndrift.report.build import write_report
    from attndrift.results.tables import read_tables

    analysis = _analysis(folder, settings)
    write_analysis(analysis, output)
    tables = read_tables(folder)
    drawn = draw_figures(tables, output / "figures", maps=folder, analysis=analysis, processes=processes)
    paths = write_report(folder, output=output, analysis=analysis, figures=drawn, tables=tables)
    return analysis, drawn, paths


def _collect_if_study(folder: Path) -> None:
    """Study folders are collected afresh, so that no table is older than a run."""
    from attndrift.study.collect import STUDY
    from attndrift.study.collect import collect as collect_study

    if (folder / STUDY).is_file():
        collect_study(folder)


@app.command(epilog=_example("attndrift interpolate studies/demo/runs/E2_tiles_full_lr3e-4_s42 --alphas 0,0.5,1"))
def interpolate(
    run_folder: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    alphas: Annotated[str, typer.Option("--alphas", help="Comma-separated, 0: pretrained, 1: adapted.")] = (
        "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1"
    ),
    as_json: JsonOption = False,
) -> None:
    """Measure the models between the pretrained and the adapted one: accuracy, transfer, drift."""
    from attndrift.study.interpolation import interpolate as sweep

    try:
        wanted = [float(value) for value in alphas.split(",")]
    except ValueError:
        _fail(f"--alphas {alphas}: write them as 0,0.5,1")

    def line(alpha: float, point: dict[str, Any]) -> None:
        values = ", ".join(f"{k} {v:.4f}" for k, v in point.items() if k != "alpha" and v is not None)
        typer.echo(f"alpha {alpha:.2f}: {values}", err=as_json)

    points = sweep(run_folder, wanted, progress=line)
    study = run_folder.absolute().parent.parent
    _collect_if_study(study)
    choices = _label_free_choices(study, run_folder.absolute().name)
    if as_json:
        _print_json({"run": run_folder.absolute().name, "points": points, "choices": choices})
        return
    for choice in choices:
        if choice["alpha"] is None:
            typer.echo(f"to retain {choice['wanted_pct']:g}% on {choice['transfer_set']}: {choice['reason']}")
            continue
        text = f"to retain {choice['wanted_pct']:g}% on {choice['transfer_set']}: alpha {choice['alpha']:.3f}"
        if choice["retention_pct"] is not None:
            text += f", which retains {choice['retention_pct']:.1f}%"
        if choice["test_accuracy"] is not None:
            text += f" at a test accuracy of {100 * choice['test_accuracy']:.2f}%"
        best = "" if choice["best_alpha"] is None else f"; labels would choose {choice['best_alpha']:.3f}"
        typer.echo(f"{text} (chosen without labels, by agreement with the pretrained predictions{best})")


def _label_free_choices(study: Path, run_id: str) -> list[dict[str, Any]]:
    """What the analysis says of one run's sweep: the alpha chosen by agreement for each wanted retention."""
    from attndrift.analysis.configurations import prepare
    from attndrift.analysis.interpolation import interpolation_tables
    from attndrift.analysis.settings import AnalysisSettings
    from attndrift.results.tables import read_tables

    if not (study / "runs.parquet").is_file():
        return []
    tables = read_tables(study, names=("runs", "interpolation"))
    found = interpolation_tables(prepare(tables), tables.interpolation, AnalysisSettings(), [])
    rows = next(table for table in found if table.name == "interpolation_choice").rows
    return [row for row in rows if row["run_id"] == run_id and row["rule"] == "agreement"]


@app.command(epilog=_example("attndrift baseline embedded --images photos --zero-shot objects"))
def baseline(
    model: Annotated[
        str,
        typer.Argument(
            help="A folder, NAME or NAME@REVISION on the hub, `embedded`, or `config:NAME`; with --images a run or adapter too."
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option("--images", help="A folder of images: measure attention by block and head, with maps."),
    ] = None,
    zero_shot: Annotated[
        list[str] | None,
        typer.Option(
            "--zero-shot", help="A dataset to classify; default: objects and cifar100, none with --images. Repeatable."
        ),
    ] = None,
    template: Annotated[
        list[str] | None, typer.Option("--template", help="A prompt that holds {class}. Repeatable: an ensemble.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Images a set; default: all.")] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for tables, maps and page of --images.")
    ] = Path("baseline"),
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out and list images that cannot be decoded.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """One model as it is: zero-shot accuracy with intervals, and with --images its attention."""
    from attndrift.cli.progress import progress_bar
    from attndrift.retention.baseline import DEFAULT_SETS, zero_shot_baseline
    from attndrift.retention.zero_shot import DEFAULT_TEMPLATES

    found: dict[str, Any] = {"model": None, "scores": [], "absent": {}, "structure": None}
    if images is not None:
        from attndrift.compare.attention_structure import measure_structure, print_structure, write_structure

        structure = measure_structure(
            model, images, skip_unreadable=skip_unreadable, progress=lambda message: typer.echo(message, err=True)
        )
        written = write_structure(structure, output)
        found |= {"model": structure.model, "structure": {**structure.to_json(), "files": written}}
        if not as_json:
            print_structure(structure, written)
    sets = zero_shot or (DEFAULT_SETS if images is None else ())
    if sets:
        with progress_bar() as progress:
            scored = zero_shot_baseline(
                model, sets, limit=limit, templates=template or DEFAULT_TEMPLATES, progress=progress
            )
        found |= dataclasses.asdict(scored)
    if as_json:
        _print_json(found)
        return
    if not sets:
        return
    if scored.model.get("revision"):
        typer.echo(f"model {model}: commit {scored.model['revision']}")
    for score in scored.scores:
        typer.echo(
            f"zero-shot {score.dataset} ({score.split}): {100 * score.accuracy:.2f}% "
            f"[{100 * score.low:.2f}, {100 * score.high:.2f}], {score.n:,} images, chance {100 * score.chance:.2f}%"
        )
    for name, reason in scored.absent.items():
        typer.echo(f"zero-shot {name}: not measured, {reason}")
    prompts = ", ".join(f"`{one}`" for one in template or DEFAULT_TEMPLATES)
    typer.echo(f"Prompts: {prompts}. Intervals: Wilson, 95%, over images. --json has class names and preprocessing")


@app.command(
    epilog=_example("attndrift compare embedded studies/demo/runs/E5_tiles_lora-r8_lr0.003_s42 --images photos")
)
def compare(
    base: Annotated[
        str, typer.Argument(help="A folder, NAME[@REVISION] on the hub, `embedded`, run, checkpoint or adapter.")
    ],
    adapted: Annotated[str, typer.Argument(help="The same, or a vision tower alone; adapters are put onto BASE.")],
    images: Annotated[Path, typer.Option("--images", help="A folder of images, any depth; at least 2.")],
    zero_shot: Annotated[
        str | None, typer.Option("--zero-shot", help="A dataset's name: measure what zero-shot accuracy is left.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for tables, maps and page.")] = Path("compare"),
    fail_if: Annotated[
        list[str] | None, typer.Option("--fail-if", help='Exit with 3 where it holds: "cka_mean<0.9". Repeatable.')
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out and list images that cannot be decoded.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare two models on the same images: attention, representation, weights and zero-shot accuracy."""
    from attndrift.compare.compare import SUMMARY, compare_models
    from attndrift.compare.conditions import parse_conditions
    from attndrift.compare.writing import print_comparison, write_comparison

    conditions = parse_conditions(fail_if or [], SUMMARY)
    found = compare_models(
        base,
        adapted,
        images,
        zero_shot=zero_shot,
        skip_unreadable=skip_unreadable,
        progress=lambda message: typer.echo(message, err=True),
    )
    written = write_comparison(found, output)
    held = [str(condition) for condition in conditions if condition.holds(found.summary, found.reasons)]
    if as_json:
        _print_json({**found.to_json(), "files": written, "conditions": [str(c) for c in conditions], "held": held})
    else:
        print_comparison(found, written)
    for condition in held:
        typer.secho(f"attndrift: {condition} holds", fg=typer.colors.RED, err=True)
    if held:
        raise typer.Exit(EXIT_CONDITION)


@app.command("list", epilog=_example("attndrift list presets"))
def list_(
    what: Annotated[str, typer.Argument(help="models, datasets, metrics, methods or presets; default: all.")] = "all",
    as_json: JsonOption = False,
) -> None:
    """List what is known by name: models, datasets, metrics, methods and presets."""
    from attndrift.cli.catalogue import catalogue, print_catalogue

    found = catalogue()
    if what != "all":
        if what not in found:
            _fail(f"nothing is listed as {what!r}; choose from {', '.join(found)}")
        found = {what: found[what]}
    if as_json:
        _print_json(found)
    else:
        print_catalogue(found)


@app.command(epilog=_example("attndrift show studies/demo/runs/E2_tiles_full_lr3e-4_s42"))
def show(run_folder: Annotated[Path, typer.Argument(help="The folder of a run.")], as_json: JsonOption = False) -> None:
    """Show one run: settings, outcome, drift and transfer."""
    from attndrift.cli.show_run import describe_run, print_run

    described = describe_run(run_folder)
    if as_json:
        _print_json(described)
    else:
        print_run(described)


@app.command(epilog=_example("attndrift convert openai/clip-vit-large-patch14-336 clip-l14-336"))
def convert(
    model: Annotated[str, typer.Argument(help="NAME or NAME@REVISION on the hub, or a folder, with pickled weights.")],
    folder: Annotated[Path, typer.Argument(help="The new model folder; must not be there yet.")],
    time_limit: Annotated[str, typer.Option("--time-limit", help="End the reading after this time.")] = "30m",
    as_json: JsonOption = False,
) -> None:
    """Convert pickled weights to safetensors, in a process of its own, and check that every tensor is equal."""
    from attndrift.models.convert import convert as convert_model
    from attndrift.study.check_findings import counted
    from attndrift.study.launchers.processes import parse_time

    found = convert_model(model, folder, seconds=parse_time(time_limit))
    if as_json:
        _print_json(dataclasses.asdict(found))
    else:
        commit = "" if found.commit is None else f" at commit {found.commit}"
        held = f"{counted(found.tensors, 'tensor')}, {found.bytes:,} bytes, equal to those of {model}{commit}"
        typer.echo(f"{found.folder}: {held}")


_NO_PLACE = {
    errno.ENOSPC: "make room, or choose another place with --output",
    errno.EDQUOT: "make room, or choose another place with --output",
    errno.EROFS: "make it writable, or choose another place with --output",
    errno.EPERM: "make it writable, or choose another place with --output",
    errno.EACCES: "make it writable, or choose another place with --output",
}


def remedy(error: BaseException) -> str:
    """What to do where a place cannot be written to, as the end of a message; empty for other errors."""
    if not isinstance(error, OSError):
        return ""
    # Arrow's errors have the number in their text alone.
    said = re.search(r"errno (\d+)", str(error), re.IGNORECASE)
    advice = _NO_PLACE.get(error.errno or int(said[1] if said else 0))
    return f". To go on, {advice}; nothing that was finished is lost, and the same command goes on" if advice else ""


def main() -> None:
    """Entry point: known errors are one line, not a traceback (ATTNDRIFT_TRACEBACK=1 shows it)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Transformers reports its own progress and advice; a study has its own.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app()
    except (ValueError, OSError) as error:
        if os.environ.get("ATTNDRIFT_TRACEBACK"):
            raise
        _complain(f"{error}{remedy(error)}")
        sys.exit(EXIT_PROBLEM)
    except Exception as error:
        if os.environ.get("ATTNDRIFT_TRACEBACK"):
            raise
        _complain(
            f"{type(error).__name__}: {error}. This should have been said better, and is worth a report: "
            "ATTNDRIFT_TRACEBACK=1 shows where it happened"
        )
        sys.exit(EXIT_DEFECT)


if __name__ == "__main__":
    main()
