"""What the verbs make of a training's log: a run of one launch."""

import pytest
from test_regression_verbs import run
from trainings import even, step, training

from gpuprof.errors import GpuprofError
from gpuprof.history import open_store


@pytest.fixture
def folder(tmp_path):
    """Trainings of six days with steps of 998 to 1002 ns."""
    for day, offset in enumerate((0, 2, -2, 1, -1, 0), start=1):
        date = {"environment": {"date": f"2026-01-{day:02}T00:00:00+00:00"}}
        training(tmp_path / "trainings" / f"{day}", even((1000 + offset) * 1e-9), **date)
    return tmp_path / "trainings"


def head(path, time_s, day=9, count=10):
    return training(path, even(time_s, count), environment={"date": f"2026-01-{day:02}T00:00:00+00:00"}).parent


def test_a_slower_training_is_a_regression_against_a_folder_of_them(folder, tmp_path):
    code, said = run("check", head(tmp_path / "slow", 1030e-9), "--against", folder)

    assert code == 1
    assert said.startswith("REGRESSION  Net-train-batch4-bfloat16-")
    assert "Step time 1.030 us against 1.000 us: 3.0 % worse" in said
    assert "Not judged" not in said  # a log has no kernels and no memory, and nobody asked for them
    assert run("check", head(tmp_path / "same", 1001e-9), "--against", folder)[0] == 0


def test_the_newest_training_of_a_folder_is_held_against_the_others(folder):
    head(folder / "slow", 1030e-9)

    code, said = run("check", folder)

    assert code == 1
    assert "slow, the newest there." in said
    assert "Baseline: 6 launches of 6 runs, 2026-01-01 to 2026-01-06." in said


def test_a_log_by_itself_and_the_folder_of_its_training_are_one_run(folder):
    code, said = run("check", folder / "6", "--against", folder, "--against", folder / "5" / "meter.jsonl")

    assert code == 0
    assert "Baseline: 5 launches of 5 runs" in said


def test_a_training_in_the_middle_is_no_baseline_as_long_as_it_has_no_steps(folder, tmp_path):
    training(folder / "7", even(1.0, 2))  # in its warm-up

    code, said = run("check", head(tmp_path / "same", 1001e-9), "--against", folder)

    assert code == 0
    assert "Left out: 7: no whole run." in said


def test_of_steps_of_various_shapes_the_mfu_decides(tmp_path):
    def mixed(name, day, share, speed=1.0):
        """So many of ten steps are twice the work in twice the time."""
        steps = [
            step(number, (1 + long) * 1e-6 / speed, (1 + long,))
            for number in range(1, 11)
            for long in [int(number <= share)]
        ]
        date = {"environment": {"date": f"2026-01-{day:02}T00:00:00+00:00"}}
        return training(tmp_path / name, steps, sizes=(1, 2), **date).parent

    for day in range(1, 7):
        mixed(f"runs/{day}", day, share=2 + day % 2)

    code, said = run("check", mixed("longer", 8, share=4), "--against", tmp_path / "runs")

    assert code == 0  # its steps take longer, and do as much more
    assert "Its steps are of various shapes: MFU decides, and not what they took." in said
    code, said = run("check", mixed("slower", 9, share=2, speed=0.95), "--against", tmp_path / "runs")
    assert code == 1
    assert "MFU, datasheet 5.7 % against 6.0 %: 5.0 % worse" in said


def test_a_clock_that_fell_is_not_the_code(tmp_path):
    def clocked(name, day, time_s, mhz):
        date = {"environment": {"date": f"2026-01-{day:02}T00:00:00+00:00"}}
        figures = {"device/clock_mhz": mhz, "device/step_s": time_s}
        return training(tmp_path / name, even(time_s), figures=figures, **date).parent

    for day in range(1, 7):  # slower as the clock is lower
        clocked(f"runs/{day}", day, 1e-6 * 1700 / (1690 + 4 * day), 1690.0 + 4 * day)

    code, said = run("check", clocked("cool", 8, 1e-6 * 1700 / 1630, 1630.0), "--against", tmp_path / "runs")

    assert code != 1  # 4 % slower at a clock that is 4 % lower
    assert "No clock was read" not in said
    code, said = run("check", clocked("slow", 9, 1.04e-6, 1704.0), "--against", tmp_path / "runs")
    assert code == 1
    assert "SM clock 1,704 MHz" in run("show", tmp_path / "slow")[1]


def test_trainings_are_imported_once_and_held_against_in_a_store(folder, tmp_path):
    url = f"sqlite:///{tmp_path / 'history.db'}"

    assert run("history", "import", *sorted(folder.iterdir()), "--store", url) == (0, "6 runs imported\n")
    again = run("history", "import", folder / "1" / "meter.jsonl", folder / "2", "--store", url)
    code, said = run("check", head(tmp_path / "slow", 1030e-9), "--store", url)

    assert again == (0, "0 runs imported, 2 were there\n")
    assert code == 1
    assert "1.030 us against 1.000 us: 3.0 % worse" in said
    with open_store(url) as store:
        runs = store.runs()
        assert runs["step_s"].tolist() == pytest.approx([1e-6, 1.002e-6, 0.998e-6, 1.001e-6, 0.999e-6, 1e-6, 1.03e-6])
        assert runs["mfu_datasheet"].iloc[0] == pytest.approx(6000 / 100e9 / 1e-6)
        assert runs["launches"].tolist() == [1] * 7
        assert store.load(runs["id"].iloc[0]).metered
    assert "2026-01-09 00:00" in run("history", "list", "--store", url)[1]


@pytest.mark.parametrize("verb", ["budget", "roofline", "memory"])
def test_what_a_log_does_not_tell_is_one_line(folder, verb):
    with pytest.raises(GpuprofError, match="profile") as caught:
        run(verb, folder / "1")

    assert "\n" not in str(caught.value)


def test_show_says_which_steps_it_is_of(folder, tmp_path):
    code, said = run("show", folder / "1")

    assert code == 0
    assert "1.000 us mean of 7 steps without 3 warm-up (IQR 0 s)" in said
    assert "MFU 6.0 %" in said
    assert "Pass trace skipped: a meter's log has times of whole steps only" in said
    training(tmp_path / "two", even(1e-6))
    training(tmp_path / "two", even(2e-6, first=11))
    assert "mean of 14 steps in 2 processes without 6 warm-up" in run("show", tmp_path / "two")[1]


def test_compare_report_and_backward_take_a_log(folder, tmp_path):
    pytest.importorskip("plotly")
    head(tmp_path / "slow", 1030e-9)

    code, said = run("compare", folder / "1", tmp_path / "slow")

    assert code == 0
    assert "step time           1.000 us      1.030 us  +3.0 %" in said
    assert "the backward has 2.000 x the FLOPs of the forward" in run("backward", folder / "1")[1]
    assert run("report", folder / "1", "-o", tmp_path / "page.html")[0] == 0
    assert "mean of 7 steps without 3 warm-up" in (tmp_path / "page.html").read_text()


def test_a_folder_of_something_else_is_one_line(tmp_path):
    url = tmp_path / "history.db"

    with pytest.raises(GpuprofError, match=r"is a folder without a meter\.jsonl"):
        run("show", tmp_path)
    with pytest.raises(GpuprofError, match="or folders of trainings"):
        run("history", "import", tmp_path, "--store", url)
    assert not url.exists()


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        (
            ("budget",),
            r"no budget of a training: .*; Meter\(profile_at=\[200\], out=...\) saves a run of live step 200",
        ),
        (("roofline",), r"no roofline of a training: .*; Meter\(profile_at"),
        (("show", "-f", "perfetto"), r"no timeline of a training: .*; Meter\(profile_at"),
        (("memory",), r"no memory account of a training: .*; give the model to gpuprof\.profile"),
    ],
)
def test_what_a_log_cannot_tell_is_said_with_what_can(tmp_path, verb, message):
    training(tmp_path, even(1.0))

    with pytest.raises(GpuprofError, match=message) as told:
        run(verb[0], tmp_path, *verb[1:])

    assert "\n" not in str(told.value)
