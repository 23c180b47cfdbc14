import sys
from pathlib import Path

import numpy as np
import pytest

from gpuprof.errors import GpuprofError

ROOT = Path(__file__).resolve().parents[2]
SERIES = ROOT.parent / "shared" / "series"

needs_series = pytest.mark.skipif(not SERIES.is_dir(), reason="the recorded histories are not here")
R, P = "regression", "pass"


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import study_histories

    return study_histories


def test_an_onset_is_a_first_night_of_alarm(study):
    assert study.onsets([R, P, R, R, "inconclusive", R]) == [0, 2, 5]
    assert study.onsets([]) == []


def test_verdicts_are_counted_against_labels(study):
    # nights of three: the change at run 7 is of night 3, that at 30 of night 10; nights 2 to 6 and 9 to 13 are near one
    labels = [study.Label(7, 0.05), study.Label(30, -0.04)]
    said = [P, R, P, P, R, R, P, "improvement", R, P, P, "drift", "inconclusive", R]

    found = study.judged(said, labels, 3)

    assert found == {
        "nights": 14, "regressions": 5, "drifts": 1, "improvements": 1, "inconclusive": 1,
        "onsets": 4, "onsets_at_change": 1, "onsets_at_any": 1,  # night 4; 13 is at a change the other way
        "quiet_nights": 4, "quiet_onsets": 2,  # of nights 0, 1, 7 and 8
        "changes": 1, "delays": [1],
    }  # fmt: skip
    small = study.judged(said, labels, 3, small=[study.Label(24, 0.012)])
    assert (small["onsets_at_change"], small["onsets_at_any"]) == (1, 2)
    assert (small["quiet_nights"], small["quiet_onsets"]) == (2, 1)


def test_what_was_mixed_is_not_judged(study):
    said = [P, R, P, R, R, P, P, P, P, P, R, P]

    found = study.judged(said, [], 1, mixed=(3, 5))  # and the three nights from 5 on, with the one that begins there

    assert (found["nights"], found["onsets"], found["quiet_nights"]) == (6, 2, 6)


def test_a_change_is_called_in_time_or_not(study):
    label = [study.Label(4, 0.03)]

    def delays(*alarms):
        return study.judged([R if at in alarms else P for at in range(10)], label, 1)["delays"]

    assert delays(3) == [0]
    assert delays(4, 5) == [0]
    assert delays(6) == [2]
    assert delays(2) == delays(7) == []
    assert study.judged([P] * 10, [study.Label(4, 0.029)], 1)["changes"] == 0


def test_counts_add_up_to_shares(study):
    one = study.judged([P, R, P, R], [study.Label(1, 0.1)], 1)
    other = study.judged([P] * 6, [], 1)

    total = study.added([one, other])

    # nights 0 to 3 of the one are near its change
    assert (total["quiet_nights"], total["quiet_onsets_per_100_nights"]) == (6, 0.0)
    assert (total["share_at_change"], total["called"], total["share_called"], total["median_delay"]) == (1.0, 1, 1.0, 0)
    still = study.added([other])
    assert still["share_at_change"] is still["share_called"] is still["median_delay"] is None


def test_change_points_are_counted_as_they_appear(study):
    lists = [[] for _ in range(40)]
    for seen in range(12, 40):
        lists[seen] = [(10, 0.05)]  # found at run 12, at its place
    for seen in range(14, 16):
        lists[seen] = [(11, 0.05), (4, 0.1)]  # moved by one: the same; and one that vanishes
    lists[30] = [(10, 0.05), (28, -0.04)]
    labels = [study.Label(9, 0.06), study.Label(20, 0.04), study.Label(29, -0.04)]

    assert study.alarms(lists) == [
        study.Alarm(12, 10, 0.05, True, True), study.Alarm(14, 4, 0.1, False, False),
        study.Alarm(30, 28, -0.04, False, False),
    ]  # fmt: skip
    found = study.pointed(lists, labels)
    assert found["onsets"] == 2
    assert found["onsets_at_change"] == found["quiet_onsets"] == 1
    assert found["quiet_runs"] == 40 - 3 * 7
    assert (found["changes"], found["delays"]) == (2, [3])
    assert (found["alarms"], found["vanish"], found["settled"], found["settled_vanish"]) == (3, 2, 1, 0)
    assert (found["listed"], found["listed_at_change"], found["labels"], found["labels_listed"]) == (1, 1, 3, 1)


def test_what_stays_slower_is_accepted_on_the_third_night(study):
    values = study.dated([0.010, 0.0101, 0.0099] * 4 + [0.0121, 0.0120, 0.0119] * 4 + [0.012])

    nights = study.nights_of(values, 3)
    said = study.replay(nights, 0.02)

    assert len(nights) == 8
    assert nights[-1] == (values[23][0], [0.0121, 0.0120, 0.0119])
    assert said[2:7] == [P, P, R, R, R]
    assert said[7] != R


def test_modes_that_alternate_are_no_change_of_level(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import change_point_peers as peers

    modes = np.log(np.array([1.0, 1.2] * 10 + [1.2, 1.0, 1.2] * 7))  # the median moves, seven values of ten are alike
    assert peers.lasting(modes, [20], 0.02) == []
    step = np.log(np.concatenate([np.full(20, 1.0), np.full(20, 1.021), np.full(20, 1.1)]))
    assert peers.lasting(step, [10, 20, 40], 0.02) == [20, 40]
    assert peers.lasting(step, [10, 20, 40], 0.03) == [40]


def test_a_missing_folder_and_a_missing_interpreter_are_one_line(study, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["study_histories.py", "--series", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"error: no file .*cudajl\.tsv: give the folder .* with --series$"):
        study.main()
    with pytest.raises(GpuprofError, match="cannot be run"):
        study.peers(str(tmp_path / "python"), {})
    assert study.options(["--tools", "/a/b/python", "--jobs", "2"]) == ["--tools", "python", "--jobs", "2"]


@needs_series
def test_the_recorded_histories_are_read_and_replayed(study):
    series, groups = study.cudajl(SERIES), study.nanogpt(SERIES)

    assert len(series) == 21
    assert {len(values) for values in series.values()} == {332}
    assert len(groups) == 22
    assert sum(len(figures["ms_per_step"]) for *_, figures in groups) == 266
    assert groups[0][:2] == ("2025-07-12_BosAlign", "H100 80GB HBM3")
    assert all(
        [date for date, _ in values] == sorted({date for date, _ in values}) for values in series.values()
    )  # no two at once
    # sorting got 16 % slower at run 111, and quieter it does not get
    nights = study.nights_of(series["array/sorting/1d"][90:120], 3)
    assert study.replay(nights, 0.02)[3:8] == [P, P, P, P, R]
