"""``attndrift interpolate``: the models between the pretrained and the adapted one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from attndrift.cli.app import app
from attndrift.cli.console import STUDIES, JsonOption, example, fail, need, print_json
from attndrift.cli.reporting import collect_if_study
from attndrift.plain_digits import decimal_number


@app.command(
    rich_help_panel=STUDIES,
    epilog=example("attndrift interpolate studies/demo/runs/E2_tiles_full_lr3e-4_s42 --alphas 0,0.5,1"),
)
def interpolate(
    run_folder: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    alphas: Annotated[str, typer.Option("--alphas", help="Comma-separated, 0: pretrained, 1: adapted.")] = (
        "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1"
    ),
    as_json: JsonOption = False,
) -> None:
    """Measure the models between the pretrained and the adapted one: accuracy, transfer, drift."""
    need("study", "report")
    from attndrift.study.interpolation import interpolate as sweep

    try:
        wanted = [decimal_number(value) for value in alphas.split(",")]
    except ValueError as error:
        fail(f"--alphas {alphas}: {error}; write them as 0,0.5,1")

    def line(alpha: float, point: dict[str, Any]) -> None:
        values = ", ".join(f"{k} {v:.4f}" for k, v in point.items() if k != "alpha" and v is not None)
        typer.echo(f"alpha {alpha:.2f}: {values}", err=as_json)

    points = sweep(run_folder, wanted, progress=line)
    study = run_folder.absolute().parent.parent
    collect_if_study(study)
    choices = _label_free_choices(study, run_folder.absolute().name)
    if as_json:
        print_json({"run": run_folder.absolute().name, "points": points, "choices": choices})
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
