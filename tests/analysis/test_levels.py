"""Which runs of a history are the level, and which are noise."""

import pandas as pd
import pytest

from gpuprof.analysis import levels


def history(*said):
    """Runs of so many verdicts; ``+``: somebody accepted it, ``-``: left it out; ``?``: the check refused it."""
    refused = ("regression", "drift", "inconclusive?")
    return pd.DataFrame([
        {
            "id": str(at),
            "verdict": verdict.rstrip("+-?"),
            "accepted": verdict.endswith("+") or not (verdict.endswith("-") or verdict in refused),
            "decided": verdict.endswith(("+", "-")),
        }
        for at, verdict in enumerate(said)
    ])  # fmt: skip


# a case: what was said of each run, its level, and whether it is held and noise: H and N, or n where it is noise alone
@pytest.mark.parametrize(
    ("said", "level", "stands"),
    [
        ("none pass pass", "000", "HHH"),
        ("none improvement pass", "000", "HnH"),  # one odd run
        ("none pass improvement", "000", "HH."),  # not yet
        ("none improvement improvement", "011", "HHH"),  # confirmed
        ("none improvement improvement pass improvement pass", "011111", "HHHHnH"),
        ("none improvement improvement improvement pass", "01111", "HHHnH"),  # the third is a candidate again
        ("none improvement improvement improvement improvement", "01122", "HHHHH"),
        ("none improvement+ pass", "011", "HHH"),  # somebody needs no second run
        ("none regression pass", "000", "HnH"),  # refused, and it came back
        ("none regression regression", "000", "H.."),  # while it lasts
        ("none regression regression pass", "0000", "HnnH"),
        ("none regression regression+ pass", "0011", "H.HH"),  # of the level that it was refused at
        ("none drift+ pass", "011", "HHH"),
        ("none inconclusive pass", "000", "HHH"),  # more of the noise
        ("none inconclusive? pass", "000", "HnH"),  # for its clock: nobody holds a run against it
        ("none inconclusive+ pass+", "000", "HHH"),  # nothing changed: no level begins
    ],
)
def test_what_a_run_is_now(said, level, stands):
    found = levels.standing(history(*said.split()))

    assert list(found["level"]) == [int(number) for number in level]
    assert list(found["held"]) == [letter == "H" for letter in stands]
    assert list(found["noise"]) == [letter in "Hn" for letter in stands]


def test_a_run_that_somebody_left_out_is_neither_level_nor_noise():
    found = levels.standing(history("none", "pass-", "regression-", "improvement-", "pass"))

    assert list(found["id"]) == ["0", "4"]
    assert list(found["held"]) == list(found["noise"]) == [True, True]
    # nor does it stand between an improvement and the next, which confirms it
    assert list(levels.standing(history("none", "improvement", "pass-", "improvement"))["level"]) == [0, 1, 1]


def test_an_improvement_that_somebody_left_out_confirms_nothing():
    found = levels.standing(history("none", "improvement", "improvement-", "pass"))

    assert list(found["level"]) == [0, 0, 0]
    assert list(found["held"]) == [True, False, True]


def test_no_run_stands_nowhere():
    found = levels.standing(history("none").head(0))

    assert list(found.columns[-3:]) == ["level", "held", "noise"]
    assert len(levels.window(found, pd.Series(dtype="int64"))) == 0


def chosen(runs, launches):
    standing = levels.standing(runs).set_index("id")
    return levels.window(standing, pd.Series(launches, index=runs["id"]))


def test_the_newest_runs_and_those_that_the_level_began_with():
    found = chosen(history(*["pass"] * 100), [6] * 100)

    # 6, 12, 18 and 24 launches: the fourth run has the twentieth
    assert list(found.index) == [*map(str, range(4)), *map(str, range(40, 100))]
    assert list(found.index[found["began"]]) == ["0", "1", "2", "3"]


def test_a_level_begins_with_runs_that_it_holds():
    said = ["pass"] * 5 + ["improvement+", "regression", "improvement", "pass", "pass", "pass"]
    found = chosen(history(*said), [5] * 5 + [10, 5, 5, 9, 5, 5])

    assert len(found) == 11
    assert list(found.index[found["began"]]) == ["5", "8", "9"]  # 10, 19 and 24 launches


def launches(figures, level, held, **more):
    return pd.DataFrame({"step_s": figures, "level": level, "held": held, **more})


def test_what_is_scaled_to_the_newest_level_is_noise_of_the_older():
    frame = launches(
        [10.0, 11.0, 12.0, 22.0, 100.0, 110.0, 120.0], [0] * 4 + [1] * 3, [True] * 3 + [False] + [True] * 3,
        forward_s=[1.0, 1.0, 1.0, 2.0, 3.0, 3.0, 3.0], flops=[7, 7, 7, 7, 9, 9, 9],
    )  # fmt: skip
    found = levels.to_newest(frame, ["step_s", "forward_s"])

    assert list(found["step_s"]) == pytest.approx([100, 110, 120, 220, 100, 110, 120])  # by 110 over 11
    assert list(found["forward_s"]) == pytest.approx([3, 3, 3, 6, 3, 3, 3])
    assert list(found["flops"]) == [7, 7, 7, 7, 9, 9, 9]


def test_a_level_of_which_nothing_is_held_says_nothing():
    frame = launches([10.0, 11.0, 50.0, 51.0], [0, 0, 1, 1], [True, True, False, False])

    assert list(levels.to_newest(frame, ["step_s"])["step_s"]) == [10, 11]


def test_what_a_level_does_not_know_is_not_scaled():
    """A metric that only the refused run of an older level has, or that the newest has not yet."""
    frame = launches(
        [10.0, 10.0, 20.0], [0, 0, 1], [True, False, True],
        energy_j=[float("nan"), 4.0, 8.0], backward_s=[1.0, 1.0, float("nan")],
    )  # fmt: skip
    found = levels.to_newest(frame, ["step_s", "energy_j", "backward_s"])

    assert list(found["energy_j"].isna()) == [True, True, False]
    assert found["backward_s"].isna().all()
    assert list(found["step_s"]) == [20, 20, 20]
