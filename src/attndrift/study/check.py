"""Whether a study can run, said before its first run: models, images, packages, engine, device, disk, store.

The fast form runs before every study: it asks the hub for names and sizes, and reads no weights and no image. The full
form also loads tokenizers, counts images, and looks at a worker of a cluster.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attndrift.data.errors import some
from attndrift.extras import install_line
from attndrift.methods.registry import METHODS
from attndrift.study.check_checkpoints import check_checkpoints, fetch_checkpoints
from attndrift.study.check_disk import check_disk, existing, least_bytes
from attndrift.study.check_findings import Check, listed, size
from attndrift.study.check_images import check_images, fetch_images
from attndrift.study.check_methods import check_methods
from attndrift.study.check_models import check_models, sources_of
from attndrift.study.launchers import LAUNCHERS, Options, make_engine
from attndrift.study.pinning import RecordedCommits
from attndrift.study.settings import NamedRun, RunSettings, Study
from attndrift.study.storage import LocalStorage, check_folder
from attndrift.study.storage_url import is_url, open_storage
from attndrift.trackers import TRACKERS

# Imports inside functions: these packages take time to load, which only who needs them pays.


def check_study(
    study: Study, where: str | Path, *, engine: str = "in-process", options: Options | None = None, full: bool = False
) -> Check:
    """Everything that ``study`` needs to run in ``where`` with this engine.

    ``full``: also what takes seconds (tokenizers, images of each class, memory) or a worker of the cluster.
    Nothing that is wrong with the study raises.
    """
    options = options or Options()
    found = Check(study.name)
    _engine(found, engine, options)
    _packages(found, study, engine, str(where))
    place = _place(found, study, str(where))
    configs = check_models(found, study, place.recorded)
    check_checkpoints(found, study)
    check_images(found, study, configs, full=full)
    check_methods(found, study, configs)
    _hub(found)
    elsewhere = engine in LAUNCHERS and LAUNCHERS[engine].elsewhere
    free: float | None = None
    if not elsewhere:
        _device(found, study)
    elif full and not found.problems:
        from attndrift.study.check_worker import check_worker

        folder = None if is_url(str(where)) else existing(Path(where))
        free = check_worker(found, study, folder, engine, options)
    todo = [run.settings for run in study.runs if run.run_id not in place.done]
    written = least_bytes(todo, configs, options.jobs)
    # Weights are not needed to plan; images are.
    if full and not found.problems and all(download.what.startswith("model ") for download in found.downloads):
        planned = _estimates(found, study, options.jobs, place.done, elsewhere=elsewhere, free=free)
        written = max(written, planned)
    check_disk(found, str(where), written=written)
    return found


def fetch_downloads(study: Study, found: Check) -> None:
    """Download what :attr:`Check.downloads` lists. Raises ``ValueError`` for what cannot be had: before any run."""
    wanted = {download.what for download in found.downloads}
    for source, commit in sources_of(study, found):
        if f"model {source}" in wanted:
            from attndrift.models.hub import resolve_model

            resolved = resolve_model(source, recorded_commit=commit)
            resolved.fetch([*resolved.weights, *resolved.others])
    fetch_checkpoints(study, wanted)
    fetch_images(study, wanted)


def _engine(found: Check, engine: str, options: Options) -> None:
    try:
        make_engine(engine, options)
    except ValueError as error:
        found.add(f"engine {engine}", "problem", str(error), "correct the option")
    else:
        found.add(f"engine {engine}", "ok", "known" if LAUNCHERS[engine].elsewhere else f"{options.jobs} at a time")


_EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3")}


def _packages(found: Check, study: Study, engine: str, where: str) -> None:
    needed: dict[str, str] = {}
    for run in study.runs:
        packages = [*run.settings.facts.requires, *METHODS[run.settings.text_tower].requires]
        packages += [TRACKERS[name].package for name in run.settings.trackers]
        needed |= {name: f"pip install {name}" for name in packages if name}
    if engine in LAUNCHERS and LAUNCHERS[engine].package:
        launcher = LAUNCHERS[engine]
        needed[launcher.package] = install_line(launcher.extra) if launcher.extra else "install it"
    package = _EXTRAS.get(where.partition("://")[0]) if is_url(where) else None
    if package is not None:
        needed[package[0]] = install_line(package[1])
    for name, remedy in needed.items():
        if importlib.util.find_spec(name) is None:
            found.add(f"package {name}", "problem", "is not installed", remedy)
        else:
            found.add(f"package {name}", "ok", "is installed")


def _hub(found: Check) -> None:
    """One finding for all that the hub has and does not give: it is one fault."""
    if not found.out_of_reach:
        return
    from attndrift import hub_client

    reason = next(iter(found.out_of_reach.values()))
    found.add(
        f"hub {hub_client.endpoint()}",
        "problem",
        f"out of reach ({reason}), and not on this machine: {listed(found.out_of_reach)}",
        "connect, or name a mirror (HF_ENDPOINT); offline: give folders (docs/first-run.md); "
        "--set missing_sets=skip goes on without the transfer sets (`missing_sets: skip`), --set transfer=[] has none",
    )


# The place of the study, device, disk


@dataclass(frozen=True)
class _Place:
    """What a study left in its place: its runs as ``study.json`` has them, by name, and the names of those done."""

    recorded: dict[str, dict[str, Any]] = field(default_factory=dict)
    done: frozenset[str] = frozenset()


_ELSEWHERE = "choose another place with --output"


def _place(found: Check, study: Study, where: str) -> _Place:
    """Add what is found of the place, and note the commits of models with which its runs go on."""
    what = f"output {where}"
    try:
        place = open_storage(where)
        if isinstance(place, LocalStorage):
            check_folder(study, place.folder)
            parent = existing(place.folder)
            if not os.access(parent, os.W_OK | os.X_OK):
                found.add(what, "problem", f"{parent} cannot be written to", _ELSEWHERE)
                return _Place()
        from attndrift import hub_client

        recorded = hub_client.within(hub_client.SILENCE, place.recorded_runs)
    except ValueError as error:
        # The message ends with what to do.
        found.add(what, "problem", str(error))
        return _Place()
    except OSError as error:
        why = f"{error.filename or where}: {(error.strerror or str(error)).lower()}"
        remedy = _ELSEWHERE if not is_url(where) else "check its address and the credentials (docs/scale-out.md)"
        found.add(what, "problem", why, remedy)
        return _Place()
    except Exception as error:
        # Each store has errors of its own.
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        found.add(what, "problem", f"the store does not answer: {type(error).__name__}: {first}",
                  "check its address and the credentials (docs/scale-out.md)")  # fmt: skip
        return _Place()
    found.add(what, "ok", "a study that goes on" if recorded else "a new study")
    commits = RecordedCommits(recorded)
    for run in study.runs:
        try:
            commit = commits.of(run)
        except ValueError as error:
            found.add(f"model {run.settings.model}", "problem", str(error).removeprefix(f"{run.settings.model}: "))
            continue
        if commit is not None:
            found.commits[run.run_id] = commit
    # Of a store it is not asked: a request a run, and its checkpoints are not written to this disk.
    done = {run.run_id for run in study.runs if isinstance(place, LocalStorage) and recorded and _is_done(place, run)}
    return _Place({str(run["run_id"]): run for run in recorded}, frozenset(done))


def _is_done(place: LocalStorage, run: NamedRun) -> bool:
    try:
        return place.is_done(run.run_id)
    except ValueError:  # a damaged record, of which the run itself says what to do
        return False


def _device(found: Check, study: Study) -> None:
    from attndrift.study.launchers.processes import no_accelerator

    settings = [run.settings for run in study.runs]
    if no_accelerator(settings) and all(one.precision != "float16" for one in settings):
        # Told without torch, whose import takes longer than all the rest.
        found.add("device cpu", "ok", "1 core" if os.cpu_count() == 1 else f"{os.cpu_count()} cores")
        return
    from attndrift.study.resolved import device_of

    for one in {(one.device, one.precision): one for one in settings}.values():
        try:
            found.add(f"device {device_of(one)}", "ok", f"`device` {one.device}, `precision` {one.precision}")
        except ValueError as error:
            found.add(f"device {one.device}", "problem", str(error), "choose another with --set device=auto")


def _estimates(
    found: Check, study: Study, jobs: int, done: frozenset[str], *, elsewhere: bool, free: float | None
) -> float:
    """Add the memory that the dry run estimates, and what it cannot plan; bytes that are written in all.

    ``done``: runs that write nothing more. ``free``: memory of a worker.
    """
    from attndrift.study.plan import plan, runs_by_note

    planned = plan(study, elsewhere=elsewhere)
    for images in dict.fromkeys(row.images for row in planned if row.images):
        found.add(f"images of {images.partition(': ')[0]}", "ok", images.partition(": ")[2])
    for note, runs in runs_by_note(planned).items():
        what = f"run {runs[0]}" if len(runs) == 1 else f"{len(runs)} runs ({some(runs, 3)})"
        found.add(what, "problem", note, "correct the settings, or leave it out with --only")
    if not elsewhere:
        free = _free_memory(study.runs[0].settings)
    needed = jobs * max((row.memory_bytes or 0.0 for row in planned), default=0.0)
    if free is not None:
        detail = f"about {size(needed)} at most, {size(free)} free" + (" on the worker" if elsewhere else "")
        remedy = "a smaller --set batch_size, gradient_accumulation, or fewer --jobs" if needed > free else ""
        found.add("memory", "warning" if remedy else "ok", detail, remedy)
    todo = [row for row in planned if row.run_id not in done]
    scratch = jobs * max((row.scratch_bytes or 0.0 for row in todo), default=0.0)
    return scratch + sum(row.disk_bytes or 0.0 for row in todo)


def _free_memory(settings: RunSettings) -> float:
    import psutil

    from attndrift.study.resolved import device_of

    device = device_of(settings)
    if device.type == "cuda":
        import torch

        return float(torch.cuda.mem_get_info(device)[0])
    return float(psutil.virtual_memory().available)
