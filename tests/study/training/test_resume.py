"""Resumable states: whole or absent, and a damaged one is passed over."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from attndrift.models.evaluation import random_state, restore_random_state
from attndrift.study.training import states as resume


def _publish(root: Path, step: int) -> Path:
    scratch = root / ".scratch"
    scratch.mkdir(parents=True)
    (scratch / resume.WEIGHTS).write_bytes(bytes([step % 256]) * 1000)
    (scratch / resume.TRAINING).write_bytes(b"o" * 500)
    return resume.publish(scratch, root / "resume", step, {"best_accuracy": step / 100})


def test_the_newest_state_is_found_with_its_progress(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        _publish(tmp_path, step)
    state = resume.newest(tmp_path / "resume", pytest.fail)
    assert state is not None
    assert state.name == "step-100"
    assert resume.read_progress(state) == {"best_accuracy": 1.0}
    assert sorted(p.name for p in (tmp_path / "resume").iterdir()) == ["step-10", "step-100"], "two are kept"


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert resume.newest(tmp_path / "resume", pytest.fail) is None


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "manifest"])
def test_a_damaged_state_is_passed_over_and_named(tmp_path: Path, harm: str) -> None:
    _publish(tmp_path, 5)
    state = _publish(tmp_path, 10)
    weights = state / resume.WEIGHTS
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


def test_a_state_gives_back_what_was_written(tmp_path: Path) -> None:
    """Weights, optimizer and schedule bit for bit, and all generators where they were."""

    def drawn() -> list[float]:
        return [random.gauss(), float(np.random.standard_normal()), float(torch.randn(()))]  # noqa: NPY002

    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    drawn()  # leaves half of a pair behind in two of the generators
    weights = dict(layer.named_parameters())
    training = {"optimizer": optimizer.state_dict(), "random": [random_state([torch.device("cpu")])]}
    resume.write_tensors(tmp_path / "scratch", weights, training)
    state = resume.publish(tmp_path / "scratch", tmp_path / "resume", 7, {"seen": 3})
    expected, kept = drawn(), {name: weight.detach().clone() for name, weight in weights.items()}
    with torch.no_grad():
        layer.weight.zero_()

    resume.read_weights(state, weights)
    found = resume.read_training(state)
    assert all(torch.equal(weights[name], value) for name, value in kept.items())
    for name, value in optimizer.state_dict()["state"][0].items():
        assert torch.equal(found["optimizer"]["state"][0][name], value), name
    restore_random_state(found["random"][0])
    assert drawn() == expected
    assert (resume.step_of(state), resume.read_progress(state)) == (7, {"seen": 3})
    with pytest.raises(ValueError, match=r"of another run \(bias"):
        resume.read_weights(state, {"weight": layer.weight})
