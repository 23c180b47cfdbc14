"""Phases that stand beside a step add up to it: their parts in the middle steps, of the step's own time."""

import pytest

from gpuprof.analysis.phase_table import by_phase
from gpuprof.analysis.steps import middle_steps, step_seconds
from gpuprof.schema import table
from tests.runs import gpu_run


def run_of(*steps, launch=0):
    """A run whose steps took so many forward and backward seconds."""
    run = gpu_run()
    rows = []
    for number, (forward, backward) in enumerate(steps):
        times = {"step": forward + backward, "forward": forward, "backward": backward}
        rows += [{"launch": launch, "step": number, "phase": name, "time_s": time} for name, time in times.items()]
    run.samples = table("samples", rows)
    return run


def test_phases_whose_medians_exceed_the_step_are_those_of_the_middle_step():
    # medians by themselves: forward 3, backward 3, step 4
    run = run_of((1, 3), (3, 1), (3, 3))

    assert step_seconds(run) == 4
    assert step_seconds(run, "forward") + step_seconds(run, "backward") == 4
    assert by_phase(run).set_index("phase")["time_s"].dropna().sum() == pytest.approx(4)


def test_a_step_that_was_held_up_is_none_of_the_middle_ones():
    # of the five the three between the quartiles: 6 of 10, 6 of 11, 6 of 12
    run = run_of((5, 4), (6, 4), (6, 5), (6, 6), (6, 994))

    assert middle_steps(run).tolist() == [10, 11, 12]
    assert step_seconds(run) == 11
    assert step_seconds(run, "forward") == pytest.approx(11 * 18 / 33)
    assert step_seconds(run, "backward") == pytest.approx(11 * 15 / 33)


def test_of_two_steps_both_and_of_one_itself():
    assert step_seconds(run_of((1, 2), (2, 3)), "forward") == pytest.approx(4 * 3 / 8)
    assert step_seconds(run_of((1, 2)), "backward") == pytest.approx(2)


def test_what_was_not_timed_is_not_known():
    assert step_seconds(run_of((1, 2)), "optimizer") is None
