"""``attndrift bench``: one command a benchmark. Parse, call, print; each benchmark is a file beside this one.

A benchmark returns a :class:`attndrift.bench.result.Result`, and its command here hands that to ``_deliver``.
Nothing that is slow to import is imported before a command runs.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from attndrift.bench.result import Result

app = typer.Typer(
    name="bench",
    help="Measure costs as ratios against a named alternative, in one run.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog="Example:  [bold]attndrift bench capture --pairs 15 --json[/bold]",
)

PairsOption = Annotated[int, typer.Option("--pairs", min=2, help="Interleaved pairs; medians are over these.")]
RoundsOption = Annotated[
    int | None, typer.Option("--pairs", min=2, help="Rounds of everything; medians are over these. Default: by cost.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, or auto: an accelerator where there is one.")]
PrecisionOption = Annotated[
    str, typer.Option("--precision", help="float32, bfloat16, or auto: bfloat16 on an accelerator.")
]
KeepOption = Annotated[
    bool, typer.Option("--keep-freed/--return-freed", help="On a CPU: let the C library keep released memory.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def _can_be_written(path: Path | None) -> Path | None:
    """Before anything is measured: half an hour's result must not be lost to a name that cannot be written."""
    if path is None:
        return None
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        raise typer.BadParameter(f"nothing can be written in {path.parent} ({error.strerror})") from error


OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Also write the result to this JSON file.", callback=_can_be_written),
]


def _deliver(result: Result, output: Path | None, as_json: bool) -> None:
    """Print the result, and write it where that was asked for."""
    from attndrift.bench.result import print_result, write_result
    from attndrift.files import plain

    found = result.to_json()
    if as_json:
        typer.echo(json.dumps(plain(found), indent=1, ensure_ascii=False))
    else:
        print_result(found)
    if output is not None:
        write_result(found, output)


def _say(line: Any) -> None:
    """Progress, beside the result."""
    typer.echo(line, err=True)


@app.command(
    epilog="Example:  [bold]attndrift bench capture --model config:vit-base-patch32 --batch 32 --pairs 15[/bold]"
)
def capture(
    model: Annotated[
        str | None, typer.Option("--model", help="Observe this model alone; default: ViT-B/32 and ViT-L/14-336.")
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Images a forward pass.")] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="time, memory or probe (drift on 200 images). Repeatable.")
    ] = None,
    pairs: RoundsOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    keep_freed: KeepOption = True,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """What observing costs: the forward pass with all four metrics, against the bare one and against eager maps."""
    from attndrift.bench import capture as bench

    cases = bench.CASES if model is None else (bench.case_of(model, batch),)
    if model is None and batch is not None:
        raise typer.BadParameter("--batch belongs to a model: name it with --model")
    found = bench.capture(
        cases=cases,
        pairs=pairs,
        only=only or bench.PARTS,
        probe=model or bench.PROBE,
        device=device,
        precision=precision,
        keep_freed=keep_freed,
        progress=_say,
    )
    _deliver(found, output, as_json)


@app.command(epilog="Example:  [bold]attndrift bench train --pairs 5 --output train.json[/bold]")
def train(
    model: Annotated[str, typer.Option("--model", help="The model to train in full.")] = "config:vit-base-patch32",
    batch: Annotated[int, typer.Option("--batch", min=2, help="Images a step.")] = 64,
    only: Annotated[list[str] | None, typer.Option("--only", help="time, memory or profile. Repeatable.")] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option("--kind", help="plain, observed, cached, live, reference, reference_live, teacher. Repeatable."),
    ] = None,
    pairs: PairsOption = 5,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    keep_freed: KeepOption = True,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a step costs that is observed, or that preserves attention, against one without and the reference's."""
    from attndrift.bench import train as bench

    found = bench.train(
        kinds=kind or tuple(bench.WORDS),
        model=model,
        batch=batch,
        pairs=pairs,
        device=device,
        precision=precision,
        only=only or bench.PARTS,
        keep_freed=keep_freed,
        progress=_say,
    )
    _deliver(found, output, as_json)


@app.command(epilog="Example:  [bold]attndrift bench growth --output growth.json[/bold]")
def growth(
    pairs: PairsOption = 5,
    device: DeviceOption = "auto",
    keep_freed: KeepOption = True,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """How the cost of observing grows with tokens, layers and heads, and that of measuring with probe images."""
    from attndrift.bench.growth import growth as measure

    _deliver(measure(pairs=pairs, device=device, keep_freed=keep_freed, progress=_say), output, as_json)


@app.command(epilog="Example:  [bold]attndrift bench startup[/bold]")
def startup(pairs: PairsOption = 15, output: OutputOption = None, as_json: JsonOption = False) -> None:
    """What `import attndrift` and `attndrift --help` take, in fresh processes."""
    from attndrift.bench.startup import startup as measure

    _deliver(measure(pairs=pairs, progress=_say), output, as_json)


@app.command(epilog="Example:  [bold]attndrift bench analysis --runs 1000[/bold]")
def analysis(
    runs: Annotated[int, typer.Option("--runs", min=100, help="Runs of the synthetic study.")] = 10_000,
    grows: Annotated[bool, typer.Option("--growth", help="Also measure smaller studies: the exponent.")] = False,
    pairs: PairsOption = 3,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """What the analysis of a large study costs, in time and memory, against a plain one."""
    from attndrift.bench.analysis import analysis as measure

    _deliver(measure(runs=runs, pairs=pairs, grows=grows, progress=_say), output, as_json)


@app.command(epilog="Example:  [bold]attndrift bench study --output study.json[/bold]")
def study(
    pairs: Annotated[int, typer.Option("--pairs", min=1, help="How often both sides run the whole study.")] = 1,
    runs: Annotated[
        int | None, typer.Option("--runs", min=4, help="Only the first so many rows of the matrix.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Epochs of a run; the reduced budget has 2.")
    ] = None,
    script: Annotated[
        bool, typer.Option("--script/--no-script", help="Run the plain script, too; or the arithmetic alone.")
    ] = True,
    device: Annotated[
        str, typer.Option("--device", help="cpu, with the embedded model, or cuda, with a ViT-B/32 of random weights.")
    ] = "cpu",
    model: Annotated[str | None, typer.Option("--model", help="Another model, such as config:tiny.")] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Runs at a time; default: one a core, and one on cuda.")
    ] = None,
    workers: Annotated[
        int,
        typer.Option("--workers", min=0, help="Processes that read images for the script; 0: it reads them itself."),
    ] = 0,
    bare: Annotated[bool, typer.Option("--floor/--no-floor", help="Measure the study's arithmetic alone, too.")] = True,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a study of 21 runs costs, against the plain script and against its arithmetic alone; minutes."""
    from attndrift.bench.study import study as measure

    found = measure(
        pairs=pairs,
        runs=runs,
        epochs=epochs,
        script=script,
        device=device,
        model=model,
        jobs=jobs,
        workers=workers,
        bare=bare,
        progress=_say,
    )
    _deliver(found, output, as_json)


@app.command(epilog="Example:  [bold]attndrift bench runs --method full --jobs 1 --jobs 2[/bold]")
def runs(
    method: Annotated[
        list[str] | None, typer.Option("--method", help="full or lora; default both. Repeatable.")
    ] = None,
    jobs: Annotated[
        list[int] | None, typer.Option("--jobs", min=1, help="Runs at a time on the device; default 1. Repeatable.")
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", min=2, help="Epochs that are trained; 20 are reckoned.")] = 2,
    images: Annotated[int, typer.Option("--images", min=8, help="Training images; EuroSAT has 21,600.")] = 21_600,
    model: Annotated[str, typer.Option("--model", help="The model to train.")] = "config:vit-base-patch32",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images a step.")] = 64,
    setting: Annotated[list[str] | None, typer.Option("--set", help="key=value of the runs. Repeatable.")] = None,
    device: DeviceOption = "auto",
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """How many EuroSAT runs of 20 epochs an hour has, one at a time and several at once on one device."""
    from attndrift.bench.runs import METHODS
    from attndrift.bench.runs import runs as measure
    from attndrift.study.loading import parse_overrides

    found = measure(
        methods=tuple(method or METHODS),
        jobs=tuple(jobs or (1,)),
        epochs=epochs,
        images=images,
        model=model,
        batch=batch,
        overrides=parse_overrides(setting or []),
        device=device,
        progress=_say,
    )
    _deliver(found, output, as_json)


@app.command(epilog="Example:  [bold]attndrift bench scale --pairs 3 --output scale.json[/bold]")
def scale(
    pairs: PairsOption = 3,
    images: Annotated[int, typer.Option("--images", min=8, help="Training images a class; a run's length.")] = 24,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a second worker is worth: a study of eight runs on Ray with two workers of one core, against one."""
    from attndrift.bench.scale import scale as measure

    _deliver(measure(pairs=pairs, images=images, progress=_say), output, as_json)
