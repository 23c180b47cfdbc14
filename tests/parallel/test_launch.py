"""What the environment of a launcher says, also where it is none of a launcher."""

import pytest

from gpuprof.errors import GpuprofError
from gpuprof.parallel import launch


@pytest.fixture
def environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch.setenv


def test_a_process_that_stands_alone_speaks_whatever_its_rank_is(environment):
    environment("RANK", "3")
    assert (launch.world_size(), launch.speaks()) == (1, True)


@pytest.mark.parametrize(("world", "rank"), [("2", "2"), ("2", "first"), ("two", "1"), ("0", "0"), ("-1", "0")])
def test_what_makes_no_sense_is_said_and_not_passed_over_in_silence(environment, world, rank):
    environment("WORLD_SIZE", world)
    environment("RANK", rank)
    with pytest.raises(GpuprofError, match="in the environment"):
        launch.rank()
    assert launch.speaks()


def test_the_first_rank_that_is_still_there_speaks(environment, monkeypatch):
    environment("WORLD_SIZE", "3")
    environment("RANK", "1")
    assert not launch.speaks()
    monkeypatch.setattr(launch, "gone", {0})
    assert launch.speaks()
