"""Resumable states: whole or absent, and a damaged one is passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from attndrift.files import read_json
from attndrift.training import resume


def _publish(root: Path, step: int) -> Path:
    scratch = root / ".scratch"
    scratch.mkdir(parents=True)
    (scratch / "model.safetensors").write_bytes(bytes([step % 256]) * 1000)
    (scratch / "optimizer.pt").write_bytes(b"o" * 500)
    return resume.publish(scratch, root / "resume", step, {"best_accuracy": step / 100})


def test_the_newest_state_is_found_with_its_progress(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        _publish(tmp_path, step)
    state = resume.newest(tmp_path / "resume", pytest.fail)
    assert state is not None
    assert state.name == "step-100"
    assert read_json(state / resume.PROGRESS) == {"best_accuracy": 1.0}
    assert sorted(p.name for p in (tmp_path / "resume").iterdir()) == ["step-10", "step-100"], "two are kept"


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert resume.newest(tmp_path / "resume", pytest.fail) is None


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "manifest"])
def test_a_damaged_state_is_passed_over_and_named(tmp_path: Path, harm: str) -> None:
    _publish(tmp_path, 5)
    state = _publish(tmp_path, 10)
    weights = state / "model.safetensors"
    if harm == "truncate":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif harm == "flip":
        content = bytearray(weights.read_bytes())
        content[500] ^= 1
        weights.write_bytes(content)
    elif harm == "remove":
        weights.unlink()
    else:
        (state / resume.MANIFEST).write_text("{")
    said: list[str] = []
    found = resume.newest(tmp_path / "resume", said.append)
    assert found is not None
    assert found.name == "step-5"
    assert len(said) == 1
    assert "step-10 is damaged" in said[0]


def test_an_interrupted_write_is_no_state(tmp_path: Path) -> None:
    _publish(tmp_path, 5)
    (tmp_path / "resume" / ".step-10-half").mkdir()
    (tmp_path / "resume" / "step-x").mkdir()
    state = resume.newest(tmp_path / "resume", pytest.fail)
    assert state is not None
    assert state.name == "step-5"
