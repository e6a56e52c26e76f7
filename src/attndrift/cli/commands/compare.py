"""``attndrift compare``: two models on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attndrift.cli.app import app
from attndrift.cli.console import EXIT_CONDITION, MODELS, JsonOption, example, need, number_option, print_json, say


@app.command(
    rich_help_panel=MODELS,
    epilog=example("attndrift compare embedded studies/demo/runs/E5_tiles_lora-r8_lr0.003_s42 --images photos"),
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
    retention: Annotated[
        str | None,
        typer.Option("--retention", help="A dataset's name: retention by every measure that both models allow."),
    ] = None,
    limit: Annotated[
        int | None, number_option("--limit", least=1, help="Images of --zero-shot and --retention; default: all.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for tables, maps and page.")] = Path("compare"),
    fail_if: Annotated[
        list[str] | None, typer.Option("--fail-if", help='Exit with 3 where it holds: "cka_mean<0.9". Repeatable.')
    ] = None,
    cross_layer: Annotated[
        bool, typer.Option("--cross-layer-cka", help="CKA of every block with every block too, with a heatmap.")
    ] = False,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out and list images that cannot be decoded.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare two models on the same images: attention, representation, weights and zero-shot accuracy."""
    need("report", *(["study"] if zero_shot or retention else []))
    from attndrift.compare.compare import compare_models
    from attndrift.compare.conditions import parse_conditions
    from attndrift.compare.image_folder import refuse_output_among_images
    from attndrift.compare.summary import summary_names
    from attndrift.compare.writing import print_comparison, write_comparison

    if limit is not None and not (zero_shot or retention):
        raise ValueError("--limit is of the images of --zero-shot and --retention: name a dataset with one of them")
    conditions = parse_conditions(fail_if or [], summary_names())
    refuse_output_among_images(output, images)
    found = compare_models(
        base,
        adapted,
        images,
        zero_shot=zero_shot,
        zero_shot_limit=limit,
        retention=retention,
        retention_limit=limit,
        cross_layer=cross_layer,
        skip_unreadable=skip_unreadable,
        progress=say,
    )
    written = write_comparison(found, output)
    held = [str(condition) for condition in conditions if condition.holds(found.summary, found.reasons)]
    if as_json:
        print_json({**found.to_json(), "files": written, "conditions": [str(c) for c in conditions], "held": held})
    else:
        print_comparison(found, written)
    for condition in held:
        typer.secho(f"attndrift: {condition} holds", fg=typer.colors.RED, err=True)
    if held:
        raise typer.Exit(EXIT_CONDITION)
