"""What a worker of a cluster says of its machine."""

from __future__ import annotations

import os
import shutil
import socket
from typing import Any

from attndrift.study.launchers.registry import Options, make_engine
from attndrift.version import __version__

# Imports inside functions: these packages take time to load, which only who needs them pays.

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


def on_ray(folder: str, cores: float, options: Options) -> dict[str, Any]:
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


def on_slurm(folder: str, cores: float, options: Options) -> dict[str, Any]:
    import submitit

    from attndrift.data.cache import cache_folder
    from attndrift.hub_client import within
    from attndrift.study.launchers.private_folder import private_folder
    from attndrift.study.launchers.slurm import SlurmLauncher

    engine = make_engine("slurm", options)
    assert isinstance(engine, SlurmLauncher)
    jobs = private_folder(engine.folder or cache_folder() / "slurm" / "check")
    executor = submitit.AutoExecutor(jobs / "%j", cluster=engine.cluster)
    parameters: dict[str, Any] = {"name": "attndrift-check", "cpus_per_task": int(cores)}
    if options.gpus_per_run:
        parameters["gpus_per_node"] = int(options.gpus_per_run)
    executor.update_parameters(**(parameters | engine.parameters | {"timeout_min": 5}))
    job = executor.submit(look, folder)
    try:
        return within(PATIENCE, job.result)
    finally:
        if job.done(force_check=True):
            shutil.rmtree(jobs, ignore_errors=True)
        else:
            job.cancel()
