"""The live table of all runs: what it shows of each, in a terminal and without one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from attndrift.cli.run_table import StudyTable
from attndrift.study.launchers import Options, make_engine
from attndrift.study.loading import parse_study
from attndrift.study.settings import Study


def _study(seeds: int) -> Study:
    return parse_study(f"name: many\nruns:\n  - {{dataset: tiles, grid: {{seed: {list(range(seeds))}}}}}\n", where="f")


def _shown(table: StudyTable) -> str:
    console = Console(file=io.StringIO(), width=140, height=table.console.size.height, force_terminal=False)
    console.print(table.render())
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_all_runs_are_shown_those_under_way_first_with_machine_starts_and_steps() -> None:
    study = _study(4)
    table = StudyTable(console=Console(file=io.StringIO(), width=140, height=40))
    table.begin(study, 0)
    with table.run(study.runs[2]) as second:
        second.started("node-b", 1)
        second.started("node-c", 2)
        second.phase("training")
        second.step(30, 120)
        table.ended(study.runs[0], "failed", "RuntimeError: the disk is full")
        table.ended(study.runs[1], "finished", "")
        lines = _shown(table).splitlines()
    rows = [line for line in lines if "tiles_full" in line]
    assert ["_s2" in rows[0], "_s0" in rows[1], "_s3" in rows[2], "_s1" in rows[3]] == [True] * 4
    assert all(word in rows[0] for word in ("node-c", "2", "30/120", "training"))
    assert "the disk is full" in rows[1]
    assert "waiting" in rows[2]
    assert "many: 1 running, 1 failed, 1 waiting, 1 finished" in lines[-1]


def test_more_runs_than_lines_say_how_many_are_not_shown() -> None:
    table = StudyTable(console=Console(file=io.StringIO(), width=140, height=14))
    table.begin(_study(80), 0)
    text = _shown(table)
    assert text.count("tiles_full") == 10
    assert "70 more are not shown" in text


def test_without_a_terminal_every_run_that_ends_is_a_line() -> None:
    study, out = _study(2), io.StringIO()
    table = StudyTable(console=Console(file=out, width=140))
    with table:
        table.begin(study, 0)
        with table.run(study.runs[0]) as row:
            row.started("a", 1)
            row.started("b", 2)
        table.ended(study.runs[0], "finished", "")
    assert "1/2 tiles_full_lr1e-5_s0: finished, begun 2 times" in out.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_run_says_commands_no_terminal_and_holds_no_secret(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "correct-horse-battery")
    bad = "\x1b]0;owned\x07\x1b[2J\u202e[bold]two\nlines correct-horse-battery https://me:pa55-w0rd@host/x"
    study, out = _study(2), io.StringIO()
    console = Console(file=out, width=400, height=20, force_terminal=terminal, color_system=None, _environ={})
    with StudyTable(verbose=True, console=console) as table:
        table.begin(study, 0)
        with table.run(study.runs[0]) as row:
            row.started(bad, 1)
            row.phase(bad)
            row.say(bad)
            console.print(table.render())
        table.ended(study.runs[0], "failed", bad)
        console.print(table.render())
    text = out.getvalue()
    for part in ("\x1b]0;", "\x1b[2J", "\x07", "\u202e", "correct-horse", "pa55-w0rd"):
        assert part not in text, repr(part)
    assert "\\x1b]0;owned" in text
    assert "[bold]two" in text, "no markup of the table's own"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("spark", Options(), "there is no engine `spark`; `attndrift list` shows every engine"),
        ("in-process", Options(address="auto"), "--address is not an option of --engine in-process"),
        ("ray", Options(jobs=2), "--jobs is not an option of --engine ray"),
        ("slurm", Options(address="auto"), "--address is not an option of --engine slurm"),
    ],
)
def test_engines_and_options_that_do_not_go_together_are_named(name: str, options: Options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_engine(name, options)
