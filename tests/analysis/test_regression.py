import itertools
from math import comb, log, sqrt

import numpy as np
import pytest

from gpuprof.analysis.judge import judge, judge_exact, judge_interleaved, rank_test
from gpuprof.analysis.regression import hold

# median 100, of all ten and of the last five; deviations 2 1 1 0 0 | 0 0 1 1 2, so their median is 1
NOISY = [98, 99, 101, 100, 100, 100, 100, 99, 101, 102]
S = 1.4826
THRESHOLD = 3 * S / 100 * sqrt(1 / 10 + 1.57 / 3)  # 3.51 %, above the margin and above 2 s = 2.97 %


@pytest.mark.parametrize(
    ("head", "status", "words"),
    [
        ((103.0, 103.6, 109.0), "regression", "3.6 % worse, z = 3.1"),
        ((90.0, 103.4, 103.4), "inconclusive", "3.4 % worse, more than the margin, but with this noise only 3.5 %"),
        ((90.0, 102.0, 110.0), "pass", ""),
        ((90.0, 97.0, 110.0), "pass", ""),
        ((96.0, 96.0, 110.0), "improvement", "4.0 % better, z = 3.4"),
    ],
)
def test_a_time_against_a_noisy_baseline(head, status, words):
    verdict = judge("step_s", NOISY, head)

    assert verdict.status == status
    assert verdict.why.startswith(words) if words else verdict.why == ""
    assert (verdict.m0, verdict.value, verdict.n, verdict.k) == (100, sorted(head)[1], 10, 3)
    assert verdict.s == pytest.approx(S)
    assert verdict.threshold == pytest.approx(THRESHOLD)
    assert verdict.change == pytest.approx(verdict.value / 100 - 1)
    assert verdict.z == pytest.approx(verdict.change / (THRESHOLD / 3))


def test_of_a_rate_less_is_worse():
    assert judge("mfu_datasheet", NOISY, [96.4] * 3, better="higher").status == "regression"
    assert judge("mfu_datasheet", NOISY, [103.6] * 3, better="higher").status == "improvement"
    assert judge("mfu_datasheet", NOISY, [96.4] * 3, better="higher").z == pytest.approx(0.036 / (THRESHOLD / 3))


def test_without_spread_the_margin_decides():
    # 0.3 % of the median stands in for a spread of 0: 3 x 0.003 x sqrt(1/5 + 1.57/5) = 0.6 %, below the margin
    assert judge("step_s", [100.0] * 5, [101.9] * 5).status == "pass"
    assert judge("step_s", [100.0] * 5, [102.1] * 5).status == "regression"
    assert judge("step_s", [100.0] * 5, [102.1] * 5).s == pytest.approx(0.3)
    assert judge("step_s", [100.0] * 5, [102.1] * 5, margin=0.05).status == "pass"
    assert judge("step_s", [100.0] * 5, [100.7] * 5, margin=0.001).status == "regression"
    assert judge("step_s", [100.0] * 5, [100.6] * 5, margin=0.001).status == "inconclusive"


def test_one_launch_needs_more_than_several():
    # 3 x 1.4826 % x sqrt(1/10 + 1.57/1) = 5.75 %
    assert judge("step_s", NOISY, [105.7]).status == "inconclusive"
    assert judge("step_s", NOISY, [105.8]).status == "regression"


def test_four_launches_are_no_baseline():
    verdict = judge("step_s", [100.0] * 4, [150.0] * 5)

    assert verdict.status == "inconclusive"
    assert verdict.change == pytest.approx(0.5)
    assert "a baseline of 4" in verdict.why


def test_a_baseline_that_drifts_is_no_regression():
    # median 101.5, deviations all 1.5; 3 x 1.4826 x 1.5 / 101.5 x sqrt(1/10 + 1.57/3) = 5.19 %
    drifting = [100.0] * 5 + [103.0] * 5
    verdict = judge("step_s", drifting, [107.0] * 3)

    assert verdict.threshold == pytest.approx(0.0519, abs=1e-4)
    assert verdict.status == "inconclusive"  # 5.42 % above all of it, 3.88 % above its newest half
    assert "5.4 % worse than the whole baseline, 3.9 % worse than its newest half" in verdict.why
    assert judge("step_s", drifting, [108.5] * 3).status == "regression"  # 5.34 % above the newest half


STILL = [1000.0] * 5


@pytest.mark.parametrize(
    ("time", "clock", "status", "words"),
    [
        (104.0, 1000.0, "regression", "4.0 % worse"),
        (
            104.0,
            960.0,
            "inconclusive",
            "4.0 % worse, but 0.2 % better if time goes with the SM clock, which is 4.0 % lower",
        ),  # 0.16 % fewer cycles
        (108.0, 960.0, "regression", "8.0 % worse"),  # and 3.68 % more cycles
        (
            100.0,
            1040.0,
            "inconclusive",
            "no worse, but 4.0 % worse if time goes with the SM clock, which is 4.0 % high",
        ),
        (101.0, 960.0, "pass", ""),  # it has become better, if anything
        (100.0, 1010.0, "pass", ""),
        (96.0, 1000.0, "improvement", "4.0 % better"),
        (96.0, 1040.0, "pass", ""),  # faster by its clock alone
    ],
)
def test_what_the_clock_may_have_done_is_no_regression(time, clock, status, words):
    verdict = judge("step_s", [100.0] * 5, [time] * 3, clocks=(STILL, [clock] * 3))
    rate = judge("tokens_per_s", [1 / 100.0] * 5, [1 / time] * 3, better="higher", clocks=(STILL, [clock] * 3))

    assert verdict.status == status
    assert verdict.why.startswith(words) if words else verdict.why == ""
    assert rate.status == status


MOVING = [960.0, 980.0, 1000.0, 1020.0, 1040.0]
# logarithms of 0.96 .. 1.04 less their mean: squares add up to 0.0040049; the least spread is 0.003
ERROR = 0.003 / sqrt(0.0040049)
FOLLOWING = [100_000.0 / clock for clock in MOVING]


@pytest.mark.parametrize(
    ("time", "clock", "status", "words"),
    [
        # 98.1 ms at 1050 MHz are 103 at 1000
        (98.1, 1050.0, "regression", "3.0 % worse at the same SM clock, z = "),
        (95.2, 1050.0, "pass", ""),
        # 105.3 ms at 950 MHz are 100, and 106.2 ms at 970 are 103
        (105.3, 950.0, "pass", "7.4 % worse than the newest half of the baseline, but no worse at the same SM clock"),
        (106.2, 970.0, "regression", "3.0 % worse at the same SM clock, z = "),
        (102.1, 950.0, "improvement", "3.0 % better at the same SM clock, z = "),
        # 3 x 0.0474 x ln 2 and ln(960 / 500): 75 % of the time are not known
        (
            200.0,
            500.0,
            "inconclusive",
            "104.0 % worse, but no worse if time goes with the SM clock, which is 50.0 % lower",
        ),
    ],
)
def test_what_the_clock_did_in_the_baseline_it_does_to_the_head(time, clock, status, words):
    verdict = judge("step_s", FOLLOWING, [time] * 3, clocks=(MOVING, [clock] * 3))
    rates = [1 / figure for figure in FOLLOWING]
    rate = judge("tokens_per_s", rates, [1 / time] * 3, better="higher", clocks=(MOVING, [clock] * 3))

    assert verdict.status == rate.status == status
    assert verdict.why.startswith(words) if words else verdict.why == ""


def test_what_the_clock_did_not_do_in_the_baseline_it_does_not_do_to_the_head():
    held = hold(np.full(5, 100.0), np.full(3, 103.0), clocks=(np.array(MOVING), np.full(3, 950.0)))

    assert held.status == "regression"  # though per cycle it got better
    assert held.per_cycle.worse == pytest.approx(1.03 * 0.95 - 1)
    assert held.at_clock.worse == pytest.approx(0.03)
    moved = -log(0.95) * ERROR + log(960 / 950) / 3
    assert held.at_clock.clock_error == pytest.approx(moved, rel=1e-4)
    assert held.at_clock.z == pytest.approx(0.03 / sqrt(0.003**2 * (1 / 5 + 1.57 / 3) + moved**2), rel=1e-4)
    assert judge("step_s", [100.0] * 5, [101.0] * 3, clocks=(MOVING, [950.0] * 3)).status == "pass"


def test_one_bad_launch_does_not_tilt_the_line():
    clocks = np.linspace(990, 1010, 10)
    times = np.array([150.0] + [100.0] * 9)  # it would be the tenth power of the clock

    assert hold(times, np.full(3, 100.0), clocks=(clocks, np.full(3, 980.0))).status == "pass"


def test_a_batch_is_judged_one_by_one():
    random = np.random.default_rng(0)
    base, head = random.normal(100, 1, (50, 10)), random.normal(102.5, 1, (50, 3))
    clocks = (random.normal(1000, 5, (50, 10)), random.normal(998, 5, (50, 3)))
    held = hold(base, head, clocks=clocks)

    single = [
        judge("step_s", b, h, clocks=(c, d)).status for b, h, c, d in zip(base, head, *clocks, strict=True)
    ]  # fmt: skip
    assert list(held.status) == single
    assert set(single) == {"regression", "inconclusive", "pass"}


@pytest.mark.parametrize(("number", "least"), [(3, 1 / 20), (4, 1 / 70), (5, 1 / 252), (6, 1 / 924)])
def test_the_least_chance_of_the_rank_test(number, least):
    assert rank_test(range(number), range(number, 2 * number)) == least
    assert rank_test(range(number, 2 * number), range(number)) == 1


def test_equal_figures_share_their_ranks():
    # ranks 1, 2.5, 2.5, 4: of the six ways to deal two, two reach the sum of 6.5
    assert rank_test([1, 2], [2, 3]) == pytest.approx(2 / 6)
    assert rank_test([7, 7, 7], [7, 7, 7]) == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_rank_test_counts_every_deal(seed):
    figures = np.random.default_rng(seed).integers(0, 6, 9)
    base, head = figures[:4], figures[4:]
    ranks = [(figures < f).sum() + ((figures == f).sum() + 1) / 2 for f in figures]
    reached = sum(ranks[4:])
    deals = list(itertools.combinations(range(9), 5))
    assert len(deals) == comb(9, 5)

    assert rank_test(base, head) == pytest.approx(sum(sum(ranks[i] for i in d) >= reached for d in deals) / len(deals))


def test_launches_that_took_turns():
    base = [100.0, 101.0, 100.0, 99.0, 100.0]

    worse = judge_interleaved("step_s", base, [figure * 1.03 for figure in base])
    assert (worse.status, worse.p) == ("regression", 1 / 252)
    assert worse.change == pytest.approx(0.03)
    assert worse.why == "3.0 % worse by the median of the pairs, p = 0.0040"
    assert judge_interleaved("step_s", base, [figure / 1.03 for figure in base]).status == "improvement"
    assert judge_interleaved("mfu_clock", base, [figure / 1.03 for figure in base], better="higher").p == 1 / 252
    within = judge_interleaved("step_s", base, [figure * 1.015 for figure in base])
    assert within.status == "pass"


def test_too_few_launches_that_took_turns_tell_nothing():
    verdict = judge_interleaved("step_s", [100.0] * 4, [110.0] * 4)

    assert (verdict.status, verdict.p) == ("inconclusive", 1 / 70)


def test_a_step_while_they_took_turns_is_nobodys():
    # the device is 4 % slower from the sixth launch on: two of the one, three of the other
    verdict = judge_interleaved("step_s", [100.0, 100.0, 100.0, 104.0, 104.0], [100.0, 100.0, 104.0, 104.0, 104.0])

    assert (verdict.status, verdict.change, verdict.value) == ("pass", 0, 104)


def test_an_exact_figure_has_no_noise():
    assert judge_exact("flops", [1000, 1000], [1000]).status == "pass"
    assert judge_exact("flops", [1000, 1000], [1001]).status == "regression"
    assert judge_exact("flops", [1000, 1000], [1001]).why == "0.1 % more"
    assert judge_exact("flops", [1000, 1000], [999]).status == "improvement"


def test_of_exact_figures_the_largest_of_the_baseline_counts():
    assert judge_exact("peak_bytes", [1000, 1100], [1110], tolerance=11).status == "pass"
    assert judge_exact("peak_bytes", [1000, 1100], [1112], tolerance=11).status == "regression"
    assert judge_exact("peak_bytes", [1000, 1100], [990], tolerance=11).status == "pass"
    assert judge_exact("peak_bytes", [1000, 1100], [988], tolerance=11).status == "improvement"
    assert judge_exact("flops", [0, 0], [5]).why == "there was none"
