"""Which runs of a history are the level, and which are noise."""

import pandas as pd
import pytest

from gpuprof.analysis.levels import standing, to_newest, window


def history(text, accepted="", decided=""):
    """Runs by the first letters of their verdicts; at which places they are accepted against them, or decided."""
    names = {"p": "pass", "i": "improvement", "r": "regression", "d": "drift", "?": "inconclusive"}
    verdicts = [names[letter] for letter in text]
    marks = [str(at) in accepted.split() for at in range(len(text))]
    kept = [(verdict in ("pass", "improvement")) != mark for verdict, mark in zip(verdicts, marks, strict=True)]
    said = [str(at) in decided.split() for at in range(len(text))]
    return pd.DataFrame({"verdict": verdicts, "accepted": kept, "decided": said})


@pytest.mark.parametrize(
    ("runs", "level", "held", "noise"),
    [
        (history("ppp"), "000", "111", "111"),
        (history("ppipp"), "00000", "11011", "11111"),  # one odd run
        (history("ppi"), "000", "110", "110"),  # of which nobody knows yet
        (history("ppiip"), "00111", "11111", "11111"),
        (history("ppiiip"), "001111", "111101", "111111"),  # the third is better still, and alone
        (history("ppiiii"), "001122", "111111", "111111"),
        (history("pprrp"), "00000", "11001", "11111"),  # it came back
        (history("pprr"), "0000", "1100", "1100"),  # it lasts
        (history("pprrp", accepted="3", decided="3"), "00011", "11011", "11011"),
        (history("ppdp", accepted="2", decided="2"), "0011", "1111", "1111"),
        (history("ppip", decided="2"), "0011", "1111", "1111"),  # somebody accepted an improvement
        (history("pp?p", accepted="2"), "0000", "1111", "1111"),  # more noise
        (history("pp?p"), "0000", "1101", "1111"),
    ],
)
def test_levels(runs, level, held, noise):
    found = standing(runs)

    assert "".join(map(str, found["level"])) == level
    assert "".join(str(int(one)) for one in found["held"]) == held
    assert "".join(str(int(one)) for one in found["noise"]) == noise


def test_what_somebody_left_out_is_not_there():
    found = standing(history("ppipip", accepted="3", decided="3"))

    assert list(found["verdict"]) == ["pass", "pass", "improvement", "improvement", "pass"]
    assert list(found["level"]) == [0, 0, 1, 1, 1]  # the two stand side by side


def test_of_no_runs_there_is_no_level():
    assert len(standing(history(""))) == 0


def test_the_window_is_the_newest_runs_and_the_first_of_the_level():
    runs = standing(history("p" * 10 + "ii" + "p" * 80)).set_index(pd.Index([f"run{at}" for at in range(92)]))
    found = window(runs, pd.Series(8, index=runs.index))

    # 20 launches of the level that began with run 10 are in the runs 10 to 12
    assert list(found.index) == ["run10", "run11", "run12", *(f"run{at}" for at in range(32, 92))]
    assert list(found.index[found["began"]]) == ["run10", "run11", "run12"]


def test_launches_of_older_levels_are_scaled():
    launches = pd.DataFrame(
        {"step_s": [1.0, 2.0, 3.0, 9.0, 10.0, 14.0], "flops": [5, 5, 5, 6, 6, 6], "level": [0, 0, 0, 1, 1, 2],
         "held": [True, True, True, True, False, False]}
    )  # fmt: skip
    found = to_newest(launches, ["step_s"])

    assert list(found["step_s"]) == [4.5, 9.0, 13.5, 9.0, 10.0]  # nothing is held of the last level
    assert list(found["flops"]) == [5, 5, 5, 6, 6]
