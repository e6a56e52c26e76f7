"""A part of a large analysis in a second process: the same values, and nothing hidden."""

from __future__ import annotations

import os

import pytest

from attndrift.analysis import analyze, beside, core
from attndrift.analysis.synthetic import synthetic_tables

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@pytest.fixture
def possible(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own threads sleep; they are no hindrance."""
    monkeypatch.setattr(beside, "_possible", lambda: True)


def test_the_result_is_the_same(possible: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = synthetic_tables(seeds=2)
    here = analyze(tables).model_dump_json()
    monkeypatch.setattr(core, "_LARGE", 1)
    assert analyze(tables).model_dump_json() == here


def test_the_work_is_done_elsewhere_and_its_error_is_raised_here(possible: None) -> None:
    with beside.beside(os.getpid, worth_it=True) as value:
        assert value() != os.getpid()
    with beside.beside(os.getpid, worth_it=False) as value:
        assert value() == os.getpid()
    with beside.beside(int, "no number", worth_it=True) as value, pytest.raises(ValueError, match="no number"):
        value()


def test_a_process_that_is_ended_from_outside_costs_its_work_and_no_result(possible: None) -> None:
    home = os.getpid()

    def work() -> str:
        if os.getpid() != home:
            os._exit(9)
        return "done here"

    with beside.beside(work, worth_it=True) as value:
        assert value() == "done here"
