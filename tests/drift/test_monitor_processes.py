"""Several processes measure together what one measures alone: two of them, with gloo, on a tiny CLIP."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, distributed, multiprocessing, nn

from attndrift.drift import Alert, Drift, DriftMonitor, DriftWatch
from attndrift.metrics import StructureAccumulator
from attndrift.models import load_model
from attndrift.process_group import DivergedError, OtherProcessError, Processes
from attndrift.results.tables import read_tables
from training_loops import in_processes

WORLD = 2


def _model() -> nn.Module:
    torch.manual_seed(0)
    targets = r".*vision_model.*\.(q_proj|v_proj)"
    return get_peft_model(load_model("config:tiny"), LoraConfig(r=2, target_modules=targets))


def _images(count: int) -> Tensor:
    return torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def _change(model: nn.Module, factor: float = 1.0) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1 * factor)


def _cases() -> dict[str, Any]:
    """Probes of even and uneven shares, in batches that leave a process without an image of its own."""
    batches = _images(9)
    return {
        "even": _images(8),
        "uneven": _images(7),
        "few": _images(5),
        "odd batches": lambda: batches.split([1, 1, 4, 3]),
    }


def _measure(model: nn.Module, probe: Any, **options: Any) -> Drift:
    _change(model, 0.0)
    monitor = DriftMonitor(model, probe, batch_size=2, **options)
    _change(model)
    return monitor.measure()


def _numbers(drift: Drift) -> dict[str, Any]:
    return {"values": drift.values(), "layers": drift.layers(), "images": drift.structure.images}


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD,
        timeout=datetime.timedelta(seconds=60),
    )  # fmt: skip
    # A seed of its own, as processes in training have: nothing may depend on it.
    torch.manual_seed(rank)
    found: dict[str, Any] = {name: _numbers(_measure(_model(), probe)) for name, probe in _cases().items()}
    found["alone"] = _numbers(_measure(_model(), _images(7), distributed=False)) if rank == 0 else None
    found["errors"] = _errors(rank)
    found["watch"] = _watch(rank, Path(folder))
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


def _errors(rank: int) -> list[str]:
    names = []
    monitor = DriftMonitor(_model(), _images(6))
    if rank == 1:
        with torch.no_grad():
            next(p for n, p in monitor.model.named_parameters() if "class_embedding" in n).fill_(float("nan"))
    for attempt in (monitor.measure, lambda: DriftMonitor(_model(), _images(1))):
        try:
            attempt()
        except (DivergedError, OtherProcessError, ValueError) as error:
            names.append(f"{type(error).__name__}: {error}")
    return names


def _watch(rank: int, folder: Path) -> dict[str, Any]:
    model = nn.parallel.DistributedDataParallel(_model())
    monitor = DriftMonitor(model, _images(7))
    alerts = [Alert("embedding_drift", above=1e-4, action="stop")]
    lines: list[str] = []
    watch = DriftWatch(monitor, 1, alerts=alerts, folder=folder / "run", echo=lines.append)
    watch.start()
    # Only the first process has the file of the best state; the others get it from there.
    _change(model, 1.0 + rank)
    watch.step(1)
    left = max(float(p.detach().abs().max()) for n, p in model.named_parameters() if "lora_B" in n)
    return {"stopped": watch.should_stop, "left": left, "lines": len(lines), "best": watch.best_step}


@pytest.mark.slow
@pytest.mark.ci("torchrun")
def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=WORLD)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(WORLD))
    for name, probe in _cases().items():
        alone = json.loads(json.dumps(_numbers(_measure(_model(), probe))))
        assert first[name] == second[name], f"{name}: every process has the same numbers"
        assert first[name]["images"] == alone["images"], "a padded image does not count"
        _close(first[name], alone, name)
    _close(first["alone"], first["uneven"], "alone")

    assert first["errors"][0].startswith("OtherProcessDiverged: nothing was measured: process 1 failed")
    assert second["errors"][0].startswith("DivergedError")
    assert first["errors"][1] == second["errors"][1] == "ValueError: 1 probe images cannot be shared by 2 processes"

    for rank, found in enumerate((first["watch"], second["watch"])):
        assert found == {"stopped": True, "left": 0.0, "lines": 2 if rank == 0 else 0, "best": 0}
    assert len(read_tables(tmp_path / "run").history) == 2
    assert sorted(os.listdir(tmp_path / "run")) == [
        "alerts.parquet", "best.safetensors", "history.parquet", "layers.parquet", "runs.parquet",
    ]  # fmt: skip


@pytest.mark.slow  # a minute; two processes of a plain loop are in the fast group
@pytest.mark.ci("torchrun")
def test_a_trainer_of_two_processes_measures_what_one_process_does(tmp_path: Path) -> None:
    """``torchrun`` with two processes: shares, sums, and weights that are bit for bit those without a monitor."""
    first, second = in_processes("trainer_in_processes.py", tmp_path, WORLD)
    assert set(first) == {"full", "lora, checkpointing", "frozen, autocast", "protected", "stopped"}
    for way, found in first.items():
        other = second[way]
        assert found["weights"] == other["weights"], f"{way}: both processes hold one model"
        for one, two, alone in zip(found["together"], other["together"], found["alone"], strict=True):
            assert one == two, f"{way}: both processes have the same numbers"
            _close(one, alone, way)
            assert one["images"] == 7
        # Of seven images a process runs four, a padded one among them, and never all.
        assert found["shares"] == other["shares"] == [4] * len(found["together"]), way
        assert found["together"][0]["values"]["weight_drift"] == 0
        assert found["together"][-1]["values"]["weight_drift"] > 0
        assert len(found["lines"]) == len(found["together"])
        assert other["lines"] == []
        assert len(read_tables(tmp_path / "tables" / way).history) == len(found["together"])
        if way == "stopped":
            assert found["steps"] == 2
            assert found["weights"] == found["untrained"], "the best state is back in both"
        else:
            assert found["weights"] != found["untrained"]
        if "unwatched" in found:
            assert found["unwatched"] == found["weights"], f"{way}: weights with and without the monitor"


def _close(left: Any, right: Any, where: str) -> None:
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for name in left:
            _close(left[name], right[name], f"{where}.{name}")
    elif isinstance(left, list):
        for a, b in zip(left, right, strict=True):
            _close(a, b, where)
    elif left is None or right is None:
        assert left is right, where
    else:
        assert left == pytest.approx(right, abs=1e-6, rel=1e-6), where


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 5))
def test_shares_cover_every_image_once_and_have_one_size(sizes: list[int], count: int) -> None:
    images = torch.arange(sum(sizes))
    owned: list[int] = []
    seen = 0
    for size in sizes:
        batch = images[seen : seen + size]
        parts = [Processes(rank, count).share(batch, seen) for rank in range(count)]
        assert {len(part) for part, _ in parts} == {-(-size // count)}
        owned += [int(image) for part, own in parts for image in part[:own]]
        assert all(int(image) in range(seen, seen + size) for part, _ in parts for image in part)
        for rank, (part, own) in enumerate(parts):
            assert all(int(image) % count == rank for image in part[:own])
        seen += size
    assert sorted(owned) == images.tolist()


def test_sums_of_equal_processes_have_the_means_of_one() -> None:
    attention = [torch.rand(3, 2, 5) for _ in range(2)]
    accumulator = StructureAccumulator()
    with pytest.raises(ValueError, match="before combine"):
        accumulator.combine(lambda values: values)
    accumulator.update(attention, [torch.rand(3, 2) for _ in range(2)])
    before = accumulator.compute()
    accumulator.combine(lambda values: 3 * values)
    after = accumulator.compute()
    assert after.images == 3 * before.images
    for name in ("entropy", "erf95", "gini", "head_diversity", "cls_mass"):
        torch.testing.assert_close(after.heads(name), before.heads(name))


def test_rows_come_back_in_the_order_of_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gathering of three processes, with their messages passed by hand."""
    sizes, count, images = [4, 1, 5], 3, torch.arange(20.0).reshape(10, 2)
    rows = []
    for rank in range(count):
        seen, parts = 0, []
        for size in sizes:
            parts.append(Processes(rank, count).share(images[seen : seen + size], seen)[0])
            seen += size
        rows.append(torch.cat(parts))

    def all_gather(into: list[Tensor], _: Tensor) -> None:
        for target, source in zip(into, rows, strict=True):
            target.copy_(source)

    monkeypatch.setattr(distributed, "all_gather", all_gather)
    monkeypatch.setattr(distributed, "get_backend", lambda: "gloo")
    for rank in range(count):
        assert torch.equal(Processes(rank, count).join(rows[rank], sizes), images)
