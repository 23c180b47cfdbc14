"""What runs say of their noise, by hand."""

from math import sqrt

import numpy as np
import pytest

from gpuprof.analysis.noise import Past, Runs, modes, noise_of


def runs_of(*figures, noise=None, level=None, since=None, began=0):
    """The launches of some runs, and whose they are; a mask per run, by default all; the first so many began it."""
    masks = (np.ones(len(figures), bool) if mask is None else np.asarray(mask, bool) for mask in (level, noise, since))
    run = np.repeat(np.arange(len(figures)), [len(launches) for launches in figures])
    of = [mask[run] for mask in masks]
    return np.concatenate(figures).astype(float), Runs(run, *of, run < began)


ONE = modes(np.zeros(5))


def test_two_modes():
    wide = np.array([-0.002, 0.0, 0.001, 0.0])
    values = np.concatenate([0.04 + wide, wide, wide])
    found = modes(values)

    assert list(found.at) == pytest.approx([0, 0.04])
    assert list(found.share) == pytest.approx([2 / 3, 1 / 3])
    assert list(found.of) == [1] * 4 + [0] * 8


@pytest.mark.parametrize(
    ("values", "number"),
    [
        (np.linspace(-0.05, 0.05, 50), 1),
        (np.repeat([0, 0.0131], 10), 1),  # 2.2 times two spreads of 0.3 % are 1.32 %
        (np.repeat([0, 0.0133], 10), 2),
        (np.repeat([0, 1], [5, 3]), 2),
        (np.repeat([0, 1], [4, 3]), 1),  # of eight launches
        (np.repeat([0, 1], [18, 2]), 1),  # of three each
        (np.repeat([0, 1], [47, 3]), 1),  # 8 % of 50 are 4
        (np.repeat([0, 1], [46, 4]), 2),
        ([0.5], 1),
    ],
)
def test_how_far_apart_and_how_large_modes_are(values, number):
    assert len(modes(np.asarray(values, float)).at) == number


def test_noise_within_runs_is_of_their_pairs_and_that_between_of_runs_in_a_row():
    # pairs differ by 0.5, 0.5 and 1 % each; medians in a row by 1, 1, 1.2 and 1.2
    runs = [middle + np.array([0.005, -0.005, 0]) for middle in (0, 0.01, 0, 0.012, 0)]
    found = noise_of(runs, ONE)
    within, in_a_row = 0.005 / 0.9539, 0.011 / 0.9539

    assert found.within == pytest.approx(within)
    assert found.between == pytest.approx(sqrt(in_a_row**2 - 1.57 * within**2 / 3))
    assert found.spread == pytest.approx(sqrt(within**2 + found.between**2))
    assert found.of_run(3) == pytest.approx(in_a_row)  # as they were seen
    assert found.error((4, 12), 5, 2) == pytest.approx(
        sqrt((found.between**2 + 1.57 * within**2 / 5) / 2 + found.between**2 / 4 + within**2 / 12)
    )


def test_a_slow_drift_is_no_noise_between_runs():
    # 0.1 % from run to run: 0.105 % of spread, less than what launches make of medians
    found = noise_of([0.001 * number + np.array([0.005, -0.005, 0]) for number in range(30)], ONE)

    assert (found.within, found.between) == (pytest.approx(0.005 / 0.9539), 0)


def test_no_machine_is_trusted_below_the_floor():
    assert noise_of([np.zeros(3)] * 5, ONE) == (0.003, 0.003, 0)
    assert noise_of([np.zeros(1)] * 5, ONE) == (0.003, 0.003, 0)


def test_runs_of_one_launch_have_the_noise_of_runs_in_a_row():
    spread = 0.01 / 0.9539  # of 1, 1, 2 and 1 %

    assert noise_of([np.array([at]) for at in (0, 0.01, 0, 0.02, 0.01)], ONE) == pytest.approx((spread, spread, 0))


def test_of_few_launches_the_deviations_of_all_count():
    # median 2 %, deviations 2, 1, 4 and 1: 1.5
    spread = 1.4826 * 0.015

    assert noise_of([np.array([0, 0.01]), np.array([0.06]), np.array([0.03])], ONE) == pytest.approx(
        (spread, spread, 0)
    )


def test_what_modes_make_is_no_noise():
    values = [np.array([0, 0.04, 0.002, 0.042])] * 6
    found = noise_of(values, modes(np.concatenate(values)))

    # 0.1 % around 0.1 and 4.1 %
    assert found == (0.003, 0.003, 0)


ERROR = 0.003 * sqrt(1.57 / 3 + 1 / 90)  # of three launches against thirty runs of as many, none above the floor
NEAR = 1.5 * 0.003 * sqrt(1.57 / 3)  # by which a run may be faster and is as slow


def still(*, slow=(), by=0.0, count=30, **masks):
    """Runs of three launches, at 0 but for some that are slow."""
    return runs_of(*(np.full(3, by if at in slow else 0.0) for at in range(count)), **masks)


def stretch(past, worse, sign=1, margin=0.02, level=0.0, blur=0.0, launches=3):
    values, runs = past
    return Past(values, np.full(launches, worse), runs).stretch(sign, margin, level, blur)


def test_a_slow_run_unlike_any():
    found = stretch(still(), 0.03)

    assert (found.runs, found.threshold, found.alike, found.known, found.slow) == (1, 0.02, 0, 30, 0)
    assert found.worse == pytest.approx(0.03)
    assert found.z == pytest.approx(0.03 / ERROR)
    # 0.3 of a run in 31, and what is told is taken for what is known
    assert found.chance == pytest.approx(0.3 / 31 * (3 * ERROR / 0.03) ** 3)


@pytest.mark.parametrize("margin", [0.02, 0.0])
def test_a_faster_run_is_its_mirror(margin):
    slow, fast = stretch(still(), 0.03, margin=margin), stretch(still(), -0.03, -1, margin)

    assert fast == pytest.approx(slow)


def test_what_is_no_change_is_no_stretch():
    assert stretch(still(), 0.019) is None  # below the margin
    assert stretch(still(), 0.0065, margin=0.0) is None  # 3 standard errors are 0.66 %
    assert stretch(still(), 0.0067, margin=0.0).threshold == pytest.approx(3 * ERROR)
    assert stretch(still(), 0.03, sign=-1) is None
    blurred = stretch(still(), 0.031, blur=0.01)
    assert blurred.threshold == pytest.approx(3 * sqrt(ERROR**2 + 0.01**2))
    assert stretch(still(), 0.03, blur=0.01) is None


def test_runs_as_slow_explain_it():
    slow = (1, 5, 9, 13, 17, 21, 25)
    found = stretch(still(slow=slow, by=0.03), 0.03)

    assert (found.runs, found.alike, found.known, found.slow) == (1, 7, 30, 0)
    assert found.chance == pytest.approx(7.3 / 31)
    # a little faster is as slow
    assert stretch(still(slow=slow, by=0.03), 0.03 + 0.9 * NEAR).alike == 7
    assert stretch(still(slow=slow, by=0.03), 0.03 + 1.1 * NEAR).alike == 0


def test_what_is_far_slower_explains_nothing():
    assert stretch(still(slow=(3,), by=2.2 * 0.03 + NEAR), 0.03).alike == 0
    assert stretch(still(slow=(3,), by=1.9 * 0.03), 0.03).alike == 1


def test_runs_of_a_slower_mode_do_not_explain_what_is_too_fast_for_it():
    found = stretch(still(slow=(1, 5, 9, 13, 17), by=0.055), 0.03)

    # 0.3 of a run in 25 others and one more; launches that came in whole slow runs do not come together by chance
    assert (found.alike, found.known, found.slow) == (0, 30, 0)
    assert found.chance == pytest.approx(0.3 / 26 * (3 * ERROR / 0.03) ** 3)
    # two such runs are no mode, and stay
    assert stretch(still(slow=(1, 5), by=0.055), 0.03).alike == 2


@pytest.mark.parametrize(("errors", "alike"), [(2.4, 5), (2.6, 0)])
def test_too_fast_for_a_mode_is_by_the_mean_of_a_run(errors, alike):
    error = 0.003 / sqrt(3)

    # with what they are held against higher, the modes stay where they are
    for level in (0.0, 0.01):
        found = stretch(still(slow=(1, 5, 9, 13, 17), by=0.04), 0.04 - errors * error, level=level)
        assert found.alike == alike


def test_two_runs_in_a_row_are_too_fast_for_a_mode_that_one_is_not():
    slow = (1, 5, 8, 9, 10, 13, 17, 21)
    one, two = (still(slow=slow, by=0.04, count=count) for count in (30, 31))
    launches, runs = two
    launches[-3:] = 0.0368

    assert stretch(one, 0.0368).chance == pytest.approx(8.3 / 31)
    found = stretch((launches, runs), 0.0368)
    assert (found.runs, found.alike, found.known) == (2, 0, 30)


def test_a_run_with_launches_in_both_modes_is_not_too_fast_for_one():
    values, runs = still(slow=(1, 5, 9, 13, 17), by=0.04)

    assert Past(values, np.array([0.04, 0.04, 0.0]), runs).stretch(1, 0.02, 0.0).alike == 5


def test_launches_of_an_episode_are_no_excuse_of_it():
    past = runs_of(*[np.zeros(5)] * 28, *[np.array([0, 0, 0.04, 0.04, 0.04])] * 2)

    assert stretch(past, 0.04, launches=5).slow == 0


def test_the_newest_half_of_a_level_by_its_launches():
    values, runs = runs_of(*[np.zeros(3)] * 6, *[np.full(3, 0.004)] * 6)

    assert Past(values, np.zeros(3), runs).newest == pytest.approx(0.004)


def test_the_newest_half_of_whole_modes_is_by_how_far_it_left_them():
    slow = [np.full(3, 0.0 if at in (0, 3, 6, 8) else 0.04) for at in range(9)]
    values, runs = runs_of(*[np.zeros(3)] * 9, *slow)
    past = Past(values, np.zeros(3), runs)
    assert past.whole_modes
    assert past.newest == past.level == 0

    values[27:] += 0.005
    assert Past(values, np.zeros(3), runs).newest == pytest.approx(0.0025)


def test_runs_in_a_row_are_taken_together_and_are_no_excuse_of_themselves():
    found = stretch(still(slow=(27, 28, 29), by=0.03), 0.03)
    error = 0.003 * sqrt(1.57 / 3 / 4 + 1 / 90)

    assert (found.runs, found.alike, found.known) == (4, 0, 27)
    assert found.z == pytest.approx(0.03 / error)
    assert found.chance == pytest.approx(0.3 / (27 / 4 + 1) * (3 * error / 0.03) ** 3)


def test_runs_that_were_refused_are_a_part_of_the_row_and_not_of_the_noise():
    refused = [at < 28 for at in range(30)]
    found = stretch(still(slow=(28, 29), by=0.03, level=refused, noise=refused), 0.03)

    assert (found.runs, found.alike, found.known) == (3, 0, 28)


def test_runs_before_the_level_are_of_no_row():
    since = [at >= 29 for at in range(30)]
    found = stretch(still(slow=(27, 28, 29), by=0.03, since=since), 0.03)

    # the last is of the row and no excuse, the two before the level are runs that were as slow; for the row of two,
    # 1.3 of 29 / 2 + 1 is more
    assert (found.runs, found.alike, found.known) == (1, 2, 29)
    assert found.chance == pytest.approx(2.3 / 30)


def test_chance_hardly_leaves_all_launches_in_a_slow_mode():
    def chance(slow):
        past = runs_of(*[np.repeat([0, 0.04], [5 - slow, slow])] * 30)
        return stretch(past, 0.04, launches=5)

    # one of five launches: three of five by chance are 5.8 %, but all five are 0.03 %
    assert chance(1).slow == pytest.approx(0.2)
    assert chance(1).chance == pytest.approx(0.2**5)
    assert chance(2).chance == pytest.approx(0.4**5)


def test_of_two_launches_the_fastest_tells_nothing():
    past = runs_of(*[np.array([0, 0, 0, 0, 0.04])] * 30)

    assert stretch(past, 0.04, launches=2).chance == pytest.approx(0.2**2)


def creeping(count=12, step=0.003):
    """Runs of five launches, each slower than the one before."""
    return runs_of(*(np.full(5, step * at) for at in range(count)), began=4)


def drift(past, head, margin=0.02):
    values, runs = past
    return Past(values, np.full(5, head), runs).drift(margin)


def test_drift():
    # the last three runs and the head: 2.7, 3, 3.3 and 3.6 %; the first four: 0 to 0.9
    assert drift(creeping(), 0.036) == pytest.approx(0.0315 - 0.0045)
    assert drift(creeping(), 0.036, margin=0.0265) == pytest.approx(0.027)
    assert drift(creeping(), 0.036, margin=0.0275) is None
    assert drift(creeping(), 0.024) is None  # tonight it is not 2 % above the first
    assert drift(creeping(), 0.025) == pytest.approx((0.027 + 0.030) / 2 - 0.0045)


def test_drift_is_beyond_the_noise():
    # in a row 0.3 %, floor within; four runs and twenty launches either way
    between = (0.003 / 0.9539) ** 2 - 1.57 * 0.003**2 / 5
    error = sqrt(between * (1 / 4 + 1 / 4) + 1.57 * 0.003**2 * (1 / 20 + 1 / 20))
    assert 0.0066 < 3 * error < 0.0067

    # the last three and the head of six runs: 0.9, 1.2, 1.5 and 1.8 %, of five: 0.6 to 1.5
    assert drift(creeping(6), 0.018, margin=0.0) == pytest.approx(0.0135 - 0.0045)
    assert drift(creeping(5), 0.015, margin=0.0) is None


def test_a_level_of_its_first_runs_did_not_drift():
    assert drift(creeping(4), 0.5) is None
    values, runs = creeping()
    assert drift((values, runs._replace(began=np.zeros(60, bool))), 0.036) is None
