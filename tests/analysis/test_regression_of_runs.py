"""The rule on baselines of several runs, with figures by hand."""

from math import sqrt

import numpy as np
import pytest

from gpuprof.analysis.noise import Runs
from gpuprof.analysis.regression import hold, judge

QUIET = [[100.0, 100.1, 99.9]] * 12


def runs_of(*figures, held=None, noise=None, began=None):
    """Values and `Runs` of runs, each a list of launches, all of one level."""
    count = len(figures)
    run = np.repeat(np.arange(count), [len(one) for one in figures])
    chosen = [np.ones(count, bool) if one is None else np.array(one, bool) for one in (held, noise, began)]
    level, known, first = (one[run] for one in chosen)
    return np.concatenate(figures).astype(float), Runs(run, level, known, np.ones(len(run), bool), first, "2026-01-02")


def verdict_of(baseline, head, margin=0.02, better="lower", **marks):
    values, runs = runs_of(*baseline, **marks)
    return judge("step_s", values, np.array(head, float), margin, better, runs=runs)


def test_a_quiet_machine_is_told_at_once():
    found = verdict_of(QUIET, [103.0, 103.0, 103.0])

    assert (found.status, found.runs) == ("regression", 1)
    assert verdict_of(QUIET, [97.0, 97.0, 97.0]).status == "improvement"
    assert verdict_of(QUIET, [101.0] * 3).status == "pass"


def test_a_rate_is_a_time_upside_down():
    rates = [[1 / one for one in run] for run in QUIET]

    assert verdict_of(rates, [1 / 103.0] * 3, better="higher").status == "regression"
    assert verdict_of(rates, [1 / 97.0] * 3, better="higher").status == "improvement"
    assert verdict_of(rates, [1 / 101.0] * 3, better="higher").status == "pass"


def test_runs_in_two_modes():
    fast, slow = [100.0, 100.2, 99.8], [104.0, 104.2, 103.8]
    baseline = [fast, fast, slow, fast, fast, fast, slow, fast, slow, fast, fast, fast]
    found = verdict_of(baseline, slow)

    assert (found.status, found.noise) == ("inconclusive", True)
    assert "but the baseline has launches as slow as this, in 3 of 12 runs" in found.why
    assert verdict_of(baseline, [108.0, 108.0, 108.0]).status == "regression"


def test_three_runs_are_needed_to_know_of_runs():
    """The flat rule: 0.3 % of noise, 3 x 0.003 x sqrt(1/6 + 1.57/3) is below the margin."""
    found = verdict_of(QUIET[:2], [102.5] * 3)

    assert (found.status, found.runs) == ("regression", 1)
    assert found.z == pytest.approx(0.025 / (0.003 * sqrt(1 / 6 + 1.57 / 3)), rel=1e-3)


def test_the_margin_is_what_the_noise_lets_be_told():
    quiet = verdict_of(QUIET, [100.5] * 3, margin=None)
    assert quiet.margin == pytest.approx(3 * 0.003 * sqrt(1 / 36 + 1.57 / 3))  # above twice 0.3 %
    assert quiet.status == "pass"
    assert verdict_of(QUIET, [101.2] * 3, margin=None).status == "regression"
    assert verdict_of(QUIET[:6], [101.2] * 3, margin=None).margin == 0.02  # of 18 launches

    values, runs = runs_of(*QUIET)
    assert hold(values, np.full(3, 100.5), None, runs=runs).margin == pytest.approx(quiet.margin)


def test_a_creep_is_a_drift():
    """A tenth of a percent a run: the head, run 20, is 1.05 % above the middle of the level, run 9.5."""
    creeping = [[100.0 * 1.001**at + offset for offset in (-0.1, 0.0, 0.1)] for at in range(20)]
    found = verdict_of(creeping, [100.0 * 1.001**20] * 3, 0.012, began=[at < 7 for at in range(20)])

    # the newest seven with the head are the runs 14 to 20, fourteen after the first seven
    assert found.status == "drift"
    assert found.change == pytest.approx(1.001**10.5 - 1, rel=1e-3)
    assert found.why == (
        "1.1 % worse, within the margin, but the newest runs are 1.4 % worse than where this level began on 2026-01-02"
    )
    still = verdict_of(QUIET, [100.0] * 3, began=[at < 7 for at in range(12)])
    assert still.status == "pass"
