"""profile and check with a run store."""

import pytest
from runs import gpu_run
from test_regression_verbs import run, save

from gpuprof.errors import GpuprofError
from gpuprof.history import open_store
from gpuprof.schema import table

MODEL = """
import torch


def net():
    return torch.nn.Linear(16, 16), (torch.randn(4, 16),)
"""


@pytest.fixture
def store(tmp_path):
    """The URL of a store with five runs of 998 to 1002 ns."""
    url = f"sqlite:///{tmp_path / 'history.db'}"
    for day, offset in enumerate((0, 2, -2, 1, -1), start=1):
        run("history", "import", save(tmp_path / "run.json", 1000 + offset, day), "--store", url)
    return url


def verdicts(url):
    with open_store(url) as opened:
        return opened.runs()[["verdict", "accepted"]].values.tolist()


def test_a_run_is_held_against_the_store_and_kept_there_with_its_verdict(store, tmp_path):
    code, said = run("check", save(tmp_path / "slow.json", 1030, 9, slow=1.75), "--store", store)

    assert code == 1
    assert "Step time 1.030 us against 1.000 us: 3.0 % worse" in said
    assert "More time in head forward" in said
    assert verdicts(store)[-1] == ["regression", 0]

    code, _ = run("check", save(tmp_path / "same.json", 1003, 10), "--store", store)

    assert code == 0  # the regression is no part of the baseline
    assert verdicts(store)[-1] == ["pass", 1]


def test_the_same_run_twice_is_kept_once_and_not_held_against_itself(store, tmp_path):
    slow = save(tmp_path / "slow.json", 1030, 9)

    assert [run("check", slow, "--store", store)[0] for _ in range(2)] == [1, 1]
    assert len(verdicts(store)) == 6


def test_the_first_run_of_a_store_is_kept_and_inconclusive(tmp_path):
    url = str(tmp_path / "new.db")

    code, said = run("check", save(tmp_path / "run.json"), "--store", url)

    assert code == 3
    assert "there is nothing yet to hold it against" in " ".join(said.split())
    assert len(verdicts(url)) == 1


def test_the_first_run_of_a_store_is_a_skipped_test(tmp_path):
    said = run("check", save(tmp_path / "run.json"), "--store", tmp_path / "new.db", "-f", "junit")[1]

    assert 'tests="1" failures="0" errors="0" skipped="1"' in said
    assert f"no accepted run before it in {tmp_path / 'new.db'}" in said


def test_what_cannot_be_judged_is_not_kept(store, tmp_path):
    untimed = gpu_run()
    untimed.samples = table("samples", [])
    untimed.save(tmp_path / "untimed.json")
    slow = save(tmp_path / "slow.json", 1030, 9)

    for arguments, message in (
        ((tmp_path / "untimed.json",), "the head has no valid timed launch"),
        ((slow, "--allow-different", "drivr"), "no field drivr to allow"),
        ((slow, "--allow-different", "workload"), "a store holds a workload against itself alone"),
    ):
        with pytest.raises(GpuprofError, match=message):
            run("check", *arguments, "--store", store)
    assert len(verdicts(store)) == 5


def test_what_somebody_has_accepted_stays_so(store, tmp_path):
    slow = save(tmp_path / "slow.json", 1030, 9)
    said = " ".join(run("check", slow, "--store", store)[1].split())
    with open_store(store) as opened:
        identity = opened.runs()["id"].iloc[-1]
    accept = ("history", "accept", identity[:12], "--store", store.removeprefix("sqlite:///"))
    assert f"Later runs are not held against it; if it is meant: gpuprof {' '.join(accept)}" in said

    assert run(*accept)[0] == 0
    code, said = run("check", slow, "--store", store)
    assert (code, "Later runs are not held" in said) == (1, False)
    assert verdicts(store)[-1] == ["regression", 1]


def test_what_somebody_has_left_out_stays_so_and_is_said(store, tmp_path):
    same = save(tmp_path / "same.json", 1000, 9)
    run("check", same, "--store", store)
    with open_store(store) as opened:
        run("history", "accept", opened.runs()["id"].iloc[-1], "--undo", "--store", store)

    code, said = run("check", same, "--store", store)
    assert (code, "Later runs are not held" in said) == (0, True)
    assert verdicts(store)[-1] == ["pass", 0]


def test_one_odd_night_leaves_later_verdicts_as_they_were(store, tmp_path):
    assert run("check", save(tmp_path / "fast.json", 970, 8), "--store", store)[0] == 0
    assert verdicts(store)[-1] == ["improvement", 1]

    code, said = run("check", save(tmp_path / "back.json", 1001, 9), "--store", store)
    assert code == 0
    assert "Step time 1.001 us against 1.000 us: +0.1 %" in said
    assert run("check", save(tmp_path / "slow.json", 1035, 10), "--store", store)[0] == 1


def test_an_improvement_is_a_level_once_the_next_run_confirms_it(store, tmp_path):
    """970 and 971 ns after five nights of 1000 are a level, and 1010 the night after is 4.1 % worse."""
    for day, step_ns in ((8, 970), (9, 971)):
        assert run("check", save(tmp_path / "fast.json", step_ns, day), "--store", store)[0] == 0
    assert verdicts(store)[-2:] == [["improvement", 1]] * 2

    code, said = run("check", save(tmp_path / "slow.json", 1010, 12), "--store", store)
    assert "Step time 1.010 us against 970.5 ns: 4.1 % worse" in said
    assert code == 1
    assert run("check", save(tmp_path / "same.json", 972, 13), "--store", store)[0] == 0


def test_an_improvement_that_somebody_accepts_is_a_level_at_once(store, tmp_path):
    run("check", save(tmp_path / "fast.json", 970, 8), "--store", store)
    with open_store(store) as opened:
        run("history", "accept", opened.runs()["id"].iloc[-1], "--store", store)

    assert "1.010 us against 970.0 ns" in run("check", save(tmp_path / "slow.json", 1010, 9), "--store", store)[1]


@pytest.mark.parametrize("step_ns", [1030, 1010, 900])
def test_beside_few_launches_every_run_is_accepted(tmp_path, step_ns):
    """Of two runs nobody knows which is the odd one."""
    url = tmp_path / "new.db"
    run("check", save(tmp_path / "1.json", 1000, 1), "--store", url)

    assert run("check", save(tmp_path / "2.json", step_ns, 2), "--store", url)[0] == 3
    assert verdicts(url)[-1] == ["inconclusive", 1]


def test_another_device_is_refused_with_what_differs(store, tmp_path):
    with pytest.raises(GpuprofError, match="compares with this one: device") as refused:
        run("check", save(tmp_path / "other.json", 1000, 9, name="Other GPU"), "--store", store)

    assert "Other GPU" in str(refused.value)
    other = save(tmp_path / "other.json", 1000, 10, name="Third GPU")
    assert run("check", other, "--store", store, "--allow-different", "device")[0] == 0


def test_two_baselines_are_refused(store, tmp_path):
    head = save(tmp_path / "head.json")

    with pytest.raises(GpuprofError, match="--against and --store are two baselines"):
        run("check", head, "--store", store, "--against", head)


def test_a_profile_goes_into_the_store_with_its_commit(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(MODEL)
    monkeypatch.setattr("gpuprof.cli.output.commit", lambda: "abc1234+")
    url = str(tmp_path / "history.db")

    code, said = run("profile", f"{tmp_path / 'net.py'}:net", "--passes", "count,time", "--steps", 1, "--store", url)

    assert code == 0
    with open_store(url) as opened:
        (kept,) = opened.runs().to_dict("records")
    assert f"Stored as {kept['id'][:12]}" in said
    assert kept["commit"] == "abc1234+"


def test_a_store_that_cannot_be_opened_is_said_before_anything_is_measured(tmp_path):
    with pytest.raises(GpuprofError, match="there is no folder"):
        run("profile", "gpt2", "--store", str(tmp_path / "no" / "history.db"))
