"""Device and memory of a worker: asked of one, since the machine that a study is started on has others."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from attndrift.study.check_findings import Check, size
from attndrift.study.launchers import Options, make_engine
from attndrift.study.settings import Study
from attndrift.version import __version__

PATIENCE = 120.0
"""Seconds that a worker may take to answer; a busy cluster has none to spare for longer."""


def look(folder: str) -> dict[str, Any]:
    """What the machine that calls this has: plain values. ``folder``: one that the study's place lies in."""
    import psutil
    import torch

    devices = {"cpu": psutil.virtual_memory().available}
    if torch.cuda.is_available():
        devices["cuda"] = torch.cuda.mem_get_info()[0]
    if torch.backends.mps.is_available():
        devices["mps"] = devices["cpu"]
    return {
        "host": socket.gethostname(), "version": __version__, "cores": os.cpu_count(), "devices": devices,
        "sees_folder": os.path.isdir(folder),
    }  # fmt: skip


def check_worker(found: Check, study: Study, folder: Path | None, engine: str, options: Options) -> float | None:
    """Add what a worker of the cluster says of itself, and return its free memory in bytes; None where it is not known.

    ``folder``: where the study is, None for a store.
    """
    threads = max(run.settings.threads for run in study.runs)
    cores = options.cpus_per_run if options.cpus_per_run is not None else threads
    where = str(folder) if folder is not None else os.sep
    try:
        seen = {"ray": _on_ray, "slurm": _on_slurm}[engine](where, cores, options)
    except TimeoutError:
        found.add("worker", "warning", f"none answered within {PATIENCE:g} seconds",
                  "try again when the cluster is less busy, or check what a run asks of it")  # fmt: skip
        return None
    except Exception as error:
        # Ray and submitit have errors of their own.
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        found.add("worker", "problem", first, "see docs/scale-out.md")
        return None

    here = f"{seen['host']}: {seen['cores']} cores, " + ", ".join(
        f"{name} with {size(free)} free" for name, free in seen["devices"].items()
    )
    wanted = {run.settings.device for run in study.runs} - {"auto", *seen["devices"]}
    if seen["version"] != __version__:
        found.add("worker", "problem", f"{seen['host']} has attndrift {seen['version']}, this machine {__version__}",
                  "install one version on both")  # fmt: skip
    elif not seen["sees_folder"]:
        found.add("worker", "problem", f"{seen['host']} does not see {where}",
                  "put the study on a file system that all machines share, or in a store (--output s3://BUCKET/STUDY)")  # fmt: skip
    elif wanted:
        found.add("worker", "problem", f"`device` {', '.join(sorted(wanted))} is not there. {here}",
                  "ask for an accelerator (--gpus-per-run 1), or --set device=auto")  # fmt: skip
    else:
        found.add("worker", "ok", here)
        # A run takes an accelerator where it may.
        on_cpu = any(run.settings.device == "cpu" for run in study.runs)
        return float(seen["devices"]["cpu"] if on_cpu else seen["devices"].get("cuda", seen["devices"]["cpu"]))
    return None


def _on_ray(folder: str, cores: float, options: Options) -> dict[str, Any]:
    from attndrift.study.launchers.ray import cluster

    with cluster(options.address or os.environ.get("RAY_ADDRESS") or None, None) as ray:
        task = ray.remote(look).options(num_cpus=cores, num_gpus=options.gpus_per_run, max_retries=0)
        answer = task.remote(folder)
        try:
            seen: dict[str, Any] = ray.get(answer, timeout=PATIENCE)
        except ray.exceptions.GetTimeoutError as error:
            ray.cancel(answer, force=True)
            raise TimeoutError from error
        return seen


def _on_slurm(folder: str, cores: float, options: Options) -> dict[str, Any]:
    import submitit

    from attndrift.data.cache import cache_folder
    from attndrift.hub_client import within
    from attndrift.study.launchers.slurm import SlurmLauncher

    engine = make_engine("slurm", options)
    assert isinstance(engine, SlurmLauncher)
    jobs = (engine.folder or cache_folder() / "slurm" / "check").absolute()
    jobs.mkdir(parents=True, exist_ok=True, mode=0o700)
    executor = submitit.AutoExecutor(jobs / "%j", cluster=engine.cluster)
    parameters: dict[str, Any] = {"name": "attndrift-check", "cpus_per_task": int(cores)}
    if options.gpus_per_run:
        parameters["gpus_per_node"] = int(options.gpus_per_run)
    executor.update_parameters(**(parameters | engine.parameters | {"timeout_min": 5}))
    job = executor.submit(look, folder)
    try:
        return within(PATIENCE, job.result)
    finally:
        if not job.done(force_check=True):
            job.cancel()
