"""What a run leaves behind: ``record.json``, with everything needed to trust or repeat it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from attndrift.files import plain, read_json, without_surrogates, write_json
from attndrift.formats import FormatError, check_format, numbered
from attndrift.sanitize import redact
from attndrift.study.pinning import same_model
from attndrift.study.schemas import RecordFile, SettingsFile, check_form
from attndrift.study.settings import NamedRun, RunSettings

# Imports inside functions: these packages take time to load, which only who needs them pays.

RECORD = "record.json"
SETTINGS = "settings.json"
FINGERPRINT_IMAGES = 8
"""Probe images on which a run's checkpoints prove what they hold."""

_PACKAGES = (
    "attndrift",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "safetensors",
    "tokenizers",
    "numpy",
    "pillow",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


@cache  # A study of a thousand runs would read each package's metadata a thousand times.
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def hardware(device: str, threads: int) -> dict[str, Any]:
    """The machine, as far as it decides results: processor, cores, accelerator; no host or user name."""
    import torch

    described: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "device": device,
    }
    if device.startswith("cuda"):
        described["accelerator"] = torch.cuda.get_device_name()
        described["cuda"] = torch.version.cuda
    return described


def determinism(device: str, threads: int, processes: int, precision: str) -> dict[str, Any]:
    """What repeating the run on the same machine would repeat, and what decides it.

    ``not_bit_for_bit`` says, in words, why two such runs may differ in their last bits; empty where the same
    settings, versions and machine give the same bytes. On a CPU they do: kernels there add in an order that the
    number of threads decides, and several processes add their gradients in the order of their numbers.
    """
    import torch

    chosen = torch.are_deterministic_algorithms_enabled()
    described: dict[str, Any] = {
        "device": device,
        "threads": threads,
        "processes": processes,
        "precision": precision,
        "deterministic_algorithms": chosen,
        "not_bit_for_bit": [],
    }
    if device.startswith("cpu"):
        return described
    reasons = []
    if not chosen:
        reasons.append(
            f"torch may choose kernels on {device} that add in no fixed order (torch.use_deterministic_algorithms)"
        )
    if device.startswith("cuda"):
        backends = torch.backends.cuda
        described |= {
            "attention_kernels": [
                name
                for name, enabled in (
                    ("flash", backends.flash_sdp_enabled()),
                    ("memory_efficient", backends.mem_efficient_sdp_enabled()),
                    ("cudnn", backends.cudnn_sdp_enabled()),
                    ("math", backends.math_sdp_enabled()),
                )
                if enabled
            ],
            "tf32": {"matmul": backends.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32},
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        }
        if not chosen:
            reasons.append("the backward pass of fused attention may add in no fixed order")
        if described["cublas_workspace"] not in (":4096:8", ":16:8"):
            reasons.append("cuBLAS may split sums differently (CUBLAS_WORKSPACE_CONFIG=:4096:8)")
        if torch.backends.cudnn.benchmark:
            reasons.append("cuDNN chooses its kernels by their speed of the moment (torch.backends.cudnn.benchmark)")
        if processes > 1:
            reasons.append("NCCL may add gradients in another order")
    described["not_bit_for_bit"] = reasons
    return described


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_settings(folder: Path, run: NamedRun, study: str) -> None:
    """Write the settings of a run into its folder."""
    content = {
        "run_id": run.run_id,
        "study": study,
        "hash": run.settings.hash,
        "model_revision": run.model_revision,
        "settings": run.settings.to_json(),
    }
    write_json(folder / SETTINGS, redact(numbered("run", content)))


def read_settings(folder: Path) -> dict[str, Any]:
    """What :func:`write_settings` has written into ``folder``. Raises :class:`~attndrift.formats.FormatError`."""
    content = read_json(folder / SETTINGS)
    check_format("run", content, folder)
    return check_form(SettingsFile, content, folder / SETTINGS)


def differing_settings(there: object, settings: RunSettings) -> dict[str, tuple[Any, Any]]:
    """Settings in which ``there``, as :meth:`RunSettings.to_json` gave them, differs: name -> (there, here).

    Revisions of one model are no such difference (see :func:`attndrift.study.pinning.changed_revision`), nor are trackers,
    which change no result.
    """
    # Secrets are not stored, so both sides are compared without them.
    here = redact(plain(settings.to_json()))
    stored: dict[str, Any] = redact(dict(there)) if isinstance(there, Mapping) else {}
    return {
        name: (stored.get(name), here.get(name))
        for name in sorted(set(stored) | set(here))
        if stored.get(name) != here.get(name)
        and name != "trackers"
        and not (name == "model" and same_model(stored.get(name), here.get(name)))
    }


def changed_settings(folder: Path, settings: RunSettings) -> dict[str, tuple[Any, Any]]:
    """Settings in which the run in ``folder`` differs from ``settings``, as :func:`differing_settings` gives them."""
    return differing_settings(read_settings(folder).get("settings"), settings) if (folder / SETTINGS).is_file() else {}


def name_differences(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """The first few of :func:`differing_settings`, in words."""
    return "; ".join(f"`{name}` was {there!r}, now {here!r}" for name, (there, here) in list(changed.items())[:5])


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of the run in ``folder``, or None where there is none yet.

    Raises ``ValueError`` for a damaged one, and :class:`~attndrift.formats.FormatError`.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        return check_record(read_json(path), path)
    except FormatError:
        raise
    except ValueError as error:
        raise ValueError(f"{error}; remove the run's folder to run it again") from error


def check_record(content: object, where: Path | str) -> dict[str, Any]:
    """``content``, the JSON value of a ``record.json`` called ``where``, if it is a run's.

    Raises ``ValueError`` for one of another form, and :class:`~attndrift.formats.FormatError`.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{where}: not the record of a run")
    check_format("run", content, where)
    return check_form(RecordFile, without_surrogates(content), where)


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write ``record.json``, whole or not at all, without secrets. It is the last thing that a run writes."""
    write_json(folder / RECORD, redact(numbered("run", record)))
