"""A guard that has to step in, in two processes of ``torchrun``: one model, one decision, and the result of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard_in_processes import WAYS, guarded
from training_loops import in_processes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_a_guard_of_two_processes_decides_what_that_of_one_decides(tmp_path: Path) -> None:
    first, second = in_processes("guard_in_processes.py", tmp_path / "two")
    for way, precision in WAYS.items():
        one, two = json.loads(json.dumps(guarded(way, tmp_path / "one"))), first[way]
        # One process speaks; nothing else tells them apart, to the last bit (JSON keeps every digit of a double).
        assert len(two.pop("lines")) == len(one["events"])
        assert second[way].pop("lines") == []
        assert two == second[way], way

        assert [event["action"] for event in two["events"]] == [event["action"] for event in one["events"]], way
        assert two["summary"]["outcome"] == ("infeasible" if way == "out of reach" else "kept")
        if way == "out of reach":
            assert two["as before"] == two["guarded"], "the pretrained weights, bit for bit"
        else:
            assert two["as before"] == []
        if str(precision) == "torch.float64":
            _close(two["events"], one["events"], way)
            _close(two["drift"], one["drift"], way)
            _close(two["weights"], one["weights"], way)
    assert {event["action"] for event in first["drift"]["events"]} > {"rewound"}


def _close(left: Any, right: Any, where: str) -> None:
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for name in left:
            _close(left[name], right[name], f"{where}.{name}")
    elif isinstance(left, list) and left and isinstance(left[0], float):
        np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-9, err_msg=where)
    elif isinstance(left, list):
        for a, b in zip(left, right, strict=True):
            _close(a, b, where)
    elif isinstance(left, str | None):
        assert left == right, where
    else:
        assert left == pytest.approx(right, rel=1e-6, abs=1e-9), where
