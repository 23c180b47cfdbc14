from pathlib import Path

import numpy as np
import pytest

from gpuprof.analysis.judge import judge_interleaved, rank_test

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import study_regression_rule

    return study_regression_rule


def drawn(study, name, trials=2000, seed=0):
    return study.NOISES[name][1](np.random.default_rng(seed), trials, study.BEFORE + study.AFTER)


def test_noise_is_what_it_is_called(study):
    assert drawn(study, "nominal").speed.std() == pytest.approx(0.006, rel=0.02)
    assert drawn(study, "student").speed.std() == pytest.approx(0.006, rel=0.1)
    # 0.6 % of its own, and 0.6 % that five in a row share
    assert drawn(study, "days-0.6").speed.std() == pytest.approx(0.006 * 2**0.5, rel=0.03)
    slow = drawn(study, "bad-launches").speed < 0.975
    assert slow.mean() == pytest.approx(0.05, rel=0.1)
    jump = drawn(study, "unread-step-2")
    before, after = jump.speed[:, : study.BEFORE].mean(), jump.speed[:, study.BEFORE :].mean()
    assert after - before == pytest.approx(-0.02, abs=0.0005)
    assert jump.clock is None


def test_a_clock_is_read_on_its_grid(study):
    fallen = drawn(study, "clock-falls-4")

    assert set(fallen.clock[:, : study.BEFORE].ravel()) == {1755}
    assert set(fallen.clock[:, study.BEFORE :].ravel()) == {1680}  # 1684.8, to the nearest of 15
    assert fallen.speed[:, study.BEFORE :].mean() == pytest.approx(0.96, abs=0.0005)


def test_chances_are_those_of_the_rank_test(study):
    assert study.chances(2) == {
        3: 1.0, 4: pytest.approx(5 / 6), 5: pytest.approx(4 / 6), 6: pytest.approx(2 / 6), 7: pytest.approx(1 / 6)
    }  # fmt: skip
    assert study.chances(5)[40] == rank_test(range(5), range(5, 10))


def test_turns_are_judged_as_the_verb_judges_them(study, monkeypatch):
    trials = 60
    times = study.steps_of(np.random.default_rng(1), trials, study.BEFORE + study.AFTER)
    rows = study.interleaved(study.NOISES["nominal"][1], times, np.random.default_rng(2), 5)
    speed = study.NOISES["nominal"][1](np.random.default_rng(2), trials, study.BEFORE + 5).speed[:, study.BEFORE - 5 :]
    found = times[:, :10] / speed
    heads, bases = [1, 2, 5, 6, 9], [0, 3, 4, 7, 8]  # base head head base base head ...
    for row in rows:
        statuses = [
            judge_interleaved("step_s", one[bases], one[heads] / (1 - row["drop"])).status for one in found
        ]  # fmt: skip
        assert row["regression"] == statuses.count("regression") / trials
        assert row["inconclusive"] == statuses.count("inconclusive") / trials


def test_the_rule_does_not_cry_wolf_and_sees_three_percent(study):
    rng = np.random.default_rng(3)
    times = study.steps_of(rng, 2000, study.BEFORE + study.AFTER)
    rows = study.against_baseline(study.NOISES["nominal"][1], times, rng)

    share = {row["drop"]: row["regression"] for row in rows if (row["n"], row["k"]) == (20, 5)}
    assert share[0.0] < 0.005
    assert share[0.03] > 0.95
    assert share[0.05] == 1
