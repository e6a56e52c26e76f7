"""A study of one short run on a tiny CLIP, run to its end or interrupted, and what it leaves."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from attndrift.cli.progress import StudyConsole
from attndrift.files import read_json
from attndrift.study.executor import Executor
from attndrift.study.loading import parse_study
from attndrift.study.resources import StudyResources
from attndrift.study.runner import run_study
from attndrift.study.settings import Study

STUDY = """
name: small
description: '<script>alert("description")</script>'
shared: {model: %s, dataset: digits, train_per_class: 4, validation_per_class: 1, probe_size: 10, test_limit: 10, epochs: 3,
         batch_size: 20, learning_rate: 1e-3, monitor_zero_shot_images: 0, evaluations_per_epoch: 1, map_images: 1, threads: 1}
runs:
  - {method: lora, lora_rank: 2}
"""  # fmt: skip

STEPS = 6


def small_study(model: Path) -> Study:
    """Two optimiser steps an epoch, a state after each epoch."""
    return parse_study(STUDY % model, where="study.yaml")


def run_folder(study: Study, folder: Path) -> Path:
    return folder / "runs" / study.runs[0].run_id


def run(study: Study, folder: Path, *, at_step: tuple[int, Callable[[], None]] | None = None) -> dict[str, Any]:
    """Run ``study`` in ``folder``; ``at_step`` calls something after that step. Returns the run's record."""
    console = StudyConsole(console=Console(file=io.StringIO()))
    with Executor(StudyResources(folder.parent / "cache")) as execute:

        def work(run: Any, where: Path, reporter: Any) -> dict[str, Any]:
            step = reporter.step

            def stepped(done: int, total: int) -> None:
                step(done, total)
                if at_step is not None and done == at_step[0]:
                    at_step[1]()

            reporter.step = stepped
            return execute(run, where, reporter)

        run_study(study, folder, work, console)
    return read_json(run_folder(study, folder) / "record.json")


def interrupt(study: Study, folder: Path, step: int = 5) -> None:
    """Run ``study`` until ``step``, which leaves states behind, and stop as Ctrl-C does."""

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(study, folder, at_step=(step, stop))


def tables_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}
