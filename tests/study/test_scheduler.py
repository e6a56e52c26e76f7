"""The order in which the runs of a study begin."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attndrift.study.loading import load_study
from attndrift.study.scheduler import Schedule, divided
from attndrift.study.settings import NamedRun

lengths = st.lists(st.floats(0, 100), max_size=9)
loads = st.lists(st.floats(0, 50), min_size=1, max_size=3)


def _end(lengths, loads, parts) -> float:
    return max(load + sum(lengths[i] for i in part) for load, part in zip(loads, parts, strict=True))


@given(lengths, loads)
def test_every_run_is_given_to_one_process_and_the_last_ends_near_the_earliest_that_is_possible(lengths, loads) -> None:
    parts = divided(lengths, loads)
    assert sorted(itertools.chain(*parts)) == list(range(len(lengths)))
    # Graham's bound for the longest first, of which loads that are there already are the longest. Of more runs than processes,
    # two of the longest ones share a process.
    least = max([sum(lengths + loads) / len(loads), *lengths, *loads])
    if len(lengths) > len(loads):
        least = max(least, sum(sorted(lengths)[-len(loads) - 1 :][:2]))
    assert _end(lengths, loads, parts) <= 4 / 3 * least + max(loads) + 1e-6


def test_an_odd_number_of_nearly_equal_runs_is_divided_evenly() -> None:
    lengths = [16.0, 15, 15, 15, 14, 14, 14, 14, 14, 14, 13, 13, 13, 13, 13, 12, 12, 12, 11, 10, 9]
    parts = divided(lengths, [0.0, 0.0])
    assert sorted(len(part) for part in parts) == [10, 11]
    assert _end(lengths, [0.0, 0.0], parts) <= sum(lengths) / 2 + 0.5


def _took(run: NamedRun) -> float:
    settings = run.settings
    return 0.1 if settings.method == "none" else 13 - 0.5 * settings.freeze_layers + (settings.method == "lora")


@pytest.mark.parametrize("jobs", [1, 2, 3, 4])
def test_a_study_ends_when_one_does_whose_runs_take_what_was_known(jobs) -> None:
    runs = load_study("collapse-21").runs
    schedule = Schedule(runs, jobs)
    busy: list[tuple[float, float, NamedRun]] = []
    begun, now = [], 0.0
    while len(schedule) or busy:
        while len(schedule) and len(busy) < jobs:
            begun.append(schedule.take([(run, now - since) for _, since, run in busy]))
            busy.append((now + _took(begun[-1]), now, begun[-1]))
        busy.sort(key=lambda one: one[0])
        now, since, run = busy.pop(0)
        schedule.took(run, now - since)
    assert sorted(run.run_id for run in begun) == sorted(run.run_id for run in runs)
    # Nearly what somebody could reach who knew beforehand what each takes.
    lengths, free = [_took(run) for run in runs], [0.0] * jobs
    assert now <= _end(lengths, free, divided(lengths, free)) + 3


def test_longest_first_and_equal_ones_in_the_order_of_the_study() -> None:
    runs = load_study("collapse-21").runs
    schedule = Schedule(runs, 1)
    order = [schedule.take() for _ in runs]
    assert {run.settings.method for run in order[-2:]} == {"none"}
    assert order[0].settings.epochs == max(run.settings.epochs for run in runs)
    full = [run for run in order if run.settings.method != "none" and run.settings.dataset == "eurosat"]
    assert [run.settings.freeze_layers for run in full] == sorted(run.settings.freeze_layers for run in full)
    first = [run for run in full if not run.settings.freeze_layers]
    assert first == [run for run in runs if run in first]
    with pytest.raises(IndexError):
        schedule.take()


def test_a_kind_takes_what_its_runs_took() -> None:
    runs = load_study("collapse-21").runs
    lora = [run for run in runs if run.settings.method == "lora" and run.settings.dataset == "eurosat"]
    schedule = Schedule(runs, 2)
    before = schedule.expected_seconds(lora[0])
    for seconds in (40.0, 10.0, 12.0):
        schedule.took(lora[0], seconds)
    assert schedule.expected_seconds(lora[1]) == 12
    # Of another kind nothing is known but that work of that much took as long.
    other = next(run for run in runs if run.settings.method == "full")
    assert schedule.expected_seconds(other) == pytest.approx(12 / before * Schedule(runs, 2).expected_seconds(other))
