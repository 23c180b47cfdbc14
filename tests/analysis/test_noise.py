"""What runs say of their noise, by hand; then the rule on baselines of runs."""

from math import log, sqrt

import numpy as np
import pytest

from gpuprof.analysis.noise import FLOOR, Noise, Past, Runs, modes, noise_of
from gpuprof.analysis.regression import CHANCE, hold, judge


def runs_of(*figures, held=None, noise=None, began=None):
    """Values and `Runs` of runs, each a list of launches, all of one level."""
    count = len(figures)
    run = np.repeat(np.arange(count), [len(one) for one in figures])
    chosen = [np.ones(count, bool) if one is None else np.array(one, bool) for one in (held, noise, began)]
    level, known, first = (one[run] for one in chosen)
    return np.concatenate(figures).astype(float), Runs(run, level, known, np.ones(len(run), bool), first, "2026-01-02")


# -- modes


def test_two_modes():
    found = modes(np.array([1.00, 1.01, 0.99, 1.00, 1.50, 1.51, 1.49, 1.00]))

    assert list(found.at) == [1.0, 1.5]
    assert list(found.share) == [5 / 8, 3 / 8]
    assert list(found.of) == [0, 0, 0, 0, 1, 1, 1, 0]


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 1.0, 1.0, 1.0, 2.0, 2.0],  # two are no mode
        [1.0, 1.0, 2.0, 2.0],
        np.linspace(0, 1, 40),
        [0.0] * 20,
        [0.0] * 10 + [3 * FLOOR] * 10,  # by the least spread that is believed, they may be one
    ],
)
def test_one_mode(values):
    found = modes(np.array(values))

    assert list(found.at) == [pytest.approx(np.median(values))]
    assert set(found.of.tolist()) == {0}


def test_modes_do_not_come_of_normal_noise():
    rng = np.random.default_rng(0)
    assert sum(len(modes(rng.normal(0, 0.01, 60)).at) == 2 for _ in range(300)) == 0


# -- noise: the median of |a - b| of normal figures is 0.9539 standard deviations of one


def test_the_noise_within_runs_and_between():
    runs = [np.array([at - 0.01, at, at + 0.01]) for at in (0.0, 0.04, 0.01, 0.05, 0.02)]
    found = noise_of(runs, modes(np.zeros(1)))

    # of each run 0.01, 0.01, 0.02; of runs in a row 0.04, 0.03, 0.04, 0.03
    within, in_a_row = 0.01 / 0.9539, 0.035 / 0.9539
    assert found.within == pytest.approx(within)
    assert found.between == pytest.approx(sqrt(in_a_row**2 - 1.57 * within**2 / 3))
    assert found.spread == pytest.approx(sqrt(found.within**2 + found.between**2))
    assert found.of_run(5) == pytest.approx(sqrt(found.between**2 + 1.57 * within**2 / 5))
    assert found.error((4, 12), 5, 2) == pytest.approx(
        sqrt(found.of_run(5) ** 2 / 2 + found.between**2 / 4 + within**2 / 12)
    )


def test_runs_that_agree_have_the_least_noise():
    assert noise_of([np.zeros(3)] * 6, modes(np.zeros(1))) == Noise(FLOOR, FLOOR, 0.0)


def test_of_single_launches_the_noise_is_that_of_runs_in_a_row():
    found = noise_of([np.array([at]) for at in (0.0, 0.02, 0.0, 0.02, 0.0, 0.02)], modes(np.zeros(1)))

    assert found == Noise(*[pytest.approx(0.02 / 0.9539)] * 2, 0.0)


def test_of_few_runs_it_is_the_median_absolute_deviation():
    found = noise_of([np.array([at]) for at in (0.0, 0.02, -0.02)], modes(np.zeros(1)))

    assert found.within == pytest.approx(1.4826 * 0.02)


# -- stretches

QUIET = [[100.0, 100.1, 99.9]] * 12


def past_of(baseline, head):
    values, runs = runs_of(*baseline)
    return Past(np.log(values), np.log(np.array(head)), runs)


def test_a_run_that_is_like_none():
    past = past_of(QUIET, [103.0, 103.1, 103.0])
    found = past.stretch(1, 0.02, past.level)

    assert (found.runs, found.alike, found.known) == (1, 0, 12)
    assert found.worse == pytest.approx(log(1.03))
    error = FLOOR * sqrt(1.57 / 3 + 1 / 36)
    assert found.z == pytest.approx(log(1.03) / error)
    assert found.threshold == 0.02
    # 0.3 of 13 runs, and further out than anything that the noise does: its fastest launch most of all
    assert found.chance == pytest.approx(0.3 / 13 * (3 * error / log(103.0 / 99.9)) ** 3)
    assert found.chance < CHANCE


def test_runs_as_slow_explain_it():
    slow = [[103.0, 103.1, 102.9]]
    past = past_of([*QUIET[:5], *slow, *QUIET[5:]], [103.0, 103.1, 103.0])
    found = past.stretch(1, 0.02, past.level)

    assert (found.runs, found.alike, found.known) == (1, 1, 13)
    assert found.chance == pytest.approx(1.3 / 14)


def test_an_episode_is_no_excuse_of_itself():
    slow = [[103.0, 103.1, 102.9]]
    past = past_of([*QUIET, *slow], [103.0, 103.1, 103.0])
    found = past.stretch(1, 0.02, past.level)

    assert (found.runs, found.alike, found.known) == (2, 0, 12)


def test_what_is_within_the_margin_is_none():
    past = past_of(QUIET, [101.0, 101.0, 101.0])

    assert past.stretch(1, 0.02, past.level) is None
    assert past.stretch(-1, 0.005, past.level) is None


# -- the rule


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
    creeping = [[100.0 * 1.004**at + offset for offset in (-0.1, 0.0, 0.1)] for at in range(20)]
    first = [at < 7 for at in range(20)]
    found = verdict_of(creeping, [100.0 * 1.004**20] * 3, began=first, held=[at >= 14 for at in range(20)])

    # the newest seven with the head, nights 14 to 20, against the nights 0 to 6: fourteen nights of 0.4 %
    assert found.status == "drift"
    assert "5.7 % worse than where this level began on 2026-01-02" in found.why
    still = verdict_of(QUIET, [100.0] * 3, began=[at < 7 for at in range(12)])
    assert still.status == "pass"
