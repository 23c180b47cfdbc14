"""profile and check with a run store."""

import pytest
from test_regression_verbs import run, save

from gpuprof.errors import GpuprofError
from gpuprof.history import open_store

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


def test_a_profile_goes_into_the_store_with_its_commit(tmp_path, brief_ceiling, monkeypatch):
    (tmp_path / "net.py").write_text(MODEL)
    monkeypatch.setattr("gpuprof.cli.output._commit", lambda: "abc1234+")
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
