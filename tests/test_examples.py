"""The scripts in ``examples/`` run as they are, with tiny budgets, and show the drift."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from attndrift.results.tables import read_tables

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = ["--steps", "3"]


def _load(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    if hasattr(module, "PROBE"):
        module.PROBE, module.BATCH = 16, 8
    return module


def test_every_example_is_tested_and_short() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"plain_loop", "trainer", "lightning_module"}
    for name in names:
        assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 60, name


def test_the_plain_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch = _load("plain_loop").main([*TINY, "--output", str(tmp_path / "drift")])
    assert [step for step, _ in watch.drift] == [0, 3]
    assert watch.drift[-1][1].weight_drift > 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in printed] == ["drift at step 0", "drift at step 3"]
    assert read_tables(tmp_path / "drift").runs["dataset"].tolist() == ["tiles"]


@pytest.mark.slow
def test_the_plain_loop_with_a_budget(capsys: pytest.CaptureFixture[str]) -> None:
    watch = _load("plain_loop").main([*TINY, "--budget", "0.999"])
    assert float(watch.drift[-1][1].cka_mean) >= 0.999
    assert "guard at step 3: cka_mean" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_the_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    callback = _load("trainer").main(TINY)
    assert [step for step, _ in callback.drift] == [0, 3]
    assert callback.drift[0][1].weight_drift == 0.0
    assert callback.drift[-1][1].weight_drift > 0
    assert "drift at step 3: entropy" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::Warning")
def test_the_lightning_module(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    callback = _load("lightning_module").main(TINY)
    assert [step for step, _ in callback.drift] == [0, 3]
    assert callback.drift[-1][1].weight_drift > 0
    assert "drift at step 3: entropy" in capsys.readouterr().out


def test_an_example_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        _load("plain_loop").main(["--help"])
    assert ended.value.code == 0
    assert "--steps" in capsys.readouterr().out
