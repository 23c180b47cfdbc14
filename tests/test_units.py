import pytest

from gpuprof import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (7, "7"), (999, "999"), (1000, "1.000 K"), (134_515_008, "134.5 M"), (53.1858e12, "53.19 T"),
        (1.5, "1.500"), (None, "-"), (float("nan"), "-"), (2.1e18, "2.100 E"), (7_790 * 10**15, "7.790 E"),
        (3 * 10**21, "3.000 Z"), (4.2e24, "4.200 Y"),
    ],
)  # fmt: skip
def test_si(value, text):
    assert units.si(value) == text


def test_so_many_things():
    said = [units.number(0, "run"), units.number(1, "run"), units.number(1, "launch", "launches")]
    assert said == ["0 runs", "1 run", "1 launch"]
    assert units.number(1200, "launch", "launches") == "1,200 launches"


def test_si_with_a_unit():
    assert units.si(989.4e12, "FLOP/s") == "989.4 TFLOP/s"
    assert units.si(989.4e12, "FLOP/s", digits=2) == "989 TFLOP/s"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.500 KiB"), (17.4525 * 2**30, "17.45 GiB"), (None, "-")]
)
def test_size(value, text):
    assert units.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 s"), (1.5, "1.500 s"), (0.0123, "12.30 ms"), (45.6e-6, "45.60 us"), (7e-9, "7.000 ns"), (None, "-")],
)
def test_duration(value, text):
    assert units.duration(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(20, "1 minute"), (7140, "119 minutes"), (7200, "2 hours"), (47 * 3600, "47 hours"), (4 * 86400, "4 days")],
)
def test_span(seconds, text):
    assert units.span(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.4123, "41.2 %"),
        (0.0, "0.0 %"),
        (0.0001, "<0.1 %"),
        (-0.0001, ">-0.1 %"),
        (1.05, "105.0 %"),
        (None, "-"),
    ],
)
def test_percent(value, text):
    assert units.percent(value) == text
