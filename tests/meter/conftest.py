import pytest

from gpuprof.meter import clock


class Ticking:
    """A clock that goes on by a second whenever it is read."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        self.now += 1.0
        return self.now


@pytest.fixture
def ticks(monkeypatch):
    """The meter's clock: each micro-batch takes 1 s, and so does what is between two."""
    ticking = Ticking()
    monkeypatch.setattr(clock, "time", ticking)
    return ticking
