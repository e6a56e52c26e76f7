"""Two checkouts of attndrift compared on one GPU, part by part; `benchmarks/gpu.sh` prepares them and calls this."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS = 480.0
TINY_LIMIT_SECONDS = 3600.0
"""Of the tiny form, which tries the script out on whatever machine there is."""
ROUNDS = 3
NO_TESTS = 5
"""What pytest ends with where every test was skipped: without Triton there is no kernel to test."""
TESTS_SECONDS = 90.0
"""Most that the kernels' tests may take."""
DRIVER_SECONDS = 200.0
"""No further round of the drivers begins after this."""

STUDY = """
name: gpu
shared: {{model: "{model}", dataset: tiles, selection: test, train_per_class: {images}, probe_size: 50, test_limit: 100,
  batch_size: {batch}, learning_rate: 1e-5, evaluations_per_epoch: 1, monitor_zero_shot_images: 0, map_images: 0, device: {device}}}
runs:
"""
OLD_NAMES = {"selection: test": "protocol: seed", "monitor_zero_shot_images": "track_size"}
"""Of settings, as checkouts before version 0.2 call them."""

WITHIN: tuple[tuple[str, str, float | None], ...] = (
    ("forward, observed", "forward", 1.05),
    ("step, observed", "step", 1.05),
    ("step, APR with cached teacher", "step", 1.10),
    ("step, APR with live teacher", "step", 1.45),
    ("step, entropy floor", "step", None),
    ("drift, reference included", "two forward passes of the probe images", 1.15),
    ("whole run, a step", "step", 1 / 0.8),
)
"""Rows of NEW that are compared with each other, with targets; the same with CUDA graphs."""


class OutOfTimeError(Exception):
    """The eight minutes are over."""


@dataclass
class Comparison:
    """Both checkouts, and what was found so far."""

    trees: Mapping[str, Path]
    scratch: Path
    tiny: bool
    started: float = field(default_factory=time.monotonic)
    rows: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    checks: dict[str, str] = field(default_factory=dict)

    @property
    def limit(self) -> float:
        return TINY_LIMIT_SECONDS if self.tiny else LIMIT_SECONDS

    @property
    def images_per_class(self) -> int:
        return 8 if self.tiny else 128

    def left(self) -> float:
        return self.limit - (time.monotonic() - self.started)

    def environment(self, side: str) -> dict[str, str]:
        """Variables of a process that uses the attndrift of ``side``, with a cache of its own."""
        own = {"PYTHONPATH": str(self.trees[side] / "src"), "ATTNDRIFT_CACHE": str(self.scratch / f"cache-{side}")}
        return os.environ | own

    def process(self, side: str, arguments: Sequence[str], seconds: float | None = None) -> str:
        """What a Python process prints that uses the attndrift of ``side``. Raises RuntimeError with its last words."""
        limit = min(self.left(), seconds or self.limit)
        if limit <= 0:
            raise OutOfTimeError
        try:
            done = subprocess.run(
                [sys.executable, *arguments], env=self.environment(side), cwd=self.trees[side],
                capture_output=True, text=True, timeout=limit, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise OutOfTimeError from error
        if done.returncode and not (arguments[:2] == ["-m", "pytest"] and done.returncode == NO_TESTS):
            words = (done.stderr or done.stdout)[-800:]
            raise RuntimeError(f"{side}: {' '.join(arguments)[:120]} ended with {done.returncode}: {words}")
        return done.stdout

    def note(self, row: str, side: str, seconds: float) -> None:
        self.rows.setdefault(row, {"base": [], "new": []})[side].append(seconds)

    # ----------------------------------------------------------------------------------------------- the parts

    def kernel_tests(self) -> None:
        options = ["-q", "-rs", "-p", "no:cacheprovider", "tests/test_kernels.py"]
        printed = self.process("new", ["-m", "pytest", *options], None if self.tiny else TESTS_SECONDS)
        self.checks["kernels' tests (new)"] = "; ".join(printed.strip().splitlines()[-2:])

    def drivers(self) -> None:
        """Both checkouts in turn, in changing order."""
        driver = [str(ROOT / "benchmarks" / "gpu_driver.py"), *(["--tiny"] if self.tiny else [])]
        for place in range(ROUNDS):
            if place and time.monotonic() - self.started > DRIVER_SECONDS:
                break
            for side in ("base", "new") if place % 2 == 0 else ("new", "base"):
                for row, seconds in json.loads(self.process(side, driver).splitlines()[-1]).items():
                    self.note(row, side, seconds)
                say(f"drivers, round {place + 1} of {ROUNDS}: {side}")

    def study_file(self, side: str, name: str, runs: Sequence[str]) -> Path:
        path = self.scratch / f"{name}-{side}.yaml"
        head = STUDY.format(
            model="config:tiny" if self.tiny else "config:vit-base-patch32",
            images=self.images_per_class,
            batch=8 if self.tiny else 64,
            device="cuda" if torch.cuda.is_available() else "cpu",
        )
        settings = self.trees[side] / "src" / "attndrift" / "study" / "settings.py"
        if "monitor_zero_shot_images" not in settings.read_text(encoding="utf-8"):
            for new, old in OLD_NAMES.items():
                head = head.replace(new, old)
        path.write_text(head + "".join(f"  - {run}\n" for run in runs), encoding="utf-8")
        return path

    def run_command(self, path: Path, folder: Path) -> list[str]:
        return ["-m", "attndrift", "run", str(path), "--output", str(folder)]

    def whole_runs(self) -> None:
        """Seconds of a step in whole runs: what a longer run takes beyond a shorter one, measurements and states included."""
        short, long = (1, 3) if self.tiny else (2, 22)
        graphs = {"": "false", ", CUDA graph": "true"} if torch.cuda.is_available() else {"": "false"}
        for suffix, value in graphs.items():
            runs = [f"{{method: full, seed: 1, cuda_graphs: {value}, epochs: {epochs}}}" for epochs in (short, long)]
            for side in ("base", "new"):
                path = self.study_file(side, f"whole-{value}", runs)
                folder = self.scratch / f"whole-{side}-{value}"
                self.process(side, self.run_command(path, folder))
                records = [json.loads(one.read_text(encoding="utf-8")) for one in folder.glob("runs/*/record.json")]
                first, second = sorted(record["time"]["phases"]["training"] for record in records)
                steps = 10 * self.images_per_class / (8 if self.tiny else 64) * (long - short)
                self.note(f"whole run, a step{suffix}", side, (second - first) / steps)
                say(f"whole runs{suffix}: {side}")
            name = f"final weights of whole runs, new against base{suffix}"
            self.checks[name] = difference(*(self.scratch / f"whole-{side}-{value}" for side in ("base", "new")))

    def resumption(self) -> None:
        """A run is killed after its first saved state and started again; its weights must be those of a run that was not."""
        path = self.study_file("new", "resumed", [f"{{method: full, seed: 1, epochs: {12 if self.tiny else 16}}}"])
        whole, killed = self.scratch / "undisturbed", self.scratch / "resumed"
        self.process("new", self.run_command(path, whole))
        command = [sys.executable, *self.run_command(path, killed)]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, env=self.environment("new"), stdout=quiet, stderr=quiet) as process:
            while process.poll() is None and not any(killed.glob("runs/*/resume/*/*")):
                time.sleep(0.01)
                if self.left() <= 0:
                    process.kill()
                    raise OutOfTimeError
            alive = process.poll() is None
            process.kill()
        self.process("new", self.run_command(path, killed))
        how = "killed after a saved state" if alive else "NOT killed: it had ended before"
        self.checks["resumed run (new)"] = f"{how}; {difference(whole, killed)}"


def say(line: str) -> None:
    typer.echo(line, err=True)


def difference(one: Path, other: Path) -> str:
    """The largest difference of the checkpoints of two study folders."""
    files = sorted(path.relative_to(one) for path in one.glob("runs/*/checkpoints/**/*.safetensors"))
    common = [file for file in files if (other / file).is_file()]
    if not common or len(common) != len(files):
        return f"checkpoints cannot be compared: {len(common)} of {len(files)} files are in both"
    largest = 0.0
    for file in common:
        left, right = load_file(one / file), load_file(other / file)
        if left.keys() != right.keys():
            return f"{file} holds other weights"
        largest = max(largest, *(float((left[key].double() - right[key].double()).abs().max()) for key in left))
    return f"{len(common)} files, largest difference {largest:.3g}"


# ------------------------------------------------------------------------------------------------- the outcome


def compared(rows: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """A row each: median seconds of both, and the median, smallest and largest ratio new / base of a round."""
    found = []
    for row, sides in rows.items():
        ratios = [new / base for base, new in zip(sides["base"], sides["new"], strict=False)]
        if ratios:
            found.append({
                "row": row, "base ms": 1e3 * statistics.median(sides["base"]), "new ms": 1e3 * statistics.median(sides["new"]),
                "new / base": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "n": len(ratios),
            })  # fmt: skip
    return found


def within(rows: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """Rows of NEW against each other, with their targets."""
    found = []
    for what, against, at_most in WITHIN:
        for suffix in ("", ", CUDA graph"):
            # Drift is not captured.
            own, other = rows.get(what + suffix), rows.get(against + suffix)
            if own and other and own["new"] and other["new"]:
                ratio = statistics.median(own["new"]) / statistics.median(other["new"])
                found.append(
                    {"what": what + suffix, "against": against + suffix, "ratio": ratio, "at most": at_most or ""}
                )
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown."""
    if not rows:
        return ["(nothing was measured)"]
    names = list(rows[0])
    lines = [names, ["---"] * len(names)]
    lines += [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row.values()] for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def commit_of(tree: Path) -> str:
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "no git here"


def main(
    base: Annotated[Path, typer.Argument(help="The folder of a checkout.")],
    new: Annotated[Path, typer.Argument(help="The folder of another.")],
    output: Annotated[Path, typer.Option(help="The JSON file to write.")],
) -> None:
    """Compare two checkouts on one GPU in at most eight minutes."""
    tiny = os.environ.get("GPU_SH_TINY") == "1"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    with TemporaryDirectory() as scratch:
        work = Comparison({"base": base.resolve(), "new": new.resolve()}, Path(scratch), tiny)
        for part in (work.kernel_tests, work.drivers, work.whole_runs, work.resumption):
            name = part.__name__.replace("_", " ")
            try:
                part()
            except OutOfTimeError:
                work.checks[name] = "NOT finished: out of time"
            except (RuntimeError, OSError, KeyError, ValueError) as error:
                work.checks[name] = f"FAILED: {error}"
            say(f"{name}: done, {work.left():.0f} s left")
    found: dict[str, Any] = {
        "bench": "gpu", "device": device, "tiny": tiny, "torch": torch.__version__,
        "base": commit_of(base), "new": commit_of(new), "seconds": time.monotonic() - work.started,
        "compared": compared(work.rows), "within new": within(work.rows), "checks": work.checks, "rounds": work.rows,
    }  # fmt: skip
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(found, indent=1), encoding="utf-8")
    lines = [f"# new ({found['new']}) against base ({found['base']}) on {device}, torch {torch.__version__}"]
    lines += ["", *table(found["compared"]), "", "## Within new", "", *table(found["within new"]), "", "## Checks", ""]
    lines += [f"- {name}: {words}" for name, words in work.checks.items()]
    typer.echo("\n".join([*lines, "", f"{found['seconds']:.0f} s"]))
    if any(words.startswith(("FAILED", "NOT")) for words in work.checks.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
