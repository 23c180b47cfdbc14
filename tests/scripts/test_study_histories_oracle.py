from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import study_histories_oracle

    return study_histories_oracle


def nights(*levels):
    return [np.full(3, level) for level in levels]


def test_what_is_told_leaves_out_the_night_of_the_change_and_what_is_mixed(study):
    label = study.histories.Label

    # run 7 is within night 2, and night 3 is the first that is all after it; runs 12 to 14 are night 4
    told = study.told([label(15, 0.1), label(7, -0.1)], 20, (12, 15))
    assert told == ([0, 3, 5], [(0, 2), (3, 5), (5, 20)], {4, 5, 6, 7, 8})


def test_a_step_unlike_any_night_before(study):
    knows = study.Told([0, 20], [(0, 20), (20, 23)], set())
    found = study.chances(nights(*[0.0] * 20, 0.1, 0.1, 0.1), knows, False)

    assert list(found[:20]) == [1.0] * 20
    # 0.3 of 20 nights and one, and 1 % is told of 10 %; those of the new level are unchanged nights of it for the next
    assert list(found[20:]) == pytest.approx([0.3 / 21 * 0.001, 0.3 / 22 * 0.001, 0.3 / 23 * 0.001])


def test_nights_as_slow_explain_it_those_after_only_where_they_are_told(study):
    levels = [0.0] * 9 + [0.1] + [0.0] * 5 + [0.1] + [0.0] * 4
    knows = study.Told([0], [(0, 20)], set())
    before, after = (study.chances(nights(*levels), knows, later) for later in (False, True))

    # one at a time: the first is unlike the nine before it, and like one of the ten after it
    assert before[9] == pytest.approx(0.3 / 10 * 0.001)
    assert after[9] == pytest.approx(1.3 / 20)
    assert before[15] == pytest.approx(1.3 / 16)
