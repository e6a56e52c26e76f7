"""Device and memory of a worker: asked of one, since the machine that a study is started on has others."""

from __future__ import annotations

import os
from pathlib import Path

from attndrift.study.check_findings import Check, size
from attndrift.study.launchers import LAUNCHERS, Options
from attndrift.study.launchers.worker import PATIENCE
from attndrift.study.settings import Study
from attndrift.version import __version__


def check_worker(found: Check, study: Study, folder: Path | None, engine: str, options: Options) -> float | None:
    """Add what a worker of the cluster says of itself, and return its free memory in bytes; None where it is not known.

    ``folder``: where the study is, None for a store.
    """
    ask = LAUNCHERS[engine].worker
    if ask is None:
        return None
    threads = max(run.settings.threads for run in study.runs)
    cores = options.cpus_per_run if options.cpus_per_run is not None else threads
    where = str(folder) if folder is not None else os.sep
    try:
        seen = ask(where, cores, options)
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
