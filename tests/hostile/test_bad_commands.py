"""Bad input through the command line: a message and an exit code, never a bare traceback, and nothing written elsewhere."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from made_bad import bad_image, mutated, surroundings, within
from test_bad_studies import GOOD, WORDS

from attndrift.cli import main as cli
from attndrift.results.tables import write_tables
from benchmarks.synthetic import synthetic_tables

TIME_LIMIT = 120.0
ENDS = {0, 1, 2, 3}
"""Done, a problem that was said, wrong usage, a condition that holds. 70 would be an error that nobody thought of."""


def _command(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["attndrift", *arguments])
    with within(TIME_LIMIT, arguments), pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    code = ended.value.code
    return (code if isinstance(code, int) else 0), shown.out + shown.err


def _bad_command(seed: int, root: Path) -> list[str]:
    """Arguments of a command on something bad below ``root``; what it writes goes to ``root/out``."""
    random = np.random.default_rng([5, seed])
    bad, out = root / "bad", str(root / "out")
    bad.mkdir()
    kind = seed % 6
    if kind in (0, 1):
        study = bad / "study.yaml"
        study.write_bytes(mutated(GOOD.encode(), random))
        options = ["--set", f"epochs={WORDS[int(random.integers(0, len(WORDS)))]}"] if kind else []
        return ["run", str(study), "--dry-run", "-o", out, *options]
    if kind in (2, 3):
        write_tables(synthetic_tables(seeds=1, datasets=("eurosat",), rates=1, layers=2, heads=2), bad)
        name = ("runs", "history", "layers")[int(random.integers(0, 3))]
        path = bad / f"{name}.parquet"
        path.write_bytes(mutated(path.read_bytes(), random))
        return ["import", str(bad), "-o", out] if kind == 2 else ["analyze", str(bad), "-o", out]
    if kind == 4:
        for place in range(3):
            (bad / f"{place}.png").write_bytes(bad_image(7000 + 3 * seed + place)[1])
        return ["compare", "config:tiny", "config:tiny", "--images", str(bad), "-o", out, "--skip-unreadable"]
    described = b'{"format": 2, "name": "x", "description": "", "runs": [{"run_id": "a"}]}'
    (bad / "study.json").write_bytes(mutated(described, random))
    return [("collect", "analyze", "report", "show")[int(random.integers(0, 4))], str(bad)]


def _all(seeds: range, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Counter[int]:
    ends: Counter[int] = Counter()
    for seed in seeds:
        folder = root / str(seed)
        folder.mkdir()
        monkeypatch.chdir(folder)
        arguments = _bad_command(seed, folder)
        before = surroundings(folder)
        code, text = _command(arguments, monkeypatch, capsys)
        ends[code] += 1
        assert code in ENDS, f"{seed}: {arguments}: {text}"
        assert "Traceback" not in text, f"{seed}: {arguments}: {text}"
        assert code == 0 or "attndrift: " in text or "Usage" in text, f"{seed}: {arguments}: {text}"
        after = surroundings(folder, leave_out=folder / "out")
        new = {name for name in after if name not in before and not name.startswith(str(folder / "bad"))}
        assert not new, f"{seed}: {arguments} wrote {new}"
    return ends


def test_bad_input_to_a_command_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _all(range(12), tmp_path, monkeypatch, capsys)[1] > 2


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_hundreds_of_commands_on_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = _all(range(12, 324), tmp_path, monkeypatch, capsys)
    assert ends.total() == 312
    assert ends[1] > 5 * 312 / 24
    with capsys.disabled():
        print(f"\ncommands on bad input: {ends.total()}, exit codes {dict(ends)}")
