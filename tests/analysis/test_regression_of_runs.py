"""The rule on baselines of several runs, with figures by hand."""

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest

from gpuprof.analysis.judge import judge
from gpuprof.analysis.noise import Runs
from gpuprof.analysis.regression import hold

QUIET = [[100.0, 100.1, 99.9]] * 12


def runs_of(*figures, held=None, noise=None, began=None):
    """Values and `Runs` of runs, each a list of launches, all of one level."""
    count = len(figures)
    run = np.repeat(np.arange(count), [len(one) for one in figures])
    chosen = [np.ones(count, bool) if one is None else np.array(one, bool) for one in (held, noise, began)]
    level, known, first = (one[run] for one in chosen)
    return np.concatenate(figures).astype(float), Runs(run, level, known, np.ones(len(run), bool), first, "2026-01-02")


def verdict_of(baseline, head, margin=0.02, better="lower", clocks=None, **marks):
    values, runs = runs_of(*baseline, **marks)
    return judge("step_s", values, np.array(head, float), margin, better, clocks, runs=runs)


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


def test_the_noise_between_fewer_than_five_runs_is_not_known():
    assert verdict_of([[100.0] * 5] * 4, [101.0] * 5, margin=None).margin == 0.02
    assert verdict_of([[100.0] * 7] * 4, [101.0] * 5, margin=None).margin == 0.02
    # twice 0.3 %, above 3 x 0.003 x sqrt(1/25 + 1.57/5)
    assert verdict_of([[100.0] * 5] * 5, [101.0] * 5, margin=None).margin == pytest.approx(0.006)


def test_launches_that_were_brought_to_a_level_lend_their_noise_alone():
    """Spread 1.4826 x 2 % of twenty launches of two runs; the level are two of them, against four of the head."""
    found = verdict_of([[98.0, 102.0] * 9, [98.0, 102.0]], [103.0] * 4, held=[False, True])
    error = 0.01 * 1.4826 * 2 * sqrt(1 / 2 + 1.57 / 4)

    assert (found.m0, found.n, found.known) == (100, 2, 20)
    assert found.s == pytest.approx(1.4826 * 2)
    assert found.threshold == pytest.approx(3 * error)
    assert found.z == pytest.approx(0.03 / error)


def test_fewer_than_three_runs_are_as_launches_of_one():
    noisy = [98, 99, 101, 100, 100, 100, 100, 99, 101, 102]
    for figure in (100.0, 103.0, 103.6, 96.0):
        flat, told = judge("step_s", noisy, [figure] * 3), verdict_of([noisy[:4], noisy[4:]], [figure] * 3)
        assert replace(told, known_runs=1) == flat


def test_launches_in_two_modes():
    """Three of ten are 4 % slower: five such are no chance, three of five and all of two are."""
    mixed = [[100.0, 100.0, 100.0, 100.0, 104.0], [100.0, 104.0, 100.0, 104.0, 100.0]] * 8

    found = verdict_of(mixed, [104.0, 104.0])
    assert (found.status, found.noise) == ("inconclusive", True)
    assert found.why == "4.0 % worse, but the baseline has launches as slow as this, 30.0 % of them"
    assert found.chance == pytest.approx(0.3**2)
    assert verdict_of(mixed, [104.0, 104.0, 100.0, 104.0, 104.0]).status == "inconclusive"
    slow = verdict_of(mixed, [104.0] * 5)
    assert (slow.status, slow.chance) == ("regression", pytest.approx(0.3**5))
    rates = [[1 / one for one in run] for run in mixed]
    rate = verdict_of(rates, [1 / 104.0] * 2, better="higher")
    assert rate.why == "3.8 % worse, but the baseline has launches as slow as this, 30.0 % of them"


@pytest.mark.parametrize("head", [95.0, 97.5, 98.5, 100.0, 101.5, 102.5, 105.0])
@pytest.mark.parametrize("margin", [0.02, None])
def test_of_runs_a_rate_is_judged_as_its_time(head, margin):
    random = np.random.default_rng(3)
    # 65 launches, 33 in their newest half: medians of odd numbers are the same either way up
    baseline = [100 * np.exp(random.normal(0, 0.004, 5) + random.normal(0, 0.004)) for _ in range(13)]
    time = verdict_of(baseline, [head] * 5, margin)
    rate = verdict_of([1 / run for run in baseline], [1 / head] * 5, margin, "higher")

    names = ("status", "margin", "runs", "chance", "threshold", "noise")
    assert [getattr(rate, name) for name in names] == pytest.approx(
        [getattr(time, name) for name in names], nan_ok=True
    )


def creep(clock_falls):
    """Twelve runs, each 0.3 % slower than the one before, and their clocks; the first four have twenty launches."""
    times = [[100.0 * 1.003**at] * 5 for at in range(12)]
    clocks = np.repeat([1700 / 1.003**at if clock_falls else 1700.0 for at in range(12)], 5)
    head_clock = np.full(5, 1700 / 1.003**12 if clock_falls else 1700.0)
    return verdict_of(times, [100.0 * 1.003**12] * 5, clocks=(clocks, head_clock), began=[at < 4 for at in range(12)])


def test_a_drift_of_the_clock_is_none_of_the_code():
    found = creep(clock_falls=False)
    # 1.003 to the power of 6.5: within the margin of all; of the last three and the head to the first four nine steps
    assert (found.status, found.noise) == ("drift", False)
    newest, first = (1.003**9 + 1.003**12) / 2, (1 + 1.003**3) / 2
    assert f"{100 * (newest / first - 1):.1f}" == "2.7"
    assert found.why == (
        "2.0 % worse, within the margin, but the newest runs are 2.7 % worse than where this level began on 2026-01-02"
    )
    assert creep(clock_falls=True).status == "pass"
