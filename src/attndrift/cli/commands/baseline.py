"""``attndrift baseline``: one pretrained model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from attndrift.cli.app import app
from attndrift.cli.console import MODELS, JsonOption, example, need, number_option, print_json, say


@app.command(rich_help_panel=MODELS, epilog=example("attndrift baseline embedded --images photos --zero-shot objects"))
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
    limit: Annotated[int | None, number_option("--limit", least=1, help="Images a set; default: all.")] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for tables, maps and page of --images.")
    ] = Path("baseline"),
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out and list images that cannot be decoded.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """One model as it is: zero-shot accuracy with intervals, and with --images its attention."""
    # Without --images the default sets are measured.
    need(*(["study"] if zero_shot or images is None else []), *(["report"] if images is not None else []))
    from attndrift.cli.progress import progress_bar
    from attndrift.retention.baseline import DEFAULT_SETS, refuse_zero_shot, zero_shot_baseline
    from attndrift.retention.zero_shot import DEFAULT_TEMPLATES

    found: dict[str, Any] = {"model": None, "scores": [], "absent": {}, "structure": None}
    if images is not None:
        from attndrift.compare.attention_structure import measure_structure, print_structure, write_structure
        from attndrift.compare.image_folder import refuse_output_among_images

        refuse_output_among_images(output, images)
        if zero_shot:  # before anything is measured and written
            refuse_zero_shot(model, zero_shot)
        structure = measure_structure(model, images, skip_unreadable=skip_unreadable, progress=say)
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
        print_json(found)
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
