"""How the bench of the meter pairs steps, and what it calls met."""

import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_meter

    return bench_meter


def test_a_pair_is_two_neighbours_of_which_each_is_first_as_often(bench, monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    course = bench.Course(4, lambda: None)
    order = []
    for _ in course:
        now += 5.0 if course.on else 3.0  # seconds of the step that has it, and of that without
        order.append(course.on)

    assert order[bench.WARM_UP :] == [True, False, False, True, True, False, False, True, True]
    assert all(order[: bench.WARM_UP])
    assert course.added() == [2.0] * 4


def test_the_network_is_no_part_of_what_is_added(bench, monkeypatch):
    now = 0.0

    def work():
        nonlocal now
        now += 10.0 if course.on else 7.0  # a noisy machine

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    course = bench.Course(2, work)
    for _ in course:
        course.work()
        now += 1.5 if course.on else 1.0

    assert course.added() == [0.5, 0.5]


def test_the_plain_loop_runs_with_and_without_the_meter(bench):
    course = bench.Course(2, lambda: None)
    bench.plain(course)

    assert len(course.added()) == 2


def test_goals_are_met_or_not(bench):
    ours, theirs = bench.PLAIN, next(iter(bench.OTHERS))
    met = {ours: {"added_s": 49e-6}, theirs: {"added_s": 245e-6}}
    missed = {ours: {"added_s": 50e-6}, theirs: {"added_s": 249e-6}}

    assert list(bench.verdicts(met).values()) == [True, True]
    assert bench.verdicts(missed) == {
        "Meter, plain loop: below 0.5% of a step": False,
        "Meter, plain loop: 4.98 x cheaper than the cheapest other, 5 x wanted": False,
    }
    assert bench.verdicts({theirs: {"added_s": 1.0}}) == {}


def test_two_ranks_are_held_against_each_other(bench):
    ours, theirs = bench.OF_TWO
    found = {ours: {"added_s": 40e-6}, theirs: {"added_s": 1e-3}, bench.PLAIN: {"added_s": 30e-6}}

    assert bench.verdicts(found) == {
        "GpuprofCallback, Trainer, 2 ranks: below 0.5% of a step": True,
        "Meter, plain loop: below 0.5% of a step": True,
        "on two ranks: 25.00 x cheaper than the Trainer's tokens": True,
    }
